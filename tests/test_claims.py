"""Claims: one owner at a time, whoever dies, is slow, or has another clock."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paretune import claims
from paretune.claims import BusyError, LostClaimError, held, owners, take


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.02)
    monkeypatch.setattr(claims, "STALE", 0.2)


@pytest.fixture
def process() -> Iterator[Any]:
    started = []

    def start(path: Path, *, beat: float = 10.0) -> subprocess.Popen[bytes]:
        code = (
            "import sys, pathlib, time; from paretune import claims\n"
            f"claims.BEAT = {beat}\n"
            "claim = claims.take(pathlib.Path(sys.argv[1])); print('in', flush=True)\n"
            "sys.stdin.read(); claim.release(); print('out', flush=True)"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        one = subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes)  # type: ignore
        started.append(one)
        assert one.stdout is not None
        assert one.stdout.readline() == b"in\n"
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


def elsewhere(file: Path, **more: Any) -> dict[str, Any]:
    """Make the claim in a file one of another machine's."""
    owner = {**json.loads(file.read_text()), "host": "node7", "machine": "another", **more}
    file.write_text(json.dumps(owner))
    return owner


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "claims" / "points.a"
    with held(path):
        assert [file.name for file in path.parent.iterdir()] == ["points.a.0"]
        for _ in range(2):
            with pytest.raises(BusyError, match=rf"process {os.getpid()} on .*wait for it"):
                take(path)
        with held(path.with_name("points.a.b")), held(path.with_name("points")):
            assert len(owners(path.parent)) == 3
            assert len(owners(path.parent, "points.a")) == 2
    assert list(path.parent.iterdir()) == []
    with held(path):
        pass


def test_what_a_killed_process_had_is_free_at_once(tmp_path: Path, process: Any) -> None:
    path = tmp_path / "piece"
    for _ in range(2):
        one = process(path)
        with pytest.raises(BusyError, match=f"process {one.pid}"):
            take(path)
        one.kill()
        start = time.monotonic()  # not waited for: it is a zombie now
        with held(path, patience=5):
            assert time.monotonic() - start < 2
        assert list(tmp_path.iterdir()) == []


def test_a_suspended_process_of_this_machine_keeps_its_claim(
    tmp_path: Path, process: Any, quick: None
) -> None:
    one = process(tmp_path / "piece", beat=0.02)
    one.send_signal(signal.SIGSTOP)
    with pytest.raises(BusyError), held(tmp_path / "piece", patience=0.5):
        pass
    one.send_signal(signal.SIGCONT)
    assert one.communicate()[0] == b"out\n"
    take(tmp_path / "piece").release()


def test_a_pid_that_another_process_has_now(tmp_path: Path) -> None:
    claim = take(tmp_path / "piece")
    file = tmp_path / "piece.0"
    file.write_text(json.dumps({**json.loads(file.read_text()), "began": "1"}))
    with held(tmp_path / "piece"):
        assert not claim._ours()


@pytest.mark.slow
@pytest.mark.parametrize("since", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_another_machine_is_judged_by_its_beats_and_no_clock(
    tmp_path: Path, quick: None, since: str
) -> None:
    path = tmp_path / "piece"
    take(path)._end.set()  # as if its machine went down
    owner = elsewhere(tmp_path / "piece.0", since=since)
    end = time.monotonic() + 0.5
    beat = 0
    while time.monotonic() < end:  # it lives
        beat += 1
        elsewhere(tmp_path / "piece.0", beat=f"{beat:012}")
        with pytest.raises(BusyError, match=r"on node7.*delete that file"):
            take(path)
        time.sleep(0.01)
    start = time.monotonic()
    with held(path, patience=5):
        assert 0.15 < time.monotonic() - start < 2
        assert [file.name for file in tmp_path.iterdir()] == ["piece.1"]
    assert owner["token"] not in {o.token for o in owners(tmp_path)}


def test_time_in_which_nobody_looked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(tmp_path / "piece")._end.set()
    elsewhere(tmp_path / "piece.0")
    now = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    for now[0] in (0.0, 1e6, 2e6):  # suspended in between: the owner may have been, too
        with pytest.raises(BusyError):
            take(tmp_path / "piece")


def test_an_unreadable_claim_is_waited_for_and_then_taken(tmp_path: Path, quick: None) -> None:
    (tmp_path / "piece.3").write_text("")  # its machine went down while it was written
    with pytest.raises(BusyError):
        take(tmp_path / "piece")
    with held(tmp_path / "piece", patience=5):
        assert [file.name for file in tmp_path.iterdir()] == ["piece.4"]


def test_who_was_too_slow_finds_out_and_does_no_harm(tmp_path: Path, quick: None) -> None:
    slow = take(tmp_path / "piece")
    slow.check()
    slow._end.set()
    elsewhere(tmp_path / "piece.0")
    with held(tmp_path / "piece", patience=5) as claim:
        time.sleep(0.15)
        with pytest.raises(LostClaimError, match="too slow"):
            slow.check()
        slow.release()
        claim.check()
        assert [file.name for file in tmp_path.iterdir()] == ["piece.1"]
    assert list(tmp_path.iterdir()) == []


def test_a_beat_never_brings_back_a_file(tmp_path: Path, quick: None) -> None:
    claim = take(tmp_path / "piece")
    first = (tmp_path / "piece.0").read_bytes()
    time.sleep(0.1)
    assert (tmp_path / "piece.0").read_bytes() != first
    assert len((tmp_path / "piece.0").read_bytes()) == len(first)
    (tmp_path / "piece.0").unlink()
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
    claim.release()


def test_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", link)
    with held(tmp_path / "piece"):
        with pytest.raises(BusyError):
            take(tmp_path / "piece")
        assert [file.name for file in tmp_path.iterdir()] == ["piece.0"]


def _race(folder: str, rounds: int, gate: Any, won: Any, number: int) -> None:
    for each in range(rounds):
        gate.wait()
        try:
            claims.take(Path(folder) / f"piece{each}")
            won[each * 4 + number] = 1
        except BusyError:
            pass
    gate.wait()


@pytest.mark.parametrize("stale", [False, True])
def test_four_at_the_same_instant_a_hundred_times(tmp_path: Path, stale: bool) -> None:
    """One wins, whether the piece is free or was left by a dead process."""
    rounds = 100
    if stale:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        for each in range(rounds):
            take(tmp_path / f"piece{each}")._end.set()
            file = tmp_path / f"piece{each}.0"
            file.write_text(json.dumps({**json.loads(file.read_text()), "pid": gone.pid}))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    gate, won = context.Barrier(4), context.Array("i", rounds * 4)
    racers = [
        context.Process(target=_race, args=(str(tmp_path), rounds, gate, won, number))  # type: ignore
        for number in range(4)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    wins = [sum(won[4 * each : 4 * each + 4]) for each in range(rounds)]
    assert wins == [1] * rounds


def test_many_threads_of_takers(tmp_path: Path) -> None:
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(20):
            with held(tmp_path / "piece", patience=60):
                inside += 1
                most = max(most, inside)
                done += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 80)
