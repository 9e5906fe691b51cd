"""The cells of a run folder, each done once by whichever process takes it."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from paretune.data_weighting.trial import Cell
from paretune.errors import InputError, TrainingStoppedError
from paretune.files import several_processes, write_json
from paretune.progress import Progress, Silent
from paretune.runs.folder import RunFolder


def chosen_cells(planned: Sequence[Cell], only: Sequence[str], run: Path) -> dict[str, Cell]:
    """The cells whose names match a pattern, or all without patterns, by their place in the folder.

    Raises:
        InputError: none matches, or this is one of several processes of a launcher.
    """
    if several_processes():
        raise InputError(
            "Data weighting does not divide a cell among processes: start it with plain "
            "`paretune weigh ... --workers N`, which gives each process cells of its own."
        )
    chosen = [cell for cell in planned if not only or any(fnmatchcase(cell.name, p) for p in only)]
    if not chosen:
        raise InputError(f"No cell matches {' or '.join(only)}; one is called {planned[0].name}.")
    return {str(cell.folder(run).relative_to(run)): cell for cell in chosen}


def do_cells(
    folder: RunFolder,
    pieces: Mapping[str, Cell],
    run_one: Callable[[Cell], dict[str, Any]],
    is_done: Callable[[Cell], bool],
    progress: Progress | None,
) -> Callable[[], None]:
    """Do what is not done, within a shared session of the folder.

    Args:
        pieces: Of `chosen_cells`.
        run_one: Gives a cell's result, which is kept as JSON.

    Returns:
        Raises TrainingStoppedError when it is called, if another process failed at a cell: once
        what there is has been published.
    """

    def finished(name: str) -> bool:
        return is_done(pieces[name])

    def done() -> int:
        return sum(map(finished, pieces))

    watched = folder.pieces.watched(progress or Silent())

    def do(name: str) -> None:
        cell = pieces[name]
        watched.point(cell.name)
        watched.phase("train", 0.0)
        result = run_one(cell)
        folder.pieces.check()
        write_json(folder.path / name / folder.mark, result)

    watched.begin([cell.name for cell in pieces.values()], done(), ("train",))
    failed = folder.work(list(pieces), do, lambda: watched.finished(done()), finished=finished)
    watched.end()

    def check() -> None:
        for name, reason in failed.items():
            raise TrainingStoppedError(f"{pieces[name].name} failed in another process: {reason}")

    return check
