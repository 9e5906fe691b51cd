"""Running a `MixtureRecipe`: every cell once, in a folder that can be resumed.

The folder holds ``recipe.yaml``, ``manifest.json``, a folder for each cell below ``cells/`` with
its ``result.json``, ``retrained/`` with what all cells of a seed have in common, and what is made
of them: ``weigh.json``, ``weigh.md``, ``weigh_weights.png`` and ``mixture.yaml``, with which other
programs train on the sets.
"""

from collections.abc import Sequence
from pathlib import Path

from paretune.data_weighting.cell_work import chosen_cells, do_cells
from paretune.data_weighting.mixture_cell import (
    Material,
    MixtureResult,
    make_arguments,
    mixture_cells,
    run_mixture_cell,
)
from paretune.data_weighting.mixture_check import check_sets
from paretune.data_weighting.mixture_page import MixtureSummary, mixture_yaml, to_markdown
from paretune.data_weighting.trial import Cell
from paretune.experiment.ground import file_ground
from paretune.models import check_model
from paretune.progress import Progress
from paretune.recipes.mixture import MixtureRecipe, SetsTask
from paretune.results.front import read_as
from paretune.runs.folder import Content, RunFolder
from paretune.runs.identity import RecipeIdentity


def mixture_folder(recipe: MixtureRecipe) -> RunFolder:
    """The folder of a recipe's cells."""
    return RunFolder(
        Path(recipe.output_dir),
        RecipeIdentity(recipe),
        mark="result.json",
        contents=("cells", "retrained", "weigh*", "mixture*", "recipe.yaml", "manifest.json"),
        may_differ=("seeds", "preferences", "methods"),
    )


def run_mixture(
    recipe: MixtureRecipe,
    *,
    only: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> MixtureSummary:
    """Run the cells that have no result yet, and publish what there is.

    Args:
        only: Patterns such as ``lookahead-*`` or ``*-seed0``; cells that match none are left to
            others.
        fresh: Delete what an earlier run left in the run folder.

    Raises:
        InputError: the folder belongs to another recipe or a file has changed, a pattern matches
            no cell, or recipe and rows do not fit.
    """
    run = Path(recipe.output_dir)
    pieces = chosen_cells(mixture_cells(recipe), only, run)
    folder = mixture_folder(recipe)
    folder.check(fresh=fresh)
    arguments = [
        # May complain, before anything is written or deleted.
        make_arguments(recipe, recipe.points[0], recipe.seeds[0], run, method=method, **options)
        for method, options in recipe.methods.items()
    ]
    if fresh or any(_finished(recipe, cell, run) is None for cell in pieces.values()):
        model = recipe.model
        model.check_place()
        check_sets(recipe, arguments)
        check_model(model.name, model.trust_remote_code, model.revision)
    with folder.shared_session(fresh=fresh):
        with folder.alone():
            _note(recipe, folder)
        check = do_cells(
            folder,
            pieces,
            lambda cell: run_mixture_cell(recipe, cell, run).to_json(),
            lambda cell: _finished(recipe, cell, run) is not None,
            progress,
        )
        with folder.alone():
            summary = _publish(recipe, folder)
        check()
        return summary


def _finished(recipe: MixtureRecipe, cell: Cell, run: Path) -> MixtureResult | None:
    path = cell.folder(run) / "result.json"
    if not path.exists():
        return None
    result = read_as(MixtureResult, path)
    return result if result.options == recipe.methods[cell.method] else None  # type: ignore[index]


def _note(recipe: MixtureRecipe, folder: RunFolder) -> None:
    task = recipe.task
    if isinstance(task, SetsTask):
        named = {**task.sets, **task.criteria, **(task.test or {})}
        files = [path for path in map(Path, named.values()) if path.is_file()]
        if files:
            folder.stand_on({"data": file_ground(sorted(files))})
    folder.note(recipe=recipe.name, objectives=task.objectives)


def _publish(recipe: MixtureRecipe, folder: RunFolder) -> MixtureSummary:
    """Write what is made of all cells that have a result, whoever ran them."""
    found = [_finished(recipe, cell, folder.path) for cell in mixture_cells(recipe)]
    results = [result for result in found if result is not None]
    material = Material.of(recipe, recipe.seeds[0])
    summary = MixtureSummary(
        recipe.name,
        tuple(recipe.task.objectives),
        tuple(recipe.points),
        material.bad,
        material.conflicted,
        tuple(results),
        len(found) - len(results),
    )
    files: dict[str, Content] = {"weigh.json": summary.to_json(), "weigh.md": to_markdown(summary)}
    if summary.done:
        files |= mixture_yaml(recipe, summary)
    folder.publish(files)
    if summary.done:
        from paretune.data_weighting.mixture_figure import draw_weights

        draw_weights(summary, folder.path)
    return summary
