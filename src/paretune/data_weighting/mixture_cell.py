"""One run of `DataWeightingTrainer` on a recipe's sets, and what training anew on them reaches."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from paretune.data_weighting.tasks.planted import planted
from paretune.data_weighting.trial import Cell
from paretune.errors import TrainingStoppedError
from paretune.experiment.setup import quiet_arguments
from paretune.files import read_object, write_json
from paretune.models import gpu, load_model_and_tokenizer
from paretune.moo.preference import Preference
from paretune.recipes.mixture import MixtureRecipe, PlantedTask
from paretune.training import DataWeightingConfig, DataWeightingTrainer
from paretune.training.data_weighting_config import reads

Rows = Iterable[Mapping[str, Any]]

UNIFORM, LEARNED, TRUE = "uniform", "learned", "true"
"""Mixes of sets to train anew on."""

_REPLICATES, _FEW, _STEPS = 100, 20, 50_000  # fewer where paths are long
_RETRAINING = 1_000_003  # added to a seed: other batches and another adapter


@dataclass(frozen=True)
class Material:
    """What a recipe's task says of rows.

    Attributes:
        sets, validation, test: Rows, or where they are, by name; test is None where the held-out
            validation rows stand for it.
        bad: Sets that are known to be.
        true: Weights that are known to be good.
        conflicted: A set that is good for one criterion and bad for the other, with the former.
    """

    sets: Mapping[str, Any]
    validation: Mapping[str, Any]
    test: Mapping[str, Any] | None
    bad: tuple[str, ...] = ()
    true: Mapping[str, float] | None = None
    conflicted: tuple[str, str] | None = None

    @classmethod
    def of(cls, recipe: MixtureRecipe, seed: int) -> Self:
        """Of a seed: planted sets are drawn by it."""
        task = recipe.task
        if not isinstance(task, PlantedTask):
            return cls(task.sets, task.criteria, task.test)
        made = planted(task.case, task.rows, seed)
        return cls(made.sets, made.validation, made.test, made.bad, made.true, made.conflicted)


@dataclass(frozen=True)
class MixtureResult:
    """A cell's outcome; `to_json` is what ``result.json`` holds.

    Attributes:
        status: "done", or "failed" for `reason`.
        weights: of each training set at the end.
        interval: of each weight, where four of five replicates of x's path end on steps that are
            drawn from the run's own with replacement; None where no alignments are logged.
        before, after: loss of each criterion on rows that drive nothing, at the start and the end.
        driving: and at the end on those that drive x, as means of the last steps.
        retrained: per mix of sets, the losses of each criterion after training anew.
        steps, seconds, tokens: what it took, without measuring and training anew.
        curve: weights after each step, a row a step, in the order of `weights`.
    """

    method: str
    preference: dict[str, float]
    seed: int
    options: dict[str, Any]
    status: Literal["done", "failed"]
    reason: str = ""
    weights: Mapping[str, float] | None = None
    interval: Mapping[str, Sequence[float]] | None = None
    before: Mapping[str, float] | None = None
    after: Mapping[str, float] | None = None
    driving: Mapping[str, float] | None = None
    retrained: Mapping[str, Mapping[str, float]] | None = None
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    curve: Sequence[Sequence[float]] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)


def mixture_cells(recipe: MixtureRecipe) -> list[Cell]:
    """The recipe's cells, seed by seed and method by method."""
    return [
        Cell(method, preference, seed)
        for seed in recipe.seeds
        for method in recipe.methods
        for preference in recipe.points
    ]


def run_mixture_cell(recipe: MixtureRecipe, cell: Cell, run: Path) -> MixtureResult:
    """Weigh the sets, and train anew on what was found; a training that fails is told there."""
    assert cell.preference is not None
    options, preference = recipe.methods[cell.method], dict(cell.preference)  # type: ignore[index]
    failed = MixtureResult(cell.method, preference, cell.seed, options, "failed")
    material = Material.of(recipe, cell.seed)
    folder = cell.folder(run) / "training"
    trainer = make_trainer(
        recipe, material, cell.preference, cell.seed, folder, method=cell.method, **options
    )
    before = trainer.evaluate(material.test)
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=True)
    except TrainingStoppedError as error:
        return replace(failed, reason=str(error))
    seconds = time.perf_counter() - started
    rows = [row for row in trainer.state.log_history if f"set_weight/{trainer.sets[0]}" in row]
    done = replace(
        failed,
        status="done",
        weights=trainer.set_weights,
        interval=weight_intervals(trainer, rows),
        before=_losses(before, preference),
        after=_losses(trainer.evaluate(material.test), preference),
        driving={n: _late_mean(rows, f"validation/{n}/loss") for n in cell.preference.live},
        steps=trainer.state.global_step,
        seconds=seconds,
        tokens=trainer.totals.spend.policy_tokens,
        curve=[[row[f"set_weight/{name}"] for name in trainer.sets] for row in rows],
    )
    del trainer
    if not recipe.retrain_steps:
        return done
    assert done.weights is not None
    even = dict.fromkeys(done.weights, 1 / len(done.weights))
    mixes: dict[str, Mapping[str, float]] = {UNIFORM: even, LEARNED: done.weights}
    if material.true is not None:
        mixes[TRUE] = material.true
    retrained = {
        mix: _retrained(recipe, material, cell, run, mix, weights) for mix, weights in mixes.items()
    }
    return replace(done, retrained=retrained)


