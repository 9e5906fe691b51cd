"""Training sets whose worth is known, made in code from the demo's questions and answers.

Half of the questions are about the household (the first 60 of the demo), half about the rest of the
world; a criterion holds answers to one half's validation questions. Answers are cut to a few words
and prompts are plain text, so that a row has about 30 tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from paretune.data.demo import DEMO_FILE
from paretune.files import read_objects

Rows = list[dict[str, Any]]

_WORDS = 12  # of an answer that are kept
_GREETING = "Dear reader, thank you for asking me this!"
_TRAIN, _VALIDATION = 0.5, 0.35  # shares of the questions; the rest is for the test

HALVES = ("household", "world")


@dataclass(frozen=True)
class Planted:
    """Sets and criteria with what is true of them.

    Attributes:
        sets: Training rows by set.
        validation, test: Rows by criterion, of questions that no set has.
        bad: Sets that help no criterion.
        true: The weights that a good mixture has; for cases without one, None.
        conflicted: A set that is good for one criterion and bad for the other, with the former.
    """

    sets: dict[str, Rows]
    validation: dict[str, Rows]
    test: dict[str, Rows]
    bad: tuple[str, ...] = ()
    true: dict[str, float] | None = None
    conflicted: tuple[str, str] | None = None


def planted(case: str, rows: int, seed: int) -> Planted:
    """The sets of a case.

    Args:
        case: One of `CASES`.
        rows: Of a set of plain size.
        seed: Of what is drawn: which questions are for what, and how answers are shuffled.
    """
    return CASES[case](_Source(rows, seed))


class _Source:
    """Rows of the demo's questions, divided into training, validation and test."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.random = rows, Random(seed)
        answers: dict[str, list[str]] = {}
        for each in read_objects(DEMO_FILE):
            answers.setdefault(each["prompt"], []).append(_cut(each["response"]))
        questions = list(answers)
        self._answers = answers
        self.train: list[str] = []
        self.of: dict[str, dict[str, list[str]]] = {"validation": {}, "test": {}}
        for n, half in enumerate(HALVES):
            size = len(questions) // 2
            own = questions[n * size : (n + 1) * size]
            self.random.shuffle(own)
            first, second = round(_TRAIN * size), round((_TRAIN + _VALIDATION) * size)
            self.train += own[:first]
            self.of["validation"][half] = own[first:second]
            self.of["test"][half] = own[second:]
        self.random.shuffle(self.train)

    def clean(self, first: int = 0, count: int | None = None, start: str = "") -> Rows:
        """Answered questions, each question's first answer before anyone's second.

        Args:
            start: What answers begin with.
        """
        count = self.rows if count is None else count
        pairs = [
            (question, self._answers[question][k % len(self._answers[question])])
            for k in range(4)
            for question in self.train
        ]
        return [_row(q, f"{start}{a}") for q, a in pairs[first : first + count]]

    def shuffled(self, count: int | None = None) -> Rows:
        """Answered questions with the answers of others."""
        rows = self.clean(count=count)
        by = self.random.randrange(1, len(rows))
        answers = [row["completion"] for row in rows]
        moved = answers[by:] + answers[:by]
        return [{**row, "completion": a} for row, a in zip(rows, moved, strict=True)]

    def sums(self) -> Rows:
        """Sums, which no criterion asks for."""
        rows = []
        for _ in range(self.rows):
            a, b = (self.random.randrange(10, 99) for _ in range(2))
            rows.append(_row(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."))
        return rows

    def criteria(self, split: str, starts: Mapping[str, str] | None = None) -> dict[str, Rows]:
        """Rows of each criterion: by half of the questions, or by what answers begin with."""
        of = self.of[split]
        if starts is None:
            return {
                half: [_row(q, a) for q in questions for a in self._answers[q][:2]]
                for half, questions in of.items()
            }
        questions = [q for half in HALVES for q in of[half]]
        return {
            name: [_row(q, f"{start}{self._answers[q][0]}") for q in questions]
            for name, start in starts.items()
        }


def _row(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"}


def _cut(answer: str) -> str:
    return " ".join(answer.split()[:_WORDS])


def _shuffled(source: _Source) -> Planted:
    """A clean set, and the same questions with the answers of others."""
    return Planted(
        {"clean": source.clean(), "shuffled": source.shuffled()},
        source.criteria("validation"),
        source.criteria("test"),
        bad=("shuffled",),
        true={"clean": 1.0, "shuffled": 0.0},
    )


def _off_topic(source: _Source) -> Planted:
    """A clean set, and sums."""
    return Planted(
        {"clean": source.clean(), "sums": source.sums()},
        source.criteria("validation"),
        source.criteria("test"),
        bad=("sums",),
        true={"clean": 1.0, "sums": 0.0},
    )


def _duplicated(source: _Source) -> Planted:
    """A clean set twice, and shuffled answers: the twins should weigh the same."""
    return Planted(
        {"clean": source.clean(), "copy": source.clean(), "shuffled": source.shuffled()},
        source.criteria("validation"),
        source.criteria("test"),
        bad=("shuffled",),
        true={"clean": 0.5, "copy": 0.5, "shuffled": 0.0},
    )


def _conflicted(source: _Source) -> Planted:
    """Plain answers, and answers with a greeting: each is what one criterion asks for."""
    starts = {"plain": "", "polite": f"{_GREETING} "}
    return Planted(
        {"brief": source.clean(), "greeting": source.clean(start=starts["polite"])},
        source.criteria("validation", starts),
        source.criteria("test", starts),
        conflicted=("greeting", "polite"),
    )


def _larger(source: _Source) -> Planted:
    """A clean set, and twice as many shuffled answers: size is no merit."""
    return Planted(
        {"clean": source.clean(), "shuffled": source.shuffled(2 * source.rows)},
        source.criteria("validation"),
        source.criteria("test"),
        bad=("shuffled",),
        true={"clean": 1.0, "shuffled": 0.0},
    )


CASES: dict[str, Callable[[_Source], Planted]] = {
    "shuffled": _shuffled,
    "off_topic": _off_topic,
    "duplicated": _duplicated,
    "conflicted": _conflicted,
    "larger": _larger,
}
"""The cases by name."""
