"""The ways to take a DPO step on M objectives that `step.py` measures."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from paretune.data.sampling import PairCollator, Row
from paretune.data.tokenization import TokenizedPairs
from paretune.gradients import GradientBank, Method, ObjectiveGradients, per_objective
from paretune.gradients.objectives import loss_sums, restrict
from paretune.logprobs import PackedPass, Packing, head, sequence_logps
from paretune.losses import DPO
from paretune.models import products
from paretune.moo.weightings import Clamp

Step = Callable[[], None]


@dataclass
class Case:
    """The model and one batch of M objectives; `exclusive` if one contender alone will use it."""

    model: nn.Module
    tokenizer: Any
    data: TokenizedPairs
    rows: list[Row]
    optimizer: torch.optim.Optimizer
    exclusive: bool = False

    def __post_init__(self) -> None:
        self.names = list(self.data.pairs)
        self.batch = PairCollator(self.data, self.tokenizer.pad_token_id)(self.rows)
        self.padded = {name: value for name, value in self.batch.items() if name != "packed"}
        self.losses = dict.fromkeys(self.names, DPO(beta=0.1))
        self.preference = torch.full((len(self.names),), 1 / len(self.names)).double()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def clamp(self, bank: Any) -> None:
        """What CLAMP does once the bank is filled."""
        bank.finish()
        bank.combine(Clamp(mu=100.0)(bank.gramian(), bank.losses, self.preference).weights)
        self.optimizer.step()


def floor(case: Case) -> Step:
    """One forward and one backward over the distinct tokens."""

    def step() -> None:
        run = PackedPass(case.model, case.batch["packed"])
        run.gradients(run.logps.sum(), case.parameters, False)

    return step


def padded_floor(case: Case) -> Step:
    def step() -> None:
        sequence_logps(case.model, case.padded).sum().backward()

    return step


def packed(case: Case) -> Step:
    return _clamp(case, Packing(case.model, "on"), case.batch)


def one_pass(case: Case) -> Step:
    return _clamp(case, Packing(case.model, "off"), case.padded)


def one_pass_logits(case: Case) -> Step:
    """As it was before the head was taken in chunks: all logits of the responses at once."""
    plain = one_pass(case)

    def step() -> None:
        with patch.object(head, "_is_frozen", return_value=False):
            plain()

    return step


def packed_torch(case: Case) -> Step:
    return _with_torch(packed(case))


def one_pass_torch(case: Case) -> Step:
    return _with_torch(one_pass(case))


def _with_torch(inner: Step) -> Step:
    """The same with torch's own products everywhere."""

    def step() -> None:
        with patch.object(products, "products_are_slow", lambda: False):
            inner()

    return step


def floor_onednn(case: Case) -> Step:
    """The floor with the products of `paretune.models.products`, where torch's own are slow."""
    inner = floor(case)

    def step() -> None:
        with products.fast_products():
            inner()

    return step


def layerwise(case: Case) -> Step:
    return _clamp(case, Packing(case.model, "on"), case.batch, "layerwise")


def bank(case: Case) -> Step:
    return _clamp(case, Packing(case.model, "on"), case.batch, "per_objective")


def _clamp(case: Case, packing: Packing, batch: Any, method: Method = "one_pass") -> Step:
    engine = ObjectiveGradients(case.model, case.losses, method, packing, single=True)

    def step() -> None:
        engine.bank.zero()
        engine.accumulate(batch)
        case.clamp(engine.bank)

    return step


def pwg(case: Case) -> Step:
    """The gradient of the weighted sum by the plain padded way."""

    def step() -> None:
        sums, totals = loss_sums(sequence_logps(case.model, case.padded), case.batch, case.losses)
        (case.preference.float() @ (sums / totals)).backward()
        case.optimizer.step()

    return step


def shared_forward(case: Case) -> Step:
    bank = GradientBank(case.parameters, len(case.names))

    def step() -> None:
        bank.zero()
        per_objective.accumulate(case.model, case.padded, case.losses, bank, shared_forward=True)
        case.clamp(bank)

    return step


