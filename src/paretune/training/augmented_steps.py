"""The WC-Penalty paper's steps on x and y, for a language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from paretune.moo.bilevel.oracle import Oracle
from paretune.moo.bilevel.problem import BatchTerm, StochasticBilevelProblem
from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
from paretune.moo.solvers.multipliers import StepwiseMultipliers
from paretune.training.leak_watch import LeakWatch
from paretune.training.responses import Batches, Draw, Part
from paretune.training.weighting_steps import WeightingSteps

if TYPE_CHECKING:
    from paretune.training.bilevel_objectives import LanguageModelObjectives
    from paretune.training.data_weighting import DataWeightingTrainer


class PenaltyMultipliers(StepwiseMultipliers):
    """Without multipliers: u h and v (p f − ρ)_+ alone are the penalty P of Algorithm 1.

    P's minimum over ρ and δ stands for their own steps: there ω = proj_simplex(v p∘f).
    """

    def update(self, h: Tensor, weights: Sequence[float]) -> None:
        """Nothing moves."""


class AugmentedSteps(WeightingSteps):
    """First-order steps on the augmented Lagrangian, or on the penalty alone.

    A step takes S evaluations, one combined gradient of the criteria, one gradient of each training
    set, and one product with second derivatives (two gradients of each set); they are formed one
    after another in the memory of a plain gradient.

    Args:
        trainer: Its arguments, set weights and preference.
        levels: Both levels on the model's parameters.
        terms: Those of the upper level, of the criteria, and of the lower one, of the sets.
    """

    def __init__(
        self,
        trainer: DataWeightingTrainer,
        levels: LanguageModelObjectives,
        terms: tuple[Sequence[BatchTerm], Sequence[BatchTerm]],
    ) -> None:
        self._trainer, self._levels = trainer, levels
        args, (upper, lower) = trainer.args, terms
        problem = StochasticBilevelProblem(
            upper=upper,
            lower=lower,
            draw_upper=lambda size, generator: self._drawn[0],
            draw_lower=lambda size, generator: self._drawn.pop(0),
            full_upper=None,
            full_lower=None,
            hvp=args.hvp,
        )
        self.oracle = Oracle(problem, independent_batches=args.independent_batches)
        self.multipliers: StepwiseMultipliers | None = None
        """None before the first step."""
        self.micro: list[list[Draw]] = []
        """The step's micro-batches."""
        self._drawn: list[Batches] = []
        self.watch = LeakWatch()

    def begin(self) -> None:
        self.micro = []

    def add(self, inputs: Mapping[str, Any]) -> None:
        self.micro.append(inputs["draws"])

    @property
    def cost(self) -> tuple[int, int]:
        return 0, 0

    def moved(self) -> None:
        """x has moved already."""

    def finish(self) -> float | None:
        self._drawn = [Batches.of(draws) for draws in zip(*self.micro, strict=True)]
        y = self._levels.vector()
        try:
            return self._step(y)
        finally:
            self._levels.load(y)  # to the bit

    def _step(self, y: Tensor) -> float | None:
        """One step of `StochasticWCAugmented`, y's optimiser being the trainer's."""
        trainer, oracle = self._trainer, self.oracle
        x, live = trainer.x, trainer.preference.live
        weights = [trainer.preference[name] for name in live]
        oracle.resample()
        spent = oracle.n_gradients
        values: list[float] = oracle.values(x, y).tolist()
        h = oracle.lower_y(x, y)
        losses = {name: self._levels.last[Part("set", name)] for name in trainer.sets}
        size = float(h.norm())
        if not all(map(math.isfinite, (*values, *losses.values(), size))):
            return None
        chebyshev = [p * f for p, f in zip(weights, values, strict=True)]
        told = {f"train/{name}/loss": value for name, value in losses.items()}
        told |= {f"validation/{n}/loss": f for n, f in zip(live, values, strict=True)}
        told["lower_gradient_norm"] = size
        if trainer.x_started < 0:  # towards a solved lower level
            self._levels.set_gradient(h)
            trainer.note({**told, "spend/gradients": oracle.n_gradients - spent})
            return max(chebyshev)
        if self.multipliers is None:
            self.multipliers = self._first_multipliers(y)
        omega = self.multipliers.weights(chebyshev)
        fx, fy = oracle.upper(x, y, [w * p for w, p in zip(omega, weights, strict=True)])
        gx, gy = oracle.products(x, y, self.multipliers.direction(h))
        gx, gy = gx + fx, gy + fy
        if not (bool(gx.isfinite().all()) and bool(gy.isfinite().all())):
            return None
        trainer.weights.move(gx)
        self._levels.set_gradient(gy)
        self.multipliers.update(h, omega)
        self.watch.see(max(losses.values()), dict(zip(live, values, strict=True)), size)
        trainer.note(
            told
            | {f"set_weight/{name}": value for name, value in trainer.set_weights.items()}
            | {f"omega/{n}": w for n, w in zip(live, omega, strict=True)}
            | {"spend/gradients": oracle.n_gradients - spent}
        )
        if oracle.products_by.step is not None:
            trainer.note({"product_step": oracle.products_by.step})
        return max(chebyshev)

    def _first_multipliers(self, y: Tensor) -> StepwiseMultipliers:
        args, live = self._trainer.args, self._trainer.preference.live
        if args.method == "wc_penalty":
            root = max(self._trainer.state.max_steps, 1) ** 0.25
            u, v = args.u or root, args.v or root
            return PenaltyMultipliers(len(live), u, v, u)
        method = StochasticWCAugmented(u=args.u, v=args.v, sigma=args.sigma, tau=args.tau)
        weights = tuple(self._trainer.preference[name] for name in live)
        return method.begin(self.oracle, weights, [0.0] * len(live), self._trainer.x, y)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "products": vars(self.oracle.products_by).copy(),
            "watch": self.watch.state_dict(),
        }
        if self.multipliers is not None:
            multipliers = self.multipliers.state_dict()
            nu = multipliers.pop("nu")
            state |= {"multipliers": multipliers} | ({} if nu is None else {"nu": nu})
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self.oracle.products_by).update(state["products"])
        self.watch.load_state_dict(state.get("watch", {}))
        if "multipliers" in state:
            saved = state["multipliers"]
            penalty = self._trainer.args.method == "wc_penalty"
            kind = PenaltyMultipliers if penalty else StepwiseMultipliers
            self.multipliers = kind(len(saved["w0"]), 1.0, 1.0, 1.0)
            nu = state["nu"].to(self._trainer.args.device) if "nu" in state else None
            self.multipliers.load_state_dict({**saved, "nu": nu})
