"""MODPO (Zhou et al., 2024, Eq. 10): one preference loss with the other objectives' margins.

On the pairs of objective k the policy minimises
``-log sigmoid((β Δ − Σ_{j≠k} w_j (r_j(chosen) − r_j(rejected))) / w_k)``, with Δ the difference of
log-ratios to the reference and r_j a reward of objective j: by default the implicit one,
β (log π_j − log π_ref), of an adapter trained on j alone. Adapters and rewards are computed once
and serve every preference.
"""

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from paretune.baselines.context import Baseline, Context, Spend, Watch
from paretune.baselines.reward import tokens_read
from paretune.baselines.single_objective import (
    OneObjectiveTrainer,
    corner,
    linear,
    single_objective,
)
from paretune.data.messages import Text
from paretune.data.tokenization import TokenizedPairs
from paretune.errors import InputError
from paretune.evaluation.scorers import text_of
from paretune.experiment.reward_sources import recipe_scorers, recipe_sources
from paretune.experiment.setup import build_trainer
from paretune.experiment.train_point import (
    StepReport,
    free_memory,
    told,
    train_point,
    wait_for_all,
)
from paretune.experiment.weights import load_weights
from paretune.files import main_process
from paretune.losses import DPO
from paretune.moo.preference import Preference
from paretune.recipes.schema import Recipe
from paretune.results.weights import TRAINING


class Modpo(Baseline):
    """MODPO (Zhou et al., 2024): the margins of the other objectives in one preference loss."""

    objective: str | None = None
    """Whose pairs to train on; null takes, at each p, the objective of largest weight."""
    margins: Literal["implicit", "scorer"] = "implicit"
    """Rewards of the other objectives: `implicit` in adapters trained on each alone, or of the
    recipe's answer scorers, standardised on the training responses."""
    beta: float | None = Field(default=None, gt=0)
    """β of the loss; null is the recipe's. The implicit rewards are in units of `loss.beta`."""

    @property
    def divisible(self) -> bool:
        return True

    def check_recipe(self, recipe: Recipe) -> None:
        if self.objective is not None and self.objective not in recipe.data.objectives:
            raise InputError(f"there is no objective {self.objective!r}")

    def train(self, context: Context, preferences: Sequence[Preference]) -> None:
        """Train a MODPO adapter for every preference.

        A preference with all its weight on one objective is that objective's own adapter.

        Raises:
            InputError: a loss other than DPO; or, once all other points are trained, a preference
                that gives no weight to the objective chosen to be trained on.
        """
        for loss in context.recipe.losses.values():
            if not isinstance(loss, DPO):
                raise InputError(
                    f"MODPO is an extension of DPO, and the recipe's loss is '{loss.name}': "
                    "set loss.name=dpo, or leave MODPO out."
                )
        refused = None
        for preference in context.untrained(preferences):
            try:
                objective = trained_objective(preference, self.objective)
            except InputError as error:
                refused = refused or error
                continue
            if len(preference.live) == 1:
                _copy_single(context, preference)
            else:
                _train_point(context, preference, objective, self)
        if refused is not None:
            raise refused


def trained_objective(preference: Preference, chosen: str | None) -> str:
    """On whose pairs to train: `chosen`, or else the first of those with the largest weight.

    Raises:
        InputError: `chosen` has no weight.
    """
    if chosen is None:
        return max(preference.live, key=lambda name: preference[name])
    if preference[chosen] == 0:
        raise InputError(
            f"MODPO divides by the weight of the objective it trains on, and the preference "
            f"{preference.slug()} gives '{chosen}' none: leave that point out, or set objective to "
            "one that has weight (null takes the largest)."
        )
    return chosen


def _copy_single(context: Context, preference: Preference) -> None:
    key = single_objective(context, preference.live[0])
    folder = context.point(preference)
    if main_process():
        source = context.shared / key
        shutil.copytree(source, folder, ignore=lambda *_: {TRAINING}, dirs_exist_ok=True)
    context.finish(folder, steps=0, spend=Spend(), shared=[key])
    wait_for_all()


def _train_point(context: Context, preference: Preference, objective: str, options: Modpo) -> None:
    others = [name for name in preference.live if name != objective]
    keys = [key for name in others for key in _rewards(context, name, options)]
    context.report("prepare", 0.0)
    folder = context.point(preference)
    trainer = _trainer(context, folder, preference, objective, preference[objective], options.beta)
    for split, pairs in trainer.prepared.items():
        tables = {name: _table(context, name, options, split) for name in others}
        pairs.pairs[objective].offset = offsets(pairs, objective, preference, tables)
    train_point(trainer, folder, context.report, shared=keys)
    del trainer
    free_memory()


