"""A factory of small trainers."""

from pathlib import Path
from typing import Any

import pytest

from paretune import ClampConfig, ClampTrainer

HALVES = {"one": 0.5, "two": 0.5}


@pytest.fixture
def clamp(tmp_path: Path, tiny_lora: Any, tokenizer: Any, random_pairs: Any) -> Any:
    """A factory of small CLAMP trainers."""

    def make(
        preference: dict[str, float] = HALVES,
        train: Any = None,
        evaluation: Any = None,
        model: Any = None,
        folder: str = "run",
        callbacks: Any = None,
        **options: Any,
    ) -> ClampTrainer:
        settings: dict[str, Any] = {
            "mu": 100.0,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 3,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        args = ClampConfig(
            output_dir=str(tmp_path / folder), preference=preference, **{**settings, **options}
        )
        return ClampTrainer(
            tiny_lora(fresh=True, dropout=0.1) if model is None else model,
            args,
            random_pairs(tuple(preference)) if train is None else train,
            evaluation,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make
