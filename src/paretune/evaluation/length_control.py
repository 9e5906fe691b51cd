"""The length-controlled win rate of AlpacaEval 2.0.

A logistic model of the judge's preference for the model's output over the baseline's,

    P(m wins on i) = σ(φ tanh(Δ_i / sd(Δ)) + ψ γ_i + θ),

with Δ_i the length of the baseline's output minus that of m's and γ_i the difficulty of instruction
i, is fitted to the preferences; the win rate is its mean with the term of the lengths left out
(Dubois et al., Length-Controlled AlpacaEval, 2024, Section 3). As `alpaca_eval` fits it:
minimise C Σ_i w_i loss_i + ‖b‖₁, with C chosen among ten by the mean loss of five folds; of a table
of gamed baselines (the baseline told to be concise or verbose, for which θ is absent) every row
joins in with weight 0.1.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paretune.errors import InputError
from paretune.evaluation.alpaca_eval import Annotation
from paretune.results.spread import Spread

Array = NDArray[np.float64]
Formula = Literal["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"]

_GAMED_WEIGHT = 0.2 / 2  # two gamed baselines share 0.2
_STRENGTHS = np.logspace(-4, 4, 10)
_FOLDS = 5


@dataclass(frozen=True)
class Gamed:
    """The gamed baselines' rows of `alpaca_eval`'s table ``df_gamed.csv``.

    Attributes:
        lengths: Δ in standard deviations, (n,).
        difficulty: γ, (n,).
        preference: of the judge for them, in [0, 1], (n,).
        difficulties: γ by instruction, 0 to 804.
    """

    lengths: Array
    difficulty: Array
    preference: Array
    difficulties: dict[int, float]


@dataclass(frozen=True)
class LengthControlled:
    """The length-controlled win rate in percent.

    Attributes:
        standard_error: of the predictions' mean; NaN for a single one.
        formula: what `alpaca_eval` calls this model.
        coefficients: φ of the length, ψ of the difficulty (None without difficulties), θ.
    """

    win_rate: float
    standard_error: float
    formula: Formula
    length: float
    difficulty: float | None
    model: float


def read_gamed(path: Path) -> Gamed:
    """Read ``df_gamed.csv``; rows without a preference serve for the difficulties alone.

    Raises:
        InputError: the file is missing, lacks a column, or a number in a row with a preference.
    """
    columns = ("index", "std_delta_len", "instruction_difficulty", "preference")
    rows = _table(path, columns)
    difficulties: dict[int, float] = {}
    for index, _, difficulty, _ in rows:
        difficulties.setdefault(int(index), difficulty)
    judged = np.array([row[1:] for row in rows if not np.isnan(row[3])]).reshape(-1, 3)
    if not np.isfinite(judged).all():
        raise InputError(
            f"'{path}' has a row with a preference, but without a length or a difficulty."
        )
    return Gamed(judged[:, 0], judged[:, 1], judged[:, 2], difficulties)


def read_difficulties(path: Path) -> dict[int, float]:
    """Read ``instruction_difficulty.csv``: γ in the second column by instruction in the first.

    Raises:
        InputError: the file is missing, or is something else.
    """
    return {int(index): value for index, value in _table(path)}


def length_controlled(
    annotations: Sequence[Annotation],
    *,
    gamed: Gamed | None = None,
    difficulties: Mapping[int, float] | None = None,
) -> LengthControlled:
    """The length-controlled win rate, by `alpaca_eval`'s model that fits what is given.

    Args:
        gamed: gives ``length_controlled_v1``, that of the leaderboard.
        difficulties: gives ``length_controlled_noreg``; with neither it is
            ``length_controlled_minimal``, which knows no difficulties.

    Raises:
        InputError: fewer than five verdicts, or an instruction without a difficulty.
    """
    if gamed is not None:
        difficulties = gamed.difficulties
    formula: Formula = (
        "length_controlled_v1"
        if gamed is not None
        else "length_controlled_minimal"
        if difficulties is None
        else "length_controlled_noreg"
    )
    known = 0.0 if difficulties is None else None
    if annotations[0].generator_1 == annotations[0].generator_2:  # the baseline against itself
        return LengthControlled(50.0, 0.0, formula, 0.0, known, 0.0)
    features = np.stack(
        [_lengths(annotations), _difficulty(annotations, difficulties), np.ones(len(annotations))],
        axis=1,
    )
    judged = np.array([annotation.preference is not None for annotation in annotations])
    targets = np.array([a.preference - 1 for a in annotations if a.preference is not None])
    rows, weights = features[judged], np.ones(len(targets))
    if gamed is not None:
        theirs = np.stack([gamed.lengths, gamed.difficulty, np.zeros(len(gamed.lengths))], axis=1)
        theirs[:, 0] = np.tanh(theirs[:, 0])
        rows = np.concatenate([theirs, rows])
        weights = np.concatenate([np.full(len(theirs), _GAMED_WEIGHT), weights])
        targets = np.concatenate([gamed.preference, targets])
    if len(targets) < _FOLDS:
        raise InputError(f"A length-controlled win rate needs {_FOLDS} verdicts or more.")
    used = [0, 2] if difficulties is None else [0, 1, 2]
    fitted = np.zeros(3)
    fitted[used] = _fit(rows[:, used], targets, weights)
    features[:, 0] = 0.0
    predicted = Spread.of(_probability(features @ fitted).tolist())
    assert predicted is not None  # there are verdicts
    mean, error = predicted.mean, predicted.standard_error
    length, difficulty, model = fitted.tolist()
    known = None if difficulties is None else difficulty
    return LengthControlled(100 * mean, 100 * error, formula, length, known, model)


def _lengths(annotations: Sequence[Annotation]) -> Array:
    """tanh of the baseline's length minus the model's, in standard deviations."""
    lengths = np.array([len(a.output_1) - len(a.output_2) for a in annotations], dtype=np.float64)
    spread = lengths.std(ddof=1) if len(lengths) > 1 else 0.0
    if spread == 0:
        raise InputError("All outputs differ from the baseline's by the same length: give more.")
    return np.asarray(np.tanh(lengths / spread))


def _difficulty(
    annotations: Sequence[Annotation], difficulties: Mapping[int, float] | None
) -> Array:
    if difficulties is None:
        return np.zeros(len(annotations))
    missing = [a.index for a in annotations if not math.isfinite(difficulties.get(a.index, np.nan))]
    if missing:
        raise InputError(f"The table of difficulties has none for instruction {missing[0]}.")
    return np.array([difficulties[annotation.index] for annotation in annotations])


def _fit(rows: Array, targets: Array, weights: Array) -> Array:
    """Coefficients with the C of least mean loss over the folds.

    Row r of n is in fold (n − 1 − r) mod 5: so scikit-learn's `GroupKFold` divides groups of equal
    size.
    """
    fold = (len(targets) - 1 - np.arange(len(targets))) % _FOLDS
    losses = np.zeros(len(_STRENGTHS))
    for number in range(_FOLDS):
        seen, held = fold != number, fold == number
        for place, strength in enumerate(_STRENGTHS):
            fitted = fit_l1_logistic(rows[seen], targets[seen], weights[seen] * strength)
            found = np.clip(_probability(rows[held] @ fitted), 1e-15, 1 - 1e-15)
            loss = targets[held] * np.log(found) + (1 - targets[held]) * np.log(1 - found)
            losses[place] -= (loss * weights[held]).mean()
    return fit_l1_logistic(rows, targets, weights * _STRENGTHS[losses.argmin()])


def fit_l1_logistic(rows: Array, targets: Array, weights: Array) -> Array:
    """The minimiser b of ``Σ_i w_i (log(1 + exp(x_i·b)) − t_i x_i·b) + ‖b‖₁``.

    Proximal Newton steps: the quadratic model with ‖·‖₁ is minimised by coordinate descent, and
    the step is halved until it makes the objective fall. Ends where the optimality conditions
    hold to 1e-9 of Σ_i w_i |x_ij|, or no step helps any more.

    Args:
        rows: (n, d), d small.
        targets: (n,), in [0, 1].
        weights: (n,), not negative.
    """

    def value(b: Array) -> float:
        scores = rows @ b
        return float(weights @ (np.logaddexp(0, scores) - targets * scores) + np.abs(b).sum())

    scale = weights @ np.abs(rows)
    b = np.zeros(rows.shape[1])
    for _ in range(100):
        found = _probability(rows @ b)
        slope = (weights * (found - targets)) @ rows
        at_zero = np.maximum(np.abs(slope) - 1, 0)
        if (np.where(b == 0, at_zero, np.abs(slope + np.sign(b))) <= 1e-9 * scale).all():
            break
        curvature = (rows.T * (weights * found * (1 - found))) @ rows
        step = _quadratic_step(b, slope, curvature)
        now, share = value(b), 1.0
        while value(b + share * step) > now and share > 1e-12:
            share /= 2
        if share <= 1e-12:
            break
        b = b + share * step
    return b


def _quadratic_step(b: Array, slope: Array, curvature: Array) -> Array:
    """The minimiser d of ``slope·d + dᵀ curvature d / 2 + ‖b + d‖₁``."""
    step = np.zeros_like(b)
    for _ in range(1000):
        before = step.copy()
        for j in range(len(b)):
            if curvature[j, j] <= 0:
                continue
            # Where the derivative without the norm would vanish, drawn towards zero by the norm.
            free = slope[j] + curvature[j] @ step - curvature[j, j] * step[j]
            target = b[j] - free / curvature[j, j]
            shrunk = np.sign(target) * max(abs(target) - 1 / curvature[j, j], 0)
            step[j] = shrunk - b[j]
        if np.abs(step - before).max() <= 1e-12 * max(np.abs(step).max(), 1e-300):
            break
    return step


def _probability(scores: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -scores)))


def _table(path: Path, columns: Sequence[str] = ()) -> list[list[float]]:
    """The named columns of a CSV file, or the first two, as numbers; an empty cell is NaN."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            found = list(reader.fieldnames or ())
            lacking = [name for name in columns if name not in found]
            if lacking:
                raise InputError(f"'{path}' has no column '{lacking[0]}'.")
            if len(found) < 2:
                raise InputError(f"'{path}' is not a table: its first line names no two columns.")
            names = list(columns) or found[:2]
            rows = [[float(row[name] or "nan") for name in names] for row in reader]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"'{path}' holds something that is no number ({error}).") from error
    for number, row in enumerate(rows, start=1):
        if not row[0].is_integer():
            raise InputError(f"'{path}', row {number} has no number of an instruction: {row[0]}.")
    return rows
