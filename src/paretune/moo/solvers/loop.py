"""The loop of every iterative method: counting, history, stopping, best point and result.

A method gives `start` and `step`; each returns a `Visit`, one point with its certificate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.problem import Point, Problem, check_count
from paretune.moo.solvers.result import History, Result
from paretune.moo.solvers.watch import Watch


class Located(Protocol):
    """What the loop reads off a point: its residual, and the steps that led to it."""

    @property
    def residual(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def finite(self) -> bool: ...


L = TypeVar("L", bound=Located)
L_co = TypeVar("L_co", bound=Located, covariant=True)


class Iteration(Protocol[L_co]):
    """A run of a method.

    `step` goes on from the point that was returned last, or says why it cannot. `escape` is asked
    where the tolerance is met: a lower point nearby, or None if that point is to be the end.
    `advice` is what to do where values are no longer finite.
    """

    advice: str

    def start(self) -> L_co: ...
    def step(self) -> L_co | str: ...
    def escape(self) -> L_co | None: ...


@dataclass(frozen=True)
class Outcome(Generic[L]):
    """The last finite point, the steps that led to it, and why the loop ended there."""

    last: L
    steps: int
    converged: bool
    message: str


def run_loop(
    run: Iteration[L],
    steps: int,
    tol: float,
    record: Callable[[int, L], None],
    why_stop: Callable[[int, L], str] | None = None,
) -> Outcome[L]:
    """Step until the residual is at most tol, a value is not finite, no step is found, or `steps`
    are done; `record` is called with every finite point and the steps before it, and `why_stop`
    after it, which may end the run.

    Raises InputError where the start is not finite.
    """
    now, taken = run.start(), 0
    if not now.finite:
        raise InputError("The objectives, constraints or gradients are not finite at x0.")
    while True:
        record(taken, now)
        met = now.residual <= tol
        if why_stop is not None and (why := why_stop(taken, now)):
            return Outcome(now, taken, met, f"Stopped after {taken} steps: {why}")
        lower = run.escape() if met and taken < steps else None
        if met and lower is None:
            message = f"Converged after {taken} steps: the residual is at most tol."
            return Outcome(now, taken, True, message)
        if taken >= steps:
            return Outcome(now, taken, False, f"Stopped after all {steps} steps.")
        reached = lower or run.step()
        if isinstance(reached, str):
            return Outcome(now, taken, False, f"Stopped after {taken} steps: {reached}")
        if not reached.finite:
            message = (
                f"Stopped at step {taken + reached.steps}: values were no longer finite; "
                f"{run.advice}. x is the last finite point."
            )
            return Outcome(now, taken, False, message)
        now, taken = reached, taken + reached.steps


class Visit(NamedTuple):
    """A point of a `Problem` with its certificate.

    Attributes:
        x: the point, detached.
        objectives: F, shape (M,), without any shift.
        constraints: h, shape (q,).
        rho, omega, nu: the multipliers that `parts` were measured with; ω as M numbers.
        parts: the norms of the parts of K.
        error: what is compared with the tolerance: ‖K‖, its parts measured in the problem's own
            units where these are small; None for ‖K‖ itself.
        min_norm: see `History`.
        steps: steps from the visit before to this one.
        opens: whether a row of the history begins here; it shows the last visit before the next.
        escaped: whether the visit before was stationary, and this point is below it.
        inequalities, kappa: g and its multipliers, shape (r,).
    """

    x: Tensor
    objectives: Tensor
    constraints: Tensor
    rho: float
    omega: Sequence[float]
    nu: Tensor
    parts: KKTParts
    error: float | None = None
    min_norm: float | None = None
    steps: int = 1
    opens: bool = True
    escaped: bool = False
    inequalities: Tensor = torch.zeros(0)
    kappa: Tensor = torch.zeros(0)

    @property
    def kkt_residual(self) -> float:
        return math.hypot(*self.parts)

    @property
    def residual(self) -> float:
        return self.kkt_residual if self.error is None else self.error

    @property
    def finite(self) -> bool:
        return math.isfinite(self.kkt_residual)


class Units(NamedTuple):
    """The sizes of gradients, differences of objectives and constraints met at the start.

    A residual counts relative to them where they are below 1, so that the unit of the objectives
    does not decide when a run has converged; and never as finer than rounding where they are large.
    """

    gradient: float
    objective: float
    constraint: float

    @staticmethod
    def of(
        gradient: float,
        objective: float,
        constraint: float,
        tol: float,
        eps: float,
        rounded: float | None = None,
    ) -> Units:
        """From the sizes met, of which 0 says nothing.

        Args:
            tol: the tolerance.
            rounded: what a gradient rounds to a part of; None for its size.
        """
        rounding = 50 * eps / tol if tol > 0 else 0.0
        sizes = (gradient, objective, constraint)
        parts = (gradient if rounded is None else rounded, objective, constraint)
        return Units(
            *(
                max(min(1.0, s), rounding * part) if 0 < s < math.inf else 1.0
                for s, part in zip(sizes, parts, strict=True)
            )
        )

    def error(self, parts: KKTParts, gaps: Sequence[float], omega: Sequence[float]) -> float:
        """‖K‖ in these units; `gaps` are ρ − λ_s f_s."""
        slack = [min(w, gap / self.objective) for w, gap in zip(omega, gaps, strict=True)]
        return math.hypot(
            parts.multiplier_sum,
            parts.stationarity / self.gradient,
            parts.feasibility / self.constraint,
            *slack,
        )


def default_tolerance(dtype: torch.dtype, wanted: float) -> float:
    """The tolerance where none is given: `wanted`, or what rounding allows in that dtype."""
    return max(wanted, 100 * torch.finfo(dtype).eps)


class CountedProblem:
    """A problem through which a run looks, counting evaluations and gradients."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.n_gradients = self.n_functions = 0

    def at(self, z: Tensor, on: Problem | None = None) -> Point:
        """F and h at z, of the problem itself or of another one, such as on a batch."""
        self.n_functions += 1
        return (on or self.problem).at(z)

    def gradient(
        self,
        point: Point,
        weights: Tensor | Sequence[float] | None,
        direction: Tensor | None = None,
        excess: Tensor | None = None,
    ) -> Tensor:
        """Σ w_m ∇f_m + Σ d_i ∇h_i + Σ e_j ∇g_j, in the shape of z: one gradient."""
        self.n_gradients += 1
        return point.combine(weights, direction, excess)

    def vjp(self, point: Point, direction: Tensor, excess: Tensor | None = None) -> Tensor:
        """Σ d_i ∇h_i + Σ e_j ∇g_j, flattened: one gradient."""
        self.n_gradients += 1
        return point.vjp(direction, excess)

    def rows(self, point: Point, wanted: Sequence[bool]) -> Tensor:
        """Each wanted ∇f_m, flattened, shape (M, z.numel()); 0 for the others."""
        self.n_gradients += sum(wanted)
        return point.gradients(wanted)


