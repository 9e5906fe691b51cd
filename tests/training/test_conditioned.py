"""One adapter for all preferences: gate, gradients, folding, resume, calibration."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel

from paretune import InputError
from paretune.files import read_json, write_json
from paretune.gradients import ObjectiveGradients, engine
from paretune.logprobs import sequence_logps
from paretune.losses import CPO, Scored
from paretune.moo.gates import Gate, spread_preferences
from paretune.moo.weightings import ClampState
from paretune.results.gates import read_gates, write_gates
from paretune.training import ConditionedConfig, ConditionedTrainer
from paretune.training.gated_adapter import GatedAdapter, fold_adapter

LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.fixture
def conditioned(tmp_path: Path, tiny_llama: Any, tokenizer: Any, random_pairs: Any) -> Any:
    """A factory of small trainers of conditioned adapters."""

    def make(
        folder: str = "run",
        objectives: tuple[str, ...] = ("one", "two"),
        lora: dict[str, Any] | None = None,
        shared: bool = True,
        **options: Any,
    ) -> ConditionedTrainer:
        settings: dict[str, Any] = {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 2e-2,
            "save_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return ConditionedTrainer(
            tiny_llama(),
            ConditionedConfig(output_dir=str(tmp_path / folder), **settings | options),
            random_pairs(objectives, n=8, shared=shared),
            random_pairs(objectives, n=8, seed=1),
            processing_class=tokenizer,
            peft_config=LoraConfig(**LORA | (lora or {})),
        )

    return make


def adapter(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["centred", "objectives"])
@pytest.mark.parametrize("rslora", [False, True])
def test_folded_adapter_is_the_gated_model(
    conditioned: Any, tiny_llama: Any, tmp_path: Path, basis: str, rslora: bool
) -> None:
    made = conditioned(basis=basis, lora={"use_rslora": rslora})
    made.train()
    made.save_gated(tmp_path / "gated")
    ids = torch.arange(5, 25)[None]
    for t in (0.0, 0.37, 1.0, 1.4):
        position = [t, 1 - t]
        with made.gated.at(position), torch.no_grad():
            expected = made.model.eval()(ids).logits
        fold_adapter(tmp_path / "gated", tmp_path / "stock", position)
        stock = PeftModel.from_pretrained(tiny_llama(), tmp_path / "stock")
        with torch.no_grad():
            assert torch.allclose(stock.eval()(ids).logits, expected, atol=1e-5)
        made.save_adapter(position, tmp_path / "direct")
        direct, folded = (
            (tmp_path / name / "adapter_model.safetensors").read_bytes()
            for name in ("direct", "stock")
        )
        assert direct == folded


def test_each_row_is_computed_at_its_own_position(tiny_lora: Any) -> None:
    model = tiny_lora(r=6)
    gated = GatedAdapter(model, Gate(3))
    ids = torch.arange(5, 35).view(3, 10)
    positions = np.array([[0.2, 0.3, 0.5], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    gated.set(positions)
    with torch.no_grad():
        together = model(ids).logits
        for row, position in enumerate(positions):
            with gated.at(position):
                alone = model(ids[row : row + 1]).logits
            assert torch.allclose(together[row], alone[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("gradients", ["one_pass", "per_objective"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_descends_the_mean_weighted_loss(
    conditioned: Any, tmp_path: Path, gradients: str, shared: bool, accumulation: int
) -> None:
    made = conditioned(
        gradients=gradients,
        shared=shared,
        sampling="joint" if shared else "independent",
        max_steps=1,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0,
        lr_scheduler_type="constant",
    )
    torch.manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before, batches = adapter(made), []
    step = made.training_step
    draws: list[Any] = []
    draw = made._draw

    def record(model: Any, inputs: Any, items: Any = None) -> Any:
        batches.append(inputs)
        return step(model, inputs, items)

    def drawn(rows: int) -> Any:
        draws.append(draw(rows))
        return draws[-1]

    made.training_step, made._draw = record, drawn
    made.train()
    moved = {name: before[name] - p for name, p in adapter(made).items()}
    # The slow twin: autograd of Σ_m Σ_i w p_m f_m / Σ_i w, from the same start.
    for name, parameter in made.model.named_parameters():
        if name in before:
            parameter.data.copy_(before[name])
    total: Any = 0.0
    count = {
        name: sum(float(b["pairs"][name]["weight"].sum()) for b in batches) for name in made.live
    }
    for batch, p in zip(batches, draws, strict=True):
        made.gated.set(p[batch["row"].numpy()])
        responses = Scored(
            sequence_logps(made.model, batch), batch["lengths"], batch.get("reference")
        )
        for m, name in enumerate(made.live):
            pair = batch["pairs"][name]
            values = made.losses[name](responses[pair["chosen"]], responses[pair["rejected"]], None)
            total = total + (pair["weight"] * torch.tensor(p[:, m]) * values).sum() / count[name]
    total.backward()
    parameters = dict(made.model.named_parameters())
    for name, change in moved.items():
        assert torch.allclose(change, parameters[name].grad, rtol=1e-3, atol=1e-6), name


def test_rows_draw_on_where_training_stands(conditioned: Any, tmp_path: Path) -> None:
    made = conditioned(gradient_accumulation_steps=2)
    seen = []
    draw = made._draw
    made._draw = lambda rows: seen.append(draw(rows)) or seen[-1]
    made.train()
    assert np.allclose(np.concatenate(seen), spread_preferences(0, 16, 2, made.args.seed))


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [("one", "two"), ("one", "two", "three")])
@pytest.mark.parametrize("variant", ["plain", "accumulation", "checkpointing", "independent"])
def test_a_clamp_step_is_the_mean_of_its_groups_directions(
    conditioned: Any, objectives: tuple[str, ...], variant: str
) -> None:
    """Against autograd of every objective on every group's rows, and CLAMP's own rule."""
    shared = variant != "independent"
    accumulation = 2 if variant == "accumulation" else 1
    made = conditioned(
        objectives=objectives,
        inner="clamp",
        gradients="one_pass",
        shared=shared,
        sampling="joint" if shared else "independent",
        gradient_checkpointing=variant == "checkpointing",
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=3,  # of two groups: one has a row more
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0,
        lr_scheduler_type="constant",
    )
    torch.manual_seed(1)
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before, batches = adapter(made), []
    step = made.training_step

    def record(model: Any, inputs: Any, items: Any = None) -> Any:
        batches.append(inputs)
        return step(model, inputs, items)

    made.training_step = record
    made.train()
    assert made.engine.method == "one_pass"
    moved = {name: before[name] - p for name, p in adapter(made).items()}
    named = dict(made.model.named_parameters())
    for name, value in before.items():
        named[name].data.copy_(value)
    # The slow twin: rows 0, 2, ... and 1, 3, ... of the step, each at its own preference.
    preferences = spread_preferences(0, 2, len(objectives), made.args.seed)
    state, expected = ClampState(), {name: torch.zeros(()) for name in before}
    rows = [[n for n in range(3 * accumulation) if n % 2 == k] for k in (0, 1)]
    for k, p in enumerate(preferences):
        made.gated.set(p)
        gradients, losses = [], []
        for name in objectives:
            total: Any = 0.0
            weight = 0.0
            for number, batch in enumerate(batches):
                own = torch.tensor([n - 3 * number for n in rows[k] if n // 3 == number])
                pair = batch["pairs"][name]
                scored = Scored(
                    sequence_logps(made.model, batch), batch["lengths"], batch.get("reference")
                )
                sides = (scored[pair[side][own]] for side in ("chosen", "rejected"))
                total = total + (pair["weight"][own] * made.losses[name](*sides, None)).sum()
                weight += float(pair["weight"][own].sum())
            mean = total / weight
            gradients.append(torch.autograd.grad(mean, [named[name] for name in before]))
            losses.append(float(mean.detach()))
        flat = torch.stack([torch.cat([g.flatten() for g in each]) for each in gradients]).double()
        found = state.step(flat @ flat.T, torch.tensor(losses, dtype=torch.float64), p)
        for m, each in enumerate(gradients):
            for name, gradient in zip(before, each, strict=True):
                expected[name] = expected[name] + float(found.weights[m]) / 2 * gradient
    for name, change in moved.items():
        assert torch.allclose(change, expected[name], rtol=1e-3, atol=1e-6), name


def test_a_short_last_batch_leaves_a_group_out(conditioned: Any) -> None:
    made = conditioned(inner="clamp", per_device_train_batch_size=7, max_steps=2)
    made.train()  # 8 rows: a step of 7 and one of a single row, whose other group has none
    assert made.nonfinite_steps == 0
    logged = [row["one/loss"] for row in made.state.log_history if "one/loss" in row]
    assert len(logged) == 2
    assert all(value > 0 for value in logged)


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["pwg", "clamp"])
def test_killed_and_resumed_is_bit_for_bit_the_same(
    conditioned: Any, tmp_path: Path, inner: str
) -> None:
    options = {"lora": {"lora_dropout": 0.2}, "inner": inner}
    whole = conditioned("whole", **options)
    whole.train()
    part = conditioned("part", **options)
    part.train()
    shutil.rmtree(tmp_path / "part" / "checkpoint-4")
    again = conditioned("part", **options)
    again.train(resume_from_checkpoint=True)
    for name, tensor in adapter(whole).items():
        assert torch.equal(tensor, adapter(again)[name]), name
    other = conditioned("part", **options, basis="objectives")
    with pytest.raises(InputError, match="basis"):
        other.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [("one", "two"), ("one", "two", "three")])
def test_training_steers(conditioned: Any, random_pairs: Any, objectives: tuple[str, ...]) -> None:
    made = conditioned(objectives=objectives, max_steps=30, save_strategy="no", learning_rate=1e-2)
    made.train()
    size = len(objectives)
    pairs = made.prepare(random_pairs(objectives, n=8))
    own = []
    for m, name in enumerate(objectives):
        corner, centre = np.eye(size)[m], np.full(size, 1 / size)
        own.append(
            [made.evaluate(pairs, position=at)[f"eval_{name}_loss"] for at in (corner, centre)]
        )
    assert all(at_corner < at_centre for at_corner, at_centre in own)


def test_calibration_is_kept_with_the_gate(conditioned: Any, tmp_path: Path) -> None:
    made = conditioned(max_steps=20, save_strategy="no")
    made.train()
    calibration = made.calibrate(points=3)
    made.save_gated(tmp_path / "gated", calibration)
    gate, objectives, found = read_gates(tmp_path / "gated")
    assert (gate, objectives) == (Gate(2), ("one", "two"))
    assert found is not None
    assert found.position([0.3, 0.7]) == calibration.position([0.3, 0.7])
    measured = made.evaluate(position=calibration.positions[0])
    assert [measured["eval_one_loss"], measured["eval_two_loss"]] == pytest.approx(
        calibration.losses[0].tolist()
    )


def test_a_calibration_needs_validation_data(conditioned: Any) -> None:
    made = conditioned()
    made.eval_dataset = None
    with pytest.raises(InputError, match="Calibration needs validation data"):
        made.calibrate()


def test_early_stopping_is_on_the_mean_over_preferences(conditioned: Any, tmp_path: Path) -> None:
    made = conditioned(
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        early_stopping_patience=1,
        learning_rate=1.0,
    )
    made.train()
    assert made.state.best_metric is not None
    logged = [row["eval_weighted"] for row in made.state.log_history if "eval_weighted" in row]
    assert made.state.best_metric == min(logged)


def test_one_pass_is_exact_under_gates_of_rows(tiny_lora: Any) -> None:
    """The engine's proof on the first batch compares with autograd; it must hold with gates."""
    model = tiny_lora()
    gated = GatedAdapter(model, Gate(2))
    gated.set(np.array([[0.1, 0.9], [0.9, 0.1]] * 2))
    engine = ObjectiveGradients(model, {"a": CPO()}, "one_pass")
    ids = torch.arange(5, 45).view(4, 10)
    mask = torch.ones_like(ids)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "completion_mask": (torch.arange(10) > 4).expand(4, -1),
        "lengths": torch.full((4,), 5),
        "pairs": {
            "a": {
                "chosen": torch.tensor([0, 1]),
                "rejected": torch.tensor([2, 3]),
                "weight": torch.ones(2),
            }
        },
    }
    engine.accumulate(batch)  # raises where it is not exact
    assert engine.method == "one_pass"


