"""YAML as recipes are written: version 1.2 numbers and booleans, plain values, no key twice.

The one reader of recipes, overrides and saved ``recipe.yaml`` files. Files come from other people
too, so size, nesting, aliases and numbers have limits, and tags build nothing.
"""

import codecs
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from paretune.errors import InputError
from paretune.names import printable, shown

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_VALUES = 50_000  # aliases counted as what they stand for
_WHOLE = 2**63

_TAG = "tag:yaml.org,2002:"
# PyYAML reads YAML 1.1, where 1e-4 is a string, `no` is false and 1:30 is ninety.
_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)


class _Resolver(BaseResolver):
    """What a scalar without quotes is."""


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern, _first in _PLAIN:
    for _class in (_Resolver, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), list(_first))


class _Nodes(Reader, Scanner, Parser, Composer, _Resolver):
    """The nodes of a document, within the limits."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)
        self._depth = 0
        self._open: set[str] = set()
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open:
                raise _fault(event, f"the alias *{event.anchor} stands within itself")
            return super().compose_node(parent, index)
        if self._depth == MAX_DEPTH:
            raise _fault(event, f"nested more than {MAX_DEPTH} deep")
        self._depth += 1
        if event.anchor is not None:
            self._open.add(event.anchor)
        node = super().compose_node(parent, index)
        self._open.discard(event.anchor)
        self._depth -= 1
        self._sizes[id(node)] = size = 1 + sum(self._sizes[id(child)] for child in _children(node))
        if size > MAX_VALUES:
            raise _fault(node, f"more than {MAX_VALUES:,} values, aliases written out")
        return node


def parse(text: str, source: str) -> Any:
    """The value of a YAML document: mappings, lists, text, numbers, booleans, null.

    Args:
        source: where the text is from, for the message.

    Raises:
        InputError: the text is not YAML, beyond the limits, has a tag or a key that is not text,
            or gives a key twice.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"{source} is larger than {MAX_BYTES // 1024} kB: that is no recipe.")
    try:
        node = _Nodes(text).get_single_node()
        return None if node is None else _value(node)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"{source}, line {line}: the character U+{ord(text[error.position]):04X} may not stand "
            "in YAML."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        problem = printable(getattr(error, "problem", None) or str(error))
        raise InputError(f"{where}: not valid YAML: {problem[:300]}.") from error


def read(path: Path, source: str) -> str:
    """The text of a YAML file.

    Raises:
        InputError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror or error}.") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{source} is larger than {MAX_BYTES // 1024} kB: that is no recipe.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{source} is in UTF-16: save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}, line {line}: not UTF-8: save the file as UTF-8.") from error


def dump(value: Any) -> str:
    """YAML text that `parse` reads back to the same value."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None
    )


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _fault(place: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _value(node: Any) -> Any:
    kind = str(node.tag).removeprefix(_TAG)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _fault(key_node, "a key must be text, not a list or a mapping")
            key = _value(key_node)
            if not isinstance(key, str):
                written = shown(str(key_node.value))
                raise _fault(key_node, f"a key must be text: put {written} into quotes")
            if key in found:
                raise _fault(key_node, f"key {shown(key)} stands twice")
            found[key] = _value(value_node)
        return found
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(each) for each in node.value]
    if isinstance(node, yaml.ScalarNode) and kind == "str":
        return str(node.value)
    patterns = "|".join(pattern for name, pattern, _ in _PLAIN if name == kind)
    if not isinstance(node, yaml.ScalarNode) or not patterns:
        raise _fault(node, f"the tag {shown(str(node.tag))} has no meaning here: leave it out")
    if not re.fullmatch(patterns, node.value):
        raise _fault(node, f"{shown(str(node.value))} is not of the type !!{kind}")
    return _plain(node, kind, str(node.value))


def _plain(node: Any, kind: str, text: str) -> bool | int | float | None:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        number = int(text) if len(text) <= 20 else _WHOLE
        if not -_WHOLE <= number < _WHOLE:
            raise _fault(node, f"the whole number {shown(text)} is too large")
        return number  # a leading zero is no octal here
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if value in (float("inf"), float("-inf")) and "inf" not in text.lower():
        raise _fault(node, f"the number {shown(text)} is too large")
    return value
