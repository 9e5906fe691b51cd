"""Trainers: multi-objective preference optimisation and data weighting on transformers' own."""

from paretune.training.clamp import ClampTrainer
from paretune.training.conditioned import ConditionedConfig, ConditionedTrainer
from paretune.training.config import ClampConfig, MultiObjectiveConfig
from paretune.training.data_weighting import DataWeightingTrainer
from paretune.training.data_weighting_config import DataWeightingConfig
from paretune.training.trainer import MultiObjectiveTrainer

__all__ = [
    "ClampConfig",
    "ClampTrainer",
    "ConditionedConfig",
    "ConditionedTrainer",
    "DataWeightingConfig",
    "DataWeightingTrainer",
    "MultiObjectiveConfig",
    "MultiObjectiveTrainer",
]
