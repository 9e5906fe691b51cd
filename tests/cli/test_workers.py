"""``--workers N``: processes with their GPU and threads, shown and ended as one."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from paretune.cli import fleet as fleets
from paretune.cli import progress, workers
from paretune.cli.fleet import Events, Fleet
from paretune.cli.workers import (
    Job,
    run_workers,
    shared_out,
    worker_command,
    worker_environments,
)
from paretune.errors import InputError
from paretune.recipes.section import Run


def test_each_has_a_gpu_and_its_part_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10)), raising=False)
    for count in (1, 3, 4, 10, 16):
        environments = worker_environments(count, ["4", "6"])
        gpus = [each["CUDA_VISIBLE_DEVICES"] for each in environments]
        assert gpus == [("4", "6")[number % 2] for number in range(count)]
        threads = {int(each["OMP_NUM_THREADS"]) for each in environments}
        assert threads == {max(1, 10 // count)}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert worker_environments(3, [])[0]["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    assert workers._gpus() == ["3", "1"]


def test_several_gpus_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    environments = worker_environments(3, ["0", "1", "2", "3", "4"], ranks=2)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["0,1", "2,3", "0,1"]
    assert {each["OMP_NUM_THREADS"] for each in environments} == {"2"}
    with pytest.raises(InputError, match=r"gpus_per_point is 4, and this machine has 3 GPUs"):
        worker_environments(1, ["0", "1", "2"], ranks=4)
    assert worker_command(["sweep"], 2)[1:] == ["-m", "paretune.cli.ranks", "2", "sweep"]


def job(gpus_per_point: int | None = None) -> Job:
    def none() -> Any:
        raise AssertionError

    return Job(["sweep", "demo"], none, Run(gpus_per_point=gpus_per_point), 3, fresh=False)


def test_who_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(workers, "run_workers", lambda *arguments: started.append(arguments))
    for gpus, count, expected in (
        (None, None, []),
        (1, 1, []),
        (None, 3, [(3, ["sweep", "demo"], 1)]),
        (2, None, [(1, ["sweep", "demo"], 2)]),
        (2, 4, [(4, ["sweep", "demo"], 2)]),
    ):
        started.clear()
        assert shared_out(job(gpus), count, None) is bool(expected)
        assert started == expected


def test_within_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for count, ray, option in (
        (2, None, "--workers"),
        (None, "auto", "--ray"),
        (2, "auto", "--ray"),
    ):
        with pytest.raises(
            InputError, match=f"{option} starts processes itself: leave out torchrun"
        ):
            shared_out(job(), count, ray)
    assert not shared_out(job(), None, None)
    assert not shared_out(job(2), None, None)
    with pytest.raises(InputError, match="gpus_per_point is 3, and 2 processes were started"):
        shared_out(job(3), None, None)


def test_what_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of comparisons and data weighting: a sentence that names --workers."""
    from paretune.baselines.recipe import load_comparison
    from paretune.data_weighting.run import run_weighing
    from paretune.recipes.data_weighting import load_weigh_recipe
    from paretune.runs.compare import run_compare

    runs: list[tuple[Any, str, Any]] = [
        (load_comparison, "demo_compare", run_compare),
        (load_weigh_recipe, "weigh_mnist", run_weighing),
        (load_weigh_recipe, "weigh_planted_larger", run_weighing),
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for load, name, run in runs:
        with pytest.raises(InputError, match=r"run\.gpus_per_point: .* does not .* --workers N\.$"):
            load(name, ["run.gpus_per_point=2"])
        with pytest.raises(InputError, match=r"plain `paretune \w+ \.\.\. --workers N`"):
            run(load(name))


@pytest.mark.slow
def test_ranks_end_as_the_first_that_failed() -> None:
    command = [*worker_command(["sweep", "no-such-recipe"], 2)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert set(ended.stderr.splitlines()) == {
        line for line in ended.stderr.splitlines() if line.startswith("error: There is no recipe")
    }


def test_one_display(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    for module in (progress, fleets):
        console = Console(file=file, width=100)
        monkeypatch.setattr(module, "console", lambda console=console, **_: console)
    monkeypatch.setenv("PARETUNE_WORKER", "1")
    fleet = Fleet(2, None)
    with progress.console_progress(None) as watcher:
        assert isinstance(watcher, Events)
        watcher.begin(["a", "b", "c"], 1, ("train",))
        watcher.point("b")
        watcher.phase("train", 0.0)
        watcher.phase("train", 0.5)  # too soon
        watcher.finished(2)
        watcher.end()
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert len(lines) == 5
    for line in lines:
        fleet.tell(1, fleets.json.loads(line[1:]))
    assert file.getvalue().startswith("[1/3] worker 2: b: training")
    assert fleet._of_all().startswith("2 of 3 points, about")


def fake(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Make workers that run this, with their number as argument, in place of the program."""
    popen, started = subprocess.Popen, []

    def start(command: Any, **more: Any) -> Any:
        started.append(command)
        return popen([sys.executable, "-c", code, str(len(started))], **more)

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("code", "expected", "printed"),
    [
        ("import sys; print('table'); print('same', file=sys.stderr)", 0, ["table"]),
        ("import os, sys; n = sys.argv[1]; n == '1' and os.kill(os.getpid(), 9); print(n)", 0, "2"),
        ("import sys; n = int(sys.argv[1]); print(n); sys.exit(n == 1)", 0, "2"),
        ("import sys; print('no', file=sys.stderr); sys.exit(2)", 2, []),
        ("import os; os.kill(os.getpid(), 15)", 1, []),
    ],
)
def test_it_ends_as_the_best_of_them(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    expected: int,
    printed: Any,
) -> None:
    fake(monkeypatch, code)
    if expected:
        with pytest.raises(typer.Exit) as exit_:
            run_workers(2, ["sweep", "demo"])
        assert exit_.value.exit_code == expected
    else:
        run_workers(2, ["sweep", "demo"])
    out, err = capsys.readouterr()
    assert out.split() == list(printed)
    lines = err.splitlines()
    assert len(lines) == len(set(lines))  # what both say is said once


@pytest.mark.parametrize("finished", [1, 3])
def test_a_busy_machine_is_told_of_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: int
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 0.0, 0.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    begin = {"begin": 3, "finished": finished, "phases": ["train"]}
    fake(monkeypatch, f"import json; print(chr(30) + json.dumps({begin}))")
    run_workers(3, ["sweep", "demo"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (finished < 3)
    for line in lines:
        assert "load of 6.0 in the last minute on 8 cores, to which this run adds 6" in line
        assert line.endswith("There is room for 2: give fewer --workers.")


def test_a_signal_stops_all(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from paretune.cli import workers\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "popen = workers.subprocess.Popen\n"
        "inner = ('import os, sys, time; open(sys.argv[1] + str(os.getpid()), \"w\");'\n"
        "    'time.sleep(60)')\n"
        "def start(command, **more):\n"
        "    made = popen([sys.executable, '-c', inner, sys.argv[1]], **more)\n"
        "    if 'early' in sys.argv:\n"  # before the process has an entry
        "        open(sys.argv[1] + str(made.pid), 'w')\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return made\n"
        "workers.subprocess.Popen = start\n"
        "os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "try: workers.run_workers(2, [])\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    for number in (signal.SIGTERM, signal.SIGINT, None):
        place = tmp_path / str(number)
        place.mkdir()
        more = ["early"] if number is None else []
        process = subprocess.Popen([sys.executable, "-c", code, f"{place}/", *more])
        end = time.monotonic() + 30
        while number is not None and len(list(place.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        if number is not None:
            process.send_signal(number)
        assert process.wait(40) == 130
        for path in place.iterdir():
            with pytest.raises(ProcessLookupError):
                os.kill(int(path.name), 0)
