"""Reading a judge's words: a rating from 1 to 5, "N/A", a verdict on a pair, or none of these.

A number that the judge did not give is worse than none. So a reply counts only where it says one
thing: in the form that it was asked for, on the scale that it was asked for, in its own words.
"""

import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from paretune.judging.thoughts import readings

Status = Literal["rated", "not_applicable", "refused", "unparsable", "failed"]
"""What came of a question: `failed` got no answer, `unparsable` one without a rating in it."""

Side = Literal["A", "B", "tie"]

T = TypeVar("T", bound=Hashable)

_OPENERS, _CLOSERS = r"[\s*_\"'`\[({$]*", r"[\s*_\"'`\])}$]*"
# At the start of a line, whatever marks stand around the word: **Rating:** 4, "rating": "4".
_RATING = re.compile(
    r"^(?P<before>[\W_]*)(?:(?:(?:my|the)\s+)?(?:overall|final|helpfulness|honesty|"
    r"instruction[ _-]following)\s+)?rating\b"
    rf"\s*(?:\(1\s*(?:-|–|to)\s*5\))?[\s*_\"'`]*[:：=-]{_OPENERS}(?P<rest>\S[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_VERDICT = re.compile(
    rf"^(?P<before>[\W_]*)(?:final\s+)?verdict\b[\s*_\"'`]*[:：=-]{_OPENERS}(?P<rest>\S[^\n]*)",
    re.IGNORECASE | re.MULTILINE,
)
_WORDS = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0}
_NUMBER = re.compile(
    r"(?:\\boxed\{\s*)?(?:(?P<digits>[0-9]+(?:\.[0-9]+)?)|(?P<word>[a-z]+))(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_SCALE = re.compile(
    rf"{_CLOSERS}\s*(?:\(?(?:/|out\s+of|of)\s*(?P<whole>[0-9]+(?:\.0+)?)\b\)?)?"
    rf"{_CLOSERS}(?:\s*(?:points?|stars?)\b)?{_CLOSERS}",
    re.IGNORECASE,
)
# What may follow on the line: nothing, or a reason, which must not go on with numbers.
_REASON = re.compile(
    r"(?:[.;,:!(]|[-–—]+(?=\s))\s*(?!(?:or|and|to|but|maybe|perhaps|at first|wait|hmm|actually|"
    r"rather|no, |no wait)\b)(?=[^\W\d]|[(*_\"'`]|$)|"
    r"(?P<word>because|since|rationale|reason|explanation|justification)\b|$",
    re.IGNORECASE,
)
_OTHER_SCALE = re.compile(
    r"[0-9]\s*(?:-|–|to|/|out of|of)\s*[0-9]|\b(?:out of|scale|of|or|maybe|to)\s+[0-9]|%|\?",
    re.IGNORECASE,
)
_ASKED_SCALE = re.compile(
    r"\(?(?:on\s+)?(?:a\s+)?scale\s+(?:(?:of|from)\s+)?1\s*(?:-|–|to)\s*5\)?", re.IGNORECASE
)
_NOT_APPLICABLE = re.compile(
    rf"(?:n\s*/\s*a|na|n\.a\.?|not[ _]applicable)\b{_CLOSERS}(?!\s*(?:or|/|-|–)\s*\S)",
    re.IGNORECASE,
)
_ONLY_NOT_APPLICABLE = re.compile(
    r"[\W_]*(?:n\s*/\s*a|na|n\.a|not applicable)\b(?:[\W_]*\Z|[\W_]*\n|\W*[.:,(–-]\s)",
    re.IGNORECASE,
)
_ONLY_NUMBER = re.compile(
    r"[\W_]*(?:\\boxed\{\s*)?[0-9](?:\.[0-9]+)?(?:\s*(?:/|out of|of)\s*5)?[\W_]*", re.IGNORECASE
)
_SIDE = re.compile(
    r"(?P<side>a\s+tie|tie|(?:(?:answer|response)\s+)?[ab])\b[*_\"'`\])}$]*"
    r"\s*(?:$|[.;:(—–,-]\s*+(?!(?:(?:answer|response)\s+)?[ab]\b|tie\b|or\b|[0-9]|"
    r"(?:no|not|wait|actually|rather|sorry|hmm|worse)\b)|"
    r"(?:is\s+(?:the\s+)?better|wins)\b)",  # not "A and B are equal"
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am|we['’]?re|we are)?\s*(?:very |so |truly )?sorry\b|i apologi[sz]e\b|"
    r"(?:unfortunately,? |as an ai\b[^.\n]{0,80}?,? )?i(?: can(?:not|['’]t| not)|['’]m (?:not able|"
    r"unable)| am (?:not able|unable)| won['’]t| will not| must decline)\b)",
    re.IGNORECASE,
)
# A judgement in running words, such as "I rate this 1 of 5".
_PROSE = re.compile(
    r"\b(?:rat(?:e|ed|ing)|scor(?:e|ed|ing)|giv(?:e|en|ing)|deserves?|assign(?:ed)?|worth)\b"
    r"[^.\n]{0,16}?\b([0-9]+(?:\.[0-9]+)?)\b|"
    r"\b([0-9]+(?:\.[0-9]+)?)\s*(?:/|(?:out\s+)?of)\s*[0-9]+",
    re.IGNORECASE,
)
# A second thought, or the rating said again in running words.
_AGAIN = re.compile(
    r"(?:(?<![\"'“‘`>])(?<!> )\brating\b[*_\"'`\])]*\s*[:=]|"
    r"\b(?:my|the) (?:own |real |actual |final |true |correct |revised |honest )?rating "
    r"(?:is|should be|would be)|"
    r"\b(?:wait|correction|on second thoughts?|i meant?)\b[^.\n]{0,30}?)"
    r"[\s*_\"'`\[(]*(?P<number>[0-9]+(?:\.[0-9]+)?)\b",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"(?!.*\b(?:say|says|said|read|reads|contain|contains|state|states|claim|claims|write|writes|"
    r"quote|quotes|response|answer|text)\b)"
    r"(?=.*\b(?:rating|assessment|evaluation|annotation|verdict|judgement|judgment|output|review)\b)",
    re.IGNORECASE,
)
_RATIONALE = re.compile(r"[\W_]*(?:rationale|reason(?:ing)?|explanation|justification)\b", re.I)
_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)


