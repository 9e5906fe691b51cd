"""What a training needs, before any weight is loaded: parameters, memory, tokens, disk.

Parameters are counted on a model without weights, made from its configuration. Memory is reckoned
by the formulas below, which `benchmarks/plan.py` compares with what is measured.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError, first_line
from paretune.models import BUILT_IN, built_in_folder, gpu
from paretune.names import shown

if TYPE_CHECKING:
    from paretune.recipes.schema import Lora, Model

_CHUNK = 256  # tokens whose logits stand in memory at once, as in `paretune.logprobs.head`
_BLOCK = 64  # numbers of a 4-bit block, which have one float32 scale


def _llama(
    hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any
) -> dict[str, Any]:
    shape = {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": 128,
        "tie_word_embeddings": False,
    }
    return shape | more


# Shapes of models on the hub, from their published config.json, for where it cannot be reached.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Llama-3.2-1B-Instruct": _llama(
        2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(3072, 8192, 28, 24, 8, tie_word_embeddings=True),
    "meta-llama/Llama-3.1-8B-Instruct": _llama(4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.1-70B-Instruct": _llama(8192, 28672, 80, 64, 8),
    "Qwen/Qwen3-8B": _llama(4096, 12288, 36, 32, 8, model_type="qwen3", vocab_size=151_936),
}


@dataclass(frozen=True)
class Shape:
    """A model and its adapter in numbers.

    Attributes:
        source: Where the configuration is from.
        base: Parameters of the base model.
        linear: Those of them that quantisation makes smaller: of linear layers but the head.
        trained: Parameters that are trained, d.
        hidden, inner, query, kv: Widths of the residual stream, of the MLP, of all queries, and of
            all keys.
        rank: Of the adapter; 0 without one.
    """

    source: str
    base: int
    linear: int
    trained: int
    hidden: int
    inner: int
    query: int
    kv: int
    layers: int
    vocabulary: int
    rank: int
    dropout: bool

    def of_blocks(self, count: int) -> "Shape":
        """With an adapter of so many blocks (`method: conditioned`), each of this one's rank."""
        return replace(self, trained=count * self.trained, rank=count * self.rank)


@dataclass(frozen=True)
class Precision:
    """Bytes of a number of the base's weights, of its linear layers, and of activations."""

    weights: float
    linear: float
    activations: float
    mixed: bool

    @classmethod
    def of(cls, model: "Model", mixed: bool = False) -> "Precision":
        """That of a recipe's model; `mixed` for training under autocast."""
        wide = 4.0
        if model.dtype in ("bfloat16", "float16") or (model.dtype == "auto" and gpu()):
            wide = 2.0
        linear = {None: wide, "8bit": 1.0, "4bit": 0.5 + 4 / _BLOCK}[model.quantization]
        return cls(wide, linear, 2.0 if mixed else wide, mixed)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training at its peak, part by part.

    Attributes:
        weights: The base's.
        adapters: What is trained, the combined gradient, and a copy of the start.
        optimiser: AdamW's two moments.
        bank: M gradients.
        activations: What the backward pass needs of one micro-batch.
        head: Logits of a chunk, and what is kept of the hidden states.
    """

    weights: float
    adapters: float
    optimiser: float
    bank: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        return float(sum(vars(self).values()))

    def sharded(self, ranks: int) -> float:
        """Per rank, if the base's weights were divided among so many and nothing else was."""
        return self.total - self.weights * (1 - 1 / ranks)


