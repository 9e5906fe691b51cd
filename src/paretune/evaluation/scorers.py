"""What gives answers a number: the protocol, plain functions, normalisation, accuracy on pairs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paretune.data import demo
from paretune.data.messages import Text, prompt_key, response_key
from paretune.data.records import PreferenceData
from paretune.errors import InputError

_SIDES = ("chosen", "rejected")


class Scorer(Protocol):
    """Scores answers to prompts for one objective; higher is better."""

    @property
    def name(self) -> str:
        """What it is, for tables and messages."""
        ...

    def score(self, prompts: Sequence[Text], responses: Sequence[str]) -> list[float]:
        """One number for each answer.

        Args:
            prompts: Plain texts or conversations, ending with what is answered.
            responses: The answers' texts, as many.
        """
        ...


@dataclass(frozen=True)
class FunctionScorer:
    """A plain function of the question and the answer; of a conversation, the last message."""

    name: str
    function: Callable[[str, str], float]

    def score(self, prompts: Sequence[Text], responses: Sequence[str]) -> list[float]:
        return [
            float(self.function(_question(prompt), response))
            for prompt, response in zip(prompts, responses, strict=True)
        ]


def demo_scorer(name: str) -> FunctionScorer:
    """A scorer of the demo data: concise, informative or personal.

    Raises:
        InputError: another name.
    """
    if name not in demo.SCORERS:
        raise InputError(f"The demo has no scorer {name!r}; it has {', '.join(demo.SCORERS)}.")
    return FunctionScorer(name, demo.SCORERS[name])


@dataclass(frozen=True)
class Normalised:
    """(score − mean) / std, so that the scores of different scorers can be weighed."""

    scorer: Scorer
    mean: float
    std: float

    @property
    def name(self) -> str:
        return self.scorer.name

    def score(self, prompts: Sequence[Text], responses: Sequence[str]) -> list[float]:
        return [(s - self.mean) / self.std for s in self.scorer.score(prompts, responses)]

    def constants(self) -> dict[str, float]:
        """For a manifest: ``Normalised(scorer, **constants)`` is this one again."""
        return {"mean": self.mean, "std": self.std}


def normalise(scorer: Scorer, split: PreferenceData) -> Normalised:
    """Mean and standard deviation of the scores of a split's answers, meant to be the training one.

    The answers are the distinct (prompt, response) of all objectives' pairs, chosen and rejected,
    as in Rewards-in-Context; so all scorers of a run are normalised on the same answers.

    Raises:
        InputError: the scorer gives all of them the same score, or one that is not finite.
    """
    prompts, responses = answers_of(split)
    scores = scorer.score(prompts, responses)
    mean = math.fsum(scores) / len(scores)
    std = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    if not math.isfinite(std):
        raise InputError(f"The scorer '{scorer.name}' gives scores that are not finite.")
    if min(scores) == max(scores):
        raise InputError(
            f"The scorer '{scorer.name}' gives all {len(scores)} training answers the score "
            f"{mean:g}: it cannot be normalised, so use another one."
        )
    return Normalised(scorer, mean, std)


def answers_of(split: PreferenceData) -> tuple[list[Text], list[str]]:
    """The distinct prompts and answers of all pairs of a split, in the order of the pairs."""
    found = _distinct(row for pairs in split.pairs.values() for row in pairs)
    return [prompt for prompt, _ in found.values()], [text for _, text in found.values()]


def pair_accuracy(scorer: Scorer, pairs: Iterable[Mapping[str, Any]]) -> float:
    """The share of pairs, by weight, whose chosen answer scores higher; equal scores count half.

    Each distinct answer is scored once.

    Args:
        pairs: Rows with ``prompt``, ``chosen``, ``rejected`` and optionally ``weight``.
    """
    rows = list(pairs)
    found = _distinct(rows)
    values = scorer.score([prompt for prompt, _ in found.values()], [t for _, t in found.values()])
    scores = dict(zip(found, values, strict=True))
    right = total = 0.0
    for row in rows:
        chosen, rejected = (scores[_key(row, side)] for side in _SIDES)
        weight = row.get("weight") or 1.0
        total += weight
        right += weight * (0.5 if chosen == rejected else chosen > rejected)
    return right / total


def _distinct(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[Text, str]]:
    found: dict[tuple[str, str], tuple[Text, str]] = {}
    for row in rows:
        for side in _SIDES:
            found.setdefault(_key(row, side), (row["prompt"], text_of(row[side])))
    return found


def _key(row: Mapping[str, Any], side: str) -> tuple[str, str]:
    return prompt_key(row["prompt"]), response_key(row[side])


def text_of(response: Text) -> str:
    """The text of a response, which is a string or a list of one message."""
    return response if isinstance(response, str) else response[0]["content"]


def _question(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
