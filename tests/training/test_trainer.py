"""The trainer on tiny models: what it optimises, logs, keeps, and refuses."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from paretune import ClampConfig, InputError, TrainingStoppedError
from paretune.moo.weightings import Linear
from paretune.training import MultiObjectiveConfig, MultiObjectiveTrainer
from paretune.training.checkpoints import newest_complete


def adapter(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def step_logs(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "learning_rate" in row]


def test_fresh_adapter_has_loss_ln2_and_everything_is_logged(clamp: Any) -> None:
    trainer = clamp(max_steps=2)
    trainer.train()
    first = step_logs(trainer)[0]
    assert first["one/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["two/loss"] == pytest.approx(math.log(2), abs=1e-6)
    expected = {"clamp/mgda_term", "clamp/chebyshev_term", "clamp/gap", "clamp/min_norm"} | {
        "clamp/vertex",
        "time/solver_share",
        "time/step",
        "cosine/one|two",
    }
    for name in ("one", "two"):
        expected |= {f"{kind}/{name}" for kind in ("lambda", "weight", "gradient_norm")}
    assert expected <= set(first)
    assert first["lambda/one"] + first["lambda/two"] == pytest.approx(1)
    assert first["clamp/gap"] < 1e-9
    # Eq. 6's terms from the logged numbers: μ λᵀ(p∘F) with both losses at ln 2
    assert first["clamp/chebyshev_term"] == pytest.approx(100 * 0.5 * math.log(2), rel=1e-5)


@pytest.mark.slow
def test_training_lowers_the_chebyshev_value(clamp: Any, random_pairs: Any) -> None:
    pairs = random_pairs()
    for index, row in enumerate(pairs["two"]):  # so that both can fall
        row["chosen"], row["rejected"] = (pairs["one"][index][k] for k in ("chosen", "rejected"))
    trainer = clamp(train=pairs, evaluation=pairs, max_steps=30)
    before = trainer.evaluate()
    assert before["eval_chebyshev"] == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert before["eval_one_accuracy"] == pytest.approx(0.5, abs=0.5)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_chebyshev"] < 0.8 * before["eval_chebyshev"]
    assert after["eval_one_margin"] > 0


def test_packed_training_is_padded_training_but_for_rounding(
    clamp: Any, random_pairs: Any, tiny_lora: Any
) -> None:
    pairs = random_pairs()
    for rows in pairs.values():  # answers that follow a prompt twice in a batch
        rows.append({**rows[0], "chosen": rows[1]["chosen"]})
    adapters, losses = [], []
    for packing in ("on", "off"):
        trainer = clamp(
            train=pairs,
            evaluation=pairs,
            model=tiny_lora(),
            folder=packing,
            packing=packing,
            optim="sgd",
        )
        trainer.train()
        adapters.append(adapter(trainer))
        losses.append(trainer.evaluate())
    assert adapters[0].equal(adapters[1]) is False  # another order of sums
    torch.testing.assert_close(*adapters, rtol=1e-4, atol=2e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)


def test_tokens_per_batch_leaves_the_steps_as_they_are(
    clamp: Any, tiny_lora: Any, random_pairs: Any, caplog: Any
) -> None:
    pairs, adapters, passes = random_pairs(n=8, weights=True), [], []
    for rows in pairs.values():  # else the objectives oppose each other exactly
        rows.append({**rows[0], "chosen": rows[1]["chosen"]})
    for tokens in (None, 60, 15):
        trainer = clamp(
            train=pairs,
            model=tiny_lora(),
            folder=str(tokens),
            tokens_per_batch=tokens,
            per_device_train_batch_size=4,
            optim="sgd",
        )
        trainer.train()
        adapters.append(adapter(trainer))
        passes.append(trainer.totals.spend.passes)
        assert trainer.state.global_step == 4
    assert passes[0] < passes[1] <= passes[2]
    assert not adapters[0].equal(adapter(clamp(train=pairs, model=tiny_lora(), folder="untrained")))
    for found in adapters[1:]:
        torch.testing.assert_close(found, adapters[0], rtol=1e-4, atol=1e-5)
    assert "more than tokens_per_batch=15 tokens" in caplog.text
    with pytest.raises(InputError, match="tokens_per_batch must be at least 1"):
        clamp(tokens_per_batch=0)


def test_zero_weight_equals_single_objective_training(clamp: Any, random_pairs: Any) -> None:
    pairs = random_pairs()
    both = clamp({"one": 0.0, "two": 1.0}, train=pairs, folder="both")
    alone = clamp({"two": 1.0}, train={"two": pairs["two"]}, folder="alone")
    both.train()
    alone.train()
    torch.testing.assert_close(adapter(both), adapter(alone), rtol=0, atol=0)
    assert "one/loss" not in step_logs(both)[0]
    assert step_logs(both)[0]["weight/two"] == 1.0


def test_linear_equals_plain_training_on_the_weighted_sum(
    tmp_path: Path, tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    """PWG through the bank against one SGD step on Σ p_m f^m by autograd."""
    from paretune.data.sampling import PairCollator
    from paretune.gradients.objectives import loss_sums
    from paretune.logprobs import sequence_logps

    preference = {"one": 0.3, "two": 0.7}
    args = MultiObjectiveConfig(
        output_dir=str(tmp_path),
        preference=preference,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        per_device_train_batch_size=6,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = MultiObjectiveTrainer(
        tiny_lora(), args, random_pairs(), processing_class=tokenizer, weighting=Linear()
    )
    model = tiny_lora()
    data = trainer.train_dataset
    collate = PairCollator(trainer._train_pairs, tokenizer.pad_token_id)
    batch = collate([data[i] for i in range(len(data))])
    sums, totals = loss_sums(sequence_logps(model, batch), batch, trainer.losses)
    (torch.tensor([0.3, 0.7]) @ (sums / totals)).backward()
    expected = [p - 0.1 * p.grad for p in model.parameters() if p.requires_grad]
    trainer.train()
    found = adapter(trainer)
    torch.testing.assert_close(
        found, torch.cat([p.detach().flatten() for p in expected]), rtol=1e-5, atol=1e-6
    )


class _Kill(Exception):
    """Stands for a killed process."""


class _KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise _Kill


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "tokens"), [(1, None), (2, None), (1, 50)])
def test_resume_is_bit_exact(
    clamp: Any, random_pairs: Any, accumulation: int, tokens: int | None
) -> None:
    pairs = random_pairs(n=10)
    options: dict[str, Any] = {
        "tokens_per_batch": tokens,
        "train": pairs,
        "evaluation": random_pairs(n=4, seed=1),
        "max_steps": 9,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "early_stopping_patience": 3,
        "loss_ema": 0.5,
        "scale_free": True,
        "mu_final": 1.0,
        "mu_schedule": "exponential",
        "gradient_accumulation_steps": accumulation,
    }
    whole = clamp(folder="whole", **options)
    whole.train()
    with pytest.raises(_Kill):
        clamp(folder="cut", callbacks=[_KillAt(5)], **options).train()
    # A kill in the middle of writing a checkpoint: it must not be resumed from.
    folder = Path(whole.args.output_dir).parent / "cut"
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-6")
    (folder / "checkpoint-6" / "paretune_state.json").unlink()
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    resumed = clamp(folder="cut", **options)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(adapter(resumed), adapter(whole), rtol=0, atol=0)
    assert resumed.clamp.state_dict() == whole.clamp.state_dict()
    assert resumed.state.global_step == whole.state.global_step
    for a, b in zip(step_logs(resumed), step_logs(whole), strict=True):
        assert a["one/loss"] == b["one/loss"]
        assert a["lambda/one"] == b["lambda/one"]
    assert resumed.state.best_metric == whole.state.best_metric


@pytest.mark.slow
def test_resume_in_the_middle_of_an_epoch_of_independent_rows(
    clamp: Any, random_pairs: Any
) -> None:
    pairs = random_pairs(n=10, shared=False)
    pairs["two"] = pairs["two"][:7]
    options = {"train": pairs, "max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = clamp(folder="whole", sampling="independent", **options)
    whole.train()
    with pytest.raises(_Kill):  # four steps an epoch: the checkpoint is of the second
        clamp(folder="cut", sampling="independent", callbacks=[_KillAt(7)], **options).train()
    resumed = clamp(folder="cut", sampling="independent", **options)
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(adapter(resumed), adapter(whole), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("patience", [0, 2])
def test_a_run_that_is_over_does_not_go_on(clamp: Any, random_pairs: Any, patience: int) -> None:
    options: dict[str, Any] = {
        "evaluation": random_pairs(n=4, seed=9),
        "max_steps": 30 if patience else 3,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "early_stopping_patience": patience,
    }
    whole = clamp(**options)
    whole.train()
    assert whole.state.global_step < 30
    again = clamp(**options)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step
    torch.testing.assert_close(adapter(again), adapter(whole), rtol=0, atol=0)


def test_a_checkpoint_that_was_being_deleted_is_passed_over(clamp: Any) -> None:
    trainer = clamp(save_strategy="steps", save_steps=2)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert newest_complete(folder) == str(folder / "checkpoint-4")
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    assert newest_complete(folder) == str(folder / "checkpoint-2")


def test_early_stopping_keeps_every_adapter_it_evaluates() -> None:
    args = ClampConfig(eval_strategy="steps", early_stopping_patience=2, use_cpu=True)
    assert args.eval_steps == args.save_steps == 50


def test_early_stopping_keeps_the_best_adapter(clamp: Any, random_pairs: Any) -> None:
    trainer = clamp(
        evaluation=random_pairs(n=4, seed=9),
        max_steps=40,
        learning_rate=0.05,
        eval_strategy="steps",
        eval_steps=1,
        early_stopping_patience=3,
    )
    trainer.train()
    values = [row["eval_chebyshev"] for row in trainer.state.log_history if "eval_chebyshev" in row]
    assert len(values) < 40
    assert len(values) - 1 - values.index(min(values)) == 3
    assert trainer.evaluate()["eval_chebyshev"] == pytest.approx(min(values), rel=1e-6)


class _Poison(TrainerCallback):
    """Makes the reference of the training data NaN from a step on."""

    def __init__(self, first: int, last: int) -> None:
        self.steps, self.trainer = range(first, last + 1), None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer: Any = self.trainer
        trainer._train_pairs.reference = (
            trainer._clean * float("nan") if state.global_step in self.steps else trainer._clean
        )


def test_nonfinite_steps_are_skipped_and_reported(clamp: Any) -> None:
    poison = _Poison(1, 1)
    trainer = clamp(callbacks=[poison], max_steps=3, dataloader_prefetch_factor=None)
    poison.trainer, trainer._clean = trainer, trainer._train_pairs.reference
    # The batch is collated before on_step_begin, so poison one step ahead shows one step later.
    trainer.train()
    logs = step_logs(trainer)
    skipped = [row for row in logs if row.get("nonfinite_steps")]
    assert len(skipped) == 1
    assert adapter(trainer).isfinite().all()


def test_stops_with_a_checkpoint_when_nothing_is_finite(clamp: Any) -> None:
    poison = _Poison(1, 100)
    trainer = clamp(callbacks=[poison], max_steps=50, max_nonfinite_steps=3)
    poison.trainer, trainer._clean = trainer, trainer._train_pairs.reference
    with pytest.raises(TrainingStoppedError, match="3 steps in a row"):
        trainer.train()
    assert list(Path(trainer.args.output_dir).glob("checkpoint-*/adapter_model.safetensors"))
    assert adapter(trainer).isfinite().all()


def test_full_fine_tuning(clamp: Any, tiny_llama: Any, random_pairs: Any) -> None:
    pairs = random_pairs()
    trainer = clamp(model=tiny_llama(), evaluation=pairs, max_steps=2)
    assert trainer.engine.method == "layerwise"
    prepared = trainer.prepare(random_pairs(seed=3))
    assert trainer.evaluate(prepared)["eval_one_loss"] == pytest.approx(math.log(2), abs=1e-6)
    trainer.train()
    trainer.evaluate(prepared)
    with pytest.raises(InputError, match="reference model is gone"):
        trainer.evaluate(random_pairs(seed=4))


def test_full_fine_tuning_without_a_bank_takes_the_same_steps(clamp: Any, tiny_llama: Any) -> None:
    found = []
    for gradients in ("auto", "per_objective"):
        trainer = clamp(model=tiny_llama(), folder=gradients, gradients=gradients, optim="sgd")
        trainer.train()
        found.append((adapter(trainer), trainer.totals.spend.passes, step_logs(trainer)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    assert [passes for _, passes, _ in found] == [4 * 4, 4 * 3]  # one more backward pass a step
    for one, other in zip(found[0][2], found[1][2], strict=True):
        assert one["cosine/one|two"] == pytest.approx(other["cosine/one|two"], abs=1e-4)
        assert one["lambda/one"] == pytest.approx(other["lambda/one"], abs=1e-3)


@pytest.mark.slow
def test_full_fine_tuning_resumes_bit_for_bit(clamp: Any, tiny_llama: Any) -> None:
    options: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    whole = clamp(model=tiny_llama(), folder="whole", **options)
    whole.train()
    with pytest.raises(_Kill):
        clamp(model=tiny_llama(), folder="cut", callbacks=[_KillAt(3)], **options).train()
    resumed = clamp(model=tiny_llama(), folder="cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.engine.method == "layerwise"
    torch.testing.assert_close(adapter(resumed), adapter(whole), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ipo", "cpo", "simpo"])
def test_other_losses_train(clamp: Any, random_pairs: Any, loss: str) -> None:
    trainer = clamp(loss=loss, evaluation=random_pairs(), max_steps=2)
    trainer.train()
    assert all(math.isfinite(value) for value in trainer.evaluate().values())


def test_reference_is_cached_by_content(clamp: Any, tmp_path: Path, monkeypatch: Any) -> None:
    cache = tmp_path / "cache"
    first = clamp(reference_cache=str(cache))
    assert len(set(cache.iterdir()) - {cache / "tokens"}) == 1
    monkeypatch.setattr("paretune.training.base.score_sequences", None)  # must not be called
    again = clamp(reference_cache=str(cache), preference={"one": 0.9, "two": 0.1})
    torch.testing.assert_close(again._train_pairs.reference, first._train_pairs.reference)


def test_the_model_as_given_is_not_scored_again(clamp: Any, monkeypatch: Any) -> None:
    trainer = clamp()
    pairs, scored = trainer.train_pairs, trainer.evaluate(trainer.train_pairs)
    monkeypatch.setattr("paretune.training.base.score_sequences", None)  # must not be called
    found = trainer.measure(pairs, logps=pairs.reference)
    assert found["eval_one_loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert found["eval_one_margin"] == 0.0
    assert found == {name: pytest.approx(scored[name], abs=1e-5) for name in found}


def test_adapter_loads_with_peft_alone(clamp: Any, tmp_path: Path, tiny_llama: Any) -> None:
    from peft import PeftModel

    trainer = clamp()
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter").eval()
    ids = torch.arange(5, 15)[None]
    trainer.model.eval()
    torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits, rtol=0, atol=1e-6)


def test_mistakes_are_named(clamp: Any, random_pairs: Any, tiny_lora: Any) -> None:
    with pytest.raises(InputError, match="'three'"):
        clamp({"one": 0.5, "three": 0.5}, train=random_pairs(("one", "two")))
    with pytest.raises(InputError, match="'two'"):
        clamp({"one": 1.0}, train=random_pairs(("one", "two")))
    with pytest.raises(InputError, match=r"add up|sum"):
        clamp({"one": 0.7, "two": 0.7})
    with pytest.raises(InputError, match="'two' has no usable pairs: it is empty"):
        clamp(train={"one": random_pairs()["one"], "two": []})
    with pytest.raises(InputError, match="eval_strategy"):
        clamp(early_stopping_patience=2)
    with pytest.raises(InputError, match="longer than max_length=4"):
        clamp(max_length=4)
    with pytest.raises(InputError, match="mu_final together with a mu_schedule"):
        ClampConfig(mu=100.0, mu_final=1.0, use_cpu=True)
    with pytest.raises(InputError, match="nadir needs an ideal point"):
        ClampConfig(nadir={"one": 1.0}, use_cpu=True)
    with pytest.raises(InputError, match="per_device_train_batch_size must be at least 1, not 0"):
        clamp(per_device_train_batch_size=0)


@pytest.mark.slow
def test_steps_at_a_vertex_are_told(clamp: Any, caplog: pytest.LogCaptureFixture) -> None:
    clamp({"one": 0.8, "two": 0.2}, mu=1e4).train()
    assert "at a vertex in 100 % of the steps" in caplog.text
    caplog.clear()
    clamp({"one": 0.8, "two": 0.2}, mu="auto", folder="auto").train()
    clamp({"one": 1.0, "two": 0.0}, mu=1e4, folder="end").train()
    assert "vertex" not in caplog.text
