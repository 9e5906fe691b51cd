"""All questions about a run for one judge, and what its replies say."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from paretune.errors import InputError
from paretune.judging.parsing import Rating, Side, Verdict, parse_rating, parse_verdict, refused
from paretune.judging.questions import Cache, Judge, Question, Reply, question
from paretune.judging.summary import Row, improvement, wins
from paretune.judging.templates import (
    ASPECTS,
    instruction_text,
    pair_messages,
    rating_messages,
)
from paretune.results.run_folder import BASE_FOLDER

if TYPE_CHECKING:
    from paretune.results.answers import Prompt


@dataclass(frozen=True)
class Answered:
    """A prompt, plain or a conversation, and the answer to it."""

    prompt: "Prompt"
    response: str


@dataclass(frozen=True)
class Candidate:
    """One trained model and its answers, by the `prompt_key` of what was asked.

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
class JudgeSession:
    """A run's answers and a judge's replies to questions about them, as far as there are any.

    Attributes:
        prompts: keys of those that count.
    """

    judge: Judge
    wanted: Wanted
    candidates: Sequence[Candidate]
    base: Mapping[str, Answered]
    prompts: Sequence[str]
    cache: Cache
    _readings: dict[str, tuple[Reply | None, Any]] = field(default_factory=dict, init=False)

    @cached_property
    def questions(self) -> dict[Place, Question]:
        """Every question, prompt by prompt. Pairs of equal answers are no question."""
        return {place: asked for prompt in self.prompts for place, asked in self._about(prompt)}

    @cached_property
    def kinds(self) -> dict[str, str]:
        """The keys of distinct questions, and what kind each is of."""
        return {asked.key: place.kind for place, asked in self.questions.items()}

    def todo(self) -> list[Question]:
        """Questions without a reply, or to be asked again, each once."""
        ask_again = ("failed", "unparsable", "refused") if self.wanted.again else ("failed",)
        distinct = {asked.key: asked for asked in self.questions.values()}
        return [asked for asked in distinct.values() if self.reading(asked).status in ask_again]

    def reading(self, asked: Question) -> Any:
        """What came of a question, a `Rating` or a `Verdict`; each reply is read once."""
        reply = self.cache.get(asked.key)
        known = self._readings.get(asked.key)
        if known is None or known[0] is not reply:
            read = verdict_of if self.kinds[asked.key] in _ORDERS else rating_of
            known = self._readings[asked.key] = (reply, read(reply, asked.judged))
        return known[1]

    def counts(self) -> dict[str, int]:
        """Distinct questions by what came of them."""
        distinct = {asked.key: asked for asked in self.questions.values()}
        return dict(Counter(self.reading(asked).status for asked in distinct.values()))

    def ratings(self, aspect: str, candidate: int = _BASE) -> dict[str, Rating]:
        """By prompt."""
        places = (Place(aspect, candidate, prompt) for prompt in self.prompts)
        return {
            place.prompt: self.reading(asked)
            for place in places
            if (asked := self.questions.get(place)) is not None
        }

    def verdicts(self, candidate: int) -> dict[str, tuple[Side | None, Side | None] | None]:
        """By prompt, for `wins`."""
        found: dict[str, tuple[Side | None, Side | None] | None] = {}
        for prompt in self.prompts:
            first, last = (self.questions.get(Place(order, candidate, prompt)) for order in _ORDERS)
            if first is not None and last is not None:
                found[prompt] = (self.reading(first).value, self.reading(last).value)
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
            reply, reading = self.cache.get(asked.key), self.reading(asked)
            yield {
                "folder": self._folder(place.candidate),
                "prompt": self.base[place.prompt].prompt,
                "kind": place.kind,
                "status": reading.status,
                "value": reading.value,
                "text": None if reply is None else reply.text,
            }

    def _about(self, prompt: str) -> Iterator[tuple[Place, Question]]:
        base = self.base[prompt]
        instruction = instruction_text(base.prompt)
        answers = {
            number: candidate.answers[prompt].response
            for number, candidate in enumerate(self.candidates)
            if prompt in candidate.answers
        }
        for aspect in self.wanted.aspects:
            for number, response in {_BASE: base.response, **answers}.items():
                messages = rating_messages(aspect, instruction, response)
                asked = question(self.judge, messages, (instruction, response))
                yield Place(aspect, number, prompt), asked
        for number, response in answers.items() if self.wanted.pairs else ():
            if response != base.response:
                pair = (response, base.response)
                for order, shown in zip(_ORDERS, (pair, pair[::-1]), strict=True):
                    messages = pair_messages(instruction, *shown)
                    asked = question(self.judge, messages, (instruction, *shown))
                    yield Place(order, number, prompt), asked

    def _folder(self, candidate: int) -> str:
        return BASE_FOLDER if candidate == _BASE else self.candidates[candidate].folder


def rating_of(reply: Reply | None, judged: Sequence[str] = ()) -> Rating:
    """How a reply to a question about the texts `judged` is read; no reply is a failure."""
    if reply is None:
        return Rating("failed")
    rating = parse_rating(reply.text, cut=reply.cut or reply.blocked, judged=judged)
    return Rating("refused") if rating.status == "unparsable" and _declined(reply) else rating


def verdict_of(reply: Reply | None, judged: Sequence[str] = ()) -> Verdict:
    """As `rating_of`, of a reply to a question about a pair."""
    if reply is None:
        return Verdict("failed")
    side = parse_verdict(reply.text, cut=reply.cut or reply.blocked, judged=judged)
    if side is not None:
        return Verdict("rated", side)
    return Verdict("refused" if _declined(reply) else "unparsable")


def _declined(reply: Reply) -> bool:
    return reply.blocked or refused(reply.text)
