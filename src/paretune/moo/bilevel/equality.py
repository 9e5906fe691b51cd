"""The equality-constrained solvers on bilevel problems: WC-Penalty and its augmented form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.flat import FlatProblem
from paretune.moo.bilevel.method import Certificate, Iterate, Recorder
from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.problem import AnyBilevel, BilevelProblem, StochasticBilevelProblem
from paretune.moo.bilevel.result import BilevelResult, Record
from paretune.moo.bilevel.warm_start import warm_adjoint, warm_lower
from paretune.moo.numerics.kkt import positive_weights
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem, StochasticProblem
from paretune.moo.solvers.result import Result
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.moo.solvers.wc_penalty import WCPenalty
from paretune.options import NOT_IN_RECIPES

# ‖∇_y g‖ and the oracle's warnings speak for the lower level; v as `StochasticWCAugmented` has it.
BILEVEL_AUGMENTED = WCAugmented(v_scale=1.0, second_order=False, scale_rows=False)


@dataclass(frozen=True)
class EqualityConstrained:
    """`WCAugmented` or `WCPenalty` on z = (x, y) with the constraints h = ∇_y g(x, y) = 0.

    `minimize` wraps these two methods by itself; the wrapper is there for its options. A
    `StochasticBilevelProblem` is solved by `WCPenalty` (Algorithm 3), which draws its own batches;
    its points are then recorded when they are certified, on the full batches.

    Attributes:
        method: the solver; its residual is ‖K‖.
        warm_start: whether `WCAugmented` first solves the lower level at x0 and estimates ν there
            (`warm_start`). It pays where x is small, as the weights of training sets are, and not
            where x is a whole network that moves far from x0. `WCPenalty` starts from x0 as given.
        record_every: gradients of the method's function (for `WCPenalty`: steps) between records.
        on_record: called with each record as it is made.
    """

    method: WCAugmented | WCPenalty = field(default_factory=WCAugmented, metadata=NOT_IN_RECIPES)
    warm_start: bool = True
    record_every: int = field(default=1, metadata=NOT_IN_RECIPES)
    on_record: Callable[[Record], None] | None = field(default=None, metadata=NOT_IN_RECIPES)

    def run(
        self,
        problem: AnyBilevel,
        preference: Preference,
        start: tuple[Tensor, Tensor],
        steps: int,
        tol: float,
    ) -> BilevelResult:
        """Run from (x0, y0) until kkt_residual <= tol or `steps` are done.

        Raises InputError for what the method or the start does not allow.
        """
        lam = positive_weights(preference)
        oracle = Oracle(problem)
        recorder = Recorder(problem, oracle, self.record_every, self.on_record)
        recorder.start(Iterate(*start), lam)
        visits = _Visits(recorder, lam)
        shapes, z = (start[0].shape, start[1].shape), FlatProblem.join(*start)
        if isinstance(problem, BilevelProblem):
            flat = FlatProblem.of(oracle, *shapes, visits)
            if self.warm_start and isinstance(self.method, WCAugmented):
                x, y = flat.split(z)
                y = warm_lower(oracle, x, y, tol)

                def first_nu(weights: Tensor) -> Tensor:
                    return warm_adjoint(oracle, x, y, weights).flatten()

                z = FlatProblem.join(x, y)
                found = self.method.run(flat, preference, z, steps, tol, first_nu)
            else:
                found = self.method.run(flat, preference, z, steps, tol)
        elif isinstance(self.method, WCPenalty):
            visits.stride, visits.most = self.method.certify_every, steps
            flat = FlatProblem.of(Oracle(problem.full), *shapes, visits)
            adapted = _FlatStochastic.of(problem, oracle, flat)
            found = self.method.run(adapted, preference, z, steps, tol)
        else:
            raise InputError(
                "WCAugmented works on full batches; use method='wc_augmented' or "
                "StochasticWCAugmented() for a StochasticBilevelProblem."
            )
        x, y = (part.clone() for part in flat.split(found.x))
        now = Iterate(x, y, found.multipliers, found.constraint_multipliers.reshape(y.shape))
        recorder.add(visits.step_of(found), now)
        certificate = Certificate(
            found.rho, found.multipliers, found.constraint_multipliers, found.kkt_parts
        )
        return recorder.result(now, certificate, found.converged, found.message)


class _Visits:
    """Records the points where a solver takes a gradient."""

    def __init__(self, recorder: Recorder, lam: tuple[float, ...]) -> None:
        self._recorder, self._scale = recorder, torch.tensor(lam, dtype=torch.float64)
        self._count = -1
        self._last: Tensor | None = None
        self.stride, self.most = 1, 2**62

    def __call__(self, z: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> None:
        self._count, self._last = self._count + 1, z
        omega = weights.double().cpu() / self._scale
        self._recorder.visit(self._step, Iterate(x, y, omega))

    @property
    def _step(self) -> int:
        return min(self._count * self.stride, self.most)

    def step_of(self, found: Result) -> int:
        """The last step if that is where the solver ended, else one more."""
        same = self._last is not None and torch.equal(self._last, found.x)
        return self._step if same else self._step + 1


@dataclass(frozen=True, kw_only=True)
class _FlatStochastic(StochasticProblem):
    """Algorithm 3's view: a batch is a pair (upper, lower), of which each level takes its own."""

    source: StochasticBilevelProblem
    oracle: Oracle
    exact: FlatProblem

    @staticmethod
    def of(source: StochasticBilevelProblem, oracle: Oracle, exact: FlatProblem) -> _FlatStochastic:
        return _FlatStochastic(
            objectives=lambda z, batch: exact.evaluate(z),  # `on` is what is used
            constraints=lambda z, batch: exact.constrain(z),
            draw=lambda size, generator: (
                source.draw_upper(size, generator),
                source.draw_lower(size, generator),
            ),
            full=(source.full_upper, source.full_lower),
            source=source,
            oracle=oracle,
            exact=exact,
        )

    def on(self, batch: Any, constraint_batch: Any = None) -> Problem:
        if batch is self.full:
            return self.exact
        upper, lower = batch[0], (constraint_batch or batch)[1]
        return FlatProblem.of(self.oracle.fixed(self.source.on(upper, lower)), *self.exact.shapes)
