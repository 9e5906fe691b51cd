"""`minimize`: one function for every method, in the manner of scipy.optimize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.descent import Descent, OptimizerFactory
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem
from paretune.moo.result import Method, Result
from paretune.moo.weightings import MGDA, Clamp, Linear

MethodName = Literal["clamp", "mgda", "linear"]

_METHODS: dict[str, Descent] = {
    "clamp": Descent(Clamp(mu=1.0)),
    "mgda": Descent(MGDA()),
    "linear": Descent(Linear()),
}


def minimize(
    problem: Problem,
    preference: Preference | Sequence[float],
    method: MethodName | Method = "clamp",
    *,
    x0: Tensor | ArrayLike,
    steps: int = 1000,
    tol: float = 1e-8,
    lr: float | None = None,
    mu: float | None = None,
    optimizer: Literal["adam"] | OptimizerFactory | None = None,
) -> Result:
    """Minimise several objectives at once, at the trade-off a preference asks for.

    "clamp" (CLAMP, Algorithm 1) seeks min_z max_m p_m f_m(z), its fixed points are exactly the
    stationary points of that problem; "mgda" stops at the first Pareto-stationary point it meets;
    "linear" minimises Σ p_m f_m. Objectives of preference 0 are dropped.

    Args:
        problem: what to minimise.
        preference: one weight per objective, at least 0, summing to 1.
        method: a name, or a method with its options, such as `Descent(Clamp(mu=10.0), lr=0.05)`.
        x0: start point, of any shape; what is not a floating-point tensor becomes float64.
        steps: the most steps to take.
        tol: stop when the result's `kkt_residual` is at most this.
        lr: step length, default 0.1.
        mu: CLAMP's μ, default 1. lr·mu sets the speed along the front: below 4, best near 1.
        optimizer: see `Descent`; None takes plain gradient steps.

    Returns:
        Result; its x is the last point visited.

    Raises:
        InputError: inputs that do not fit together, an unknown method, options that the method
            does not have, objectives that are not finite at x0.

    >>> pair = Problem(lambda z: torch.stack([(z - 1) ** 2, (z + 1) ** 2]).flatten())
    >>> result = minimize(pair, [0.8, 0.2], method="clamp", x0=[0.0], steps=500, lr=0.2, mu=1.0)
    >>> round(float(result.x), 4)  # where 0.8 (z - 1)² = 0.2 (z + 1)²
    0.3333
    """
    if not isinstance(problem, Problem):
        raise InputError(f"problem must be a Problem, got {type(problem).__name__}.")
    if steps < 0 or not tol >= 0:
        raise InputError(f"steps and tol must be at least 0, got {steps} and {tol}.")
    start = x0 if isinstance(x0, Tensor) else torch.as_tensor(x0, dtype=torch.float64)
    if not start.is_floating_point():
        start = start.double()
    if not torch.isfinite(start).all():
        raise InputError("x0 must be finite.")
    chosen = _configure(method, lr, mu, optimizer)
    return chosen.run(problem, Preference.of(preference), start, steps, tol)


def _configure(
    method: MethodName | Method,
    lr: float | None,
    mu: float | None,
    optimizer: Literal["adam"] | OptimizerFactory | None,
) -> Method:
    """The method with the given options; each is refused where it would have no effect."""
    if not isinstance(method, str):
        if (lr, mu, optimizer) != (None, None, None):
            raise InputError("Give lr, mu and optimizer inside the method, not beside it.")
        return method
    if method not in _METHODS:
        raise InputError(f"Unknown method {method!r}; there are {', '.join(_METHODS)}.")
    descent = _METHODS[method]
    if mu is not None:
        if method != "clamp":
            raise InputError(f"Method {method!r} has no mu; it belongs to 'clamp'.")
        descent = replace(descent, weighting=Clamp(mu=mu))
    if lr is not None:
        descent = replace(descent, lr=lr)
    return replace(descent, optimizer=optimizer)
