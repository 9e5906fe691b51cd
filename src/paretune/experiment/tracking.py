"""Trackers (``report_to``): each point is one run, named, closed at its end, and resumed."""

import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from paretune.errors import InputError
from paretune.files import append_jsonl, main_process, read_object, write_json, write_jsonl
from paretune.names import shown

_RECORD = "tracking.json"
_PROJECT = "huggingface"  # transformers' default


def check_trackers(names: str | Sequence[str] | None) -> None:
    """See that what ``train.report_to`` names is installed.

    Raises:
        InputError: it is not, or there is no such tracker.
    """
    given = [names] if isinstance(names, str) else names or ()
    for name in given:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"train.report_to: there is no tracker {shown(name)}, but {known}.")
        if name not in get_available_reporting_integrations():
            raise InputError(f"train.report_to: {name} is not installed; run: pip install {name}")


class LogFile(TrainerCallback):
    """Writes every entry of the log to a file of JSON lines as it is made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        # What an earlier session wrote after the checkpoint is trained again.
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(self._path, state.log_history)

    def on_log(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            append_jsonl(self._path, [state.log_history[-1]])


@contextmanager
def logged(trainer: Trainer, folder: Path, run: Path) -> Iterator[None]:
    """Keep the log of a training in ``log.jsonl``, and in a run of each of its trackers.

    Args:
        folder: The point's.
        run: The run folder, after which runs are grouped.
    """
    file = LogFile(folder / "log.jsonl")
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    found: list[Any] = trainer.callback_handler.callbacks
    trackers = [each for each in found if isinstance(each, kinds)]
    trainer.add_callback(file)
    try:
        if trackers and main_process():
            with _one_run(trainer, trackers, folder, run):
                yield
        else:
            yield
    finally:  # what is measured later is no part of the training
        added: list[Any] = [file, *trackers]
        for callback in added:
            trainer.remove_callback(callback)


@contextmanager
def _one_run(trainer: Trainer, trackers: list[Any], folder: Path, run: Path) -> Iterator[None]:
    name = "/".join(part for part in folder.relative_to(run).parts if part != "points")
    group = run.resolve().name
    args: Any = trainer.args
    args.run_name = f"{args.run_name or group}/{name}"
    if args.project == _PROJECT:
        args.project = group
    for tracker in trackers:
        if hasattr(tracker, "tb_writer"):
            above = tracker.logging_dir
            tracker.logging_dir = str(Path(above) / name if above else folder / "tensorboard")
    always = {"WANDB_RUN_ID": _run_id(folder), "WANDB_RESUME": "allow", "WANDB_RUN_GROUP": group}
    ours = {"WANDB_DIR": str(folder), "WANDB_PROJECT": "paretune", "MLFLOW_EXPERIMENT_NAME": group}
    with ExitStack() as within:
        within.enter_context(
            _environment(always | {key: os.environ.get(key, ours[key]) for key in ours})
        )
        before = _open_runs()
        if "mlflow" in sys.modules and "mlflow" not in before:
            within.enter_context(_environment(_mlflow_run(folder)))
            trainer.add_callback(note := _MlflowNote(folder))
            trackers.append(note)
        if "wandb" in sys.modules and "wandb" not in before:
            sys.modules["wandb"].teardown()  # what it read before is not of this point
        failed = True
        try:
            yield
            failed = False
        finally:
            _close(before, failed)


class _MlflowNote(TrainerCallback):
    """Notes which run mlflow has begun, in which a later session goes on."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _RECORD

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        run = sys.modules["mlflow"].active_run()
        if run is not None:
            write_json(self._path, {**read_object(self._path), "mlflow": run.info.run_id})


def _mlflow_run(folder: Path) -> dict[str, str]:
    """``MLFLOW_RUN_ID`` of the run of an earlier session, if the store and experiment have it."""
    mlflow, known = sys.modules["mlflow"], read_object(folder / _RECORD).get("mlflow")
    if known is None or "MLFLOW_RUN_ID" in os.environ:
        return {}
    client = mlflow.MlflowClient()
    try:
        run = client.get_run(str(known))
    except mlflow.MlflowException:
        return {}
    experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
    here = experiment is not None and experiment.experiment_id == run.info.experiment_id
    return {"MLFLOW_RUN_ID": str(known)} if here and run.info.lifecycle_stage == "active" else {}


def _run_id(folder: Path) -> str:
    """What the point's run is called by trackers that resume one; new after ``--fresh``."""
    path = folder / _RECORD
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"id": uuid.uuid4().hex})
    return str(read_object(path)["id"])


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _open_runs() -> set[str]:
    """Trackers with a run that is open."""
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    trackio = sys.modules.get("trackio.context_vars")
    found = {
        "wandb": wandb is not None and wandb.run is not None,
        "mlflow": mlflow is not None and mlflow.active_run() is not None,
        "trackio": trackio is not None and trackio.current_run.get() is not None,
    }
    return {name for name, open_ in found.items() if open_}


def _close(before: set[str], failed: bool) -> None:
    """Close the runs that were opened since; those of the caller are the caller's."""
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].flush_async_logging()  # ending a run does not wait for its logs
    for name in _open_runs() - before:
        module: Any = sys.modules[name]
        if name == "wandb":
            module.finish(exit_code=int(failed))
            module.teardown()  # it reads the environment once, and the next point has another id
        elif name == "mlflow":
            module.end_run("FAILED" if failed else "FINISHED")
        else:
            module.finish()
