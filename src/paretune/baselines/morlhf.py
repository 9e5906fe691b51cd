"""MORLHF: reinforcement learning on linearly scalarised, normalised rewards, a run for each p."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from paretune.baselines.context import Baseline, Context
from paretune.baselines.reward import (
    ScalarReward,
    Source,
    normalised_scorers,
    section_digest,
)
from paretune.data.messages import distinct_prompts
from paretune.errors import InputError
from paretune.files import move, sync, write_jsonl
from paretune.moo.preference import Preference
from paretune.recipes.rewards import RewardSource
from paretune.recipes.section import Positive

if TYPE_CHECKING:
    from paretune.baselines.ppo import PPO

logger = logging.getLogger(__name__)

_PPO_ONLY = (
    "kl_target",
    "kl_horizon",
    "value_clip",
    "value_weight",
    "discount",
    "gae_lambda",
    "stop_kl",
)


class Morlhf(Baseline):
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

    def train(self, context: Context, preferences: Sequence[Preference]) -> None:
        """Train the adapter of every preference that has none yet.

        Each folder gets the adapter without the value head, ``log.jsonl`` and ``training.json``.

        Raises:
            InputError: a recipe without adapter, or an objective without a scorer.
            TrainingStoppedError: a loss that is not finite.
        """
        pending = context.untrained(preferences)
        live = {name: None for preference in pending for name in preference.live}
        scorers = normalised_scorers(context, self.rewards, list(live))
        for preference in pending:
            folder = context.point(preference)
            folder.mkdir(parents=True, exist_ok=True)
            _train_point(context, preference, scorers, self, folder)


def single_objective(context: Context, objective: str, options: Morlhf) -> Path:
    """The folder below `Context.shared` of the adapter trained on one reward alone, for soups.

    It is named by the objective, the backend, the seed and a digest of the options, and trained
    by whoever needs it first.
    """
    from paretune.baselines.single_objective import corner

    preference = corner(objective, context.recipe.data.objectives)

    def build(folder: Path) -> None:
        scorers = normalised_scorers(context, options.rewards, [objective])
        _train_point(context, preference, scorers, options, folder)

    return context.once(
        f"{options.backend}-{objective}-seed{context.seed}-{section_digest(options)}", build
    )


def _train_point(
    context: Context,
    preference: Preference,
    sources: Mapping[str, Source],
    options: Morlhf,
    folder: Path,
) -> None:
    if context.recipe.lora is None:
        raise InputError(
            "MORLHF trains an adapter, without which the model is its reference: give the recipe "
            "a 'lora' section."
        )
    from paretune.experiment.train_point import free_memory

    context.report("prepare", 0.0)
    reward = ScalarReward(
        {name: sources[name].scorer for name in preference.live}, dict(preference)
    )
    needed = [sources[name].key for name in preference.live]
    identity = {
        "preference": dict(preference),
        "rewards": needed,
        "options": options.model_dump(mode="json", exclude={"rewards", "steps", "save_steps"}),
        "seed": context.seed,
    }
    train = context.splits["train"].pairs.values()
    prompts = distinct_prompts(prompt for pairs in train for prompt in pairs["prompt"])
    if options.backend == "rloo":
        from paretune.baselines.rloo import train_rloo

        train_rloo(context, prompts, reward, options, folder, needed, identity)
    else:
        _train_ppo(context, preference, prompts, reward, options, folder, needed, identity)
    free_memory()


def _train_ppo(
    context: Context,
    preference: Preference,
    prompts: Sequence[Any],
    reward: ScalarReward,
    options: Morlhf,
    folder: Path,
    needed: Sequence[str],
    identity: Mapping[str, Any],
) -> None:
    import torch
    from peft import get_peft_model
    from transformers import set_seed

    from paretune.baselines.budget import policy_tokens
    from paretune.baselines.ppo import PPO
    from paretune.experiment.ground import rows_digest
    from paretune.experiment.resume import check_trained
    from paretune.experiment.setup import lora_config, recomputes
    from paretune.experiment.train_point import save_weights
    from paretune.models import gpu, load_model_and_tokenizer
    from paretune.training.callbacks import weight_sums
    from paretune.training.checks import check_weights
    from paretune.training.reference_cache import model_digest

    base, tokenizer = load_model_and_tokenizer(**context.recipe.model.model_dump(), device=gpu())
    check_weights(base)
    set_seed(context.seed)  # the adapter is drawn
    model = get_peft_model(base, lora_config(context.recipe))
    budget = 0 if options.steps else policy_tokens(context, preference, tokenizer)
    again = recomputes(context.recipe)
    ppo = PPO(model, tokenizer, prompts, reward, options, context.seed, budget, again)
    checkpoint, fresh = folder / "checkpoint.pt", weight_sums(model)
    asked = rows_digest([{"prompt": prompt} for prompt in prompts])
    identity = {**identity, "budget": budget, "model": model_digest(model), "prompts": asked}
    _resume(ppo, checkpoint, identity)
    while ppo.progress < 1:
        context.report("train", ppo.progress)
        ppo.step()
        write_jsonl(folder / "log.jsonl", ppo.log)
        if ppo.done % options.save_steps == 0:
            state = {**ppo.state_dict(), "identity": json.dumps(identity)}
            torch.save(state, folder / "checkpoint.partial")
            sync(folder / "checkpoint.partial")
            move(folder / "checkpoint.partial", checkpoint)
    context.report("train", 1.0)
    check_trained(model, fresh, ppo.done)
    save_weights(model, tokenizer, folder)
    context.finish(folder, ppo.done, ppo.spend, needed, kl=ppo.log[-1]["kl"])
    checkpoint.unlink(missing_ok=True)


def _resume(ppo: "PPO", checkpoint: Path, identity: Mapping[str, Any]) -> None:
    """Go on from a checkpoint, if there is one; one that is damaged is passed over.

    Raises:
        InputError: it is of another training.
    """
    import torch

    from paretune.experiment.resume import check_identity

    if not checkpoint.exists():
        return
    try:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        known = json.loads(saved.pop("identity", "null"))
    except Exception as error:  # whatever random bytes make of a reader
        logger.warning(
            "The checkpoint '%s' is damaged (%s): training starts anew.",
            checkpoint,
            type(error).__name__,
        )
        return
    check_identity(checkpoint, known, json.loads(json.dumps(identity)))
    ppo.load_state_dict(saved)
