"""The four preference losses of the CLAMP paper (Table 1) as pure functions of log-probabilities.

Every argument named ``chosen``, ``rejected``, ``ref_chosen`` or ``ref_rejected`` has shape ``(B,)``
and holds log-probabilities in nats, summed over the tokens of a response; lengths count those
tokens. Each function returns the ``(B,)`` losses of the pairs, unreduced and unweighted.

A new loss is a `PreferenceLoss`, its fields the constants, and a line in `LOSSES`. Importing this
file does not load torch, so that recipes can read the constants here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from paretune.errors import InputError
from paretune.options import load_kind, name_of, nearest, options_of

if TYPE_CHECKING:
    from torch import Tensor


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    offset: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """``-log sigmoid((beta * delta - offset) / temperature)``, delta the difference of log-ratios.

    Without the last two it is DPO (Rafailov 2023). With an offset ``(B,)``, the part of a pair's
    reward margin that other objectives account for, and the objective's weight as temperature, it
    is MODPO's loss (Zhou 2024).
    """
    logits = beta / temperature * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -_log_sigmoid(logits if offset is None else logits - offset / temperature)


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Tensor:
    """``(delta - 1 / (2 beta))²`` (Azar 2024).

    Table 1 sums log-ratios over tokens. With both lengths given, each log-ratio is divided by its
    response's length first, as TRL does; the loss is then in nats per token.
    """
    chosen_ratio, rejected_ratio = chosen - ref_chosen, rejected - ref_rejected
    if chosen_lengths is not None and rejected_lengths is not None:
        chosen_ratio, rejected_ratio = (
            chosen_ratio / chosen_lengths,
            rejected_ratio / rejected_lengths,
        )
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2


def cpo(
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    nll_weight: float = 1.0,
    chosen_lengths: Tensor | None = None,
) -> Tensor:
    """``-log sigmoid(beta * (chosen - rejected)) - nll_weight * chosen`` (Xu 2024).

    Table 1 sums the likelihood term over tokens, so it is hundreds of nats where the first term is
    below one. With ``chosen_lengths`` given it is the mean per token.
    """
    likelihood = chosen if chosen_lengths is None else chosen / chosen_lengths
    return -_log_sigmoid(beta * (chosen - rejected)) - nll_weight * likelihood


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    gamma: float,
) -> Tensor:
    """``-log sigmoid(beta * (mean chosen - mean rejected) - gamma)``, token means (Meng 2024)."""
    return -_log_sigmoid(beta * (chosen / chosen_lengths - rejected / rejected_lengths) - gamma)


def _log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


@dataclass(frozen=True)
class PreferenceLoss(ABC):
    """What an objective minimises: a loss with its constants.

    Attributes:
        beta: Inverse temperature of the preference model, scale of the implicit reward; > 0.

    Raises:
        InputError: for a constant outside its range.
    """

    needs_reference: ClassVar[bool] = False
    """Whether the loss compares with a reference model."""

    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise InputError(f"The loss's beta must be positive and finite, not {self.beta}.")

    @abstractmethod
    def __call__(self, chosen: Scored, rejected: Scored, offset: Tensor | None = None) -> Tensor:
        """The ``(B,)`` losses of the pairs of responses; `offset` ``(B,)`` is for DPO alone."""

    @abstractmethod
    def reward(self, response: Scored) -> Tensor:
        """The implicit rewards of responses in units of beta, ``(B,)``."""

    def margins(self, chosen: Scored, rejected: Scored) -> Tensor:
        """Implicit rewards of the chosen responses less those of the rejected ones, ``(B,)``."""
        return self.beta * (self.reward(chosen) - self.reward(rejected))

    def _no_offset(self, offset: Tensor | None) -> None:
        if offset is not None:
            raise InputError(f"Offsets of pairs are for the loss 'dpo', not {self.name!r}.")

    @property
    def name(self) -> str:
        """Its name in `LOSSES`."""
        return name_of(LOSSES, self) or type(self).__name__


@dataclass(frozen=True)
class DPO(PreferenceLoss):
    """DPO: the reward is the log-ratio to the reference, summed over tokens.

    Attributes:
        temperature: The logits are divided by it (MODPO: the weight of the objective).
    """

    needs_reference = True
    temperature: float = field(default=1.0, metadata={"key": None})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise InputError(f"The loss's temperature must be positive, not {self.temperature}.")

    def __call__(self, chosen: Scored, rejected: Scored, offset: Tensor | None = None) -> Tensor:
        references = chosen.required_reference, rejected.required_reference
        return dpo(chosen.logps, rejected.logps, *references, self.beta, offset, self.temperature)

    def reward(self, response: Scored) -> Tensor:
        return response.logps - response.required_reference


@dataclass(frozen=True)
class IPO(PreferenceLoss):
    """IPO: the reward is the log-ratio to the reference.

    Attributes:
        token_mean: Mean over the response's tokens in place of sums.
    """

    needs_reference = True
    token_mean: bool = False

    def __call__(self, chosen: Scored, rejected: Scored, offset: Tensor | None = None) -> Tensor:
        self._no_offset(offset)
        references = chosen.required_reference, rejected.required_reference
        lengths = (chosen.lengths, rejected.lengths) if self.token_mean else (None, None)
        return ipo(chosen.logps, rejected.logps, *references, self.beta, *lengths)

    def reward(self, response: Scored) -> Tensor:
        ratio = response.logps - response.required_reference
        return ratio / response.lengths if self.token_mean else ratio


@dataclass(frozen=True)
class CPO(PreferenceLoss):
    """CPO: the reward is the log-probability, summed over tokens.

    Attributes:
        nll_weight: Weight of the likelihood of the chosen response.
        token_mean: Mean over the response's tokens in place of sums, in the likelihood.
    """

    nll_weight: float = 1.0
    token_mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.nll_weight < math.inf:
            raise InputError(
                f"The loss's nll_weight must be finite and at least 0, not {self.nll_weight}."
            )

    def __call__(self, chosen: Scored, rejected: Scored, offset: Tensor | None = None) -> Tensor:
        self._no_offset(offset)
        lengths = chosen.lengths if self.token_mean else None
        return cpo(chosen.logps, rejected.logps, self.beta, self.nll_weight, lengths)

    def reward(self, response: Scored) -> Tensor:
        return response.logps


@dataclass(frozen=True)
class SimPO(PreferenceLoss):
    """SimPO: the reward is the log-probability per token.

    Attributes:
        gamma: Target margin, taken off the difference of rewards; at least 0.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < math.inf:
            raise InputError(f"The loss's gamma must be finite and at least 0, not {self.gamma}.")

    def __call__(self, chosen: Scored, rejected: Scored, offset: Tensor | None = None) -> Tensor:
        self._no_offset(offset)
        sides = chosen.logps, rejected.logps, chosen.lengths, rejected.lengths
        return simpo(*sides, self.beta, self.gamma)

    def reward(self, response: Scored) -> Tensor:
        return response.logps / response.lengths


