"""The demo preferences: answers of the embedded model to everyday questions, and their scorers.

Each answer is stored once with its scores; pairs are made here. How the answers were made
and what the labels do and do not mean: ``docs/results/demo-data.md``.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

from paretune.data.messages import Messages, assistant
from paretune.data.records import Pair, PreferenceData, preference_data, select_objectives
from paretune.files import read_objects

Scorer = Callable[[str, str], float]
"""From a question and an answer to a score; higher is better."""

DEMO_FILE = Path(__file__).with_name("demo_preferences.jsonl")

SYSTEM = "You are a helpful assistant."
REQUEST = " Answer in one or two short sentences."  # without it few answers end within 48 tokens

TIE = 0.1
"""Scores that differ by less than this share of the larger one (in size) are tied."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_READER = frozenset(["you", "you'd", "you'll", "you're", "you've", "your", "yours", "yourself"])
_FUNCTION_WORDS = _READER | frozenset(
    re.findall(
        r"\S+",
        """a about after again all also am an and any are as at be because been before being both
        but by can could did do does don't down during each even few for from further had has have
        having he her here him his how i i'm if in instead into is isn't it it's its itself just
        let let's like may me might more most much must my no nor not of off on once one only or
        other our out over own same she should so some such than that that's the their theirs them
        then there these they this those through to too under until up us very was we were what
        when where which while who whom whose why will with without would""",
    )
)


def concise(prompt: str, response: str) -> float:
    """Minus the number of words."""
    return -float(len(_words(response)))


def informative(prompt: str, response: str) -> float:
    """Distinct content words (no function words, at least three letters) per words^0.75.

    The exponent lies between a count, which long answers win, and a share, which short ones win.
    """
    words = _words(response)
    content = {word for word in words if len(word) > 2 and word not in _FUNCTION_WORDS}
    return len(content) / math.pow(max(1, len(words)), 0.75)


def personal(prompt: str, response: str) -> float:
    """Share of the words that address the reader: you, your, you're, yourself ..."""
    words = _words(response)
    return sum(word in _READER for word in words) / max(1, len(words))


SCORERS: Mapping[str, Scorer] = {
    "concise": concise,
    "informative": informative,
    "personal": personal,
}


def as_messages(question: str) -> Messages:
    """The conversation in which the embedded model was asked a question of the demo."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question + REQUEST},
    ]


def load(*, objectives: Sequence[str] | None = None) -> PreferenceData:
    """Load the shipped answers and make pairs of every two answers to a question.

    An objective labels each pair on which it is not tied (see `TIE`); the ties of each are
    counted. So most pairs carry the labels of several objectives, in part opposite ones.

    Args:
        objectives: Names of scorers; all by default.

    Raises:
        InputError: an objective that the demo does not have.
    """
    from datasets import Dataset

    names = select_objectives(objectives, SCORERS, "The demo")
    answers = read_objects(DEMO_FILE)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer in answers:
        groups[answer["prompt"]].append(answer)
    pairs: dict[str, list[Pair]] = {name: [] for name in names}
    ties = dict.fromkeys(names, 0)
    for question, group in groups.items():
        prompt = as_messages(question)
        for (first, second), name in product(combinations(group, 2), names):
            order = compare(first[name], second[name])
            if order == 0:
                ties[name] += 1
                continue
            chosen, rejected = (first, second) if order > 0 else (second, first)
            pairs[name].append(
                Pair(prompt, assistant(chosen["response"]), assistant(rejected["response"]))
            )
    ratings = Dataset.from_dict(
        {
            "prompt": [as_messages(answer["prompt"]) for answer in answers],
            "response": [assistant(answer["response"]) for answer in answers],
            **{name: [answer[name] for answer in answers] for name in names},
        }
    )
    counts = {"rows": len(answers), "tie_rule": "drop", "ties": ties}
    return preference_data(pairs, counts, ratings)


def compare(first: float, second: float) -> int:
    """1 if the first score is better, -1 if it is worse, 0 if they are tied."""
    if abs(first - second) < TIE * max(abs(first), abs(second)) or first == second:
        return 0
    return 1 if first > second else -1


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]
