"""The sections of a comparison's methods: what each of them can be told."""

from typing import Literal

from pydantic import Field, model_validator

from paretune.recipes.rewards import RewardSource
from paretune.recipes.section import Positive, Section

PreferenceMap = Literal["l2", "linf", "linear"]
"""From weights to the scores that RiC asks for."""

_PPO_ONLY = (
    "kl_target",
    "kl_horizon",
    "value_clip",
    "value_weight",
    "discount",
    "gae_lambda",
    "stop_kl",
)


class Morlhf(Section):
    """MORLHF. Table 8 of the CLAMP paper, else RiC's (docs/methods/morlhf.md)."""

    backend: Literal["ppo", "rloo"] = "ppo"
    """`ppo` (our own) or `rloo` (TRL's RLOOTrainer, which has no value function)."""
    rewards: dict[str, RewardSource] | None = None
    """What scores each objective; null is what the recipe's `rewards` says, or the demo data's own
    scorers."""
    steps: Positive | None = None
    """Batches of answers to learn from; null goes on until the tokens that every method of a
    comparison may send forward and backward are spent."""
    batch_size: Positive = 64
    """Answers in a batch, each to another prompt (RLOO: two to a prompt)."""
    mini_batch_size: Positive = 8
    """Answers to an update of the weights; answers are scored in groups of this size, too."""
    epochs: Positive = 4
    """Passes over each batch."""
    max_new_tokens: Positive = 256
    """Longest answer."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the sampling, and of the policy and the reference whose probabilities are compared."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of Adam, constant."""
    max_grad_norm: float = Field(default=0.5, gt=0)
    """Longer gradients are cut to this norm."""
    kl_coefficient: float = Field(default=0.2, ge=0)
    """Weight, at first, of the divergence from the reference in the reward."""
    kl_target: float | None = Field(default=3.0, gt=0)
    """Divergence of an answer, in nats, to which that weight is steered; null keeps the weight."""
    kl_horizon: float = Field(default=10_000.0, gt=0)
    """Answers in which the weight changes by at most a fifth."""
    clip: float = Field(default=0.2, gt=0)
    """Ratios of probabilities beyond 1 ± this bring no further gain."""
    value_clip: float = Field(default=0.2, gt=0)
    """How far a value may move, with gain, from what it was when the batch was sampled."""
    value_weight: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """γ of a token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Taken off the reward of an answer that is empty or cut at `max_new_tokens`."""
    stop_kl: float | None = Field(default=1.5, gt=0)
    """A batch is left once the policy is this far from the one that sampled it, in nats a token;
    null never leaves early."""
    save_steps: Positive = 10
    """Batches between checkpoints."""

    @model_validator(mode="after")
    def _sizes(self) -> "Morlhf":
        if self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of mini_batch_size "
                f"{self.mini_batch_size}"
            )
        if self.backend == "rloo" and self.mini_batch_size % 2:
            raise ValueError("mini_batch_size must be even for rloo, which answers prompts twice")
        if self.backend == "rloo" and self.steps is None:
            raise ValueError("rloo needs steps, the number of batches")
        for name in _PPO_ONLY if self.backend == "rloo" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"rloo has no use for {name}")
        return self


class Modpo(Section):
    """MODPO (Zhou et al., 2024): the margins of the other objectives in one preference loss."""

    objective: str | None = None
    """Whose pairs to train on; null takes, at each p, the objective of largest weight."""
    margins: Literal["implicit", "scorer"] = "implicit"
    """Rewards of the other objectives: `implicit` in adapters trained on each alone, or of the
    recipe's answer scorers, standardised on the training responses."""
    beta: float | None = Field(default=None, gt=0)
    """β of the loss; null is the recipe's. The implicit rewards are in units of `loss.beta`."""


class RewardedSoups(Section):
    """Rewarded Soups (Ramé et al., 2023): adapters of single objectives, averaged by p."""

    adapters: Literal["preference", "ppo"] = "preference"
    """How the adapters are trained: on preference pairs, or by `ppo` as in the paper."""
    average: Literal["exact", "raw"] = "exact"
    """What is averaged: the changes of the weights, B A, or `raw` B and A each, as the authors
    do."""
    ppo: Morlhf = Morlhf()
    """Settings of the PPO, for those adapters."""


class Ric(Section):
    """Rewards-in-Context (Yang et al., 2024). The defaults are those of the authors' code."""

    rewards: dict[str, RewardSource] | None = None
    """What scores each objective; null is what the recipe's `rewards` says, or the demo data's own
    scorers."""
    preference_map: PreferenceMap = "l2"
    """From weights p to scores to ask for: `l2` (p / ‖p‖₂ of the range, as in the authors'
    evaluation), `linf` (the largest weight gets the top, the others M p of the range) or `linear`
    (p of the range)."""
    batch_size: Positive = 8
    """Answers to an update of the weights."""
    offline_steps: Positive = 20_000
    """Updates on the training answers."""
    offline_learning_rate: float = Field(default=1.414e-4, gt=0)
    """Of AdamW, falling linearly to 0."""
    online_rounds: int = Field(default=1, ge=0)
    """Times that the model answers, and imitates its best answers."""
    online_steps: Positive = 4_000
    """Updates in each round."""
    online_learning_rate: float = Field(default=1e-5, gt=0)
    """Of AdamW, constant."""
    online_prompts: Positive = 20_000
    """Training prompts answered in each round, drawn with replacement if there are fewer."""
    offline_mixed: int = Field(default=10_000, ge=0)
    """Most training answers that are imitated along with the online ones."""
    keep_quantile: float = Field(default=0.7, ge=0, lt=1)
    """Answers are imitated online if one of their scores reaches this quantile of all."""
    max_length: Positive = 512
    """Longest prompt and answer in tokens; longer ones are left out."""
    max_new_tokens: Positive = 128
    """Longest answer of the model; answers cut there are left out."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the sampling."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus."""
    generation_batch_size: Positive = 32
    """Prompts answered at a time."""
    save_steps: Positive = 100
    """Updates between checkpoints."""


OPTIONS: dict[str, type[Section]] = {
    "modpo": Modpo,
    "rewarded_soups": RewardedSoups,
    "morlhf": Morlhf,
    "ric": Ric,
}
