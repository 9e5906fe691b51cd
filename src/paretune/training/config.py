"""What a multi-objective training run needs to know beyond ``transformers.TrainingArguments``."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from paretune.data.sampling import Sampling
from paretune.data.tokenization import Overlong
from paretune.errors import InputError
from paretune.files import several_processes
from paretune.gradients import Method
from paretune.logprobs import PackingMode
from paretune.losses import (
    CPO,
    DPO,
    IPO,
    AnyLoss,
    PreferenceLoss,
    SimPO,
    is_single_loss,
    losses_by_objective,
    plain_loss,
    read_loss,
)
from paretune.machine import join_mpi
from paretune.moo.preference import Preference
from paretune.moo.weightings import ClampOptions
from paretune.options import as_option
from paretune.training.arguments import check_fields, check_numbers
from paretune.training.trl_names import FIELDS, check_names

if TYPE_CHECKING:
    Loss = AnyLoss | dict[str, AnyLoss]
    Preferred = Mapping[str, float] | Sequence[float] | str | None
    Keywords = dict[str, Any] | str | None
    from paretune.moo.weightings.clamp_state import Mu
else:  # as HfArgumentParser reads them, which knows no such unions
    Loss = Mu = str
    Preferred = Keywords = dict | str | None


@dataclass
class CommonConfig(TrainingArguments):
    """Arguments that all trainers have.

    Defaults that differ from ``TrainingArguments``: ``learning_rate`` 1e-5, ``logging_steps`` 1,
    ``save_total_limit`` 2, ``remove_unused_columns`` False,
    ``restore_callback_states_from_checkpoint`` True (without it the patience of early stopping
    starts afresh on resume).
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Step of the optimiser."})
    logging_steps: float = field(default=1, metadata={"help": "Steps between log entries."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: batches are not columns."}
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata={"help": "Resume the patience of early stopping, too."}
    )
    preference: Preferred = field(
        default=None,
        metadata={
            "help": "Weight of each objective, p: non-negative, adding up to one. A mapping, a "
            "list in the objectives' order, or either as JSON."
        },
    )
    model_init_kwargs: Keywords = field(
        default=None,
        metadata={
            "help": "Of from_pretrained, for a model given by name: dtype, revision, "
            "attn_implementation, quantization_config, ..."
        },
    )
    chat_template_kwargs: Keywords = field(
        default=None,
        metadata={"help": "Values the chat template reads, such as enable_thinking of Qwen3."},
    )
    max_length: int | None = field(
        default=1024, metadata={"help": "Longest prompt plus response, in tokens."}
    )
    overlong: Overlong = field(
        default="drop", metadata={"help": "Longer rows: drop them, or truncate the responses."}
    )
    packing: PackingMode = field(
        default="auto",
        metadata={
            "help": "Batches without padding in which each prompt stands once. auto: where exact; "
            "on: an error where it is not; off: padded."
        },
    )
    max_nonfinite_steps: int = field(
        default=5, metadata={"help": "Stop after so many steps in a row with NaN or infinity."}
    )

    def __new__(cls, *args: Any, **given: Any) -> "CommonConfig":
        check_names(cls, given, FIELDS)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self)
        self.preference = read_preference(self.preference)
        self.model_init_kwargs = read_keywords("model_init_kwargs", self.model_init_kwargs)
        self.chat_template_kwargs = read_keywords("chat_template_kwargs", self.chat_template_kwargs)
        if self.metric_for_best_model is None and (
            self.load_best_model_at_end or _word(self.save_strategy) == "best"
        ):
            self.metric_for_best_model = "eval_chebyshev"
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # transformers takes everything to be better if greater that is not called a loss.
            self.greater_is_better = self.metric_for_best_model.endswith(("accuracy", "margin"))
        join_mpi()
        if several_processes() and not torch.accelerator.is_available():
            # Without it accelerate does not join the processes, and each would train for itself.
            self.use_cpu = True
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except InputError:
            raise
        except (ValueError, TypeError, ImportError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"These arguments do not work here: {first}") from error
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # it has no effect there, and torch warns of it
        if self.fp16 and self.device.type == "cpu":
            raise InputError("fp16 needs a GPU: on the CPU train in float32, or with bf16=True.")

    @property
    def evaluates(self) -> bool:
        """Whether there are evaluations during training."""
        return _word(self.eval_strategy) != "no" or self.eval_on_start

    def checked_preference(
        self, objectives: Mapping[str, Any], data: str = "training data"
    ) -> Preference:
        """The preference, in the objectives' order.

        Args:
            objectives: Rows of each objective.
            data: What holds the objectives, for messages.

        Raises:
            InputError: if it is missing, invalid, or names other objectives than the data.
        """
        if self.preference is None:
            raise InputError("args.preference is missing: give a weight for each objective.")
        if not isinstance(objectives, Mapping):
            raise InputError(
                f"The {data} must be a mapping from the name of each objective to its rows, not a "
                f"{type(objectives).__name__}."
            )
        names = list(objectives)
        given: Any = self.preference
        if not isinstance(given, Mapping):
            if len(given) != len(names):
                raise InputError(
                    f"The preference has {len(given)} weights, and the {data} has {len(names)} "
                    f"objectives: {', '.join(names)}."
                )
            given = dict(zip(names, given, strict=True))
        preference = Preference.of(given)
        for name in preference.names:
            if name not in names:
                raise InputError(
                    f"The preference names {name!r}, which the {data} does not have; its "
                    f"objectives are {', '.join(names)}."
                )
        missing = [name for name in names if name not in preference.names]
        if missing:
            raise InputError(
                f"The preference has no weight for {missing[0]!r}: give it one (0 leaves it out)."
            )
        return Preference.of({name: preference[name] for name in names})


