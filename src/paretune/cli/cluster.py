"""``--ray ADDRESS``: the workers of a command as tasks of a Ray cluster, shown as one.

A task is a worker like those of ``--workers``: a process that takes what nobody has claimed in the
run folder, which all nodes must see. So Ray only has to find room for it and to start it again if
its node or its process is lost; what it was at is taken over as from any worker that died.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.cli.fleet import Fleet, fleet_bars
from paretune.cli.workers import (
    GRACE,
    PIPES,
    Job,
    ended,
    interrupt,
    read_lines,
    stopped_by_signals,
    worker_command,
    worker_variables,
)
from paretune.errors import InputError
from paretune.extras import require

_OFTEN = 0.3  # seconds between two looks at the cluster
_PASSED_ON = ("PARETUNE_", "HF_", "XDG_CACHE_HOME", "OMP_NUM_THREADS")


def run_on_ray(address: str, count: int | None, job: Job) -> None:
    """Run a command in workers of a Ray cluster, and end as the best of them ends.

    Args:
        address: ``"auto"``, ``"local"`` or host:port.
        count: Workers; by default one for each piece of work, as far as there is room.

    Raises:
        InputError: Ray is missing, there is no such cluster, it was stopped, it has no room for a
            worker, or the run folder is not free.
        typer.Exit: with the exit code, if it is not 0.
    """
    require("ray", "--ray")
    import ray
    from ray.exceptions import RayError, RayTaskError

    folder = job.folder()
    with folder.shared_session(fresh=job.fresh), _connected(address):
        gpus, ranks, room, cores = _room(job.run.gpus_per_point)
        if count is None and room < 1:
            raise InputError(
                f"No node of the Ray cluster has {gpus or ranks} {'GPUs' if gpus else 'CPUs'} for "
                "a point (run.gpus_per_point). If the cluster will grow, say how many workers: "
                "--workers N."
            )
        count = max(1, min(job.pieces, room)) if count is None else count
        variables = worker_variables(max(1, int(cores // max(room * ranks, 1))))
        passed = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
        board: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        # Only what Ray lost is tried again; a worker that fails says why, and would fail again.
        task = ray.remote(num_cpus=ranks, num_gpus=gpus, max_retries=-1)(_work)
        identity = folder.identity
        assert identity is not None
        place = os.getcwd(), str((folder.path / identity.file).resolve())
        command = (worker_command(job.arguments, ranks)[1:], {**variables, **passed}, place)
        with stopped_by_signals(), fleet_bars() as shown:
            fleet = Fleet(count, shown)
            tasks = {task.remote(number, *command, board): number for number in range(count)}
            try:
                codes = _watched(tasks, board, fleet)
            except (RayError, ConnectionError) as error:
                if isinstance(error, RayTaskError):
                    raise
                fleet.say(_line(error))
                codes = {}
    if not codes:
        raise InputError(
            f"The Ray cluster at '{address}' is not there any more. What is done is kept: give the "
            "command again, with a cluster that runs or without --ray."
        )
    fleet.end(codes)


def _watched(tasks: Mapping[Any, int], board: Any, fleet: Fleet) -> dict[int, int]:
    """Show what the tasks tell until all have ended; their exit codes, but of those not needed."""
    import ray
    from ray.exceptions import (
        GetTimeoutError,
        RayActorError,
        RayError,
        RayTaskError,
        TaskCancelledError,
    )

    left, codes, begun = dict(tasks), dict[int, int](), set[int]()

    def listen() -> None:
        with contextlib.suppress(RayActorError, GetTimeoutError):  # its node is lost: a new one
            for number, kind, text in ray.get(board.take.remote(), timeout=10):
                if kind == "out":
                    fleet.hear(number, text)
                elif kind == "err":
                    fleet.complain(text)
                else:
                    if number in begun:
                        fleet.restarted(number, text)
                    begun.add(number)

    try:
        while left:
            ready, _ = ray.wait(list(left), timeout=_OFTEN)
            listen()
            for ended_task in ready:
                number = left.pop(ended_task)
                try:
                    codes[number] = ray.get(ended_task)
                except TaskCancelledError:
                    continue
                except RayTaskError:
                    raise
                except RayError as error:  # what could be started again was
                    fleet.say(f"worker {number + 1}: {_line(error)}")
                    continue
                if codes[number] < 0:
                    fleet.killed(number, codes[number])
                if codes[number] == 0:  # all is done: those that found no room need not begin
                    for waiting, other in left.items():
                        if other not in begun:
                            ray.cancel(waiting)
        listen()
    except BaseException:
        with contextlib.suppress(RayError):
            for each in left:
                ray.cancel(each)
            ray.wait(list(left), num_returns=len(left), timeout=GRACE)
        raise
    return codes


class _Board:
    """What workers tell, until it is read."""

    def __init__(self) -> None:
        self._told: list[tuple[int, str, str]] = []

    def put(self, *told: Any) -> None:
        self._told.append(told)

    def take(self) -> list[tuple[int, str, str]]:
        told, self._told = self._told, []
        return told


def _work(
    number: int,
    command: Sequence[str],
    variables: Mapping[str, str],
    place: tuple[str, str],
    board: Any,
) -> int:
    """A worker, on a node; its exit code."""
    import sys

    import ray

    def tell(kind: str, text: str) -> Any:
        return board.put.remote(number, kind, text)

    folder, file = map(Path, place)
    tell("begins", socket.gethostname())
    if not (folder.is_dir() and file.is_file()):
        missing = file if folder.is_dir() else folder
        text = f"error: '{missing}' is not there on {socket.gethostname()}: all nodes of the Ray "
        ray.get(tell("err", f"{text}cluster must see the run folder at the same place."))
        return 2
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **variables}, cwd=folder, **PIPES
    )
    readers = read_lines(process, lambda line: tell("out", line), lambda line: tell("err", line))
    try:
        while process.poll() is None:  # not one long wait: a cancelled task is told in between
            time.sleep(0.1)
    except BaseException:
        interrupt(process)
        ended(process, time.monotonic() + GRACE)
        raise
    for reader in readers:
        reader.join(5.0)
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(tell("out", ""))  # after all that was told before
    return process.returncode


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _room(asked: int | None) -> tuple[int, int, int, float]:
    """GPUs and processes of a worker, how many workers there is room for, and cores of the cluster.

    Args:
        asked: `run.gpus_per_point`.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    ranks = asked or 1
    gpus = ranks if any(node.get("GPU") for node in nodes) else 0
    wanted = {"CPU": ranks, **({"GPU": gpus} if gpus else {})}
    room = sum(min(int(node.get(k, 0) // n) for k, n in wanted.items()) for node in nodes)
    return gpus, ranks, room, sum(node.get("CPU", 0.0) for node in nodes)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Within, this process is a driver of the cluster.

    Raises:
        InputError: there is none there.
    """
    import ray

    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"There is no Ray cluster at '{address}' ({_line(error)}): start "
            "one with `ray start --head`, or give --ray local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
