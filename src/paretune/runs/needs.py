"""`paretune plan`: what a recipe needs before it is started, without loading a weight."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune import yaml_syntax
from paretune.baselines.recipe import CompareRecipe, load_comparison
from paretune.errors import InputError
from paretune.experiment import forecast
from paretune.experiment.forecast import Memory, Precision, Rate, Shape, Tokens
from paretune.recipes.data_weighting import load_weigh_recipe
from paretune.recipes.dial import ConditionedOptions
from paretune.recipes.language_model import LanguageModelTask
from paretune.recipes.load import load_recipe
from paretune.recipes.mixture import MixtureRecipe, SetsTask
from paretune.recipes.reading import COMMANDS, find_recipe, shipped_recipes
from paretune.recipes.schema import Recipe
from paretune.results.table import Column, Table, left, numbers
from paretune.runs.plan import count_points

_LENGTH = 1024  # of a sequence, where a recipe bounds none
_SINGLE = ("modpo", "rewarded_soups")  # baselines whose trainings have one objective each
_PLANTED = 3  # training sets of a planted task, at most
RANKS = (2, 4, 8)


@dataclass(frozen=True)
class Work:
    """Trainings of one kind: a sweep's points, or those of a method of a comparison.

    Attributes:
        objectives: How many gradients a step has; None of a method that is not reckoned.
        trainings: How many there are.
        steps: Of each; None where the data was not read and the recipe does not say.
        checkpointing: Whether activations are computed again.
    """

    name: str
    objectives: int | None
    trainings: int
    steps: int | None
    tokens: Tokens
    memory: Memory | None
    checkpointing: bool = False

    @property
    def all_tokens(self) -> float | None:
        """Of one training."""
        return None if self.steps is None else self.steps * self.tokens.step


@dataclass(frozen=True)
class Needs:
    """What a recipe needs; without a language model there are no shape and no work."""

    name: str
    model: str
    shape: Shape | None
    points: int
    work: list[Work]
    disk: int
    remarks: list[str] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """Of work and of memory."""
        work = Table(
            [
                left("training"),
                *numbers(["M", "trainings", "steps", "tokens a step"], ",d"),
                Column("tokens in all", ".3g"),
                Column("peak memory"),
            ],
            [
                [
                    each.name,
                    each.objectives,
                    each.trainings,
                    each.steps,
                    round(each.tokens.step),
                    None if each.all_tokens is None else each.trainings * each.all_tokens,
                    "not reckoned" if each.memory is None else size(each.memory.total),
                ]
                for each in self.work
            ],
            title="work",
        )
        parts = list(Memory.__dataclass_fields__)
        ranks = [f"/ {ranks} GPUs" for ranks in RANKS]
        reckoned = [(each, each.memory) for each in self.work if each.memory is not None]
        peak = Table(
            [left("peak memory"), *numbers([*parts, "total", *ranks])],
            [
                [
                    each.name,
                    *(size(getattr(memory, part)) for part in parts),
                    size(memory.total),
                    *(size(memory.sharded(ranks)) for ranks in RANKS),
                ]
                for each, memory in reckoned
            ],
            title="peak memory, estimated",
        )
        return [work, peak] if reckoned else [work]

    def times(self, rate: Rate, gpus: int) -> Table:
        """How long the trainings take, and how many a day are done on so many GPUs like that."""
        assert self.shape is not None
        rows: list[list[Any]] = []
        for each in self.work:
            step = rate.seconds(each.tokens.step, self.shape, each.checkpointing)
            one = None if each.steps is None else each.steps * step
            day = None if one is None else gpus * 86_400 / one
            rows.append(
                [each.name, step, one and one / 3600, one and one * each.trainings / 3600, day]
            )
        names = ["seconds a step", "hours a training", "GPU hours in all"]
        columns = [
            left("time"),
            *numbers(names, ".3g"),
            Column(f"trainings a day, {gpus} GPUs", ".3g"),
        ]
        return Table(columns, rows, title="time, reckoned")


def needs(name: str | Path, overrides: Sequence[str] = ()) -> Needs:
    """What the recipe of that name or path needs.

    Raises:
        InputError: no such recipe, a mistake in it, or a model whose configuration cannot be had.
    """
    command = next((each for each in COMMANDS if str(name) in shipped_recipes(each)), None)
    if command is None:
        source, text, _ = find_recipe(name, "sweep")
        keys = yaml_syntax.parse(text, source)
        given = keys if isinstance(keys, dict) else {}
        command = "weigh" if "task" in given else "compare" if "methods" in given else "sweep"
    if command == "weigh":
        return _of_weighing(name, overrides)
    if command == "compare":
        return _of_comparison(load_comparison(name, overrides))
    return _of_sweep(load_recipe(name, overrides))


def size(count: float) -> str:
    """Bytes for people: 1.2 GB is 1.2e9."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _check_train(recipe: Recipe | CompareRecipe) -> None:
    """See that the train section is one with which the command would begin."""
    from paretune.experiment.setup import checked_arguments
    from paretune.recipes.train_keys import ELSEWHERE
    from paretune.training import ConditionedConfig, MultiObjectiveConfig

    conditioned = isinstance(recipe, Recipe) and isinstance(recipe.method, ConditionedOptions)
    kind = ConditionedConfig if conditioned else MultiObjectiveConfig
    checked_arguments(recipe.train, kind, "train", ELSEWHERE, recipe.source)


