"""What of a run the CLAMP paper's tables and figures show."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.files import read_object
from paretune.judging.summary import Summary as Judged
from paretune.report.comparison import draw_comparison
from paretune.report.papers.drawing import draw_bars, draw_footprint, finite
from paretune.report.papers.exhibit import Found, Row, as_file_name
from paretune.results.comparison import Comparison
from paretune.results.front import FrontPoint
from paretune.results.run_folder import Run
from paretune.results.text import preference_text

SHORT = {"honesty": "HO (p1)", "helpfulness": "HE (p2)", "instruction_following": "IF (p3)"}
_IMPROVEMENT = "improvement over the base model's ratings (%)"


def _model(run: Run) -> str:
    return str((run.recipe.get("model") or {}).get("name", "")).rstrip("/").split("/")[-1]


def large(run: Run) -> bool:
    """Whether a run's base model has 8B parameters."""
    return re.search(r"(?<!\d)8b(?![a-z])", _model(run).lower()) is not None


def _comparisons(found: Found) -> Iterator[tuple[Run, Comparison]]:
    for run in found.runs:
        if run.comparison is not None:
            yield run, run.comparison


def _clamp_points(run: Run) -> Iterator[tuple[str, FrontPoint]]:
    """CLAMP's points of a run, each with the title of its method; empty in a sweep."""
    if run.comparison is not None:
        for cell in run.comparison.cells:
            if cell.method == "clamp":
                yield from ((cell.title, point) for point in cell.points)
    elif run.front is not None and run.front.method == "clamp":
        yield from (("", point) for point in run.front.points)


def _p(preference: Mapping[str, float]) -> str:
    return f"[{preference_text(preference, names=False)[1:-1]}]"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


# ------------------------------------------------------------------ losses and scores


def losses_and_scores(found: Found) -> Iterator[Row]:
    for run, comparison in _comparisons(found):
        if len(comparison.objectives) != 2:
            continue
        for title in comparison.titles:
            for points in comparison.by_preference(title):
                values: dict[str, float | None] = {
                    f"loss {name}": _mean(point.losses[name] for point in points)
                    for name in comparison.objectives
                }
                for name in points[0].scores:
                    values[f"score {name}"] = _mean(point.scores[name].mean for point in points)
                yield Row((title, _p(points[0].preference)), found.source(run), values)


def draw_fronts(found: Found, folder: Path, stem: str) -> list[Path]:
    drawn = []
    for run, comparison in _comparisons(found):
        if len(comparison.objectives) == 2:
            files = [folder / f"{stem}{part}-{found.file_name(run)}.png" for part in "ab"]
            draw_comparison(comparison, *files)
            drawn += [file for file in files if file.exists()]
    return drawn


def _qwen(run: Run) -> bool:
    return "qwen" in _model(run).lower()


def large_llama(run: Run) -> bool:
    """Whether it is the 8B model of Figure 7, and not that of Figure 5."""
    return large(run) and not _qwen(run)


def losses_at(found: Found, wanted: Callable[[Run], bool]) -> Iterator[Row]:
    """Losses of CLAMP's points of three objectives."""
    for run in found.runs:
        if len(run.objectives) != 3 or not wanted(run):
            continue
        titles = {title for title, _ in _clamp_points(run)}
        for title, point in _clamp_points(run):
            values = {SHORT.get(name, name): loss for name, loss in point.losses.items()}
            more = title if len(titles) > 1 else ""
            yield Row((_p(point.preference),), found.source(run, more), values)


def perplexities(found: Found) -> Iterator[Row]:
    """Means over objectives, points and seeds, the base model first."""
    for run, comparison in _comparisons(found):
        base = [] if comparison.base is None else [("Base", [comparison.base])]
        values: dict[str, float] = {}
        for title, points in [
            *base,
            *(
                (t, [p for cell in comparison.of_title(t) for p in cell.points])
                for t in comparison.titles
            ),
        ]:
            each = [m.perplexity for p in points for m in p.metrics.values()]
            values |= finite({title: [value for value in each if value is not None]})
        yield Row((f"Task {len(comparison.objectives) - 1}",), found.source(run), values)


