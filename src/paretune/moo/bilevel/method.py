"""What all bilevel methods share: the loop, the records and the certificate."""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.flat import FlatProblem
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.problem import AnyBilevel, StochasticBilevelProblem
from paretune.moo.bilevel.result import BilevelHistory, BilevelResult, Record
from paretune.moo.numerics.kkt import (
    DegenerateConstraintsWarning,
    KKTParts,
    best_multipliers,
    best_rho,
    kkt_system,
    positive_weights,
)
from paretune.moo.preference import Preference
from paretune.moo.problem import check_count
from paretune.moo.solvers.loop import run_loop
from paretune.options import NOT_IN_RECIPES

# For methods without an adjoint the best one is solved for when y has at most so many numbers.
_SOLVE_UP_TO = 500
# A run that has diverged to here cannot be certified: squares of squares overflow.
_OVERFLOWS = torch.finfo(torch.float64).max ** 0.25


class Iterate(NamedTuple):
    """What a method is at after a step.

    Attributes:
        x, y: the point, detached.
        weights: ω on the objectives in this step, shape (S,), before the preference multiplies
            them; None for methods without.
        adjoint: ν on ∇_y g = 0, in y's shape, with Σ ω_s λ_s ∇_y f_s + H ν ≈ 0; None for methods
            without.
        residual: how far the method is from where it would stand still, such as ‖(d_x, ∇_y g)‖;
            inf for methods that do not measure it, which then take all their steps.
    """

    x: Tensor
    y: Tensor
    weights: Tensor | None = None
    adjoint: Tensor | None = None
    residual: float = math.inf

    @property
    def steps(self) -> int:
        return 1

    @property
    def finite(self) -> bool:
        return bool(self.x.isfinite().all()) and bool(self.y.isfinite().all())


class Certificate(NamedTuple):
    """ρ, ω, ν (flattened; None where unknown) and the norms of the parts of K."""

    rho: float
    omega: Tensor
    nu: Tensor | None
    parts: KKTParts


@dataclass(frozen=True, kw_only=True)
class BilevelMethod(ABC):
    """A method with its options; a subclass says in `iterate` what one step does.

    Attributes:
        batch: size of the upper and of the lower batch (stochastic problems).
        independent_batches: whether products with ∇²g have a batch of their own.
        seed: of the draws.
        record_every: steps between records in the history; the start and the end are recorded.
        on_record: called with each record as it is made.
    """

    uses_preference: ClassVar[bool] = True
    """Whether the preference has a part; if it has none, one run stands for all preferences."""

    batch: int = field(default=32, metadata=NOT_IN_RECIPES)
    independent_batches: bool = False
    seed: int = field(default=0, metadata=NOT_IN_RECIPES)
    record_every: int = field(default=1, metadata=NOT_IN_RECIPES)
    on_record: Callable[[Record], None] | None = field(default=None, metadata=NOT_IN_RECIPES)

    @abstractmethod
    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        """Yield after each step, for ever; `lam` is the preference.

        Before each step fresh batches have been drawn. x and y are not to be written to: yield new
        tensors.
        """

    def run(
        self,
        problem: AnyBilevel,
        preference: Preference,
        start: tuple[Tensor, Tensor],
        steps: int,
        tol: float,
    ) -> BilevelResult:
        """Run from (x0, y0) until the method's residual is <= tol, a value is not finite, or
        `steps` are done.

        Raises InputError when the problem does not fit the preference or is not finite at the
        start.
        """
        lam = positive_weights(preference)
        if self.record_every < 1 or self.batch < 1:
            raise InputError("batch and record_every must be at least 1.")
        oracle = Oracle(problem, self.batch, self.independent_batches, self.seed)
        recorder = Recorder(problem, oracle, self.record_every, self.on_record)
        now = Iterate(start[0].detach().clone(), start[1].detach().clone())
        recorder.start(now, lam)
        run = _Steps(self, oracle, lam, now)
        outcome = run_loop(run, steps, tol, recorder.visit)
        recorder.add(outcome.steps, outcome.last)
        certificate = recorder.certify(outcome.last, lam)
        return recorder.result(outcome.last, certificate, outcome.converged, outcome.message)


class _Steps:
    """A method's generator as the loop wants it, with fresh batches before each step."""

    advice = "try a smaller step"

    def __init__(
        self, method: BilevelMethod, oracle: Oracle, lam: tuple[float, ...], start: Iterate
    ) -> None:
        self._oracle, self._start = oracle, start
        self._moves = method.iterate(oracle, lam, start.x, start.y)

    def start(self) -> Iterate:
        return self._start

    def step(self) -> Iterate:
        self._oracle.resample()
        return next(self._moves)

    def escape(self) -> None:
        return None


