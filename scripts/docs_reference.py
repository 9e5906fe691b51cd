"""The reference pages of the documentation, made from the code: names, recipe keys, commands.

`pages()` gives Markdown by page; `scripts/docs_hooks.py` hands it to MkDocs. Printing one of them:
python scripts/docs_reference.py reference/commands.md
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import griffe
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from transformers import TrainingArguments

from paretune.baselines import BASELINES
from paretune.baselines.recipe import CompareRecipe
from paretune.options import load_kind
from paretune.recipes.choice import Chosen
from paretune.recipes.data_weighting import WeighRecipe
from paretune.recipes.schema import Recipe

MODULES = (
    "paretune",
    "paretune.data",
    "paretune.losses",
    "paretune.moo",
    "paretune.moo.weightings",
    "paretune.moo.bilevel",
    "paretune.training",
    "paretune.recipes",
    "paretune.results",
)
"""Whose names are public, one page each."""


def pages() -> dict[str, str]:
    """Every page, by its path below docs/."""
    found = {f"reference/{name}.md": text for name, text in _modules().items()}
    found["reference/sweep.md"] = recipe_page(
        "sweep", Recipe, "`paretune sweep`, `train`, `evaluate` and `reward train`", {}
    )
    found["reference/compare.md"] = recipe_page(
        "compare",
        CompareRecipe,
        "`paretune compare`",
        {f"methods.options of {name}": load_kind(BASELINES, name, "method") for name in BASELINES},
        without=Recipe,
    )
    found["reference/weigh.md"] = recipe_page("weigh", WeighRecipe, "`paretune weigh`", {})
    found["reference/commands.md"] = commands_page()
    return found


# --- Python names ---


def _modules() -> dict[str, str]:
    """A page for each public module; what several export is described once, nearest its home."""
    package = griffe.load("paretune", search_paths=[str(Path(__file__).parents[1] / "src")])
    names = {module: public_names(package, module) for module in MODULES}
    owner: dict[str, str] = {}
    for module in sorted(MODULES, key=len):  # a longer name is nearer
        owner.update(dict.fromkeys(names[module].values(), module))
    return {module: _module_page(package, module, names[module], owner) for module in MODULES}


def public_names(package: Any, module: str) -> dict[str, str]:
    """Exported names, each with the dotted path of what it is."""
    place = package if module == "paretune" else package[module.removeprefix("paretune.")]
    if place.exports:
        listed = [str(name) for name in place.exports]
    elif module == "paretune.results":  # a room of small modules, without names of its own
        listed = [name for name, member in place.modules.items() if not name.startswith("_")]
    else:
        listed = [
            name
            for name, member in place.members.items()
            if not name.startswith("_") and not member.is_alias and member.has_docstring
        ]
    return {name: place[name].canonical_path for name in listed if name != "__version__"}


def _module_page(package: Any, module: str, names: dict[str, str], owner: dict[str, str]) -> str:
    place = package if module == "paretune" else package[module.removeprefix("paretune.")]
    lines = [f"# {module}", "", place.docstring.value if place.docstring else "", ""]
    elsewhere = {name: path for name, path in names.items() if owner[path] != module}
    for name, path in elsewhere.items():
        lines.append(f"- [`{name}`][{path}] of [{owner[path]}]({owner[path]}.md)")
    lines.append("")
    for name, path in names.items():
        if name not in elsewhere:
            lines += [f"::: {path}", "", *_arguments(path), ""]
    return "\n".join(lines)


def _arguments(path: str) -> Iterator[str]:
    """The fields of a trainer's configuration, whose help transformers keeps in their metadata."""
    module, _, name = path.rpartition(".")
    if not name.endswith("Config"):
        return
    kind = getattr(importlib.import_module(module), name)
    inherited = {each.name for each in dataclasses.fields(TrainingArguments)}
    changed = set(inspect.get_annotations(kind))
    yield from ("And all fields of `transformers.TrainingArguments`.", "")
    for each in dataclasses.fields(kind):
        if each.name not in inherited or each.name in changed:
            yield f"`{each.name}`"
            yield f":   *{_type_words(each.type)}*, default `{yaml_value(each.default)}`. "
            yield f"    {each.metadata['help']}"
            yield ""


# --- Recipe keys ---


def recipe_page(
    command: str,
    recipe: type[BaseModel],
    reads: str,
    more: dict[str, type[BaseModel]],
    without: type[BaseModel] | None = None,
) -> str:
    """Every key of a kind of recipe, one heading a section."""
    lines = [
        f"# Recipe keys of {command}",
        "",
        f"Read by {reads}. Any key can be changed on the command line: `section.key=value`. "
        "See [recipes](../guides/recipes.md) for the idea.",
        "",
    ]
    if without:
        lines += ["Sections that are not listed here are those of [a sweep](sweep.md).", ""]
    known = set(without.model_fields) if without else set()
    top = {name: f for name, f in recipe.model_fields.items() if name not in known}
    lines += ["## The top", "", *_keys("", top)]
    for name, field in top.items():
        lines += _sections(name, field)
    for title, section in more.items():
        lines += _section(title, section)
    return "\n".join(lines) + "\n"


