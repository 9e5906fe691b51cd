"""Draw the picture at the top of the README: two losses in conflict, their front, p as a dial.

Everything in it is computed: the two losses are Fonseca and Fleming's (a concave front), and
`paretune.moo.minimize` runs CLAMP and the weighted sum from one start for each of nine preferences.
Writes docs/images/idea-light.svg and idea-dark.svg:
python scripts/draw_idea.py
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from paretune.moo import Clamp, Descent, Linear, Result, minimize
from paretune.moo.test_problems import fonseca_fleming

WIDTH, HEIGHT = 640, 470
PREFERENCES = [k / 10 for k in range(1, 10)]
CHOSEN = 0.7
START = (-0.12, 0.85)  # in turned coordinates: the two best points are (1, 0) and (-1, 0)
HELPFUL, HARMLESS = (232, 113, 10), (13, 148, 136)
STRIDE = 12  # steps between drawn points of a path

Pair = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """Colours of the light or the dark picture."""

    name: str
    ink: str
    faint: str
    line: str


FACES = (
    Face("light", "#1f2937", "#6b7280", "#cbd5e1"),
    Face("dark", "#e5e7eb", "#9ca3af", "#4b5563"),
)


def turned(z: Tensor) -> Tensor:
    """Coordinates in which the Pareto set is horizontal; the same function turns back."""
    half = 0.5**0.5
    return torch.stack([half * (z[..., 0] + z[..., 1]), half * (z[..., 0] - z[..., 1])], -1)


@dataclass(frozen=True)
class Run:
    """One descent: where it went, in parameters (turned) and in losses."""

    p: float
    parameters: list[Pair]
    losses: list[Pair]


def runs() -> tuple[list[Run], list[Run], Tensor, list[Pair]]:
    """CLAMP's runs, the weighted sum's, the gradients (2, 2) at the start, and the front."""
    known = fonseca_fleming(2)
    start = turned(torch.tensor(START, dtype=torch.float64))

    def descend(p: float, method: Descent) -> Run:
        visited: list[Tensor] = []
        z, losses = start, []
        for steps in (STRIDE,) * 40 + (2000,):
            visited.append(turned(z))
            losses.append(known.problem.evaluate(z))
            result: Result = minimize(known.problem, [p, 1 - p], method, x0=z, steps=steps)
            z = result.x
        visited.append(turned(z))
        losses.append(known.problem.evaluate(z))
        pairs = [[(float(a), float(b)) for a, b in each] for each in (visited, losses)]
        return Run(p, *pairs)

    clamp = [descend(p, Descent(Clamp(mu=1.0), lr=0.02)) for p in PREFERENCES]
    linear = [descend(p, Descent(Linear(), lr=0.02)) for p in PREFERENCES]
    z = start.clone().requires_grad_()
    values = known.problem.evaluate(z)
    gradients = torch.stack(
        [turned(torch.autograd.grad(v, z, retain_graph=True)[0]) for v in values]
    )
    return clamp, linear, gradients, [(float(a), float(b)) for a, b in known.front(80)]


@dataclass
class Drawing:
    """SVG elements, with places given in the data's units of a panel."""

    face: Face
    origin: Pair = (0.0, 0.0)
    scale: Pair = (1.0, 1.0)
    parts: list[str] = field(default_factory=list)

    def at(self, point: Sequence[float]) -> Pair:
        (x0, y0), (sx, sy) = self.origin, self.scale
        return x0 + sx * point[0], y0 - sy * point[1]

    def path(
        self, points: Iterable[Sequence[float]], colour: str, width: float, **more: str
    ) -> None:
        steps = " L".join("{:.1f} {:.1f}".format(*self.at(point)) for point in points)
        self._add(
            "path",
            d=f"M{steps}",
            fill="none",
            stroke=colour,
            stroke_width=f"{width:g}",
            stroke_linecap="round",
            stroke_linejoin="round",
            **more,
        )

    def dot(self, point: Sequence[float], radius: float, fill: str, **more: str) -> None:
        x, y = self.at(point)
        self._add("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:g}", fill=fill, **more)

    def arrow(self, tail: Sequence[float], tip: Sequence[float], colour: str) -> None:
        self.path([tail, tip], colour, 4)
        (x0, y0), (x, y) = self.at(tail), self.at(tip)
        length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
        ux, uy = (x - x0) / length, (y - y0) / length
        corners = [
            (x + 9 * ux, y + 9 * uy),
            (x - 4 * ux - 7 * uy, y - 4 * uy + 7 * ux),
            (x - 4 * ux + 7 * uy, y - 4 * uy - 7 * ux),
        ]
        self._add("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in corners), fill=colour)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        colour: str | None = None,
        size: int = 22,
        anchor: str = "start",
        **more: str,
    ) -> None:
        attributes = {
            "x": f"{x:.1f}",
            "y": f"{y:.1f}",
            "fill": colour or self.face.ink,
            "font_size": f"{size}",
            "text_anchor": anchor,
            **more,
        }
        self.parts.append(f"<text{_attributes(attributes)}>{words}</text>")

    def _add(self, tag: str, **attributes: str) -> None:
        self.parts.append(f"<{tag}{_attributes(attributes)}/>")


def _attributes(given: dict[str, str]) -> str:
    return "".join(f' {name.replace("_", "-")}="{value}"' for name, value in given.items())


