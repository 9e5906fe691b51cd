"""Text as it leaves the program: Markdown that shows what it was given, numbers, preferences.

Names are a user's and words a model's: both are material. HTML is escaped by Jinja2 and
`paretune.results.table`, what goes to a terminal by `paretune.names.printable`; figures read no
formulas in what they write.
"""

import math
import re
from collections.abc import Mapping

from paretune.names import printable

# An underscore within a word means nothing to Markdown.
_MARKS = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def markdown_text(text: str) -> str:
    """Text on one line, as Markdown that shows it as it is: in a cell, a heading, a sentence."""
    flat = " ".join(printable(text).split())
    marked = _MARKS.sub(r"\\\g<0>", _ENTITY.sub("&amp;", flat))
    return re.sub("^>", "&gt;", marked.replace("<", "&lt;"))  # else it means nothing


def markdown_code(text: str) -> str:
    """Text on one line, as a code span, whatever backticks it has."""
    flat = " ".join(printable(text).split())
    longest = max(map(len, re.findall("`+", flat)), default=0)
    marks = "`" * (longest + 1)
    space = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{marks}{space}{flat}{space}{marks}"


def number(value: float | None, spec: str = ".3f") -> str:
    """The number, or nothing where there is none."""
    return "" if value is None or math.isnan(value) else format(value, spec)


def preference_text(preference: Mapping[str, float], *, names: bool = True) -> str:
    """``"concise 0.8, informative 0.2"``, or, without names and shorter, ``"(0.8, 0.2)"``."""
    if names:
        return ", ".join(f"{name} {weight:.4g}" for name, weight in preference.items())
    weights = (f"{weight:.2f}".rstrip("0").rstrip(".") for weight in preference.values())
    return f"({', '.join(weights)})"
