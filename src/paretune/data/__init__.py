"""Preference data: loaders, and splitting by prompt.

Each loader module has ``load(source, ...)`` (`local` has ``load_pairs`` and ``load_ratings``),
which takes a hub id, a file or rows, and returns `PreferenceData`. A new one is such a function and
a line in `LOADERS`; its parameters (`paretune.data.loading`) are what a recipe can set.
"""

from collections.abc import Callable

from paretune.data import (
    demo,
    helpsteer,
    hh_rlhf,
    local,
    safe_rlhf,
    summeval,
    topicalchat,
    ultrafeedback,
)
from paretune.data.messages import Style
from paretune.data.ratings import RatingRule
from paretune.data.records import PreferenceData
from paretune.data.sources import BadRows, HubDataset, Source
from paretune.data.splitting import split_by_prompt

LOADERS: dict[str, Callable[..., PreferenceData]] = {
    "demo": demo.load,
    "safe_rlhf": safe_rlhf.load,
    "ultrafeedback": ultrafeedback.load,
    "helpsteer": helpsteer.load,
    "hh_rlhf": hh_rlhf.load,
    "pairs": local.load_pairs,
    "ratings": local.load_ratings,
    "summeval": summeval.load,
    "topicalchat": topicalchat.load,
}
"""By the name in a recipe."""

__all__ = [
    "LOADERS",
    "BadRows",
    "HubDataset",
    "PreferenceData",
    "RatingRule",
    "Source",
    "Style",
    "helpsteer",
    "hh_rlhf",
    "local",
    "safe_rlhf",
    "split_by_prompt",
    "ultrafeedback",
]
