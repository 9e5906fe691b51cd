"""A comparison of methods as Markdown tables and as pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from paretune.report import tables
from paretune.report.figures import PlotPoint, draw_front
from paretune.results.comparison import Comparison
from paretune.results.dial import DialPoint
from paretune.results.front import FrontPoint
from paretune.results.spread import Spread
from paretune.results.table import Cell, Column, Table, left, numbers
from paretune.results.text import markdown_text, preference_text

P = TypeVar("P")

_BASE = "base model"


def markdown(comparison: Comparison) -> str:
    """The tables of a comparison: fronts, points, costs, ε, and what failed."""
    n_seeds = max((len(comparison.of_title(t)) for t in comparison.titles), default=1)
    spread = "; mean ± standard deviation over seeds" if n_seeds > 1 else ""
    parts = [
        f"# {markdown_text(comparison.name)}",
        f"Test split{spread}. Lower losses and perplexities are better, higher scores are.",
        *_fronts(comparison),
        *_dials(comparison),
        "## Points",
        _points(comparison).to_markdown(),
        *_asked_for_scores(comparison),
        *_answers(comparison),
        "## Cost",
        "Policy tokens are those that training puts forward and backward through the policy. A "
        "point's own cost comes first; `besides` is what one p needs before that (adapters of "
        "single objectives, margins, reward models), which all points share. Times are of the "
        "work itself, without loading and measuring. Reference log-probabilities of the pairs, "
        "which are computed once for all methods, are not counted.",
        _costs(comparison).to_markdown(),
        *_epsilons(comparison),
        *_failures(comparison),
    ]
    return "\n\n".join(parts) + "\n"


def _asked_for_scores(comparison: Comparison) -> list[str]:
    titles = dict.fromkeys(cell.title for cell in comparison.cells if cell.method == "ric")
    return [
        f"{markdown_text(title)}: the losses and perplexities are those of the policy with scores "
        "in its prompt, against the reference without."
        for title in titles
    ]


def draw_comparison(comparison: Comparison, losses: Path, scores: Path) -> None:
    """Draw the methods' test losses and, where answers have scores, those; seeds are averaged."""
    base = comparison.base
    for path, values, quantity, lower in (
        (losses, _losses, "test loss", True),
        (scores, _scores, "score of answers", False),
    ):
        series = {
            title: [
                PlotPoint(_means(points, values), _label(points))
                for points in comparison.by_preference(title)
                if all(values(point) for point in points)
            ]
            for title in comparison.titles
        }
        if lower:
            for title, group in _dial_points(comparison):
                if group[0].calibrated:
                    mean = _means(group, lambda point: point.losses)
                    label = preference_text(group[0].preference, names=False)
                    series.setdefault(f"{title}, calibrated", []).append(PlotPoint(mean, label))
        drawn = {title: points for title, points in series.items() if points}
        if len(comparison.objectives) < 2 or not drawn:
            continue
        reference = PlotPoint(values(base), "base") if base is not None and values(base) else None
        draw_front(
            drawn,
            comparison.objectives,
            path,
            title=comparison.name,
            reference=reference,
            quantity=quantity,
            lower_is_better=lower,
        )


def _label(points: Sequence[FrontPoint]) -> str:
    return preference_text(points[0].preference, names=False)


def _losses(point: FrontPoint) -> Mapping[str, float]:
    return point.losses


def _scores(point: FrontPoint) -> Mapping[str, float]:
    return {name: score.mean for name, score in point.scores.items()}


def _means(points: Sequence[P], values: Callable[[P], Mapping[str, float]]) -> dict[str, float]:
    rows = [values(point) for point in points]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _fronts(comparison: Comparison) -> list[str]:
    if comparison.reference_point is None:
        return []
    reference = ", ".join(f"{value:.4f}" for value in comparison.reference_point)
    rows = [
        [
            title,
            len(comparison.of_title(title)),
            comparison.done(title),
            comparison.hypervolume(title),
        ]
        for title in comparison.titles
    ]
    columns = [left("method"), *numbers(["seeds", "points"]), Column("hypervolume", ".5f")]
    return [
        "## Fronts",
        f"Hypervolume of the test losses below ({reference}): larger is better.",
        Table(columns, rows).to_markdown(),
    ]


def _dials(comparison: Comparison) -> list[str]:
    """The methods with one adapter for all p: their whole paths, and how even these are."""
    table = tables.spacings(comparison)
    if table is None:
        return []
    objectives = comparison.objectives
    columns = [left("method"), left("p is"), Column(_weights(comparison))]
    columns += [Column("gate"), *numbers([f"loss {name}" for name in objectives], ".4f")]
    columns += numbers(["max p·loss"], ".4f")
    columns += numbers([f"validation loss {name}" for name in objectives], ".4f")
    rows: list[list[Cell]] = []
    for title, points in _dial_points(comparison):
        first, gates = points[0], zip(*(point.position.values() for point in points), strict=True)
        gate = ", ".join(f"{sum(values) / len(values):.3g}" for values in gates)
        row: list[Cell] = [title, "calibrated" if first.calibrated else "the gate itself"]
        row += [preference_text(first.preference, names=False), f"({gate})"]
        row += [Spread.of(p.losses[name] for p in points) for name in objectives]
        row += [Spread.of(p.chebyshev for p in points)]
        row += [Spread.of(p.validation.get(name) for p in points) for name in objectives]
        rows.append(row)
    return [
        "## Dials",
        "Of a method with one adapter for all p, *at p* has the gate at p itself, at the points' "
        "preferences, and *calibrated* goes by its calibration, at an even grid of p. Other "
        "methods have their points. Hypervolumes are below the one reference point above. "
        "*Unevenness*: standard deviation over mean of the distances between neighbours, each loss "
        "divided by its range. *In order*: steps from one p to the next in which an objective "
        "moves as its weight does. Tokens and minutes are for all p.",
        table.to_markdown(),
        "Losses along the gate, on the test split and where the calibration was made:",
        Table(columns, rows).to_markdown(),
    ]


