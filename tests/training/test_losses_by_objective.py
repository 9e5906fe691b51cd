"""A loss of its own for each objective: the same numbers as losses computed by hand, one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from paretune import ClampConfig, ClampTrainer
from paretune.errors import InputError
from paretune.losses import CPO, DPO, IPO, SimPO
from paretune.training import MultiObjectiveConfig


def make(
    tmp_path: Path, tiny_lora: Any, tokenizer: Any, pairs: Any, **changes: Any
) -> ClampTrainer:
    args = ClampConfig(
        output_dir=str(tmp_path),
        preference={"one": 0.2, "two": 0.3, "three": 0.5},
        per_device_train_batch_size=6,
        max_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **changes,
    )
    return ClampTrainer(tiny_lora(), args, pairs, pairs, processing_class=tokenizer)


def test_equal_to_the_losses_by_hand(
    tmp_path: Path, tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    pairs = random_pairs(("one", "two", "three"), weights=True)
    given = {"one": "dpo", "two": IPO(beta=0.3), "three": {"name": "cpo", "nll_weight": 0.5}}
    trainer = make(tmp_path, tiny_lora, tokenizer, pairs, loss=given, beta=0.2)
    assert trainer.losses == {"one": DPO(0.2), "two": IPO(0.3), "three": CPO(0.2, 0.5)}
    measured = trainer.evaluate()
    tokenized = trainer.prepare(pairs)
    logps = trainer._score(tokenized.sequences, "by hand")
    lengths = torch.tensor([each.completion_length for each in tokenized.sequences])
    assert tokenized.reference is not None
    ratios = logps - tokenized.reference
    for name, index in tokenized.pairs.items():
        chosen, rejected = torch.tensor(index.chosen), torch.tensor(index.rejected)
        delta = ratios[chosen] - ratios[rejected]
        by_hand = {
            "one": -torch.log(torch.sigmoid(0.2 * delta)),
            "two": (delta - 1 / 0.6) ** 2,
            "three": -torch.log(torch.sigmoid(0.2 * (logps[chosen] - logps[rejected])))
            - 0.5 * logps[chosen],
        }[name]
        weight = torch.tensor(index.weight)
        expected = float((weight * by_hand).sum() / weight.sum())
        assert measured[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-5)
    assert int(lengths.min()) > 0
    trainer.train()
    (step,) = [row for row in trainer.state.log_history if "one/loss" in row]
    for name in ("one", "two", "three"):  # all pairs are in the one batch, at the same weights
        assert step[f"{name}/loss"] == pytest.approx(measured[f"eval_{name}_loss"], rel=1e-4)


def test_one_that_needs_no_reference_beside_one_that_does(
    tmp_path: Path, tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    pairs = random_pairs(("one", "two", "three"))
    given = {"one": SimPO(gamma=0.2), "two": "dpo", "three": "simpo"}
    found = make(tmp_path, tiny_lora, tokenizer, pairs, loss=given).evaluate()
    apart = {
        name: make(tmp_path, tiny_lora, tokenizer, pairs, loss=loss).evaluate()
        for name, loss in given.items()
    }
    for name, each in apart.items():
        assert found[f"eval_{name}_loss"] == pytest.approx(each[f"eval_{name}_loss"], rel=1e-6)


def test_what_is_kept_can_be_written_and_read(tmp_path: Path) -> None:
    args = MultiObjectiveConfig(str(tmp_path), use_cpu=True, loss={"a": "dpo", "b": IPO(0.3)})
    args.to_json_string()
    again = MultiObjectiveConfig(str(tmp_path), use_cpu=True, loss=args.loss)
    assert (
        again.preference_losses("ab")
        == args.preference_losses("ab")
        == {
            "a": DPO(),
            "b": IPO(0.3),
        }
    )


def test_mistakes_show_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown loss 'dop'; did you mean 'dpo'"):
        ClampConfig(str(tmp_path), use_cpu=True, loss={"a": "dop"})
    with pytest.raises(InputError, match="'simpo' has no constant 'gama'; did you mean 'gamma'"):
        ClampConfig(str(tmp_path), use_cpu=True, loss={"a": {"name": "simpo", "gama": 1.0}})
    with pytest.raises(InputError, match="gamma has no effect on the loss dpo"):
        ClampConfig(str(tmp_path), use_cpu=True, gamma=1.0)
    args = ClampConfig(str(tmp_path), use_cpu=True, loss={"helpfull": "dpo"})
    with pytest.raises(InputError, match="'helpfull', which is no objective; did you mean"):
        args.preference_losses(["helpful"])
