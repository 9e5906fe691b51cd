"""What a run's results stand on, as digests: the data as it was read, base model and tokenizer.

A session of a run compares them with those of the first one.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.files import cache_folder, file_digest, user_path, write_json
from paretune.models import BUILT_IN, built_in_folder

if TYPE_CHECKING:
    from paretune.data import PreferenceData

Ground = dict[str, dict[str, str]]
"""Digests by name, of "data", "model", "tokenizer", "generation" and reward models."""

_WEIGHTS = (".safetensors", ".bin", ".gguf")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"),
    *("chat_template.jinja", "chat_template.json"),
)
_LARGE = 1 << 24  # bytes from which on a digest is kept in the cache
_ROWS = 1000


def data_ground(data: "PreferenceData") -> Ground:
    """The digest of every objective's pairs, in their order."""
    return {"data": {name: rows_digest(pairs) for name, pairs in data.pairs.items()}}


def model_ground(name: str, revision: str | None = None) -> Ground:
    """The digests of a model's configuration, weights and code, and of its tokenizer's files.

    Of a model from the hub, its commit; nothing where that cannot be had.
    """
    folder = built_in_folder(name) if name in BUILT_IN else user_path(name)
    if not folder.is_dir():
        commit = _commit(name, revision)
        return {"model": {"commit": commit}} if commit else {}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    model = [
        path for path in files if path.name == "config.json" or path.suffix in (*_WEIGHTS, ".py")
    ]
    tokenizer = [path for path in files if path.name in TOKENIZER]
    ground = {"model": file_ground(model), "tokenizer": file_ground(tokenizer)}
    ends = folder / "generation_config.json"  # which tokens end an answer
    return {**ground, "generation": file_ground([ends])} if ends.is_file() else ground


def file_ground(paths: Iterable[Path]) -> dict[str, str]:
    """The digests of files by their names; of JSON, of its values."""
    return {path.name: _digest(path) for path in paths}


def rows_digest(pairs: Any) -> str:
    """The digest of a data set's rows, in their order."""
    digest = hashlib.sha256()
    for start in range(0, len(pairs), _ROWS):
        digest.update(json.dumps(pairs[start : start + _ROWS], sort_keys=True).encode())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        except ValueError:
            return file_digest(path)
    return file_digest(path) if path.stat().st_size < _LARGE else _cached_digest(path)


def _cached_digest(path: Path) -> str:
    """A large file's digest, made again when its size or its time of change is another."""
    found = path.resolve().stat()
    key = f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"
    kept = cache_folder() / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    try:
        return str(json.loads(kept.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        digest = file_digest(path)
        with contextlib.suppress(OSError):
            write_json(kept, {"file": key, "sha256": digest})
        return digest


def data_commit(name: str | None, revision: str | None = None) -> str | None:
    """The commit at which a data set of the hub stands in this machine's cache, if it is there."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if name is None:
        return None
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    reference = folder / "refs" / (revision or "main")
    try:
        return reference.read_text(encoding="utf-8").strip()
    except OSError:  # a revision that is a commit has no file
        return revision


def machine() -> dict[str, str]:
    """The GPUs of this process, CUDA, and packages that a run may use and may lack."""
    import torch

    found = {name: version(name) for name in ("trl", "bitsandbytes") if find_spec(name)}
    if not torch.cuda.is_available():
        return found
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{cards.count(card)} x {card}" for card in dict.fromkeys(cards))
    return {**found, "gpu": gpus, "cuda": str(torch.version.cuda)}


def _commit(name: str, revision: str | None) -> str | None:
    """The commit of a model on the hub, from its configuration's place in the cache."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(name, "config.json", revision=revision or "main")
    except (OSError, ValueError):
        return None
    return None if path is None else Path(path).parent.name
