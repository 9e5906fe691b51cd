"""Trackers: one run a point, named, closed and resumed; TensorBoard for real."""

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from paretune import ClampConfig, ClampTrainer
from paretune.experiment.train_point import StepReport, train_point
from paretune.files import read_objects
from paretune.progress import STEPS


class _Stop(TrainerCallback):
    """Ends the training as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def train(tiny_lora: Any, tokenizer: Any, random_pairs: Any) -> Any:
    def train(folder: Path, tracker: str = "none", stop: int = 0) -> ClampTrainer:
        args = ClampConfig(
            output_dir=str(folder / "checkpoints"),
            preference=[0.8, 0.2],
            max_steps=6,
            save_steps=2,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=tracker,
            disable_tqdm=True,
        )
        more = [_Stop(stop)] if stop else []
        trainer = ClampTrainer(
            tiny_lora(fresh=True),
            args,
            random_pairs(),
            processing_class=tokenizer,
            callbacks=[StepReport(lambda phase, done: None), *more],
        )
        train_point(trainer, folder, lambda phase, done: None)
        trainer.evaluate(random_pairs())  # belongs to no run
        return trainer

    return train


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "demo"
    (path / "points").mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    return path


@pytest.mark.slow
def test_the_log_grows_and_lines_are_told(
    run: Path, train: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run / "points" / "a"
    with caplog.at_level("INFO", STEPS.name), pytest.raises(KeyboardInterrupt):
        train(folder, stop=4)
    assert [row["step"] for row in read_objects(folder / "log.jsonl")] == [1, 2, 3]
    first = caplog.messages[0]
    assert first.startswith("step 1 of 6, loss one ")
    assert ", two " in first
    assert ", λ one " in first
    assert first.endswith(" s left")
    trainer = train(folder)
    steps = [row["step"] for row in read_objects(folder / "log.jsonl") if "loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert trainer.state.global_step == 6


@pytest.mark.slow
def test_tensorboard(run: Path, train: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for point in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            train(run / "points" / point, "tensorboard", stop=4)
        train(run / "points" / point, "tensorboard")
    folders = {path.parent for path in run.rglob("events.out.tfevents*")}
    assert folders == {run / "points" / point / "tensorboard" for point in ("a", "b")}
    events = EventAccumulator(str(run / "points" / "a" / "tensorboard"))
    events.Reload()
    tag = "train/one/loss"
    assert sorted({each.step for each in events.Scalars(tag)}) == [1, 2, 3, 4, 5, 6]
    assert not any(name.startswith("eval") for name in events.Tags()["scalars"])


class _Fake(TrainerCallback):
    """A tracker that sees what those of transformers read."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        keys = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RUN_GROUP", "WANDB_DIR", "WANDB_PROJECT")
        self.seen = {key: os.environ.get(key) for key in keys}
        self.seen |= {"name": args.run_name, "project": args.project}


@pytest.mark.slow
def test_names_and_identity_of_a_run(
    run: Path, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.experiment import tracking

    found = []

    class Fake(_Fake):
        def __init__(self) -> None:
            super().__init__()
            found.append(self)

    monkeypatch.setitem(tracking.INTEGRATION_TO_CALLBACK, "wandb", Fake)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with pytest.raises(KeyboardInterrupt):
        train(run / "points" / "a", "wandb", stop=4)
    train(run / "points" / "a", "wandb")
    train(run / "points" / "b", "wandb")
    first, again, other = (each.seen for each in found)
    assert first == again
    assert first["WANDB_RUN_ID"] != other["WANDB_RUN_ID"]
    assert first["name"] == "demo/a"
    assert other["name"] == "demo/b"
    assert first["project"] == first["WANDB_RUN_GROUP"] == "demo"
    assert first["WANDB_RESUME"] == "allow"
    assert first["WANDB_DIR"] == str(run / "points" / "a")
    assert first["WANDB_PROJECT"] == "mine"
    assert "WANDB_RUN_ID" not in os.environ
