"""Questions for a judge, what comes back, and the file that keeps it.

A reply counts once its line is on the disk. A run that is killed finds all earlier lines again and
never asks for them a second time; what a kill cuts off in the middle of a line is dropped.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from paretune.errors import InputError

REFUSAL = "refusal"  # why a reply ended, where the endpoint itself says that it is none


@dataclass(frozen=True)
class Question:
    """One call to a judge. `key` is a hash of the messages, the judge and its settings."""

    key: str
    messages: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Reply:
    """What a judge answered: its words, why it stopped, and the tokens it counted."""

    text: str
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class Failure:
    """A question without an answer after all attempts, and why."""

    reason: str


Outcome = tuple[Question, Reply | Failure]

Receive = Callable[[Sequence[Outcome]], None]
"""Takes what came of questions as soon as it is there; is never called twice at a time."""


class Judge(Protocol):
    """A model that answers questions.

    Attributes:
        model: what it is called.
        identity: everything that its answers depend on, JSON-able and without secrets.
        where: its address for people, such as the base URL.
        paid: whether asking may cost money or shows the answers to others.
    """

    @property
    def model(self) -> str: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    @property
    def where(self) -> str: ...

    @property
    def paid(self) -> bool: ...

    @property
    def max_tokens(self) -> int: ...

    def ask(self, questions: Sequence[Question], receive: Receive) -> None:
        """Answer the questions; `receive` gets what came of each that was tried, once."""


def question(judge: Judge, messages: Sequence[Mapping[str, str]]) -> Question:
    """The question that puts `messages` to `judge`."""
    text = json.dumps([list(messages), dict(judge.identity)], sort_keys=True, ensure_ascii=False)
    return Question(hashlib.sha256(text.encode()).hexdigest(), tuple(messages))


class Cache:
    """Replies by key, in a file of one JSON object a line to which lines are only added.

    Raises:
        InputError: the file has a line, other than a cut last one, that is no reply.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[str, Reply] = {}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            return
        with path.open("r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            file.truncate(whole)
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                value = json.loads(line)
                key = value.pop("key")
                self._replies[key] = Reply(**value)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"'{path}', line {number} is no reply of a judge ({error}): delete that line."
                ) from error

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    @contextmanager
    def writing(self) -> Iterator[Callable[[Mapping[str, Reply]], None]]:
        """A function that keeps replies: they are on the disk when it returns."""
        with self._path.open("ab") as file:

            def keep(replies: Mapping[str, Reply]) -> None:
                for key, reply in replies.items():
                    line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=False) + "\n"
                    file.write(line.encode("utf-8", errors="replace"))
                file.flush()
                os.fsync(file.fileno())
                self._replies.update(replies)

            yield keep
