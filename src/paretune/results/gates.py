"""What is kept beside a conditioned adapter: its gate, its objectives, its calibration."""

from collections.abc import Sequence
from pathlib import Path

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
            "calibration": None if calibration is None else calibration.to_json(),
        },
    )


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
    return gate, objectives, calibration
