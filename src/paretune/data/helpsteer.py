"""HelpSteer and HelpSteer2 (Wang et al., 2023 and 2024): responses rated 0 to 4 on five attributes.

Verbosity and complexity are styles, not merits: which way is better is for the user to say
(``RatingRule(lower_is_better=["verbosity"])`` prefers brevity).
"""

from collections.abc import Sequence

from paretune.data.messages import Messages, assistant, join_turns
from paretune.data.ratings import EXTREMES, RatedResponse, RatingRule, load_rated
from paretune.data.records import PreferenceData, select_objectives
from paretune.data.rows import Row
from paretune.data.sources import BadRows, HubDataset, Source, pinned

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

HUB = HubDataset("nvidia/HelpSteer")

_TURN = "<extra_id_1>"  # begins each turn of a HelpSteer2 prompt but the first, then the speaker


def load(
    source: Source = HUB,
    *,
    objectives: Sequence[str] | None = None,
    rule: RatingRule = EXTREMES,
    bad_rows: BadRows = "error",
    revision: str | None = None,
) -> PreferenceData:
    """Load HelpSteer, or HelpSteer2 with ``source="nvidia/HelpSteer2"``, as messages.

    Args:
        source: Rows with ``prompt``, ``response`` and a column for each attribute. The rows of a
            prompt may stand anywhere. The turns of HelpSteer2 prompts become messages.
        objectives: Some of `ATTRIBUTES`; all by default.
        rule: How ratings become pairs.
        bad_rows: Stop at a bad row, or skip and count it.
        revision: Commit or tag of a data set on the hub.

    Raises:
        InputError: an unknown attribute, a source that cannot be read, or a bad row.
    """
    attributes = select_objectives(objectives, ATTRIBUTES, "HelpSteer")

    def parse(row: Row) -> list[RatedResponse]:
        ratings = {name: row.rating(name) for name in attributes}
        return [RatedResponse(_messages(row), assistant(row.text("response")), ratings)]

    return load_rated(pinned(source, revision), parse, attributes, rule, bad_rows)


def _messages(row: Row) -> Messages:
    first, *rest = row.text("prompt").split(_TURN)
    turns = [("User", first)] if first.strip() or not rest else []
    for part in rest:
        speaker, _, text = part.partition("\n")
        if speaker not in ("User", "Assistant"):
            raise row.error("prompt", f"has a turn of an unknown speaker {speaker!r}")
        turns.append((speaker, text))
    if turns[-1] == ("Assistant", ""):  # the cue to answer
        turns.pop()
    messages = join_turns(row, "prompt", turns)
    if messages[-1]["role"] == "assistant":
        raise row.error("prompt", "ends with an assistant turn, so there is nothing to answer")
    return messages