class Recorder:
    """Measures on the full batches, at nobody's expense, and keeps what it measured."""

    def __init__(
        self,
        problem: AnyBilevel,
        oracle: Oracle,
        every: int,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        self._exact = problem.full if isinstance(problem, StochasticBilevelProblem) else problem
        self._oracle, self._every, self._on_record = oracle, every, on_record
        self._measure = Oracle(self._exact)
        self._records: list[Record] = []
        self._began, self._paused = time.perf_counter(), 0.0

    def start(self, now: Iterate, lam: tuple[float, ...]) -> None:
        """The first record. Raises InputError for a start where the method cannot begin."""
        self.add(0, now)
        first = self._records[0]
        check_count(first.objectives, len(lam))
        for s, value in enumerate(first.objectives.tolist()):
            if not math.isfinite(value):
                raise InputError(f"Upper objective {s} is {value} at the start (x0, y0).")
        if not math.isfinite(first.lower_gradient_norm):
            raise InputError("The lower level's gradient is not finite at the start (x0, y0).")

    def visit(self, step: int, now: Iterate) -> None:
        """Record the point if it is its turn."""
        if step % self._every == 0:
            self.add(step, now)

    def add(self, step: int, now: Iterate) -> None:
        """Record the point, unless this step has been."""
        if self._records and self._records[-1].step == step:
            return
        paused = time.perf_counter()
        objectives = self._measure.values(now.x, now.y).double().cpu()
        weights = torch.full_like(objectives, math.nan)
        if now.weights is not None:
            weights = now.weights.detach().double().cpu()
        record = Record(
            step=step,
            seconds=paused - self._began - self._paused,
            n_gradients=self._oracle.n_gradients,
            objectives=objectives,
            weights=weights,
            x=now.x.clone(),
            lower_gradient_norm=float(self._measure.lower_y(now.x, now.y).norm()),
        )
        self._records.append(record)
        if self._on_record is not None:
            self._on_record(record)
        self._paused += time.perf_counter() - paused

    def result(
        self, now: Iterate, certificate: Certificate, converged: bool, message: str
    ) -> BilevelResult:
        """The result at the last recorded point."""
        seconds = time.perf_counter() - self._began - self._paused
        last = self._records[-1]
        nu = certificate.nu
        return BilevelResult(
            x=(now.x, now.y),
            objectives=last.objectives,
            lower_gradient_norm=last.lower_gradient_norm,
            multipliers=certificate.omega,
            adjoint=None if nu is None else nu.reshape(now.y.shape),
            rho=certificate.rho,
            kkt_residual=math.hypot(*certificate.parts),
            kkt_parts=certificate.parts,
            n_gradient_evaluations=self._oracle.spent.n_gradients,
            n_function_evaluations=self._oracle.spent.n_functions,
            seconds=seconds,
            converged=converged,
            message=message,
            history=BilevelHistory.of(self._records),
        )

    def certify(self, now: Iterate, lam: tuple[float, ...]) -> Certificate:
        """K at the last recorded point, with the method's multipliers or the best ones."""
        last = self._records[-1]
        unknown = Certificate(
            math.nan,
            last.weights,
            None,
            KKTParts(math.nan, math.nan, last.lower_gradient_norm, math.nan),
        )
        if not max(last.lower_gradient_norm, *last.objectives.tolist()) < _OVERFLOWS:
            return unknown
        flat = FlatProblem.of(self._measure, now.x.shape, now.y.shape)
        z = flat.join(now.x, now.y)
        if now.weights is not None and now.adjoint is not None:
            omega, nu = now.weights.double().cpu(), now.adjoint.flatten()
            scaled = torch.tensor(lam, dtype=torch.float64) * last.objectives
            rho = best_rho(scaled.tolist(), omega.tolist())
        elif now.y.numel() <= _SOLVE_UP_TO:
            with warnings.catch_warnings():
                # ∇h is rank deficient in most bilevel problems; consistent multipliers exist.
                warnings.simplefilter("ignore", DegenerateConstraintsWarning)
                rho, omega, nu = best_multipliers(flat, z, lam)
        else:
            return unknown
        return Certificate(rho, omega, nu, kkt_system(flat, z, rho, omega, nu, lam).parts)