def algorithm_1(case: Case) -> Step:
    bank = GradientBank(case.parameters, len(case.names))
    without_reference = {key: value for key, value in case.padded.items() if key != "reference"}

    def step() -> None:
        bank.zero()
        all_sums, all_totals = [], []
        for m, name in enumerate(case.names):
            part = dict(restrict(without_reference, name))
            with torch.no_grad(), case.model.disable_adapter():  # type: ignore[operator]
                part["reference"] = sequence_logps(case.model, part)
            logps = sequence_logps(case.model, part)
            sums, totals = loss_sums(logps, part, {name: case.losses[name]})
            bank.add_gradient(m, torch.autograd.grad(sums[0], case.parameters))
            all_sums.append(sums.detach())
            all_totals.append(totals)
        bank.add_losses(torch.cat(all_sums), torch.cat(all_totals))
        case.clamp(bank)

    return step


def torchjd(case: Case) -> Step:
    from torchjd.aggregation import MGDA
    from torchjd.autojac import backward, jac_to_grad

    aggregator = MGDA()

    def step() -> None:
        sums, totals = loss_sums(sequence_logps(case.model, case.padded), case.batch, case.losses)
        backward(list(sums / totals), inputs=case.parameters, parallel_chunk_size=1)
        jac_to_grad(case.parameters, aggregator)
        case.optimizer.step()

    return step


def trl_online(case: Case) -> Step:
    return _trl(case, cached=False)


def trl_cached(case: Case) -> Step:
    return _trl(case, cached=True)


def _trl(case: Case, cached: bool) -> Step:
    """`DPOTrainer.compute_loss`, its backward and AdamW, on the first objective's pairs."""
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()

    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        precompute_ref_log_probs=cached,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    # TRL replaces the forward of the model it is given.
    model = case.model if case.exclusive else copy.deepcopy(case.model)
    trainer = DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
        processing_class=case.tokenizer,
    )
    rows = []
    index = case.data.pairs[case.names[0]]
    for row in case.rows:
        i, j = (side[row[case.names[0]]] for side in (index.chosen, index.rejected))
        chosen, rejected = case.data.sequences[i], case.data.sequences[j]
        rows.append(
            {
                "prompt_ids": list(chosen.input_ids[: chosen.prompt_length]),
                "chosen_ids": list(chosen.input_ids[chosen.prompt_length :]),
                "rejected_ids": list(rejected.input_ids[rejected.prompt_length :]),
                "ref_chosen_logps": float(case.data.reference[i]),  # type: ignore[index]
                "ref_rejected_logps": float(case.data.reference[j]),  # type: ignore[index]
            }
        )
    batch = trainer.data_collator(rows)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        trainer.compute_loss(model, dict(batch)).backward()
        optimizer.step()

    return step


FULL = ("floor", "layerwise", "bank")
"""Those that train all weights; the others train an adapter."""

CONTENDERS: dict[str, tuple[str, Callable[[Case], Step], str | None]] = {
    # name: (row of the table, factory, package it needs)
    "floor": ("floor: 1 forward, 1 backward over distinct tokens", floor, None),
    "floor_onednn": ("the floor through oneDNN, where that is faster", floor_onednn, None),
    "packed": ("CLAMP, packed", packed, None),
    "packed_torch": ("the same, torch's own products", packed_torch, None),
    "one_pass": ("CLAMP, one pass over padded sequences", one_pass, None),
    "one_pass_torch": ("the same, torch's own products", one_pass_torch, None),
    "one_pass_logits": ("the same, all logits at once", one_pass_logits, None),
    "padded_floor": ("1 forward, 1 backward, padded", padded_floor, None),
    "pwg": ("PWG: gradient of the weighted sum, padded", pwg, None),
    "shared_forward": ("CLAMP, 1 forward, M backwards, padded", shared_forward, None),
    "algorithm_1": ("CLAMP, Algorithm 1 as written, padded", algorithm_1, None),
    "layerwise": ("CLAMP, all weights, layer by layer", layerwise, None),
    "bank": ("CLAMP, all weights, a bank of M gradients", bank, None),
    "torchjd": ("TorchJD autojac + MGDA, padded", torchjd, "torchjd"),
    "trl_cached": ("TRL DPOTrainer, reference cached", trl_cached, "trl"),
    "trl_online": ("TRL DPOTrainer, reference online", trl_online, "trl"),
}
