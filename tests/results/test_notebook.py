"""A front in a notebook."""

from types import SimpleNamespace
from typing import Any

import pytest

from paretune import progress
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics


def make_front(*objectives: str) -> Front:
    def point(*losses: float) -> FrontPoint:
        metrics = [ObjectiveMetrics(loss, 0.5, 0.0) for loss in losses]
        share = 1 / len(objectives)
        return FrontPoint(
            dict.fromkeys(objectives, share),
            dict(zip(objectives, metrics, strict=True)),
            chebyshev=max(losses) * share,
        )

    more = (0.7,) * (len(objectives) - 2)
    points = [point(0.5, 0.9, *more), point(0.9, 0.5, *more), point(0.95, 0.95, *more)]
    return Front.of(points, name="it <b>", method="clamp")


@pytest.mark.parametrize("objectives", [("a$", "b$"), ("a", "b", "c")])
def test_a_front_as_table_frame_and_picture(objectives: tuple[str, ...]) -> None:
    front = make_front(*objectives)
    html = front._repr_html_()
    assert html.count("<tr>") == 4
    assert "data:image/png;base64," in html
    assert "it &lt;b&gt;" in html
    frame = front.to_pandas()
    assert list(frame[f"{objectives[0]}_loss"]) == [0.5, 0.9, 0.95]
    assert list(frame["nondominated"]) == [True, True, False]
    axes = front.plot()
    assert front.plot(axes) is axes


def test_a_bar_in_a_notebook_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(progress.default_progress(), progress.Silent)
    shell: Any = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(progress.sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    bar = progress.default_progress()
    assert isinstance(bar, progress.Bar)
    bar.begin(["x", "y"], 0)
    for name in ("x", "y"):
        bar.point(name)
        for phase in progress.PHASES:
            bar.phase(phase, 1.0)
    bar.end()
    assert "100%" in capsys.readouterr().err