def _of_sweep(recipe: Recipe) -> Needs:
    _check_train(recipe)
    shape, remarks = forecast.shape_of(recipe.model, recipe.lora), list[str]()
    live, points = len(recipe.data.objectives), count_points(recipe)
    if recipe.sweep.placement != "gap":
        live = max(len(point.live) for point in recipe.points)
    gradients, trainings = live, points
    if isinstance(recipe.method, ConditionedOptions):
        live, trainings = len(recipe.data.objectives), len(recipe.sweep.seeds)
        shape, gradients = _steerable(shape, recipe.method, live)
    tokens = _tokens(recipe, recipe.train, live, remarks)
    work = _training(recipe, recipe.method_name, shape, recipe.train, gradients, trainings, tokens)
    return _needs(recipe, shape, [work], points, remarks)


def _of_comparison(recipe: CompareRecipe) -> Needs:
    _check_train(recipe)
    shape, remarks = forecast.shape_of(recipe.model, recipe.lora), list[str]()
    objectives = len(recipe.data.objectives)
    common = _tokens(recipe, recipe.train, objectives, remarks)
    work, count = [], 0
    for entry in recipe.methods:
        gradients: int | None
        seeds = len(entry.seeds or recipe.sweep.seeds)
        points = seeds * len(entry.preferences or recipe.sweep.preferences)
        count += points
        train = {**recipe.train, **entry.train}
        tokens = common
        if entry.train:
            tokens = _tokens(recipe, train, objectives, [])
        own = shape
        if entry.name == "conditioned":
            own, gradients = _steerable(shape, entry.parsed, objectives)
            trainings = seeds
        elif entry.is_weighting:
            gradients = objectives
            trainings = points + (seeds * objectives if entry.range_normalised else 0)
        elif entry.name in _SINGLE:
            gradients = 1
            trainings = seeds * objectives if entry.name == "rewarded_soups" else points
            trainings += seeds if entry.name == "modpo" else 0
        else:
            gradients, trainings = None, points
        work.append(_training(recipe, entry.title, own, train, gradients, trainings, tokens))
    remarks.append(
        "Methods that train by themselves have about the tokens of the others' points; what "
        "several methods share is trained once. RL and RiC are not reckoned."
    )
    return _needs(recipe, shape, work, count, remarks)


def _steerable(shape: Shape, options: ConditionedOptions, objectives: int) -> tuple[Shape, int]:
    """The shape with an adapter of M blocks, and how many gradients a step has."""
    groups = options.preference_groups if options.inner == "clamp" else 1
    return shape.of_blocks(objectives), objectives * groups


