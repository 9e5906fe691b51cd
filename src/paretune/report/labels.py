"""Putting labels beside points so that they cover neither each other nor points nor lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

from paretune.names import printable

Label = tuple[float, float, str, str]
"""x and y in data coordinates, text, colour."""

Array = NDArray[np.float64]

_FONT_SIZE = 8.5
_MARKER_RADIUS = 4.5  # in points, 1/72 inch, as all lengths here
_GAPS = (6.0, 9.0, 13.0, 18.0, 24.0, 32.0)  # from a point to the nearest edge of its label
_ANGLES = np.deg2rad(np.arange(45, 405, 15))
_SWEEPS = 4


def clean_texts(figure: Figure) -> None:
    """Take control characters out of what a figure says: no font has them."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if (clean := printable(text.get_text())) != text.get_text():
            text.set_text(clean)


def place_labels(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Annotate the points of `axes`, whose limits must be final, at the least crowded places.

    Each label takes the cheapest of a fixed set of places around its point, given where the
    others stand; a few sweeps over all labels settle that. A label that another point is nearly
    as close to as its own gets a thin line to its point.
    """
    clean_texts(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # fixes the layout: nothing has a place before
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    unit = figure.dpi / 72  # pixels in a point
    points: Array = axes.transData.transform([(x, y) for x, y, _, _ in labels])
    lines = np.concatenate([np.empty((0, 2)), *(_along(axes, line) for line in axes.lines)])
    frame = np.array(axes.get_window_extent().extents)
    notes = [_annotate(axes, label) for label in labels]
    places = []
    for note, point in zip(notes, points, strict=True):
        extent = note.get_window_extent(renderer)
        half = np.array([extent.width, extent.height]) / 2
        places.append(_Places(point, half, points, lines, frame, unit))
    chosen = np.array([place.boxes[place.cost.argmin()] for place in places])
    for _ in range(_SWEEPS):
        for i, place in enumerate(places):
            others = np.delete(chosen, i, axis=0)
            overlaps = _overlap(place.boxes[:, None], others[None]).sum(axis=1)
            chosen[i] = place.boxes[(place.cost + 40 * overlaps).argmin()]
    for i, (note, point, box) in enumerate(zip(notes, points, chosen, strict=True)):
        centre = (box[:2] + box[2:]) / 2
        note.set_position(tuple((centre - point) / unit))
        gaps = _distance(points, box[None])[:, 0]
        if gaps[i] > _GAPS[3] * unit or (np.delete(gaps, i) < 1.8 * gaps[i]).any():
            end = axes.transData.inverted().transform([point, np.clip(point, box[:2], box[2:])])
            axes.plot(*end.T, color=labels[i][3], lw=0.6, alpha=0.8, scalex=False, scaley=False)


class _Places:
    """The boxes (left, bottom, right, top; pixels) a label may take, and what each costs alone."""

    def __init__(
        self, point: Array, half: Array, points: Array, lines: Array, frame: Array, unit: float
    ) -> None:
        way = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
        # The centre at which a box touches the circle of radius `gap` from outside.
        reach = np.abs(way) @ half
        gaps = np.array(_GAPS)[:, None] * unit
        centres = point + (gaps + np.minimum(reach, half.max()))[..., None] * way
        centres = centres.reshape(-1, 2)
        self.boxes = np.concatenate([centres - half, centres + half], axis=1)
        margin = unit * np.array([-1, -1, 1, 1])
        rim = _MARKER_RADIUS * margin
        on_points = _inside(points, self.boxes + rim).sum(axis=0)
        on_lines = np.minimum(_inside(lines, self.boxes + margin).sum(axis=0), 4)
        own = np.linalg.norm(np.clip(point, self.boxes[:, :2], self.boxes[:, 2:]) - point, axis=1)
        nearer = (_distance(points, self.boxes) < own - 1e-6 * unit).sum(axis=0)
        outside = (self.boxes[:, :2] < frame[:2]).any(1) | (self.boxes[:, 2:] > frame[2:]).any(1)
        self.cost = own / (4 * unit) + 8 * on_points + 2 * on_lines + 3 * nearer + 30 * outside


def _annotate(axes: Axes, label: Label) -> Annotation:
    x, y, text, colour = label
    return axes.annotate(
        text,
        (x, y),
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=_FONT_SIZE,
        color=colour,
        zorder=4,
    )


def _along(axes: Axes, line: Any) -> Array:
    """Pixels every few steps along a drawn line."""
    pieces = [np.empty((0, 2))]
    for start, end in pairwise(axes.transData.transform(line.get_xydata())):
        steps = max(2, int(np.linalg.norm(end - start) / 4))
        pieces.append(start + np.linspace(0, 1, steps)[:, None] * (end - start))
    return np.concatenate(pieces)


def _inside(points: Array, boxes: Array) -> NDArray[np.bool_]:
    """(points, boxes): which point lies in which box."""
    at_least = (points[:, None] >= boxes[None, :, :2]).all(axis=-1)
    at_most = (points[:, None] <= boxes[None, :, 2:]).all(axis=-1)
    return np.asarray(at_least & at_most)


def _distance(points: Array, boxes: Array) -> Array:
    """(points, boxes): from each point to the nearest part of each box."""
    nearest = np.clip(points[:, None], boxes[None, :, :2], boxes[None, :, 2:])
    return np.asarray(np.linalg.norm(nearest - points[:, None], axis=-1))


def _overlap(first: Array, second: Array) -> NDArray[np.bool_]:
    apart = (first[..., :2] >= second[..., 2:]) | (second[..., :2] >= first[..., 2:])
    return np.asarray(~apart.any(axis=-1))
