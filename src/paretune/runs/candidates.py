"""The answers that are judged: a run's points', and the base model's to the same prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.data.messages import prompt_key
from paretune.errors import InputError
from paretune.files import read_jsonl, read_object
from paretune.judging.session import Answered, Candidate
from paretune.moo.preference import Preference
from paretune.moo.weightings import Linear
from paretune.progress import Progress, Silent
from paretune.recipes.load import dated, load_recipe
from paretune.recipes.schema import Recipe
from paretune.results.points import PlannedPoint, measured_points
from paretune.results.run_folder import BASE_FOLDER, saved_recipe
from paretune.runs.folder import RunFolder
from paretune.runs.plan import plan
from paretune.runs.preparation import load_splits


def load_run(run: Path) -> Recipe:
    """The recipe of a sweep's or a comparison's run folder.

    Raises:
        InputError: it is not one.
    """
    saved = saved_recipe(run)
    if not _compares(run):
        return load_recipe(saved)
    from paretune.baselines.recipe import load_comparison  # imports torch

    return load_comparison(saved)


def read_candidates(recipe: Recipe, run: Path) -> list[Candidate]:
    """All points of a run that have answers, in the recipe's order.

    Raises:
        InputError: there is none.
    """
    found = []
    for title, seed, point, folder in _points(recipe, run):
        if (folder / "answers.jsonl").exists():
            answers = _by_prompt(folder / "answers.jsonl")
            name = str(folder.relative_to(run))
            found.append(Candidate(title, dict(point.preference), seed, name, answers))
    if not found:
        raise InputError(
            f"'{run}' has no answers to judge: run `paretune evaluate {run} "
            "evaluation.generate=true` and judge the folder evaluation-test in it."
        )
    return found


def base_answers(
    recipe: Recipe, run: Path, progress: Progress | None = None
) -> Mapping[str, Answered]:
    """The base model's answers; if the run has none it is measured now."""
    path = _answers(run)
    if not path.exists():
        measure_base(recipe, run, progress)
    return _by_prompt(path)


def _answers(run: Path) -> Path:
    return run / BASE_FOLDER / "answers.jsonl"


def measure_base(recipe: Recipe, run: Path, progress: Progress | None = None) -> None:
    """Measure the base model as a point would be, into ``base``, where a comparison has it.

    There are answers if the recipe wants them of its points.
    """
    recipe.model.check_place()  # torch takes seconds
    from paretune.experiment.train_point import free_memory
    from paretune.runs.point import measure_point

    front = run / "front.json"  # a folder of `paretune evaluate` may be of another split
    split: Any = read_object(front).get("split", "test") if front.exists() else "test"
    objectives = recipe.data.objectives
    equal = Preference.of(dict.fromkeys(objectives, 1 / len(objectives)))
    plain = recipe.model_copy(update={"method": Linear()})
    folder = RunFolder(run, identity=None)

    def finished(name: str) -> bool:
        asked = recipe.evaluation.generate
        return folder.finished(name) and (_answers(run).exists() or not asked)

    def do(name: str) -> None:
        told.begin(["base model"], 0)
        told.point("base model")
        data = load_splits(recipe, folder)[split]
        dated_recipe = dated(plain, folder.started())
        point = PlannedPoint(equal, recipe.evaluation.seed, name)
        measure_point(dated_recipe, point, None, run / name, data, told.phase)
        free_memory()
        told.end()

    with folder.shared_session():
        told = folder.pieces.watched(progress or Silent())
        failed = folder.work([BASE_FOLDER], do, lambda: None, finished=finished)
    if failed:
        raise InputError(f"The base model could not be measured: {failed[BASE_FOLDER]}")


def common_prompts(candidates: Sequence[Candidate], base: Mapping[str, Answered]) -> list[str]:
    """Prompts that the base model and at least one point answered, in the base model's order.

    Raises:
        InputError: there is none.
    """
    asked = {prompt for candidate in candidates for prompt in candidate.answers}
    prompts = [prompt for prompt in base if prompt in asked]
    if not prompts:
        raise InputError(
            "The base model answered other prompts than the points: delete the folder 'base' of "
            "the run and judge again."
        )
    return prompts


def _points(recipe: Recipe, run: Path) -> list[tuple[str, int, PlannedPoint, Path]]:
    if not _compares(run):
        title, planned = recipe.method_name, plan(recipe, run)
        known = {point.name for point in planned}
        for point in measured_points(run):  # `paretune evaluate --prefer` measures others, too
            name = Path(point.folder).name
            if name not in known:
                planned.append(PlannedPoint(Preference.of(point.preference), point.seed, name))
        return [(title, point.seed, point, point.folder(run)) for point in planned]
    from paretune.baselines.recipe import CompareRecipe

    assert isinstance(recipe, CompareRecipe)
    rows = []
    for entry in recipe.methods:
        for seed in entry.seeds or recipe.sweep.seeds:
            cell = run / "cells" / f"{entry.slug}-seed{seed}"
            one = recipe.sweep.model_copy(update={"seeds": [seed]})
            planned = plan(recipe.model_copy(update={"sweep": one}), cell)
            rows += [(entry.title, seed, point, point.folder(cell)) for point in planned]
    return rows


def _compares(run: Path) -> bool:
    return (run / "cells").is_dir()


def _by_prompt(path: Path) -> dict[str, Answered]:
    answers: dict[str, Answered] = {}  # prompts of a run are distinct
    for number, value in read_jsonl(path):
        try:
            answer = Answered(value["prompt"], value["response"])
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: not an answer ({error}); "
                "expected a JSON object with prompt and response."
            ) from error
        answers.setdefault(prompt_key(answer.prompt), answer)
    return answers
