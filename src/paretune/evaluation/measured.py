"""What was measured, read back from a run folder.

Points from before there were statistics of texts get them from their answers: no model is needed,
and nothing here imports torch.
"""

import json
from dataclasses import replace
from pathlib import Path

from paretune.errors import InputError
from paretune.evaluation.text_statistics import text_statistics
from paretune.files import read_json
from paretune.front import Front, FrontPoint

ANSWERS = "answers.jsonl"


def read_point(folder: Path) -> FrontPoint:
    """The finished point in `folder`, from its ``metrics.json``."""
    return _complete(FrontPoint.from_json(read_json(folder / "metrics.json")), folder)


def read_front(run: Path) -> Front:
    """The front of a run folder, from its ``front.json``.

    Raises:
        InputError: the file is not a front.
    """
    front = Front.read(run / "front.json")
    points = tuple(_complete(point, run / point.folder) for point in front.points)
    return replace(front, points=points)


def _complete(point: FrontPoint, folder: Path) -> FrontPoint:
    path = folder / ANSWERS
    if point.text is not None or not path.exists():
        return point
    # Not `read_answers`, whose module imports torch.
    try:
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").split("\n") if row]
        return replace(point, text=text_statistics((r["response"], r["finished"]) for r in rows))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"'{path}' is damaged ({error}): delete it and the metrics.json beside it, and run "
            "the command again."
        ) from error
