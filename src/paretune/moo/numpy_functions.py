"""Problems whose functions are numpy's, or anybody's: derivatives by finite differences."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.problem import Problem

Array = NDArray[np.float64]
Part = Literal["objectives", "constraints", "inequalities"]
Evaluate = Callable[[Array], Any]

_PARTS = ("objectives", "constraints", "inequalities")
_KEPT = 8  # points whose values and derivatives are kept


def black_box(
    evaluate: Evaluate,
    returns: Sequence[Part] = ("objectives",),
    *,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    jacobian: Evaluate | None = None,
    scheme: Literal["central", "forward"] = "central",
    step: float | None = None,
    vectorized: bool = False,
    map: Callable[[Evaluate, Iterable[Array]], Iterable[Any]] | None = None,
) -> Problem:
    """A `Problem` made of one function on numpy arrays.

    Values and derivatives at a point are computed once, whatever is asked of it. Without
    `jacobian` derivatives are differences: 2 n calls for a gradient of everything at a point of n
    variables ("central"), or n ("forward", of which half the digits are right: give `minimize` a
    tol of 1e-6 or more). Calls are counted in `problem.objectives.calls`.

    Args:
        evaluate: x, shape (n,), float64 -> the values of `returns`: an array, or a tuple of them.
        returns: what they are: "objectives" (M,), "constraints" (q,), which are to be 0, and
            "inequalities" (r,), which are to be at most 0.
        bounds: (lower, upper), each a number or shape (n,). Differences stay within them.
        jacobian: x -> derivatives of the same values, shapes (M, n), …
        scheme: of the differences.
        step: their length, times max(1, |x_j|); by default 6e-6 (central) or 1.5e-8 (forward). A
            function with noise needs a longer one.
        vectorized: whether `evaluate` takes points (k, n) and returns arrays (k, M), …: the points
            of the differences are then one call.
        map: such as the `map` of a process pool, to compute the points of the differences at the
            same time.

    Raises InputError for options that do not fit, later for values of a wrong shape.

    >>> problem = black_box(lambda x: [(x[0] - 1) ** 2 + 1, (x[0] + 1) ** 2 + 1])
    >>> from paretune.moo import minimize
    >>> abs(round(float(minimize(problem, [0.5, 0.5], x0=[0.3], tol=1e-6).x), 3))
    0.0
    """
    parts = tuple(returns)
    if "objectives" not in parts or len(set(parts)) < len(parts) or set(parts) - set(_PARTS):
        raise InputError(
            "returns must name 'objectives' and may name 'constraints' and 'inequalities', each "
            f"once; got {parts}."
        )
    if scheme not in ("central", "forward"):
        raise InputError(f"scheme must be 'central' or 'forward', got {scheme!r}.")
    if step is not None and not (math.isfinite(step) and step > 0):
        raise InputError(f"step must be finite and above 0, got {step}.")
    limits = None
    if bounds is not None:
        limits = tuple(np.asarray(bound, dtype=np.float64) for bound in bounds)
    box = _Box(evaluate, parts, limits, jacobian, scheme, step, vectorized, map)
    functions: dict[str, Any] = {part: _Function(box, part) for part in parts}
    if limits is not None:
        functions["bounds"] = tuple(torch.from_numpy(bound) for bound in limits)
    return Problem(**functions)


class _Box:
    """The function with its last values and derivatives."""

    def __init__(
        self,
        evaluate: Evaluate,
        parts: tuple[str, ...],
        bounds: Any,
        jacobian: Evaluate | None,
        scheme: str,
        step: float | None,
        vectorized: bool,
        mapped: Callable[..., Iterable[Any]] | None,
    ) -> None:
        self.evaluate, self.parts, self.bounds, self.given = evaluate, parts, bounds, jacobian
        self.central, self.vectorized, self.mapped = scheme == "central", vectorized, mapped
        eps = float(np.finfo(np.float64).eps)
        self.step = step or (eps ** (1 / 3) if self.central else eps**0.5)
        self.calls = 0
        self._lock = threading.Lock()
        self._values: dict[bytes, list[Array]] = {}
        self._slopes: dict[bytes, list[Array]] = {}

    def values(self, x: Array) -> list[Array]:
        """The values of each part."""
        return self._once(self._values, x, lambda: self._evaluate([x])[0])

    def slopes(self, x: Array) -> list[Array]:
        """The Jacobian of each part, shape (its size, n)."""
        return self._once(self._slopes, x, lambda: self._differentiate(x))

    def _once(
        self, kept: dict[bytes, list[Array]], x: Array, compute: Callable[[], list[Array]]
    ) -> list[Array]:
        key = x.tobytes()
        found = kept.get(key)
        if found is None:
            found = compute()
            with self._lock:
                kept[key] = found
                while len(kept) > _KEPT:
                    del kept[next(iter(kept))]
        return found

    def _evaluate(self, points: Sequence[Array]) -> list[list[Array]]:
        with self._lock:
            self.calls += len(points)
        if self.vectorized:
            values = self._split(self.evaluate(np.stack(points)), 2, len(points))
            return [[part[k] for part in values] for k in range(len(points))]
        apply = map if self.mapped is None or len(points) == 1 else self.mapped
        # Copies: a function may change x, or return one and the same array each time.
        copies = [point.copy() for point in points]
        return [self._split(found, 1, 0) for found in apply(self.evaluate, copies)]

    def _split(self, found: Any, dim: int, rows: int) -> list[Array]:
        wanted = f"evaluate(x) must return {len(self.parts)} arrays of numbers: {self.parts}"
        try:
            values = [found] if len(self.parts) == 1 else list(found)
            arrays = [np.array(value, dtype=np.float64) for value in values]
        except (TypeError, ValueError):
            raise InputError(f"{wanted}, got {found!r}.") from None
        if len(values) != len(self.parts):
            raise InputError(f"{wanted}, got {len(values)}.")
        for part, array in zip(self.parts, arrays, strict=True):
            if array.ndim != dim or array.size == 0 or (rows and len(array) != rows):
                shape = f"({rows}, …)" if rows else "(…,)"
                raise InputError(
                    f"evaluate(x) must return {part} of shape {shape}, got {array.shape}."
                )
        return arrays

    def _differentiate(self, x: Array) -> list[Array]:
        here = self.values(x)
        if self.given is not None:
            slopes = self._split(self.given(x.copy()), 2, 0)
            for part, slope, value in zip(self.parts, slopes, here, strict=True):
                if slope.shape != (len(value), len(x)):
                    raise InputError(
                        f"jacobian(x) must return {part} of shape {(len(value), len(x))}, got "
                        f"{slope.shape}."
                    )
            return slopes
        steps = self.step * np.maximum(1.0, np.abs(x))
        ahead, behind = x + steps, x - steps if self.central else x.copy()
        if self.bounds is not None:
            lower, upper = (np.broadcast_to(bound, x.shape) for bound in self.bounds)
            if not self.central:  # towards the inside
                ahead = np.where(ahead > upper, x - steps, ahead)
            ahead, behind = np.clip(ahead, lower, upper), np.clip(behind, lower, upper)
        points, free = [], np.flatnonzero(ahead != behind)
        for j in free:
            for other in (ahead, behind) if self.central else (ahead,):
                point = x.copy()
                point[j] = other[j]
                points.append(point)
        found = self._evaluate(points) if points else []
        slopes = [np.zeros((len(value), len(x))) for value in here]
        for k, j in enumerate(free):
            low = found[2 * k + 1] if self.central else here
            high = found[2 * k] if self.central else found[k]
            for slope, a, b in zip(slopes, high, low, strict=True):
                slope[:, j] = (a - b) / (ahead[j] - behind[j])
        return slopes


class _Function:
    """One part of a box, as a function of tensors with a gradient."""

    def __init__(self, box: _Box, part: str) -> None:
        self._box, self._place = box, box.parts.index(part)

    @property
    def calls(self) -> int:
        """How often the function was evaluated, for all parts, differences included."""
        return self._box.calls

    def __call__(self, z: Tensor) -> Tensor:
        values: Tensor = _Differences.apply(z, self._box, self._place)  # type: ignore[no-untyped-call]
        return values


class _Differences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, box: _Box, place: int) -> Tensor:
        x = z.detach().double().cpu().numpy().ravel().copy()
        ctx.box, ctx.place, ctx.x, ctx.like = box, place, x, z.detach()
        return torch.from_numpy(box.values(x)[place].copy()).to(z)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        slopes = torch.from_numpy(ctx.box.slopes(ctx.x)[ctx.place]).to(ctx.like)
        return (cotangents[0] @ slopes).reshape(ctx.like.shape), None, None
