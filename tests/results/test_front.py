import json
import math
from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics, Score


def point(*losses: float, seed: int = 0) -> FrontPoint:
    metrics = {
        f"f{m}": ObjectiveMetrics(loss, accuracy=0.5, margin=0.0) for m, loss in enumerate(losses)
    }
    preference = dict.fromkeys(metrics, 1 / len(losses))
    return FrontPoint(preference, metrics, chebyshev=max(losses) / len(losses), seed=seed)


def front(*points: FrontPoint, **options: object) -> Front:
    return Front.of(points, name="test", method="clamp", **options)  # type: ignore[arg-type]


def test_flags_and_hypervolume_by_hand() -> None:
    found = front(point(1, 3), point(2, 2), point(3, 3), reference_point=[4, 4])
    assert [p.nondominated for p in found.points] == [True, True, False]
    assert found.hypervolume == pytest.approx(3 * 1 + 2 * 1)  # two strips below (4, 4)
    assert found.reference_point == (4.0, 4.0)


def test_default_reference_lies_a_tenth_beyond_the_nondominated_points() -> None:
    found = front(point(1, 3), point(2, 2), point(9, 9))
    assert found.reference_point == pytest.approx((2.1, 3.1))


def test_points_that_are_not_finite_are_kept_and_count_for_nothing() -> None:
    options = {"reference_point": [4, 4]}
    found = front(point(1, 3), point(math.nan, 0), point(math.inf, 0), **options)
    assert [p.nondominated for p in found.points] == [True, False, False]
    assert found.hypervolume == front(point(1, 3), **options).hypervolume


def test_json_round_trip(tmp_path: Path) -> None:
    scored = FrontPoint(
        preference={"a": 0.3, "b": 0.7},
        metrics={"a": ObjectiveMetrics(0.1, 0.2, 0.3), "b": ObjectiveMetrics(0.4, 0.5, 0.6)},
        chebyshev=0.28,
        seed=3,
        folder="points/x",
        scores={"a": Score(1.0, 0.5, 4)},
        training={"steps": 12},
    )
    found = front(scored)
    found.write(tmp_path / "front.json")
    assert Front.read(tmp_path / "front.json") == found
    assert json.loads((tmp_path / "front.json").read_text())["points"][0]["folder"] == "points/x"
    assert list(tmp_path.iterdir()) == [tmp_path / "front.json"]


@pytest.mark.parametrize("text", ["{", '{"name": 1}', "[]", '{"points": 3, "objectives": []}'])
def test_a_file_that_is_no_front_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "front.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"front\.json"):
        Front.read(path)


def test_fronts_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="at least one point"):
        front()
    with pytest.raises(InputError, match="same objectives"):
        front(point(1, 2), point(1, 2, 3))
    with pytest.raises(InputError, match="finite"):
        front(point(math.nan, 1))
    with pytest.raises(InputError):
        front(point(1, 2), reference_point=[1])


def test_score_is_mean_and_standard_error() -> None:
    score = Score.of([1.0, 2.0, 3.0, 6.0])
    assert score.mean == 3.0
    assert score.standard_error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert math.isnan(Score.of([1.0]).standard_error)