def offsets(
    pairs: TokenizedPairs, objective: str, preference: Preference, rewards: dict[str, Tensor]
) -> list[float]:
    """``Σ_j w_j (r_j(chosen) − r_j(rejected))`` of every pair of `objective`.

    Args:
        rewards: r_j of every sequence, ``(len(pairs.sequences),)``, of the other objectives.
    """
    index = pairs.pairs[objective]
    total = torch.zeros(len(index), dtype=torch.float64)
    for name, table in rewards.items():
        if len(table) != len(pairs.sequences):
            raise InputError(
                f"The rewards of '{name}' are of other data: delete the comparison's folder "
                "'shared' and run the command again."
            )
        margin = table[index.chosen].double() - table[index.rejected].double()
        total += preference[name] * margin
    values: list[float] = total.tolist()
    return values


def _trainer(
    context: Context,
    folder: Path,
    preference: Preference,
    objective: str,
    temperature: float,
    beta: float | None,
) -> OneObjectiveTrainer:
    recipe: Recipe = linear(context.recipe)
    own = recipe.losses[objective].beta if beta is None else beta
    loss = DPO(beta=own, temperature=temperature)
    trainer = build_trainer(
        recipe,
        preference,
        context.seed,
        context.splits,
        folder / "checkpoints",
        [StepReport(context.report)],
        make=partial(OneObjectiveTrainer, trained=objective, loss=loss),
    )
    assert isinstance(trainer, OneObjectiveTrainer)
    return trainer


# ------------------------------------------------------------------ rewards


def _rewards(context: Context, objective: str, options: Modpo) -> list[str]:
    """Compute an objective's rewards of all training responses, once; the keys of all it took."""
    if options.margins == "scorer":
        return [_scored(context, objective)]
    single = single_objective(context, objective)

    def build(folder: Path) -> None:
        context.report("prepare", 0.0)
        alone = corner(objective, context.recipe.data.objectives)
        trainer = _trainer(context, folder, alone, objective, 1.0, None)
        load_weights(trainer.model, context.shared / single)
        watch, tokens = Watch(), 0
        for split, pairs in trainer.prepared.items():
            rewards = trainer.implicit_rewards(pairs, context.recipe.losses[objective].beta)
            _save(rewards, folder, split)
            tokens += sum(len(sequence.input_ids) for sequence in pairs.sequences)
        batch = trainer.args.per_device_eval_batch_size
        count = sum(len(pairs.sequences) for pairs in trainer.prepared.values())
        spend = watch.spend(reference_tokens=tokens, passes=-(-count // batch))
        context.finish(folder, steps=0, spend=spend)
        del trainer
        free_memory()

    key = f"rewards-{objective}-seed{context.seed}"
    context.once(key, build)
    return [single, key]


def _save(rewards: Tensor, folder: Path, split: str) -> None:
    if main_process():
        save_file({"rewards": rewards}, folder / f"{split}.safetensors")


def _table(context: Context, objective: str, options: Modpo, split: str) -> Tensor:
    scored = options.margins == "scorer"
    key = f"scores-{objective}" if scored else f"rewards-{objective}-seed{context.seed}"
    return load_file(context.shared / key / f"{split}.safetensors")["rewards"]


def _scored(context: Context, objective: str) -> str:
    """Rewards by the recipe's scorer, standardised on the training responses."""
    if objective not in recipe_sources(context.recipe):
        raise InputError(
            f"MODPO's margins=scorer needs a scorer of answers for '{objective}', and the recipe "
            "has none: name one under 'rewards', or use margins=implicit."
        )

    def build(folder: Path) -> None:
        alone = corner(objective, context.recipe.data.objectives)
        trainer = _trainer(context, folder, alone, objective, 1.0, None)
        scorer = recipe_scorers(context.recipe)[objective]
        watch, before = Watch(), tokens_read(scorer)
        mean = deviation = 0.0
        for split, pairs in trainer.prepared.items():
            texts: dict[int, tuple[Text, str]] = {}
            for name, index in pairs.pairs.items():
                for column, side in (("chosen", index.chosen), ("rejected", index.rejected)):
                    for row, sequence in zip(index.row, side, strict=True):
                        record = context.splits[split].pairs[name][row]
                        texts[sequence] = record["prompt"], text_of(record[column])
            values = torch.zeros(len(pairs.sequences), dtype=torch.float64)
            prompts, responses = zip(*texts.values(), strict=True)
            scores = scorer.score(prompts, responses) if main_process() else None
            values[list(texts)] = values.new_tensor(told(scores))
            if split == "train":
                mean, deviation = float(values.mean()), float(values.std())
                if not 0 < deviation < math.inf:
                    raise InputError(
                        f"MODPO's margins: the scorer '{scorer.name}' of '{objective}' gives all "
                        "training answers the same score, or one that is not finite: name "
                        "another one under 'rewards', or use margins=implicit."
                    )
            rewards = ((values - mean) / deviation).float()
            _save(rewards, folder, split)
        spend = watch.spend(reward_tokens=tokens_read(scorer) - before)
        context.finish(folder, steps=0, spend=spend, mean=mean, deviation=deviation)

    key = f"scores-{objective}"
    context.once(key, build)
    return key
