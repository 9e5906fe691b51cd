"""Who has a piece of work, among processes on one machine or on many that share a disk.

A claim is a file that only one process can create: ``<name>.<number>``, with its machine, its
process and a counter that it raises every `BEAT` seconds. It is released by deleting it. The claim
of a process that has ended is taken over: on this machine at once; of another machine when its
file has not changed for `STALE` seconds of watching it, so that no two clocks are compared. Who
takes over creates the file of the next number, which again only one can, and deletes the old one;
if its owner was only slow it finds that out (`Claim.check`) and leaves the piece.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from paretune.errors import InputError

BEAT = 10.0
"""Seconds between two signs of life."""
STALE = 300.0
"""Seconds without one after which the claim of another machine may be taken over."""

_CHECKED = 1.0  # seconds for which a claim that was seen to be ours is believed to be
_seen: dict[Path, tuple[bytes, float, float]] = {}  # content, when looked at last, unchanged for


class BusyError(InputError):
    """Another process has what was to be claimed."""


class LostClaimError(Exception):
    """Another process took this one for dead, and has its claim now."""


@dataclass(frozen=True)
class Owner:
    """A process; `machine` is one whose processes see each other, `began` tells pids apart."""

    host: str
    machine: str
    pid: int
    began: str
    since: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    beat: str = f"{0:012}"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def here(self) -> bool:
        """Whether its process can be seen from this one."""
        return self.machine == _machine() and os.name == "posix"

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended."""
        if not self.here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's
            pass
        return _began(self.pid) != self.began


class Claim:
    """A claim that this process holds, kept alive by a thread until it is released."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner
        self._end = threading.Event()
        self._checked = time.monotonic()
        self._heart = threading.Thread(target=self._live, name=f"claim {path.name}", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """See that the claim is still held; cheap enough for every step of a training.

        Raises:
            LostClaimError: another process has it.
        """
        now = time.monotonic()
        if now - self._checked < min(_CHECKED, STALE / 2):
            return
        if not self._ours():
            raise LostClaimError(f"'{self._path}' was taken over: this process was too slow.")
        self._checked = now

    def release(self) -> None:
        self._end.set()
        self._heart.join()
        if self._ours():
            self._path.unlink(missing_ok=True)

    def _ours(self) -> bool:
        owner = _read(_content(self._path))
        return owner is not None and owner.token == self._owner.token

    def _live(self) -> None:
        number = 0
        while not self._end.wait(BEAT):
            number += 1
            content = _written(self._owner, number)
            # Opened, never created: what was taken over must not come back. The disk may be away
            # for a while.
            with contextlib.suppress(OSError), self._path.open("r+b") as file:
                old = _read(file.read())
                if old is None or old.token != self._owner.token:
                    return
                file.seek(0)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())


def take(path: Path) -> Claim:
    """Claim what `path` names; its folder is made if it is missing.

    Raises:
        BusyError: another process, or another part of this one, has it.
    """
    for _ in range(100):
        # Who left last removes the folder; `mkdir` fails if it does so in the middle of it.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _take(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _take(path)


def _take(path: Path) -> Claim:
    stale = _files(path)
    for file, owner in stale.items():
        _refuse_live(file, owner)
    number = max((int(file.suffix[1:]) for file in stale), default=-1) + 1
    mine, me = path.with_name(f"{path.name}.{number}"), _this_process()
    if not _create(mine, me):
        raise _busy(mine, _read(_content(mine)))
    # Whoever created a file at the same time sees ours, or we see theirs.
    for file, owner in _files(path).items():
        if file != mine and (file not in stale or _token(owner) != _token(stale[file])):
            mine.unlink(missing_ok=True)
            raise _busy(file, owner)
    for file in stale:
        file.unlink(missing_ok=True)
        _seen.pop(file, None)
    return Claim(mine, me)


@contextlib.contextmanager
def held(path: Path, patience: float = 0.0) -> Iterator[Claim]:
    """Hold the claim that `path` names.

    Args:
        patience: Seconds to wait for another process.

    Raises:
        BusyError: another process has it.
    """
    end, pause = time.monotonic() + patience, 0.005
    while True:
        try:
            claim = take(path)
            break
        except BusyError:
            if time.monotonic() >= end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 1.0)
    try:
        yield claim
    finally:
        claim.release()


def listed(folder: Path) -> list[Path]:
    """The files of a folder of claims; none if whoever left last has removed it."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:  # `Path.glob` raises it, too, if the folder goes while it looks
        return []


