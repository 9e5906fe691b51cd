"""Figures: what an SVG says in its text, and labels that keep clear of each other."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paretune.errors import InputError
from paretune.report.figures import (
    PlotPoint,
    _nondominated,
    draw_front,
)
from paretune.report.labels import place_labels
from paretune.results.text import preference_text

TWO = ["harmless", "helpful"]
THREE = ["honesty", "helpfulness", "instruction-following"]


def front(
    objectives: list[str], preferences: list[list[float]], shift: float = 0
) -> list[PlotPoint]:
    return [
        PlotPoint(
            {name: 0.7 + shift - 0.1 * weight for name, weight in zip(objectives, p, strict=True)},
            preference_text(dict(zip(objectives, p, strict=True)), names=False),
        )
        for p in preferences
    ]


def test_two_objectives_are_the_axes_and_every_point_carries_its_preference(tmp_path: Path) -> None:
    weights = [[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]]
    path = tmp_path / "new" / "front.svg"
    draw_front(
        {"clamp": front(TWO, weights), "linear": front(TWO, weights, 0.01)},
        TWO,
        path,
        title="demo",
        reference=PlotPoint({"harmless": math.log(2), "helpful": math.log(2)}, "base model"),
    )
    text = path.read_text()
    for expected in (
        "test loss of harmless (lower is better)",
        "test loss of helpful (lower is better)",
        "labels: p = (harmless, helpful)",
        "base model",
        "linear",
        "demo",
    ):
        assert f">{expected}<" in text
    assert text.count(">(0.2, 0.8)<") == 2
    assert [file.name for file in path.parent.iterdir()] == ["front.svg"]


@pytest.mark.parametrize("n_objectives", [3, 5])
def test_more_objectives_are_parallel_coordinates_and_a_radar(
    tmp_path: Path, n_objectives: int
) -> None:
    objectives = [*THREE, "truthfulness", "brevity"][:n_objectives]
    rest = 0.2 / (n_objectives - 1)
    weights = [[0.8 if i == m else rest for i in range(n_objectives)] for m in range(n_objectives)]
    path = tmp_path / "front.svg"
    draw_front({"clamp": front(objectives, weights)}, objectives, path)
    text = path.read_text()
    assert ">test loss (lower is better; own scale for each objective)<" in text
    assert ">1 / test loss (outward is better: inner ring worst, rim best)<" in text
    for p in weights:
        label = preference_text(dict(zip(objectives, p, strict=True)), names=False)
        assert text.count(f">{label}<") == 1  # one legend for both pictures


def test_scores_are_better_when_higher(tmp_path: Path) -> None:
    path = tmp_path / "scores.svg"
    points = [PlotPoint({"a": 1.0, "b": 2.0}, "x"), PlotPoint({"a": 1.0, "b": 2.0}, "y")]
    draw_front({"scores": points}, ["a", "b"], path, quantity="score", lower_is_better=False)
    assert ">score of a (higher is better)<" in path.read_text()


def test_a_png_is_written(tmp_path: Path) -> None:
    path = tmp_path / "front.png"
    draw_front({"clamp": front(THREE, [[1.0, 0.0, 0.0]])}, THREE, path)  # one point: flat scales
    assert path.read_bytes().startswith(b"\x89PNG")


def test_points_without_finite_losses_are_counted_not_drawn(tmp_path: Path) -> None:
    lost = PlotPoint({"harmless": math.nan, "helpful": 0.5}, "(0, 1)")
    path = tmp_path / "front.svg"
    draw_front({"clamp": [*front(TWO, [[0.5, 0.5]]), lost]}, TWO, path)
    text = path.read_text()
    assert ">clamp (1 of 2 points not finite)<" in text
    assert ">(0, 1)<" not in text
    with pytest.raises(InputError, match="no point with finite values"):
        draw_front({"clamp": [lost]}, TWO, path)
    with pytest.raises(InputError, match="at least two objectives"):
        draw_front({"clamp": [lost]}, ["helpful"], path)


def test_nondominated_points_are_those_no_other_point_beats() -> None:
    points = np.random.default_rng(0).integers(0, 12, size=(40, 2)).astype(float)
    found = {tuple(point) for point in points[_nondominated(points)]}
    brute = {tuple(p) for p in points if not any((q <= p).all() and (q < p).any() for q in points)}
    assert found == brute


@pytest.mark.parametrize("seed", range(4))
def test_labels_neither_overlap_nor_leave_the_axes(seed: int) -> None:
    random = np.random.default_rng(seed)
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.add_subplot()
    x = np.sort(random.random(18))
    y = 1 - x + 0.03 * random.standard_normal(18)
    axes.plot(x, y, "o-")
    axes.margins(0.12)
    place_labels(figure, axes, [(a, b, "(0.33, 0.67)", "black") for a, b in zip(x, y, strict=True)])
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [note.get_window_extent(renderer) for note in axes.texts]
    frame = axes.get_window_extent()
    assert len(boxes) == 18
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= frame.x0 and box.x1 <= frame.x1 for box in boxes)
    pixels = axes.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*pixel) for box in boxes for pixel in pixels)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [("a", "b"), ("a", "b", "c")])
def test_a_thousand_points_are_drawn_with_labels_at_some(
    tmp_path: Path, objectives: tuple[str, ...]
) -> None:
    points = [
        PlotPoint(
            {name: (n * k) % 1000 / 1000 + 0.1 for k, name in enumerate(objectives, 1)}, f"n{n}"
        )
        for n in range(1000)
    ]
    draw_front({"many": points}, objectives, tmp_path / "many.svg")
    text = (tmp_path / "many.svg").read_text()
    assert 30 < len(re.findall(r">n[0-9]+<", text)) <= 61
    assert len(objectives) > 2 or "at one point in 17" in text
