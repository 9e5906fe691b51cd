"""Log-probabilities of a reference model on disk, kept as they are computed."""

import contextlib
import json
import logging
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load, save
from torch import Tensor, nn

from paretune.claims import held
from paretune.data.tokenization import PairIndex, TokenSequence
from paretune.errors import first_line
from paretune.files import move, partial_name, sync
from paretune.models import whole

logger = logging.getLogger(__name__)

_SMALLEST, _MOST = 256, 100
"""Sequences in a file, at least, and about so many files of a data set, at most."""

# What of a configuration says nothing about the function that the model computes.
_OF_NO_EFFECT = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


class ReferenceCache:
    """Reference log-probabilities on disk: a folder for each (model, sequences), files of parts.

    Args:
        folder: Where the folders are; None keeps nothing.
        key: Of the model and its precision.
        sequences: In the order in which they are scored.
    """

    def __init__(
        self, folder: str | Path | None, key: str, sequences: Sequence[TokenSequence]
    ) -> None:
        self.size = len(sequences)
        self.folder: Path | None = None
        if folder is not None:
            digest = xxhash.xxh3_128(key.encode())
            digest.update(sequences_digest(sequences).encode())
            self.folder = Path(folder) / digest.hexdigest()

    def parts(self) -> Iterator[slice]:
        """Slices of the sequences that have a file each."""
        step = max(_SMALLEST, -(-self.size // (_MOST * _SMALLEST)) * _SMALLEST)
        return (slice(at, min(at + step, self.size)) for at in range(0, self.size, step))

    def load(self, part: slice) -> Tensor | None:
        """The stored values of a part; None, with a warning, where its file is damaged."""
        path = self._path(part)
        if path is None or not path.exists():
            return None
        try:
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
            logps = load(content)["logps"]
            if metadata["digest"] == self._digest(part, logps):
                return logps
            reason = "its checksum is another"
        except Exception as error:  # whatever random bytes make of a reader
            reason = first_line(error)
        logger.warning(
            "The reference log-probabilities in '%s' are damaged (%s): they are computed again.",
            path,
            reason,
        )
        return None

    def store(self, part: slice, logps: Tensor) -> None:
        """Write the values of a part so that a reader sees a whole file or none."""
        path = self._path(part)
        if path is None:
            return
        partial = partial_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"digest": self._digest(part, logps)}
            partial.write_bytes(save({"logps": logps.contiguous()}, metadata))
            sync(partial)
            move(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            logger.warning("Reference log-probabilities cannot be kept in '%s': %s", path, error)

    @contextlib.contextmanager
    def alone(self, part: slice) -> Iterator[None]:
        """Within, no other process computes this part: wait for it, then see what it stored."""
        path = self._path(part)
        if path is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a folder that cannot be written keeps nothing
                stack.enter_context(held(path.with_suffix(".claim"), patience=math.inf))
            yield

    def clear(self) -> None:
        """Forget what is stored."""
        for part in self.parts():
            path = self._path(part)
            if path is not None:
                path.unlink(missing_ok=True)

    def _path(self, part: slice) -> Path | None:
        return None if self.folder is None else self.folder / f"{part.start:09d}.safetensors"

    def _digest(self, part: slice, logps: Tensor) -> str:
        assert self.folder is not None
        digest = xxhash.xxh3_64(f"{self.folder.name} {part.start} {part.stop}".encode())
        digest.update(f"{tuple(logps.shape)} {logps.dtype}".encode())
        digest.update(_bytes(logps))
        return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """A digest of the function that a model computes: its configuration and all of its numbers.

    A LoRA adapter whose B is zero, which leaves the function as it is, is left out, so that all
    fresh adapters on one base, and the base itself, have one digest. About 0.2 s for 135 million
    float32 numbers.
    """
    digest = xxhash.xxh3_128()
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    config = base.config.to_dict() if hasattr(base, "config") else {}
    kept = {key: value for key, value in config.items() if key not in _OF_NO_EFFECT}
    digest.update(f"{type(base).__name__} {_json(kept)}".encode())
    idle = _idle_parameters(model)
    adapters = False
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if id(tensor) in idle:
            continue
        adapters |= "lora_" in name
        # PEFT renames what it wraps, so names would tell the same weights apart.
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(_bytes(whole(tensor)))
        for scales in _quantization_scales(tensor):
            digest.update(_bytes(scales))
    configs = getattr(model, "peft_config", {})
    if adapters or any(
        str(getattr(c, "peft_type", "")) != "PeftType.LORA" for c in configs.values()
    ):
        digest.update(_json({name: config.to_dict() for name, config in configs.items()}).encode())
        digest.update(str(getattr(model, "active_adapters", "")).encode())
    return digest.hexdigest()


def sequences_digest(sequences: Sequence[TokenSequence]) -> str:
    """A digest of token sequences and of where their responses begin."""
    digest = xxhash.xxh3_128()
    for sequence in sequences:
        numbers = (len(sequence.input_ids), sequence.prompt_length, *sequence.input_ids)
        digest.update(array("q", numbers).tobytes())
    return digest.hexdigest()


def pairs_digest(sequences: Sequence[TokenSequence], pairs: Mapping[str, PairIndex]) -> str:
    """A digest of tokenised pairs: which responses, how they are labelled, weights and offsets."""
    digest = xxhash.xxh3_128(sequences_digest(sequences).encode())
    for name, index in pairs.items():
        digest.update(f"{name} {len(index)} ".encode())
        digest.update(array("q", [*index.chosen, *index.rejected, *index.prompt]).tobytes())
        digest.update(array("d", [*index.weight, *(index.offset or ())]).tobytes())
    return digest.hexdigest()


def trained_adapter(model: nn.Module) -> bool:
    """Whether the model has a LoRA adapter that changes what it computes."""
    idle = _idle_parameters(model)
    return any("lora_B" in n and id(p) not in idle for n, p in model.named_parameters())


def _idle_parameters(model: nn.Module) -> set[int]:
    """Parameters of LoRA's that change nothing: A and B where B is zero."""
    idle: set[int] = set()
    module: Any
    for module in model.modules():
        for down, up in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            ups: Any = getattr(module, up, None)
            downs: Any = getattr(module, down, None)
            if not isinstance(ups, nn.ModuleDict | nn.ParameterDict):
                continue
            for name in ups:
                weight = getattr(ups[name], "weight", ups[name])
                if isinstance(weight, Tensor) and not bool(weight.any()):
                    idle |= {id(weight), id(getattr(downs[name], "weight", downs[name]))}
    return idle


def _quantization_scales(tensor: Tensor) -> list[Tensor]:
    """The scales that bitsandbytes keeps beside the numbers of a quantised tensor."""
    absmax = getattr(getattr(tensor, "quant_state", None), "absmax", None)
    scales = (absmax, getattr(tensor, "SCB", None))
    return [value for value in scales if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> Any:
    """The numbers of a tensor as a buffer of bytes."""
    flat = tensor.detach().reshape(-1).contiguous().cpu()
    return flat.view(torch.uint8).numpy()


def _json(value: Any) -> str:
    def plain(other: Any) -> Any:
        return sorted(map(str, other)) if isinstance(other, set | frozenset) else str(other)

    return json.dumps(value, sort_keys=True, default=plain)
