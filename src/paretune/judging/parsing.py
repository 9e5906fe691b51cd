"""Reading a judge's words: a rating from 1 to 5, "N/A", a verdict on a pair, or none of these."""

import re
from dataclasses import dataclass
from typing import Literal

Status = Literal["rated", "not_applicable", "refused", "unparsable", "failed"]
"""What came of a question: `failed` got no answer, `unparsable` one without a rating in it."""

Side = Literal["A", "B", "tie"]

# At the start of a line, whatever marks stand around the word: **Rating:** 4, "rating": "4".
_RATING = re.compile(
    r"^[\W_]*(?:(?:overall|final|helpfulness|honesty|instruction[ _-]following)\s+)?rating\b"
    r"\s*(?:\(1\s*(?:-|–|to)\s*5\))?[\s*_\"'`]*[:：=-][\s*_\"'`\[(]*(?P<rest>\S[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER = re.compile(r"(?P<value>\d+(?:\.\d+)?)(?P<rest>.*)", re.DOTALL)
_OUT_OF = re.compile(r"[\s*_\"'`\])]*(?:/|out of)\s*(?P<whole>\d+)", re.IGNORECASE)
_RANGE = re.compile(r"\s*(?:-|–|—|to|or|and|,)\s*\d|\s*%", re.IGNORECASE)
_NOT_APPLICABLE = re.compile(r"n\s*/\s*a\b|na\b|n\.a\.|not applicable\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am|we['’]?re|we are)?\s*(?:very |so |truly )?sorry\b|i apologi[sz]e\b|"
    r"(?:unfortunately,? |as an ai\b[^.\n]{0,80}?,? )?i(?: can(?:not|['’]t| not)|['’]m (?:not able|"
    r"unable)| am (?:not able|unable)| won['’]t| will not| must decline)\b)",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"^[\W_]*(?:final\s+)?verdict\b[\s*_\"'`]*[:：=-][\s*_\"'`\[(]*"
    r"(?P<side>a\s+tie|tie|(?:(?:answer|response)\s+)?[ab])\b[*_\"'`\])]*"
    r"\s*(?:$|[.;:(—–-]|(?:is\s+(?:the\s+)?better|wins)\b)",  # not "A and B are equal"
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Rating:
    """What a judge's answer says; `value` is there if `status` is ``"rated"``."""

    status: Status
    value: float | None = None


def parse_rating(text: str) -> Rating:
    """The rating in a judge's answer.

    A rating stands at the start of a line, as the templates ask, or is the whole answer; a
    different scale ("8/10"), a range ("3-4"), a value outside 1 to 5 and lines that contradict
    each other are no rating. Thoughts between ``<think>`` marks do not count.
    """
    text = _without_thoughts(text)
    lines = [match["rest"] for match in _RATING.finditer(text)]
    if not lines and re.fullmatch(r"[\W_]*\d(?:\.\d+)?(?:\s*/\s*5)?[\W_]*", text):
        lines = [text.strip("*_\"'`[]() \n")]
    # The format repeated ("Rating: [Rating for the response]") says nothing.
    found = {_read(line) for line in lines if not line.lower().startswith("rating for")}
    if len(found) == 1:
        return found.pop()
    if not found and _REFUSAL.match(text):
        return Rating("refused")
    return Rating("unparsable")


def parse_verdict(text: str) -> Side | None:
    """The verdict in a judge's answer; None if there is none or several that differ."""
    found = {match["side"].split()[-1] for match in _VERDICT.finditer(_without_thoughts(text))}
    sides: dict[str, Side] = {"a": "A", "b": "B", "tie": "tie"}
    return sides[found.pop().lower()] if len(found) == 1 else None


def refused(text: str) -> bool:
    """Whether a judge's answer opens as a refusal."""
    return _REFUSAL.match(_without_thoughts(text)) is not None


def _read(line: str) -> Rating:
    """What stands behind "Rating:"."""
    if _NOT_APPLICABLE.match(line):
        return Rating("not_applicable")
    number = _NUMBER.match(line)
    if number is None or _RANGE.match(number["rest"]):
        return Rating("unparsable")
    whole = _OUT_OF.match(number["rest"])
    value = float(number["value"])
    if not 1 <= value <= 5 or (whole is not None and whole["whole"] != "5"):
        return Rating("unparsable")
    return Rating("rated", value)


def _without_thoughts(text: str) -> str:
    # A chat template may have opened the thought already: then only its end is there.
    text = text.rpartition("</think>")[2]
    return text.partition("<think>")[0].strip()
