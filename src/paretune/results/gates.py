"""What is kept beside a conditioned adapter: its gate, its objectives, its calibration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paretune.errors import InputError
from paretune.files import read_json, write_json
from paretune.moo.calibration import Calibration
from paretune.moo.gates import Gate
from paretune.results.weights import GATES


def write_gates(
    folder: Path, gate: Gate, objectives: Sequence[str], calibration: Calibration | None = None
) -> None:
    """Keep beside a gated adapter what its gate is, and its calibration."""
    write_json(
        folder / GATES,
        {
            "objectives": list(objectives),
            "basis": gate.basis,
            "ends": ends_of(gate),
            "calibration": None if calibration is None else calibration.to_json(),
        },
    )


def ends_of(gate: Gate) -> list[list[float]]:
    """The blocks' factors where one objective is all that counts: they fix the whole gate."""
    ends: list[list[float]] = gate.factors(np.eye(gate.n_objectives)).tolist()
    return ends


def read_calibration(folder: Path, objectives: Sequence[str]) -> Calibration:
    """What a preference for these objectives means on the gated adapter in a folder.

    Raises:
        InputError: see `read_gates`, or it was not calibrated.
    """
    calibration = read_gates(folder, objectives)[2]
    if calibration is None:
        raise InputError(
            f"The gate of '{folder}' has no calibration: delete that folder, and run the sweep or "
            "comparison again, which calibrates it on the validation data."
        )
    return calibration


def read_gates(
    folder: Path, wanted: Sequence[str] | None = None
) -> tuple[Gate, tuple[str, ...], Calibration | None]:
    """The gate of the adapter in a folder, its objectives, and its calibration if it has one.

    Args:
        wanted: The objectives that it must have.

    Raises:
        InputError: there is none, or the file, its objectives or the adapter's rank do not fit.
    """
    path = folder / GATES
    if not path.is_file():
        raise InputError(f"'{folder}' holds no conditioned adapter: it has no {GATES}.")
    value = read_json(path)
    try:
        objectives = tuple(str(name) for name in value["objectives"])
        gate = Gate(len(objectives), value["basis"])
        ends = value.get("ends")
        # A file without them is of a version whose centred gate of three objectives or more had
        # corners at a distance of 1.
        same = (
            np.allclose(ends, ends_of(gate), rtol=0, atol=1e-6)
            if ends is not None
            else gate.basis == "objectives" or gate.n_objectives == 2
        )
        saved = value["calibration"]
        calibration = None if saved is None else Calibration.from_json(saved)
        rank = int(read_json(folder / "adapter_config.json")["r"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}' is damaged ({error}): restore it, or train the adapter again."
        ) from error
    if calibration is not None and calibration.n_objectives != gate.n_objectives:
        raise InputError(
            f"'{path}' is damaged: its calibration is of {calibration.n_objectives} objectives, "
            f"not {gate.n_objectives}."
        )
    if wanted is not None and objectives != tuple(wanted):
        raise InputError(
            f"'{path}' is damaged: its objectives are {', '.join(objectives)}, not "
            f"{', '.join(wanted)}."
        )
    if rank % gate.n_objectives:
        raise InputError(
            f"The adapter in '{folder}' has rank {rank}, which {path.name} cannot cut into "
            f"{gate.n_objectives} blocks: they do not belong together."
        )
    if not same:
        raise InputError(
            f"The adapter in '{folder}' was trained with another gate, of an earlier version of "
            "paretune: train it again, or read it with that version."
        )
    return gate, objectives, calibration