def draw_perplexities(found: Found, folder: Path, stem: str) -> list[Path]:
    drawn = []
    for row in perplexities(found):
        bars = {name: {row.keys[0]: value} for name, value in row.values.items() if value}
        if bars:
            path = folder / f"{stem}-{as_file_name(row.source)}.png"
            title = f"Perplexity, {row.source}"
            drawn.append(draw_bars(bars, path, title=title, quantity="perplexity", least=1))
    return drawn


# ------------------------------------------------------------------ judges


def _figure_of(run: Run, judge: Judged) -> str:
    """The figure that a judged run stands for."""
    if _qwen(run):
        return "5"
    number = "4" if "gemini" in judge.model.lower() else "2"
    return f"{number}b" if large(run) else f"{number}a"


def _judged(found: Found, name: str) -> Iterator[tuple[Run, Judged]]:
    return (each for each in found.judged if _figure_of(*each) == name)


def improvements(name: str) -> Callable[[Found], Iterator[Row]]:
    def rows(found: Found) -> Iterator[Row]:
        for run, judge in _judged(found, name):
            for row in judge.rows:
                values = {
                    aspect: None if each.percent is None else each.percent.value
                    for aspect, each in row.aspects.items()
                }
                yield Row((row.title, _p(row.preference)), found.source(run, judge.model), values)

    return rows


def _by_aspect(
    judge: Judged, combine: Callable[[Sequence[float]], float], uniform: bool
) -> dict[str, dict[str, float]]:
    """Per method one improvement an aspect, of all its points or of those of equal weights."""
    collected: dict[str, dict[str, list[float]]] = {}
    for row in judge.rows:
        weights = row.preference.values()
        if uniform and max(weights) - min(weights) > 1e-3:
            continue
        for aspect, each in row.aspects.items():
            if each.percent is not None:
                of_method = collected.setdefault(row.title, {})
                of_method.setdefault(aspect, []).append(each.percent.value)
    return {
        title: {aspect: combine(values) for aspect, values in each.items()}
        for title, each in collected.items()
    }


def draw_judged(name: str) -> Callable[[Found, Path, str], list[Path]]:
    def draw(found: Found, folder: Path, stem: str) -> list[Path]:
        drawn = []
        for number, (run, judge) in enumerate(_judged(found, name)):
            path = folder / f"{stem}-{found.file_name(run)}{f'-{number}' if number else ''}.png"
            title = f"{judge.model}, {_model(run)}"
            if name.endswith("a"):
                lines = _by_aspect(judge, max, uniform=False)
                if lines and len(judge.aspects) >= 3:
                    quantity = f"{_IMPROVEMENT}, the best of all p"
                    drawn.append(draw_footprint(lines, path, title=title, quantity=quantity))
            elif bars := _by_aspect(judge, _mean, uniform=True):
                drawn.append(draw_bars(bars, path, title=title, quantity=_IMPROVEMENT))
        return drawn

    return draw


# ------------------------------------------------------------------ costs


def _by_objectives(
    found: Found, value: Callable[[Mapping[str, Any]], float | None], column: str, least: int
) -> Iterator[Row]:
    """Means of a figure of CLAMP's trainings, by how many objectives have weight.

    Trainings under several titles are told apart, and so are ways to the gradients.
    """
    for run in found.runs:
        collected: dict[tuple[int, str], list[float]] = {}
        for title, point in _clamp_points(run):
            live = sum(weight > 0 for weight in point.preference.values())
            measured = value(point.training)
            if live >= least and measured:
                collected.setdefault((live, title), []).append(measured)
        several = len({title for _, title in collected}) > 1
        for (live, title), values in sorted(collected.items()):
            way = _train(run, title).get("gradients", "auto")
            more = (title if several else "", "" if way == "auto" else way)
            yield Row((_model(run), str(live)), found.source(run, *more), {column: _mean(values)})


def _train(run: Run, title: str) -> dict[str, Any]:
    """The section `train` of a run's recipe, as a method of it has it."""
    own: Mapping[str, Any] = next(
        (e for e in run.recipe.get("methods", ()) if _title_of(e) == title), {}
    )
    return {**(run.recipe.get("train") or {}), **(own.get("train") or {})}


def _title_of(entry: Mapping[str, Any]) -> str:
    return str(entry.get("label") or entry["name"])


