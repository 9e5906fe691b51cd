"""The paper's figures of a run, on cells whose losses are chosen."""

import math

import pytest

from paretune.data_weighting.paper_figures import draw_paper_figures, objectives_against_steps
from paretune.data_weighting.summary import Summary
from paretune.data_weighting.trial import CellResult, Curve
from paretune.moo.preference import Preference
from paretune.report import figures

NAMES = ("a", "b", "c")
FIRST, EVEN = Preference(NAMES, (0.8, 0.1, 0.1)), Preference(NAMES, (1 / 3, 1 / 3, 1 / 3))


def cell(method, preference, seed, losses, curve=None):
    return CellResult(
        method=method,
        preference=None if preference is None else dict(preference),
        seed=seed,
        options={},
        status="done",
        own=losses,
        resolved=losses,
        held_out=losses,
        lower_gradient_norm=0.1,
        lower_gradient_norm_resolved=0.01,
        weights=(0.5, 0.5),
        curve=curve,
    )


def curve(steps, first):
    size = len(steps)
    losses = [[first - step, 2.0, 3.0] for step in steps]
    return Curve(
        step=list(steps),
        seconds=[float(s) for s in steps],
        n_gradients=list(steps),
        own=losses,
        resolved=losses,
        weights=[[0.5, 0.5]] * size,
    )


@pytest.fixture
def summary():
    cells = (
        cell("wc_augmented", FIRST, 0, (1.0, 2.0, 2.0), curve((0, 1, 2), 4.0)),
        cell("wc_augmented", FIRST, 1, (1.0, 2.0, 2.0), curve((0, 2), 6.0)),
        cell("wc_augmented", EVEN, 0, (2.0, 1.0, 2.0), curve((0, 1), 4.0)),
        cell("wc_augmented", EVEN, 1, (2.0, 1.0, 1.0), curve((0, 1), 4.0)),
        cell("moml", None, 0, (2.0, 2.0, 2.0), curve((0, 1), 4.0)),
        cell("moml", None, 1, (2.5, 2.0, 2.0), curve((0, 1), 4.0)),
    )
    return Summary(
        name="chosen",
        objectives=NAMES,
        sets=("x", "y"),
        matched={},
        random=(),
        preferences=(FIRST, EVEN),
        methods=("wc_augmented", "moml"),
        reference_point=(3.0, 3.0, 3.0),
        cells=cells,
        quality={
            method: {kind: {} for kind in ("own", "resolved", "held_out")}
            for method in ("wc_augmented", "moml")
        },
        missing=0,
    )


def test_curves_are_means_and_standard_errors(summary):
    lines = objectives_against_steps(summary, "wc_augmented", FIRST)
    assert [line.objective for line in lines] == list(NAMES)
    assert lines[0].steps == (0.0, 1.0, 2.0)
    assert lines[0].mean == (5.0, 4.0, 3.0)  # of 4 − t and 6 − t
    assert lines[0].standard_error == pytest.approx([math.sqrt(2) / math.sqrt(2)] * 3)
    assert lines[1].standard_error == (0.0, 0.0, 0.0)
    assert objectives_against_steps(summary, "moco", FIRST) == []


def test_drawn(summary, tmp_path):
    draw_paper_figures(summary, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"weigh_objectives.png", "weigh_radius.png"}


def test_radars_of_all_methods_have_one_scale(summary, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        figures, "save_figure", lambda figure, path: drawn.update({path.name: figure})
    )
    draw_paper_figures(summary, tmp_path)
    first, second = drawn["weigh_radius.png"].axes
    assert first.get_ylim() == second.get_ylim() == (0, pytest.approx(1.05))
    (line, _) = second.lines  # of MOML, at either preference
    assert line.get_ydata() == pytest.approx([1 / 2.25, 1 / 2, 1 / 2, 1 / 2.25])
