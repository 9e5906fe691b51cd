"""From a recipe to what it speaks of: the data, and the trainer of one point."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from paretune.data import LOADERS, PreferenceData
from paretune.data.loading import load
from paretune.errors import InputError
from paretune.files import cache_folder
from paretune.models import gpu, load_model_and_tokenizer
from paretune.moo.preference import Preference
from paretune.moo.weightings import ClampOptions
from paretune.recipes.dial import ConditionedOptions
from paretune.recipes.error_messages import joined
from paretune.recipes.train_keys import ELSEWHERE, checked_section
from paretune.training import (
    ClampConfig,
    ClampTrainer,
    MultiObjectiveConfig,
    MultiObjectiveTrainer,
)

if TYPE_CHECKING:
    from paretune.recipes.schema import Data, Recipe


def load_data(data: "Data") -> PreferenceData:
    """The pairs of a recipe's data section, objectives in its order.

    Raises:
        InputError: the data is missing, or holds what it should not.
    """
    given = data.model_dump(exclude={"loader", "split", "seed"})
    return load(LOADERS[data.loader], **given)


def quiet_arguments() -> dict[str, Any]:
    """Arguments that every training of transformers is given here, if not told otherwise."""
    return {
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu() is not None,  # torch warns where there is no GPU
        "save_total_limit": 2,
    }


def trl_arguments(recipe: "Recipe") -> dict[str, Any]:
    """The same for TRL's trainers, whose defaults fail where there is no GPU.

    Activations are kept or made again as the recipe's `train` section says.
    """
    again = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    own = {"bf16": False, "gradient_checkpointing": recomputes(recipe)}
    return {**quiet_arguments(), **own, **(again if recomputes(recipe) else {})}


def recomputes(recipe: "Recipe") -> bool:
    """Whether trainings are to make activations again in the backward pass, to save memory."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return any(bool(recipe.train.get(name)) for name in names)


@contextlib.contextmanager
def float32_adapter(model: Any) -> Iterator[None]:
    """Undo what TRL's trainers do, when they are made, to the adapter of an 8- or 4-bit base.

    They put it into bfloat16, whose rounding swallows most updates of a learning rate such as 1e-5,
    and no other method's adapter is in it. Weights that are there before keep their values exactly;
    of an adapter that the trainer itself draws, the first ones stay rounded.

    Args:
        model: The base, or the base with its adapter; the trainer changes it in place.
    """
    before = {weight: weight.data for weight in model.parameters() if weight.requires_grad}
    yield
    if not getattr(model, "is_quantized", False):
        return
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = before[weight] if weight in before else weight.data.float()


def training_arguments(
    recipe: "Recipe",
    preference: Preference | None,
    seed: int,
    folder: Path,
    kind: type[MultiObjectiveConfig] | None = None,
    **more: Any,
) -> MultiObjectiveConfig:
    """The trainer's arguments for one point, checkpoints going to `folder`.

    Args:
        kind: Their class; by default that of the recipe's method.
        more: Further arguments.

    Raises:
        InputError: a key of the recipe's train section that does not exist, belongs to another
            section, or has a value of the wrong type.
    """
    clamp = kind is None and isinstance(recipe.method, ClampOptions)
    if kind is None:
        kind = ClampConfig if clamp else MultiObjectiveConfig
    train = checked_arguments(recipe.train, kind, "train", ELSEWHERE, recipe.source)
    defaults = {**quiet_arguments(), "reference_cache": str(cache_folder() / "reference")}
    options = vars(recipe.method) if clamp else more
    try:
        return kind(
            **defaults
            | train
            | options
            | {
                "loss": recipe.loss,
                "preference": None if preference is None else dict(preference),
                "seed": seed,
                "output_dir": str(folder),
            }
        )
    except InputError:
        raise
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{recipe.source}: the train section does not work here: {error}"
        ) from error


def checked_arguments(
    given: Mapping[str, Any],
    kind: type[TrainingArguments],
    section: str,
    elsewhere: Mapping[str, str],
    source: str,
) -> dict[str, Any]:
    """The trainer's arguments in a section of a recipe, with values of the right types.

    Args:
        kind: The dataclass whose fields they are.
        section: Dotted name of the section, for messages.
        elsewhere: Fields that the recipe gives at other keys, and those keys.
        source: Where the recipe is from, for messages.

    Raises:
        InputError: fields that do not exist or have their own key, or values of the wrong type.
    """
    checked, faults = checked_section(given, kind, section, elsewhere, source)
    if faults:
        raise InputError(joined(faults))
    return checked


def build_trainer(
    recipe: "Recipe",
    preference: Preference,
    seed: int,
    splits: Mapping[Any, PreferenceData],
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    on_scored: Callable[[float], None] | None = None,
    make: Callable[..., MultiObjectiveTrainer] | None = None,
) -> MultiObjectiveTrainer:
    """The trainer of one point: base model, fresh adapter, training and validation data.

    Args:
        folder: Where checkpoints go.
        on_scored: As in `MultiObjectiveTrainer`.
        make: Makes the trainer from model, arguments and data, in place of the recipe's method.

    Raises:
        InputError: a recipe, model or data that do not fit together.
    """
    args = training_arguments(recipe, preference, seed, folder)
    return make_trainer(recipe, args, splits, callbacks, on_scored, make)


def make_trainer(
    recipe: "Recipe",
    args: MultiObjectiveConfig,
    splits: Mapping[Any, PreferenceData],
    callbacks: Sequence[TrainerCallback] = (),
    on_scored: Callable[[float], None] | None = None,
    make: Callable[..., MultiObjectiveTrainer] | None = None,
) -> MultiObjectiveTrainer:
    """As `build_trainer`, with the trainer's arguments given."""
    model, tokenizer = load_model_and_tokenizer(**recipe.model.model_dump())
    named: dict[str, Any] = {
        "train_dataset": splits["train"].pairs,
        "eval_dataset": None if _never_evaluates(args) else splits["validation"].pairs,
        "processing_class": tokenizer,
        "peft_config": lora_config(recipe),
        "callbacks": list(callbacks),
        "on_scored": on_scored,
    }
    set_seed(args.seed)  # the adapter is drawn before the trainer itself seeds
    trainer: MultiObjectiveTrainer
    if make is not None:
        trainer = make(model, args, **named)
    elif isinstance(args, ClampConfig):
        trainer = ClampTrainer(model, args, **named)
    else:
        assert not isinstance(recipe.method, ClampOptions | ConditionedOptions)
        trainer = MultiObjectiveTrainer(model, args, weighting=recipe.method, **named)
    trainer.remove_callback(PrinterCallback)  # prints every log entry
    return trainer


def lora_config(recipe: "Recipe", task_type: str = "CAUSAL_LM") -> Any:
    """The adapter of a recipe as PEFT's configuration; None trains all weights."""
    if recipe.lora is None:
        return None
    from peft import LoraConfig  # peft takes seconds to import

    lora = recipe.lora
    return LoraConfig(
        task_type=task_type,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )


def _never_evaluates(args: MultiObjectiveConfig) -> bool:
    return str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no"