def make_arguments(
    recipe: MixtureRecipe, preference: Preference, seed: int, folder: Path, **options: Any
) -> DataWeightingConfig:
    """The trainer's arguments, as the recipe has them.

    Raises:
        InputError: an argument that there is not, or that does not fit.
    """
    given: dict[str, Any] = {"save_strategy": "no", "logging_steps": 1, "num_train_epochs": 1}
    given |= {**quiet_arguments(), **recipe.train, **options}
    return DataWeightingConfig(
        output_dir=str(folder), preference=dict(preference), seed=seed, **given
    )


def make_trainer(
    recipe: MixtureRecipe,
    material: Material,
    preference: Preference,
    seed: int,
    folder: Path,
    **options: Any,
) -> DataWeightingTrainer:
    """The trainer of a cell.

    Raises:
        InputError: as `make_arguments`, or rows that cannot be read.
    """
    args = make_arguments(recipe, preference, seed, folder, **options)
    peft_config = None
    if recipe.lora is not None:
        from peft import LoraConfig

        lora = recipe.lora
        peft_config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        )
    device = gpu() or "cpu"
    model, tokenizer = load_model_and_tokenizer(**recipe.model.model_dump(), device=device)
    set_seed(seed)
    trainer = DataWeightingTrainer(
        model,
        args,
        material.sets,
        material.validation,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _retrained(
    recipe: MixtureRecipe,
    material: Material,
    cell: Cell,
    run: Path,
    mix: str,
    weights: Mapping[str, float],
) -> dict[str, float]:
    """The losses of a fresh adapter that was trained on sets of these weights.

    What no method decides on is kept for all of them.
    """
    assert cell.preference is not None
    shared = run / "retrained" / f"{mix}-seed{cell.seed}.json"
    if mix != LEARNED and shared.exists():
        return {name: float(value) for name, value in read_object(shared).items()}
    train = {key: value for key, value in recipe.train.items() if reads(key)}
    recipe = recipe.model_copy(update={"train": train})
    trainer = make_trainer(
        recipe,
        material,
        cell.preference,
        cell.seed + _RETRAINING,
        cell.folder(run) / "retraining",
        x_learning_rate=0.0,
        initial_weights=dict(weights),
        weight_bounds=None,
        entropy=0.0,
        max_steps=recipe.retrain_steps,
        save_strategy="no",
    )
    trainer.train()
    losses = _losses(trainer.evaluate(material.test), dict(cell.preference))
    if mix != LEARNED:
        write_json(shared, losses)
    return losses


def weight_intervals(
    trainer: DataWeightingTrainer, rows: Sequence[Mapping[str, float]]
) -> dict[str, list[float]] | None:
    """How far the weights might as well have ended elsewhere, given the steps that were taken.

    The path of x is taken again, with alignments of steps that are drawn with replacement, in
    their order; between the tenth and the ninetieth percentile of where it ends are the weights
    that other batches might have given, y's path as it was.
    """
    names = trainer.sets
    moves = [
        [row[f"alignment/{n}"] for n in names] for row in rows if f"alignment/{names[0]}" in row
    ]
    if not moves:
        return None
    found = torch.tensor(moves, dtype=torch.float64)
    generator = torch.Generator().manual_seed(trainer.args.seed)
    ends: list[Tensor] = []
    for _ in range(max(_FEW, min(_REPLICATES, _STEPS // len(found)))):
        weights = trainer.initial_weights()
        drawn = torch.randint(len(found), (len(found),), generator=generator).sort().values
        for alignment in found[drawn]:
            weights.follow(-alignment)
        ends.append(weights.values)
    quantiles = torch.tensor([0.1, 0.9], dtype=torch.float64)
    found = torch.stack(ends).quantile(quantiles, dim=0)
    return dict(zip(names, found.T.tolist(), strict=True))


def _losses(metrics: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: metrics[f"eval_{name}_loss"] for name in names}


def _late_mean(rows: Sequence[Mapping[str, float]], key: str) -> float:
    """The mean over the last quarter of the steps."""
    late = [row[key] for row in rows[-max(1, len(rows) // 4) :]]
    return sum(late) / max(1, len(late))
