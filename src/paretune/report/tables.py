"""What a report says in tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from paretune.moo.calibration import Calibration
from paretune.results.comparison import Comparison
from paretune.results.dial import dial_grid, dial_rows
from paretune.results.front import FrontPoint, Score
from paretune.results.spread import Spread
from paretune.results.table import Cell, Column, Table, left, numbers
from paretune.results.text import number

_COUNTS = {
    "rows": "rows read",
    "skipped_rows": "rows that could not be used",
    "tie_rule": "equal ratings are",
    "ties": "ties",
    "na_dropped": "not rated (N/A)",
    "unpaired": "prompts without a pair",
    "conflicts": "conflict rate",
    "unread_columns": "rows with a column that nobody reads",
    "too_long": "pairs too long to train on",
    "equal": "pairs whose responses are the same tokens",
    "cut": "pairs with a response cut off",
    "unmatched": "pairs without a counterpart in joint rows",
}
_DIAL_ROWS = 5  # at most; for two objectives p = 0, 1/4, 1/2, 3/4, 1
_TIE_RULES = {"drop": "left out", "first": "won by the first response"}


class Fact(NamedTuple):
    """A quantity of a point: the group it belongs to, its name, and its value as text."""

    group: str
    name: str
    text: str


def signed(value: float | None, spec: str = ".3f") -> str:
    """The number for a page: a minus is a real minus sign."""
    return number(value, spec).replace("-", "\N{MINUS SIGN}")


def with_error(score: Score) -> str:
    """``mean ± standard error``, to the digits that the error allows."""
    error = score.standard_error
    if not math.isfinite(error) or error <= 0:
        return signed(score.mean)
    digits = min(6, max(0, 1 - math.floor(math.log10(error))))
    return f"{signed(score.mean, f'.{digits}f')} ± {signed(error, f'.{digits}f')}"


def facts(point: FrontPoint, base: bool = False) -> list[Fact]:
    """Everything measured of a point; what is not known has no entry.

    Args:
        base: it is the untrained model, whose preference and training mean nothing.
    """
    found = []
    for name, metrics in point.metrics.items():
        found += [
            Fact(name, "loss", signed(metrics.loss)),
            Fact(name, "ranked right", signed(metrics.accuracy, ".0%")),
            Fact(name, "margin", signed(metrics.margin, "+.3f")),
            Fact(name, "perplexity", signed(metrics.perplexity, ".2f")),
        ]
    found += [Fact("scores of answers", name, with_error(s)) for name, s in point.scores.items()]
    found.append(Fact("answers", "tokens", signed(point.answer_tokens, ".1f")))
    if point.text is not None:
        found += [
            Fact("answers", "refusals", signed(point.text.refusals, ".0%")),
            Fact("answers", "repetition", signed(point.text.repetition, ".1%")),
            Fact("answers", "distinct-1", signed(point.text.distinct_1, ".2f")),
            Fact("answers", "distinct-2", signed(point.text.distinct_2, ".2f")),
            Fact("answers", "empty", signed(point.text.empty, ".0%")),
            Fact("answers", "cut", signed(point.text.unfinished, ".0%")),
        ]
    if not base:
        found.insert(0, Fact("preference", "max p·loss", signed(point.chebyshev)))
        found += _training(point.training)
    return [fact for fact in found if fact.text]


def columns(points: Iterable[Sequence[Fact]]) -> list[tuple[str, list[str]]]:
    """The headings of a table of points: each group with the names of its columns."""
    groups: dict[str, dict[str, None]] = {}
    for point in points:
        for fact in point:
            groups.setdefault(fact.group, {})[fact.name] = None
    return [(group, list(names)) for group, names in groups.items()]


def data_counts(counts: Mapping[str, Mapping[str, Any]]) -> Table:
    """The manifest's counts: a row a quantity, a column a split."""
    flat = {split: dict(_flat_counts(values)) for split, values in counts.items()}
    labels = dict.fromkeys(label for values in flat.values() for label in values)
    rows = [[label, *(values.get(label, "") for values in flat.values())] for label in labels]
    return Table([left(""), *numbers(list(flat))], rows, "Data counts")


