"""MORLHF: reinforcement learning on linearly scalarised, normalised rewards, a run for each p.

Nothing here imports torch until there is something to train: recipes are read with `Options`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from paretune.baselines.job import Job, trained
from paretune.errors import InputError
from paretune.evaluation.scorers import Normalised, Scorer, normalise
from paretune.files import move, read_json, sync, write_json, write_text
from paretune.moo.preference import Preference
from paretune.recipes.rewards import RewardSource
from paretune.recipes.section import Positive, Section
from paretune.spend import Watch

_PPO_ONLY = (
    "kl_target",
    "kl_horizon",
    "value_clip",
    "value_weight",
    "discount",
    "gae_lambda",
    "stop_kl",
)


class Options(Section):
    """Settings of Table 8 of the CLAMP paper, and where it says nothing RiC's (docs/morlhf.md)."""

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
    def _sizes(self) -> "Options":
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


def train(job: Job, preferences: Sequence[Preference], options: Options) -> None:
    """Train the adapter of every preference that has none yet.

    Each folder gets the adapter without the value head, ``log.jsonl`` and ``training.json``.

    Raises:
        InputError: a recipe without adapter, or an objective without a scorer.
        TrainingStoppedError: a loss that is not finite.
    """
    pending = [each for each in preferences if not trained(job.point(each))]
    live = {name: None for preference in pending for name in preference.live}
    scorers = normalised_scorers(job, options.rewards, list(live))
    for preference in pending:
        folder = job.point(preference)
        folder.mkdir(parents=True, exist_ok=True)
        _train_point(job, preference, scorers, options, folder)


def single_objective(job: Job, objective: str, options: Options) -> Path:
    """The folder below `Job.shared` of the adapter trained on one reward alone, for soups.

    It is named by the objective, the backend, the seed and a digest of the options, and trained
    by whoever needs it first.
    """
    from paretune.baselines.single import corner

    preference = corner(objective, job.recipe.data.objectives)

    def build(folder: Path) -> None:
        scorers = normalised_scorers(job, options.rewards, [objective])
        _train_point(job, preference, scorers, options, folder)

    return job.once(
        f"{options.backend}-{objective}-seed{job.seed}-{section_digest(options)}", build
    )


class Source(NamedTuple):
    """What scores an objective, and the key (see `Job.once`) of its normalisation constants."""

    scorer: Normalised
    key: str


def normalised_scorers(
    job: Job, rewards: Mapping[str, RewardSource] | None, objectives: Sequence[str]
) -> dict[str, Source]:
    """What scores these objectives, normalised on the training answers once for all points.

    Raises:
        InputError: an objective that nothing scores.
    """
    from paretune.rewards.sources import build_scorers, recipe_scorers, recipe_sources

    sources = recipe_sources(job.recipe) if rewards is None else rewards
    for name in objectives:
        if name not in sources:
            raise InputError(
                f"Nothing scores the objective {name!r}: name a scorer or a reward model under "
                "'rewards', in the recipe or in the method's options (docs/morlhf.md)."
            )
    sources = {name: source for name, source in sources.items() if name in objectives}
    if rewards is None:
        scorers = {name: recipe_scorers(job.recipe)[name] for name in sources}
    else:
        trained_here = Path(job.recipe.output_dir) / "rewards"
        scorers = build_scorers(sources, trained_here, _device())
    result = {}
    for name, scorer in scorers.items():

        def build(folder: Path, scorer: Scorer = scorer) -> None:
            watch, before = Watch(), tokens_read(scorer)
            constants = normalise(scorer, job.splits["train"]).constants()
            write_json(folder / "constants.json", constants)
            job.finish(folder, 0, watch.spend(reward_tokens=tokens_read(scorer) - before))

        key = f"normalisation-{name}-{section_digest(sources[name])}"
        constants = read_json(job.once(key, build) / "constants.json")
        result[name] = Source(Normalised(scorer, **constants), key)
    return result