@dataclass
class MultiObjectiveConfig(CommonConfig):
    """Arguments of `MultiObjectiveTrainer`.

    Every field is also a key of a recipe's ``train`` section.
    """

    loss: Loss = field(
        default="dpo",
        metadata={
            "help": "dpo, ipo, cpo or simpo (Table 1), or an object of paretune.losses; or a "
            "mapping that gives each objective its own, by name, with constants, or as an object."
        },
    )
    beta: float = as_option(DPO, "beta")
    gamma: float = as_option(SimPO, "gamma")
    nll_weight: float = as_option(CPO, "nll_weight")
    token_mean: bool = as_option(IPO, "token_mean")
    sampling: Sampling = field(
        default="auto",
        metadata={"help": "joint: same rows for every objective; independent: own rows each."},
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "A batch of more tokens goes through the model in parts of at most so many: "
            "memory is bounded, and the step is the same."
        },
    )
    gradients: Method = field(
        default="auto",
        metadata={
            "help": "one_pass; per_objective; layerwise: the gradients of all weights, of which a "
            "layer's are in memory at a time; or auto: one pass where exact, layerwise where all "
            "weights are trained and a step is one micro-batch."
        },
    )
    reference_cache: str | None = field(
        default=None,
        metadata={"help": "Folder to keep reference log-probabilities and tokenised pairs in."},
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Stop after so many evaluations without a lower Chebyshev-weighted validation "
            "loss, and keep the best adapter; 0 never stops."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self._read_losses()
        if self.gradients == "layerwise" and (
            self.gradient_accumulation_steps > 1 or self.tokens_per_batch is not None
        ):
            raise InputError(
                "gradients='layerwise' needs the graph of a whole step: it goes with neither "
                "gradient_accumulation_steps nor tokens_per_batch."
            )
        if self.early_stopping_patience > 0:
            if self.metric_for_best_model not in (None, "eval_chebyshev", "eval_weighted"):
                raise InputError(
                    "early_stopping_patience keeps the adapter of the lowest eval_chebyshev: leave "
                    f"out metric_for_best_model={self.metric_for_best_model!r}, or "
                    "early_stopping_patience."
                )
            if _word(self.eval_strategy) == "no":
                raise InputError(
                    "early_stopping_patience needs evaluations: set eval_strategy='steps' and "
                    "eval_steps (the CLAMP paper: 50)."
                )
            self.load_best_model_at_end = True
            self.metric_for_best_model = "eval_chebyshev"
            self.greater_is_better = False
            # Every evaluated adapter is kept until a better one is; the paper's interval.
            self.eval_steps = self.eval_steps or 50
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps
        super().__post_init__()

    @property
    def token_cache(self) -> Path | None:
        """The folder of tokenised pairs."""
        return None if self.reference_cache is None else Path(self.reference_cache) / "tokens"

    def preference_losses(self, objectives: Iterable[str]) -> dict[str, PreferenceLoss]:
        """The loss of every objective; `beta` and the other constants are those of losses by name.

        Raises:
            InputError: an objective without a loss, or a loss of no objective.
        """
        return losses_by_objective(self.loss, list(objectives), self._constants())

    def _read_losses(self) -> None:
        """Check the losses; what is kept is plain, to be written down with the other arguments."""
        constants = self._constants()
        if is_single_loss(self.loss):
            found = [read_loss(self.loss, constants)]
            if not isinstance(self.loss, str):
                self.loss = plain_loss(found[0])
        else:
            assert isinstance(self.loss, dict)
            found = [read_loss(each, constants) for each in self.loss.values()]
            self.loss = dict(zip(self.loss, map(plain_loss, found), strict=True))
        for name, value in constants.items():
            unused = not any(hasattr(loss, name) for loss in found)
            if unused and value != type(self).__dataclass_fields__[name].default:
                names = ", ".join(dict.fromkeys(loss.name for loss in found))
                raise InputError(f"{name} has no effect on the loss {names}: leave it out.")

    def _constants(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("beta", "gamma", "nll_weight", "token_mean")}


@dataclass
class ClampConfig(ClampOptions, MultiObjectiveConfig):
    """Arguments of `ClampTrainer`: CLAMP's Eq. 6 and options."""

    mu: Mu = as_option(ClampOptions, "mu")

    def __post_init__(self) -> None:
        given: Any = self.mu
        if isinstance(given, str) and given != "auto":
            with suppress(ValueError):  # a flag of a command line; another word is told below
                self.mu = float(given)
        MultiObjectiveConfig.__post_init__(self)
        check_numbers("ideal", self.ideal)
        check_numbers("nadir", self.nadir)
        self.check()  # what does not fit together shows here, not after the data has been scored


def read_preference(given: Any) -> dict[str, float] | list[float] | None:
    """A preference as a mapping or, where objectives are not named, a list of weights.

    Args:
        given: One of these, or it as text: JSON, or ``helpful=0.3,harmless=0.7``.

    Raises:
        InputError: it is something else, or a weight is not a finite number.
    """
    if isinstance(given, str):
        text = given.strip()
        try:
            given = json.loads(text) if text[:1] in ("{", "[") else _assignments(text)
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"preference is {given!r}: write it as JSON, such as "
                '\'{"helpful": 0.3, "harmless": 0.7}\' or [0.3, 0.7], or as '
                "helpful=0.3,harmless=0.7."
            ) from None
    if given is None:
        return None
    if isinstance(given, Mapping):
        check_numbers("The preference weight", given)
        return dict(given)
    weights = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(weights, list | tuple):
        raise InputError(f"preference must give a weight for each objective, not {given!r}.")
    check_numbers("The preference weight", {str(i + 1): w for i, w in enumerate(weights)})
    return list(weights)


def _assignments(text: str) -> dict[str, float]:
    """``a=0.3,b=0.7`` as a mapping; ValueError if it is not that."""
    pairs = [each.split("=") for each in text.replace(",", " ").split()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(text)
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise InputError(f"preference names an objective twice: {text!r}.")
    return {name: float(weight) for name, weight in pairs}


def read_keywords(name: str, given: Any) -> dict[str, Any] | None:
    """A mapping, which may be JSON text.

    Raises:
        InputError: it is something else.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise InputError(f"{name} is {given!r}, which is not a JSON object.") from None
    if given is None or isinstance(given, dict):
        return given
    raise InputError(f"{name} must be a mapping, not {given!r}.")


def _word(value: Any) -> str:
    """An enumeration of transformers, or the string it is given as."""
    return str(getattr(value, "value", value))