def _of_weighing(name: str | Path, overrides: Sequence[str]) -> Needs:
    recipe = load_weigh_recipe(name, overrides)
    task, cells = recipe.task, len(recipe.points) * len(recipe.seeds)
    disk = cells * len(recipe.methods) * 10_000
    if isinstance(recipe, MixtureRecipe):
        model, lora, train = recipe.model, recipe.lora, recipe.train
        rows = int(train.get("per_device_train_batch_size", 8))
        length = int(train.get("max_length") or _LENGTH)
        sets = len(task.sets) if isinstance(task, SetsTask) else _PLANTED
    elif isinstance(task, LanguageModelTask):
        model, lora, rows, length, sets = task.model, task.lora, task.batch_size, task.max_length, 2
    else:
        remark = f"It trains no language model: {task.name} needs a few hundred MB, minutes a cell."
        return Needs(recipe.name, task.name, None, cells, [], disk, [remark])
    shape, criteria = forecast.shape_of(model, lora), len(task.objectives)
    tokens = forecast.bound_tokens(1, rows, sets + criteria, length)
    tokens = Tokens(tokens.peak // 2, tokens.step / 2, None, exact=False)  # responses, not pairs
    used = forecast.memory(shape, Precision.of(model), criteria, tokens.peak)
    work = [Work(method, criteria, cells, None, tokens, used) for method in recipe.methods]
    remarks = [
        "Tokens are the most there can be: every response of max_length. A step of a bilevel "
        "method reads each set and each criterion about once; the bank stands for its vectors of "
        "the adapter's size.",
    ]
    return Needs(recipe.name, model.name, shape, cells, work, disk, remarks)


def _training(
    recipe: Recipe,
    name: str,
    shape: Shape,
    train: dict[str, Any],
    objectives: int | None,
    trainings: int,
    tokens: Tokens,
) -> Work:
    rows = int(train.get("per_device_train_batch_size", 8))
    accumulation = int(train.get("gradient_accumulation_steps", 1))
    steps = forecast.steps_of(train, tokens.rows, rows * accumulation)
    used, checkpointing = None, bool(train.get("activation_checkpointing"))
    if objectives is not None:
        precision = Precision.of(recipe.model, bool(train.get("bf16") or train.get("fp16")))
        peak = tokens.peak
        if most := train.get("tokens_per_batch"):
            peak = min(peak, max(int(most), peak // rows))  # a row is never divided
        single = accumulation == 1 and not train.get("tokens_per_batch")
        layerwise = single and shape.rank == 0 and objectives > 1
        layerwise = layerwise and train.get("gradients") != "per_objective"
        used = forecast.memory(shape, precision, objectives, peak, checkpointing, layerwise)
    return Work(name, objectives, trainings, steps, tokens, used, checkpointing)


def _tokens(recipe: Recipe, train: dict[str, Any], objectives: int, remarks: list[str]) -> Tokens:
    """Of a micro-batch and a step; an upper bound, with a remark, where data cannot be read."""
    rows = int(train.get("per_device_train_batch_size", 8))
    accumulation = int(train.get("gradient_accumulation_steps", 1))
    length = int(train.get("max_length") or _LENGTH)
    try:
        return _counted(recipe, train, rows, accumulation)
    except (InputError, OSError, ImportError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        bound = f"max_length ({length})" if train.get("max_length") else f"{length} tokens"
        remarks.append(
            f"Tokens are the most there can be, every sequence of {bound}: the data or the "
            f"tokenizer cannot be read here ({reason[:200]})."
        )
        return forecast.bound_tokens(objectives, rows, accumulation, length)


def _counted(recipe: Recipe, train: dict[str, Any], rows: int, accumulation: int) -> Tokens:
    import os

    from transformers import AutoTokenizer

    from paretune.data.splitting import split_by_prompt
    from paretune.data.tokenization import tokenize_pairs
    from paretune.experiment.setup import load_data
    from paretune.models import BUILT_IN, built_in_folder

    name = recipe.model.name
    place = str(built_in_folder(name)) if name in BUILT_IN else os.path.expanduser(name)
    if not os.path.isdir(place):
        raise InputError(f"the tokenizer of '{place}' is not on this machine")
    data = load_data(recipe.data)
    splits = split_by_prompt(data, recipe.data.split, recipe.data.seed)
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    overlong = train.get("overlong", "drop")
    pairs = tokenize_pairs(splits["train"].pairs, tokenizer, train.get("max_length"), overlong)
    sampling = train.get("sampling", "auto")
    names = recipe.data.objectives
    return forecast.count_tokens(pairs, names, sampling, rows, accumulation, 0)


def _needs(
    recipe: Recipe, shape: Shape, work: list[Work], points: int, remarks: list[str]
) -> Needs:
    precision = Precision.of(recipe.model)
    disk = points * forecast.point_bytes(shape, precision) + forecast.checkpoint_bytes(shape)
    if any(each.steps is None for each in work):
        remarks.append("Steps depend on the data: give train.max_steps to have them reckoned.")
    return Needs(recipe.name, recipe.model.name, shape, points, work, disk, remarks)
