"""Every key of a recipe with its type, default and meaning, read off the declarations."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from paretune import yaml_syntax
from paretune.errors import InputError
from paretune.names import shown
from paretune.options import load_kind
from paretune.recipes.choice import Chosen, OneOf, OptionsOf, section_of
from paretune.results.table import Column, Table, left

REQUIRED = dataclasses.MISSING
"""The default of a key that must be given."""
SECTION = "the defaults of its keys"
"""The default of a section that is there without being given."""

_BY_FILE = ("name", "output_dir")
_COLUMNS = ("type", "default", "meaning")
_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    type(None): "null",
    Any: "any value",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        key: dotted; ``[]`` is any item of a list, ``*`` any name, and ``(name)`` stands where that
            name chooses among several sections.
        of: the name that chooses the section whose key it is (``clamp`` of ``method.mu``), if one
            does.
        type: in words, such as "number or null".
        default: a plain value, `REQUIRED` or `SECTION`.
        choices: the values that a text may have, where there are only these.
        help: what it means.
        section: whether it holds other keys.
    """

    key: str
    of: str | None
    type: str
    default: Any
    choices: tuple[str, ...]
    help: str
    section: bool


def recipe_keys(recipe: type[BaseModel], prefix: str = "", of: str | None = None) -> Iterator[Key]:
    """The keys of a class of recipes (or of one of its sections), each before those it holds."""
    for name, field in recipe.model_fields.items():
        key = f"{prefix}{name}"
        below = list(_sections(field))
        default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        text = field.description or (inspect.getdoc(below[0][2]) if below else "") or ""
        yield Key(
            key=key,
            of=of,
            type="section" if below else _words(field.annotation),
            default=SECTION if _is_object(default) else default,
            choices=tuple(_choices(field.annotation, *field.metadata)),
            help=" ".join(text.split()),
            section=bool(below),
        )
        for suffix, chosen, section in below:
            yield from recipe_keys(section, f"{key}{suffix}.", chosen or of)


def keys_of(recipe: type[BaseModel], section: str | None = None) -> list[Key]:
    """The keys of a class of recipes, or those of one section with itself.

    Raises:
        InputError: there is no such section.
    """
    keys = list(recipe_keys(recipe))
    if section is None:
        return keys
    found = [each for each in keys if re.fullmatch(rf"{re.escape(section)}(?:[.(\[].*)?", each.key)]
    if not found:
        names = list(dict.fromkeys(each.key for each in keys if each.section))
        nearest = get_close_matches(section, [each.key for each in keys], n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"sections are {', '.join(names)}."
        raise InputError(f"There is no key {shown(section)} in a recipe; {hint}")
    return found


def key_table(keys: Iterable[Key]) -> Table:
    """Keys with their types, defaults and meanings."""
    rows = [
        (
            each.key if not each.of or f"({each.of})" in each.key else f"{each.key} (of {each.of})",
            " | ".join(each.choices) if each.choices else each.type,
            _default(each.default),
            each.help,
        )
        for each in keys
    ]
    return Table([Column("key", align="left", wrap=False), *map(left, _COLUMNS)], rows)


def json_schema(recipe: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema (2020-12) of a class of recipes, for editors that complete and check YAML."""
    schema = recipe.model_json_schema(schema_generator=_Schema)
    # The name of a file says these two.
    schema["required"] = [key for key in schema.get("required", ()) if key not in _BY_FILE]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _Schema(GenerateJsonSchema):
    """Without word of defaults that are objects."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "must be given"
    if value == SECTION:
        return ""
    return yaml_syntax.dump(value).removesuffix("...\n").strip()


def _is_object(value: Any) -> bool:
    return isinstance(value, BaseModel) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type)
    )


def _sections(field: FieldInfo) -> Iterator[tuple[str, str | None, type[BaseModel]]]:
    """What a key holds: how to get there from it, the name that chooses it, and the section."""
    for note in field.metadata:
        if isinstance(note, Chosen):
            for section in note.sections():
                yield "", _name(section), section
        elif isinstance(note, OptionsOf):
            for name in note.kinds:
                suffix = f".{name}" if note.keyed else f"({name})"
                yield suffix, name, section_of(load_kind(note.kinds, name, "method"))
    if not any(isinstance(note, Chosen) for note in field.metadata):
        yield from _held(field.annotation)


def _held(annotation: Any) -> Iterator[tuple[str, str | None, type[BaseModel]]]:
    inner = get_args(annotation)
    if get_origin(annotation) in (list, dict):
        sign = "[]" if get_origin(annotation) is list else ".*"
        yield from ((f"{sign}{suffix}", name, kind) for suffix, name, kind in _held(inner[-1]))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", None, annotation
    elif get_origin(annotation) is not Literal:
        found = [each for member in inner for each in _held(member)]
        for suffix, name, section in found:
            several = sum(s == suffix for s, _, _ in found) > 1
            chosen = _name(section) if several else name
            yield f"({chosen}){suffix}" if several else suffix, chosen, section


def _name(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields["name"].annotation)[0])


def _choices(annotation: Any, *notes: Any) -> Iterator[str]:
    for note in notes:
        if isinstance(note, OneOf):
            yield from note.kinds
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) is Annotated:
        first, *more = get_args(annotation)
        yield from _choices(first, *more)
    elif get_origin(annotation) not in (list, dict):
        for each in get_args(annotation):
            yield from _choices(each)


def _words(annotation: Any) -> str:
    """The type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return "text"
    if origin is list:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"mapping of names to {_words(inner[1])}"
    if origin is not None and inner:
        return " or ".join(dict.fromkeys(map(_words, inner)))
    return "mapping" if annotation is dict else getattr(annotation, "__name__", str(annotation))
