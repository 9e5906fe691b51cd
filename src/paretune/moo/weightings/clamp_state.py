"""What CLAMP carries from step to step: the schedule of μ and the moving averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from paretune.errors import InputError
from paretune.moo.numerics.simplex_qp import read_floats
from paretune.moo.weightings.base import ActiveObjectives, Weights
from paretune.moo.weightings.clamp import Clamp
from paretune.options import option

if TYPE_CHECKING:
    from torch import Tensor

MuSchedule = Literal["constant", "linear", "cosine", "exponential"]
Mu = float | Literal["auto"]

_MAGNITUDE_DECAY = 0.9  # of gradients and losses: an average over about ten steps


@dataclass
class ClampOptions:
    """CLAMP as a recipe or a trainer is told of it, objectives by name.

    Not frozen, because the trainer's arguments inherit the fields, and transformers' are mutable.
    """

    mu: Mu = option(
        "auto",
        "μ of Eq. (6): weight of following p against reaching a Pareto-stationary point, in units "
        "of gradient² / loss (without unit if `scale_free`); the paper's is 100. auto: the μ at "
        "which equal losses and gradients get equal λ, from running means of both.",
    )
    mu_final: float | None = option(
        None, "μ at the end of training; needed by a schedule other than constant, and only there."
    )
    mu_schedule: MuSchedule = option(
        "constant",
        "How μ goes from `mu` to `mu_final`: constant, linear, cosine (half a cosine) or "
        "exponential (mu^(1-t) mu_final^t; both above 0).",
    )
    scale_free: bool = option(
        False, "Divide both terms of Eq. (6) by their running magnitudes, so that μ has no unit."
    )
    ideal: dict[str, float] | None = option(
        None,
        "z*, the best reachable loss of each objective (that of training it alone), subtracted "
        "from its losses.",
    )
    nadir: dict[str, float] | None = option(
        None,
        "n, the worst loss of each objective (DPO: ln 2); with `ideal`, losses are divided by the "
        "range n - z*.",
    )
    loss_ema: float = option(
        0.0,
        "Decay, in [0, 1), of the moving average of the losses in the linear term of Eq. (6); 0 "
        "takes the batch's own.",
    )

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise InputError for values that are out of range or do not fit together."""
        if self.mu == "auto":
            if self.mu_schedule != "constant" or self.mu_final is not None or self.scale_free:
                raise InputError(
                    "mu='auto' finds its own scale: leave out mu_schedule, mu_final and "
                    "scale_free, or give mu a number."
                )
            Clamp(0.0, _vector(self.ideal), _vector(self.nadir))
        else:
            Clamp(_number(self.mu), _vector(self.ideal), _vector(self.nadir))
        if not 0 <= self.loss_ema < 1:
            raise InputError(f"loss_ema must be in [0, 1), got {self.loss_ema}.")
        if self.mu_schedule not in get_args(MuSchedule):
            raise InputError(
                f"Unknown mu_schedule {self.mu_schedule!r}; "
                "there are constant, linear, cosine and exponential."
            )
        if (self.mu_final is None) != (self.mu_schedule == "constant"):
            raise InputError("Give mu_final together with a mu_schedule other than 'constant'.")
        if self.mu_final is not None:
            Clamp(self.mu_final)
            if self.mu_schedule == "exponential" and 0 in (self.mu, self.mu_final):
                raise InputError("An exponential mu_schedule needs mu and mu_final above 0.")