LOSSES: dict[str, type[PreferenceLoss]] = {"dpo": DPO, "ipo": IPO, "cpo": CPO, "simpo": SimPO}
"""The losses by name."""

AnyLoss = str | PreferenceLoss | Mapping[str, Any]
"""A loss by name, with its constants, or as a mapping with ``name`` and constants."""


def read_loss(given: AnyLoss, constants: Mapping[str, Any] | None = None) -> PreferenceLoss:
    """The loss that is meant.

    Args:
        constants: Taken, where the loss has them, in place of its defaults.

    Raises:
        InputError: an unknown loss or constant, or a value outside its range.
    """
    if isinstance(given, PreferenceLoss):
        return given
    named = {"name": given} if isinstance(given, str) else dict(given)
    name = named.pop("name", "dpo")
    kind = load_kind(LOSSES, name, "loss")
    known = {each.name: each for each in options_of(kind)}
    for key in named:
        if key not in known:
            raise InputError(f"The loss {name!r} has no constant {key!r}{nearest(key, known)}")
    own = {key: value for key, value in (constants or {}).items() if key in known}
    try:
        loss: PreferenceLoss = kind(**own | named)
    except TypeError as error:
        raise InputError(f"The constants of the loss {name!r} do not fit: {error}.") from None
    return loss


def is_single_loss(given: Any) -> bool:
    """Whether it is one loss, not a mapping with one for each objective."""
    if not isinstance(given, Mapping):
        return True
    constants = {each.name for kind in LOSSES.values() for each in options_of(kind)}
    each = given.values()
    return not (
        all(isinstance(v, str | Mapping | PreferenceLoss) for v in each)
        and given.keys().isdisjoint({"name", *constants})
    )


def losses_by_objective(
    given: AnyLoss | Mapping[str, AnyLoss],
    objectives: Collection[str],
    constants: Mapping[str, Any] | None = None,
) -> dict[str, PreferenceLoss]:
    """The loss of every objective, from one for all or a mapping with one for each.

    Raises:
        InputError: an objective that there is not, or one without a loss; see `read_loss`.
    """
    if is_single_loss(given):
        return dict.fromkeys(objectives, read_loss(given, constants))
    assert isinstance(given, Mapping)
    for name in given:
        if name not in objectives:
            near = nearest(name, dict.fromkeys(objectives))
            raise InputError(f"The loss is given for {name!r}, which is no objective{near}")
    if missing := [name for name in objectives if name not in given]:
        raise InputError(f"The loss of objective {missing[0]!r} is missing: give every one a loss.")
    return {name: read_loss(given[name], constants) for name in objectives}


def plain_loss(loss: PreferenceLoss) -> dict[str, Any]:
    """Its name and constants, from which `read_loss` makes it again."""
    return {"name": loss.name, **asdict(loss)}


@dataclass(frozen=True)
class Scored:
    """Responses as a loss sees them, each field of shape ``(B,)``.

    Attributes:
        logps: Log-probabilities under the policy, summed over response tokens.
        lengths: Numbers of response tokens.
        reference: The same sums under the reference model; None if there is none.
    """

    logps: Tensor
    lengths: Tensor
    reference: Tensor | None = None

    @property
    def required_reference(self) -> Tensor:
        if self.reference is None:
            raise InputError("The loss needs reference log-probabilities, and none were given.")
        return self.reference

    def __getitem__(self, index: Tensor) -> Scored:
        values = (getattr(self, field.name) for field in fields(self))
        return Scored(*(None if value is None else value[index] for value in values))  # type: ignore[arg-type]
