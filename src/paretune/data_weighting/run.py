"""Running a recipe of `paretune weigh`: every cell once, in a folder that can be gone on with.

A run folder holds ``recipe.yaml``, ``manifest.json``, a folder for each cell below ``cells/`` with
its ``result.json``, and what is made of them: ``weigh.json``, ``weigh.md`` and the figures. A cell
with a result is never run again, unless its method's options have changed. Several processes may
work on one folder, each on cells of its own (`only`).
"""

import platform
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paretune.data_weighting.summary import Summary, summarise
from paretune.data_weighting.tables import to_markdown
from paretune.data_weighting.tasks.build import load_task
from paretune.data_weighting.tasks.task import Task
from paretune.data_weighting.trial import Cell, CellResult, cells, run_cell, solver
from paretune.errors import InputError
from paretune.files import read_json, write_json, write_text
from paretune.progress import Progress, Silent
from paretune.recipes.data_weighting import WeighRecipe

_VERSIONS = ("paretune", "torch", "numpy", "moocore")
_FREE = ("seeds", "preferences", "methods", "records", "reference_point")


def run_weighing(
    recipe: WeighRecipe,
    *,
    only: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Run the cells that have no result yet, and publish what there is.

    Args:
        only: Patterns such as ``moml-*`` or ``*-seed0``; cells that match none are left to others.
        fresh: Delete what an earlier run left in the run folder.

    Raises:
        InputError: the folder belongs to another recipe, a pattern matches no cell, or recipe and
            data do not fit.
    """
    run, planned = Path(recipe.output_dir), cells(recipe)
    chosen = [cell for cell in planned if not only or _matches(cell, only)]
    if not chosen:
        raise InputError(f"No cell matches {' or '.join(only)}; one is called {planned[0].name}.")
    _claim(recipe, run, fresh)
    pending = [cell for cell in chosen if _finished(recipe, cell, run) is None]
    make = load_task(recipe)
    task = make(recipe.seeds[0])
    for name, options in recipe.methods.items():
        solver(name, options, task.problem)  # may complain
    _note(recipe, run, task)
    seed = recipe.seeds[0]
    progress = progress or Silent()
    progress.begin([cell.name for cell in chosen], len(chosen) - len(pending), ("train",))
    for cell in pending:
        progress.point(cell.name)
        progress.phase("train", 0.0)
        if cell.seed != seed:
            seed, task = cell.seed, make(cell.seed)
        write_json(cell.folder(run) / "result.json", run_cell(recipe, task, cell).to_json())
    progress.end()
    return _publish(recipe, run, task)


def _matches(cell: Cell, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(cell.name, pattern) for pattern in patterns)


def _finished(recipe: WeighRecipe, cell: Cell, run: Path) -> CellResult | None:
    path = cell.folder(run) / "result.json"
    if not path.exists():
        return None
    try:
        result = CellResult.from_json(read_json(path))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"'{path}' is not a result of this version ({error}): delete it and run the command "
            "again."
        ) from error
    return result if result.options == recipe.methods[cell.method] else None


def _claim(recipe: WeighRecipe, run: Path, fresh: bool) -> None:
    """Make the folder this recipe's own, or see that it is."""
    saved = run / "recipe.yaml"
    if fresh and saved.exists():
        shutil.rmtree(run / "cells", ignore_errors=True)
        for path in (*run.glob("weigh*"), saved, run / "manifest.json"):
            path.unlink(missing_ok=True)
    if (run / "cells").exists() and saved.exists():
        other = WeighRecipe.from_file(saved)
        found = [d for d in recipe.differences(other) if not d.startswith(_FREE)]
        if found:
            raise InputError(
                f"'{run}' holds a run of another recipe ({'; '.join(found[:3])}): give "
                "output_dir=... for a new run, or --fresh to delete that one."
            )
    try:
        write_text(saved, recipe.to_yaml())
    except OSError as error:
        raise InputError(f"The run folder '{run}' cannot be written: {error}.") from error


def _note(recipe: WeighRecipe, run: Path, task: Task) -> None:
    manifest: dict[str, Any] = {
        "recipe": recipe.name,
        "data": task.counts,
        "objectives": task.objectives,
        "sets": task.sets,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: version(name) for name in _VERSIONS},
    }
    write_json(run / "manifest.json", manifest)


def _publish(recipe: WeighRecipe, run: Path, task: Task) -> Summary:
    """Write tables and figures of all cells that have a result, whoever ran them."""
    found = [(cell, _finished(recipe, cell, run)) for cell in cells(recipe)]
    results = [result for _, result in found if result is not None]
    missing = len(found) - len(results)
    summary = summarise(recipe, task, results, missing)
    write_json(run / "weigh.json", summary.to_json())
    write_text(run / "weigh.md", to_markdown(summary))
    if summary.done:
        from paretune.data_weighting.figure import draw_weighing

        draw_weighing(summary, run)
    return summary