@dataclass
class ClampState(ClampOptions):
    """CLAMP over a training run: each `step` updates the averages and calls the pure `Clamp`.

    With `scale_free`, μ is multiplied by A / B, where A is the moving average (decay 0.9) of
    mean_m ‖d_m g_m‖² and B that of mean_m |d_m (f_m − z*_m)|, with d = p / (n − z*) or p. Scaling
    every loss by c then leaves λ* as it is. μ is 0 while B is 0.

    With mu="auto", μ = κ(p) A / B with d = 1 / (n − z*) or 1 in both averages, over the objectives
    of positive preference, and κ of `neutral_factor`. For M = 2 objectives of equal losses and
    gradient norms λ* is then (½, ½) at any p and any angle between the gradients: CLAMP begins as
    the preference-weighted gradient, and follows p by what the losses do.

    Attributes:
        ideal, nadir: z* and n as in `Clamp`, in the objectives' order.
    """

    ideal: Sequence[float] | None = None  # type: ignore[assignment]  # not by name
    nadir: Sequence[float] | None = None  # type: ignore[assignment]

    _losses: list[float] | None = field(default=None, init=False)
    _gradient_size: float | None = field(default=None, init=False)
    _loss_size: float | None = field(default=None, init=False)
    mu_now: float | None = field(default=None, init=False)
    """The μ that the last step used."""

    def step(
        self,
        gramian: Tensor,
        losses: Tensor,
        preference: Tensor | Sequence[float],
        progress: float = 0.0,
    ) -> Weights:
        """Weights for this step; progress in [0, 1] is the part of training that is done.

        Raises InputError as `Clamp` does; the state is then as it was before the call.
        """
        active = ActiveObjectives.read(gramian, losses, preference)
        if self._losses is not None and len(self._losses) != active.size:
            raise InputError(
                f"ClampState has averaged {len(self._losses)} objectives, "
                f"now there are {active.size}."
            )
        if not 0 <= progress <= 1:
            raise InputError(f"progress must be in [0, 1], got {progress}.")
        smoothed = read_floats(losses, "losses")
        if self._losses is not None:
            pairs = zip(self._losses, smoothed, strict=True)
            smoothed = [_average(old, new, self.loss_ema) for old, new in pairs]
        active = replace(active, losses=[smoothed[m] for m in active.indices])
        mu = self.mu_at(progress)
        gradient_size, loss_size = self._gradient_size, self._loss_size
        if self.scale_free or self.mu == "auto":
            scale, linear = Clamp(0.0, self.ideal, self.nadir).terms(active)
            if self.mu == "auto":  # free of p, as both of its averages are
                scale = [s / p for s, p in zip(scale, active.preference, strict=True)]
                linear = [t / p for t, p in zip(linear, active.preference, strict=True)]
                mu = neutral_factor(active.preference)
            squares = [s * s * active.gramian[m][m] for m, s in enumerate(scale)]
            gradient_size = _average(gradient_size, _mean(squares), _MAGNITUDE_DECAY)
            loss_size = _average(loss_size, _mean([abs(t) for t in linear]), _MAGNITUDE_DECAY)
            mu = mu * gradient_size / loss_size if loss_size > 0 else 0.0
        weights = Clamp(mu, self.ideal, self.nadir).combine(active)
        self._losses, self._gradient_size, self._loss_size = smoothed, gradient_size, loss_size
        self.mu_now = mu
        return weights

    def mu_at(self, progress: float) -> float:
        """μ of the schedule, before scaling, when `progress` in [0, 1] of training is done.

        1 for "auto".
        """
        start = 1.0 if isinstance(self.mu, str) else self.mu
        end = start if self.mu_final is None else self.mu_final
        if self.mu_schedule == "exponential":
            return float(start ** (1 - progress) * end**progress)
        if self.mu_schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * progress

    def state_dict(self) -> dict[str, Any]:
        """The moving averages, as plain numbers and lists (JSON keeps them bit for bit)."""
        return {
            "losses": None if self._losses is None else list(self._losses),
            "gradient_size": self._gradient_size,
            "loss_size": self._loss_size,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a state with the same settings."""
        losses = state["losses"]
        self._losses = None if losses is None else [float(loss) for loss in losses]
        self._gradient_size = state["gradient_size"]
        self._loss_size = state["loss_size"]


def _number(mu: object) -> float:
    if isinstance(mu, bool) or not isinstance(mu, int | float):
        raise InputError(f"mu must be a number or 'auto', got {mu!r}.")
    return float(mu)


def neutral_factor(preference: Sequence[float]) -> float:
    """κ(p): what μ is in units of ‖g‖² / f where it neither follows p nor undoes it.

    At equal losses f and orthogonal gradients of equal norm g, λ* is uniform if μ p_m f minus
    2 p_m² g² / M is the same for all m. For M = 2 that is so at μ = g² / f, whatever p; for more
    objectives κ is the least-squares fit, (2 / M) Cov(p, p²) / Var(p): 4 / M² at uniform p.

    >>> neutral_factor([0.9, 0.1]), neutral_factor([0.25] * 4)
    (1.0, 0.25)
    """
    size = len(preference)
    if size == 1:
        return 1.0
    mean, square = 1 / size, sum(p * p for p in preference) / size
    spread = sum((p - mean) ** 2 for p in preference)
    if spread < 1e-12 or size == 2:
        return 4 / size**2
    return 2 / size * sum((p - mean) * (p * p - square) for p in preference) / spread


def _vector(values: Mapping[str, float] | Sequence[float] | None) -> Sequence[float] | None:
    """In the order of the names, if there are names."""
    return [values[name] for name in sorted(values)] if isinstance(values, Mapping) else values


def _average(old: float | None, new: float, decay: float) -> float:
    """Exponential moving average that starts at the first value."""
    return new if old is None else decay * old + (1 - decay) * new


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
