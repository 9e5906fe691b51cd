"""What is kept beside a conditioned adapter: its gate, its objectives, its calibration."""

from collections.abc import Sequence
from pathlib import Path

from paretune.errors import InputError
from paretune.files import read_json, write_json
from paretune.moo.calibration import Calibration
from paretune.moo.gates import Gate

GATES = "gates.json"


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


def read_gates(folder: Path) -> tuple[Gate, tuple[str, ...], Calibration | None]:
    """The gate of the adapter in a folder, its objectives, and its calibration if it has one.

    Raises:
        InputError: there is none, or the file or the adapter's rank does not fit.
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
    if rank % gate.n_objectives:
        raise InputError(
            f"The adapter in '{folder}' has rank {rank}, which {path.name} cannot cut into "
            f"{gate.n_objectives} blocks: they do not belong together."
        )
    return gate, objectives, calibration
