"""MORLHF: reinforcement learning on linearly scalarised, normalised rewards, a run for each p."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.baselines.context import Job, trained
from paretune.baselines.reward import (
    ScalarReward,
    Source,
    device,
    normalised_scorers,
    section_digest,
)
from paretune.data.messages import distinct_prompts
from paretune.errors import InputError
from paretune.files import move, sync, write_jsonl
from paretune.moo.preference import Preference
from paretune.recipes.methods import Morlhf


def train(job: Job, preferences: Sequence[Preference], options: Morlhf) -> None:
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


def single_objective(job: Job, objective: str, options: Morlhf) -> Path:
    """The folder below `Job.shared` of the adapter trained on one reward alone, for soups.

    It is named by the objective, the backend, the seed and a digest of the options, and trained
    by whoever needs it first.
    """
    from paretune.baselines.single_objective import corner

    preference = corner(objective, job.recipe.data.objectives)

    def build(folder: Path) -> None:
        scorers = normalised_scorers(job, options.rewards, [objective])
        _train_point(job, preference, scorers, options, folder)

    return job.once(
        f"{options.backend}-{objective}-seed{job.seed}-{section_digest(options)}", build
    )


def _train_point(
    job: Job,
    preference: Preference,
    sources: Mapping[str, Source],
    options: Morlhf,
    folder: Path,
) -> None:
    if job.recipe.lora is None:
        raise InputError(
            "MORLHF trains an adapter, without which the model is its reference: give the recipe "
            "a 'lora' section."
        )
    from paretune.experiment.keep import free_memory

    job.report("prepare", 0.0)
    reward = ScalarReward(
        {name: sources[name].scorer for name in preference.live}, dict(preference)
    )
    needed = [sources[name].key for name in preference.live]
    train = job.splits["train"].pairs.values()
    prompts = distinct_prompts(prompt for pairs in train for prompt in pairs["prompt"])
    if options.backend == "rloo":
        from paretune.baselines.rloo import train_rloo

        train_rloo(job, prompts, reward, options, folder, needed)
    else:
        _train_ppo(job, preference, prompts, reward, options, folder, needed)
    free_memory()


def _train_ppo(
    job: Job,
    preference: Preference,
    prompts: Sequence[Any],
    reward: ScalarReward,
    options: Morlhf,
    folder: Path,
    needed: Sequence[str],
) -> None:
    import torch
    from peft import get_peft_model
    from transformers import set_seed

    from paretune.baselines.budget import policy_tokens
    from paretune.baselines.ppo import PPO
    from paretune.experiment.keep import save_weights
    from paretune.experiment.setup import lora_config
    from paretune.models import load_model_and_tokenizer

    base, tokenizer = load_model_and_tokenizer(**job.recipe.model.model_dump(), device=device())
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
        write_jsonl(folder / "log.jsonl", ppo.log)
        if ppo.done % options.save_steps == 0:
            torch.save(ppo.state_dict(), folder / "checkpoint.partial")
            sync(folder / "checkpoint.partial")
            move(folder / "checkpoint.partial", checkpoint)
    job.report("train", 1.0)
    save_weights(model, tokenizer, folder)
    job.finish(folder, ppo.done, ppo.spend, needed, kl=ppo.log[-1]["kl"])
    checkpoint.unlink(missing_ok=True)