def shape_of(model: "Model", lora: "Lora | None") -> Shape:
    """The shape of a recipe's model, from its configuration alone.

    Raises:
        InputError: the configuration is neither on this machine, nor on the hub, nor known.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    config, source = _config(model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
        base = sum(parameter.numel() for parameter in network.parameters())
        head = network.get_output_embeddings()
        linear = sum(
            each.weight.numel()
            for each in network.modules()
            if isinstance(each, nn.Linear) and each is not head
        )
        trained = base
        if lora is not None:
            from peft import LoraConfig, get_peft_model  # peft takes seconds to import

            adapter = LoraConfig(
                task_type="CAUSAL_LM", r=lora.r, target_modules=lora.target_modules
            )
            network = get_peft_model(network, adapter)
            trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        source=source,
        base=base,
        linear=linear,
        trained=trained,
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        query=heads * size,
        kv=(getattr(text, "num_key_value_heads", None) or heads) * size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        rank=0 if lora is None else lora.r,
        dropout=lora is not None and lora.dropout > 0,
    )


def memory(
    shape: Shape,
    precision: Precision,
    objectives: int,
    tokens: int,
    checkpointing: bool = False,
    layerwise: bool = False,
) -> Memory:
    """Peak memory of a step, in bytes.

    Weights are bytes a number. Trained numbers are float32: themselves, their gradient (the
    combined direction) and the adapter's start, 12 d; AdamW's moments 8 d; the bank 4·M·d.
    Activations are those of one micro-batch of `tokens` tokens that go through the model (packed:
    each distinct prompt and response once); see `activation_numbers`. With checkpointing, each
    layer keeps its input, and one layer at a time has the rest.

    Args:
        objectives: M, of those that are trained.
        layerwise: Whether gradients are taken layer by layer: M of the largest layer, or of the
            vocabulary's embeddings, are dropped before the combined gradient is made. The bank is
            what they need beyond the room of that one.
    """
    weights = shape.linear * precision.linear + (shape.base - shape.linear) * precision.weights
    full = shape.rank == 0
    per_layer = tokens * activation_numbers(shape) * precision.activations
    if precision.mixed:  # norms and residuals stay wide
        per_layer += tokens * 4 * shape.hidden * (precision.weights - precision.activations)
    activations = per_layer * shape.layers
    if checkpointing:
        activations = per_layer + tokens * shape.hidden * precision.weights * shape.layers
    bank = 4 * objectives * shape.trained
    if layerwise:
        largest = max(shape.vocabulary * shape.hidden, shape.linear // shape.layers)
        bank = max(0, 4 * objectives * largest - 4 * shape.trained)
    chunk = 3 * min(_CHUNK, tokens) * shape.vocabulary * 4
    return Memory(
        weights=weights,
        adapters=(4 if full else 12) * shape.trained,
        optimiser=8 * shape.trained,
        bank=bank,
        activations=activations,
        head=chunk + 3 * tokens * shape.hidden * precision.activations,
    )


def activation_numbers(shape: Shape) -> int:
    """Numbers that a layer keeps for its backward pass, for each token of the batch.

    Of a decoder layer with frozen weights and an adapter on its linear layers: the residual stream
    before each norm and what the norm makes of it (4 h); queries, keys and values as attention sees
    them, and its output, once more in the order of the output projection (3 q + 2 kv); of the MLP,
    both projections, the activation and their product (4 i); the adapter's inner values (7 r). A
    dropout in the adapter keeps each layer's input once more (5 h + q + i, and its mask).
    """
    numbers = 4 * shape.hidden + 3 * shape.query + 2 * shape.kv + 4 * shape.inner + 7 * shape.rank
    if shape.dropout:
        numbers += 5 * shape.hidden + shape.query + shape.inner
    return numbers


def point_bytes(shape: Shape, precision: Precision) -> int:
    """Bytes on disk of a finished point: its adapter in float32, or the whole model."""
    return int(shape.trained * (4 if shape.rank else precision.weights))


def checkpoint_bytes(shape: Shape) -> int:
    """Bytes of the two checkpoints of the point that is trained: weights and moments in float32."""
    return 2 * 12 * shape.trained


def token_flops(shape: Shape, checkpointing: bool = False) -> float:
    """Floating-point operations of a training for each token that goes through the model.

    Two for each weight of a matrix product forward, two backward to what comes before it, two more
    for the weights that are trained, and with checkpointing the forward ones again; the head
    counts in full, attention's own products (a hundredth at 512 tokens and more) do not.
    """
    adapter = shape.trained if shape.rank else 0
    products = shape.linear + shape.vocabulary * shape.hidden + adapter
    return float((6 if checkpointing else 4) * products + 2 * min(shape.trained, products))


@dataclass(frozen=True)
class Rate:
    """How fast one GPU is; one of the two is given.

    Attributes:
        tokens: Tokens of training in a second, counted as in `Tokens.step`.
        flops: Floating-point operations in a second, as they are sustained, not the maker's figure.
    """

    tokens: float | None = None
    flops: float | None = None

    def seconds(self, tokens: float, shape: Shape, checkpointing: bool) -> float:
        """Seconds for a training over so many tokens."""
        if self.tokens is not None:
            return tokens / self.tokens
        assert self.flops is not None
        return tokens * token_flops(shape, checkpointing) / self.flops


@dataclass(frozen=True)
class Tokens:
    """Tokens that go through the model in training.

    Attributes:
        peak: The most of a micro-batch.
        step: Of an optimiser step, on average.
        rows: Of an epoch; None if the data was not read.
        exact: Whether the data was read; else all sequences count as ``max_length``.
    """

    peak: int
    step: float
    rows: int | None
    exact: bool


def bound_tokens(objectives: int, rows: int, accumulation: int, length: int) -> Tokens:
    """The most there can be: every row has two sequences of full length for each objective."""
    peak = rows * objectives * 2 * length
    return Tokens(peak, peak * accumulation, None, exact=False)


def count_tokens(
    pairs: Any, objectives: Sequence[str], sampling: Any, rows: int, accumulation: int, pad: int
) -> Tokens:
    """As packed batches have them, of the first 200 batches of an epoch in a random order."""
    from paretune.data.sampling import PairCollator, PairRows, cycled_order

    table = PairRows(pairs, objectives, sampling)
    collate = PairCollator(pairs, pad)
    order = cycled_order(len(table), len(table), 0)
    starts = list(range(0, max(len(order) - rows, 0) + 1, rows))[:200]
    sizes = [
        collate([table[i] for i in order[start : start + rows]])["packed"].tokens
        for start in starts
    ]
    return Tokens(max(sizes), sum(sizes) / len(sizes) * accumulation, len(table), exact=True)


def steps_of(train: Mapping[str, Any], rows: int | None, batch: int) -> int | None:
    """Optimiser steps of a training; None where they depend on data that was not read."""
    if (train.get("max_steps") or -1) > 0:
        return int(train["max_steps"])
    if rows is None:
        return None
    return math.ceil(math.ceil(rows / batch) * float(train.get("num_train_epochs", 3.0)))


def _config(model: "Model") -> tuple[Any, str]:
    """The configuration of a model, and in words where it is from."""
    from transformers import AutoConfig

    if model.name in BUILT_IN:
        place = built_in_folder(model.name)
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        return config, f"config.json of {model.name}"
    place = Path(model.name).expanduser()
    if place.is_dir():
        try:  # no code of a checkpoint runs here, whatever the recipe asks for
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"'{place / 'config.json'}' is not the configuration of a model that transformers "
                "knows without running code of its own: no plan can be made of it."
            ) from error
        return config, f"'{place / 'config.json'}'"
    if model.name in SHAPES:
        shape = json.loads(json.dumps(SHAPES[model.name]))
        return AutoConfig.for_model(shape.pop("model_type"), **shape), "a shape known to paretune"
    try:
        config = AutoConfig.from_pretrained(
            model.name, revision=model.revision or "main", trust_remote_code=False
        )
        return config, f"config.json of '{model.name}' on the hub"
    except (OSError, ValueError) as error:
        known = ", ".join(SHAPES)
        raise InputError(
            f"The configuration of model {shown(model.name)} cannot be had "
            f"({first_line(error)}); known without the hub are {known}."
        ) from error
