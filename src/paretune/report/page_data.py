"""What the report's script is given: points, answers and steps as one JSON text."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.moo.indicators import nondominated
from paretune.report.diagnostics import Panel, panels
from paretune.report.tables import Fact, facts
from paretune.results.dial import dial_grid, dial_rows
from paretune.results.front import FrontPoint
from paretune.results.run_folder import Run
from paretune.results.text import preference_text

ANSWER_BYTES = 2_000_000
"""Room for answers on a page; with plotly.js (4.8 MB) and the rest it stays below 8 MB."""
STEP_VALUES = 40_000
"""Logged values of all points together that a page shows; beyond it, every n-th step."""
DIAL_POINTS = 250
"""At most so many preferences for which a page knows what they give; of two objectives, 101."""

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Measure:
    """A kind of coordinates for the front: one value for each of `axes`."""

    key: str
    title: str
    axes: tuple[str, ...]
    lower_is_better: bool


@dataclass(frozen=True)
class Shown:
    """One point of the page.

    Attributes:
        series: the name of its colour; a method, with its run where there are several.
        title: what it is called in lists.
        base: it is a run's untrained model.
    """

    run: Run
    point: FrontPoint
    series: str
    title: str
    base: bool

    @property
    def facts(self) -> list[Fact]:
        return facts(self.point, self.base)


def shown_points(runs: Sequence[Run]) -> list[Shown]:
    """All points in order, each run's base model after them."""
    names = run_names(runs)
    seeds = {point.seed for run in runs for _, point in run.points}
    found = []
    for run, name in zip(runs, names, strict=True):
        for method, point in run.points:
            series = series_name(method, name, runs)
            seed = f", seed {point.seed}" if len(seeds) > 1 else ""
            title = f"{series} {preference_text(point.preference, names=False)}{seed}"
            found.append(Shown(run, point, series, title, base=False))
    for run, name in zip(runs, names, strict=True):
        if run.base is not None:
            title = "base model" if len(runs) == 1 else f"{name}: base model"
            found.append(Shown(run, run.base, title, title, base=True))
    return found


def series_name(method: str, run: str, runs: Sequence[Run]) -> str:
    """What a method's points are called together."""
    return method if len(runs) == 1 else f"{run}: {method}"


