"""AlpacaEval 2.0 as data: instructions, model outputs in its exact form, annotations, win rates.

Dubois et al., Length-Controlled AlpacaEval (2024), https://github.com/tatsu-lab/alpaca_eval. The
length-controlled win rate is in `paretune.evaluation.length_control`.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.files import parse_json, read_jsonl, write_json
from paretune.results.spread import Spread

DATASET = "tatsu-lab/alpaca_eval"
DRAW = 1.5
"""The preference of neither; 1 is the baseline's output, 2 the model's. 0 is an old sign for it."""


@dataclass(frozen=True)
class Instruction:
    """One of the 805 instructions, and the collection it is from."""

    text: str
    dataset: str = ""


@dataclass(frozen=True)
class Annotation:
    """A judge's verdict on two outputs.

    Attributes:
        index: row of the instruction in the list of 805, to which difficulties belong.
        preference: from 1 (the baseline's `output_1`) to 2 (the model's `output_2`); None where
            the judge gave none.
    """

    index: int
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    preference: float | None


@dataclass(frozen=True)
class WinRate:
    """Of a model against the baseline, in percent.

    Attributes:
        win_rate: mean preference.
        standard_error: of it; NaN for one verdict.
        discrete: wins and half the draws, over all verdicts.
        wins: verdicts for the model; `losses` for the baseline, `draws` for neither.
        missing: annotations without a verdict, which count for nothing.
        mean_length: characters of the model's outputs.
    """

    win_rate: float
    standard_error: float
    discrete: float
    wins: int
    losses: int
    draws: int
    missing: int
    mean_length: float


def read_instructions(path: Path) -> list[Instruction]:
    """Instructions in their order, from JSON (a list) or JSON lines, each with ``instruction``.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    rows = _rows(path)
    if not rows:
        raise InputError(f"'{path}' holds no instructions.")
    return [
        Instruction(_text(row, "instruction", path, number), str(row.get("dataset") or ""))
        for number, row in enumerate(rows, start=1)
    ]


def write_outputs(
    path: Path, instructions: Sequence[Instruction], outputs: Sequence[str], generator: str
) -> None:
    """Write what ``alpaca_eval --model_outputs`` reads: a list in the order of the instructions."""
    rows = [
        {
            "instruction": instruction.text,
            "output": output,
            "generator": generator,
            "dataset": instruction.dataset,
        }
        for instruction, output in zip(instructions, outputs, strict=True)
    ]
    write_json(path, rows)


def read_annotations(
    path: Path, instructions: Sequence[Instruction] | None = None, total: int | None = None
) -> list[Annotation]:
    """Annotations as `alpaca_eval` writes them (``annotations.json``), of one model.

    Args:
        instructions: All of them; with these, annotations are matched by the instruction's words,
            may be some only, in any order, and come out in that of the list. Otherwise they stay as
            they are and are matched by their key ``index``, or else by position, as `alpaca_eval`
            does.
        total: How many instructions there are, if that matters: so many annotations there must be
            where they are matched by position.

    Raises:
        InputError: the file is missing, holds something else, is of several models, has an
            instruction that is not in the list, or cannot be matched.
    """
    rows = _rows(path)
    if not rows:
        raise InputError(f"'{path}' holds no annotations.")
    placed = instructions is None and not all(isinstance(row.get("index"), int) for row in rows)
    if placed and total is not None and len(rows) != total:
        raise InputError(
            f"'{path}' has {len(rows)} annotations, but there are {total} instructions: give the "
            "list of all of them, or each annotation its 'index'."
        )
    places: dict[str, deque[int]] = defaultdict(deque)
    for place, instruction in enumerate(instructions or ()):
        places[instruction.text].append(place)
    annotations = []
    for number, row in enumerate(rows, start=1):
        if instructions is None:
            index = number - 1 if placed else row["index"]
        else:
            left = places.get(_text(row, "instruction", path, number))
            if not left:
                raise InputError(
                    f"'{path}', row {number}: its instruction is not in the list, or stands there "
                    "less often: give the list that the annotations are of."
                )
            index = left.popleft()
        annotations.append(
            Annotation(
                index=index,
                output_1=_text(row, "output_1", path, number),
                output_2=_text(row, "output_2", path, number),
                generator_1=str(row.get("generator_1", "baseline")),
                generator_2=str(row.get("generator_2", "model")),
                preference=_preference(row, path, number),
            )
        )
    for key in ("generator_1", "generator_2"):
        found = sorted({getattr(annotation, key) for annotation in annotations})
        if len(found) > 1:
            raise InputError(
                f"'{path}' has several values of {key} ({', '.join(found[:3])}): score the "
                "annotations of one model at a time."
            )
    if instructions is not None:
        annotations.sort(key=lambda annotation: annotation.index)
    return annotations


def win_rate(annotations: Sequence[Annotation]) -> WinRate:
    """The share of verdicts that the model wins, each counted by the judge's preference.

    Raises:
        InputError: no annotation has a verdict.
    """
    wins = [a.preference - 1 for a in annotations if a.preference is not None]
    spread = Spread.of(wins)
    if spread is None:
        raise InputError("None of the annotations has a preference from 1 to 2.")
    won = sum(value > 0.5 for value in wins)
    drawn = sum(value == 0.5 for value in wins)
    return WinRate(
        win_rate=100 * spread.mean,
        standard_error=100 * spread.standard_error,
        discrete=100 * (won + drawn / 2) / len(wins),
        wins=won,
        losses=len(wins) - won - drawn,
        draws=drawn,
        missing=len(annotations) - len(wins),
        mean_length=math.fsum(len(a.output_2) for a in annotations) / len(annotations),
    )


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is no text in UTF-8: unpack it, if it is packed.") from error
    try:
        listed = text.lstrip().startswith("[")
        # Annotations without a verdict may hold NaN.
        rows = parse_json(text, nan=True) if listed else [r for _, r in read_jsonl(path, nan=True)]
    except ValueError as error:
        raise InputError(f"'{path}' is neither JSON nor JSON lines ({error}).") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"'{path}', row {number} is not an object with named values.")
    return list(rows)


def _text(row: Mapping[str, Any], key: str, path: Path, number: int) -> str:
    if not isinstance(row.get(key), str):
        raise InputError(f"'{path}', row {number} has no text under '{key}'.")
    return str(row[key])


def _preference(row: Mapping[str, Any], path: Path, number: int) -> float | None:
    value = row.get("preference")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"'{path}', row {number}: 'preference' is {value!r}, not a number.")
    if value == 0:
        return DRAW
    return float(value) if 1 <= value <= 2 else None  # NaN is neither