def _dial_points(comparison: Comparison) -> list[tuple[str, list[DialPoint]]]:
    """Method by method the positions of one p, those of different seeds together."""
    groups: dict[tuple[str, bool, tuple[float, ...]], list[DialPoint]] = {}
    for cell in comparison.cells:
        for point in cell.dial.points if cell.dial is not None else ():
            key = (cell.title, point.calibrated, tuple(point.preference.values()))
            groups.setdefault(key, []).append(point)
    return [(title, points) for (title, *_), points in groups.items()]


def _groups(comparison: Comparison) -> list[tuple[str, str, list[FrontPoint]]]:
    """Method, preference, and its points over the seeds, the base model first."""
    base = [] if comparison.base is None else [(_BASE, "", [comparison.base])]
    return base + [
        (title, _label(points), points)
        for title in comparison.titles
        for points in comparison.by_preference(title)
    ]


def _points(comparison: Comparison) -> Table:
    objectives = comparison.objectives
    columns = [left("method"), Column(_weights(comparison))]
    columns += numbers([f"loss {name}" for name in objectives] + ["max p·loss"], ".4f")
    columns += numbers([f"perplexity {name}" for name in objectives], ".2f")
    skipped = any(point.skipped_steps for _, _, points in _groups(comparison) for point in points)
    columns += numbers(["skipped steps"], ".3g") if skipped else []
    rows: list[list[Cell]] = []
    for title, label, points in _groups(comparison):
        metrics = [[point.metrics[name] for point in points] for name in objectives]
        row: list[Cell] = [title, label, *(Spread.of(m.loss for m in each) for each in metrics)]
        row += [Spread.of(point.chebyshev for point in points) if label else None]
        row += [Spread.of(m.perplexity for m in each) for each in metrics]
        row += [Spread.of(float(point.skipped_steps) for point in points)] if skipped else []
        rows.append(row)
    return Table(columns, rows)


def _weights(comparison: Comparison) -> str:
    return f"p = ({', '.join(comparison.objectives)})"


def _answers(comparison: Comparison) -> list[str]:
    """Scores of the generated answers, and what the answers look like."""
    groups = [group for group in _groups(comparison) if all(point.text for point in group[2])]
    if not groups:
        return []
    scorers = list(groups[0][2][0].scores)
    columns = [left("method"), Column(_weights(comparison))]
    columns += numbers([f"score {name}" for name in scorers], ".3f")
    columns += numbers(["tokens", "refused %", "repeated %", "empty %", "cut %"], ".1f")
    columns += numbers(["distinct-1", "distinct-2"], ".3f")
    rows: list[list[Cell]] = []
    for title, label, points in groups:
        texts = [point.text for point in points if point.text is not None]
        row: list[Cell] = [title, label]
        row += [Spread.of(point.scores[name].mean for point in points) for name in scorers]
        row += [Spread.of(point.answer_tokens for point in points)]
        for share in ("refusals", "repetition", "empty", "unfinished"):
            row += [Spread.of(100 * getattr(text, share) for text in texts)]
        row += [Spread.of(text.distinct_1 for text in texts)]
        rows.append([*row, Spread.of(text.distinct_2 for text in texts)])
    explained = (
        "Of the generated answers. A score that rises while answers get longer, refuse or repeat "
        "themselves may have risen for that reason. *Repeated*: 4-grams of words that stood in the "
        "same answer before. *Cut*: answers that reached the limit. *Distinct-n*: different "
        "n-grams of all answers together, over all their n-grams."
    )
    return ["## Answers", explained, Table(columns, rows).to_markdown()]


def _costs(comparison: Comparison) -> Table:
    counted = ["policy tokens", "generated", "reward", "passes"]
    besides = ["besides: policy", "reference", "generated", "reward"]
    columns = [left("method"), *numbers(counted, ","), Column("minutes", ".2f")]
    columns += numbers(besides, ",")
    columns += numbers(["minutes", "minutes for one p", "minutes for all p", "peak GB"], ".2f")
    rows: list[list[Cell]] = []
    for title in comparison.titles:
        cost = comparison.cost(title)
        if cost is None:
            continue
        own, shared = cost.point, cost.shared
        row: list[Cell] = [title, own.policy_tokens, own.generated_tokens, own.reward_tokens]
        row += [own.passes, own.seconds / 60]
        row += [shared.policy_tokens, shared.reference_tokens + own.reference_tokens]
        row += [shared.generated_tokens, shared.reward_tokens, shared.seconds / 60]
        row += [(own.seconds + shared.seconds) / 60, cost.front.seconds / 60]
        rows.append([*row, cost.front.peak_memory_bytes / 1e9])
    return Table(columns, rows)


def _epsilons(comparison: Comparison) -> list[str]:
    table = tables.epsilons(comparison)
    if table is None:
        return []
    return [
        "## ε between fronts",
        "What must be added to the losses of the column's points for the row's points to be as "
        "good as all of them: the smaller the better, and negative where the row is better "
        "everywhere.",
        table.to_markdown(),
    ]


def _failures(comparison: Comparison) -> list[str]:
    if not comparison.failures:
        return []
    lines = [
        f"- {markdown_text(cell.title)}, seed {cell.seed} (no result for "
        f"{', '.join(cell.missing)}): {markdown_text(str(cell.failure))}"
        for cell in comparison.failures
    ]
    return ["## What failed", "\n".join(lines)]