def methods(comparison: Comparison) -> Table:
    """A row a method: its front and what it cost."""
    columns = [left("method"), *numbers(["seeds", "points"]), Column("hypervolume", ".4f")]
    columns += [Column("policy tokens of a point", ",")]
    columns += numbers(["minutes for one p", "minutes for all p", "peak GB"], ".2f")
    skipped = {title: _skipped(comparison, title) for title in comparison.titles}
    columns += [Column("skipped steps", ",")] if any(skipped.values()) else []
    rows: list[list[Cell]] = []
    for title in comparison.titles:
        cost = comparison.cost(title)
        row: list[Cell] = [title, len(comparison.of_title(title)), comparison.done(title)]
        row += [comparison.hypervolume(title)]
        if cost is None:
            row += [None, None, None, None]
        else:
            row += [cost.point.policy_tokens, (cost.point.seconds + cost.shared.seconds) / 60]
            row += [cost.front.seconds / 60, cost.front.peak_memory_bytes / 1e9]
        rows.append([*row, skipped[title]] if any(skipped.values()) else row)
    return Table(columns, rows, "Methods")


def _skipped(comparison: Comparison, title: str) -> int:
    return sum(point.skipped_steps for cell in comparison.of_title(title) for point in cell.points)


def spacings(comparison: Comparison) -> Table | None:
    """A row a method: its points at p itself and through its calibration; None without a dial."""
    if not any(cell.dial for cell in comparison.cells):
        return None
    columns = [left("method"), *numbers(["volume at p", "calibrated", "max p·loss at p"], ".3f")]
    columns += numbers(["unevenness: validation", "test"], ".2f")
    columns += [Column("in order"), Column("policy tokens", ","), Column("minutes", ".1f")]
    rows: list[list[Cell]] = []
    for title in comparison.titles:
        found, cost = comparison.spacing(title), comparison.cost(title)
        row: list[Cell] = [title, Spread.of(each.at_p for each in found)]
        row += [Spread.of(each.calibrated for each in found)]
        row += [Spread.of(each.chebyshev for each in found)]
        row += [Spread.of(each.validation_unevenness for each in found)]
        row += [Spread.of(each.unevenness for each in found)]
        right, steps = (sum(each.in_order[i] for each in found) for i in (0, 1))
        row.append(f"{right} of {steps}" if steps else None)
        total = None if cost is None else cost.front
        row += [None, None] if total is None else [total.policy_tokens, total.seconds / 60]
        rows.append(row)
    return Table(columns, rows, "Dials (tokens and minutes: for all p)")


def epsilons(comparison: Comparison) -> Table | None:
    """ε of every method's front against every other's; None where there is nothing to compare."""
    titles = [title for title in comparison.titles if title in comparison.epsilon]
    if len(titles) < 2:
        return None
    rows = [
        [title, *(comparison.epsilon[title].get(other) for other in titles)] for title in titles
    ]
    return Table([left(""), *numbers(titles, "+.4f")], rows, "Epsilon between fronts")


def dial(calibration: Calibration, objectives: Sequence[str]) -> Table:
    """What preferences from end to end give: a row each, with the validation losses expected."""
    columns = [left(f"p = ({', '.join(objectives)})"), left("gate")]
    columns += numbers([f"loss {name}" for name in objectives], ".3f")
    rows: list[list[Cell]] = [
        [_weights(row.preference, ".4g"), _weights(row.position, ".3g"), *row.losses]
        for row in dial_rows(calibration, dial_grid(len(objectives), _DIAL_ROWS))
    ]
    return Table(columns, rows, f"What p gives (calibration: {calibration.meaning})")


def _weights(values: Sequence[float], spec: str) -> str:
    return ", ".join(signed(value, spec) for value in values)


