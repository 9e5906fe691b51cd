"""Data weighting of tiny language models: the steps taken, what is learnt, kept and refused."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from paretune import DataWeightingConfig, DataWeightingTrainer, InputError, TrainingStoppedError
from paretune.moo.bilevel.problem import StochasticBilevelProblem
from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
from paretune.moo.preference import Preference
from paretune.training.bilevel_objectives import LanguageModelObjectives
from paretune.training.responses import Batches

# Language models are not convex in their parameters.
pytestmark = pytest.mark.filterwarnings(
    "ignore::paretune.moo.bilevel.oracle.NonConvexLowerLevelWarning"
)

HALVES = {"one": 0.5, "two": 0.5}


def answers(word: str, n: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows that answer every question with a word twice."""
    asked = ["red", "blue", "green", "cat", "dog", "bird", "milk", "bread", "salt", "rain"]
    return [
        {
            "prompt": [{"role": "user", "content": f"what is {asked[(first + i) % 10]}"}],
            "completion": [{"role": "assistant", "content": f"{word} {word}"}],
        }
        for i in range(n)
    ]


SETS = {"moon": answers("moon", 6), "star": answers("star", 5)}
CRITERIA = {"one": answers("moon", 4, 6), "two": answers("star", 4, 6)}


@pytest.fixture
def weigher(tmp_path: Path, tiny_lora: Any, tokenizer: Any) -> Any:
    """A factory of small trainers."""

    def make(
        preference: dict[str, float] = HALVES,
        train: Any = SETS,
        validation: Any = CRITERIA,
        model: Any = None,
        folder: str = "run",
        callbacks: Any = None,
        **options: Any,
    ) -> DataWeightingTrainer:
        settings: dict[str, Any] = {
            "max_steps": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 3,
            "max_grad_norm": 0.0,
            "method": "wc_augmented",
            "held_out": 0.0,
            "u": 0.5,
            "v": 1.0,
            "x_learning_rate": 0.01,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        args = DataWeightingConfig(
            output_dir=str(tmp_path / folder), preference=preference, **{**settings, **options}
        )
        return DataWeightingTrainer(
            tiny_lora() if model is None else model,
            args,
            train,
            validation,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


def adapter(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def step_logs(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "learning_rate" in row]


class _Batches(TrainerCallback):
    """Keeps the batches that a trainer drew."""

    def __init__(self) -> None:
        self.seen: list[list[Batches]] = []
        self.trainer: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        micro = self.trainer.steps.micro
        self.seen.append([Batches.of(draws) for draws in zip(*micro, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("hvp", ["double", "finite_difference"])
def test_takes_the_steps_of_the_stochastic_augmented_lagrangian(
    weigher: Any, tiny_lora: Any, hvp: str
) -> None:
    preference, record = {"one": 0.7, "two": 0.3}, _Batches()
    trainer = weigher(
        preference,
        hvp=hvp,
        callbacks=[record],
        optim="adamw_torch",
        independent_batches=True,
        ridge=0.01,
    )
    trainer.model.set_attn_implementation("eager")
    record.trainer = trainer
    trainer.train()

    model = tiny_lora()
    model.set_attn_implementation("eager")
    levels = LanguageModelObjectives(model, in_place=False)
    drawn = [batches for step in record.seen for batches in step]
    queue = [*drawn, drawn[0], drawn[0]]  # a method draws once more after its last step
    problem = StochasticBilevelProblem(
        levels.upper(["one", "two"]),
        levels.lower(["moon", "star"], ridge=0.01),
        draw_upper=lambda size, generator: queue[0],
        draw_lower=lambda size, generator: queue.pop(0),
        full_upper=drawn[0],
        full_lower=drawn[0],
        hvp="double",
    )
    method = StochasticWCAugmented(lr=1e-2, x_lr=0.01, u=0.5, v=1.0, independent_batches=True)
    start = torch.zeros(2, dtype=torch.float64), levels.vector()
    x, y = method.run(problem, Preference.of(preference), start, 4, 0.0).x
    # Adam divides small gradients by themselves, so their rounding shows.
    accuracy = 1e-5 if hvp == "double" else 1e-3
    torch.testing.assert_close(trainer.x, x, rtol=0, atol=accuracy)
    assert float((adapter(trainer) - y).norm()) < 10 * accuracy * float((y - start[1]).norm())


@pytest.mark.slow
def test_corrupted_sets_lose_weight_and_matched_ones_follow_the_preference(
    weigher: Any, tiny_llama: Any
) -> None:
    wrong = ["cold please", "write slow", "eat small", "no thanks", "walk warm", "sorry maybe"]
    noise = [
        row | {"completion": [{"role": "assistant", "content": text}]}
        for row, text in zip(answers("sun", 6), wrong, strict=True)
    ]
    weights = []
    for share in (0.9, 0.5, 0.1):
        model = tiny_llama().requires_grad_(False)
        model.lm_head.requires_grad_(True)  # a convex lower level
        trainer = weigher(
            {"one": share, "two": 1 - share},
            train={**SETS, "noise": noise},
            model=model,
            u=None,
            v=None,
            max_steps=24,
            learning_rate=0.05,
            x_learning_rate=0.1,
            ridge=0.01,
            per_device_train_batch_size=6,
            folder=f"run-{share}",
        )
        trainer.polish(steps=20)  # as the method is about the neighbourhood of y(x)
        trainer.train()
        weights.append(trainer.set_weights)
    assert all(found["noise"] < 0.25 for found in weights)
    assert weights[0]["moon"] > 0.6
    assert weights[2]["star"] > 0.5
    assert weights[0]["moon"] > weights[1]["moon"] > weights[2]["moon"]
    assert weights[0]["star"] < weights[1]["star"] < weights[2]["star"]


class _Kill(Exception):
    """Stands for a killed process."""


class _KillAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise _Kill


@pytest.mark.slow
def test_resume_is_bit_exact(weigher: Any, tiny_lora: Any) -> None:
    def make(folder: str, **more: Any) -> Any:
        return weigher(
            folder=folder,
            model=tiny_lora(dropout=0.1),
            u=None,
            v=None,
            max_steps=5,
            save_strategy="steps",
            save_steps=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            independent_batches=True,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            **more,
        )

    whole = make("whole")
    whole.train()
    with pytest.raises(_Kill):
        make("cut", callbacks=[_KillAt()]).train()
    resumed = make("cut")
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(adapter(resumed), adapter(whole), rtol=0, atol=0)
    torch.testing.assert_close(resumed.x, whole.x, rtol=0, atol=0)
    torch.testing.assert_close(
        resumed.steps.multipliers.nu, whole.steps.multipliers.nu, rtol=0, atol=0
    )
    assert resumed.steps.multipliers.w0 == whole.steps.multipliers.w0
    again = make("whole")
    again.train(resume_from_checkpoint=True)  # there is nothing left to do
    assert again.set_weights == whole.set_weights


def test_everything_is_logged(weigher: Any) -> None:
    trainer = weigher(max_steps=1)
    trainer.train()
    (first,) = step_logs(trainer)
    assert {
        *(f"train/{name}/loss" for name in SETS),
        *(f"validation/{name}/loss" for name in CRITERIA),
        *(f"omega/{name}" for name in CRITERIA),
        *(f"set_weight/{name}" for name in SETS),
        "lower_gradient_norm",
        "product_step",
        "time/step",
        "spend/gradients",
    } <= set(first)
    assert first["set_weight/moon"] + first["set_weight/star"] == pytest.approx(1)
    assert first["omega/one"] + first["omega/two"] == pytest.approx(1)


@pytest.mark.slow
def test_gradient_checkpointing_takes_the_same_step(weigher: Any) -> None:
    trainers = [
        weigher(max_steps=1, folder=str(on), gradient_checkpointing=on) for on in (False, True)
    ]
    for trainer in trainers:
        trainer.train()
    plain, checkpointed = map(adapter, trainers)
    torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-6)


class _Held:
    """A tensor kept for a backward pass, counted for as long as it is kept."""

    live = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        _Held.live += tensor.nbytes
        _Held.peak = max(_Held.peak, _Held.live)

    def __del__(self) -> None:
        _Held.live -= self.tensor.nbytes


@pytest.mark.slow
def test_graphs_need_the_memory_of_one_gradient(weigher: Any) -> None:
    def peak(work: Any) -> int:
        _Held.peak = _Held.live
        with torch.autograd.graph.saved_tensors_hooks(_Held, lambda held: held.tensor):
            work()
        return _Held.peak - _Held.live

    rows = answers("moon", 3)
    few = weigher(train={"a": rows, "b": rows}, validation={"one": rows, "two": rows}, max_steps=1)
    names = ("one", "two", "three", "four", "five")
    many = weigher(
        dict.fromkeys(names, 0.2),
        train=dict.fromkeys("abcd", rows),
        validation=dict.fromkeys(names, rows),
        max_steps=1,
        folder="many",
    )
    assert peak(many.train) <= 1.01 * peak(few.train)
    batch = next(iter(few.get_train_dataloader()))["draws"][0]
    tensors = next(iter(batch.values()))
    single = peak(lambda: few.levels._loss(tensors).sum().backward())
    assert peak(few.train) <= 1.3 * single


@pytest.mark.slow
def test_polishing_solves_the_lower_level_and_measures(weigher: Any) -> None:
    trainer = weigher(max_steps=6, ridge=0.1, validation=CRITERIA)
    trainer.train()
    before, held = trainer.evaluate(), adapter(trainer)
    report = trainer.polish(steps=10)
    assert report.lower_gradient_norm_after < 0.2 * report.lower_gradient_norm_before
    assert not torch.equal(adapter(trainer), held)
    after = trainer.evaluate()
    for name in CRITERIA:
        assert after[f"eval_{name}_loss"] == pytest.approx(report.losses[name], rel=1e-4)
        assert after[f"eval_{name}_loss"] != before[f"eval_{name}_loss"]
    assert after["eval_chebyshev"] == pytest.approx(0.5 * max(report.losses.values()), rel=1e-4)
    unsolved = trainer.polish(steps=0, eval_dataset={n: answers("sun", 2) for n in CRITERIA})
    assert unsolved.lower_gradient_norm_before == pytest.approx(
        report.lower_gradient_norm_after, rel=1e-3
    )


@pytest.mark.slow
def test_nonfinite_steps_change_nothing(weigher: Any) -> None:
    trainer = weigher(max_steps=3)
    right, seen = trainer.steps.oracle.values, {}

    def values(x: Any, y: Any) -> Any:
        step = trainer.state.global_step
        seen.setdefault(step, (x.clone(), y))
        return right(x, y) * (math.nan if step == 1 else 1.0)

    trainer.steps.oracle.values = values
    trainer.train()
    (x1, y1), (x2, y2) = seen[1], seen[2]
    assert torch.equal(x1, x2)
    assert torch.equal(y1, y2)
    assert [row.get("nonfinite_steps") for row in step_logs(trainer)] == [None, 1.0, None]
    hopeless = weigher(max_nonfinite_steps=2, folder="hopeless")
    hopeless.steps.oracle.values = lambda x, y: right(x, y) * math.nan
    with pytest.raises(TrainingStoppedError, match="2 steps in a row"):
        hopeless.train()


def test_mistakes_are_one_sentence(weigher: Any) -> None:
    with pytest.raises(InputError, match="no training set"):
        weigher(train={})
    with pytest.raises(InputError, match="one criterion"):
        weigher({"one": 1.0}, validation={"one": CRITERIA["one"]})
    with pytest.raises(InputError, match="one criterion"):
        weigher({"one": 1.0, "two": 0.0})
    with pytest.raises(InputError, match="validation set 'two' has no usable rows: it is empty"):
        weigher(validation={"one": CRITERIA["one"], "two": []})
    with pytest.raises(InputError, match="names 'three', which the validation data"):
        weigher({"one": 0.5, "three": 0.5})
    with pytest.raises(InputError, match="set 'star', the column 'completion' is missing"):
        weigher(train={"moon": SETS["moon"], "star": [{"prompt": "a"}]})
    with pytest.raises(InputError, match="sigma must be"):
        weigher(sigma=2.0)
    with pytest.raises(InputError, match="hvp='double' keeps the graph"):
        weigher(hvp="double", gradient_checkpointing=True)
    with pytest.raises(InputError, match="has no rows for criterion 'two'"):
        weigher().evaluate({"one": CRITERIA["one"]})


WORKER = Path(__file__).with_name("data_weighting_worker.py")


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trained on one process and on two, each method in a folder."""
    folder: Path = tmp_path_factory.mktemp("processes")
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={count}", str(WORKER), str(folder / str(count))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    return [folder / "1", folder / "2"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lookahead", "wc_augmented"])
def test_two_processes_equal_one(processes: list[Path], method: str) -> None:
    one, two = (folder / method for folder in processes)
    (alone,), (first, second) = (
        [json.loads(path.read_text()) for path in sorted(folder.glob("end-*.json"))]
        for folder in (one, two)
    )
    assert first == second, "steps must be identical on every rank"
    # x, of size 0.01, moves by a small difference of finite differences, good to three digits.
    assert first == pytest.approx(alone, rel=1e-4, abs=5e-5)
    expected, got = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two)
    )
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-5)
