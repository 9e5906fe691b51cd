"""A front in a notebook: a data frame, axes with a picture, and HTML with both."""

import io
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from paretune.results.table import Cell, Column, Table
from paretune.results.text import preference_text

if TYPE_CHECKING:
    from paretune.results.front import Front

_COLOUR, _GREY = "#0072B2", "#666666"


def front_rows(front: "Front") -> list[dict[str, Any]]:
    """A row a point: p, seed, metrics of each objective, scores, max p·f, whether dominated."""
    return [
        {
            **{f"p_{name}": weight for name, weight in point.preference.items()},
            "seed": point.seed,
            **{
                f"{name}_{what}": getattr(metrics, what)
                for name, metrics in point.metrics.items()
                for what in ("loss", "accuracy", "margin")
            },
            "chebyshev": point.chebyshev,
            **{f"score_{name}": score.mean for name, score in point.scores.items()},
            "answer_tokens": point.answer_tokens,
            "nondominated": point.nondominated,
            "folder": point.folder,
        }
        for point in front.points
    ]


def draw(front: "Front", axes: Any = None) -> Any:
    """Draw the losses on matplotlib's axes: two objectives against each other, more in parallel.

    Dominated points are hollow.
    """
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(5.6, 4.2), layout="constrained").add_subplot()
    names = [name.replace("$", r"\$") for name in front.objectives]
    if len(names) == 2:
        best = sorted(tuple(p.losses.values()) for p in front.points if p.nondominated)
        axes.plot(*zip(*best, strict=True), color=_COLOUR, linewidth=1)
        for point in front.points:
            x, y = point.losses.values()
            face = _COLOUR if point.nondominated else "white"
            axes.plot(x, y, "o", color=_COLOUR, markerfacecolor=face)
            label = preference_text(point.preference, names=False).replace("$", r"\$")
            axes.annotate(label, (x, y), (5, 5), textcoords="offset points", fontsize=8)
        axes.set_xlabel(f"{front.split} loss of {names[0]}")
        axes.set_ylabel(f"{front.split} loss of {names[1]}")
    else:
        for point in front.points:
            style = "o-" if point.nondominated else "o--"
            label = preference_text(point.preference, names=False).replace("$", r"\$")
            axes.plot(names, [*point.losses.values()], style, label=label)
        axes.set_ylabel(f"{front.split} loss")
        axes.legend(fontsize=8)
    axes.set_title(f"{front.name}: {front.method}".replace("$", r"\$"))
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    return axes


def front_html(front: "Front") -> str:
    """A table of the points and a picture of their losses."""
    columns = [Column(f"p = ({', '.join(front.objectives)})", align="left")]
    columns += [Column(f"loss of {name}", ".4f") for name in front.objectives]
    columns += [Column("max p·loss", ".4f"), Column("dominated", align="left")]
    rows: list[list[Cell]] = [
        [
            preference_text(point.preference, names=False),
            *point.losses.values(),
            point.chebyshev,
            "" if point.nondominated else "yes",
        ]
        for point in front.points
    ]
    title = f"{front.name}: {front.method}, {front.split} split"
    file = io.BytesIO()
    draw(front).figure.savefig(file, format="png", dpi=110)
    picture = b64encode(file.getvalue()).decode("ascii")
    return (
        f"{Table(columns, rows, title).to_html()}\n"
        f'<img alt="losses of the points" src="data:image/png;base64,{picture}">'
    )
