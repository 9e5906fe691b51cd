"""The user's own data: pairs, or ratings, in jsonl, json, csv or parquet files (or in memory).

Files with the columns of a published data set are read by that set's own loader.
"""

from collections.abc import Mapping, Sequence

from paretune.data.messages import Style, System, TextReader
from paretune.data.ratings import EXTREMES, RatedResponse, RatingRule, load_rated
from paretune.data.records import Pair, PreferenceData, preference_data, select_objectives
from paretune.data.rows import Row, weight_fault
from paretune.data.sources import BadRows, Source, pinned, read_each, read_rows
from paretune.errors import InputError


def load_pairs(
    source: Source | Mapping[str, Source],
    *,
    objectives: Sequence[str] | None = None,
    style: Style = "text",
    system: System = "error",
    bad_rows: BadRows = "error",
    revision: str | None = None,
) -> PreferenceData:
    """Load preference pairs, plain or conversational.

    Args:
        source: Rows with ``prompt``, ``chosen``, ``rejected`` and optionally ``weight`` (positive):
            one source for each objective, or one source whose column ``objective`` says whose pair
            a row is. Texts are strings, or lists of ``{"role", "content"}`` messages. Without
            ``prompt``, it is what ``chosen`` and ``rejected`` begin with.
        objectives: Those to keep; all by default.
        style: How prompts that are strings are read, see `~paretune.data.messages.Style`.
        system: What becomes of system messages, see `~paretune.data.messages.System`.
        bad_rows: Stop at a bad row, or skip and count it.
        revision: Commit or tag of a data set on the hub.

    Raises:
        InputError: an unknown objective, a source that cannot be read, or a bad row.
    """
    source = pinned(source, revision)
    reader = TextReader(style, system)

    def parse(row: Row) -> Pair:
        weight = row.number("weight") if row.values.get("weight") not in (None, "") else None
        if weight is not None and weight <= 0:
            raise row.error("weight", f"must be positive, not {weight:g}")
        if weight is not None and (fault := weight_fault(weight)):
            raise row.error("weight", fault)
        return Pair(*reader.pair(row, ("chosen", "rejected")), weight)

    if isinstance(source, Mapping):
        names = select_objectives(objectives, source, "The data")
        return preference_data(*read_each({n: source[n] for n in names}, parse, bad_rows))
    items, counts = read_rows(source, lambda row: (row.text("objective"), parse(row)), bad_rows)
    names = select_objectives(objectives, dict.fromkeys(name for name, _ in items), "The data")
    pairs = {name: [pair for other, pair in items if other == name] for name in names}
    return preference_data(pairs, counts)


def load_ratings(
    source: Source,
    *,
    objectives: Sequence[str],
    rule: RatingRule = EXTREMES,
    style: Style = "text",
    system: System = "error",
    bad_rows: BadRows = "error",
    revision: str | None = None,
) -> PreferenceData:
    """Load rated responses and make pairs of them.

    Args:
        source: Rows with ``prompt``, ``response`` and a column of numbers for each objective. The
            rows of a prompt may stand anywhere. An empty cell, null or "N/A" is an absent rating.
        objectives: The columns to use.
        rule: How ratings become pairs.
        style: How prompts that are strings are read, see `~paretune.data.messages.Style`.
        system: What becomes of system messages, see `~paretune.data.messages.System`.
        bad_rows: Stop at a bad row, or skip and count it.
        revision: Commit or tag of a data set on the hub.

    Raises:
        InputError: a column that is missing, a source that cannot be read, or a bad row.
    """
    if isinstance(objectives, str) or not objectives:
        raise InputError("objectives must be a list of rating columns.")
    source = pinned(source, revision)
    reader = TextReader(style, system)

    def parse(row: Row) -> list[RatedResponse]:
        prompt = reader.prompt(row)
        response = reader.response(row, "response", not isinstance(prompt, str))
        ratings = {name: row.rating(name) for name in objectives}
        return [RatedResponse(prompt, response, ratings)]

    return load_rated(source, parse, tuple(dict.fromkeys(objectives)), rule, bad_rows)
