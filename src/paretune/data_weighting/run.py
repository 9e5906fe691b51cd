"""Running a recipe of `paretune weigh`: every cell once, in a folder that can be resumed.

A run folder holds ``recipe.yaml``, ``manifest.json``, a folder for each cell below ``cells/`` with
its ``result.json``, and what is made of them: ``weigh.json``, ``weigh.md`` and the figures. A cell
with a result is never run again, unless its method's options have changed. Several processes may
share a folder (`paretune.runs.pieces`).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paretune.data_weighting.cell_work import chosen_cells, do_cells
from paretune.data_weighting.mixture_page import MixtureSummary
from paretune.data_weighting.mixture_run import mixture_folder, run_mixture
from paretune.data_weighting.summary import Summary, summarise
from paretune.data_weighting.tables import to_markdown
from paretune.data_weighting.tasks.build import load_task
from paretune.data_weighting.tasks.task import Task
from paretune.data_weighting.trial import Cell, CellResult, cells, run_cell, solver
from paretune.experiment.ground import file_ground
from paretune.progress import Progress
from paretune.recipes.data_weighting import WeighRecipe
from paretune.recipes.language_model import LanguageModelTask
from paretune.recipes.mixture import MixtureRecipe
from paretune.results.front import read_as
from paretune.results.run_folder import begun
from paretune.runs.folder import RunFolder
from paretune.runs.identity import RecipeIdentity

_FREE = ("seeds", "preferences", "methods", "records", "reference_point")


def weigh_folder(recipe: WeighRecipe | MixtureRecipe) -> RunFolder:
    """The folder of a recipe's cells."""
    if isinstance(recipe, MixtureRecipe):
        return mixture_folder(recipe)
    return RunFolder(
        Path(recipe.output_dir),
        RecipeIdentity(recipe),
        mark="result.json",
        contents=("cells", "weigh*", "recipe.yaml", "manifest.json"),
        may_differ=_FREE,
    )


def run_weighing(
    recipe: WeighRecipe | MixtureRecipe,
    *,
    only: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> Summary | MixtureSummary:
    """Run the cells that have no result yet, and publish what there is.

    Args:
        only: Patterns such as ``moml-*`` or ``*-seed0``; cells that match none are left to others.
        fresh: Delete what an earlier run left in the run folder.

    Raises:
        InputError: the folder belongs to another recipe or the data has changed, a pattern matches
            no cell, or recipe and data do not fit.
    """
    if isinstance(recipe, MixtureRecipe):
        return run_mixture(recipe, only=only, fresh=fresh, progress=progress)
    run = Path(recipe.output_dir)
    pieces = chosen_cells(cells(recipe), only, run)
    folder = weigh_folder(recipe)
    folder.check(fresh=fresh)
    day = (None if fresh else begun(folder.manifest)) or datetime.now(UTC).date().isoformat()
    make = load_task(_dated(recipe, day))
    seed = recipe.seeds[0]
    task = make(seed)
    for name, options in recipe.methods.items():
        # May complain, before anything is written or deleted.
        solver(name, options, task.problem, source=recipe.source)

    def run_one(cell: Cell) -> dict[str, Any]:
        nonlocal seed, task
        if cell.seed != seed:
            seed, task = cell.seed, make(cell.seed)
        return run_cell(recipe, task, cell).to_json()

    with folder.shared_session(fresh=fresh):
        with folder.alone():
            if folder.started() != day:  # another process began the run meanwhile
                make = load_task(_dated(recipe, folder.started()))
                task = make(seed)
            _note(recipe, folder, task)
        check = do_cells(
            folder,
            pieces,
            run_one,
            lambda cell: _finished(recipe, cell, run) is not None,
            progress,
        )
        with folder.alone():
            summary = _publish(recipe, folder, task)
        check()
        return summary


def _dated(recipe: WeighRecipe, begun: str) -> WeighRecipe:
    """The recipe with the date that a language model's chat template is told."""
    task = recipe.task
    if not isinstance(task, LanguageModelTask) or task.model.date is not None:
        return recipe
    model = task.model.model_copy(update={"date": begun})
    return recipe.model_copy(update={"task": task.model_copy(update={"model": model})})


def _finished(recipe: WeighRecipe, cell: Cell, run: Path) -> CellResult | None:
    path = cell.folder(run) / "result.json"
    if not path.exists():
        return None
    result = read_as(CellResult, path)
    return result if result.options == recipe.methods[cell.method] else None


def _note(recipe: WeighRecipe, folder: RunFolder, task: Task) -> None:
    path = None if recipe.task.path is None else Path(recipe.task.path)
    files = [] if path is None else [path] if path.is_file() else sorted(path.glob("*"))
    if files:
        folder.stand_on({"data": file_ground(each for each in files if each.is_file())})
    folder.note(
        recipe=recipe.name,
        data=task.counts,
        objectives=list(task.objectives),
        sets=list(task.sets),
    )


def _publish(recipe: WeighRecipe, folder: RunFolder, task: Task) -> Summary:
    """Write tables and figures of all cells that have a result, whoever ran them."""
    found = [_finished(recipe, cell, folder.path) for cell in cells(recipe)]
    results = [result for result in found if result is not None]
    summary = summarise(recipe, task, results, len(found) - len(results))
    if (
        folder.holds_already("weigh.json", summary.to_json())
        and (folder.path / "weigh.md").exists()
    ):
        folder.publish({})  # another worker has done it
        return summary
    folder.publish({"weigh.json": summary.to_json(), "weigh.md": to_markdown(summary)})
    if summary.done:
        from paretune.data_weighting.figure import draw_weighing
        from paretune.data_weighting.paper_figures import draw_paper_figures

        draw_weighing(summary, folder.path)
        draw_paper_figures(summary, folder.path)
    return summary
