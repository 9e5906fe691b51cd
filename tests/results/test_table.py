"""A table says the same in Markdown, on a terminal and in HTML, whatever names it holds."""

import io
import math
import statistics
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from paretune.results.spread import Spread
from paretune.results.table import Column, Table, left, numbers

HOSTILE = "a | b <img src=x onerror=alert(1)>\n# heading [link](x) [bold]x[/bold]"


def table(name: str = "clamp") -> Table:
    columns = [
        left("method"),
        Column("loss", ".3f"),
        *numbers(["tokens"], ","),
        Column("share", ".0%"),
    ]
    rows = [
        [name, Spread.of([-0.5, -0.3]), 1_234_567, None],
        ["base model", -0.25, math.nan, 0.5],
    ]
    return Table(columns, rows, "Points")


def test_three_writers() -> None:
    assert table().to_markdown() == (
        "| method | loss | tokens | share |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| clamp | -0.400 ± 0.141 | 1,234,567 |  |\n"
        "| base model | -0.250 |  | 50% |"
    )
    page = table().to_html()
    assert '<tr><th scope="row">clamp</th><td>−0.400 ± 0.141</td><td>1,234,567</td>' in page
    assert '<caption class="sr">Points</caption>' in page
    terminal = Console(width=80, file=io.StringIO(), record=True)
    terminal.print(table().to_rich())
    text = terminal.export_text()
    assert "Points" in text
    assert "-0.400 ± 0.141" in text


def test_a_name_stays_in_its_cell() -> None:
    markdown = table(HOSTILE).to_markdown().split("\n")
    assert len(markdown) == 4
    assert "<img" not in markdown[2]
    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Tags().feed(table(HOSTILE).to_html())
    assert "img" not in tags
    terminal = Console(width=200, file=io.StringIO(), record=True)
    terminal.print(table(HOSTILE).to_rich())
    assert "[bold]x[/bold]" in terminal.export_text()


def test_rows_have_the_columns_width() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Table(numbers(["a", "b"]), [["x"]]).to_markdown()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_a_spread_is_that_of_the_standard_library(values: list[float]) -> None:
    spread = Spread.of([*values, None, math.nan, math.inf])
    assert spread is not None
    assert spread.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert spread.deviation == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6)
    assert spread.standard_error == pytest.approx(
        statistics.stdev(values) / math.sqrt(len(values)), rel=1e-6, abs=1e-6
    )
    assert spread.count == len(values)


def test_spreads_of_few_values() -> None:
    assert Spread.of([]) is Spread.of([None, math.nan]) is None
    one = Spread.of([0.123456])
    assert one is not None
    assert math.isnan(one.standard_error)
    assert (str(one), f"{one:.2f}") == ("0.1235", "0.12")
    assert str(Spread.of([0.1, 0.2])) == "0.15 ± 0.07"
