"""Exact minimisation of a convex quadratic over the probability simplex.

This is the subproblem of CLAMP (Eq. 6), MGDA and their relatives. General solvers meet it with
absolute tolerances or refuse singular matrices; here every comparison is relative to the terms
that were added up, and each answer carries its optimality gap.

Importing this module does not load torch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.errors import InputError

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array")

MAX_SIZE = 16
_EPS = float(np.finfo(np.float64).eps)
# How far a Gramian accumulated in float32 can be from symmetric or semi-definite, relative to
# the norms of its gradients.
_SYMMETRY_TOLERANCE = 1e-4
_PSD_TOLERANCE = 1e-3
_SMALL = 1e-100  # sizes from which on no product of a few overflows or vanishes


@dataclass(frozen=True)
class QPSolution(Generic[Array]):
    """The minimiser of xᵀPx + qᵀx over the simplex, with its certificate.

    Attributes:
        x: the minimiser, shape (M,), float64, at least 0, sums to 1.
        gap: Frank-Wolfe gap divided by the size of the terms, (xᵀg - min g) / (xᵀ|P|x + |q|ᵀx)
            with g = 2Px + q. Scale-free; for positive semi-definite P the numerator bounds how
            far the objective is above its minimum. 0 is exact, 1 is useless.
        value: xᵀPx + qᵀx.
    """

    x: Array
    gap: float
    value: float


@overload
def simplex_qp(P: torch.Tensor, q: torch.Tensor) -> QPSolution[torch.Tensor]: ...
@overload
def simplex_qp(P: ArrayLike, q: ArrayLike) -> QPSolution[NDArray[np.float64]]: ...
def simplex_qp(P: Any, q: Any) -> QPSolution[Any]:
    """Minimise xᵀPx + qᵀx subject to x >= 0, sum(x) = 1, exactly.

    M = 2 has a closed form; larger M uses an active-set method that moves from one face of the
    simplex to the next, strictly downhill, and stops at a point that satisfies the optimality
    conditions of P as given. When several x are optimal, the one closest to uniform is returned.

    Args:
        P: symmetric positive semi-definite up to rounding, shape (M, M), 1 <= M <= 16;
            it may be singular or badly scaled.
        q: shape (M,).

    Returns:
        QPSolution, its x a torch tensor (on the CPU) if P is one, otherwise a numpy array.

    Raises:
        InputError: wrong shape, NaN or infinity, P not symmetric or not positive semi-definite
            beyond rounding.

    >>> simplex_qp([[1.0, 0.0], [0.0, 3.0]], [0.0, 0.0]).x
    array([0.75, 0.25])
    """
    rows, linear = read_floats(P, "P"), read_floats(q, "q")
    check_qp(rows, linear)
    x, gap, value = solve_simplex_qp(rows, linear)
    if isinstance(P, np.ndarray | Sequence):
        return QPSolution(np.array(x), gap, value)
    import torch

    return QPSolution(torch.tensor(x, dtype=torch.float64), gap, value)


Rows = list[list[float]]
Vector = list[float]


def read_floats(array: Any, name: str) -> Any:
    """A torch tensor, numpy array or nested sequence as nested lists of floats."""
    if hasattr(array, "detach"):
        return array.tolist() if array.is_floating_point() else array.double().tolist()
    try:
        return np.asarray(array, dtype=np.float64).tolist()
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of real numbers.") from None


def check_qp(P: Any, q: Any, names: tuple[str, str] = ("P", "q")) -> None:
    """Raise InputError unless P is (M, M), symmetric PSD up to rounding, q is (M,), all finite."""
    matrix, vector = names
    size = len(P) if isinstance(P, list) else 0
    square = all(isinstance(row, list) and len(row) == size for row in P) if size else False
    if not 1 <= size <= MAX_SIZE or not square or isinstance(P[0][0], list):
        raise InputError(f"{matrix} must have shape (M, M) with 1 <= M <= {MAX_SIZE}.")
    if not isinstance(q, list) or len(q) != size or isinstance(q[0], list):
        raise InputError(f"{vector} must have shape ({size},) to match {matrix}.")
    for i, row in enumerate(P):
        if not math.isfinite(q[i]):
            raise InputError(f"{vector}[{i}] is {q[i]}; every entry must be finite.")
        for j, entry in enumerate(row):
            if not math.isfinite(entry):
                raise InputError(f"{matrix}[{i}, {j}] is {entry}; every entry must be finite.")
    _check_psd(P, matrix)


def _check_psd(P: Rows, name: str) -> None:
    if len(P) == 2 and P[0][1] == P[1][0] and min(P[0][0], P[1][1]) > 0:
        (a, b), (_, c) = P
        if (b / a) * (b / c) <= 1:
            return
    largest = max([abs(entry) for row in P for entry in row])
    # Tolerances are relative to the gradients' norms; the floor admits rounding in zero rows.
    floor = max(1e-12 * largest, sys.float_info.min)
    squares = [max(row[i], floor) for i, row in enumerate(P)]
    lower: list[Vector] = []
    pivots: Vector = []
    for i, row in enumerate(P):
        entries: Vector = []
        pivot = row[i] + _PSD_TOLERANCE * squares[i]
        for j in range(i):
            entry = row[j]
            if abs(entry - P[j][i]) > _SYMMETRY_TOLERANCE * math.sqrt(squares[i] * squares[j]):
                raise InputError(
                    f"{name} is not symmetric: entry [{i}, {j}] is {entry} "
                    f"and entry [{j}, {i}] is {P[j][i]}."
                )
            for k in range(j):
                entry -= entries[k] * lower[j][k] * pivots[k]
            entry /= pivots[j]
            entries.append(entry)
            pivot -= entry * entry * pivots[j]
        if pivot < 0 or row[i] < -_PSD_TOLERANCE * squares[i]:
            raise InputError(f"{name} is not positive semi-definite, not even up to rounding.")
        pivots.append(max(pivot, sys.float_info.min))
        lower.append(entries)


def solve_simplex_qp(P: Rows, q: Vector) -> tuple[Vector, float, float]:
    """`simplex_qp` on checked lists of floats: (x, gap, value).

    Raises InputError where an entry is NaN or infinite: products of finite ones may overflow.
    """
    size = len(q)
    if size == 2 and (found := _two_at_once(P, q)) is not None:
        return found
    entries = [abs(entry) for row in (*P, q) for entry in row]
    if not all(map(math.isfinite, entries)):
        raise InputError("The quadratic program's terms overflow: rescale gradients and losses.")
    largest = max(entries)
    # A power of two: scaling by it rounds nothing, and no product can overflow afterwards.
    scale = math.ldexp(1.0, min(1000, -math.frexp(largest)[1])) if largest > 0 else 1.0
    half = 0.5 * scale
    P = [[half * P[i][j] + half * P[j][i] for j in range(size)] for i in range(size)]
    q = [scale * entry for entry in q]
    if size == 1:
        x = [1.0]
    elif size == 2:
        x = _two(P, q)
    else:
        x = _break_ties(P, q, _active_set(P, q))
    x, gradient, terms = _round_upwards(P, q, x)
    slope = sum([xi * gi for xi, gi in zip(x, gradient, strict=True)])
    constant = sum([xi * qi for xi, qi in zip(x, q, strict=True)])
    gap = (slope - min(gradient)) / terms if terms > 0 else 0.0
    return x, max(0.0, gap), 0.5 * (slope + constant) / scale


def _gradient(P: Rows, q: Vector, x: Vector) -> tuple[Vector, Vector]:
    """2Px + q, and the sum of the absolute values added up for each entry."""
    gradient, terms = [], []
    used = [(j, 2 * xj) for j, xj in enumerate(x) if xj > 0]
    for row, entry in zip(P, q, strict=True):
        total, size = entry, abs(entry)
        for j, weight in used:
            term = row[j] * weight
            total += term
            size += abs(term)
        gradient.append(total)
        terms.append(size)
    return gradient, terms


def _two(P: Rows, q: Vector) -> Vector:
    """Closed form for M = 2: the stationary point of the segment, clipped to its ends."""
    (a, b), (_, c) = P
    half = 0.5 * (q[1] - q[0])
    first, second = c - b + half, a - b - half  # proportional to x[0] and x[1]
    noise = 4 * _EPS * (abs(a) + 2 * abs(b) + abs(c) + abs(half))
    if abs(first) <= noise and abs(second) <= noise:
        return [0.5, 0.5]
    if first > 0 and second > 0:
        return [first / (first + second), second / (first + second)]
    return [1.0, 0.0] if first > second else [0.0, 1.0]


def _two_at_once(P: Rows, q: Vector) -> tuple[Vector, float, float] | None:
    """`solve_simplex_qp` for M = 2 of ordinary size, without its loops; None elsewhere."""
    (a, b), (other, c) = P
    first, second = q
    largest = max(abs(a), abs(b), abs(c), abs(first), abs(second))
    if b != other or not _SMALL < largest < 1 / _SMALL:
        return None
    x, y = _two(P, q)
    left, middle, right = 2 * x * a, 2 * b, 2 * y * c
    one, two = left + middle * y + first, middle * x + right + second
    size, more = abs(left) + abs(middle * y), abs(middle * x) + abs(right)
    size, more = size + abs(first), more + abs(second)
    level, noise = x * one + y * two, x * size + y * more
    below = 32 * _EPS * noise - level
    if (x > 0 and 2 * _EPS * size - one > below) or (y > 0 and 2 * _EPS * more - two > below):
        return None  # where rounding matters
    terms = 0.5 * (noise + x * abs(first) + y * abs(second))
    gap = (level - min(one, two)) / terms if terms > 0 else 0.0
    linear = x * first + y * second
    return [x, y], max(0.0, gap), 0.5 * (level + linear)


def _active_set(P: Rows, q: Vector) -> Vector:
    """A point of the simplex that satisfies the optimality conditions up to rounding.

    The support always has a unique minimiser of its own face, and x is that minimiser. One index
    with a smaller gradient enters; x moves to the minimiser of the larger face, or along a
    direction without curvature, and indices that reach zero on the way leave.
    """
    size = len(q)
    start = min(range(size), key=lambda i: P[i][i] + q[i])
    x = [0.0] * size
    x[start] = 1.0
    support = [start]
    refused: set[int] = set()  # entered and left without a step: optimal up to rounding
    for _ in range(50 * size):
        gradient, terms = _gradient(P, q, x)
        level = noise = 0.0
        for i in support:
            level += x[i] * gradient[i]
            noise += x[i] * terms[i]
        entering, steepest = -1, 0.0
        for i in range(size):
            drop = level - gradient[i]
            outside = i not in support and i not in refused
            if outside and drop > steepest and drop > 4 * _EPS * (terms[i] + noise):
                entering, steepest = i, drop
        if entering < 0:
            break
        support.append(entering)
        before = list(x)
        _descend(P, q, x, support)
        refused = refused | {entering} if x == before else set()
    return x


def _descend(P: Rows, q: Vector, x: Vector, support: list[int]) -> None:
    """Move x to the minimiser of a face within the support, shrinking the support on the way."""
    while True:
        target, curved = _face(P, q, support)
        if curved and min(target.values()) > 0:
            for i, value in target.items():
                x[i] = value
            return
        if curved:
            direction = {i: target[i] - x[i] for i in support}
        else:
            gradient, _ = _gradient(P, q, x)
            uphill = sum(gradient[i] * d for i, d in target.items()) > 0
            direction = {i: -d if uphill else d for i, d in target.items()}
        ratios = {i: x[i] / -d for i, d in direction.items() if d < 0}
        step = min(ratios.values(), default=1.0)
        for i, d in direction.items():
            x[i] += step * d
            if x[i] <= 0 or ratios.get(i) == step:
                x[i] = 0.0
                support.remove(i)


def _face(P: Rows, q: Vector, support: list[int]) -> tuple[dict[int, float], bool]:
    """The minimiser of the face spanned by the support, and True; or, where the face has a
    direction along which P does not curve upwards, that direction (summing to 0), and False.

    The coordinate of smallest P[i, i] is eliminated, so that the differences formed here cancel
    only where gradients really are alike. The rest is an LDLᵀ factorisation, which needs no
    scaling.
    """
    base = min(support, key=lambda i: P[i][i])
    others = [i for i in support if i != base]
    corner = P[base][base]
    lower: list[Vector] = []
    pivots: Vector = []
    forward: Vector = []
    for n, i in enumerate(others):
        row = P[i]
        shift = corner - row[base]
        entries: Vector = []
        pivot = row[i] - row[base] + shift
        size = abs(row[i]) + 2 * abs(row[base]) + corner
        right = shift + 0.5 * (q[base] - q[i])
        for k in range(n):
            j = others[k]
            other = lower[k]
            entry = row[j] - P[base][j] + shift
            for m in range(k):
                entry -= entries[m] * other[m] * pivots[m]
            entry /= pivots[k]
            entries.append(entry)
            pivot -= entry * entry * pivots[k]
            right -= entry * forward[k]
        if pivot <= 8 * _EPS * size:
            flat = _solve_upper(lower, [-entry for entry in entries])
            direction = dict.fromkeys(support, 0.0)
            direction.update(zip(others, [*flat, 1.0], strict=False))
            direction[base] = -1.0 - sum(flat)
            return direction, False
        lower.append(entries)
        pivots.append(pivot)
        forward.append(right)
    solution = _solve_upper(lower, [f / d for f, d in zip(forward, pivots, strict=True)])
    point = dict(zip(others, solution, strict=True))
    point[base] = 1.0 - sum(solution)
    return point, True


def _solve_upper(lower: list[Vector], right: Vector) -> Vector:
    """Solve Lᵀt = right for unit lower triangular L given by its rows below the diagonal."""
    solution = list(right)
    for n in reversed(range(len(right))):
        for k in range(n):
            solution[k] -= lower[n][k] * solution[n]
    return solution


def _round_upwards(P: Rows, q: Vector, x: Vector) -> tuple[Vector, Vector, float]:
    """Move entries of x up by a few units in the last place where rounding matters.

    When P[i, i] is large beside the rest, x[i] rounded down leaves gradient[i] visibly below the
    others, and the gap counts that in full; rounded up, the excess counts only times x[i].
    Returns x, its gradient, and xᵀ|P|x + |q|ᵀx.
    """
    x = list(x)
    for left in reversed(range(4 * len(x))):
        gradient, terms = _gradient(P, q, x)
        level = size = linear = 0.0
        for xi, gi, ti, qi in zip(x, gradient, terms, q, strict=True):
            level += xi * gi
            size += xi * ti
            linear += xi * abs(qi)
        shortfall, i = max(
            [(level - gradient[i] + 2 * _EPS * terms[i], i) for i, xi in enumerate(x) if xi > 0]
        )
        if shortfall <= 32 * _EPS * size or P[i][i] <= 0 or not left:
            break
        x[i] += min((shortfall + 2 * _EPS * terms[i]) / (2 * P[i][i]), 0.5 * _EPS)
    return x, gradient, 0.5 * (size + linear)


def _break_ties(P: Rows, q: Vector, x: Vector) -> Vector:
    """The optimal point closest to uniform, given one optimal point.

    All minimisers share P x, and lie on the face where the gradient is smallest. Theirs is a
    convex set, usually one point. The projection is found by the method of multipliers on
    min |y|² s.t. R y = R x, whose subproblems are again strictly convex simplex problems.
    """
    gradient, terms = _gradient(P, q, x)
    level = min(gradient)
    face = [i for i, g in enumerate(gradient) if x[i] > 0 or g - level <= 64 * _EPS * terms[i]]
    if all(x[i] > 0 for i in face):
        return x
    matrix = np.array([[P[i][j] for j in face] for i in face])
    norms = np.sqrt(np.where(np.diag(matrix) > 0, np.diag(matrix), 1.0))
    eigenvalues, vectors = np.linalg.eigh(matrix / np.outer(norms, norms))
    curved = vectors[:, eigenvalues > 64 * _EPS * len(face)]
    R = np.linalg.qr(curved * norms[:, None])[0].T
    right = R @ np.array([x[i] for i in face])
    multipliers = np.zeros(len(R))
    weight = 1e4
    H = (np.eye(len(face)) + weight * R.T @ R).tolist()
    for _ in range(8):
        linear = R.T @ (multipliers - 2 * weight * right)
        point = np.array(_active_set(H, linear.tolist()))
        residual = R @ point - right
        multipliers += 2 * weight * residual
        if np.abs(residual).max(initial=0.0) <= _EPS:
            break
    point[point < 1e-13] = 0.0
    closest = [0.0] * len(x)
    for i, yi in zip(face, (point / point.sum()).tolist(), strict=True):
        closest[i] = yi
    gradient, terms = _gradient(P, q, closest)
    excess = sum(yi * gi for yi, gi in zip(closest, gradient, strict=True)) - min(gradient)
    size = sum(yi * ti for yi, ti in zip(closest, terms, strict=True))
    return closest if excess <= 1e-13 * size else x
