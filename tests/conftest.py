"""Tiny models made in code: a random Llama and a word-level tokenizer with a chat template."""

import os

# Tiny models gain nothing from threads, and on a busy machine threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from collections.abc import Callable
from typing import Any

import pytest
import torch

os.getloadavg = lambda: (0.0, 0.0, 0.0)  # what is shown must not depend on what else runs here

TEXT = """the a is was to of and in you me we it can how why what when who red blue green yes no
maybe cat dog bird fish tea milk bread salt sun moon star rain wind snow run walk sit eat drink
sleep read write good bad small large fast slow warm cold please thanks sorry"""
WORDS = TEXT.split()

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} "
    "<|im_end|> <nl> {% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: two processes then end together."""
    long = [item for item in items if any(map(item.get_closest_marker, ("slow", "model")))]
    files = {item.path: sum(each.path == item.path for each in long) for item in long}
    few = {path for path, count in files.items() if count <= 6}  # few and slow: some take minutes
    items.sort(key=lambda item: 0 if item.path in few else 1 if item.path in files else 2)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<nl>"]
    entries = [*special, "system", "user", "assistant", *WORDS]
    vocabulary = {word: index for index, word in enumerate(entries)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def make_llama(tokenizer: Any, seed: int = 0, **options: Any) -> Any:
    """A random two-layer Llama; the same seed gives the same weights.

    With ``num_labels`` among the options of its configuration it is a reward model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            **options,
        }
    )
    reads = LlamaForSequenceClassification if "num_labels" in options else LlamaForCausalLM
    return reads(config)


def make_lora(
    model: Any, seed: int = 0, fresh: bool = False, dropout: float = 0.0, **options: Any
) -> Any:
    """LoRA on all linear layers, B not zero unless ``fresh``."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed + 1)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    model = get_peft_model(model, LoraConfig(lora_dropout=dropout, **{**settings, **options}))
    if not fresh:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def _words(generator: torch.Generator, low: int, high: int) -> str:
    count = int(torch.randint(low, high + 1, (1,), generator=generator))
    picks = torch.randint(len(WORDS), (count,), generator=generator)
    return " ".join(WORDS[i] for i in picks.tolist())


def make_pairs(
    objectives: tuple[str, ...] = ("one", "two"),
    n: int = 6,
    shared: bool = True,
    seed: int = 0,
    weights: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Pairs per objective: on the same two responses with labels that differ, or on others."""
    generator = torch.Generator().manual_seed(seed)
    pairs: dict[str, list[dict[str, Any]]] = {name: [] for name in objectives}
    for row in range(n):
        prompt, first, second = (_words(generator, 3, 8) for _ in range(3))
        for position, name in enumerate(objectives):
            if not shared and position > 0:
                prompt, first, second = (_words(generator, 3, 8) for _ in range(3))
            flip = bool((row + position) % 2)
            pairs[name].append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": second if flip else first}],
                    "rejected": [{"role": "assistant", "content": first if flip else second}],
                    **({"weight": 0.5 + row} if weights else {}),
                }
            )
    return pairs


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def tiny_llama(tokenizer: Any) -> Callable[..., Any]:
    """``make_llama`` on the test tokenizer."""
    return lambda seed=0, **options: make_llama(tokenizer, seed, **options)


@pytest.fixture(scope="session")
def lasting_llama(tokenizer: Any) -> Callable[..., Any]:
    """``tiny_llama`` for fixtures that are made once."""
    return lambda seed=0, **options: make_llama(tokenizer, seed, **options)


@pytest.fixture
def tiny_lora(tokenizer: Any) -> Callable[..., Any]:
    """``make_lora`` on a ``make_llama`` of the same seed, or on another base."""
    return lambda seed=0, base=None, **options: make_lora(
        make_llama(tokenizer, seed) if base is None else base, seed, **options
    )


@pytest.fixture
def random_pairs() -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """``make_pairs``."""
    return make_pairs