class Solver(ABC):
    """An `Iteration` on a counted problem.

    Attributes:
        advice: as in `Iteration`.
        reports_best: whether the result is at the best late point in place of the last one.
    """

    advice = "try a smaller lr"
    reports_best = False

    def __init__(self, problem: CountedProblem) -> None:
        self.problem = problem

    @abstractmethod
    def start(self) -> Visit:
        """The start point."""

    @abstractmethod
    def step(self) -> Visit | str:
        """The next point, or why there is none."""

    def escape(self) -> Visit | None:
        """See `Iteration`."""
        return None

    def remark(self, result: Result) -> str:
        """A sentence to add to the message, about constraints that cannot be met; "" for none."""
        return ""

    def first(self, x0: Tensor, size: int) -> Point:
        """F and h at the start. Raises InputError unless there are `size` objectives."""
        point = self.problem.at(x0)
        check_count(point.objectives, size)
        return point

    def solve(self, steps: int, tol: float, watch: Watch | None = None) -> Result:
        """Run the loop. Raises InputError for a start that is not finite."""
        track = _Track(self.reports_best)

        def why_stop(taken: int, visit: Visit) -> str:
            assert watch is not None
            spent = self.problem.n_functions
            return watch.why_stop(taken, visit.x, visit.objectives, visit.residual, spent)

        outcome = run_loop(self, steps, tol, track.record, why_stop if watch else None)
        if watch is not None:
            watch.add(self.problem.n_functions)
        result = track.result(self.problem, outcome, tol)
        remark = self.remark(result)
        return replace(
            result,
            message=f"{result.message} {remark}".rstrip(),
            n_gradient_evaluations=self.problem.n_gradients,
            n_function_evaluations=self.problem.n_functions,
        )


class _Track:
    """The history, and the point of smallest residual among the later half of those visited.

    Early points are forgotten: where one starts with h = 0 and good multipliers, the start has a
    small residual and the worst objectives. At every power of two a new window of points begins,
    and the best of this one and the last is what counts.
    """

    def __init__(self, reports_best: bool) -> None:
        self._reports_best = reports_best
        self._windows: tuple[Visit | None, Visit | None] = (None, None)
        self._visited = 0
        self._stationary: list[Visit] = []
        self._pending: Visit | None = None
        self._rows = array("d")

    def record(self, taken: int, visit: Visit) -> None:
        if visit.opens:
            self._close_row()
        if visit.escaped and self._pending is not None:
            self._stationary.append(self._pending)
            self._windows, self._visited = (None, None), 0
        self._pending = visit
        if self._reports_best:
            self._visited += 1
            last, now = self._windows
            if self._visited & (self._visited - 1) == 0:
                last, now = now or last, None
            if now is None or visit.residual < now.residual:
                now = visit
            self._windows = last, now

    @property
    def best(self) -> Visit | None:
        return min(filter(None, self._windows), key=lambda visit: visit.residual, default=None)

    def _close_row(self) -> None:
        visit = self._pending
        if visit is not None:
            extra = math.nan if visit.min_norm is None else visit.min_norm
            self._rows.extend([*visit.objectives.tolist(), *visit.omega])
            self._rows.extend([visit.kkt_residual, visit.parts.feasibility, extra])

    def result(self, problem: CountedProblem, outcome: Outcome[Visit], tol: float) -> Result:
        self._close_row()
        shown = self.best or outcome.last
        if outcome.converged:  # of all stationary points the lowest
            shown = min([shown, *self._stationary], key=lambda visit: visit.rho)
        size = len(shown.omega)
        table = torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 2 * size + 3)
        unconstrained = shown.min_norm is not None
        return Result(
            x=shown.x,
            objectives=shown.objectives.double().cpu(),
            constraints=shown.constraints.double().cpu(),
            rho=shown.rho,
            multipliers=torch.tensor(shown.omega, dtype=torch.float64),
            constraint_multipliers=shown.nu.double().cpu(),
            inequalities=shown.inequalities.double().cpu(),
            inequality_multipliers=shown.kappa.double().cpu(),
            kkt_residual=shown.kkt_residual,
            kkt_parts=shown.parts,
            n_gradient_evaluations=problem.n_gradients,
            n_function_evaluations=problem.n_functions,
            converged=shown.residual <= tol,
            message=outcome.message,
            history=History(
                objectives=table[:, :size],
                multipliers=table[:, size : 2 * size],
                kkt_residual=table[:, -3],
                min_norm=table[:, -1] if unconstrained else None,
                feasibility=None if unconstrained else table[:, -2],
            ),
        )
