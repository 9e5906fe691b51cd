"""From judged answers to numbers: improvement over the base model, win rates, their intervals."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from paretune.judging.parsing import Rating, Side

Array = NDArray[np.float64]

_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % bootstrap interval, None where there are not two prompts."""

    value: float
    interval: tuple[float, float] | None

    def __format__(self, spec: str) -> str:
        """``"+12.3 % [+4.5, +20.1]"``."""
        text = f"{format(self.value, spec)} %"
        if self.interval is None:
            return text
        low, high = self.interval
        return f"{text} [{format(low, spec)}, {format(high, spec)}]"

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "Estimate | None":
        if value is None:
            return None
        interval = value["interval"]
        return cls(value["value"], None if interval is None else tuple(interval))


@dataclass(frozen=True)
class Improvement:
    """Ratings of one preference's answers against the base model's, in one aspect.

    Attributes:
        counts: by status, of the answers (all seeds).
        prompts: with a rating of these answers and of the base model's; all below is of these.
        mean: rating of the answers; None without prompts.
        base_mean: of the base model's.
        percent: 100 (mean / base_mean - 1).
    """

    counts: dict[str, int]
    prompts: int
    mean: float | None = None
    base_mean: float | None = None
    percent: Estimate | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "percent": Estimate.from_json(value["percent"])})


@dataclass(frozen=True)
class Wins:
    """Answers against the base model's, each pair judged in both orders.

    A verdict for the same answer in both orders is a win or a loss; two ties, or verdicts that
    follow the order, are a tie; a tie in one order counts half.

    Attributes:
        counts: of prompts (all seeds): win, half_win, tie, half_loss, loss, identical, left_out.
        by_order: of the ties, those in which the verdict went with the place of the answer.
        rate: mean score in percent, 100 for a win, 50 for a tie; None without a judged prompt.
    """

    counts: dict[str, int]
    by_order: int
    rate: Estimate | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "rate": Estimate.from_json(value["rate"])})


def improvement(ratings: Sequence[Mapping[str, Rating]], base: Mapping[str, Rating]) -> Improvement:
    """The improvement over the base model in one aspect.

    The interval is from resampled prompts, each with the base model's rating of the same prompt
    (a paired bootstrap, percentiles). Ratings of one prompt from several seeds are averaged first.

    Args:
        ratings: by prompt, one mapping a seed.
        base: by prompt.
    """
    counts: Counter[str] = Counter(rating.status for each in ratings for rating in each.values())
    pairs = []
    for prompt, reference in base.items():
        values = [
            rating.value
            for each in ratings
            if (rating := each.get(prompt)) is not None and rating.value is not None
        ]
        if values and reference.value is not None:
            pairs.append((sum(values) / len(values), reference.value))
    if not pairs:
        return Improvement(dict(counts), 0)
    rated, references = np.array(pairs).T

    def percent(rows: Array, base_rows: Array) -> Array:
        return np.asarray(100 * (rows.mean(axis=-1) / base_rows.mean(axis=-1) - 1))

    return Improvement(
        dict(counts),
        len(pairs),
        float(rated.mean()),
        float(references.mean()),
        bootstrap(percent, rated, references),
    )


# What a pair of verdicts is worth: the first with the method's answer as A, the second as B.
_SCORES: dict[tuple[Side, Side], tuple[str, float]] = {
    ("A", "B"): ("win", 1.0),
    ("A", "tie"): ("half_win", 0.75),
    ("tie", "B"): ("half_win", 0.75),
    ("tie", "tie"): ("tie", 0.5),
    ("A", "A"): ("tie", 0.5),
    ("B", "B"): ("tie", 0.5),
    ("B", "tie"): ("half_loss", 0.25),
    ("tie", "A"): ("half_loss", 0.25),
    ("B", "A"): ("loss", 0.0),
}


