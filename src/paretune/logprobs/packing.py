"""Whether a model's batches run packed: what its configuration says, and a proof at first use."""

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor, nn

from paretune.data.packing import PackedBatch, pack
from paretune.data.tokenization import TokenSequence, pad_sequences
from paretune.errors import InputError
from paretune.logprobs.attention import UnpackableError
from paretune.logprobs.head import base_model
from paretune.logprobs.passes import PackedPass, sequence_logps
from paretune.models import is_sharded

PackingMode = Literal["auto", "on", "off"]

logger = logging.getLogger(__name__)

_LAYERS = ("full_attention", "sliding_attention", "sparse", "dense")
_TOLERANCE, _LOOSEST = 1e-4, 0.03  # of log-probabilities, relative; of half precision

_proven: dict[str, int] = {}
"""Fingerprints of models proven exact in this process, with the longest sequence tried."""


class Packing:
    """Decides for each batch of a model whether it runs packed.

    Args:
        model: A causal language model, with or without adapter.
        mode: ``"auto"`` packs where it is exact and tells where it is not, ``"on"`` makes that
            an error, ``"off"`` pads all.

    Raises:
        InputError: ``"on"`` is asked for where it is known not to be exact.
    """

    def __init__(self, model: nn.Module, mode: PackingMode = "auto") -> None:
        self._model, self.mode = model, mode
        self.reason: str | None = None
        """Why batches are padded; None if they are packed."""
        self._limit, self._limit_is = _longest_packable(model)
        self._told = False
        self.planned = False
        """Whether batches are to be packed by what is known beforehand, in all processes alike."""
        if mode == "off":
            self.reason = "packing='off'"
        elif (obstacle := known_obstacle(model)) is not None:
            self.give_up(obstacle, logging.INFO)
        elif is_sharded(model) and self._limit is not None:
            # All processes must run the same passes, whatever their batches are.
            self.give_up(f"the model is sharded and has {self._limit_is}", logging.INFO)
        else:
            self.planned = True

    def give_up(self, reason: str, level: int = logging.WARNING) -> None:
        """Pad from now on, and say why.

        Raises:
            InputError: in mode ``"on"``.
        """
        self._refuse(reason)
        logger.log(level, "Batches are padded, not packed, since %s.", reason)
        self.reason = reason

    def _refuse(self, reason: str) -> None:
        if self.mode == "on":
            raise InputError(f"packing='on' is not exact here, since {reason}. Use packing='auto'.")

    def allows(self, longest: int) -> bool:
        """Whether a batch whose longest sequence has so many tokens runs packed.

        Raises:
            InputError: it cannot, in mode ``"on"``.
        """
        if self.reason is not None:
            return False
        if self.fits(longest):
            return True
        self._refuse(f"a sequence has {longest} tokens, more than {self._limit_is}")
        if not self._told:
            logger.info(
                "Batches with more tokens in a sequence than %s are padded.", self._limit_is
            )
            self._told = True
        return False

    def fits(self, longest: int) -> bool:
        """Whether the model's attention is plain in a sequence of so many tokens."""
        return self._limit is None or longest <= self._limit

    def apply(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch, without its packed form where that is not to be used."""
        packed: PackedBatch | None = batch.get("packed")
        if packed is None:
            return batch
        if self.allows(packed.longest):
            return {**batch, "packed": packed.to(batch["input_ids"].device)}
        return {name: value for name, value in batch.items() if name != "packed"}

    @torch.no_grad()
    def logps(self, batch: Mapping[str, Any]) -> Tensor:
        """The batch's log-probabilities, ``(N,)``, without gradients."""
        batch = self.apply(batch)
        if "packed" in batch:
            return PackedPass(self._model, batch["packed"]).logps
        return sequence_logps(self._model, batch)

    @torch.no_grad()
    def prove(self, sequences: Sequence[TokenSequence], pad_token_id: int) -> None:
        """Compare packed with padded log-probabilities: the longest sequence beside another.

        Once for each kind of model in a process, and again for sequences of twice the length: a
        limit of the attention that no configuration tells shows in long ones alone.

        Raises:
            InputError: they differ, in mode ``"on"``.
        """
        key = f"logps {fingerprint(self._model)}"
        ordered = sorted(sequences, key=lambda s: len(s.input_ids))
        ordered = [s for s in ordered if self.fits(len(s.input_ids))]
        if self.reason is not None or not ordered:
            return
        longest = ordered[-1]
        if len(longest.input_ids) < 2 * _proven.get(key, 1):
            return
        start = longest.input_ids[: longest.prompt_length]
        others = [s for s in ordered if s.input_ids[: s.prompt_length] != start]
        some = [longest, *others[:1]]
        device = next(self._model.parameters()).device
        alone = []
        for sequence in some:
            padded = pad_sequences([sequence], pad_token_id)
            alone.append(sequence_logps(self._model, {k: v.to(device) for k, v in padded.items()}))
        expected, found = torch.cat(alone), []
        if not bool(expected.isfinite().all()):
            return  # whoever reads them reports it
        reason = failure(lambda: found.append(PackedPass(self._model, pack(some).to(device)).logps))
        if reason is None:
            exact = all(p.dtype.itemsize >= 4 for p in (*self._model.parameters(), *found))
            exact = exact and not torch.is_autocast_enabled(device.type)
            error = float(((found[0] - expected).abs() / (1 + expected.abs())).max())
            if error <= (_TOLERANCE if exact else _LOOSEST):
                _proven[key] = len(longest.input_ids)
                return
            reason = f"log-probabilities differ from those of padded batches by {error:.1e}"
        self.give_up(reason)


def failure(run: Callable[[], Any]) -> str | None:
    """Why a model cannot run packed, if it cannot: the error of code not made for such rows."""
    try:
        run()
    except UnpackableError as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise
    except (InputError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"the model fails on packed rows ({type(error).__name__}: {first})"
    return None


def known_obstacle(model: nn.Module) -> str | None:
    """Why packing is not exact for a model by what its class and configuration say."""
    base = base_model(model)
    config = _text_config(base)
    if config is None or not getattr(base, "_supports_attention_backend", False):
        return "the model's attention does not go through transformers' interface for it"
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return "the model takes no positions"
    if getattr(config, "is_encoder_decoder", False):
        return "the model is an encoder and a decoder"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "the model soft-caps its attention"
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "") == "alibi":
        return "the model has ALiBi, which counts positions along the row"
    if not getattr(config, "is_causal", True):
        return "the model's attention is not causal"
    if getattr(config, "use_bidirectional_attention", False):
        return "the model's attention is not causal"
    kinds = {str(kind) for kind in getattr(config, "layer_types", None) or ()}
    if others := sorted(kinds - set(_LAYERS)):
        return f"the model has layers of the kind {others[0]!r}"
    return None


def _longest_packable(model: nn.Module) -> tuple[int | None, str]:
    """Up to how many tokens a sequence's attention is plain, and what the number is."""
    config = _text_config(base_model(model))
    limits: list[tuple[int, str]] = []
    kinds = getattr(config, "layer_types", None)
    for name, kind in (
        ("sliding_window", "sliding_attention"),
        ("attention_chunk_size", "chunked_attention"),
    ):
        window = getattr(config, name, None)
        if isinstance(window, int) and window > 0 and (kinds is None or kind in kinds):
            limits.append((window, f"the model's {name} of {window}"))
    for rope in _rope_parameters(config):
        # Their angles depend on the longest position of a row.
        if rope.get("rope_type") in ("dynamic", "longrope"):
            short = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            short = short or config.max_position_embeddings
            limits.append((int(short), f"the {short} positions that the model's rope was made for"))
    return min(limits) if limits else (None, "")


def _rope_parameters(config: Any) -> list[Mapping[str, Any]]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [rope, *(part for part in rope.values() if isinstance(part, Mapping))]


def _text_config(base: Any) -> Any:
    config: Any = getattr(base, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def fingerprint(model: nn.Module) -> str:
    """What decides on how a model computes, without its numbers: modules, settings, dtypes."""
    digest = xxhash.xxh3_128()
    for name, module in model.named_modules():
        kind = type(module)
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        parts = (name, kind.__module__, kind.__qualname__, hooks, "forward" in vars(module))
        digest.update(repr((*parts, getattr(module, "gradient_checkpointing", False))).encode())
    for parameter in model.parameters():
        digest.update(
            f"{tuple(parameter.shape)}{parameter.dtype}{parameter.requires_grad}".encode()
        )
    device = next(model.parameters()).device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    config: Any = getattr(base_model(model), "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    digest.update(f"{device} {autocast} {model.training}".encode())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()
