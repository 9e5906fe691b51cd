"""Questions for a judge, what comes back, and the file that keeps it.

A reply counts once its line is on the disk. A run that is killed finds all earlier lines again and
never asks for them a second time; what a kill cuts off in the middle of a line is dropped.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from paretune.errors import InputError
from paretune.files import append_jsonl, read_jsonl, read_objects, write_jsonl
from paretune.progress import Count

REFUSAL = "refusal"
"""Why a reply ended, where the model says beside its words that it declines."""

# As APIs and gateways name it, whatever case and separators they write it in.
_BLOCKED = {
    REFUSAL,
    *("contentfilter", "contentfiltered", "safety", "prohibitedcontent", "blocklist", "blocked"),
    *("recitation", "spii", "guardrailintervened", "sensitive"),
}
_CUT = {"length", "maxtokens", "modellength", "modelcontextwindowexceeded"}


@dataclass(frozen=True)
class Question:
    """One call to a judge.

    Attributes:
        key: a hash of the messages, the judge and its settings.
        judged: the texts that the messages show to the judge.
    """

    key: str
    messages: tuple[Mapping[str, str], ...]
    judged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What a judge answered: its words, why it stopped, and the tokens it counted."""

    text: str
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def cut(self) -> bool:
        """Whether it stops at a limit."""
        return _word(self.finish) in _CUT

    @property
    def blocked(self) -> bool:
        """Whether model or server declined to answer, or to go on."""
        return _word(self.finish) in _BLOCKED


def _word(finish: str | None) -> str:
    return re.sub(r"[\W_]", "", finish or "").lower()


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


def question(
    judge: Judge, messages: Sequence[Mapping[str, str]], judged: Sequence[str] = ()
) -> Question:
    """The question that puts `messages`, which show the texts `judged`, to `judge`."""
    text = json.dumps([list(messages), dict(judge.identity)], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return Question(digest, tuple(messages), tuple(judged))


class Cache:
    """The replies of a judge and, of the last time, its failures, in a folder.

    ``replies.jsonl`` is one JSON object a line, to which lines are only added.

    Raises:
        InputError: the file has a line, other than a cut last one, that is no reply; or another
            process is still adding to it.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._failed = folder / "replies.jsonl", folder / "failures.jsonl"
        self._lock = folder / ".lock"
        self._replies: dict[str, Reply] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def failures(self) -> list[str]:
        """The reasons of those questions that failed the last time."""
        return [row["reason"] for row in read_objects(self._failed)]

    def read(self, patience: float = 0.0) -> Self:
        """Read what is there.

        Args:
            patience: Seconds to wait for a process of a run that was stopped, which is taking in
                its last replies.
        """
        with self._locked(patience):
            if not self._path.exists():
                return self
            with self._path.open("r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)  # a kill can cut the last line
        for number, value in read_jsonl(self._path):
            try:
                key = value.pop("key")
                self._replies[key] = Reply(**value)
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"'{self._path}', line {number} is no reply of a judge ({error}): delete that "
                    "line."
                ) from error
        return self

    @contextmanager
    def writing(self) -> Iterator[Receive]:
        """A function that keeps what came: it is on the disk when that returns."""
        with self._locked(0.0):
            write_jsonl(self._failed, [])

            def receive(outcomes: Sequence[Outcome]) -> None:
                failed, replies = [], []
                for asked, outcome in outcomes:
                    if isinstance(outcome, Failure):
                        failed.append({"key": asked.key, "reason": outcome.reason})
                    else:
                        replies.append({"key": asked.key, **asdict(outcome)})
                        self._replies[asked.key] = outcome
                append_jsonl(self._failed, failed)
                append_jsonl(self._path, replies)

            yield receive

    @contextmanager
    def _locked(self, patience: float) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self._lock, timeout=patience)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"Another process is adding replies to '{self._path}': wait for it and try again."
            ) from None
        try:
            yield
        finally:
            lock.release()


def keep_replies(
    judge: Judge,
    questions: Sequence[Question],
    cache: Cache,
    count: Count,
) -> None:
    """Ask, and keep what comes; `count` is told of each."""
    count(0, len(questions))
    done = 0
    with cache.writing() as keep:

        def receive(outcomes: Sequence[Outcome]) -> None:
            nonlocal done
            keep(outcomes)
            done += len(outcomes)
            count(done, len(questions))

        judge.ask(questions, receive)
