"""`minimize`: one function for every method, in the manner of scipy.optimize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.choice import BilevelName, BilevelSolver, minimize_bilevel
from paretune.moo.bilevel.problem import BilevelProblem, StochasticBilevelProblem
from paretune.moo.bilevel.result import BilevelResult
from paretune.moo.numerics.kkt import as_tensor
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem, StochasticProblem
from paretune.moo.ranking import Ranking
from paretune.moo.shift import Shift
from paretune.moo.solvers.descent import Descent, OptimizerFactory
from paretune.moo.solvers.linear_scalarization import LinearScalarization
from paretune.moo.solvers.loop import default_tolerance
from paretune.moo.solvers.result import Method, Result
from paretune.moo.solvers.watch import Callback, Watch
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.moo.solvers.wc_penalty import WCPenalty
from paretune.moo.weightings import WEIGHTINGS, Clamp, ClampOptions

MethodName = str

_CONSTRAINED = ("wc_augmented", "wc_penalty")


@overload
def minimize(
    problem: Problem | StochasticProblem,
    preference: Preference | Sequence[float],
    method: MethodName | Method | None = None,
    *,
    x0: Tensor | ArrayLike | Result,
    steps: int = 1000,
    tol: float | None = None,
    lr: float | None = None,
    mu: float | None = None,
    optimizer: Literal["adam"] | OptimizerFactory | None = None,
    shift: Shift = None,
    restarts: Sequence[Tensor | ArrayLike] | Tensor = (),
    callback: Callback | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
) -> Result: ...


@overload
def minimize(
    problem: BilevelProblem | StochasticBilevelProblem,
    preference: Preference | Sequence[float],
    method: BilevelName | BilevelSolver | WCAugmented | WCPenalty | None = None,
    *,
    x0: tuple[Tensor | ArrayLike, Tensor | ArrayLike],
    steps: int = 1000,
    tol: float | None = None,
    shift: Shift = None,
) -> BilevelResult: ...


def minimize(
    problem: Problem | StochasticProblem | BilevelProblem | StochasticBilevelProblem,
    preference: Preference | Sequence[float],
    method: Any = None,
    *,
    x0: Any,
    steps: int = 1000,
    tol: float | None = None,
    lr: float | None = None,
    mu: float | None = None,
    optimizer: Literal["adam"] | OptimizerFactory | None = None,
    shift: Shift = None,
    restarts: Sequence[Tensor | ArrayLike] | Tensor = (),
    callback: Callback | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
) -> Result | BilevelResult:
    """Minimise several objectives at once, at the trade-off a preference asks for.

    "wc_augmented", the default, is an augmented Lagrangian of the weighted-Chebyshev problem
    min_z max_m p_m f_m(z), with or without equality constraints, inequalities and bounds, for
    objectives of any sign. "wc_penalty" is the second paper's Algorithm 1, or its Algorithm 3 for a
    `StochasticProblem`; it needs f > 0 and p > 0.

    Without constraints, "clamp" (CLAMP, Algorithm 1) seeks the same points by steps of a given
    length; "mgda" stops at the first Pareto-stationary point; "linear" minimises Σ p_m f_m,
    also under `AffineConstraints` (the second paper's Algorithm 2) or bounds; "raco" steps along
    clipped conflict-averse gradients. Objectives of preference 0 are dropped.

    Bilevel problems: "wc_augmented" and "wc_penalty" on z = (x, y) with h = ∇_y g (for mini-batches
    the former is `StochasticWCAugmented`), and "moml", "moco", "forum", "gmoba", "itd", "soba",
    "wc_soba". x0 is then the pair (x, y); restarts, limits, callback, lr, mu and optimizer do not
    apply.

    Args:
        problem: what to minimise.
        preference: one weight per objective, at least 0, summing to 1.
        method: a name, or a method with its options, such as `Descent(Clamp(mu=10.0), lr=0.05)` or
            `WCPenalty(u=10.0, v=10.0, eta=1e-3)`. None takes "wc_augmented", "wc_penalty" for
            stochastic problems.
        x0: start point, of any shape; what is not a floating-point tensor becomes float64. It must
            lie within the bounds, but need not satisfy the constraints. A `Result` for another
            preference stands for its x, and "wc_augmented" begins with its multipliers and
            curvature, too.
        steps: the most steps to take; for "wc_augmented" the most inner iterations.
        tol: stop when the result's `kkt_residual` is at most this, relative to the sizes of
            gradients, objectives and constraints at x0 where these are below 1. By default 1e-8, or
            100 times the rounding of x0's dtype: 1.2e-5 in float32.
        lr: step length of "clamp", "mgda" (default 0.1) and "linear" (the same; with constraints or
            bounds the inverse of an estimated smoothness).
        mu: CLAMP's μ. lr·mu sets the speed along the front: below 4, best between 1 and 2. By
            default 2 / lr with plain steps, which are then prox-linear steps on the Chebyshev
            problem, and 1 with an optimizer.
        optimizer: see `Descent`; None takes plain gradient steps.
        shift: for the "wc" methods, added to the objectives, one value or one each; −z* plus a
            margin measures from an ideal point z*, and what p means depends on it.
        restarts: more start points, as a sequence or a batch of shape (k, *x0.shape), for problems
            that are not convex. Each is run by itself, after x0, with the same steps. Kept is, of
            the runs that converged, the one of lowest max_m p_m f_m (Σ p_m f_m for "linear", the
            first for "mgda"); if none did, the one of smallest residual.
        callback: called with a `Progress` after each step; a run ends where it returns True.
        max_evaluations: end the call, restarts included, at the next step once as many evaluations
            of the objectives are spent. What was reached is returned.
        max_seconds: the same for time.

    Returns:
        Result; its x is the last point visited, for "wc_augmented" the one of smallest residual
        among the later half of those visited.
        For bilevel problems a `BilevelResult`, whose x is the pair.
        With restarts the evaluations of all runs are counted.

    Raises:
        InputError: inputs that do not fit together, an unknown method, options that the method
            does not have, a start outside the bounds, objectives that are not finite at x0 (or not
            positive, for the "wc" methods).

    >>> pair = Problem(lambda z: torch.stack([(z - 1) ** 2, (z + 1) ** 2]).flatten())
    >>> result = minimize(pair, [0.8, 0.2], method="clamp", x0=[0.0], steps=500, lr=0.2, mu=1.0)
    >>> round(float(result.x), 4)  # where 0.8 (z - 1)² = 0.2 (z + 1)²
    0.3333
    """
    if isinstance(problem, BilevelProblem | StochasticBilevelProblem):
        watched = (callback, max_evaluations, max_seconds) != (None, None, None)
        if (lr, mu, optimizer) != (None, None, None) or len(restarts) or watched:
            raise InputError(
                "Bilevel problems have no lr, mu, optimizer, restarts, callback or limits; give "
                "options inside the method, as in SOBA(alpha=0.01)."
            )
        return minimize_bilevel(problem, preference, method, x0, steps, tol, shift)
    chosen = choose_method(problem, method, lr, mu, optimizer, shift)
    near, x0 = (x0, x0.x) if isinstance(x0, Result) else (None, x0)
    starts = [as_tensor(x) for x in (x0, *restarts)]
    tol = default_tolerance(starts[0].dtype, 1e-8) if tol is None else tol
    if steps < 0 or not tol >= 0:
        raise InputError(f"steps and tol must be at least 0, got {steps} and {tol}.")
    for n, start in enumerate(starts):
        _check_start(problem, start, f"restarts[{n - 1}]" if n else "x0")
        if start.shape != starts[0].shape:
            raise InputError(
                f"restarts[{n - 1}] must have x0's shape {tuple(starts[0].shape)}, "
                f"got {tuple(start.shape)}."
            )
    wanted = Preference.of(preference)
    watch = Watch(callback, max_evaluations, max_seconds)
    runs = [run_method(chosen, problem, wanted, starts[0], steps, tol, watch, near)]
    for start in starts[1:]:
        if not watch.stopped:
            runs.append(run_method(chosen, problem, wanted, start, steps, tol, watch))
    if len(runs) == 1:
        return runs[0]
    ranking, best = Ranking(chosen), runs[0]
    for found in runs[1:]:
        if ranking.better(wanted, found, best):
            best = found
    return replace(
        best,
        n_gradient_evaluations=sum(found.n_gradient_evaluations for found in runs),
        n_function_evaluations=sum(found.n_function_evaluations for found in runs),
        message=f"{best.message} The best of {len(runs)} starts.",
    )


def solve_from(
    method: Method,
    problem: Problem | StochasticProblem,
    preference: Preference,
    start: Tensor | Result,
    steps: int,
    tol: float,
    watch: Watch,
) -> Result:
    """One run from a point or a like result, which is checked."""
    near, x = (start, start.x) if isinstance(start, Result) else (None, start)
    _check_start(problem, x, "x0")
    return run_method(method, problem, preference, x, steps, tol, watch, near)


def run_method(
    method: Method,
    problem: Problem | StochasticProblem,
    preference: Preference,
    start: Tensor,
    steps: int,
    tol: float,
    watch: Watch,
    near: Result | None = None,
) -> Result:
    """One run. A method of the user's own need not know of watches."""
    options: dict[str, Any] = {} if watch.idle else {"watch": watch}
    if isinstance(method, WCPenalty):
        return method.run(problem, preference, start, steps, tol, **options)
    if not isinstance(problem, Problem):
        raise InputError("A StochasticProblem is solved by method='wc_penalty' (Algorithm 3).")
    if near is not None and isinstance(method, WCAugmented):
        options["near"] = near
    return method.run(problem, preference, start, steps, tol, **options)


def _check_start(problem: Problem | StochasticProblem, start: Tensor, name: str) -> None:
    if not torch.isfinite(start).all():
        raise InputError(f"{name} must be finite.")
    if problem.bounds is None:
        return
    lower, upper = (torch.as_tensor(b, dtype=start.dtype) for b in problem.bounds)
    try:
        fits = torch.broadcast_shapes(lower.shape, upper.shape, start.shape) == start.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"bounds of shapes {tuple(lower.shape)} and {tuple(upper.shape)} do not broadcast to "
            f"{name}'s shape {tuple(start.shape)}."
        )
    outside = (start.cpu() < lower.cpu()) | (start.cpu() > upper.cpu())
    if bool(outside.any()):
        where = tuple(outside.nonzero()[0].tolist())
        raise InputError(
            f"{name}{list(where)} is {float(start[where]):g}, outside the bounds; "
            "start within them."
        )


