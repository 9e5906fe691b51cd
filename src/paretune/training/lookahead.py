"""One-step lookahead: x moves along what the step that y just took does to the criteria."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, broadcast
from torch import Tensor

from paretune.data.sampling import PairCollator
from paretune.data.tokenization import PairIndex, TokenizedPairs, TokenSequence
from paretune.gradients import GradientBank, ObjectiveGradients
from paretune.gradients.objectives import restrict
from paretune.losses import DPO, PreferenceLoss, Scored
from paretune.moo.solvers.multipliers import DampedMultipliers
from paretune.moo.weightings import Clamp
from paretune.training.part_rows import PairSequence
from paretune.training.preconditioner import Preconditioner
from paretune.training.responses import Part
from paretune.training.weighting_steps import WeightingSteps

if TYPE_CHECKING:
    from paretune.training.data_weighting import DataWeightingTrainer

_CHUNK = 65_536  # columns per float32 product; their sums are taken in float64


class TokenLikelihood(PreferenceLoss):
    """Cross-entropy of the chosen response per token; there is no rejected one."""

    def __call__(self, chosen: Scored, rejected: Scored, offset: Tensor | None = None) -> Tensor:
        return -chosen.logps / chosen.lengths

    def reward(self, response: Scored) -> Tensor:
        return response.logps / response.lengths


def response_pairs(parts: Mapping[Part, Sequence[TokenSequence]]) -> TokenizedPairs:
    """Pairs, and responses as pairs with themselves, each distinct sequence once."""
    position: dict[TokenSequence, int] = {}
    pairs = {}
    for part, sequences in parts.items():
        count = list(range(len(sequences)))
        sides: list[list[int]] = [[], []]
        for each in sequences:
            both = (each.chosen, each.rejected) if isinstance(each, PairSequence) else (each, each)
            for side, one in zip(sides, both, strict=True):
                side.append(position.setdefault(one, len(position)))
        pairs[label(part)] = PairIndex(sides[0], sides[1], count, [1.0] * len(count), count)
    return TokenizedPairs(list(position), pairs)


def part_loss(sequences: Sequence[TokenSequence], beta: float) -> PreferenceLoss:
    """DPO for pairs, else the likelihood of the responses."""
    return DPO(beta) if isinstance(sequences[0], PairSequence) else TokenLikelihood()


def label(part: Part) -> str:
    """What a part is called among the objectives of a gradient bank."""
    return f"{part.kind} {part.name}"


class LookaheadCollator:
    """Turns rows of `ResponseRows` into a batch of `ObjectiveGradients`."""

    def __init__(self, pairs: TokenizedPairs, pad_token_id: int) -> None:
        self.pairs = pairs
        self._collate = PairCollator(pairs, pad_token_id)

    def __call__(self, rows: Sequence[list[dict[Part, int]]]) -> dict[str, Any]:
        return self._collate([{label(p): row for p, row in draws[0].items()} for draws in rows])


class Lookahead(WeightingSteps):
    """y steps on the weighted training loss, x along the one-step hypergradient.

    From y the optimiser goes to about y − P Σ_n w_n ∇L_n, w = softmax(x), so that a set's weight
    changes what is to be minimised, Σ_s ω_s p_s f_s, by

        −⟨∇L_n, P Σ_s ω_s p_s ∇f_s⟩

    to first order. x takes a step of its Adam along that, the natural gradient of the simplex
    (Amari, 1998; exponentiated gradients), divided by the norms of the two combined gradients (of
    the sets and of the criteria) in the metric P: their product is the fall of the criteria that a
    step in their own direction would have, so noise in P does not scale steps of x. ω are the
    multipliers of max_s p_s f_s (WC-Penalty paper, Eq. 1, eliminated), or λ* of CLAMP (Eq. 6) on
    the criteria's Gramian. All N + S gradients come from one forward and one backward pass where
    that is exact. y never sees a validation row.

    Args:
        trainer: Its model, arguments, set weights and preference.
        parts: Rows of the N sets, then of the S criteria.
    """

    def __init__(
        self, trainer: DataWeightingTrainer, parts: Mapping[Part, Sequence[TokenSequence]]
    ) -> None:
        self._trainer, args = trainer, trainer.args
        losses = {label(part): part_loss(rows, args.beta) for part, rows in parts.items()}
        self._labels = [*losses][: len(trainer.sets)]
        whole = ObjectiveGradients(trainer.model, losses, "auto", trainer.packing)
        self.engine = self._whole = self._of_sets = whole
        """What is in use: the gradients of sets and criteria, or of the sets alone."""
        if len(losses) > len(self._labels):
            some = {name: losses[name] for name in self._labels}
            assert isinstance(whole.bank, GradientBank)
            self._of_sets = ObjectiveGradients(
                trainer.model,
                some,
                "auto",
                trainer.packing,
                bank=whole.bank.first(len(some)),
            )
        self.filled = self.engine.bank.parameters
        live = trainer.preference.live
        self._preference = torch.tensor([trainer.preference[n] for n in live]).double()
        self._clamp = Clamp(args.mu) if args.criteria_weights == "clamp" else None
        self._multipliers = DampedMultipliers(len(live))
        self._v = args.v
        self._pending: Tensor | None = None
        self._precondition: Preconditioner | None = None
        self._tokens = self._passes = 0

    def begin(self) -> None:
        started = self._trainer.x_started
        moves = started >= 0 and started % self._trainer.x_every == 0
        self.engine = self._whole if moves else self._of_sets
        self.engine.bank.zero()
        self._pending = None
        self._tokens, self._passes = 0, self.engine.passes

    def add(self, inputs: Mapping[str, Any]) -> None:
        if self.engine is not self._whole:
            inputs = restrict(inputs, *self._labels)
        self._tokens += int(inputs["attention_mask"].sum())
        self.engine.accumulate(inputs)

    @property
    def cost(self) -> tuple[int, int]:
        return self._tokens, self.engine.passes - self._passes

    @property
    def _distributed(self) -> bool:
        return bool(self._trainer.accelerator.distributed_type != DistributedType.NO)

    def _same(self, value: Tensor) -> Tensor:
        """The first process's: reductions may differ in the last bit, steps must not."""
        if not self._distributed:
            return value
        shared: Tensor = broadcast(value.to(self._trainer.accelerator.device))
        return shared.cpu()

    def finish(self) -> float | None:
        trainer, bank = self._trainer, self.engine.bank
        bank.finish(trainer._reduce_sum if self._distributed else None)
        gramian, losses = self._same(bank.gramian()), self._same(bank.losses.clone())
        if not (bool(gramian.isfinite().all()) and bool(losses.isfinite().all())):
            return None
        n = len(trainer.sets)
        weights = trainer.weights.values
        bank.combine(torch.cat([weights, losses.new_zeros(len(losses) - n)]))
        norms = gramian.diagonal().clamp(min=0).sqrt().tolist()
        trainer.note(
            {f"train/{k}/loss": f for k, f in zip(trainer.sets, losses[:n].tolist(), strict=True)}
            | {f"gradient_norm/{k}": g for k, g in zip(trainer.sets, norms, strict=False)}
        )
        if n == len(losses):  # the weights stay
            return float(weights @ losses)
        chebyshev = self._preference * losses[n:]
        omega = self._criteria_weights(gramian[n:, n:], losses[n:])
        self._pending = omega * self._preference
        live = trainer.preference.live
        trainer.note(
            {f"validation/{k}/loss": f for k, f in zip(live, losses[n:].tolist(), strict=True)}
            | {f"omega/{k}": w for k, w in zip(live, omega.tolist(), strict=True)}
        )
        return float(chebyshev.max())

    def _criteria_weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """ω, ``(S,)``: on the simplex."""
        if self._clamp is not None:
            return self._clamp(gramian, losses, self._preference).lam
        chebyshev = (self._preference * losses).tolist()
        if self._v is None:
            spread = max(chebyshev) - min(chebyshev)
            self._v = 1 / spread if spread > 0 else 1.0
        omega = self._multipliers.omega(chebyshev, self._v)
        tau = self._trainer.args.tau
        self._multipliers.w0 = [
            (1 - tau) * b + tau * w for b, w in zip(self._multipliers.w0, omega, strict=True)
        ]
        return torch.tensor(omega, dtype=torch.float64)

    def moved(self) -> None:
        trainer = self._trainer
        if self._precondition is None:
            self._precondition = Preconditioner(trainer.optimizer)
        if self._pending is None or self._precondition.rate == 0:
            return
        products, size = self.products(self._precondition, self._pending)
        products = self._same(products)
        size = float(self._same(torch.tensor([size], dtype=torch.float64)))
        self._pending = None
        if not (bool(products.isfinite().all()) and 0 < size < math.inf):
            return
        alignment = products / size
        trainer.weights.follow(-alignment)
        trainer.note(
            {f"alignment/{k}": a for k, a in zip(trainer.sets, alignment.tolist(), strict=True)}
            | {f"set_weight/{k}": w for k, w in trainer.set_weights.items()}
        )

    def products(self, precondition: Preconditioner, criteria: Tensor) -> tuple[Tensor, float]:
        """⟨∇L_n, P ∇F⟩ of each set, ``(N,)`` float64 on the CPU, and ‖Σ w ∇L‖_P ‖∇F‖_P.

        Args:
            criteria: What ∇F = Σ_s c_s ∇f_s weighs the criteria's gradients with, ``(S,)``.
        """
        bank, n = self.engine.bank, len(self._trainer.sets)
        assert isinstance(bank, GradientBank)
        weights = self._trainer.weights.values
        products = torch.zeros(n, dtype=torch.float64)
        upper_square = lower_square = 0.0
        factors = precondition.of(bank.parameters)
        for factor, block in zip(factors, bank.blocks, strict=True):
            rows = block.view(len(block), -1)
            scale = factor.reshape(-1) if isinstance(factor, Tensor) else None
            for start in range(0, rows.shape[1], _CHUNK):
                part = rows[:, start : start + _CHUNK]
                by = factor if scale is None else scale[start : start + _CHUNK]
                upper = criteria.to(part) @ part[n:]
                lower = weights.to(part) @ part[:n]
                moved = upper * by
                products += (part[:n] @ moved).double().cpu()
                upper_square += float(upper @ moved)
                lower_square += float(lower @ (lower * by))
        return products, math.sqrt(upper_square * lower_square)

    def state_dict(self) -> dict[str, Any]:
        return {"v": self._v, "w0": list(self._multipliers.w0)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._v, self._multipliers.w0 = state["v"], list(state["w0"])