def _sections(prefix: str, field: FieldInfo) -> Iterator[str]:
    """The sections that a key holds, one heading each."""
    chosen = [s for each in field.metadata if isinstance(each, Chosen) for s in each.sections()]
    found = chosen or list(dict.fromkeys(_models(field.annotation)))
    for section in found:
        title = prefix
        if len(found) > 1 and "name" in section.model_fields:
            title += f" with name: {type_text(section.model_fields['name'])}"
        elif get_origin(field.annotation) is list:
            title += ", each item"
        yield from _section(title, section)


def _section(title: str, section: type[BaseModel]) -> Iterator[str]:
    yield from (f"## {title}", "", " ".join((section.__doc__ or "").split("\n\n")[0].split()), "")
    prefix = title.split(" ")[0].rstrip(",")
    yield from _keys(prefix, section.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def _keys(prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    for name, field in fields.items():
        key = f"{prefix}.{name}" if prefix else name
        help_text = " ".join((field.description or "").split())
        if not help_text and (inner := list(_models(field.annotation))):
            help_text = " ".join((inner[0].__doc__ or "").split("\n\n")[0].split())
        yield f"`{key}`{{ #{_anchor(prefix, name)} }}"
        yield f":   *{type_text(field)}*, {default_text(field)}. {help_text}"
        yield ""


def _anchor(prefix: str, name: str) -> str:
    return f"key-{prefix}-{name}" if prefix else f"key-{name}"


def default_text(field: FieldInfo) -> str:
    """The default of a key as YAML has it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return "default: as below"
    return f"default `{yaml_value(value)}`"


def yaml_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {yaml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def type_text(field: FieldInfo) -> str:
    """A key's type and range in words."""
    return ", ".join([_type_words(field.annotation), *_bounds(field.metadata)])


def _type_words(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        inner, *metadata = get_args(annotation)
        return ", ".join([_type_words(inner), *_bounds(metadata)])
    if origin is Literal:
        return " or ".join(f"`{yaml_value(each)}`" for each in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type_words, get_args(annotation))))
    if origin is list:
        return f"list of {_type_words(get_args(annotation)[0])}"
    if origin is dict:
        key, value = get_args(annotation)
        return f"mapping from {_type_words(key)} to {_type_words(value)}"
    if isinstance(annotation, type) and (
        issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)
    ):
        return "section"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    words |= {type(None): "null", Any: "anything"}
    return words.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _bounds(metadata: Any) -> Iterator[str]:
    for each in metadata:
        for inner in each.metadata if isinstance(each, FieldInfo) else [each]:
            match inner:
                case annotated_types.Gt(gt):
                    yield f"above {gt:g}" if isinstance(gt, float | int) else ""
                case annotated_types.Ge(ge):
                    yield f"at least {ge:g}" if isinstance(ge, float | int) else ""
                case annotated_types.Lt(lt):
                    yield f"below {lt:,}" if isinstance(lt, float | int) else ""
                case annotated_types.Le(le):
                    yield f"at most {le:g}" if isinstance(le, float | int) else ""
                case annotated_types.MinLen(least):
                    yield f"at least {least} of them"


# --- Commands ---


def commands_page() -> str:
    """Every command with its arguments and options."""
    from paretune.cli import app

    lines = ["# Commands", "", "Every command answers to `--help`. Exit codes: 0 done, 1 part of "]
    lines[-1] += "the work failed, 2 a mistake in what was given, 130 stopped with Ctrl-C."
    root = typer.main.get_command(app)
    for words, command in commands(root, ("paretune",)):
        lines += ["", f"## {' '.join(words)}", "", *_command(words, command)]
    return "\n".join(lines) + "\n"


def commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands below a group, each with the words that call it."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, (*words, name))
    else:
        yield words, command


def _command(words: tuple[str, ...], command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = [*words, *(_usage(p) for p in arguments), *(["[OPTIONS]"] if options else [])]
    yield from ("```text", " ".join(usage), "```", "", _paragraphs(command.help or ""), "")
    for parameter in (*arguments, *options):
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        names = ", ".join((*parameter.opts, *parameter.secondary_opts))
        metavar = "" if getattr(parameter, "is_flag", False) else _metavar(parameter)
        title = f"{names} {metavar}".strip() if is_option else metavar
        yield f"`{title}`"
        envvar = f"Environment: `{parameter.envvar}`." if parameter.envvar else ""
        words = (_paragraphs(parameter.help or ""), _default(parameter), envvar)
        yield ":   " + " ".join(filter(None, words))
        yield ""


def _usage(parameter: Any) -> str:
    metavar = _metavar(parameter)
    text = f"{metavar}..." if parameter.nargs == -1 and "..." not in metavar else metavar
    return text if parameter.required else f"[{text}]"


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    kind = next((each for each in get_args(kind) if each is not type(None)), kind)
    return {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "VALUE")


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or callable(value) or value in (False, [], ()) or parameter.required:
        return ""
    return f"Default: `{yaml_value(value if not isinstance(value, Path) else str(value))}`."


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


if __name__ == "__main__":
    print(pages()[sys.argv[1]])