def wins(verdicts: Sequence[Mapping[str, tuple[Side | None, Side | None] | None]]) -> Wins:
    """The win rate over the base model, free of the judge's liking for a place.

    Args:
        verdicts: by prompt, one mapping a seed: the verdict with the method's answer as A and
            that with it as B; None for two answers that are the same, which nobody was asked about.
    """
    counts: Counter[str] = Counter()
    by_order = 0
    scores: dict[str, list[float]] = {}
    for each in verdicts:
        for prompt, pair in each.items():
            if pair is None:
                name, score = "identical", 0.5
            else:
                first, second = pair
                if first is None or second is None:
                    counts["left_out"] += 1
                    continue
                name, score = _SCORES[first, second]
                by_order += first == second != "tie"
            counts[name] += 1
            scores.setdefault(prompt, []).append(score)
    if not scores:
        return Wins(dict(counts), by_order)
    values = np.array([sum(each) / len(each) for each in scores.values()])
    rate = bootstrap(lambda rows: np.asarray(100 * rows.mean(axis=-1)), values)
    return Wins(dict(counts), by_order, rate)


def bootstrap(statistic: Callable[..., Array], *samples: Array, seed: int = 0) -> Estimate:
    """A statistic of paired samples with the percentile interval of resampled pairs.

    Args:
        statistic: of arrays whose last axis is that of the pairs.
        samples: of one length n.
    """
    n = len(samples[0])
    value = float(statistic(*samples))
    if n < 2:
        return Estimate(value, None)
    rows = np.random.default_rng(seed).integers(n, size=(_RESAMPLES, n))
    drawn = statistic(*(sample[rows] for sample in samples))
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, (float(low), float(high)))


@dataclass(frozen=True)
class Row:
    """One preference of one method, all its seeds together."""

    title: str
    preference: dict[str, float]
    folders: tuple[str, ...]
    aspects: dict[str, Improvement]
    wins: Wins | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        aspects = {name: Improvement.from_json(of) for name, of in value["aspects"].items()}
        won = None if value["wins"] is None else Wins.from_json(value["wins"])
        folders = tuple(value["folders"])
        return cls(**{**value, "folders": folders, "aspects": aspects, "wins": won})


@dataclass(frozen=True)
class Summary:
    """What one judge makes of a run.

    Attributes:
        judge: model, address and settings.
        counts: by status, of all distinct questions; they add up to `questions`.
        asked: how many of them were put to the judge this time, the others being kept replies.
        tokens: as far as the judge counted them, of all replies: input, output.
        cost: of these tokens at the prices given; None without prices.
        failures: reasons with their counts, most frequent first.
        base: by aspect, counts by status and mean rating of the base model's answers.
        rows: in the recipe's order.
    """

    judge: dict[str, Any]
    aspects: tuple[str, ...]
    prompts: int
    questions: int
    counts: dict[str, int]
    asked: int
    tokens: dict[str, int]
    cost: float | None
    failures: dict[str, int]
    base: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]

    @property
    def model(self) -> str:
        return str(self.judge["model"])

    @property
    def pairs(self) -> bool:
        """Whether pairs were judged."""
        return any(row.wins is not None for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError: it is of another version.
        """
        rows = tuple(Row.from_json(row) for row in value["rows"])
        return cls(**{**value, "aspects": tuple(value["aspects"]), "rows": rows})


def base_summary(ratings: Mapping[str, Mapping[str, Rating]]) -> dict[str, dict[str, Any]]:
    """Counts by status and mean rating of the base model's answers, by aspect."""
    result = {}
    for aspect, each in ratings.items():
        values = [rating.value for rating in each.values() if rating.value is not None]
        result[aspect] = {
            "counts": dict(Counter(rating.status for rating in each.values())),
            "mean": sum(values) / len(values) if values else None,
        }
    return result


def most_frequent(reasons: Iterable[str]) -> dict[str, int]:
    """Reasons with their counts, most frequent first."""
    return dict(Counter(reasons).most_common())
