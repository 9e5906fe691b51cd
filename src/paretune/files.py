"""Files that are there whole or not at all, whenever the process is killed."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.errors import InputError

_PARTIAL = ".partial"
_AGAIN = "delete it and run the command again"

_DEEPEST = 100  # levels of a JSON value
_LONGEST = 2**26  # bytes of a line of JSON lines
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def write_text(path: Path, text: str) -> None:
    """Replace `path` whole by `text`; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move(partial, path)


def partial_name(path: Path) -> Path:
    """Where to write what is moved to `path` when it is whole: a name that nobody else has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")


def drop_partials(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder and in those in it."""
    for path in sorted(folder.rglob(f"*{_PARTIAL}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` whole by `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, advice: str = _AGAIN) -> str:
    """The text in a file.

    Args:
        advice: What to do about a damaged file, for the message.

    Raises:
        InputError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is damaged (it is not UTF-8 text): {advice}.") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def read_json(path: Path, advice: str = _AGAIN) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: the file cannot be read, or is not JSON.
    """
    try:
        return parse_json(read_text(path, advice), nan=True)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"'{path}' is damaged ({error}): {advice}.") from error


def read_object(path: Path, advice: str = _AGAIN) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    value = read_json(path, advice)
    if not isinstance(value, dict):
        raise InputError(f"'{path}' is damaged (it holds no JSON object): {advice}.")
    return value


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path with ``~`` as the user's home; of a home that is not there, as it is written."""
    return Path(os.path.expanduser(text))


def parse_json(text: str, nan: bool = False) -> Any:
    """The value of a JSON text that can be relied on: no key twice, no half characters, not deep.

    Args:
        nan: Whether NaN and infinities are taken, which JSON has not but Python writes.

    Raises:
        ValueError: it is not such a text; says why.
    """
    constant = None if nan else _refuse_constant
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=constant)
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError("it holds a number of thousands of digits") from None
    # Counting is fast; only what has many brackets can be deep.
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a character (a lone surrogate)") from None
    return value


def read_jsonl(path: Path, *, nan: bool = False) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines with their lines' numbers, from 1; empty lines are none.

    Args:
        nan: As in `parse_json`.

    Raises:
        InputError: the file cannot be read, or a line is not JSON in UTF-8; names the line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST + 1), b""), start=1):
                try:
                    text = _decode(line, first=number == 1).strip(" \t\r\n")
                    if text:
                        yield number, parse_json(text, nan)
                except ValueError as error:
                    raise InputError(
                        f"'{path}', line {number} is not valid JSON ({error}): write one JSON "
                        "object a line, in UTF-8."
                    ) from None
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error}.") from error


def read_objects(path: Path, *, nan: bool = False) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, which must all be objects.

    Raises:
        InputError: see `read_jsonl`; or a line is another JSON value.
    """
    rows = []
    for number, value in read_jsonl(path, nan=nan):
        if not isinstance(value, dict):
            raise InputError(
                f"'{path}', line {number} is not a JSON object: mend or remove the line."
            )
        rows.append(value)
    return rows


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace `path` whole by one JSON object a line."""
    write_text(path, "".join(map(_line, rows)))


def append_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add one JSON object a line; they are on the disk once this returns."""
    if not rows:
        return
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(map(_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False) + "\n"
    # A model may have written half of a character, which no file can hold.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _decode(line: bytes, first: bool) -> str:
    if len(line) > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST:,} bytes")
    if first and line.startswith(_UTF16):
        raise ValueError("the file is UTF-16")
    return line.decode("utf-8-sig" if first else "utf-8")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in an object")
    return found


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth - 1


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


def sync_files(folder: Path) -> None:
    """`sync` a folder's files, not those of folders in it, with the permissions of new files.

    safetensors makes its files for their owner alone, which others on a shared disk could not read.
    """
    umask = os.umask(0o077)  # there is no way to read it but this
    os.umask(umask)
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~umask)
            sync(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def storage_problem(error: BaseException) -> str | None:
    """What is wrong with the disk or its permissions, in a few words; None if it is not that.

    safetensors and torch report a failed write as errors of their own.
    """
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # safetensors
        number = int(found[1])
    if number is None or isinstance(error, ConnectionError | TimeoutError):
        torch_write = isinstance(error, RuntimeError) and (
            "PytorchStreamWriter" in text or "inline_container" in text
        )
        return "a file could not be written; is the disk full?" if torch_write else None
    words = "the disk is full" if number in (errno.ENOSPC, errno.EDQUOT) else os.strerror(number)
    name = getattr(error, "filename", None)
    return f"{words} ('{name}')" if name else words


def cache_folder() -> Path:
    """The user's cache folder for this program, by the platform's custom."""
    if custom := os.environ.get("XDG_CACHE_HOME"):
        base = Path(custom)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif local := os.environ.get("LOCALAPPDATA"):
        base = Path(local)
    else:
        base = Path.home() / ".cache"
    return base / "paretune"


def main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def several_processes() -> bool:
    """Whether this process was started together with others, to share each training."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
