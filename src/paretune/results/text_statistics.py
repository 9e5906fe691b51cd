"""What answers look like as texts, so that a score that rises for the wrong reason shows.

Words are runs of letters, digits and apostrophes, in lower case; a language that is written without
spaces has few of them. Nothing here imports torch.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

NGRAM = 4
"""Length of the word sequences that count as repeated."""

OPENINGS = (
    "sorry",
    "i'm sorry",
    "i am sorry",
    "i'm very sorry",
    "i'm afraid",
    "i am afraid",
    "apologies",
    "my apologies",
    "i apologize",
    "i apologise",
    "unfortunately",
    "regrettably",
    "no",
    "but",
    "however",
    "that",
    "thank you for asking",
    "i understand",
    "i appreciate your question",
    "as an ai",
    "as an ai model",
    "as an ai assistant",
    "as an ai language model",
    "as a language model",
    "as an assistant",
    "as a responsible ai",
)
"""What may come before a refusal; alone, none of them is one ("I'm sorry to hear that ...")."""

REFUSALS = (
    "i can't",
    "i cannot",
    "i can not",
    "i could not",
    "i couldn't",
    "i won't",
    "i will not",
    "i would not",
    "i wouldn't",
    "i shouldn't",
    "i should not",
    "i must not",
    "i may not",
    "i refuse",
    "i decline",
    "i must decline",
    "i have to decline",
    "i must refuse",
    "i have to refuse",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i'm not allowed",
    "i am not allowed",
    "i'm not permitted",
    "i am not permitted",
    "i'm not going to",
    "i am not going to",
    "i'm not comfortable",
    "i am not comfortable",
    "i don't feel comfortable",
    "i do not feel comfortable",
    "i'm not programmed to",
    "i am not programmed to",
    "i don't have the ability",
    "i do not have the ability",
    "i'd rather not",
    "i would rather not",
    "i prefer not to",
    "we can't",
    "we cannot",
    "it's not appropriate",
    "it is not appropriate",
    "it isn't appropriate",
    "it would be inappropriate",
    "it's not okay",
    "it is not okay",
    "this is not something i can",
    "that's not something i can",
    "that is not something i can",
    "this request goes against",
    "your request goes against",
    "helping with this would",
)
"""How a refusal begins, once openings are passed over."""

NOT_REFUSALS = ("wait", "stress", "emphasize", "emphasise", "overstate", "believe", "imagine")
"""Words after a phrase of `REFUSALS` that make it something else ("I can't wait")."""


def _either(phrases: Iterable[str]) -> str:
    return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))


_REFUSAL = re.compile(
    rf"(?:(?:{_either(OPENINGS)})\b[\s,.:;!-]*)*"
    rf"(?:{_either(REFUSALS)})\b(?!\s+(?:{_either(NOT_REFUSALS)})\b)"
)
_WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass(frozen=True)
class TextStatistics:
    """Generated answers as texts.

    Attributes:
        refusals: share of answers that begin like a refusal.
        repetition: share of an answer's 4-grams that are repeated in it, mean over the answers.
        distinct_1: different words of all answers together, over all their words; falls as answers
            get longer or more. None if there are no words.
        distinct_2: likewise of pairs of neighbouring words.
        empty: share of answers without a character.
        unfinished: share of answers cut at the limit.
        count: of answers.
    """

    refusals: float
    repetition: float
    distinct_1: float | None
    distinct_2: float | None
    empty: float
    unfinished: float
    count: int


def text_statistics(answers: Iterable[tuple[str, bool]]) -> TextStatistics | None:
    """Statistics of (text, whether it ended by itself); None if there are no answers."""
    rows = list(answers)
    if not rows:
        return None
    texts = [_plain(text) for text, _ in rows]
    words = [_WORD.findall(text) for text in texts]
    return TextStatistics(
        refusals=_share(map(is_refusal, texts)),
        repetition=sum(map(repetition, texts)) / len(texts),
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        empty=_share(not text for text in texts),
        unfinished=_share(not finished for _, finished in rows),
        count=len(rows),
    )


def is_refusal(text: str) -> bool:
    """Whether an answer begins with a phrase of `REFUSALS`, after any number of `OPENINGS`."""
    return _REFUSAL.match(re.sub(r"^[^\w]+", "", _plain(text))) is not None


def repetition(text: str) -> float:
    """The share of an answer's 4-grams of words that stood in it before; 0 if it has none."""
    grams = _ngrams(_WORD.findall(_plain(text)), NGRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").lower().split())


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(answers: Iterable[Sequence[str]], n: int) -> float | None:
    grams = list(chain.from_iterable(_ngrams(words, n) for words in answers))
    return len(set(grams)) / len(grams) if grams else None