@dataclass
class ScalarReward:
    """``Σ_k p_k (r_k − mean_k) / std_k`` of answers, and the means of its parts for the log.

    Attributes:
        scorers: By objective; those without weight are left out.
        weights: p, by objective.
    """

    scorers: Mapping[str, Normalised]
    weights: Mapping[str, float]

    def __call__(
        self, prompts: Sequence[Any], texts: Sequence[str]
    ) -> tuple[list[float], dict[str, float]]:
        before, total, entry = self._tokens(), [0.0] * len(texts), {}
        for name, scorer in self.scorers.items():
            scores = scorer.score(prompts, texts)
            mean = sum(scores) / len(scores)
            entry[f"{name}/normalised"] = mean
            entry[f"{name}/score"] = scorer.mean + scorer.std * mean
            total = [t + self.weights[name] * s for t, s in zip(total, scores, strict=True)]
        return total, {**entry, "reward_tokens": float(self._tokens() - before)}

    def _tokens(self) -> int:
        return sum(tokens_read(scorer.scorer) for scorer in self.scorers.values())


def tokens_read(scorer: Scorer) -> int:
    """How many tokens a reward model has read so far; a plain function reads none."""
    return int(getattr(scorer, "tokens", 0))


def _train_point(
    job: Job,
    preference: Preference,
    sources: Mapping[str, Source],
    options: Options,
    folder: Path,
) -> None:
    if job.recipe.lora is None:
        raise InputError(
            "MORLHF trains an adapter, without which the model is its reference: give the recipe "
            "a 'lora' section."
        )
    from paretune.point import free_memory

    job.report("prepare", 0.0)
    reward = ScalarReward(
        {name: sources[name].scorer for name in preference.live}, dict(preference)
    )
    needed = [sources[name].key for name in preference.live]
    distinct = {
        json.dumps(prompt): prompt
        for pairs in job.splits["train"].pairs.values()
        for prompt in pairs["prompt"]
    }
    prompts = list(distinct.values())
    if options.backend == "rloo":
        from paretune.baselines.rloo import train_rloo

        train_rloo(job, prompts, reward, options, folder, needed)
    else:
        _train_ppo(job, preference, prompts, reward, options, folder, needed)
    free_memory()


def section_digest(section: Section) -> str:
    """Eight hexadecimal digits that differ where settings differ."""
    return hashlib.sha256(section.model_dump_json().encode()).hexdigest()[:8]


def _device() -> str | None:
    import torch

    return "cuda" if torch.cuda.is_available() else None


def _train_ppo(
    job: Job,
    preference: Preference,
    prompts: Sequence[Any],
    reward: ScalarReward,
    options: Options,
    folder: Path,
    needed: Sequence[str],
) -> None:
    import torch
    from peft import get_peft_model
    from transformers import set_seed

    from paretune.baselines.budget import policy_tokens
    from paretune.baselines.ppo import PPO
    from paretune.experiment import lora_config
    from paretune.models import load_model_and_tokenizer
    from paretune.point import save_weights

    base, tokenizer = load_model_and_tokenizer(**job.recipe.model.model_dump(), device=_device())
    set_seed(job.seed)  # the adapter is drawn
    model = get_peft_model(base, lora_config(job.recipe))
    budget = 0 if options.steps else policy_tokens(job, preference, tokenizer)
    ppo = PPO(model, tokenizer, prompts, reward, options, job.seed, budget)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        ppo.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    while ppo.progress < 1:
        job.report("train", ppo.progress)
        ppo.step()
        write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in ppo.log))
        if ppo.done % options.save_steps == 0:
            torch.save(ppo.state_dict(), folder / "checkpoint.partial")
            sync(folder / "checkpoint.partial")
            move(folder / "checkpoint.partial", checkpoint)
    job.report("train", 1.0)
    save_weights(model, tokenizer, folder)
    job.finish(folder, ppo.done, ppo.spend, needed, kl=ppo.log[-1]["kl"])
    checkpoint.unlink(missing_ok=True)
