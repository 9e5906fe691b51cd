"""Align one language model to several conflicting preferences, and get the front of trade-offs.

Importing the package is cheap: torch and transformers load when a name that needs them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paretune._version import __version__
from paretune.errors import InputError, TrainingStoppedError

if TYPE_CHECKING:
    from paretune.moo.preference import Preference
    from paretune.training import (
        ClampConfig,
        ClampTrainer,
        ConditionedConfig,
        ConditionedTrainer,
        DataWeightingConfig,
        DataWeightingTrainer,
        MultiObjectiveConfig,
        MultiObjectiveTrainer,
    )

_HOME = {
    "ClampConfig": "paretune.training",
    "ClampTrainer": "paretune.training",
    "ConditionedConfig": "paretune.training",
    "ConditionedTrainer": "paretune.training",
    "DataWeightingConfig": "paretune.training",
    "DataWeightingTrainer": "paretune.training",
    "MultiObjectiveConfig": "paretune.training",
    "MultiObjectiveTrainer": "paretune.training",
    "Preference": "paretune.moo.preference",
}

__all__ = [
    "ClampConfig",
    "ClampTrainer",
    "ConditionedConfig",
    "ConditionedTrainer",
    "DataWeightingConfig",
    "DataWeightingTrainer",
    "InputError",
    "MultiObjectiveConfig",
    "MultiObjectiveTrainer",
    "Preference",
    "TrainingStoppedError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'paretune' has no attribute {name!r}")
