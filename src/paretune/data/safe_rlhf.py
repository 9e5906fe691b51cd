"""PKU-SafeRLHF: two responses to a prompt, which is more helpful and which is safer.

Ji et al., BeaverTails (2023) and PKU-SafeRLHF (2024). The hub's ``PKU-Alignment/PKU-SafeRLHF-10K``
is the CLAMP paper's Task 1; ``PKU-Alignment/PKU-SafeRLHF`` has the same columns and more.
"""

from collections.abc import Sequence
from typing import Literal

from paretune.data.messages import Style, Text, TextReader
from paretune.data.records import Pair, PreferenceData, preference_data, select_objectives
from paretune.data.rows import Row
from paretune.data.sources import BadRows, HubDataset, Source, pinned, read_rows

LABELS = {"helpful": "better_response_id", "harmless": "safer_response_id"}
"""Per objective, the column that names the preferred response by 0 or 1."""

HUB = HubDataset("PKU-Alignment/PKU-SafeRLHF-10K")

_RESPONSES = ("response_0", "response_1")


def load(
    source: Source = HUB,
    *,
    objectives: Sequence[str] | None = None,
    style: Style = "chat",
    bad_rows: BadRows = "error",
    revision: str | None = None,
) -> PreferenceData:
    """Load a data set with the columns of PKU-SafeRLHF.

    Args:
        source: Rows with ``prompt``, ``response_0``, ``response_1``, ``better_response_id`` and
            ``safer_response_id`` (columns of objectives that are not asked for may be missing).
        objectives: Of ``"helpful"`` and ``"harmless"``; both by default.
        style: How prompts are read, see `~paretune.data.messages.Style`.
        bad_rows: Stop at a bad row, or skip and count it.
        revision: Commit or tag of a data set on the hub.

    Raises:
        InputError: an unknown objective, a source that cannot be read, or a bad row.
    """
    chosen_objectives = select_objectives(objectives, LABELS, "PKU-SafeRLHF")
    reader = TextReader(style)

    def parse(row: Row) -> tuple[Text, list[Text], dict[str, Literal[0, 1]]]:
        prompt, *responses = reader.pair(row, _RESPONSES)
        labels = {name: row.label(LABELS[name]) for name in chosen_objectives}
        return prompt, responses, labels

    items, counts = read_rows(pinned(source, revision), parse, bad_rows)
    pairs = {
        name: [
            Pair(prompt, responses[labels[name]], responses[1 - labels[name]])
            for prompt, responses, labels in items
        ]
        for name in chosen_objectives
    }
    return preference_data(pairs, counts)
