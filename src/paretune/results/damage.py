"""Files of a run folder that are not whole, found without knowing who will need them."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from paretune.errors import InputError
from paretune.files import read_json, read_jsonl

logger = logging.getLogger(__name__)

# Other programs' files, work in progress, and what is checked by who takes it up again.
_SKIPPED = frozenset({"checkpoints", "claims", "export", "figures", "judge", "alpaca_eval"})


def warn_of_damage(run: Path) -> None:
    """Log which files of a run folder are not whole.

    A command stops at a damaged file that it needs. One that it does not need would go unnoticed
    until somebody needs it, and by then the data it was made of may be gone.
    """
    for path in damaged_files(run):
        logger.warning(
            "'%s' is damaged; this command does not need it. Restore it from a copy, or delete it "
            "and run the command that made it again.",
            path,
        )


def damaged_files(run: Path) -> list[Path]:
    """Files of JSON, JSON lines and tensors that cannot be read, by name.

    A tensor file is whole if its header fits its length; whether its numbers are those that were
    written is checked, by their checksums, where they are used.
    """
    return [path for path in _files(run) if not _is_whole(path)]


def _files(run: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(run):
        below[:] = sorted(name for name in below if name not in _SKIPPED)
        yield from (Path(folder, name) for name in sorted(names))


def _is_whole(path: Path) -> bool:
    try:
        match path.suffix:
            case ".json":
                read_json(path)
            case ".jsonl":
                return _has_lines(path)
            case ".safetensors":
                return _has_header(path)
    except (InputError, OSError):
        return not path.exists()  # another process may have replaced it
    return True


def _has_lines(path: Path) -> bool:
    """Whether there are lines, all of them JSON but for a last one that is being written."""
    lines = 0
    try:
        for _ in read_jsonl(path, nan=True):
            lines += 1
    except InputError:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return lines > 0 and file.read(1) != b"\n" and lines == _newlines(path)
    return lines > 0


def _newlines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _has_header(path: Path) -> bool:
    """The format of safetensors: 8 bytes of length, a JSON header of it, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [
                tensor["data_offsets"][1] for name, tensor in header.items() if name[:2] != "__"
            ]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return False
    return bool(size == 8 + length + max(ends, default=0))
