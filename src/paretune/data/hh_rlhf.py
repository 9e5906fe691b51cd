"""hh-rlhf (Bai et al., 2022): pairs of dialogues that differ in the assistant's last turn."""

from collections.abc import Mapping, Sequence

from paretune.data.messages import parse_dialogue, refuse_equal
from paretune.data.records import Pair, PreferenceData, preference_data, select_objectives
from paretune.data.rows import Row
from paretune.data.sources import BadRows, HubDataset, Source, pinned, read_each

HUB: Mapping[str, Source] = {
    "helpful": HubDataset("Anthropic/hh-rlhf", data_dir="helpful-base"),
    "harmless": HubDataset("Anthropic/hh-rlhf", data_dir="harmless-base"),
}


def load(
    sources: Mapping[str, Source] = HUB,
    *,
    objectives: Sequence[str] | None = None,
    bad_rows: BadRows = "error",
    revision: str | None = None,
) -> PreferenceData:
    """Load hh-rlhf as messages.

    Args:
        sources: Per objective, rows with ``chosen`` and ``rejected``, each a whole dialogue
            ("\\n\\nHuman: ...\\n\\nAssistant: ..."). What comes before the last assistant turn is
            the prompt, and must be the same in both.
        objectives: Some of the names in ``sources``; all by default.
        bad_rows: Stop at a bad row, or skip and count it (the published data has some: empty
            responses, and dialogues that part before their last turn).
        revision: Commit or tag of a data set on the hub.

    Raises:
        InputError: an unknown objective, a source that cannot be read, or a bad row.
    """
    sources = pinned(sources, revision)
    names = select_objectives(objectives, sources, "hh-rlhf")
    return preference_data(*read_each({name: sources[name] for name in names}, _parse, bad_rows))


def _parse(row: Row) -> Pair:
    dialogues = [parse_dialogue(row, field, row.text(field)) for field in ("chosen", "rejected")]
    for field, dialogue in zip(("chosen", "rejected"), dialogues, strict=True):
        if dialogue[-1]["role"] != "assistant":
            raise row.error(field, "must end with an Assistant turn")
    chosen, rejected = dialogues
    if chosen[:-1] != rejected[:-1]:
        raise row.error("rejected", "differs from 'chosen' before the last Assistant turn")
    refuse_equal(row, ("chosen", "rejected"), chosen[-1:], rejected[-1:])
    return Pair(chosen[:-1], chosen[-1:], rejected[-1:])
