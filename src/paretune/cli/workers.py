"""``--workers N``: the same command in N processes on this machine, shown as one.

Each worker is given a GPU, where there are any, and its part of the processor's cores. What it is
at it writes to its standard output, as JSON behind a mark; what else it prints there is printed
once, of the worker that ended best.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Annotated, Any

import typer
from rich.progress import Progress as Bars

from paretune.cli.output import console, echo
from paretune.cli.progress import WORDS, bars, remaining_text, share_before
from paretune.errors import InputError
from paretune.progress import PHASES, Phase

Workers = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes on this machine that share the work, each with a GPU where there are some.",
    ),
]

VARIABLE = "PARETUNE_WORKER"
_MARK = "\x1e"  # the record separator
_OFTEN = 0.2  # seconds between two reports of one phase
_GRACE = 30.0  # seconds for a worker to end after it was told to


class Events:
    """Progress as lines for the process that started this one."""

    def __init__(self) -> None:
        self._last: tuple[Phase, float] = ("prepare", -1.0)

    def begin(self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES) -> None:
        self._tell(begin=len(points), finished=finished, phases=list(phases))

    def point(self, name: str) -> None:
        self._tell(point=name)

    def phase(self, phase: Phase, done: float) -> None:
        now = time.monotonic()
        if phase != self._last[0] or now - self._last[1] >= _OFTEN:
            self._last = phase, now
            self._tell(phase=phase, done=done)

    def finished(self, points: int) -> None:
        self._tell(finished=points)

    def end(self) -> None:
        self._tell(end=True)

    def _tell(self, **event: Any) -> None:
        try:
            print(_MARK + json.dumps(event), flush=True)  # noqa: T201
        except BrokenPipeError:  # who started this process is gone
            raise KeyboardInterrupt from None


class Fleet:
    """How all workers get on: a bar for all points and one each, or lines."""

    def __init__(self, workers: int, shown: Bars | None) -> None:
        self._bars = shown
        self._names, self._phases = ["starting"] * workers, [PHASES] * workers
        self._total, self._finished, self._first, self._start = 0, 0, 0, time.monotonic()
        self._said: set[str] = set()
        self._lock = threading.Lock()
        if shown is not None:
            self._all = shown.add_task("", total=None)
            self._each = [shown.add_task(f"worker {n + 1}", total=1.0) for n in range(workers)]

    def is_new(self, text: str) -> bool:
        """Whether no worker has said this yet: all say the same of the same recipe."""
        with self._lock:
            known = text in self._said
            self._said.add(text)
            return not known

    def tell(self, worker: int, event: Mapping[str, Any]) -> None:
        with self._lock:
            if "begin" in event:
                self._phases[worker] = tuple(event["phases"])
                if not self._total:
                    self._total, self._first = event["begin"], event["finished"]
                    self._start = time.monotonic()
            if "finished" in event:
                self._finished = max(self._finished, event["finished"])
            self._names[worker] = event.get("point", self._names[worker])
            if "phase" in event:
                self._show(worker, event["phase"], event["done"])
            elif self._bars is not None:
                if "end" in event:
                    self._bars.update(self._each[worker], description=f"worker {worker + 1}: done")
                self._bars.update(
                    self._all,
                    description=self._of_all(),
                    completed=self._finished,
                    total=self._total,
                )

    def _show(self, worker: int, phase: Phase, done: float) -> None:
        doing = f"worker {worker + 1}: {self._names[worker]}: {WORDS[phase]}"
        if self._bars is not None:
            inside = share_before(phase, done, self._phases[worker])
            self._bars.update(self._each[worker], description=doing, completed=inside)
        elif done == 0:
            line = f"[{self._finished}/{self._total}] {doing}, {self._left()}"
            console(stderr=True).print(line, highlight=False, soft_wrap=True)

    def _of_all(self) -> str:
        return f"{self._finished} of {self._total} points, {self._left()}"

    def _left(self) -> str:
        fresh = self._finished - self._first
        elapsed = time.monotonic() - self._start
        left = self._total - self._finished
        return remaining_text(elapsed / fresh * left if fresh > 0 else None)


def run_workers(count: int, arguments: Sequence[str]) -> None:
    """Run a command of this program in several processes, and end as the best of them ends.

    Raises:
        InputError: this is itself one of several processes.
        typer.Exit: with the exit code, if it is not 0.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--workers starts processes itself: leave out torchrun or accelerate.")
    command = [sys.executable, "-m", "paretune", *arguments]
    environments = worker_environments(count, _gpus())
    terminal = console(stderr=True)
    with _stopped_by_signals(), _bars(terminal.is_terminal) as shown:
        fleet = Fleet(count, shown)
        workers = [
            _Worker(number, command, environment, fleet)
            for number, environment in enumerate(environments)
        ]
        try:
            codes = [worker.wait() for worker in workers]
        except BaseException:
            _stop(workers)
            raise
    best = min(range(count), key=lambda n: (codes[n] != 0, codes[n] < 0))
    echo("".join(workers[best].printed).rstrip("\n"))
    if codes[best]:
        raise typer.Exit(codes[best] if codes[best] > 0 else 1)


def worker_environments(count: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment of each worker: a GPU, and threads that together fill the cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    threads = max(1, cores // count)
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit():
        threads = max(1, min(threads, int(given)))
    common = {
        **os.environ,
        VARIABLE: "1",
        "OMP_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),  # of the tokenizers
        "COLUMNS": str(console().width),
        "PYTHONUNBUFFERED": "1",
    }
    return [
        common | ({"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {})
        for number in range(count)
    ]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    import torch  # takes seconds

    return [str(number) for number in range(torch.cuda.device_count())]


class _Worker:
    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        fleet: Fleet,
    ) -> None:
        self.printed: list[str] = []
        self._number, self._fleet = number, fleet
        # A session of its own: Ctrl-C comes to the first process, which tells the workers once.
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=reader, args=(file,), daemon=True)
            for reader, file in (
                (self._read_output, self.process.stdout),
                (self._read_errors, self.process.stderr),
            )
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> int:
        code = self.process.wait()
        for reader in self._readers:
            reader.join(5.0)  # a process that it left behind may keep them open
        if code < 0:
            name = signal.Signals(-code).name
            self._say(f"worker {self._number + 1} was ended by {name}; others take over its work")
        return code

    def _read_output(self, file: IO[str]) -> None:
        with file:
            for line in file:
                if line.startswith(_MARK):
                    self._fleet.tell(self._number, json.loads(line[1:]))
                else:
                    self.printed.append(line)

    def _read_errors(self, file: IO[str]) -> None:
        with file:
            for line in file:
                text = line.rstrip("\n")
                if text and self._fleet.is_new(text):
                    self._say(text)

    def _say(self, text: str) -> None:
        console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def _stop(workers: Sequence[_Worker]) -> None:
    """Tell all workers to end, as Ctrl-C would, and see that they do."""
    for worker in workers:
        with suppress(OSError):
            worker.process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    end = time.monotonic() + _GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
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


@contextmanager
def _bars(terminal: bool) -> Iterator[Bars | None]:
    if not terminal:
        yield None
        return
    with bars(console(stderr=True)) as shown:
        yield shown