def owners(folder: Path, prefix: str = "") -> list[Owner]:
    """Who has claims whose names begin with `prefix`, but for those known to be dead."""
    found = (_read(_content(file)) for file in listed(folder) if file.name.startswith(prefix))
    return [owner for owner in found if owner is not None and not owner.dead]


def started_by(owner: Owner) -> bool:
    """Whether this process was started by the owner, which may be waiting for it."""
    pid, found = os.getppid(), {0, 1}
    while owner.here and pid not in found:
        if pid == owner.pid:
            return True
        found.add(pid)
        with contextlib.suppress(OSError, ValueError):  # Linux tells of grandparents, too
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            pid = int(stat.rpartition(")")[2].split()[1])
    return False


def bury(folder: Path, prefix: str) -> None:
    """Delete the claims of the dead whose names begin with `prefix`, which nobody takes again."""
    for file in listed(folder):
        if file.name.startswith(prefix):
            owner = _read(_content(file))
            if owner is not None and owner.dead:
                file.unlink(missing_ok=True)


def _refuse_live(file: Path, owner: Owner | None) -> None:
    """Raise BusyError unless the claim in a file may be taken over."""
    if owner is not None and owner.dead:
        return
    content, now = _content(file), time.monotonic()
    before, looked, unchanged = _seen.get(file, (None, now, 0.0))
    # Time in which nobody looked, as while this process was suspended, counts little.
    unchanged = unchanged + min(now - looked, 2 * BEAT) if content == before else 0.0
    if content is not None:
        _seen[file] = (content, now, unchanged)
    if unchanged < STALE or (owner is not None and owner.here):
        raise _busy(file, owner)


def _busy(file: Path, owner: Owner | None) -> BusyError:
    who = f" ({owner})" if owner is not None else ""
    if owner is None or owner.here:
        advice = "wait for it, or stop it, and run the command again."
    else:
        advice = (
            "wait for it, or, if that machine is not running any more, delete that file and run "
            "the command again."
        )
    return BusyError(
        f"Another process{who} is at work in '{file.parent}' (file '{file.name}'): {advice}"
    )


def _files(path: Path) -> dict[Path, Owner | None]:
    """The claims on one thing, normally none or one; None for one that cannot be read (yet)."""
    start = f"{path.name}."
    names = [name for name in os.listdir(path.parent) if name.startswith(start)]
    files = [path.with_name(name) for name in names if name.removeprefix(start).isdigit()]
    contents = {file: _content(file) for file in files}
    return {file: _read(content) for file, content in contents.items() if content is not None}


def _create(path: Path, owner: Owner) -> bool:
    """Create the file whole, unless it is there; whether it was created."""
    whole = path.with_name(f".{owner.token}")
    try:
        whole.write_bytes(_written(owner, 0))
        try:
            os.link(whole, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.write(_written(owner, 0))
                return True
            return False
        return True
    finally:
        whole.unlink(missing_ok=True)


def _written(owner: Owner, beat: int) -> bytes:
    """The file's content, of one length for all beats."""
    return (json.dumps({**asdict(owner), "beat": f"{beat:012}"}) + "\n").encode()


def _content(path: Path) -> bytes | None:
    """None if it is not there; of one that cannot be read, nothing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return b""


def _read(content: bytes | None) -> Owner | None:
    try:
        return Owner(**json.loads(content or b""))
    except (ValueError, TypeError):
        return None


def _token(owner: Owner | None) -> str | None:
    return None if owner is None else owner.token


def _this_process() -> Owner:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Owner(socket.gethostname(), _machine(), os.getpid(), _began(os.getpid()), now)


@cache
def _machine() -> str:
    """This machine since it was started and, where there are containers, this one of them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where that is not known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return "ended" if fields[0] in "ZX" else fields[19]
