"""One process at a time in a folder.

``session.json`` is there while somebody is at work, says who, and is locked. The operating system's
lock ends with the process that holds it, however that ended, so no lock is stale on one machine; on
a shared file system, where it may not reach other machines, the file's content still does.
"""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from paretune.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SESSION = "session.json"
_ORPHANS = 15.0  # seconds: the data loaders of a killed process end by then, which hold its lock
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class BusyError(InputError):
    """Another process is at work in the folder."""


@dataclass(frozen=True)
class _Owner:
    """A process, and on which machine; `boot` tells machines of one name apart."""

    host: str
    boot: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def elsewhere(self) -> bool:
        """Whether it is on a machine whose processes cannot be seen from here.

        A container has a host name of its own, and a restarted machine another boot.
        """
        here = _this_process()
        return self.host != here.host and self.boot != here.boot

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended."""
        here = _this_process()
        if self.host == here.host and self.boot != here.boot:
            return True
        if self.elsewhere or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's
            return False
        return False


@contextlib.contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is missing.

    Args:
        patience: Seconds to wait for another process.

    Raises:
        BusyError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SESSION
    descriptor = _take(path, patience)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(_this_process())).encode(), 0)
        os.fsync(descriptor)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _take(path: Path, patience: float) -> int:
    """The descriptor of the file, created if need be and locked."""
    end = time.monotonic() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            owner = _read(path)
            if _lock(descriptor, owner):
                if not _names(path, descriptor):  # its owner deleted it in the meantime
                    os.close(descriptor)
                    continue
                owner = _read(path)
                if owner is None or not owner.elsewhere:
                    return descriptor
                raise BusyError(
                    f"Another machine is at work in '{path.parent}' ({owner}): wait for it, or, "
                    f"if it is not running any more, delete '{path}' and run the command again."
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        orphans = owner is not None and owner.dead
        if time.monotonic() >= end + (_ORPHANS if orphans else 0):
            who = f" ({owner})" if owner is not None else ""
            raise BusyError(
                f"Another process{who} is at work in '{path.parent}': wait for it, or stop it, "
                "and run the command again."
            )
        time.sleep(0.05)


def _lock(descriptor: int, owner: _Owner | None) -> bool:
    """Lock the file for this process; where there are no locks, the owner decides."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return owner is None or owner.dead or owner.elsewhere


def _names(path: Path, descriptor: int) -> bool:
    """Whether the file of a descriptor is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _this_process() -> _Owner:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = socket.gethostname()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return _Owner(socket.gethostname(), boot, os.getpid(), now)


def _read(session: Path) -> _Owner | None:
    """Who is at work; None if nobody is, or if the file was cut short with its machine."""
    try:
        return _Owner(**json.loads(session.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
