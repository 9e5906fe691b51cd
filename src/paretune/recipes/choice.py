"""A place of a recipe that is filled by one of several classes, chosen by name, and its options.

The keys are the class's own fields (`paretune.options`), so that there is nothing to be said here
about any of them; what is read is the object itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    create_model,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from paretune.options import Kinds, load_kind, name_of, options_of
from paretune.recipes.section import Section

EARLIER = "a recipe that was run"
"""The context in which such a recipe is validated."""


class _Options(Section):
    model_config = ConfigDict(arbitrary_types_allowed=True)


@cache
def section_of(kind: Any) -> type[Section]:
    """The section of a recipe with the options of a class: itself, if it is one."""
    if issubclass(kind, Section):
        found: type[Section] = kind
        return found
    keys: dict[str, Any] = {}
    for each in options_of(kind):
        if each.key is not None:
            default = ... if each.default is MISSING else each.default
            keys[each.key] = (each.type, Field(default, description=each.help))
    return create_model(kind.__name__, __base__=_Options, __doc__=kind.__doc__, **keys)


def build(kind: Any, given: Mapping[str, Any]) -> Any:
    """The object that these options make.

    Raises:
        ValidationError: an unknown option, or a value of the wrong type.
        InputError: values out of range, or that do not fit together.
    """
    section = section_of(kind).model_validate(dict(given))
    if isinstance(section, kind):
        return section
    fields = {each.key: each.name for each in options_of(kind) if each.key is not None}
    return kind(**{fields[key]: value for key, value in section})


def written(value: Any) -> dict[str, Any]:
    """The options of an object, as `build` reads them."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    kind: Any = type(value)
    keys = {each.key: getattr(value, each.name) for each in options_of(kind) if each.key}
    return section_of(kind).model_construct(**keys).model_dump(mode="json")


@dataclass(frozen=True)
class Chosen:
    """Annotates a key whose section has the `name` of a class and, beside it, its options.

    Options of the other classes may stand there with their defaults, as in recipes that were
    written out with every key.

    Attributes:
        kinds: The classes by name.
        what: They in a word, for messages.
        default: The name where none is given.
        single: Tells the one section from a mapping that has one under each of any names; None if
            there is no such mapping.
    """

    kinds: Kinds
    what: str
    default: str
    single: Callable[[Any], bool] | None = None

    def __hash__(self) -> int:
        return id(self.kinds)

    def sections(self) -> list[type[Section]]:
        """Of every class the section, with the key `name`."""
        return [_named(name, self._kind(name), name == self.default) for name in self.kinds]

    def read(self, value: Any, earlier: bool = False) -> Any:
        """The object, or a mapping of names to objects, from what a recipe says or the object.

        Args:
            earlier: The recipe has been run: options that had no effect are left aside.
        """
        if self.single is None or self.single(value):
            return self._read_one(value, earlier)
        one = TypeAdapter(dict[str, Annotated[Any, replace(self, single=None)]])
        return one.validate_python(value, context=EARLIER if earlier else None)

    def write(self, value: Any) -> dict[str, Any]:
        """What a recipe says for an object or a mapping of them."""
        if isinstance(value, dict):
            return {name: self.write(each) for name, each in value.items()}
        return {"name": self.name(value), **written(value)}

    def name(self, value: Any) -> str:
        return name_of(self.kinds, value) or type(value).__name__

    def _kind(self, name: str) -> Any:
        return load_kind(self.kinds, name, self.what)

    def _read_one(self, value: Any, earlier: bool) -> Any:
        if name_of(self.kinds, value) is not None:
            return value
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            raise ValueError(f"it must be a section with the name of a {self.what}, not {value!r}")
        name = given.get("name", self.default)
        choice = create_model("Choice", name=(Annotated[str, OneOf(self.kinds)], ...))
        choice.model_validate({"name": name})
        kind = self._kind(name)
        own = section_of(kind).model_fields
        options = {key: each for key, each in given.items() if key != "name"}
        for key in [key for key in options if key not in own]:
            owners = self._owners(key)
            if owners and not earlier and options[key] not in owners.values():
                raise ValueError(f"{key} is an option of {', '.join(owners)}, not of {name}")
            if owners:
                del options[key]
        return build(kind, options)

    def _owners(self, key: str) -> dict[str, Any]:
        """The names of classes that have the option, each with its default there."""
        sections = {name: section_of(self._kind(name)).model_fields for name in self.kinds}
        return {name: fields[key].default for name, fields in sections.items() if key in fields}

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            lambda value, info: self.read(value, earlier=info.context == EARLIER),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        sections = [dict(handler(each.__pydantic_core_schema__)) for each in self.sections()]
        one = {"anyOf": [{"enum": [*self.kinds]}, *sections]}
        if self.single is None:
            return one
        return {"anyOf": [*one["anyOf"], {"type": "object", "additionalProperties": one}]}


@dataclass(frozen=True)
class OneOf:
    """Annotates a text that must be one of these names."""

    kinds: Kinds

    def __hash__(self) -> int:
        return id(self.kinds)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(lambda value: one_of(self.kinds, value))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": [*self.kinds]}


@dataclass(frozen=True)
class OptionsOf:
    """Annotates a mapping that holds the options of the class that `name` beside it chooses.

    Attributes:
        kinds: The classes by name.
        keyed: The mapping has the names themselves as keys, with the options of each below.
    """

    kinds: Kinds
    keyed: bool = False

    def __hash__(self) -> int:
        return id(self.kinds)


def one_of(kinds: Kinds, name: Any) -> str:
    """The name, which must be one of these; raises as pydantic does for a literal."""
    if isinstance(name, str) and name in kinds:
        return name
    expected = " or ".join(filter(None, (", ".join(map(repr, [*kinds][:-1])), repr([*kinds][-1]))))
    raise PydanticCustomError("literal_error", "it must be {expected}", {"expected": expected})


@cache
def _named(name: str, kind: Any, default: bool) -> type[Section]:
    field: Any = (Literal[name], Field(name if default else ..., description=f"`{name}`."))
    return create_model(name, __base__=section_of(kind), __doc__=kind.__doc__, name=field)
