"""What every loader returns: pairs per objective, with the counts that describe them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from paretune.data.messages import Text, prompt_key, response_key
from paretune.data.rows import records
from paretune.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_PART = 20_000


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
    import pyarrow as pa  # type: ignore[import-untyped]
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
        # `Dataset.from_dict`, and its own fingerprint, would take several times the data's memory.
        table = pa.table({name: _column(values) for name, values in columns.items()})
        data[objective] = Dataset(table, fingerprint=_fingerprint(table))
    return PreferenceData(data, {**counts, **describe_pairs(data)}, ratings)


def _column(values: Sequence[Any]) -> Any:
    """An Arrow column; texts in parts, since Arrow doubles what it builds at every growth."""
    import pyarrow as pa

    if not isinstance(values[0], str):
        return pa.array(values)
    parts = [values[i : i + _PART] for i in range(0, len(values), _PART)]
    return pa.chunked_array([pa.array(part, pa.string()) for part in parts])


def _fingerprint(table: Any) -> str:
    digest = xxhash.xxh3_128(str(table.schema).encode())
    for column in table.columns:
        for chunk in column.chunks:
            for buffer in filter(None, chunk.buffers()):
                digest.update(buffer)
    return digest.hexdigest()


def describe_pairs(pairs: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, Any]:
    """Counts that can be read off the pairs.

    Returns:
        ``prompts``: distinct prompts over all objectives. Per objective, ``pairs`` and
        ``duplicates`` (repetitions of an earlier pair, which are kept). ``conflicts``: per two
        objectives ``"a|b"``, on how many pairs of responses both have an opinion (``common``), and
        the share of these that they order differently (``rate``, None if there are none).
    """
    prompts: set[bytes] = set()
    totals: dict[str, int] = {}
    orders: dict[str, dict[bytes, bytes]] = {}  # of two responses to a prompt, the chosen one
    duplicates: dict[str, int] = {}
    for objective, rows in pairs.items():
        seen: set[bytes] = set()
        orders[objective] = {}
        totals[objective] = 0
        for row in records(rows):
            prompt = prompt_key(row["prompt"])
            chosen, rejected = response_key(row["chosen"]), response_key(row["rejected"])
            totals[objective] += 1
            prompts.add(_digest(prompt))
            seen.add(_digest(prompt, chosen, rejected))
            if len(pairs) > 1:
                both = _digest(prompt, *sorted((chosen, rejected)))
                orders[objective].setdefault(both, _digest(chosen))
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


def _digest(*texts: str) -> bytes:
    """16 bytes in place of texts, of which there may be very many."""
    whole = "\0".join((*map(str, map(len, texts)), *texts))
    return xxhash.xxh3_128_digest(whole.encode(errors="surrogatepass"))


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
