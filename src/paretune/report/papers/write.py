"""The exhibits of both papers as Markdown, as a page, and as pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from paretune.errors import InputError
from paretune.files import write_text
from paretune.report.papers import clamp, wc_penalty
from paretune.report.papers.exhibit import PAPER, Exhibit, Found
from paretune.results.table import Table
from paretune.results.text import markdown_text

PAPERS = {"CLAMP": clamp.EXHIBITS, "WC-Penalty": wc_penalty.EXHIBITS}
"""The exhibits of each paper, in its order; drawings of ideas, and tables of notation, are none."""

_NOTE = (
    "Rows of the source `paper` are printed there, at its own scale; the others are of the runs "
    "named, at theirs."
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:.8em 0}th,td{padding:.2em .7em;text-align:right;"
    "border-bottom:1px solid #ddd}th[scope=row]{text-align:left;font-weight:400}"
    "img{max-width:100%}.sr{position:absolute;left:-999em}"
)


@dataclass(frozen=True)
class Shown:
    """An exhibit with what the runs gave it."""

    exhibit: Exhibit
    table: Table | None
    figures: Sequence[Path]

    @property
    def filled(self) -> bool:
        """Whether a run shows it, in values or in a picture."""
        rows = self.table.rows if self.table is not None else ()
        place = len(self.exhibit.keys)
        return bool(self.figures) or any(row[place] != PAPER for row in rows)

    @property
    def missing(self) -> str:
        """What it needs, if no run shows it."""
        return "" if self.filled else f"No run here shows it. It needs {self.exhibit.needs}."


def write_tables(
    paths: Sequence[Path], folder: Path, tell: Callable[[str], None] = lambda message: None
) -> dict[str, list[Shown]]:
    """Write ``tables.md``, ``tables.html`` and the figures of all exhibits into a folder.

    Args:
        paths: Run folders of `paretune sweep`, `compare` and `weigh`.
        tell: Is told what is written.

    Returns:
        By paper, its exhibits in order.

    Raises:
        InputError: a folder that is no run's, no run has anything to show, or nothing can be
            written.
    """
    found = Found.read(paths)
    for line in found.left_out:
        tell(line)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shown = {
            paper: [_show(paper, exhibit, found, folder) for exhibit in exhibits]
            for paper, exhibits in PAPERS.items()
        }
        write_text(folder / "tables.md", "\n\n".join(_markdown(shown, found, folder)) + "\n")
        write_text(folder / "tables.html", _html(shown, found, folder))
    except OSError as error:
        raise InputError(f"'{folder}' cannot be written: {error}.") from error
    for name in ("tables.md", "tables.html"):
        tell(str(folder / name))
    count = sum(len(each.figures) for exhibits in shown.values() for each in exhibits)
    if count:
        tell(f"{folder}: {count} figures")
    return shown


def _show(paper: str, exhibit: Exhibit, found: Found, folder: Path) -> Shown:
    stem = f"{paper.lower()}-{exhibit.name.lower().replace(', ', '').replace(' ', '-')}"
    return Shown(exhibit, exhibit.table(found), exhibit.draw(found, folder, stem))


def _markdown(shown: dict[str, list[Shown]], found: Found, folder: Path) -> Iterator[str]:
    yield "# Tables and figures"
    yield _NOTE
    if found.left_out:
        yield "\n".join(f"- {markdown_text(line)}" for line in found.left_out)
    for paper, exhibits in shown.items():
        yield f"## {paper}"
        for each in exhibits:
            yield f"### {each.exhibit.name}: {each.exhibit.caption}"
            if each.missing:
                yield each.missing
            if each.table is not None:
                yield each.table.to_markdown()
            for path in each.figures:
                yield f"![{markdown_text(path.stem)}]({path.relative_to(folder).as_posix()})"
            if each.exhibit.note:
                yield each.exhibit.note


def _html(shown: dict[str, list[Shown]], found: Found, folder: Path) -> str:
    parts = [f"<h1>Tables and figures</h1><p>{escape(_NOTE)}</p>"]
    parts += [f"<p>{escape(line)}</p>" for line in found.left_out]
    for paper, exhibits in shown.items():
        parts.append(f"<h2>{escape(paper)}</h2>")
        for each in exhibits:
            parts.append(f"<h3>{escape(f'{each.exhibit.name}: {each.exhibit.caption}')}</h3>")
            parts += [
                f"<p>{escape(text)}</p>" for text in (each.missing, each.exhibit.note) if text
            ]
            if each.table is not None:
                parts.append(each.table.to_html())
            for path in each.figures:
                source = escape(path.relative_to(folder).as_posix())
                parts.append(f'<p><img src="{source}" alt="{escape(path.stem)}"></p>')
    body = Markup("\n").join(map(Markup, parts))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Tables and figures'
        f"</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )
