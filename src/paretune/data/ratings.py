"""From ratings of several responses to a prompt to preference pairs, one set for each objective."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from paretune.data.messages import Text, prompt_key, response_key
from paretune.data.records import Pair, PreferenceData, conflict, preference_data
from paretune.data.rows import Row
from paretune.data.sources import BadRows, Source, check_choice, read_rows
from paretune.errors import InputError

Pairing = Literal["extremes", "all"]
Ties = Literal["drop", "first"]


@dataclass(frozen=True)
class RatingRule:
    """How ratings of the responses to one prompt become pairs.

    Attributes:
        pairing: ``"extremes"`` makes one pair a prompt, the highest- against the lowest-rated
            response, the first of equals in both places (as the CLAMP paper does, Appendix C.2);
            ``"all"`` makes a pair of every two responses whose ratings differ.
        min_difference: Least difference of two ratings, in rating units; smaller ones are ties.
        ties: ``"drop"`` makes no pair of a tie; ``"first"`` prefers the response that comes first
            to the next one, as the CLAMP paper's "in cases of ties, we choose the first response"
            is read here. Ties are counted either way.
        lower_is_better: Objectives whose low ratings are the good ones (a cost; brevity as the
            reverse of verbosity).
    """

    pairing: Pairing = "extremes"
    min_difference: float = 0.0
    ties: Ties = "drop"
    lower_is_better: Collection[str] = ()

    def __post_init__(self) -> None:
        check_choice("pairing", self.pairing, get_args(Pairing))
        check_choice("ties", self.ties, get_args(Ties))
        if not (math.isfinite(self.min_difference) and self.min_difference >= 0):
            raise InputError(f"min_difference must be 0 or more, not {self.min_difference}.")
        if isinstance(self.lower_is_better, str):
            raise InputError("lower_is_better must be a list of objectives.")


EXTREMES = RatingRule()


@dataclass(frozen=True)
class RatedResponse:
    """A response with its rating per objective, None where it has none."""

    prompt: Text
    response: Text
    ratings: dict[str, float | None]


def load_rated(
    source: Source,
    parse: Callable[[Row], Sequence[RatedResponse]],
    objectives: Sequence[str],
    rule: RatingRule,
    bad_rows: BadRows,
) -> PreferenceData:
    """Read rated responses and pair them, all rows of a prompt together wherever they stand.

    A response that is repeated under its prompt counts once, with its first ratings.

    Raises:
        InputError: see `read_rows`; an objective left without pairs; or a name in
            ``rule.lower_is_better`` that is no objective.
    """
    from datasets import Dataset

    for name in rule.lower_is_better:
        if name not in objectives:
            known = ", ".join(objectives)
            raise InputError(f"lower_is_better names {name!r}, which is no objective ({known}).")
    items, counts = read_rows(source, parse, bad_rows)
    rated = [item for responses in items for item in responses]
    by_prompt: dict[str, dict[str, RatedResponse]] = {}
    for item in rated:
        group = by_prompt.setdefault(prompt_key(item.prompt), {})
        group.setdefault(response_key(item.response), item)
    groups = [list(found.values()) for found in by_prompt.values()]
    distinct = [item for responses in groups for item in responses]
    counts |= {
        "responses": len(rated),
        "duplicate_responses": len(rated) - len(distinct),
        "na_dropped": {m: sum(item.ratings[m] is None for item in distinct) for m in objectives},
        "tie_rule": rule.ties,
        "ties": dict.fromkeys(objectives, 0),
        "unpaired": dict.fromkeys(objectives, 0),
        "rating_conflicts": rating_conflicts(groups, objectives, rule),
    }
    pairs: dict[str, list[Pair]] = {objective: [] for objective in objectives}
    for responses in groups:
        for objective in objectives:
            made, ties = pair_ratings(responses, objective, rule)
            pairs[objective] += made
            counts["ties"][objective] += ties
            counts["unpaired"][objective] += not made and not ties
    columns = {
        "prompt": [item.prompt for item in distinct],
        "response": [item.response for item in distinct],
        **{name: [item.ratings[name] for item in distinct] for name in objectives},
    }
    return preference_data(pairs, counts, Dataset.from_dict(columns))


def pair_ratings(
    responses: Iterable[RatedResponse], objective: str, rule: RatingRule
) -> tuple[list[Pair], int]:
    """The pairs that one objective makes of the responses to one prompt, and how many ties."""
    scored = [
        (score, item) for item in responses if (score := _score(item, objective, rule)) is not None
    ]
    if len(scored) < 2:
        return [], 0
    if rule.pairing == "all":
        candidates = list(combinations(scored, 2))
    else:
        ordered = [score for score, _ in scored]
        # index() finds the first of equals; if all are equal, the first two responses stand.
        places = {ordered.index(max(ordered)), ordered.index(min(ordered))}
        first, second = sorted(places) if len(places) == 2 else (0, 1)
        candidates = [(scored[first], scored[second])]
    pairs, ties = [], 0
    for (score, one), (other_score, other) in candidates:
        tied = score == other_score or abs(score - other_score) < rule.min_difference
        ties += tied
        if tied and rule.ties == "drop":
            continue
        chosen, rejected = (one, other) if tied or score > other_score else (other, one)
        pairs.append(Pair(chosen.prompt, chosen.response, rejected.response))
    return pairs, ties


def rating_conflicts(
    groups: Iterable[Sequence[RatedResponse]], objectives: Sequence[str], rule: RatingRule
) -> dict[str, dict[str, float | None]]:
    """How often two objectives order two responses to one prompt differently.

    Over all pairs of responses, whichever of them the rule makes into training pairs: the best
    and worst responses of two objectives seldom are the same two, least of all in reverse.

    Returns:
        Per two objectives ``"a|b"``: the pairs that both order (``common``) and the share of these
        that they order differently (``rate``, None if there are none).
    """
    duos = list(combinations(objectives, 2))
    agree, differ = dict.fromkeys(duos, 0), dict.fromkeys(duos, 0)
    for group in groups:
        for one, other in combinations(group, 2):
            gains = {m: _gain(one, other, m, rule) for m in objectives}
            for a, b in duos:
                agree[a, b] += gains[a] * gains[b] > 0
                differ[a, b] += gains[a] * gains[b] < 0
    return {"|".join(duo): conflict(agree[duo] + differ[duo], differ[duo]) for duo in duos}


def _score(item: RatedResponse, objective: str, rule: RatingRule) -> float | None:
    """The rating, turned so that higher is better."""
    rating = item.ratings[objective]
    return -rating if rating is not None and objective in rule.lower_is_better else rating


def _gain(one: RatedResponse, other: RatedResponse, objective: str, rule: RatingRule) -> float:
    """How much better the first is; 0 if one of them is not rated."""
    first, second = (_score(item, objective, rule) for item in (one, other))
    return 0.0 if first is None or second is None else first - second
