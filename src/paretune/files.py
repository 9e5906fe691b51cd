"""Files that are there whole or not at all, whenever the process is killed."""

import json
import os
from pathlib import Path
from typing import Any

from paretune.errors import InputError

_PARTIAL = ".partial"  # the next run overwrites what a killed one left under this name


def write_text(path: Path, text: str) -> None:
    """Replace `path` whole by `text`; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` whole by `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"'{path}' is damaged ({error}): delete it and run the command again."
        ) from error


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path with ``~`` as the user's home; of a home that is not there, as it is written."""
    return Path(os.path.expanduser(text))


def move(source: Path, target: Path) -> None:
    """Rename within one file system, replacing `target`; it survives a crash once this returns."""
    source.replace(target)
    if os.name == "posix":
        sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"