@dataclass(frozen=True)
class Rating:
    """What a judge's answer says; `value` is there if `status` is ``"rated"``."""

    status: Status
    value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge's answer says of a pair; `value` is there if `status` is ``"rated"``."""

    status: Status
    value: Side | None = None


_UNPARSABLE = Rating("unparsable")


def parse_rating(text: str, *, cut: bool = False, judged: Sequence[str] = ()) -> Rating:
    """The rating in a judge's answer.

    It stands at the start of a line, as the templates ask, or is the whole answer. Another scale
    ("8/10"), a range ("3-4"), a doubt ("2?"), a value outside 1 to 5 and lines that contradict each
    other are no rating. A line that does not open the answer counts only at its end, and not if
    it may be quoted. Thoughts do not count.

    Args:
        cut: The answer stops at a limit: what it has not opened with may be a thought.
        judged: The texts that the judge was shown.
    """
    said = readings(text)
    found = _agreed(
        [_Reply(reading, _RATING, cut, judged).read(_rating, _whole_rating) for reading in said]
    )
    if found is not None:
        return found
    if said and not any(map(_RATING.search, said)) and _REFUSAL.match(said[-1]):
        return Rating("refused")
    return _UNPARSABLE


def parse_verdict(text: str, *, cut: bool = False, judged: Sequence[str] = ()) -> Side | None:
    """The verdict in a judge's answer; None if there is none, or several that differ."""
    said = readings(text)
    return _agreed(
        [_Reply(reading, _VERDICT, cut, judged).read(_side, _whole_side) for reading in said]
    )


def refused(text: str) -> bool:
    """Whether a judge's answer opens as a refusal."""
    said = readings(text)
    return bool(said) and _REFUSAL.match(said[-1]) is not None


def _agreed(found: Sequence[T | None]) -> T | None:
    """What all readings say; the first, of all the words, may say nothing."""
    if len(found) > 1 and found[0] is None:
        found = found[1:]
    return found[0] if len(set(found)) == 1 else None


