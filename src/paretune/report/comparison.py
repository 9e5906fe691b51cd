"""A comparison of methods as Markdown tables and as pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from paretune.report.figures import PlotPoint, draw_front, preference_label
from paretune.results.comparison import Comparison, Spread
from paretune.results.front import FrontPoint

_BASE = "base model"


def markdown(comparison: Comparison) -> str:
    """The tables of a comparison: fronts, points, costs, ε, and what failed."""
    n_seeds = max((len(comparison.of_title(t)) for t in comparison.titles), default=1)
    spread = "; mean ± standard deviation over seeds" if n_seeds > 1 else ""
    parts = [
        f"# {comparison.name}",
        f"Test split{spread}. Lower losses and perplexities are better, higher scores are.",
        *_fronts(comparison),
        "## Points",
        _points(comparison),
        *_asked_for_scores(comparison),
        *_answers(comparison),
        "## Cost",
        "Policy tokens are those that training puts forward and backward through the policy. A "
        "point's own cost comes first; `besides` is what one p needs before that (adapters of "
        "single objectives, margins, reward models), which all points share. Times are of the "
        "work itself, without loading and measuring. Reference log-probabilities of the pairs, "
        "which are computed once for all methods, are not counted.",
        _costs(comparison),
        *_epsilons(comparison),
        *_failures(comparison),
    ]
    return "\n\n".join(parts) + "\n"


def _asked_for_scores(comparison: Comparison) -> list[str]:
    titles = dict.fromkeys(cell.title for cell in comparison.cells if cell.method == "ric")
    return [
        f"{title}: the losses and perplexities are those of the policy with scores in its prompt, "
        "against the reference without."
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
                PlotPoint(_means(points, values), preference_label(points[0].preference))
                for points in comparison.by_preference(title)
                if all(values(point) for point in points)
            ]
            for title in comparison.titles
        }
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


def _losses(point: FrontPoint) -> Mapping[str, float]:
    return point.losses


def _scores(point: FrontPoint) -> Mapping[str, float]:
    return {name: score.mean for name, score in point.scores.items()}


def _means(
    points: Sequence[FrontPoint], values: Callable[[FrontPoint], Mapping[str, float]]
) -> dict[str, float]:
    rows = [values(point) for point in points]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _fronts(comparison: Comparison) -> list[str]:
    if comparison.reference_point is None:
        return []
    reference = ", ".join(f"{value:.4f}" for value in comparison.reference_point)
    rows = []
    for title in comparison.titles:
        cells = comparison.of_title(title)
        volumes = [cell.hypervolume for cell in cells if cell.hypervolume is not None]
        done = sum(len(cell.points) for cell in cells)
        planned = done + sum(len(cell.missing) for cell in cells)
        rows.append([title, str(len(cells)), f"{done} of {planned}", _number(volumes, 5)])
    return [
        "## Fronts",
        f"Hypervolume of the test losses below ({reference}): larger is better.",
        _table(["method", "seeds", "points", "hypervolume"], rows),
    ]


def _groups(comparison: Comparison) -> list[tuple[str, str, list[FrontPoint]]]:
    """Method, preference, and its points over the seeds, the base model first."""
    base = [] if comparison.base is None else [(_BASE, "", [comparison.base])]
    return base + [
        (title, preference_label(points[0].preference), points)
        for title in comparison.titles
        for points in comparison.by_preference(title)
    ]


def _points(comparison: Comparison) -> str:
    objectives = comparison.objectives
    head = ["method", f"p = ({', '.join(objectives)})"]
    head += [f"loss {name}" for name in objectives] + ["max p·loss"]
    head += [f"perplexity {name}" for name in objectives]
    rows = []
    for title, label, points in _groups(comparison):
        metrics = [[point.metrics[name] for point in points] for name in objectives]
        row = [title, label, *(_number([m.loss for m in each], 4) for each in metrics)]
        row += [_number([point.chebyshev for point in points], 4) if label else ""]
        row += [_number([m.perplexity for m in each], 2) for each in metrics]
        rows.append(row)
    return _table(head, rows)


def _answers(comparison: Comparison) -> list[str]:
    """Scores of the generated answers, and what the answers look like."""
    groups = [group for group in _groups(comparison) if all(point.text for point in group[2])]
    if not groups:
        return []
    scorers = list(groups[0][2][0].scores)
    head = ["method", f"p = ({', '.join(comparison.objectives)})"]
    head += [*(f"score {name}" for name in scorers), "tokens", "refused %", "repeated %"]
    head += ["empty %", "cut %", "distinct-1", "distinct-2"]
    rows = []
    for title, label, points in groups:
        texts = [point.text for point in points if point.text is not None]
        row = [title, label]
        row += [_number([point.scores[name].mean for point in points], 3) for name in scorers]
        row += [_number([point.answer_tokens for point in points], 1)]
        shares = zip(
            *((t.refusals, t.repetition, t.empty, t.unfinished) for t in texts), strict=True
        )
        row += [_number([100 * share for share in each], 1) for each in shares]
        row += [_number([text.distinct_1 for text in texts], 3)]
        row += [_number([text.distinct_2 for text in texts], 3)]
        rows.append(row)
    explained = (
        "Of the generated answers. A score that rises while answers get longer, refuse or repeat "
        "themselves may have risen for that reason. *Repeated*: 4-grams of words that stood in the "
        "same answer before. *Cut*: answers that reached the limit. *Distinct-n*: different "
        "n-grams of all answers together, over all their n-grams."
    )
    return ["## Answers", explained, _table(head, rows)]


def _costs(comparison: Comparison) -> str:
    head = ["method", "policy tokens", "generated", "reward", "passes", "minutes"]
    head += ["besides: policy", "reference", "generated", "reward", "minutes"]
    head += ["minutes for one p", "minutes for all p", "peak GB"]
    rows = []
    for title in comparison.titles:
        cost = comparison.cost(title)
        if cost is None:
            continue
        own, shared = cost.point, cost.shared
        counts = [own.policy_tokens, own.generated_tokens, own.reward_tokens, own.passes]
        besides = [shared.policy_tokens, shared.reference_tokens + own.reference_tokens]
        besides += [shared.generated_tokens, shared.reward_tokens]
        row = [title, *(f"{count:,}" for count in counts), _minutes(own.seconds)]
        row += [*(f"{count:,}" for count in besides), _minutes(shared.seconds)]
        row += [_minutes(own.seconds + shared.seconds), _minutes(cost.front.seconds)]
        rows.append([*row, f"{cost.front.peak_memory_bytes / 1e9:.2f}"])
    return _table(head, rows)


def _epsilons(comparison: Comparison) -> list[str]:
    titles = [title for title in comparison.titles if title in comparison.epsilon]
    if len(titles) < 2:
        return []
    rows = []
    for ours in titles:
        values = (comparison.epsilon[ours].get(theirs) for theirs in titles)
        rows.append([ours, *("" if value is None else f"{value:+.4f}" for value in values)])
    return [
        "## ε between fronts",
        "What must be added to the losses of the column's points for the row's points to be as "
        "good as all of them: the smaller the better, and negative where the row is better "
        "everywhere.",
        _table(["", *titles], rows),
    ]


def _failures(comparison: Comparison) -> list[str]:
    if not comparison.failures:
        return []
    lines = [
        f"- {cell.title}, seed {cell.seed} (no result for {', '.join(cell.missing)}): "
        f"{cell.failure}"
        for cell in comparison.failures
    ]
    return ["## What failed", "\n".join(lines)]


def _number(values: Iterable[float | None], digits: int) -> str:
    spread = Spread.of([value for value in values if value is not None])
    if spread is None:
        return ""
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