@pytest.mark.parametrize("inner", ["pwg", "clamp"])
def test_the_first_batch_is_proven_on_two_of_its_rows(
    conditioned: Any, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the gate at theirs: padded rows, and M graphs of them, take the memory of no more."""
    monkeypatch.setattr(engine, "_proven", set())
    options = {"gradients": "one_pass", "per_device_train_batch_size": 6, "max_steps": 1}
    made = conditioned(inner=inner, **options)
    set_gate, run = made.gated.set, made.model.forward
    gates: list[int] = []
    padded: list[int] = []

    def forward(*args: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        if len(input_ids) > 1:  # packed, all are one row
            padded.append(len(input_ids))
            assert len(input_ids) == gates[-1]
        return run(*args, input_ids=input_ids, **named)

    def turn(positions: Any) -> None:
        gates.append(len(np.atleast_2d(positions)))
        set_gate(positions)

    monkeypatch.setattr(made.gated, "set", turn)
    monkeypatch.setattr(made.model, "forward", forward)
    made.train()
    assert padded == [4]  # two rows of two responses
    assert gates[-2:] == [4, 12]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {"use_dora": True}}, "is DoRA"),
        ({"lora": {"bias": "lora_only"}}, "biases"),
        ({"lora": {"rank_pattern": {"q_proj": 3}}}, "differ between layers"),
        ({"preference": {"one": 0.5, "two": 0.5}}, "leave out args.preference"),
        ({"basis": "central"}, "did you mean 'centred'"),
        ({"evaluated_preferences": 1}, "at least 2"),
        ({"inner": "clmp"}, "did you mean 'clamp'"),
        ({"inner": "clamp", "preference_groups": 3}, "A step of 2 rows has none for some of 3"),
    ],
)
def test_mistakes_are_one_sentence(
    conditioned: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        conditioned(**options)


def test_the_adapter_is_the_trainers_own(tiny_lora: Any, tokenizer: Any, tmp_path: Path) -> None:
    args = ConditionedConfig(output_dir=str(tmp_path), use_cpu=True)
    for model, config in ((tiny_lora(), LoraConfig(**LORA)), (tiny_lora().unload(), None)):
        with pytest.raises(InputError, match="made by its trainer"):
            ConditionedTrainer(
                model, args, {"one": [], "two": []}, None, tokenizer, peft_config=config
            )


def test_damaged_gates_are_one_sentence(conditioned: Any, tmp_path: Path) -> None:
    made = conditioned()
    made.save_gated(tmp_path / "gated")
    file = tmp_path / "gated" / "gates.json"
    for text, message in [
        ('{"objectives": ["a", "b", "c"], "basis": "centred", "calibration": null}', "rank 4"),
        ('{"objectives": ["a", "b"], "basis": "other", "calibration": null}', "damaged"),
        ('{"objectives": ["a", "b"]}', "damaged"),
        (
            '{"objectives": ["a", "b"], "basis": "centred", "ends": [1], "calibration": null}',
            "gate",
        ),
        ("[]", "damaged"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            fold_adapter(tmp_path / "gated", tmp_path / "stock", [0.5, 0.5])
    file.unlink()
    with pytest.raises(InputError, match="no conditioned adapter"):
        read_gates(tmp_path / "gated")


def test_an_adapter_of_another_gate_is_not_read(tmp_path: Path) -> None:
    write_gates(tmp_path, Gate(3), ["a", "b", "c"])
    write_json(tmp_path / "adapter_config.json", {"r": 6})
    assert read_gates(tmp_path)[0] == Gate(3)
    kept = read_json(tmp_path / "gates.json")
    short = {**kept, "ends": (Gate(3).factors(np.eye(3)) * [1, 0.5**0.5, 0.5**0.5]).tolist()}
    for value in (short, {k: v for k, v in kept.items() if k != "ends"}):
        write_json(tmp_path / "gates.json", value)
        with pytest.raises(InputError, match="another gate, of an earlier version"):
            read_gates(tmp_path)
    write_json(tmp_path / "gates.json", {**value, "basis": "objectives"})
    assert read_gates(tmp_path)[0] == Gate(3, "objectives")