def run_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run that tells them apart: its folder's, or the whole path."""
    short = [run.path.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def measures(points: Sequence[Shown], objectives: Sequence[str], split: str) -> list[Measure]:
    """The coordinates that every trained point has."""
    names = tuple(objectives)
    trained = [shown.point for shown in points if not shown.base]
    found = [Measure("loss", f"{split} loss", names, True)]
    if all(m.perplexity is not None for p in trained for m in p.metrics.values()):
        found.append(Measure("perplexity", f"{split} perplexity of chosen responses", names, True))
    found += [
        Measure("accuracy", f"share of {split} pairs ranked right", names, False),
        Measure("margin", f"{split} reward margin", names, False),
    ]
    scorers = tuple(trained[0].scores) if trained else ()
    if len(scorers) > 1 and all(set(p.scores) == set(scorers) for p in trained):
        found.insert(1, Measure("scores", "score of answers", scorers, False))
    return found


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the page's script shows, ready for JSON."""
    points = shown_points(runs)
    objectives, split = runs[0].objectives, runs[0].split
    found = measures(points, objectives, split)
    series = list(dict.fromkeys(shown.series for shown in points))
    best = {measure.key: _best(points, measure) for measure in found}
    prompts, answers, total = shown_answers(points)
    steps, stride = _steps(points, objectives)
    entries = [
        {
            "series": series.index(shown.series),
            "run": runs.index(shown.run),
            "cell": f"{shown.series} {shown.point.seed}",
            "title": shown.title,
            "label": "base" if shown.base else preference_text(shown.point.preference, names=False),
            "base": shown.base,
            "weights": list(shown.point.preference.values()),
            "preference": "" if shown.base else preference_text(shown.point.preference),
            "values": {m.key: _clean(_values(shown.point, m)) for m in found},
            "errors": _clean([s.standard_error for s in shown.point.scores.values()]),
            "best": {key: flags[i] for key, flags in best.items()},
            "facts": _grouped(shown.facts),
            "answers": answers[i],
            "steps": steps[i],
        }
        for i, shown in enumerate(points)
    ]
    return {
        "objectives": list(objectives),
        "measures": [
            {"key": m.key, "title": m.title, "axes": m.axes, "lower": m.lower_is_better}
            for m in found
        ],
        "series": series,
        "points": entries,
        "dial": _dial(runs, series),
        "prompts": prompts,
        "promptsInAll": total,
        "stride": stride,
    }


def _dial(runs: Sequence[Run], series: Sequence[str]) -> dict[str, Any] | None:
    """What any p gives, of the methods with one adapter for all; None where there is none.

    One grid of preferences, and for each such method the gates and losses there.
    """
    objectives = len(runs[0].objectives)
    if objectives < 2:
        return None
    grid = dial_grid(objectives, 101 if objectives == 2 else DIAL_POINTS)
    curves = []
    for run, name in zip(runs, run_names(runs), strict=True):
        for method in run.series:
            calibration = run.calibration(method)
            if calibration is not None:
                rows = dial_rows(calibration, grid)
                curves.append(
                    {
                        "series": series.index(series_name(method, name, runs)),
                        "gate": [[round(q, 4) for q in row.position] for row in rows],
                        "losses": [[float(f"{x:.5g}") for x in row.losses] for row in rows],
                    }
                )
    return {"grid": grid, "curves": curves} if curves else None


def embedded_json(value: Any) -> str:
    """JSON that may stand between script tags: it holds no tag and no end of one."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def shown_answers(
    points: Sequence[Shown], room: int = ANSWER_BYTES
) -> tuple[list[Any], list[dict[int, Any]], int]:
    """The first prompts whose answers have room, each point's answers to them, and how many are.

    Returns:
        The prompts; for each point its answers, ``[text, finished, scores]`` by the number of the
        prompt; and the number of prompts in all.
    """
    rows: list[dict[str, dict[str, Any]]] = []
    prompts: dict[str, Any] = {}
    for shown in points:
        found = shown.run.base_answers() if shown.base else shown.run.answers(shown.point)
        own = {json.dumps(row["prompt"]): row for row in found}
        prompts |= {key: own[key]["prompt"] for key in own if key not in prompts}
        rows.append(own)
    kept: list[Any] = []
    answers: list[dict[int, Any]] = [{} for _ in points]
    used = 0
    for key, prompt in prompts.items():
        entry = [
            None
            if key not in own
            else [
                str(own[key]["response"]),
                bool(own[key].get("finished", True)),
                {name: _clean(score) for name, score in own[key].get("scores", {}).items()},
            ]
            for own in rows
        ]
        used += len(embedded_json([prompt, entry]).encode())
        if used > room:
            break
        for mine, answer in zip(answers, entry, strict=True):
            if answer is not None:
                mine[len(kept)] = answer
        kept.append(_messages(prompt))
    return kept, answers, len(prompts)


def _messages(prompt: Any) -> list[list[str]]:
    """A prompt as [role, text] pairs; a plain text has no role."""
    if isinstance(prompt, str):
        return [["", prompt]]
    return [[str(message["role"]), str(message["content"])] for message in prompt]


def _values(point: FrontPoint, measure: Measure) -> list[float | None]:
    if measure.key == "scores":
        return [point.scores[n].mean if n in point.scores else None for n in measure.axes]
    return [getattr(point.metrics[name], measure.key) for name in measure.axes]


def _best(points: Sequence[Shown], measure: Measure) -> list[bool]:
    """Which trained points no other trained point of the page dominates."""
    flags = [False] * len(points)
    rows = [(i, _values(s.point, measure)) for i, s in enumerate(points) if not s.base]
    finite = [(i, v) for i, v in rows if all(x is not None and math.isfinite(x) for x in v)]
    if finite:
        values = np.array([v for _, v in finite], dtype=np.float64)
        for (i, _), flag in zip(
            finite, nondominated(values if measure.lower_is_better else -values), strict=True
        ):
            flags[i] = bool(flag)
    return flags


def _grouped(found: Sequence[Fact]) -> list[list[Any]]:
    """[group, [[name, text], ...]] for each group."""
    groups: dict[str, list[list[str]]] = {}
    for fact in found:
        groups.setdefault(fact.group, []).append([fact.name, fact.text])
    return [[group, each] for group, each in groups.items()]


def _steps(
    points: Sequence[Shown], objectives: Sequence[str]
) -> tuple[list[list[Mapping[str, Any]]], int]:
    """Each point's panels, thinned to every n-th logged step, and n."""
    found = [
        [] if shown.base else panels(shown.run.log(shown.point), objectives) for shown in points
    ]
    total = sum(len(c.values) for each in found for panel in each for c in panel.curves)
    stride = max(1, math.ceil(total / STEP_VALUES))
    return [[_panel(panel, objectives, stride) for panel in each] for each in found], stride


def _panel(panel: Panel, objectives: Sequence[str], stride: int) -> dict[str, Any]:
    curves = [
        {
            "label": curve.label,
            "objective": None if curve.objective is None else objectives.index(curve.objective),
            "x": curve.steps[::stride],
            "y": _clean([float(f"{value:.5g}") for value in curve.values[::stride]]),
        }
        for curve in panel.curves
    ]
    return {
        "title": panel.title,
        "note": panel.note,
        "limits": panel.limits,
        "log": panel.logarithmic,
        "unit": panel.unit,
        "curves": curves,
    }


def _clean(value: Any) -> Any:
    """The value with None for numbers that JSON has not."""
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
