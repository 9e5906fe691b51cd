"""Real trackers, offline, in a real sweep that is killed: one run a point, with the right name."""

import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
PREFERENCES = ([0.2, 0.8], [0.5, 0.5], [1, 0])
POINTS = ("harmless0.20-helpful0.80", "harmless0.50-helpful0.50", "harmless1.00-helpful0.00")
STEPS = 24
COMMAND = "from paretune.cli import main; main()"


def sweep(folder: Path, tracker: str, *, kill: bool = False) -> None:
    """Run the sweep ``mine`` in `folder`; or kill it while the second point trains."""
    command = [
        *(sys.executable, "-c", COMMAND, "sweep", str(TINY / "tiny.yaml"), "output_dir=mine"),
        *(f"model.name={TINY / 'model'}", f"data.path={TINY / 'pairs.jsonl'}"),
        f"sweep.preferences={json.dumps(PREFERENCES)}",
        *(f"train.max_steps={STEPS}", "train.save_steps=4", "train.logging_steps=1"),
        *(f"train.report_to={tracker}", "evaluation.generate=false", "rewards=null"),
    ]
    environment = os.environ | {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
        "MLFLOW_TRACKING_URI": mlflow_store(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if kill:
        log = folder / "mine" / "points" / POINTS[1] / "log.jsonl"
        until = time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") > 6) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if kill else 0), output.decode()


def mlflow_store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def swept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a sweep that was killed and went on, with a tracker."""
    sweep(tmp_path, request.param, kill=True)
    assert not (tmp_path / "mine" / "points" / POINTS[2]).exists()
    sweep(tmp_path, request.param)
    assert not list(tmp_path.rglob("checkpoints"))
    return tmp_path


def needs(name: str) -> Any:
    missing = importlib.util.find_spec(name) is None
    skip = pytest.mark.skipif(missing, reason=f"{name} is not installed")
    return pytest.param(name, marks=[skip, pytest.mark.slow])


@pytest.mark.parametrize("swept", [needs("tensorboard")], indirect=True)
def test_tensorboard(swept: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = {path.parent for path in swept.rglob("events.out.tfevents*")}
    assert folders == {swept / "mine" / "points" / point / "tensorboard" for point in POINTS}
    for folder in folders:
        events = EventAccumulator(str(folder))
        events.Reload()
        steps = {each.step for each in events.Scalars("train/harmless/loss")}
        assert steps == set(range(1, STEPS + 1))


@pytest.mark.parametrize("swept", [needs("wandb")], indirect=True)
def test_wandb(swept: Path) -> None:
    found: dict[str, Any] = {}
    for file in swept.rglob("*.wandb"):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                found.setdefault(record.run.run_id, record.run)
    names = {run.display_name for run in found.values()}
    assert names == {f"mine/{point}" for point in POINTS}
    assert len(found) == 3
    assert {run.run_group for run in found.values()} == {"mine"}
    sessions = [len(list(p.glob("wandb/offline-run-*"))) for p in (swept / "mine/points").iterdir()]
    assert sorted(sessions) == [1, 1, 2]  # the one that was killed goes on as the same run


def wandb_records(path: Path) -> Iterator[Any]:
    """The records in a file of wandb's, LevelDB's log format after a header of seven bytes.

    The last one of a process that was killed may be cut.
    """
    from wandb.proto import wandb_internal_pb2

    block, first, middle = 32768, 2, 3
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # too little room for a head: the block is filled up
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (first, middle) and place <= len(data):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
runs = trackio.Api().runs("mine")
print(json.dumps([[r.name, SQLiteStorage.get_logs("mine", run_id=r.id)] for r in runs]))
"""


@pytest.mark.parametrize("swept", [needs("trackio")], indirect=True)
def test_trackio(swept: Path) -> None:
    environment = os.environ | {"TRACKIO_DIR": str(swept / "trackio")}
    command = [sys.executable, "-c", TRACKIO]
    found = json.loads(
        subprocess.check_output(command, env=environment, text=True).splitlines()[-1]
    )
    assert sorted(name for name, _ in found) == [f"mine/{point}" for point in POINTS]
    for name, logs in found:
        # What the killed process had logged and not sent is lost; it went on after step 4 or later.
        lost = 4 * (STEPS // 8) if name.endswith(POINTS[1]) else 0
        steps = {row["train/global_step"] for row in logs}
        assert steps >= set(range(lost + 1, STEPS + 1))


@pytest.mark.parametrize("swept", [needs("mlflow")], indirect=True)
def test_mlflow(swept: Path) -> None:
    import sqlite3

    with sqlite3.connect(swept / "mlflow.db") as store:
        runs = store.execute(
            "SELECT r.run_uuid, r.name, r.status, e.name FROM runs r "
            "JOIN experiments e ON r.experiment_id = e.experiment_id"
        ).fetchall()
        assert sorted(run[1:] for run in runs) == [
            (f"mine/{point}", "FINISHED", "mine") for point in POINTS
        ]
        for run, name, *_ in runs:
            metric = "helpful/loss" if name.endswith(POINTS[0]) else "harmless/loss"
            rows = store.execute(
                "SELECT step FROM metrics WHERE run_uuid = ? AND key = ?", (run, metric)
            )
            assert {step for (step,) in rows} == set(range(1, STEPS + 1))


GONE = """
import os, sys, mlflow
from pathlib import Path
from paretune.experiment.tracking import _mlflow_run
folder, store = Path(sys.argv[1]), sys.argv[2]
mlflow.set_tracking_uri(store)
mlflow.set_experiment("mine")
with mlflow.start_run() as run:
    id = run.info.run_id
(folder / "tracking.json").write_text('{"mlflow": "%s"}' % id)
os.environ["MLFLOW_EXPERIMENT_NAME"] = "mine"
assert _mlflow_run(folder) == {"MLFLOW_RUN_ID": id}
os.environ["MLFLOW_EXPERIMENT_NAME"] = "other"
assert _mlflow_run(folder) == {}
os.environ["MLFLOW_EXPERIMENT_NAME"] = "mine"
mlflow.delete_run(id)
assert _mlflow_run(folder) == {}
mlflow.set_tracking_uri(store + "2")
assert _mlflow_run(folder) == {}
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_an_mlflow_run_that_is_gone_is_not_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GONE, str(tmp_path), mlflow_store(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)
