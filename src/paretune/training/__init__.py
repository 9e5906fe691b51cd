"""Trainers: multi-objective preference optimisation as a ``transformers.Trainer``."""

from paretune.training.clamp import ClampTrainer
from paretune.training.config import ClampConfig, MultiObjectiveConfig
from paretune.training.trainer import MultiObjectiveTrainer

__all__ = ["ClampConfig", "ClampTrainer", "MultiObjectiveConfig", "MultiObjectiveTrainer"]
