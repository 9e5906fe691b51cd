"""Workers on one folder: nothing done twice, nothing lost, whoever is killed, slow or doubled."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from paretune import claims
from paretune.claims import LostClaimError
from paretune.files import append_jsonl, read_json, read_jsonl, write_json
from paretune.progress import Silent
from paretune.runs.folder import RunFolder

NAMES = [f"points/{number}" for number in range(9)]

# A point that takes milliseconds: who did it and, in the end, its mark, made of its predecessor's.
WORKER = """
import os, sys, time, random
from pathlib import Path
from paretune import claims
from paretune.files import append_jsonl, read_json, write_json, write_text
from paretune.runs.folder import RunFolder

run, pause, warm = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "warm"
claims.BEAT, claims.STALE = 0.02, 5.0
names = [f"points/{number}" for number in range(9)]
folder = RunFolder(run, identity=None)

def before(name):
    at = names.index(name)
    return names[at - 1] if warm and at else None

def do(name):
    (run / name).mkdir(parents=True, exist_ok=True)
    append_jsonl(run / name / "log.jsonl", [{"begun": os.getpid()}])
    write_text(run / name / "answer.txt", name)
    time.sleep(pause)
    start = before(name)
    value = read_json(run / start / "metrics.json")["value"] if start else 1
    append_jsonl(run / name / "log.jsonl", [{"done": os.getpid()}])
    write_json(run / name / "metrics.json", {"value": 2 * value + len(name)})

print("ready", flush=True)
sys.stdin.readline()
with folder.shared_session():
    folder.note({"pid": os.getpid()})
    failed = folder.work(names, do, lambda: None, after=before)
    assert not failed, failed
    marks = [read_json(run / name / "metrics.json")["value"] for name in names]
    with folder.alone():
        write_json(run / "front.json", {"values": marks})
"""


def start(run: Path, pause: float = 0.02, how: str = "") -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", WORKER, str(run), str(pause), how]
    process: subprocess.Popen[str] = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(*workers: subprocess.Popen[str]) -> None:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()


def end(*workers: subprocess.Popen[str]) -> None:
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0


def content(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file())
    whole = {str(path.relative_to(run)): path.read_bytes() for path in files}
    return {k: v for k, v in whole.items() if k != "manifest.json" and "log.jsonl" not in k}


def done(run: Path, what: str = "done") -> list[int]:
    """How many times each piece was done."""
    return [(run / name / "log.jsonl").read_text().count(what) for name in NAMES]


@pytest.fixture(scope="module", params=["", "warm"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(how: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("one") / "run"
    worker = start(run, 0.0, how)
    go(worker)
    end(worker)
    return content(run)


@pytest.mark.slow  # four processes
def test_four_workers_make_what_one_does(
    tmp_path: Path, how: str, expected: dict[str, bytes]
) -> None:
    workers = [start(tmp_path, 0.02, how) for _ in range(4)]
    go(*workers)
    end(*workers)
    assert content(tmp_path) == expected
    assert done(tmp_path) == done(tmp_path, "begun") == [1] * 9
    sessions = read_json(tmp_path / "manifest.json")["sessions"]
    assert sorted(each["pid"] for each in sessions) == sorted(worker.pid for worker in workers)


@pytest.mark.slow
def test_killed_suspended_and_doubled_workers(
    tmp_path: Path, how: str, expected: dict[str, bytes]
) -> None:
    """SIGKILL at random moments, SIGSTOP, and new ones that come later."""
    moments = random.Random(3)
    workers = [start(tmp_path, 0.05, how) for _ in range(4)]
    late = [start(tmp_path, 0.05, how) for _ in range(2)]
    go(*workers)
    for victim in workers[:2]:
        time.sleep(moments.uniform(0.02, 0.15))
        victim.kill()  # and not waited for
    workers[2].send_signal(signal.SIGSTOP)
    go(*late)
    time.sleep(moments.uniform(0.1, 0.3))
    workers[2].send_signal(signal.SIGCONT)
    end(*workers[2:], *late)
    for victim in workers[:2]:
        victim.communicate()
    assert content(tmp_path) == expected
    # A killed worker's piece is begun again: it may have been killed before it wrote its mark.
    assert min(done(tmp_path)) == 1
    assert sum(done(tmp_path, "begun")) <= 9 + 2


@pytest.mark.slow
def test_a_killed_run_is_resumed(tmp_path: Path, how: str, expected: dict[str, bytes]) -> None:
    for _ in range(2):
        worker = start(tmp_path, 0.02, how)
        go(worker)
        time.sleep(0.1)
        worker.kill()
        worker.communicate()
    worker = start(tmp_path, 0.0, how)
    go(worker)
    end(worker)
    assert content(tmp_path) == expected
    assert min(done(tmp_path)) == 1
    assert sum(done(tmp_path, "begun")) <= 9 + 2


def _together(place: str, rounds: int, gate: Any, number: int) -> None:
    names = ["a", "b", "c"]
    for each in range(rounds):
        folder = RunFolder(Path(place) / f"{each}", identity=None)

        def do(name: str, folder: RunFolder = folder) -> None:
            time.sleep(0.01)  # or the first is done before the second has looked
            append_jsonl(folder.path / "log.jsonl", [{name: number}])
            write_json(folder.path / name / folder.mark, {"value": name})

        gate.wait(60)
        with folder.shared_session():
            folder.note({"number": number})
            assert folder.work(names, do, lambda: None) == {}
            assert all(map(folder.finished, names))


@pytest.mark.slow
def test_two_started_at_the_same_instant_a_hundred_times(tmp_path: Path) -> None:
    """Whole sessions: the folder is made, joined, worked in and left by both at once."""
    rounds = 100
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    gate = context.Barrier(2)
    both = [
        context.Process(target=_together, args=(str(tmp_path), rounds, gate, number))
        for number in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    helped = 0
    for each in range(rounds):
        run = tmp_path / str(each)
        assert sorted(path.name for path in run.iterdir()) == [
            *("a", "b", "c", "log.jsonl", "manifest.json")
        ]
        log = [row for _, row in read_jsonl(run / "log.jsonl")]
        assert sorted(name for row in log for name in row) == ["a", "b", "c"]
        helped += len({number for row in log for number in row.values()}) == 2
        sessions = read_json(run / "manifest.json")["sessions"]
        assert sorted(session["number"] for session in sessions) == [0, 1]
    assert helped, "or the two never met"


# ------------------------------------------------------------------ in this process


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[], RunFolder]:
    return lambda: RunFolder(tmp_path, identity=None)


def finish(folder: RunFolder, name: str) -> None:
    write_json(folder.path / name / folder.mark, {})


def test_what_was_taken_over_is_left(
    folder: Callable[[], RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was away for too long finds its piece in other hands, and goes on elsewhere."""
    monkeypatch.setattr(claims, "_CHECKED", 0.0)
    slow, told = folder(), []

    def do(name: str) -> None:
        watched = slow.pieces.watched(Silent())
        watched.phase("train", 0.0)
        if name == "a" and not told:
            told.append(name)
            claim = slow.path / "claims" / "a.0"
            claim.rename(claim.with_name("a.1"))  # another machine's now
            write_json(claim.with_name("a.1"), {**read_json(claim.with_name("a.1")), "token": "x"})
            finish(slow, "a")  # which does it
            watched.phase("train", 0.5)
            raise AssertionError
        finish(slow, name)

    with slow.shared_session():
        assert slow.work(["a", "b"], do, lambda: None) == {}
    assert told == ["a"]
    assert slow.finished("b")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of grandparents")