def solver_share(found: Found) -> Iterator[Row]:
    column = "solver time / training time"
    return _by_objectives(found, lambda training: training.get("solver_share"), column, 2)


def memory(found: Found) -> Iterator[Row]:
    def peak(training: Mapping[str, Any]) -> float:
        return float((training.get("spend") or {}).get("peak_memory_bytes", 0)) / 1e9

    return _by_objectives(found, peak, "max GPU memory allocated (GB)", 1)


def _sensitivity(
    run: Run, comparison: Comparison, setting: Callable[[str], float | str | None], name: str
) -> Iterator[tuple[str, list[tuple[str, list[FrontPoint]]]]]:
    """By preference, the points at each setting, in the setting's order; ``"auto"`` comes last."""
    titles = {cell.title for cell in comparison.cells if cell.method == "clamp"}
    settings = {title: setting(title) for title in comparison.titles if title in titles}
    known = {title: value for title, value in settings.items() if value is not None}
    if len(set(known.values())) < 2:
        return
    points: dict[str, list[tuple[str, list[FrontPoint]]]] = {}
    numbers = {title: value for title, value in known.items() if not isinstance(value, str)}
    order = [*sorted(numbers, key=numbers.__getitem__), *(t for t in known if t not in numbers)]
    for title in order:
        value = known[title]
        shown = value if isinstance(value, str) else f"{value:g}"
        for group in comparison.by_preference(title):
            points.setdefault(_p(group[0].preference), []).append((f"{name}{shown}", list(group)))
    yield from points.items()


def _mu(comparison: Comparison) -> Callable[[str], float | str | None]:
    options = {cell.title: cell.options for cell in comparison.cells if cell.points}
    return lambda title: options.get(title, {}).get("mu")


def by_mu(found: Found) -> Iterator[Row]:
    for run, comparison in _comparisons(found):
        for p, settings in _sensitivity(run, comparison, _mu(comparison), "μ = "):
            for name in comparison.objectives:
                losses = {key: _mean(p.losses[name] for p in points) for key, points in settings}
                yield Row((name,), found.source(run, p), losses)


def _batch_size(run: Run) -> Callable[[str], float | None]:
    sizes = {}
    for entry in run.recipe.get("methods", ()):
        train = _train(run, title := _title_of(entry))
        size = train.get("per_device_train_batch_size", 8)
        sizes[title] = size * train.get("gradient_accumulation_steps", 1)
    return sizes.get


def by_batch(found: Found) -> Iterator[Row]:
    for run, comparison in _comparisons(found):
        for p, settings in _sensitivity(run, comparison, _batch_size(run), ""):
            for name in comparison.objectives:
                losses = {key: _mean(p.losses[name] for p in points) for key, points in settings}
                yield Row((f"DPO loss of {name}",), found.source(run, p), losses)
            steps = {
                key: _mean(float(p.training.get("steps", 0)) for p in points)
                for key, points in settings
            }
            yield Row(("training steps",), found.source(run, p), steps)


def minutes(found: Found) -> Iterator[Row]:
    for run, comparison in _comparisons(found):
        if len({cell.method for cell in comparison.cells}) < 2:
            continue
        values = {}
        for title in comparison.titles:
            cost = comparison.cost(title)
            if cost is not None:
                values[_as_printed(comparison, title)] = (
                    cost.point.seconds + cost.shared.seconds
                ) / 60
        yield Row(("overall training time (min)",), found.source(run), values)


def _as_printed(comparison: Comparison, title: str) -> str:
    """The paper's soups are of PPO, and are called so where there are others."""
    cell = next(cell for cell in comparison.of_title(title) if cell.points)
    ppo = cell.method == "rewarded_soups" and cell.options.get("adapters") == "ppo"
    return "Rewarded Soups" if ppo else title


def win_rates(found: Found) -> Iterator[Row]:
    for run in found.runs:
        for path in sorted(run.path.glob("alpaca_eval/*/win_rate.json")):
            kept = read_object(path)
            if not isinstance(rate := kept.get("lc_win_rate"), int | float):
                raise InputError(f"'{path}' holds no win rate: run `paretune alpaca score` again.")
            name = f"{_model(run)}, {path.parent.name}"
            yield Row(
                (name,),
                found.source(run, str(kept.get("formula", ""))),
                {"LC win rate": rate},
            )
