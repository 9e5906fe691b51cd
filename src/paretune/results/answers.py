"""Answers of a model, and their file: one JSON object a line. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from paretune.errors import InputError
from paretune.files import read_jsonl, write_jsonl

Prompt = str | list[dict[str, str]]
"""A plain prompt, or a conversation as a list of {"role", "content"} messages."""


@dataclass(frozen=True)
class Answer:
    """One answer. `finished` is False when the answer was cut at `max_new_tokens`."""

    prompt: Prompt
    response: str
    finished: bool
    scores: dict[str, float] = field(default_factory=dict)


_ANSWER = TypeAdapter(Answer)


def write_answers(path: str | os.PathLike[str], answers: Iterable[Answer]) -> None:
    """Write one JSON object a line: prompt, response, finished, scores. Replaces `path` whole."""
    write_jsonl(Path(path), map(asdict, answers))


def read_answers(path: str | os.PathLike[str]) -> list[Answer]:
    """Read what `write_answers` wrote.

    Raises:
        InputError: naming the file and line that is not an answer.
    """
    answers = []
    for number, row in read_jsonl(Path(path)):
        try:
            answers.append(_ANSWER.validate_python(row))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path}, line {number}: not an answer ({reason}); "
                "expected a JSON object with prompt, response, finished and scores."
            ) from error
    return answers
