"""CLAMP: multi-gradient alignment steered by a weighted Chebyshev term (Algorithm 1, Eq. 6)."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from paretune.errors import InputError
from paretune.moo.weightings import ClampOptions, ClampState, Weights
from paretune.training.config import ClampConfig
from paretune.training.trainer import MultiObjectiveTrainer, Pairs

logger = logging.getLogger(__name__)

_MOSTLY = 0.5  # of the steps


class ClampTrainer(MultiObjectiveTrainer):
    """Trains with CLAMP: ``λ* = argmin ‖G(p∘λ)‖² − μ λᵀ(p∘F)``, then a step along ``G(p∘λ*)``.

    Arguments as for `MultiObjectiveTrainer`, with a
    `ClampConfig`.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        args: ClampConfig,
        train_dataset: Pairs,
        eval_dataset: Pairs | None = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        on_scored: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(
            model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            peft_config,
            callbacks=callbacks,
            optimizers=optimizers,
            on_scored=on_scored,
        )
        options: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(ClampOptions)}
        for name in ("ideal", "nadir"):
            options[name] = self._per_objective(options[name], name)
        self.clamp = ClampState(**options)

    def _per_objective(self, values: dict[str, float] | None, name: str) -> list[float] | None:
        if values is None:
            return None
        missing = [objective for objective in self.objectives if objective not in values]
        if missing:
            raise InputError(f"{name} has no value for objective {missing[0]!r}.")
        return [values[objective] for objective in self.live]

    def weigh(self, gramian: Tensor, losses: Tensor, preference: Tensor) -> Weights:
        weights = self.clamp.step(gramian, losses, preference, self.progress)
        assert self.clamp.mu_now is not None
        self._step_logs["clamp/mu"].append(self.clamp.mu_now)
        return weights

    def train(self, *args: Any, **named: Any) -> Any:
        """As the base class does; warns where λ* was mostly at a vertex."""
        result = super().train(*args, **named)
        share = self.totals.summary()["vertex_share"]
        if share > _MOSTLY and len(self.live) > 1:
            logger.warning(
                "λ* was at a vertex in %.0f %% of the steps: this point is nearly that of training "
                "on one objective alone. mu='auto' keeps λ* inside.",
                100 * share,
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "clamp": self.clamp.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.clamp.load_state_dict(state["clamp"])
