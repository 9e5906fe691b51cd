"""The work of a run folder in pieces, shared by processes that need not know of each other.

Each takes the next piece that is neither finished nor claimed (`paretune.claims`), until all are
finished; so one process does the same as many. Nothing here imports torch.
"""

import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.claims import (
    BusyError,
    Claim,
    LostClaimError,
    bury,
    held,
    listed,
    owners,
    started_by,
    take,
)
from paretune.errors import InputError
from paretune.files import (
    drop_partials,
    main_process,
    read_object,
    several_processes,
    write_json,
)
from paretune.progress import PHASES, Phase, Progress

logger = logging.getLogger(__name__)

CLAIMS = "claims"
"""The folder of a run folder that says who is at work on what."""
_PAUSES = (0.01, 2.0)  # seconds between two looks at what others do, growing


@dataclass
class Pieces:
    """The pieces of work in a folder, as one process sees them."""

    folder: Path
    _claim: Claim | None = field(default=None, init=False)  # on the piece that is worked on
    _earlier: dict[str, tuple[str, str]] = field(default_factory=dict, init=False)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Within, this process counts as one that shares the folder."""
        self._earlier = self._failures()
        with held(self._claims / f"worker.{secrets.token_hex(8)}"):
            yield

    def leave(self) -> None:
        """Remove the folder of claims, if nobody has one; failures are told to those at work."""
        bury(self._claims, "worker.")
        with contextlib.suppress(OSError):
            if not owners(self._claims, "worker."):
                for record in self._records():
                    record.unlink(missing_ok=True)
            self._claims.rmdir()

    def refuse_workers(self) -> None:
        """See that nobody shares the folder.

        Raises:
            BusyError: somebody does.
        """
        others = owners(self._claims, "worker.")
        if others:
            raise BusyError(
                f"Another process ({others[0]}) is at work in '{self.folder}': wait for it, or "
                "stop it, and run the command again. If it is on a machine that is not running "
                f"any more, delete '{self._claims}' first."
            )

    def work(
        self,
        names: Sequence[str],
        do: Callable[[str], str | None],
        told: Callable[[], None],
        finished: Callable[[str], bool],
        after: Callable[[str], str | None] = lambda name: None,
    ) -> dict[str, str]:
        """See that all pieces are done, by this process or by others, and return once they are.

        What others work on is waited for, and taken over if they die.

        Args:
            names: Of the pieces, in the order in which they are taken.
            do: Does a piece; says why if it failed in a way that lets the others be done.
            told: Called before each piece, and when all are done.
            finished: Whether a piece is done.
            after: The piece which must be done before a piece, if there is one.

        Returns:
            Why pieces failed, by name, whoever tried them since this process joined.

        Raises:
            BusyError: what is left is worked on by the process that started this one: each would
                wait for the other.
        """
        if not main_process():
            while isinstance(heard := _told(""), str):
                if heard:
                    do(heard)
            return dict(heard)
        failed: dict[str, str] = {}
        pause, longest = _PAUSES
        while left := [name for name in names if not (name in failed or finished(name))]:
            settled = False
            for name in left:
                before = after(name)
                if before in failed:
                    failed[name] = f"what it starts from failed ({before}: {failed[before]})"
                elif before is None or finished(before):
                    told()
                    settled |= self._take(name, do, finished, failed)
                failed |= {key: why for key, why in self._new_failures().items() if key in left}
            if settled:
                pause = _PAUSES[0]
                continue
            self._refuse_parent(left)
            _told("")  # the processes started with this one must not wait for too long
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, longest)
        for name in names:
            if finished(name):  # by a process that was killed a moment later
                bury(self._claims, f"{_flat(name)}.")
        told()
        failed = {name: failed[name] for name in names if name in failed}
        _told(failed)
        return failed

    def watched(self, progress: Progress) -> Progress:
        """The progress of a process that must stop when it has lost the piece it works on.

        Told of anything, it raises LostClaimError then.
        """
        return _Watched(self, progress)

    def check(self) -> None:
        """Raise LostClaimError if the piece that is worked on was taken over."""
        if self._claim is not None:
            self._claim.check()

    def _refuse_parent(self, left: Sequence[str]) -> None:
        for name in left:
            for owner in owners(self._claims, f"{_flat(name)}."):
                if started_by(owner):
                    raise BusyError(
                        f"Another process ({owner}) is at work on {name} in '{self.folder}', and "
                        "it started this one: run the command again when it has ended."
                    )

    def _take(
        self,
        name: str,
        do: Callable[[str], str | None],
        finished: Callable[[str], bool],
        failed: dict[str, str],
    ) -> bool:
        """Do a piece, unless others do or did; whether that is settled now."""
        if name in failed or finished(name):
            return True
        place = self._claims / _flat(name)
        try:
            self._claim = take(place)
        except BusyError:
            return False
        record = place.with_name(f"{place.name}.failed")
        try:
            if finished(name) or name in self._new_failures():
                return True
            drop_partials(self.folder / name)
            failure = do(_told(name))
            if failure is None:
                record.unlink(missing_ok=True)
            else:
                failed[name] = failure
                _record(record, name, failure)
            return True
        except LostClaimError as error:
            if several_processes():
                raise
            logger.warning("%s is left to another worker: %s", name, error)
            return False
        except Exception as error:
            with contextlib.suppress(OSError):
                _record(record, name, f"{error}")
            raise
        finally:
            self._claim.release()
            self._claim = None

    def _records(self) -> list[Path]:
        return [file for file in listed(self._claims) if file.suffix == ".failed"]

    def _failures(self) -> dict[str, tuple[str, str]]:
        """Pieces that failed when they were tried last, by name: token and reason."""
        found = {}
        for path in self._records():
            with contextlib.suppress(InputError):  # done and deleted now
                each = read_object(path)
                found[each["name"]] = (each["token"], each["why"])
        return found

    def _new_failures(self) -> dict[str, str]:
        """Why pieces failed since this process joined; what had failed before is tried again."""
        now, before = self._failures(), self._earlier
        return {name: each[1] for name, each in now.items() if before.get(name) != each}

    @property
    def _claims(self) -> Path:
        return self.folder / CLAIMS


@dataclass
class _Watched:
    """A progress of version 0.1 knows no phases of other work, and no other workers."""

    pieces: Pieces
    progress: Progress

    def begin(self, points: Sequence[str], finished: int, phases: Sequence[Phase] = PHASES) -> None:
        self.progress.begin(points, finished, *([phases] if phases != PHASES else []))

    def point(self, name: str) -> None:
        self.pieces.check()
        self.progress.point(name)

    def phase(self, phase: Phase, done: float) -> None:
        self.pieces.check()
        self.progress.phase(phase, done)

    def finished(self, points: int) -> None:
        if hasattr(self.progress, "finished"):
            self.progress.finished(points)

    def end(self) -> None:
        self.progress.end()


def _flat(name: str) -> str:
    """A piece's name as a file's."""
    return name.replace("/", ".")


def _record(path: Path, name: str, why: str) -> None:
    write_json(path, {"name": name, "why": why, "token": secrets.token_hex(8)})


def _told(value: Any) -> Any:
    """What the main process says, to it and to the processes that were started with it."""
    if not several_processes():
        return value
    from paretune.experiment.train_point import told

    return told(value)
