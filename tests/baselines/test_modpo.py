"""MODPO's loss, its offsets, and the rows it sees."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.baselines.modpo import offsets, trained_objective
from paretune.baselines.single_objective import OneObjectiveTrainer
from paretune.errors import InputError
from paretune.losses import DPO, IPO, Scored
from paretune.moo.preference import Preference
from paretune.training import ClampConfig, ClampTrainer, MultiObjectiveConfig, MultiObjectiveTrainer

LOGPS, REJECTED = torch.tensor([-5.0, -9.0, -2.5]), torch.tensor([-6.0, -4.0, -3.0])
CHOSEN = Scored(LOGPS, torch.tensor([3, 4, 2]), LOGPS - 0.4)
OTHER = Scored(REJECTED, torch.tensor([2, 2, 5]), REJECTED + torch.tensor([0.1, -0.7, 0.2]))


@pytest.mark.parametrize("weight", [0.1, 0.3, 1.0])
def test_zero_margins_are_dpo_at_beta_over_the_weight(weight: float) -> None:
    found = DPO(beta=0.3, temperature=weight)(CHOSEN, OTHER, torch.zeros(3))
    assert torch.equal(found, DPO(beta=0.3 / weight)(CHOSEN, OTHER))


def test_the_loss_against_its_formula() -> None:
    weight, beta, margin = 0.3, 0.2, torch.tensor([1.5, -0.4, 0.0])
    found = DPO(beta=beta, temperature=weight)(CHOSEN, OTHER, 0.7 * margin)
    delta = (CHOSEN.logps - CHOSEN.reference) - (OTHER.logps - OTHER.reference)  # type: ignore[operator]
    expected = [
        -torch.log(1 / (1 + torch.exp(-(beta * d - 0.7 * m) / weight)))
        for d, m in zip(delta, margin, strict=True)
    ]
    assert found.tolist() == pytest.approx([float(value) for value in expected], rel=1e-5)


def test_offsets_are_for_dpo_alone() -> None:
    with pytest.raises(InputError, match="for the loss 'dpo', not 'ipo'"):
        IPO()(CHOSEN, OTHER, torch.zeros(3))
    with pytest.raises(InputError, match="must be positive"):
        DPO(temperature=0.0)


def test_which_objective_is_trained() -> None:
    p = Preference.of({"a": 0.4, "b": 0.4, "c": 0.2, "d": 0.0})
    assert trained_objective(p, None) == "a"
    assert trained_objective(p, "c") == "c"
    with pytest.raises(InputError, match="gives 'd' none: leave that point out"):
        trained_objective(p, "d")


@pytest.fixture
def make(tokenizer: Any, tiny_lora: Any, random_pairs: Any, tmp_path: Path) -> Callable[..., Any]:
    """Trainers on the same data, each with a fresh copy of the same model."""

    def build(
        kind: Callable[..., Any], preference: dict[str, float], shared: bool = True, **args: Any
    ) -> Any:
        config = ClampConfig if kind is ClampTrainer else MultiObjectiveConfig
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            "save_strategy": "no",
            "dataloader_pin_memory": False,
            "preference": preference,
            **args,
        }
        pairs = random_pairs(("one", "two", "three"), n=8, shared=shared)
        return kind(tiny_lora(fresh=True), config(**settings), pairs, processing_class=tokenizer)

    return build


P = {"one": 0.2, "two": 0.5, "three": 0.3}


def batches(trainer: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    accumulate = trainer.engine.accumulate

    def record(batch: Any, scale: float = 1.0) -> None:
        seen.append(batch)
        accumulate(batch, scale)

    trainer.engine.accumulate = record
    trainer.train()
    return seen


def sides(batch: dict[str, Any], name: str) -> list[Any]:
    ids, pairs = batch["input_ids"], batch["pairs"][name]
    rows = [*pairs["chosen"].tolist(), *pairs["rejected"].tolist()]
    return [[token for token in ids[row].tolist() if token != 0] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_all_methods_see_the_same_batches(make: Callable[..., Any], shared: bool) -> None:
    modpo = partial(OneObjectiveTrainer, trained="two", loss=DPO(temperature=0.5))
    clamp, linear, one = (
        batches(make(kind, P, shared)) for kind in (ClampTrainer, MultiObjectiveTrainer, modpo)
    )
    for theirs, ours in zip(clamp, linear, strict=True):
        assert torch.equal(theirs["input_ids"], ours["input_ids"])
    assert len(one) == 4 if shared else 11 <= len(one) <= 13  # a third of the tokens a step
    for theirs, ours in zip(clamp, one, strict=False):
        assert list(ours["pairs"]) == ["two"]
        assert sides(theirs, "two") == sides(ours, "two")
    other_seed = batches(make(ClampTrainer, P, shared, seed=1))
    assert not all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(clamp, other_seed, strict=True)
    )


def test_without_margins_it_trains_as_dpo_on_one_objective(make: Callable[..., Any]) -> None:
    """All rows have all objectives' pairs here, so a weight of one is plain DPO at β / w."""
    modpo = partial(OneObjectiveTrainer, trained="two", loss=DPO(beta=0.1, temperature=0.5))
    ours = make(modpo, P)
    ours.prepared["train"].pairs["two"].offset = [0.0] * 8
    plain = make(MultiObjectiveTrainer, {"one": 0.0, "two": 1.0, "three": 0.0}, beta=0.2)
    ours.train()
    plain.train()
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    steps = [row for row in ours.state.log_history if "two/loss" in row]
    assert [row["spend/passes"] for row in steps] == [2.0] * 4
    assert steps[1]["spend/policy_tokens"] > 0


def test_offsets_of_pairs(make: Callable[..., Any]) -> None:
    modpo = partial(OneObjectiveTrainer, trained="two", loss=DPO(temperature=0.5))
    trainer = make(modpo, P)
    pairs = trainer.prepared["train"]
    rewards = {name: torch.randn(len(pairs.sequences)) for name in ("one", "three")}
    found = offsets(pairs, "two", Preference.of(P), rewards)
    index = pairs.pairs["two"]
    for value, chosen, rejected in zip(found, index.chosen, index.rejected, strict=True):
        expected = 0.2 * (rewards["one"][chosen] - rewards["one"][rejected])
        expected += 0.3 * (rewards["three"][chosen] - rewards["three"][rejected])
        assert value == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(InputError, match="of other data"):
        offsets(pairs, "two", Preference.of(P), {"one": torch.zeros(2)})
    assert trainer.implicit_rewards(pairs, 0.1).abs().max() < 1e-5  # a fresh adapter
