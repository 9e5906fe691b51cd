"""Words from outside: which are accepted as names, and how any text is shown.

Names of recipes, objectives and methods stand in folders' names, tables and figures. What could
drive a terminal or leave a folder is refused where it is read; Markdown, HTML and matplotlib escape
the rest, each in its own way.
"""

import re
from typing import Any

NAME_LENGTH = 100
"""The longest name, in bytes of UTF-8: folders' names are made of several, with 255 at most."""

MODEL_LENGTH = 300
"""The longest name of a model, which may be a path."""

# C0 but tab and line feed, C1, marks of direction, line separators, halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SHOWN = 100


def printable(text: str) -> str:
    """The text without what a terminal would obey, or show in another order."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", text)


def shown(value: Any) -> str:
    """`repr` of a value as messages quote it: at most 100 characters, safe to print."""
    text = printable(repr(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def name_fault(name: str, longest: int = NAME_LENGTH) -> str | None:
    """What makes a name unfit to be shown in tables and figures; None if it is fit."""
    if not name.strip():
        return "a name must not be empty"
    if len(name.encode("utf-8", "replace")) > longest:
        return f"the name {shown(name)} is longer than {longest} bytes"
    if _UNSAFE.search(name) or "\n" in name or "\t" in name:
        return f"the name {shown(name)} has a line break or a control character in it"
    return None


def folder_fault(name: str) -> str | None:
    """What makes a name unfit to be a folder's as well; None if it is fit."""
    if fault := name_fault(name):
        return fault
    if re.search(r"[/\\]", name):
        return f"the name {shown(name)} must not hold a slash: it is a folder's"
    if name.startswith((".", "-", "~")) or name != name.strip():
        return f"the name {shown(name)} must begin with a letter or a digit: it is a folder's"
    return None


def text_fault(text: str) -> str | None:
    """What makes a text of several lines, such as a template, unfit to be kept and shown."""
    found = re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]", text)
    return None if found is None else f"it has the control character U+{ord(found[0]):04X} in it"