def colour(p: float) -> str:
    """From the colour of `harmless` (p = 0) to that of `helpful` (p = 1)."""
    mixed = (round(a * p + b * (1 - p)) for a, b in zip(HELPFUL, HARMLESS, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def draw(
    face: Face, clamp: list[Run], linear: list[Run], gradients: Tensor, front: list[Pair]
) -> str:
    drawing = Drawing(face)
    conflict(drawing, clamp, gradients)
    fronts(drawing, clamp, linear, front)
    dial(drawing, clamp)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
        + "\n".join(drawing.parts)
        + "\n</svg>\n"
    )


def conflict(drawing: Drawing, clamp: list[Run], gradients: Tensor) -> None:
    """The plane of parameters: where each loss is least, and where the gradients pull."""
    drawing.text(166, 28, "two losses in conflict", anchor="middle", font_weight="600")
    drawing.origin, drawing.scale = (166, 240), (106, 130)
    for side, p, name in ((1, 1.0, "helpful"), (-1, 0.0, "harmless")):
        x, y = drawing.at((side, 0))
        for radius in (14, 26, 38):
            drawing.dot((side, 0), radius, "none", stroke=colour(p), stroke_opacity="0.45")
        drawing.dot((side, 0), 5, colour(p))
        drawing.text(x, y + 64, name, colour(p), 20, "middle", font_weight="600")
    for run in clamp:
        drawing.path(run.parameters, colour(run.p), 2, stroke_opacity="0.8")
        mark(drawing, run.parameters[-1], run.p, 4.5)
    for gradient, p in zip(gradients, (1.0, 0.0), strict=True):
        step = -0.6 * gradient / gradient.norm()
        drawing.arrow(START, (START[0] + float(step[0]), START[1] + float(step[1])), colour(p))
    drawing.dot(START, 7, drawing.face.ink)
    x, y = drawing.at(START)
    drawing.text(x, y - 14, "the model", drawing.face.faint, 20, "middle")


def fronts(drawing: Drawing, clamp: list[Run], linear: list[Run], front: list[Pair]) -> None:
    """The plane of losses: the front, and where each run ends on it."""
    face = drawing.face
    drawing.text(490, 28, "one model for each p", anchor="middle", font_weight="600")
    drawing.origin, drawing.scale = (372, 322), (235, 260)
    drawing.path([(0, 1.06), (0, 0), (1.06, 0)], face.line, 2)
    drawing.text(490, 348, "helpful loss", face.faint, 20, "middle")
    x, y = drawing.at((0, 0.5))
    drawing.text(
        x - 12,
        y,
        "harmless loss",
        face.faint,
        20,
        "middle",
        transform=f"rotate(-90 {x - 12:.0f} {y:.0f})",
    )
    drawing.path(front, face.line, 7)
    for run in clamp:
        drawing.path(run.losses, colour(run.p), 1.6, stroke_opacity="0.6")
    for run in linear:
        x, y = drawing.at(run.losses[-1])
        drawing.parts.append(
            f'<path d="M{x - 7:.1f} {y - 7:.1f} l14 14 m0 -14 l-14 14" stroke="{face.faint}" '
            'stroke-width="2.5"/>'
        )
    for run in clamp:
        mark(drawing, run.losses[-1], run.p, 6.5)
    drawing.dot(clamp[0].losses[0], 7, face.ink)
    x, y = drawing.at((0.05, 0.13))
    drawing.text(x, y, "× weighted sum:", face.faint, 18)
    drawing.text(x, y + 22, "only the ends", face.faint, 18)


def mark(drawing: Drawing, point: Pair, p: float, radius: float) -> None:
    """Where a run ends; the one on the dial has a rim."""
    rim = {"stroke": drawing.face.ink, "stroke_width": "2.5"} if p == CHOSEN else {}
    drawing.dot(point, radius * 1.5 if rim else radius, colour(p), **rim)


def dial(drawing: Drawing, clamp: list[Run]) -> None:
    """The preference, from one objective to the other."""
    left, right, y = 136.0, 524.0, 415.0
    ticks = [left + (right - left) * p for p in (0.0, *PREFERENCES, 1.0)]
    for first, second, p in zip(
        ticks, ticks[1:], (0.05, *(p + 0.05 for p in PREFERENCES)), strict=False
    ):
        drawing.parts.append(
            f'<path d="M{first:.1f} {y} H{second:.1f}" stroke="{colour(p)}" stroke-width="8" '
            'stroke-linecap="round"/>'
        )
    x = left + (right - left) * CHOSEN
    drawing.parts.append(
        f'<circle cx="{x:.1f}" cy="{y}" r="15" fill="{colour(CHOSEN)}" '
        f'stroke="{drawing.face.ink}" stroke-width="2.5"/>'
    )
    drawing.text(left - 12, y + 6, "harmless", colour(0.0), 22, "end", font_weight="600")
    drawing.text(right + 12, y + 6, "helpful", colour(1.0), 22, "start", font_weight="600")
    drawing.text(x, y + 42, f"p = {CHOSEN}", None, 22, "middle", font_weight="600")


def main() -> None:
    found = runs()
    for face in FACES:
        path = Path("docs/images") / f"idea-{face.name}.svg"
        path.write_text(draw(face, *found), encoding="utf-8")
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
