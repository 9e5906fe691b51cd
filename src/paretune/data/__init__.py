"""Preference data: loaders, and splitting by prompt.

Each loader module has ``load(source, ...)`` (`local` has ``load_pairs`` and ``load_ratings``),
which takes a hub id, a file or rows, and returns `PreferenceData`.
"""

from paretune.data import helpsteer, hh_rlhf, local, safe_rlhf, ultrafeedback
from paretune.data.messages import Style
from paretune.data.ratings import RatingRule
from paretune.data.records import PreferenceData
from paretune.data.sources import BadRows, HubDataset, Source
from paretune.data.splitting import split_by_prompt

__all__ = [
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
