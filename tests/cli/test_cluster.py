"""``--ray``: real Ray on this machine; nodes that are lost, a cluster that is stopped half-way."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paretune.cli.cluster import run_on_ray
from paretune.cli.workers import Job
from paretune.errors import InputError
from paretune.recipes.section import Run

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
STEPS = "train.max_steps=60"


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    def none() -> Any:
        raise AssertionError

    with pytest.raises(InputError, match=r"pip install 'paretune\[ray\]'"):
        run_on_ray("auto", None, Job(["sweep", "demo"], none, Run(), 3, fresh=False))


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Makes clusters: a head without room for a worker, and two nodes with room for one each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'paretune[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    made = []

    def make() -> Any:
        head = {"num_cpus": 0, "include_dashboard": False}
        made.append(Cluster(initialize_head=True, head_node_args=head))
        return made[-1], [made[-1].add_node(num_cpus=1) for _ in range(2)]

    yield make
    for each in made:
        each.shutdown()


def arguments(run: Path, *more: str) -> list[str]:
    inputs = [f"model.name={TINY / 'model'}", f"data.path={TINY / 'pairs.jsonl'}"]
    points = "sweep.preferences=[[0.2, 0.8], [0.5, 0.5], [1, 0]]"
    return ["sweep", str(TINY / "tiny.yaml"), *inputs, points, STEPS, f"output_dir={run}", *more]


def start(*given: str) -> "subprocess.Popen[str]":
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "paretune", *given], **pipes)


def until(process: "subprocess.Popen[str]", run: Path, pattern: str, count: int) -> None:
    end = time.monotonic() + 300
    while len(list(run.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def digests(run: Path) -> dict[str, str]:
    names = ("adapter_model.safetensors", "answers.jsonl")
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.name in names and "checkpoints" not in path.parts
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray's
def test_a_cluster_is_stopped_and_in_another_a_node_is_lost(
    clusters: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the end there are the bytes of one process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone, run = tmp_path / "alone", tmp_path / "run"
    process = start(*arguments(alone))
    assert process.communicate(timeout=300)
    assert process.returncode == 0

    cluster, _ = clusters()
    for more, expected in (
        (["--ray", "127.0.0.1:1"], "There is no Ray cluster at '127.0.0.1:1'"),
        (["--ray", cluster.address, "run.gpus_per_point=3"], "No node of the Ray cluster has 3"),
    ):
        process = start(*arguments(run), *more)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert errors.startswith(f"error: {expected}"), errors
        assert not run.exists()
    process = start(*arguments(run), "--ray", cluster.address)
    until(process, run, "points/*/checkpoints/checkpoint-*", 2)
    cluster.shutdown()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "error: The Ray cluster at" in errors
    assert "Traceback" not in errors
    assert not (run / "front.json").exists()

    cluster, nodes = clusters()
    process = start(*arguments(run), "--ray", cluster.address)
    until(process, run, "claims/points.*", 1)
    cluster.remove_node(nodes[0], allow_graceful=False)
    cluster.add_node(num_cpus=1)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "was lost and begins again" in errors
    assert printed.count("hypervolume") == 1
    assert digests(run) == digests(alone)
    assert not (run / "claims").exists()
