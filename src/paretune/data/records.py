"""What every loader returns: pairs per objective, with the counts that describe them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from paretune.data.messages import Text, prompt_key, response_key
from paretune.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


class Pair(NamedTuple):
    """One preference: of two responses to a prompt, the chosen and the rejected one."""

    prompt: Text
    chosen: Text
    rejected: Text
    weight: float | None = None


@dataclass(frozen=True)
class PreferenceData:
    """Preference pairs of several objectives.

    Attributes:
        pairs: Per objective, a data set with the columns ``prompt``, ``chosen``, ``rejected`` and,
            where the source gives weights, ``weight``; rows in the source's order. Texts are
            strings, or lists of ``{"role", "content"}`` messages (a response is one message).
        counts: What was read, dropped and kept; fit for JSON; see ``docs/guides/data.md``.
        ratings: If the pairs were made from ratings: ``prompt``, ``response`` and a column for
            each objective (None where a response was not rated).
    """

    pairs: "dict[str, Dataset]"
    counts: dict[str, Any]
    ratings: "Dataset | None" = None


def preference_data(
    pairs: Mapping[str, Sequence[Pair]],
    counts: Mapping[str, Any],
    ratings: "Dataset | None" = None,
) -> PreferenceData:
    """Make the data sets, and add to ``counts`` what the pairs themselves show.

    Raises:
        InputError: an objective without pairs.
    """
    from datasets import Dataset

    data = {}
    for objective, items in pairs.items():
        if not items:
            raise InputError(f"Objective {objective!r} has no pairs left ({_losses(counts)}).")
        columns: dict[str, list[Any]] = {
            "prompt": [pair.prompt for pair in items],
            "chosen": [pair.chosen for pair in items],
            "rejected": [pair.rejected for pair in items],
        }
        if any(pair.weight is not None for pair in items):
            columns["weight"] = [1.0 if pair.weight is None else pair.weight for pair in items]
        data[objective] = Dataset.from_dict(columns)
    return PreferenceData(data, {**counts, **describe_pairs(data)}, ratings)


def describe_pairs(pairs: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Any]:
    """Counts that can be read off the pairs.

    Returns:
        ``prompts``: distinct prompts over all objectives. Per objective, ``pairs`` and
        ``duplicates`` (repetitions of an earlier pair, which are kept). ``conflicts``: per two
        objectives ``"a|b"``, on how many pairs of responses both have an opinion (``common``), and
        the share of these that they order differently (``rate``, None if there are none).
    """
    prompts: set[str] = set()
    totals: dict[str, int] = {}
    orders: dict[str, dict[tuple[str, frozenset[str]], str]] = {}
    duplicates: dict[str, int] = {}
    for objective, rows in pairs.items():
        seen = set()
        orders[objective] = {}
        totals[objective] = 0
        for row in rows:
            prompt = prompt_key(row["prompt"])
            chosen, rejected = response_key(row["chosen"]), response_key(row["rejected"])
            totals[objective] += 1
            prompts.add(prompt)
            seen.add((prompt, chosen, rejected))
            orders[objective].setdefault((prompt, frozenset((chosen, rejected))), chosen)
        duplicates[objective] = totals[objective] - len(seen)
    conflicts = {}
    for first, second in combinations(orders, 2):
        common = orders[first].keys() & orders[second].keys()
        differ = sum(orders[first][key] != orders[second][key] for key in common)
        conflicts[f"{first}|{second}"] = conflict(len(common), differ)
    return {
        "prompts": len(prompts),
        "pairs": totals,
        "duplicates": duplicates,
        "conflicts": conflicts,
    }


def conflict(common: int, differ: int) -> dict[str, float | None]:
    """The record of a conflict: ``differ`` of ``common`` pairs are ordered differently."""
    return {"common": common, "rate": differ / common if common else None}


def select_objectives(
    requested: Sequence[str] | None, available: Iterable[str], source: str
) -> tuple[str, ...]:
    """The objectives asked for (all by default), each of which must be available."""
    names = tuple(available)
    if requested is None:
        return names
    if isinstance(requested, str) or not requested:
        raise InputError(f"objectives must be a list of names among {', '.join(names)}.")
    for name in requested:
        if name not in names:
            raise InputError(f"{source} has no objective {name!r}; it has {', '.join(names)}.")
    return tuple(dict.fromkeys(requested))


def _losses(counts: Mapping[str, Any]) -> str:
    keys = ("rows", "skipped_rows", "ties", "na_dropped", "unpaired")
    return ", ".join(f"{key}: {counts[key]}" for key in keys if key in counts)