def sessions(manifest: Mapping[str, Any]) -> Table:
    """When the run was started or resumed, and with which versions."""
    found = manifest.get("sessions", [])
    head = list(dict.fromkeys(key for session in found for key in session))
    rows = [[str(session.get(key, "")) for key in head] for session in found]
    return Table([left(name) for name in head], rows, "Sessions and versions")


def _training(training: Mapping[str, Any]) -> list[Fact]:
    found = {}
    if "position" in training:  # folded, not trained
        found["gate"] = _weights(list(training["position"].values()), ".3g")
    elif "steps" in training:
        found["steps"] = f"{training['steps']:,}"
        if "best_step" in training:
            found["steps"] += f", best at {training['best_step']:,}"
    if skipped := training.get("skipped_steps"):
        found["skipped steps"] = f"{skipped:,}"
    if "seconds" in training and "position" not in training:
        found["minutes"] = signed(training["seconds"] / 60, ".1f")
    if (times := training.get("times")) and times.get("validation"):
        shares = (f"{name} {signed(times[name] / 60, '.1f')}" for name in times)
        found["minutes"] += f" ({', '.join(shares)})"
    if "vertex_share" in training:
        found["λ* at a corner"] = signed(training["vertex_share"], ".0%")
    if "solver_share" in training:
        found["solver's share"] = f"{100 * training['solver_share']:.2g}%"
    memory = training.get("spend", {}).get("peak_memory_bytes", 0)
    if memory:
        found["peak GB"] = signed(memory / 1e9, ".2f")
    return [Fact("training", name, text) for name, text in found.items()]


def _flat_counts(counts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in counts.items():
        label = _COUNTS.get(key, key.replace("_", " "))
        if key == "conflicts":
            for pair, found in value.items():
                names = pair.replace("|", " and ")
                share = signed(found["rate"], ".1%") or "none"
                yield f"{label} of {names}", f"{share} of {found['common']:,} common pairs"
        elif isinstance(value, Mapping):
            for name, each in value.items():
                yield f"{label}: {name}", _count(each)
        elif isinstance(value, int | float):
            yield label, _count(value)
        elif isinstance(value, str):
            yield label, _TIE_RULES.get(value, value) if key == "tie_rule" else value


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What a reader asks for first, as far as the recipe has it."""
    train = recipe.get("train") or {}
    lora = recipe.get("lora")
    found = {
        "model": _listed(recipe.get("model"), {"name": "", "dtype": "", "quantization": ""}),
        "method": _listed(recipe.get("method"), {"name": "", "mu": "μ"}),
        "methods": ", ".join(str(m.get("label") or m["name"]) for m in recipe.get("methods", [])),
        "loss": _listed(recipe.get("loss"), {"name": "", "beta": "β"}),
        "adapter": _listed(lora, {"r": "LoRA, r", "alpha": "α"}) if lora else "none: all weights",
        "data": _listed(recipe.get("data"), {"loader": "", "path": "", "split": "split"}),
        "training": _listed(
            train,
            {
                "max_steps": "steps",
                "num_train_epochs": "epochs",
                "per_device_train_batch_size": "batch size",
                "gradient_accumulation_steps": "accumulated over",
                "learning_rate": "learning rate",
                "max_length": "tokens at most",
            },
        ),
    }
    if found["methods"]:
        del found["method"]
    elif isinstance(method := recipe.get("method"), Mapping) and method.get("name") != "clamp":
        found["method"] = str(method.get("name"))  # μ is CLAMP's
    return {name: text for name, text in found.items() if text}


def _listed(section: Mapping[str, Any] | None, names: Mapping[str, str]) -> str:
    """``"clamp, μ 100.0"``: the values of the keys that are set, after their names."""
    values = section or {}
    return ", ".join(
        f"{name} {values[key]}".strip()
        for key, name in names.items()
        if values.get(key) is not None
    )
