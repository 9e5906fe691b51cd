"""One-step lookahead: x moves along what the step that y just took does to the criteria."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn

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


_KEPT_OF_SETS, _KEPT_OF_CRITERIA = 0.7, 0.6
"""What averages keep of themselves at each new gradient: of a set in each step of training, of the
criteria in each step of x. Without them the few rows of a step decide which way x goes."""


class RunningMean:
    """Gradients averaged over the last steps, in float32: ``kept`` of the mean, the rest is new."""

    def __init__(self, kept: float) -> None:
        self._kept = kept
        self.values: list[Tensor] = []
        """Per parameter, flattened; none before the first step."""

    def add(self, new: Sequence[Tensor]) -> None:
        if not self.values:
            self.values = [each.clone() for each in new]
        for mean, each in zip(self.values, new, strict=True):
            mean.mul_(self._kept).add_(each, alpha=1 - self._kept)

    def state(self) -> Tensor | None:
        """All of it, flattened; None if there is nothing."""
        return torch.cat([each.flatten() for each in self.values]) if self.values else None

    def load(self, state: Tensor | None, shapes: Sequence[torch.Size]) -> None:
        """Continue from a `state`, whose parts have these shapes."""
        if state is not None:
            parts = state.split([shape.numel() for shape in shapes])
            self.values = [part.view(s).clone() for part, s in zip(parts, shapes, strict=True)]


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
    step in their own direction would have, so noise in P does not scale steps of x. Both gradients
    are averages over the last steps, since those of the few rows of one are mostly noise. ω are the
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
        self.filled: Sequence[nn.Parameter] = self.engine.bank.parameters
        live = trainer.preference.live
        self._preference = torch.tensor([trainer.preference[n] for n in live]).double()
        self._clamp = Clamp(args.mu) if args.criteria_weights == "clamp" else None
        self._multipliers = DampedMultipliers(len(live))
        self._v = args.v
        self._moves = True
        self._pending = False
        self._sets, self._target = RunningMean(_KEPT_OF_SETS), RunningMean(_KEPT_OF_CRITERIA)
        self._precondition: Preconditioner | None = None
        self._tokens = self._passes = 0

    def begin(self) -> None:
        started = self._trainer.x_started
        self._moves = started >= 0 and started % self._trainer.x_every == 0
        # v is estimated where training begins, when criteria are least alike.
        reads = self._moves or (self._v is None and self._clamp is None)
        self.engine = self._whole if reads else self._of_sets
        self.engine.bank.zero()
        self._pending = False
        self._tokens, self._passes = 0, self.engine.passes

    def add(self, inputs: Mapping[str, Any]) -> None:
        if self.engine is not self._whole:
            inputs = restrict(inputs, *self._labels)
        self._tokens += int(inputs["attention_mask"].sum())
        self.engine.accumulate(inputs)

    @property
    def _blocks(self) -> list[Tensor]:
        bank = self.engine.bank
        assert isinstance(bank, GradientBank)
        return bank.blocks

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
        rows = [block.view(len(block), -1) for block in self._blocks]
        if self._whole.bank.n_objectives > n:
            self._sets.add([each[:n] for each in rows])
        norms = gramian.diagonal().clamp(min=0).sqrt().tolist()
        trainer.note(
            {f"train/{k}/loss": f for k, f in zip(trainer.sets, losses[:n].tolist(), strict=True)}
            | {f"gradient_norm/{k}": g for k, g in zip(trainer.sets, norms, strict=False)}
        )
        if n == len(losses):  # the weights stay
            return float(weights @ losses)
        chebyshev = self._preference * losses[n:]
        omega = self._criteria_weights(gramian[n:, n:], losses[n:])
        self._pending = self._moves
        if self._moves:
            criteria = omega * self._preference
            self._target.add([criteria.to(each) @ each[n:] for each in rows])
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
        if not self._pending or self._precondition.rate == 0:
            return
        products, size = self.products(self._precondition)
        products = self._same(products)
        size = float(self._same(torch.tensor([size], dtype=torch.float64)))
        self._pending = False
        if not (bool(products.isfinite().all()) and 0 < size < math.inf):
            return
        alignment = products / size
        trainer.weights.follow(-alignment)
        trainer.note(
            {f"alignment/{k}": a for k, a in zip(trainer.sets, alignment.tolist(), strict=True)}
            | {f"set_weight/{k}": w for k, w in trainer.set_weights.items()}
        )

    def products(self, precondition: Preconditioner) -> tuple[Tensor, float]:
        """⟨∇L_n, P ∇F⟩ of each set, ``(N,)`` float64 on the CPU, and ‖Σ w ∇L‖_P ‖∇F‖_P."""
        n, weights = len(self._trainer.sets), self._trainer.weights.values
        products = torch.zeros(n, dtype=torch.float64)
        upper_square = lower_square = 0.0
        factors = precondition.of(self.filled)
        for factor, sets, target in zip(
            factors, self._sets.values, self._target.values, strict=True
        ):
            scale = factor.reshape(-1) if isinstance(factor, Tensor) else None
            for start in range(0, sets.shape[1], _CHUNK):
                part, upper = (each[..., start : start + _CHUNK] for each in (sets, target))
                by = factor if scale is None else scale[start : start + _CHUNK]
                lower = weights.to(part) @ part
                moved = upper * by
                products += (part @ moved).double().cpu()
                upper_square += float(upper @ moved)
                lower_square += float(lower @ (lower * by))
        return products, math.sqrt(upper_square * lower_square)

    def state_dict(self) -> dict[str, Any]:
        means = {"set_gradients": self._sets.state(), "criteria_gradient": self._target.state()}
        kept = {name: value for name, value in means.items() if value is not None}
        return {"v": self._v, "w0": list(self._multipliers.w0), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._v, self._multipliers.w0 = state["v"], list(state["w0"])
        n, device = len(self._trainer.sets), self._trainer.args.device
        for mean, name, shape in (
            (self._sets, "set_gradients", (n,)),
            (self._target, "criteria_gradient", ()),
        ):
            shapes = [torch.Size((*shape, p.numel())) for p in self.filled]
            mean.load(state[name].to(device) if name in state else None, shapes)
