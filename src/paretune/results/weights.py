"""The weights of a trained point: their files, and the checksums kept of them when they were saved.

Points trained before there were checksums have none, and are taken as they are.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.files import file_digest, read_object

TRAINING = "training.json"
"""Says that training is over; written last."""

CHECKSUMS = "sha256"
"""The key in it: of every file of the weights, by name."""

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


GATES = "gates.json"
"""The gate of an adapter that serves every preference (`paretune.results.gates`)."""


def weight_files(folder: Path) -> list[Path]:
    """The files of an adapter, or of a whole model."""
    if (folder / ADAPTER[0]).exists() or (folder / ADAPTER[1]).exists():
        return [folder / name for name in ADAPTER if (folder / name).exists()]
    return sorted([*folder.glob("config.json"), *folder.glob("model*.safetensors*")])


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights in a folder, and of their gate, by the names of their files."""
    gate = [path for path in [folder / GATES] if path.exists()]
    return {path.name: file_digest(path) for path in [*weight_files(folder), *gate]}


def check_weights(folder: Path, record: str = TRAINING, contents: bool = True) -> None:
    """See that the weights in a folder are those that were saved.

    Args:
        record: The file with their checksums.
        contents: Whether to compare checksums, or only to see that all files are there.

    Raises:
        InputError: naming the file that is missing or has changed.
    """
    names: Iterable[str] = ADAPTER if any((folder / name).exists() for name in ADAPTER) else ()
    for name in names:
        if not (folder / name).exists():
            raise damaged(folder / name, "it is missing")
    training = folder / record
    saved: Any = read_object(training).get(CHECKSUMS, {}) if training.exists() else {}
    if not isinstance(saved, dict):
        raise InputError(f"'{training}' is damaged: its {CHECKSUMS} are not an object.")
    for name, digest in saved.items():
        path = folder / name
        if not path.exists():
            raise damaged(path, "it is missing")
        if contents and file_digest(path) != digest:
            raise damaged(path, "its checksum is not that of the file which was saved")


def damaged(path: Path, problem: str) -> InputError:
    """The error about a file of weights."""
    return InputError(
        f"'{path}' is damaged ({problem}): restore it, or delete the folder '{path.parent}' and "
        "run the sweep or comparison again, which trains it anew."
    )
