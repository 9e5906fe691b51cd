"""The methods to compare with, one file a method: a `Baseline` with its options, and how it trains.

They are named by where they are, because their files import torch, which reading a recipe of a
sweep need not wait for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paretune.baselines.context import Baseline

BASELINES: dict[str, "str | type[Baseline]"] = {
    "conditioned": "paretune.baselines.conditioned:Conditioned",
    "modpo": "paretune.baselines.modpo:Modpo",
    "rewarded_soups": "paretune.baselines.rewarded_soups:RewardedSoups",
    "morlhf": "paretune.baselines.morlhf:Morlhf",
    "ric": "paretune.baselines.ric:Ric",
}
"""By the name in a recipe of a comparison: a class, or ``"module:class"``."""
