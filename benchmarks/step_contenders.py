"""The ways to take a DPO step on M objectives that `step.py` measures."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paretune.data.sampling import PairCollator
from paretune.data.tokenization import TokenizedPairs
from paretune.gradients import GradientBank, ObjectiveGradients, per_objective
from paretune.gradients.objectives import loss_sums, restrict
from paretune.logprobs import sequence_logps
from paretune.losses import DPO
from paretune.moo.weightings import Clamp

Step = Callable[[], None]


@dataclass
class Case:
    """The model and one batch of M objectives; `exclusive` if one contender alone will use it."""

    model: nn.Module
    tokenizer: Any
    data: TokenizedPairs
    optimizer: torch.optim.Optimizer
    exclusive: bool = False

    def __post_init__(self) -> None:
        self.names = list(self.data.pairs)
        rows = range(len(self.data.pairs[self.names[0]]))
        collate = PairCollator(self.data, self.tokenizer.pad_token_id)
        self.batch = collate([dict.fromkeys(self.names, row) for row in rows])
        self.losses = dict.fromkeys(self.names, DPO(beta=0.1))
        self.preference = torch.full((len(self.names),), 1 / len(self.names)).double()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]

    def clamp(self, bank: GradientBank) -> None:
        """What CLAMP does once the bank is filled."""
        bank.finish()
        bank.combine(Clamp(mu=100.0)(bank.gramian(), bank.losses, self.preference).weights)
        self.optimizer.step()


def floor(case: Case) -> Step:
    def step() -> None:
        sequence_logps(case.model, case.batch).sum().backward()

    return step


def pwg(case: Case) -> Step:
    def step() -> None:
        sums, totals = loss_sums(sequence_logps(case.model, case.batch), case.batch, case.losses)
        (case.preference.float() @ (sums / totals)).backward()
        case.optimizer.step()

    return step


def one_pass(case: Case) -> Step:
    engine = ObjectiveGradients(case.model, case.losses, "one_pass")

    def step() -> None:
        engine.bank.zero()
        engine.accumulate(case.batch)
        case.clamp(engine.bank)

    return step


def shared_forward(case: Case) -> Step:
    bank = GradientBank(case.parameters, len(case.names))

    def step() -> None:
        bank.zero()
        per_objective.accumulate(case.model, case.batch, case.losses, bank, shared_forward=True)
        case.clamp(bank)

    return step


def algorithm_1(case: Case) -> Step:
    bank = GradientBank(case.parameters, len(case.names))
    without_reference = {key: value for key, value in case.batch.items() if key != "reference"}

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
        sums, totals = loss_sums(sequence_logps(case.model, case.batch), case.batch, case.losses)
        backward(list(sums / totals), inputs=case.parameters, parallel_chunk_size=1)
        jac_to_grad(case.parameters, aggregator)
        case.optimizer.step()

    return step


def trl_online(case: Case) -> Step:
    return _trl(case, cached=False)


def trl_cached(case: Case) -> Step:
    return _trl(case, cached=True)


def _trl(case: Case, cached: bool) -> Step:
    """`DPOTrainer.compute_loss`, its backward and AdamW, on as many sequences as the others."""
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()

    n = len(case.batch["input_ids"])
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
    for i in range(0, n, 2):
        chosen, rejected = case.data.sequences[i], case.data.sequences[i + 1]
        rows.append(
            {
                "prompt_ids": list(chosen.input_ids[: chosen.prompt_length]),
                "chosen_ids": list(chosen.input_ids[chosen.prompt_length :]),
                "rejected_ids": list(rejected.input_ids[rejected.prompt_length :]),
                "ref_chosen_logps": float(case.data.reference[i]),  # type: ignore[index]
                "ref_rejected_logps": float(case.data.reference[i + 1]),  # type: ignore[index]
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


CONTENDERS: dict[str, tuple[str, Callable[[Case], Step], str | None]] = {
    # name: (row of the table, factory, package it needs)
    "floor": ("floor: 1 forward, 1 backward", floor, None),
    "pwg": ("PWG: gradient of the weighted sum", pwg, None),
    "one_pass": ("CLAMP, one pass", one_pass, None),
    "shared_forward": ("CLAMP, 1 forward, M backwards", shared_forward, None),
    "algorithm_1": ("CLAMP, Algorithm 1 as written", algorithm_1, None),
    "torchjd": ("TorchJD autojac + MGDA", torchjd, "torchjd"),
    "trl_cached": ("TRL DPOTrainer, reference cached", trl_cached, "trl"),
    "trl_online": ("TRL DPOTrainer, reference online", trl_online, "trl"),
}
