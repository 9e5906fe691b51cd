"""Response log-probabilities against the plain computation from full logits."""

from typing import Any

import pytest
import torch

from paretune import InputError
from paretune.data.tokenization import TokenSequence, pad_sequences
from paretune.logprobs import Packing, head, score_sequences, sequence_logps


def sequences(n: int = 5) -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(n):
        length = int(torch.randint(6, 15, (1,), generator=generator))
        ids = torch.randint(8, 60, (length,), generator=generator).tolist()
        made.append(TokenSequence(tuple(ids), int(torch.randint(2, 5, (1,), generator=generator))))
    return made


def plain(model: Any, sequence: TokenSequence) -> float:
    """Alone, without padding, from all logits."""
    ids = torch.tensor([sequence.input_ids])
    logps = model(ids).logits[0, :-1].double().log_softmax(-1)
    picked = logps[torch.arange(len(logps)), ids[0, 1:]]
    return float(picked[sequence.prompt_length - 1 :].sum())


def architectures() -> list[Any]:
    from transformers import (
        CohereConfig,
        CohereForCausalLM,
        Gemma2Config,
        Gemma2ForCausalLM,
        GraniteConfig,
        GraniteForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    common: dict[str, Any] = {
        "vocab_size": 66,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "eos_token_id": 3,
        "bos_token_id": None,
    }
    return [
        (LlamaForCausalLM, LlamaConfig(**common)),
        (Gemma2ForCausalLM, Gemma2Config(**common, final_logit_softcapping=0.2)),
        (CohereForCausalLM, CohereConfig(**common, logit_scale=0.1)),
        (GraniteForCausalLM, GraniteConfig(**common, logits_scaling=7.0)),
    ]


@pytest.mark.parametrize("index", range(4), ids=["llama", "gemma2", "cohere", "granite"])
def test_equals_full_logits_with_the_models_own_logit_scaling(index: int) -> None:
    kind, config = architectures()[index]
    torch.manual_seed(0)
    model = kind(config).eval()
    items = sequences()
    shapes = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: shapes.append(tuple(output.shape))
    )
    with torch.no_grad():
        found = sequence_logps(model, pad_sequences(items, 0))
    handle.remove()
    # The model's forward makes the logits of one token; the others are taken in chunks.
    assert shapes == [(1, 1, 66)]
    with torch.no_grad():
        expected = torch.tensor([plain(model, item) for item in items])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", range(4), ids=["llama", "gemma2", "cohere", "granite"])
def test_chunks_of_the_head_equal_all_logits_at_once(index: int, monkeypatch: Any) -> None:
    kind, config = architectures()[index]
    torch.manual_seed(0)
    model = kind(config).double().eval().requires_grad_(False)
    weight = model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    monkeypatch.setattr(head, "_CHUNK", 7)
    batch, cotangents = pad_sequences(sequences(), 0), torch.linspace(-1, 2, 5).double()
    results = []
    for chunked in (True, False):
        logps = sequence_logps(model, batch, chunked)
        assert ("Chunked" in str(_functions(logps))) == chunked
        results.append((logps.detach(), *torch.autograd.grad(cotangents @ logps, weight)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def _functions(value: torch.Tensor) -> set[str]:
    """Names of the backward functions that made a tensor."""
    found, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            found.add(node.name())
            left += [after for after, _ in node.next_functions]
    return found


def test_a_head_that_does_more_is_taken_at_once(tiny_llama: Any) -> None:
    model = tiny_llama().requires_grad_(False)
    plain_forward = model.forward

    def forward(*args: Any, **named: Any) -> Any:
        output = plain_forward(*args, **named)
        output.logits = output.logits * 3
        return output

    model.forward = forward
    items = sequences()
    found = sequence_logps(model, pad_sequences(items, 0))
    expected = torch.tensor([plain(model, item) for item in items])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_packed_scores_are_the_padded_ones(batch_size: int, tiny_llama: Any) -> None:
    model = tiny_llama().requires_grad_(False)
    items = sequences(6)
    start = items[0].input_ids[: items[0].prompt_length]  # four answers to one prompt
    items += [TokenSequence(start + tuple(range(9, 9 + n)), len(start)) for n in (1, 4, 6)]
    items.append(TokenSequence((7, 8, 9), 1))
    padded = score_sequences(model, items, 0, batch_size, packing=Packing(model, "off"))
    packed = score_sequences(model, items, 0, batch_size, packing=Packing(model, "on"))
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    expected = torch.tensor([plain(model, item) for item in items])
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)


def test_scoring_is_independent_of_batches_and_ranks(tiny_llama: Any) -> None:
    model, items = tiny_llama(), sequences(7)
    whole = score_sequences(model, items, 0, batch_size=7)
    torch.testing.assert_close(score_sequences(model, items, 0, batch_size=2), whole)
    halves = [score_sequences(model, items, 0, 2, rank, 2) for rank in range(2)]
    torch.testing.assert_close(halves[0] + halves[1], whole)
    assert model.training is True


def test_a_model_that_hides_its_logits_is_refused(tiny_llama: Any) -> None:
    model = tiny_llama()
    model.set_output_embeddings(None)
    with pytest.raises(InputError, match="no LM head"):
        sequence_logps(model, pad_sequences(sequences(), 0))
