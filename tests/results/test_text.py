"""Names and words are shown as they are, whatever the format."""

import re

from hypothesis import given
from hypothesis import strategies as st

from paretune.names import printable
from paretune.results.text import (
    markdown_code,
    markdown_text,
    number,
    preference_text,
)

HOSTILE = "a | b <img src=x onerror=alert(1)>\n# heading `code` **bold** [x](y) &lt; US$5 \x1b[2J"


def test_markdown_shows_what_it_was_given() -> None:
    text = markdown_text(HOSTILE)
    assert "<" not in text
    assert "\n" not in text
    assert "\x1b" not in text
    assert re.search(r"(?<!\\)[|#`*\[\]$]", text) is None
    assert "&amp;lt;" in text
    assert markdown_text("wc_penalty, μ = 0.1 (a-b)") == "wc_penalty, μ = 0.1 (a-b)"
    assert markdown_text("_new_ __init__") == r"\_new\_ \_\_init\_\_"


@given(st.text(alphabet="ab|<>`*_[]#\\&;$~\n\r\x1b\u2028 ", max_size=30))
def test_markdown_of_any_text_is_undone_by_reading_it(text: str) -> None:
    made = markdown_text(text)
    assert not set(made) & set("<\n\r\x1b\u2028")
    read = re.sub(r"\\([\\`*\[\]|#~$_])", r"\1", made.replace("&lt;", "<").replace("&gt;", ">"))
    assert read.replace("&amp;", "&") == " ".join(printable(text).split())


@given(st.text(alphabet="a` |", max_size=20))
def test_a_code_span_ends_where_it_should(text: str) -> None:
    span = markdown_code(text)
    marks = re.match("`+", span)
    assert marks is not None
    fence = marks[0]
    inner = span[len(fence) : -len(fence)]
    assert len(fence) not in {len(run) for run in re.findall("`+", inner)}


def test_numbers_and_preferences() -> None:
    assert number(None) == number(float("nan")) == ""
    assert number(-0.5, ".2f") == "-0.50"
    third = {"a": 1 / 3, "b": 2 / 3}
    assert preference_text(third) == "a 0.3333, b 0.6667"
    assert preference_text(third, names=False) == "(0.33, 0.67)"
    assert preference_text({"a": 1.0, "b": 0.0}, names=False) == "(1, 0)"