def choose_method(
    problem: Problem | StochasticProblem,
    method: MethodName | Method | None,
    lr: float | None = None,
    mu: float | None = None,
    optimizer: Literal["adam"] | OptimizerFactory | None = None,
    shift: Shift = None,
) -> Method:
    """The method with the given options; each is refused where it would have no effect."""
    if not isinstance(problem, Problem | StochasticProblem):
        raise InputError(f"problem must be a Problem, got {type(problem).__name__}.")
    if method is not None and not isinstance(method, str):
        if (lr, mu, optimizer, shift) != (None, None, None, None):
            raise InputError("Give lr, mu, optimizer and shift inside the method, not beside it.")
        return method
    constrained = problem.constraints is not None or problem.bounds is not None
    if method is None:
        method = "wc_penalty" if isinstance(problem, StochasticProblem) else "wc_augmented"
    if method not in (*WEIGHTINGS, *_CONSTRAINED):
        known = ", ".join([*WEIGHTINGS, *_CONSTRAINED])
        raise InputError(f"Unknown method {method!r}; there are {known}.")
    if mu is not None and method != "clamp":
        raise InputError(f"Method {method!r} has no mu; it belongs to 'clamp'.")
    if method in _CONSTRAINED:
        if (lr, optimizer) != (None, None):
            raise InputError(
                f"Method {method!r} has no lr or optimizer; give its options inside the method, as "
                "in WCPenalty(eta=0.001) or WCAugmented(memory=10)."
            )
        return WCAugmented(shift=shift) if method == "wc_augmented" else WCPenalty(shift=shift)
    if shift is not None:
        raise InputError(f"Method {method!r} has no shift; it belongs to the 'wc' methods.")
    if method == "linear" and constrained:
        if optimizer is not None:
            raise InputError("Method 'linear' takes plain steps under constraints and bounds.")
        return LinearScalarization(lr=lr)
    kind: Any = WEIGHTINGS[method]
    if kind is not ClampOptions:
        weighting = kind()
    else:
        weighting = Clamp(_prox_linear(lr, optimizer) if mu is None else mu)
    return Descent(weighting, Descent.lr if lr is None else lr, optimizer)


def _prox_linear(lr: float | None, optimizer: Any) -> float:
    """The μ of CLAMP that needs no tuning: with plain steps 2 / lr, else 1.

    min over v of max_m [p_m f_m + p_m ∇f_m·v] + ‖v‖² / (2 lr) has Eq. 6 at μ = 2 / lr as its dual.
    """
    if optimizer is not None:
        return 1.0  # which rescales the direction
    if lr is None:
        lr = Descent.lr
    return 2 / lr if lr > 0 else 1.0  # `Descent` refuses such a step
