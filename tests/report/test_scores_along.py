"""The scores of answers along p."""

from pathlib import Path

from paretune.report.scores_along import draw_scores_along
from paretune.results.front import Score
from paretune.results.points import FrontPoint


def point(p: float, **means: float) -> FrontPoint:
    return FrontPoint(
        preference={"short": p, "full": 1 - p},
        metrics={},
        chebyshev=0.5,
        seed=0,
        folder=f"points/{p}",
        scores={name: Score(mean, 0.25, 8) for name, mean in means.items()},
    )


def test_each_scorer_has_its_panel_and_every_point_its_mark(tmp_path: Path) -> None:
    points = [point(p, short=-9 - p, full=p) for p in (1.0, 0.0, 0.5)]
    paths = [tmp_path / "scores.svg", tmp_path / "scores.png"]
    assert draw_scores_along({"conditioned": points}, ["short", "full"], paths, title="a & b")
    text = paths[0].read_text()
    for words in ("score short", "score full", "p of short (of full: 1 - p)", "a &amp; b"):
        assert words in text
    assert paths[1].stat().st_size > 1000


def test_nothing_is_drawn_without_scores_or_with_three_objectives(tmp_path: Path) -> None:
    path = tmp_path / "scores.svg"
    bare = [point(0.0), point(1.0)]
    scored = [point(0.0, short=1), point(1.0, short=2)]
    assert not draw_scores_along({"a": bare}, ["short", "full"], [path])
    assert not draw_scores_along({"a": scored[:1]}, ["short", "full"], [path])
    assert not draw_scores_along({"a": scored}, ["short", "full", "third"], [path])
    assert not path.exists()