@pytest.mark.parametrize("between", [(), ("sh", "-c", '"$@"; exit $?', "sh")])
def test_who_started_a_worker_is_not_waited_for(
    folder: Callable[[], RunFolder], between: tuple[str, ...]
) -> None:
    """Each would wait for the other: a callback that runs the same command, say."""
    parent, codes = folder(), []
    child = (
        "import sys; from pathlib import Path\n"
        "from paretune.errors import InputError; from paretune.runs.pieces import Pieces\n"
        "try: Pieces(Path(sys.argv[1])).work(['a'], print, print, lambda name: False)\n"
        "except InputError as error: sys.exit(7 if 'it started this one' in str(error) else 8)"
    )

    def do(name: str) -> None:
        command = [*between, sys.executable, "-c", child, str(parent.path)]
        codes.append(subprocess.run(command, timeout=100).returncode)
        finish(parent, name)

    with parent.shared_session():
        parent.work(["a"], do, lambda: None)
    assert codes == [7]


def test_a_progress_of_the_first_version_still_watches(folder: Callable[[], RunFolder]) -> None:
    class Earlier:
        told: ClassVar[list[object]] = []

        def begin(self, points: list[str], finished: int) -> None:
            self.told.append((points, finished))

    watched = folder().pieces.watched(Earlier())  # type: ignore[arg-type]
    watched.begin(["a"], 0)
    watched.finished(1)
    assert Earlier.told == [(["a"], 0)]


def test_a_failure_is_known_to_all_and_tried_again_later(folder: Callable[[], RunFolder]) -> None:
    first, second, later = folder(), folder(), folder()
    tried: list[str] = []

    def do(name: str) -> str | None:
        tried.append(name)
        if name == "a":
            return "no luck"
        finish(first, name)
        return None

    def after(name: str) -> str | None:
        return "a" if name == "c" else None

    expected = {"a": "no luck", "c": "what it starts from failed (a: no luck)"}
    with first.shared_session(), second.shared_session():
        for worker in (first, second):
            assert worker.work(["a", "b", "c"], do, lambda: None, after=after) == expected
        assert tried == ["a", "b"]

    def raises(name: str) -> None:
        raise ValueError(name)

    with first.shared_session(), second.shared_session():
        with pytest.raises(ValueError, match="d"):
            first.work(["d"], raises, lambda: None)
        assert second.work(["d"], raises, lambda: None) == {"d": "d"}

    def works(name: str) -> None:
        finish(later, name)

    with later.shared_session():
        assert later.work(["a", "b", "c", "d"], works, lambda: None, after=after) == {}
    assert not (later.path / "claims").exists()


def test_half_written_files_of_the_killed_are_removed(folder: Callable[[], RunFolder]) -> None:
    one = folder()
    half = one.path / "points" / "a" / "metrics.json.0123.partial"
    half.parent.mkdir(parents=True)
    half.write_text("{")
    (half.parent / "weights.4567.partial").mkdir()
    with one.shared_session():
        one.work(["points/a"], lambda name: finish(one, name), lambda: None)
    assert [path.name for path in half.parent.iterdir()] == ["metrics.json"]


def test_a_lost_claim_ends_in_no_failure(folder: Callable[[], RunFolder]) -> None:
    one, tries = folder(), []

    def do(name: str) -> None:
        tries.append(os.getpid())
        if len(tries) == 1:
            raise LostClaimError("slow")
        finish(one, name)

    with one.shared_session():
        assert one.work(["a"], do, lambda: None) == {}
    assert len(tries) == 2
