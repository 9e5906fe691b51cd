"""``--workers N``: the same command in N processes on this machine, shown as one.

Each worker is given its GPUs, where there are any, and its part of the processor's cores. A worker
whose points have several GPUs is itself several processes (`ranks`).
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from paretune.cli.fleet import VARIABLE, Fleet, fleet_bars
from paretune.cli.output import console
from paretune.cli.progress import busy
from paretune.errors import InputError
from paretune.extras import require
from paretune.machine import own_cores, this_machine

if TYPE_CHECKING:
    from paretune.recipes.section import Run
    from paretune.runs.folder import RunFolder

Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes that share the work, on this machine (1 without it), each with a GPU where "
        "there are some, or in a Ray cluster (as many as it has room for).",
    ),
]


def _installed(address: str | None) -> str | None:
    if address is not None:
        require("ray", "--ray")
    return address


Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        callback=_installed,
        help="Do the work in a Ray cluster: 'auto' is one that runs here, 'local' a new one on "
        "this machine, else host:port.",
    ),
]

GRACE = 30.0
"""Seconds for a worker to end after it was told to."""


@dataclass(frozen=True)
class Job:
    """A command that several processes may share.

    Attributes:
        arguments: The command's, without those that say who works.
        pieces: How many there are, for as many workers at most.
    """

    arguments: list[str]
    folder: Callable[[], "RunFolder"]
    run: "Run"
    pieces: int
    fresh: bool


def shared_out(job: Job, workers: int | None, ray: str | None) -> bool:
    """Have the work done by other processes, if that is asked for; whether it was done.

    Raises:
        InputError: this is itself one of several processes, there are too few GPUs, or there is no
            such cluster.
        typer.Exit: with the exit code of the best of them, if it is not 0.
    """
    processes, ranks = int(os.environ.get("WORLD_SIZE", "1")), job.run.gpus_per_point
    if processes > 1:
        if workers or ray:
            option = "--ray" if ray else "--workers"
            raise InputError(f"{option} starts processes itself: leave out torchrun or accelerate.")
        if ranks not in (None, processes):
            raise InputError(
                f"run.gpus_per_point is {ranks}, and {processes} processes were started: give the "
                "same number, or leave out run.gpus_per_point."
            )
        return False
    if ray is not None:
        from paretune.cli.cluster import run_on_ray

        run_on_ray(ray, workers, job)
        return True
    if (workers or 1) == (ranks or 1) == 1:
        return False
    if job.fresh:
        with job.folder().session(fresh=True):
            pass
    run_workers(workers or 1, job.arguments, ranks or 1)
    return True


def run_workers(count: int, arguments: Sequence[str], ranks: int = 1) -> None:
    """Run a command of this program in several workers, and end as the best of them ends.

    Args:
        ranks: Processes of each worker.

    Raises:
        InputError: there are fewer GPUs than a worker's ranks.
        typer.Exit: with the exit code, if it is not 0.
    """
    environments = worker_environments(count, _gpus(), ranks)
    threads = sum(int(each["OMP_NUM_THREADS"]) for each in environments) * ranks
    notice = busy(this_machine(threads), count)
    with stopped_by_signals(), fleet_bars() as shown:
        fleet = Fleet(count, shown, notice)
        workers: list[_Worker] = []
        try:
            with _signals_later():
                for number, environment in enumerate(environments):
                    command = worker_command(arguments, ranks)
                    workers.append(_Worker(number, command, environment, fleet))
            codes = [worker.wait() for worker in workers]
        except BaseException:
            _stop(workers)
            raise
    fleet.end(dict(enumerate(codes)))


def worker_command(arguments: Sequence[str], ranks: int = 1) -> list[str]:
    """What starts a worker: a command of this program, in so many processes."""
    if ranks > 1:
        return [sys.executable, "-m", "paretune.cli.ranks", str(ranks), *arguments]
    return [sys.executable, "-m", "paretune", *arguments]


def worker_environments(count: int, gpus: Sequence[str], ranks: int = 1) -> list[dict[str, str]]:
    """The environment of each worker: GPUs for its ranks, and threads that fill the cores.

    Raises:
        InputError: there are fewer GPUs than ranks.
    """
    if gpus and len(gpus) < ranks:
        raise InputError(
            f"run.gpus_per_point is {ranks}, and this machine has {len(gpus)} GPUs for this "
            "process: give at most that."
        )
    threads = max(1, own_cores() // (count * ranks))
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit():
        threads = max(1, min(threads, int(given)))
    common = {**os.environ, **worker_variables(threads)}
    sets = [gpus[start : start + ranks] for start in range(0, len(gpus) - ranks + 1, ranks)]
    return [
        common | ({"CUDA_VISIBLE_DEVICES": ",".join(sets[n % len(sets)])} if sets else {})
        for n in range(count)
    ]


def worker_variables(threads: int) -> dict[str, str]:
    """What a worker's environment says, wherever it runs."""
    return {
        VARIABLE: "1",
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),  # of the tokenizers
        "COLUMNS": str(console().width),
        "PYTHONUNBUFFERED": "1",
    }


def read_lines(process: "subprocess.Popen[str]", out: Any, err: Any) -> list[threading.Thread]:
    """Threads that hand over each line of a process's standard output and error."""

    def read(file: IO[str], tell: Any) -> None:
        with file:
            for line in file:
                tell(line)

    pairs = ((process.stdout, out), (process.stderr, err))
    threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    return threads


PIPES: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
    "encoding": "utf-8",
    "errors": "replace",
    # A session of its own: Ctrl-C comes to the first process, which tells the workers once.
    "start_new_session": True,
}


def interrupt(process: "subprocess.Popen[str]") -> None:
    """Tell a worker to end, as Ctrl-C would."""
    with suppress(OSError):
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)


def ended(process: "subprocess.Popen[str]", until: float) -> None:
    """See that a worker that was told to end has, from a time (`time.monotonic`) on by force."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Worker:
    def __init__(
        self, number: int, command: Sequence[str], environment: Mapping[str, str], fleet: Fleet
    ) -> None:
        self._number, self._fleet = number, fleet
        self.process = subprocess.Popen(command, env=environment, **PIPES)
        self._readers = read_lines(
            self.process, lambda line: fleet.hear(number, line), fleet.complain
        )

    def wait(self) -> int:
        code = self.process.wait()
        for reader in self._readers:
            reader.join(5.0)  # a process that it left behind may keep them open
        if code < 0:
            self._fleet.killed(self._number, code)
        return code


def _stop(workers: Sequence[_Worker]) -> None:
    """Tell all workers to end, and see that they do."""
    for worker in workers:
        interrupt(worker.process)
    until = time.monotonic() + GRACE
    for worker in workers:
        ended(worker.process, until)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Within, signals wait: between a process's start and its entry nobody could stop it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    import torch  # takes seconds

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within, SIGTERM (of a cluster, say) stops as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
