"""All questions about a run for one judge, and what its replies say."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from paretune.errors import InputError
from paretune.judging.parsing import Rating, Side, Status, parse_rating, parse_verdict, refused
from paretune.judging.questions import REFUSAL, Cache, Judge, Question, Reply, question
from paretune.judging.summary import Row, improvement, wins
from paretune.judging.templates import ASPECTS, pair_messages, rating_messages

if TYPE_CHECKING:
    from paretune.results.answers import Prompt

BASE = "base"


@dataclass(frozen=True)
class Answered:
    """A prompt, plain or a conversation, and the answer to it."""

    prompt: "Prompt"
    response: str


@dataclass(frozen=True)
class Candidate:
    """One trained model and its answers, by prompt (as JSON text).

    Attributes:
        title: of the method.
        folder: below the run folder.
    """

    title: str
    preference: dict[str, float]
    seed: int
    folder: str
    answers: Mapping[str, Answered]


_BASE = -1
_ORDERS = ("pair, shown first", "pair, shown last")


@dataclass(frozen=True)
class Wanted:
    """What to judge.

    Attributes:
        aspects: to rate; none of them skips ratings.
        pairs: whether to compare each answer with the base model's, in both orders.
        prompts: how many, from the front; None is all.
        again: whether to ask again where the kept reply could not be parsed or was a refusal.
    """

    aspects: tuple[str, ...] = ASPECTS
    pairs: bool = False
    prompts: int | None = None
    again: bool = False

    def __post_init__(self) -> None:
        for aspect in self.aspects:
            if aspect not in ASPECTS:
                known = ", ".join(ASPECTS)
                raise InputError(f"There is no aspect '{aspect}' to rate: the aspects are {known}.")
        if self.prompts is not None and self.prompts < 1:
            raise InputError(f"prompts must be at least 1, not {self.prompts}.")
        if not self.aspects and not self.pairs:
            raise InputError("Nothing to judge: name an aspect, or ask for pairs.")


class Place(NamedTuple):
    """Where the reply to a question is used; places of the same texts share a question."""

    kind: str  # an aspect, or one of `_ORDERS`: where a pair shows the candidate's answer
    candidate: int  # -1 is the base model
    prompt: str


@dataclass(frozen=True)
class Case:
    """A run's answers and a judge's replies to questions about them, as far as there are any.

    Attributes:
        prompts: those that count, as JSON text.
    """

    judge: Judge
    wanted: Wanted
    candidates: Sequence[Candidate]
    base: Mapping[str, Answered]
    prompts: Sequence[str]
    cache: Cache

    @cached_property
    def questions(self) -> dict[Place, Question]:
        """Every question, prompt by prompt. Pairs of equal answers are no question."""
        return {
            place: question(self.judge, messages)
            for prompt in self.prompts
            for place, messages in self._about(prompt)
        }

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The keys of distinct questions, and what kind each is of."""
        return {asked.key: place.kind for place, asked in self.questions.items()}

    def todo(self) -> list[Question]:
        """Questions without a reply, or to be asked again, each once."""
        ask_again = ("failed", "unparsable", "refused") if self.wanted.again else ("failed",)
        distinct = {asked.key: asked for asked in self.questions.values()}
        return [asked for key, asked in distinct.items() if self.status(key) in ask_again]

    def status(self, key: str) -> Status:
        """What came of a question; one without a reply has failed."""
        reply = self.cache.get(key)
        if self.kinds[key] not in _ORDERS:
            return rating_of(reply).status
        if reply is None:
            return "failed"
        if parse_verdict(reply.text) is not None:
            return "rated"
        return "refused" if _declined(reply) else "unparsable"

    def counts(self) -> dict[str, int]:
        """Distinct questions by what came of them."""
        return dict(Counter(self.status(key) for key in self.kinds))

    def ratings(self, aspect: str, candidate: int = _BASE) -> dict[str, Rating]:
        """By prompt."""
        places = (Place(aspect, candidate, prompt) for prompt in self.prompts)
        return {
            place.prompt: rating_of(self._reply(place))
            for place in places
            if place in self.questions
        }

    def verdicts(self, candidate: int) -> dict[str, tuple[Side | None, Side | None] | None]:
        """By prompt, for `wins`."""
        found: dict[str, tuple[Side | None, Side | None] | None] = {}
        for prompt in self.prompts:
            first, last = (Place(order, candidate, prompt) for order in _ORDERS)
            if first in self.questions:
                found[prompt] = (_verdict(self._reply(first)), _verdict(self._reply(last)))
            elif prompt in self.candidates[candidate].answers:
                found[prompt] = None
        return found

    def rows(self) -> tuple[Row, ...]:
        """One a method and preference, in the recipe's order, its seeds together."""
        base = {aspect: self.ratings(aspect) for aspect in self.wanted.aspects}
        groups: dict[tuple[str, tuple[float, ...]], list[int]] = {}
        for number, candidate in enumerate(self.candidates):
            weights = tuple(candidate.preference.values())
            groups.setdefault((candidate.title, weights), []).append(number)
        return tuple(
            Row(
                title=title,
                preference=self.candidates[numbers[0]].preference,
                folders=tuple(self.candidates[n].folder for n in numbers),
                aspects={
                    aspect: improvement([self.ratings(aspect, n) for n in numbers], reference)
                    for aspect, reference in base.items()
                },
                wins=wins([self.verdicts(n) for n in numbers]) if self.wanted.pairs else None,
            )
            for (title, _), numbers in groups.items()
        )

    def results(self) -> Iterator[dict[str, Any]]:
        """What the judge said in each place, and how that was read."""
        for place, asked in self.questions.items():
            reply = self._reply(place)
            pair = place.kind in _ORDERS
            yield {
                "folder": self._folder(place.candidate),
                "prompt": json.loads(place.prompt),
                "kind": place.kind,
                "status": self.status(asked.key),
                "value": _verdict(reply) if pair else rating_of(reply).value,
                "text": None if reply is None else reply.text,
            }

    def _about(self, prompt: str) -> Iterator[tuple[Place, list[dict[str, str]]]]:
        base = self.base[prompt]
        answers = {
            number: candidate.answers[prompt].response
            for number, candidate in enumerate(self.candidates)
            if prompt in candidate.answers
        }
        for aspect in self.wanted.aspects:
            for number, response in {_BASE: base.response, **answers}.items():
                messages = rating_messages(aspect, base.prompt, response)
                yield Place(aspect, number, prompt), messages
        for number, response in answers.items() if self.wanted.pairs else ():
            if response != base.response:
                pair = (response, base.response)
                for order, shown in zip(_ORDERS, (pair, pair[::-1]), strict=True):
                    yield Place(order, number, prompt), pair_messages(base.prompt, *shown)

    def _reply(self, place: Place) -> Reply | None:
        return self.cache.get(self.questions[place].key)

    def _folder(self, candidate: int) -> str:
        return BASE if candidate == _BASE else self.candidates[candidate].folder


def rating_of(reply: Reply | None) -> Rating:
    """How a reply is read; no reply is a failure."""
    if reply is None:
        return Rating("failed")
    rating = parse_rating(reply.text)
    return Rating("refused") if rating.status == "unparsable" and _declined(reply) else rating


def _verdict(reply: Reply | None) -> Side | None:
    return None if reply is None else parse_verdict(reply.text)


def _declined(reply: Reply) -> bool:
    return reply.finish in ("content_filter", REFUSAL) or refused(reply.text)
