"""From a recipe's reward sources to scorers."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from paretune.errors import InputError
from paretune.evaluation.reward_models import (
    Outputs,
    RewardInput,
    RewardModelScorer,
    load_reward_model,
)
from paretune.evaluation.scorers import Scorer, demo_scorer
from paretune.experiment.ground import Ground, file_ground, model_ground
from paretune.experiment.weights import with_adapter
from paretune.files import read_object, user_path
from paretune.models import gpu, load_model_and_tokenizer
from paretune.recipes.rewards import RewardSource
from paretune.results.weights import check_weights, weight_files

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

_RECORD = "reward.json"


def recipe_sources(recipe: "Recipe") -> dict[str, RewardSource]:
    """What scores answers, by objective: the recipe's ``rewards``, or the demo data's own scorers.

    Empty where neither is there.
    """
    if recipe.rewards is not None:
        return recipe.rewards
    demo = recipe.data.loader == "demo"
    return {name: RewardSource(scorer="demo") for name in recipe.data.objectives if demo}


def recipe_scorers(recipe: "Recipe") -> dict[str, Scorer]:
    """The scorers of `recipe_sources`, by objective.

    Reward models are loaded once a process and kept; they score on its GPU if it has one.

    Raises:
        InputError: as `build_scorers`.
    """
    sources = _SOURCES.dump_json(recipe_sources(recipe))
    device = gpu()
    return _kept(sources, Path(recipe.output_dir) / "rewards", device)


_SOURCES = TypeAdapter(dict[str, RewardSource])


@lru_cache(maxsize=1)
def _kept(sources: bytes, trained: Path, device: str | None) -> dict[str, Scorer]:
    return build_scorers(_SOURCES.validate_json(sources), trained, device)


def check_sources(recipe: "Recipe") -> None:
    """See, without loading a model, whether the recipe's scorers are there as far as that goes.

    Raises:
        InputError: an unknown scorer of the demo, or a reward model that is not trained yet.
    """
    for name, source in recipe_sources(recipe).items():
        if source.scorer == "demo":
            demo_scorer(source.name or name)
        if source.scorer == "trained":
            _trained_record(_trained_folder(name, source, Path(recipe.output_dir) / "rewards"))


def reward_ground(recipe: "Recipe") -> Ground:
    """The digests of the reward models that score answers, by objective and file.

    Of a comparison, those of its methods too, under the method's own name.
    """
    trained = Path(recipe.output_dir) / "rewards"
    given = {"rewards": recipe_sources(recipe)}
    for entry in getattr(recipe, "methods", ()):
        if own := getattr(entry.parsed, "rewards", None):
            given[f"rewards of {entry.title}"] = own
    ground: Ground = {}
    for what, sources in given.items():
        digests = {}
        for name, source in sources.items():
            for file, digest in _source_ground(name, source, trained).items():
                digests[f"{name}/{file}"] = digest
        if digests:
            ground[what] = digests
    return ground


def _source_ground(objective: str, source: RewardSource, trained: Path) -> dict[str, str]:
    if source.scorer == "demo":
        return {}
    if source.scorer == "model":
        assert source.name is not None  # the schema has seen to it
        found = model_ground(source.name)
        return {**found.get("model", {}), **found.get("tokenizer", {})}
    folder = _trained_folder(objective, source, trained)
    return file_ground(path for path in (folder / _RECORD, *weight_files(folder)) if path.exists())


def build_scorers(
    sources: Mapping[str, RewardSource], trained: Path | None = None, device: Any = None
) -> dict[str, Scorer]:
    """The scorer of each objective; objectives that name the same model share its weights.

    Args:
        sources: Per objective, what scores it.
        trained: The folder with the run's own reward models, one folder an objective.
        device: Where reward models score; between that, and by default always, they are on the
            CPU.

    Raises:
        InputError: a reward model that is not there, or options that do not fit it.
    """
    loaded: dict[tuple[Any, ...], tuple[Any, Any, Outputs]] = {}
    return {name: _scorer(name, each, trained, device, loaded) for name, each in sources.items()}


def _scorer(
    objective: str,
    source: RewardSource,
    trained: Path | None,
    device: Any,
    loaded: dict[tuple[Any, ...], tuple[Any, Any, Outputs]],
) -> Scorer:
    if source.scorer == "demo":
        return demo_scorer(source.name or objective)
    if source.scorer == "trained":
        folder = _trained_folder(objective, source, trained)
        return load_trained(folder, device=device, batch_size=source.batch_size)
    assert source.name is not None  # the schema has seen to it
    key = (source.name, source.dtype, source.trust_remote_code)
    if key not in loaded:
        pair = load_reward_model(
            source.name, dtype=source.dtype, trust_remote_code=source.trust_remote_code
        )
        loaded[key] = (*pair, Outputs())
    model, tokenizer, outputs = loaded[key]
    return RewardModelScorer(
        model,
        tokenizer,
        name=source.name,
        input=RewardInput(source.input, source.template, source.turns),
        label=source.label,
        lower_is_better=source.lower_is_better,
        max_length=source.max_length,
        batch_size=source.batch_size,
        device=device,
        outputs=outputs,
    )


def _trained_folder(objective: str, source: RewardSource, trained: Path | None) -> Path:
    folder = user_path(source.name) if source.name else trained
    if folder is None:
        raise InputError(
            f"The scorer 'trained' of objective {objective!r} needs name, the folder that "
            "`paretune reward train` wrote."
        )
    return folder / objective


def _trained_record(folder: Path) -> dict[str, Any]:
    if not (folder / _RECORD).exists():
        raise InputError(
            f"'{folder}' holds no finished reward model: run `paretune reward train` first."
        )
    return read_object(folder / _RECORD)


def load_trained(folder: Path, device: Any = None, batch_size: int = 16) -> RewardModelScorer:
    """The scorer of a reward model that `paretune reward train` made.

    Raises:
        InputError: there is none in the folder, or its base is gone.
    """
    record = _trained_record(folder)
    check_weights(folder, _RECORD)
    model: Any
    if (folder / "adapter_config.json").exists():
        base, tokenizer = load_model_and_tokenizer(**record["model"], head="new_score")
        model = with_adapter(base, folder)
    else:
        model, tokenizer = load_reward_model(folder, dtype=record["model"]["dtype"])
    return RewardModelScorer(
        model,
        tokenizer,
        name=record["objective"],
        input=RewardInput(**record["input"]),
        max_length=record["max_length"],
        batch_size=batch_size,
        device=None if getattr(model, "is_quantized", False) else device,  # that cannot be moved
    )
