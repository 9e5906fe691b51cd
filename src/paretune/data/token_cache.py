"""Tokenised pairs on disk, so that every point of a sweep reads what the first one made."""

import contextlib
import inspect
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers
import transformers
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load, save

from paretune.data import chat_template, encoding, messages, pair_rows, rows, tokenization
from paretune.data.tokenization import (
    Overlong,
    PairCounts,
    PairIndex,
    TokenizedPairs,
    TokenTable,
    tokenize_pairs,
)
from paretune.errors import first_line
from paretune.files import main_process, move, sync

logger = logging.getLogger(__name__)

Datasets = Mapping[str, Iterable[Mapping[str, Any]]]

_COLUMNS = {"chosen": np.int64, "rejected": np.int64, "prompt": np.int64, "row": np.int64}
_ROWS = 1000


def cached_pairs(
    folder: str | Path | None,
    datasets: Datasets,
    tokenizer: Any,
    max_length: int | None = None,
    overlong: Overlong = "drop",
) -> TokenizedPairs:
    """`tokenize_pairs`, kept in a folder under a digest of everything that it depends on.

    A file that is damaged is told of and made again. Nothing is kept of rows that can be read only
    once, of a tokenizer in Python, or with a chat template that asks for the time.

    Args:
        folder: Where the files are; None keeps nothing.
        datasets, tokenizer, max_length, overlong: As in `tokenize_pairs`.

    Raises:
        InputError: see `tokenize_pairs`.
    """
    key = None if folder is None else _key(datasets, tokenizer, max_length, overlong)
    if folder is None or key is None:
        return tokenize_pairs(datasets, tokenizer, max_length, overlong)
    path = Path(folder) / f"{key}.safetensors"
    found = _read(path, key)
    if found is None:
        found = tokenize_pairs(datasets, tokenizer, max_length, overlong)
        if main_process():
            _write(path, key, found)
        return found
    for remark in found.remarks:
        logger.warning("%s", remark)
    for objective, counts in found.counts.items():
        counts.tell(objective, max_length)
    return found


def _key(
    datasets: Datasets, tokenizer: Any, max_length: int | None, overlong: Overlong
) -> str | None:
    """A digest of data, tokenizer, template, options and of the code; None where there is none."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    template = json.dumps(tokenizer.chat_template)
    asks_for_time = "strftime_now" in template and "macro strftime_now" not in template
    foreign = type(tokenizer).__module__.startswith("transformers_modules")
    if not hasattr(backend, "to_str") or asks_for_time or foreign:
        return None
    settings = [
        type(tokenizer).__name__,
        str(getattr(tokenizer, "name_or_path", "")),  # stands in remarks
        tokenizer.special_tokens_map,
        getattr(tokenizer, "split_special_tokens", None),
        template,
        max_length,
        overlong,
    ]
    digest = xxhash.xxh3_128(_code_digest().encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    backend.no_truncation()  # as any call of the tokenizer without these options does
    backend.no_padding()
    digest.update(backend.to_str().encode())
    for name, given in datasets.items():
        data: Any = given
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            return None
        digest.update(f"{name} {len(data)}".encode())
        for start in range(0, len(data), _ROWS):
            try:
                text = json.dumps(data[start : start + _ROWS])
            except (TypeError, ValueError):  # what is no JSON, a mistake as a rule
                return None
            digest.update(text.encode())
    return digest.hexdigest()


@cache
def _code_digest() -> str:
    """Of the code that makes tokens of texts: what another version made is not read."""
    digest = xxhash.xxh3_128()
    for module in (chat_template, encoding, messages, pair_rows, rows, tokenization):
        digest.update(inspect.getsource(module).encode())
    for package in (jinja2, tokenizers, transformers):
        digest.update(package.__version__.encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> TokenizedPairs | None:
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        arrays = load(content)
        if metadata["digest"] != _digest(key, metadata["counts"], arrays):
            raise ValueError("its checksum is another")
        described = json.loads(metadata["counts"])
        table = TokenTable(arrays["tokens"], arrays["ends"], arrays["prompt_lengths"])
        pairs, counts = {}, {}
        for number, (name, values) in enumerate(described["pairs"]):
            columns = {each: arrays[f"{number} {each}"].tolist() for each in (*_COLUMNS, "weight")}
            pairs[name] = PairIndex(**columns)
            counts[name] = PairCounts(**values | {"unread": Counter(values["unread"])})
        return TokenizedPairs(table, pairs, counts=counts, remarks=tuple(described["remarks"]))
    except Exception as error:  # whatever random bytes make of a reader
        reason = first_line(error)
    logger.warning("The tokens in '%s' are damaged (%s): they are made again.", path, reason)
    return None


def _write(path: Path, key: str, pairs: TokenizedPairs) -> None:
    """Write so that a reader sees a whole file or none."""
    table = pairs.sequences
    assert isinstance(table, TokenTable)
    arrays: dict[str, NDArray[Any]] = {
        "tokens": table.tokens,
        "ends": table.ends,
        "prompt_lengths": table.prompt_lengths,
    }
    for number, index in enumerate(pairs.pairs.values()):
        for column, kind in _COLUMNS.items():
            arrays[f"{number} {column}"] = np.asarray(getattr(index, column), kind)
        arrays[f"{number} weight"] = np.asarray(index.weight, np.float64)
    counts = json.dumps(
        {
            "pairs": [[name, pairs.counts[name].to_json()] for name in pairs.pairs],
            "remarks": pairs.remarks,
        }
    )
    metadata = {"counts": counts, "digest": _digest(key, counts, arrays)}
    partial = path.with_suffix(f".{os.getpid()}.partial")  # several runs may store at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(save(arrays, metadata))
        sync(partial)
        move(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        logger.warning("Tokens cannot be kept in '%s': %s", path, error)


def _digest(key: str, counts: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = xxhash.xxh3_128(f"{key} {counts}".encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