class _Reply:
    """One reading of a reply, and the lines in it that look like what was asked for."""

    def __init__(self, text: str, line: re.Pattern[str], cut: bool, judged: Sequence[str]) -> None:
        fenced = _FENCE.fullmatch(text)
        self.text = fenced[1].strip() if fenced else text
        self._cut, self._judged = cut, judged
        self._lines = [m for m in line.finditer(self.text) if ">" not in m["before"]]

    def read(self, line: Callable[[str], T | None], whole: Callable[[str], T | None]) -> T | None:
        """What the reply says; None where that is not plain."""
        key = "rating" if line is _rating else "verdict"
        if (values := _json_values(self.text, key)) is not None:
            other = _json_values(self.text, "scale") or _json_values(self.text, "max") or []
            known = all(re.fullmatch(r"(?:1\s*(?:-|–|to)\s*)?5(?:\.0)?", str(o)) for o in other)
            return line(str(values[0])) if len(values) == 1 and known else None
        if self._cut:
            # The last word may be half of one: 1 of 10.
            first = next(iter(self._lines), None)
            if first is None or not self._opens(first):
                return None
            ends = first.end() == len(self.text) and len(first["rest"]) < 30
            return None if ends else line(first["rest"])
        if not self._lines:
            return whole(self.text)
        # The format repeated ("Rating: [Rating for the response]") says nothing.
        told = [m for m in self._lines if not m["rest"].lower().startswith("rating for")]
        found = {line(m["rest"]) for m in told}
        if len(found) != 1:
            return None
        value = found.pop()
        if value != Rating("not_applicable") and any(
            _ONLY_NOT_APPLICABLE.match(part) for part in (self.text, self.text[told[-1].end() :])
        ):
            return None  # "N/A", and a rating above or below
        if isinstance(value, Rating) and value.value is not None:
            again = _AGAIN.finditer(self.text, told[0].end())
            if any(float(each["number"]) != value.value for each in again):
                return None
        return value if self._opens(told[0]) or self._concludes(told[-1]) else None

    def _opens(self, match: re.Match[str]) -> bool:
        """Whether nothing but headings stands before a line."""
        before = self.text[: match.start()].split("\n")
        return all(
            not line.strip()
            or line.lstrip().startswith("#")
            or not re.search(r"\w", line)
            or line.lower().startswith("rating: [rating for")
            for line in before
        )

    def _concludes(self, match: re.Match[str]) -> bool:
        """Whether a line ends the reply, and is the judge's own."""
        before, after = self.text[: match.start()], self.text[match.end() :].strip(" \n*_`}\"'")
        if after and not _RATIONALE.match(after):
            return False
        last = before.rstrip().rpartition("\n")[2].strip()
        if last.endswith((":", "：")) and not _HEADING.match(last):
            return False  # "it only says:"
        if before.count("```") % 2:
            return False
        value = _rating(match["rest"])
        if value is not None and value.value is not None:
            numbers = (a or b for a, b in _PROSE.findall(before))
            if any(float(number) != value.value for number in numbers):
                return False
        own = match[0].strip().lower()
        return not any(own in text.lower() for text in self._judged)


def _rating(line: str) -> Rating | None:
    """What stands behind "Rating:"; None if that is no rating on the scale."""
    if _NOT_APPLICABLE.match(line):
        return Rating("not_applicable")
    number = _NUMBER.match(line)
    if number is None:
        return None
    if number["digits"] is not None:
        value = float(number["digits"])
    elif (named := _WORDS.get(number["word"].lower())) is not None:
        value = named
    else:
        return None
    scale = _SCALE.match(number["rest"])
    assert scale is not None  # it may be empty
    rest = _ASKED_SCALE.sub("", number["rest"][scale.end() :]).strip()
    whole = [scale["whole"], *re.findall(rf"\b{value:g}\s*(?:/|out of)\s*([0-9]+)", rest)]
    if any(float(each) != 5 for each in whole if each is not None):
        return None
    reason = _REASON.match(rest)
    if reason is None or not 1 <= value <= 5:
        return None
    if not reason["word"] and _OTHER_SCALE.search(rest):
        return None
    return Rating("rated", value)


def _whole_rating(text: str) -> Rating | None:
    """The rating in a reply that is nothing else."""
    if _ONLY_NOT_APPLICABLE.match(text):
        return None if re.search(r"[0-9]", text) else Rating("not_applicable")
    if _ONLY_NUMBER.fullmatch(text) and not re.search(r"[?%±~≤≥<+-]", text):
        return _rating(re.sub(r"^(?:(?!\\boxed)[\W_])+", "", text))
    return None


def _side(line: str) -> Side | None:
    sides: dict[str, Side] = {"a": "A", "b": "B", "tie": "tie"}
    found = _SIDE.match(line.strip("*_\"'`[](){} \n"))
    return None if found is None else sides[found["side"].split()[-1].lower()]


def _whole_side(text: str) -> Side | None:
    """The verdict in a reply that is nothing else."""
    return _side(text) if re.fullmatch(r"[\W_]*(?:A|B|[Tt]ie)[^\w?]*", text) else None


def _json_values(text: str, key: str) -> list[Any] | None:
    """All values under a key, of a reply that is a JSON object; None for any other reply."""
    if not text.startswith("{"):
        return None
    pairs: list[tuple[str, Any]] = []

    def collect(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs.extend(found)
        return dict(found)

    try:
        json.loads(text, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return None
    return [value for name, value in pairs if key in name.lower()]
