"""UltraFeedback (Cui et al., 2024): four responses to a prompt, rated 1 to 5 on four aspects.

The hub's ``openbmb/UltraFeedback`` holds ratings as strings, with "N/A" where an aspect does not
apply: such a rating counts as absent for its aspect and leaves the others alone.
"""

from collections.abc import Sequence

from paretune.data.messages import Style, TextReader
from paretune.data.ratings import EXTREMES, RatedResponse, RatingRule, load_rated
from paretune.data.records import PreferenceData, select_objectives
from paretune.data.rows import Row
from paretune.data.sources import BadRows, HubDataset, Source, pinned

ASPECTS = ("honesty", "helpfulness", "instruction_following", "truthfulness")

HUB = HubDataset("openbmb/UltraFeedback")


def load(
    source: Source = HUB,
    *,
    objectives: Sequence[str] | None = None,
    rule: RatingRule = EXTREMES,
    style: Style = "chat",
    bad_rows: BadRows = "error",
    revision: str | None = None,
) -> PreferenceData:
    """Load UltraFeedback as one set of pairs for each aspect.

    Args:
        source: Rows with ``instruction`` and ``completions``, a list of records with ``response``
            and ``annotations``, where ``annotations.<aspect>.Rating`` is the rating.
        objectives: Some of `ASPECTS`; all by default. The CLAMP paper takes the first three.
        rule: How ratings become pairs; ``RatingRule(ties="first")`` is the paper's way.
        style: How prompts are read, see `~paretune.data.messages.Style`.
        bad_rows: Stop at a bad row, or skip and count it.
        revision: Commit or tag of a data set on the hub.

    Raises:
        InputError: an unknown aspect, a source that cannot be read, or a bad row.
    """
    aspects = select_objectives(objectives, ASPECTS, "UltraFeedback")
    reader = TextReader(style)

    def parse(row: Row) -> list[RatedResponse]:
        prompt = reader.prompt(row, "instruction")
        rated = []
        for completion in row.nested("completions"):
            annotations = completion.inside("annotations")
            ratings = {name: annotations.inside(name).rating("Rating") for name in aspects}
            response = reader.response(completion, "response", not isinstance(prompt, str))
            rated.append(RatedResponse(prompt, response, ratings))
        return rated

    return load_rated(pinned(source, revision), parse, aspects, rule, bad_rows)
