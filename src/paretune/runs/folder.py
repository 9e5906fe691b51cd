"""The folder that a command fills, in as many sessions as it takes.

A folder belongs to one recipe (or to other settings), holds work that is finished once and never
done again, and a ``manifest.json``: the sessions with their versions, and digests of what the work
stands on (data, base model, tokenizer). Nothing here imports torch.
"""

import contextlib
import functools
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paretune.claims import STALE, held, owners
from paretune.errors import InputError
from paretune.files import (
    main_process,
    read_object,
    several_processes,
    storage_problem,
    write_json,
    write_text,
)
from paretune.machine import this_machine
from paretune.results.run_folder import MANIFEST, begun, read_manifest
from paretune.runs.identity import Identity, check_ground
from paretune.runs.pieces import CLAIMS, Pieces

_VERSIONS = ("paretune", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")

Content = str | Mapping[str, Any] | Callable[[Path], None]
"""A file's: text, an object for JSON, or what writes to a path, whole or not at all."""


@dataclass
class RunFolder:
    """One folder of results; use it within `session`.

    Attributes:
        identity: what all results in it have in common; None for a folder that need not be claimed,
            because its own recipe is what is worked with.
        mark: the file that is written last into the folder of each piece of work.
        contents: names and patterns of all that a fresh start deletes.
        begun: names that are there once there is work which belongs to the identity.
        may_differ: keys of the identity, or their beginnings, that later sessions may change.
        holds: what the folder is said to hold, such as "a run".
        advice: what to do about another identity.
    """

    path: Path
    identity: Identity | None
    mark: str = "metrics.json"
    contents: tuple[str, ...] = ()
    begun: tuple[str, ...] = ("points", "cells", "base")
    may_differ: tuple[str, ...] = ()
    holds: str = "a run of another recipe"
    advice: str = "give output_dir=... for a new run, or --fresh to delete that one"
    _number: int | None = field(default=None, init=False)  # of this session in the manifest
    _alone: int = field(default=0, init=False)  # how many times over
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    @contextlib.contextmanager
    def session(self, *, fresh: bool = False) -> Iterator[None]:
        """Have the folder for this process, or for the processes started together, alone.

        Args:
            fresh: Delete what earlier sessions left.

        Raises:
            InputError: another process is at work there, the folder belongs to another identity or
                to its user, or it cannot be written.
        """
        with self.storage(), contextlib.ExitStack() as held:
            if main_process():
                self.check(fresh=fresh)
                held.enter_context(self._without_empty_folders())
                held.callback(self.pieces.leave)
                held.enter_context(self.alone(patience=0.0))
                self.pieces.refuse_workers()
                held.enter_context(self._undone_if_nothing_begins())
                self._claim(fresh)
            _wait_for_all()
            yield

    def check(self, *, fresh: bool = False) -> None:
        """See that the folder is free for this identity, without writing anything.

        Raises:
            InputError: it belongs to another identity, or to its user.
        """
        self._refuse_others_files()
        if self.identity is not None and not (fresh and self._is_ours()):
            self._differing()

    @contextlib.contextmanager
    def _without_empty_folders(self) -> Iterator[None]:
        """After a failure, remove the folders that were made for this session and are empty."""
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()
            raise

    @contextlib.contextmanager
    def _undone_if_nothing_begins(self) -> Iterator[None]:
        """After a failure before any work, remove what says whose the folder is."""
        names = () if self.identity is None else (self.identity.file, MANIFEST)
        files = [self.path / name for name in names if not (self.path / name).exists()]
        try:
            yield
        except BaseException:
            others = owners(self.path / CLAIMS, "worker.")
            if not others and not any((self.path / name).exists() for name in self.begun):
                with contextlib.suppress(OSError):
                    for file in files:
                        file.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def shared_session(self, *, fresh: bool = False) -> Iterator[None]:
        """As `session`, together with other processes that each take pieces of the `work`."""
        with self.storage(), contextlib.ExitStack() as stack:
            if main_process():
                self.check(fresh=fresh)
                stack.enter_context(self._without_empty_folders())
                stack.callback(self.pieces.leave)
                stack.enter_context(self._undone_if_nothing_begins())
                with self.alone():
                    if fresh:
                        self.pieces.refuse_workers()
                    self._claim(fresh)
                    stack.enter_context(self.pieces.joined())
            _wait_for_all()
            yield

    @contextlib.contextmanager
    def alone(self, patience: float = STALE + 60) -> Iterator[None]:
        """Within, nobody else writes what is everybody's, such as the manifest.

        Args:
            patience: Seconds to wait for others.

        Raises:
            BusyError: another process has the folder for itself.
        """
        if main_process() and not self._alone:
            self._held.enter_context(held(self.path / CLAIMS / "folder", patience))
        self._alone += 1
        try:
            yield
        finally:
            self._alone -= 1
            if not self._alone:
                self._held.close()

    def work(
        self,
        names: Sequence[str],
        do: Callable[[str], str | None],
        told: Callable[[], None],
        *,
        finished: Callable[[str], bool] | None = None,
        after: Callable[[str], str | None] = lambda name: None,
    ) -> dict[str, str]:
        """As `Pieces.work`, within a shared session; by default a `mark` says what is done."""
        return self.pieces.work(names, do, told, finished or self.finished, after)

    @contextlib.contextmanager
    def storage(self) -> Iterator[None]:
        """Turn what goes wrong with the disk into one sentence.

        Raises:
            InputError: a file could not be read or written.
        """
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            problem = storage_problem(error)
            if problem is None:
                raise
            raise InputError(
                f"'{self.path}' cannot be written or read: {problem}. What was finished is kept: "
                "mend that, and run the command again."
            ) from error

    def finished(self, name: str) -> bool:
        """Whether a piece of work, whose folder is `name`, is done."""
        return (self.path / name / self.mark).exists()

    @functools.cached_property
    def pieces(self) -> Pieces:
        """The work, divided among the processes that share the folder."""
        return Pieces(self.path)

    @property
    def manifest(self) -> dict[str, Any]:
        """What ``manifest.json`` holds; empty before the first session's."""
        return read_manifest(self.path)

    def stand_on(self, ground: Mapping[str, Mapping[str, str]]) -> None:
        """See that the work stands on what it stood on in earlier sessions, or note it.

        Args:
            ground: Digests of parts by name, of "data", "model" and "tokenizer"; see
                `paretune.experiment.ground`.

        Raises:
            InputError: something has changed.
        """
        with self.alone():
            check_ground(self.path, self.manifest, ground)
            self.note(ground={**self.manifest.get("ground", {}), **ground})

    def note(self, session: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Put values into the manifest; those of `session` are of this session alone."""
        if not main_process():
            return
        with self.alone():
            manifest = self.manifest
            sessions = [dict(each) for each in manifest.get("sessions", [])]
            if self._number is None:
                self._number = len(sessions)
                python = {"python": platform.python_version()}
                sessions.append(
                    {"started": _now(), "machine": str(this_machine()), **python}
                    | {name: version(name) for name in _VERSIONS}
                )
            sessions[self._number] |= session or {}
            write_json(self.path / MANIFEST, {**manifest, **values, "sessions": sessions})

    def started(self) -> str:
        """The day on which the first session began, which chat templates are told: 2026-01-31."""
        if main_process():
            with self.alone():
                if begun(self.manifest) is None:
                    self.note()
        _wait_for_all()
        return begun(self.manifest) or _now()[:10]

    def holds_already(self, name: str, value: Mapping[str, Any]) -> bool:
        """Whether a JSON file is there with this value."""
        try:
            return bool(read_object(self.path / name) == json.loads(json.dumps(value)))
        except InputError:
            return False

    def publish(self, files: Mapping[str, Content]) -> None:
        """Write what is made of all the work, file by file, and close the session's entry."""
        with self.storage():
            for name, content in files.items():
                if callable(content):
                    content(self.path / name)
                elif isinstance(content, str):
                    write_text(self.path / name, content)
                else:
                    write_json(self.path / name, content)
            if self._number is not None:
                self.note({"ended": _now()})

    def _refuse_others_files(self) -> None:
        """See that no file of the user's would be lost, before anything is written.

        Raises:
            InputError: a file has the name of ours.
        """
        if self.identity is None:
            return
        ours = (self.path / MANIFEST).exists() or not (self.path / self.identity.file).exists()
        if not ours and not self.identity.known(self.path):
            raise InputError(
                f"'{self.path}' is not a run folder, and its {self.identity.file} would be lost: "
                "give another output_dir=..."
            )

    def _claim(self, fresh: bool) -> None:
        """Make the folder this identity's own, or see that it is."""
        if self.identity is None:
            return
        if fresh and self._is_ours():
            ours = (*self.contents, f"{CLAIMS}/*.failed")
            for path in [each for name in ours for each in self.path.glob(name)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        begun, found = self._differing()
        if found or not begun:
            self.identity.write(self.path)

    def _is_ours(self) -> bool:
        assert self.identity is not None
        return any((self.path / name).exists() for name in (self.identity.file, MANIFEST))

    def _differing(self) -> tuple[list[str], list[str]]:
        """What work there is, and in which keys that may differ it is of another identity.

        Raises:
            InputError: it is of another identity.
        """
        assert self.identity is not None
        begun = [name for name in self.begun if (self.path / name).exists()]
        if begun and not (self.path / self.identity.file).exists():
            raise InputError(
                f"'{self.path}' holds '{begun[0]}', but not the {self.identity.file} that says "
                "what they were made with: restore that file, or give another output_dir=..."
            )
        found = self.identity.differences(self.path) if begun else []
        wrong = [each for each in found if not each.startswith(self.may_differ or ("\0",))]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise InputError(
                f"'{self.path}' holds {self.holds} ({'; '.join(wrong[:3])}{more}): {self.advice}."
            )
        return begun, found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _wait_for_all() -> None:
    if several_processes():
        from paretune.experiment.train_point import wait_for_all

        wait_for_all()
