"""The reference pages of the documentation, made from the code: names, recipe keys, commands.

`pages()` gives Markdown by page; `scripts/docs_hooks.py` hands it to MkDocs. Printing one of them:
python scripts/docs_reference.py reference/commands.md
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import griffe
import typer
from pydantic import BaseModel
from transformers import TrainingArguments

from paretune.baselines.recipe import CompareRecipe
from paretune.recipes.data_weighting import WeighRecipe
from paretune.recipes.mixture import MixtureRecipe
from paretune.recipes.reference import REQUIRED, SECTION, Key, recipe_keys
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
    sweep = "`paretune sweep`, `train`, `evaluate` and `reward train`"
    return {
        **{f"reference/{name}.md": text for name, text in _modules().items()},
        "reference/sweep.md": recipe_page("sweep", Recipe, sweep),
        "reference/compare.md": recipe_page(
            "compare", CompareRecipe, "`paretune compare`", only="methods"
        ),
        "reference/weigh.md": recipe_page("weigh", WeighRecipe, "`paretune weigh`"),
        "reference/mixture.md": recipe_page(
            "mixture", MixtureRecipe, "`paretune weigh` with the task `sets` or `planted`"
        ),
        "reference/commands.md": commands_page(),
    }


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
            yield from (f"`{each.name}`", f":   {each.metadata.get('help', '')}", "")


# --- Recipe keys ---


def recipe_page(command: str, recipe: type[BaseModel], reads: str, only: str = "") -> str:
    """Every key of a kind of recipe, or those that begin with `only`; one heading a section."""
    lines = [
        f"# Recipe keys of {command}",
        "",
        f"Read by {reads}. Any key can be changed on the command line: `section.key=value`. "
        "In the names `[]` is any item of a list, `*` any name, and `(x)` stands where `name: x` "
        "chooses among several sections. See [recipes](../guides/recipes.md) for the idea.",
        "",
    ]
    if only:
        lines += ["All other sections are those of [a sweep](sweep.md).", ""]
    sections: dict[tuple[str, str | None], list[Key]] = {}
    for key in recipe_keys(recipe):
        if key.key.startswith(only):
            parent, _, _ = key.key.rpartition(".")
            sections.setdefault((parent, key.of), []).append(key)
    for (parent, chosen), keys in sections.items():
        named = f" with name: {chosen}" if chosen and f"({chosen})" not in parent else ""
        lines += [f"## {parent or 'The top'}{named}", ""]
        for key in keys:
            lines += [
                f"`{key.key}`",
                f":   *{type_text(key)}*, {default_text(key)}. {key.help}",
                "",
            ]
    return "\n".join(lines) + "\n"


def type_text(key: Key) -> str:
    """A key's type in words, or its choices."""
    if not key.choices:
        return key.type
    others = [each for each in key.type.split(" or ") if each != "text"]
    return " or ".join([*(f"`{each}`" for each in key.choices), *others])


def default_text(key: Key) -> str:
    """The default of a key as YAML has it."""
    if key.default is REQUIRED:
        return "required"
    return (
        f"default: {key.default}" if key.default == SECTION else f"default `{in_yaml(key.default)}`"
    )


def in_yaml(value: Any) -> str:
    """A value as one writes it in a recipe."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {in_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


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
    return f"Default: `{in_yaml(value if not isinstance(value, Path) else str(value))}`."


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


if __name__ == "__main__":
    print(pages()[sys.argv[1]])
