"""What data weighting needs to know beyond the arguments that all trainers have."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from paretune.errors import InputError
from paretune.moo.bilevel.problem import HVP
from paretune.moo.solvers.multipliers import StepwiseMultipliers
from paretune.training.config import CommonConfig, read_keywords

if TYPE_CHECKING:
    Keywords = dict[str, Any] | str | None
else:  # as HfArgumentParser reads them, which knows no such unions
    Keywords = dict | str | None

WeightingMethod = Literal["lookahead", "wc_augmented", "wc_penalty"]
CriteriaWeights = Literal["chebyshev", "clamp"]

_ONLY = {
    "u": ("wc_augmented", "wc_penalty"),
    "v": ("lookahead", "wc_augmented", "wc_penalty"),
    "sigma": ("wc_augmented",),
    "tau": ("lookahead", "wc_augmented"),
    "ridge": ("wc_augmented", "wc_penalty"),
    "hvp": ("wc_augmented", "wc_penalty"),
    "independent_batches": ("wc_augmented", "wc_penalty"),
    "criteria_weights": ("lookahead",),
    "x_every": ("lookahead",),
    "mu": ("lookahead",),
    "beta": ("lookahead",),
}
"""Fields that some of the methods alone read."""


def reads(name: str, method: str = "lookahead") -> bool:
    """Whether a method reads the field of this name."""
    return method in _ONLY.get(name, (method,))


@dataclass
class DataWeightingConfig(CommonConfig):
    """Arguments of `DataWeightingTrainer`.

    ``preference`` weighs the validation criteria; ``learning_rate`` and all that belongs to the
    optimiser are those of the trained parameters; ``per_device_train_batch_size`` is the number of
    responses of every training set and of every criterion.
    """

    method: WeightingMethod = field(
        default="lookahead",
        metadata={
            "help": "lookahead: y is trained on the weighted sets alone, x moves along what the "
            "step just taken does to the criteria; wc_augmented and wc_penalty: the WC-Penalty "
            "paper's, which train y on the validation rows, too, as far as their penalties allow."
        },
    )
    x_learning_rate: float = field(
        default=0.1,
        metadata={
            "help": "Adam's step on x, the logits of the sets' weights, for each step of training; "
            "0 holds them, which is plain training on the weighted sets."
        },
    )
    x_warmup_ratio: float = field(
        default=0.0,
        metadata={
            "help": "Share of the steps at the start in which the weights stay and y is trained on "
            "the sets alone: for the paper's methods, a start near a solved lower level."
        },
    )
    initial_weights: Keywords = field(
        default=None,
        metadata={"help": "Weight of each training set at the start, by name; by default equal."},
    )
    weight_bounds: Keywords = field(
        default=None,
        metadata={"help": "Least and largest weight of sets, by name: {news: [0.1, 0.5]}."},
    )
    entropy: float = field(
        default=0.0,
        metadata={
            "help": "Pull of the weights towards equal ones, in units of alignments: that factor "
            "times the sum of w log w is added to what x minimises."
        },
    )
    held_out: float = field(
        default=0.5,
        metadata={
            "help": "Share of each criterion's validation rows, by prompt, that drives nothing and "
            "is what evaluate and polish report; 0 reports the rows that drive x."
        },
    )
    x_every: int | None = field(
        default=None,
        metadata={
            "help": "Steps of lookahead to each step of x, which is as many times as long; in the "
            "others no criterion is computed, so that they cost what plain training does. By "
            "default ceil(2 S / N) for N sets and S criteria, whose rows then add at most half of "
            "the sets' rows to a step."
        },
    )
    criteria_weights: CriteriaWeights = field(
        default="chebyshev",
        metadata={
            "help": "Which criteria lookahead pushes: by the multipliers of max p f, or by CLAMP's "
            "program on the Gramian of the criteria's gradients."
        },
    )
    mu: float = field(default=100.0, metadata={"help": "CLAMP's μ, for criteria_weights='clamp'."})
    beta: float = field(
        default=0.1, metadata={"help": "Of DPO, the loss of rows with chosen and rejected."}
    )
    u: float | None = field(
        default=None,
        metadata={"help": "Penalty on the lower level's gradient; by default estimated at step 1."},
    )
    v: float | None = field(
        default=None,
        metadata={"help": "Penalty on the spread of the criteria; by default estimated at step 1."},
    )
    sigma: float | None = field(
        default=None, metadata={"help": "Step of the adjoint, at most u; by default u / 20."}
    )
    tau: float = field(default=0.1, metadata={"help": "Step of the criteria's multipliers."})
    ridge: float = field(
        default=0.0,
        metadata={"help": "Twice the factor of the squared parameters in the training loss."},
    )
    hvp: HVP = field(
        default="finite_difference",
        metadata={
            "help": "Products with second derivatives: finite_difference (any attention, gradient "
            "checkpointing, the memory of a gradient), double, or auto: double where it works."
        },
    )
    independent_batches: bool = field(
        default=False,
        metadata={"help": "Batches of their own for gradients of criteria and products: unbiased."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.initial_weights = read_keywords("initial_weights", self.initial_weights)
        self.weight_bounds = read_keywords("weight_bounds", self.weight_bounds)
        for name, methods in _ONLY.items():
            default = type(self).__dataclass_fields__[name].default
            if not reads(name, self.method) and getattr(self, name) != default:
                raise InputError(
                    f"{name} has no effect with method={self.method!r}: leave it out, or choose "
                    f"method={' or '.join(map(repr, methods))}."
                )
        if not 0 <= self.x_warmup_ratio <= 1:
            raise InputError(
                f"x_warmup_ratio is a share of the steps, from 0 to 1, not {self.x_warmup_ratio:g}."
            )
        if self.criteria_weights != "clamp" and self.mu != 100.0:
            raise InputError("mu is CLAMP's: it needs criteria_weights='clamp'.")
        # What is out of range shows here, not after the data has been read.
        u = 1.0 if self.u is None else self.u
        sigma = u / 20 if self.sigma is None or self.u is None else self.sigma
        StepwiseMultipliers(2, u, 1.0 if self.v is None else self.v, sigma, self.tau)
        if self.fp16:
            raise InputError("fp16 loses small gradients of the lower level: use bf16=True.")
        if self.hvp == "double" and (
            self.gradient_checkpointing or self.gradient_accumulation_steps > 1
        ):
            raise InputError(
                "hvp='double' keeps the graph of the whole batch, so neither "
                "gradient_checkpointing nor gradient_accumulation_steps go with it: use "
                "hvp='finite_difference'."
            )
