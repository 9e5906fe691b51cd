"""One pass against separate passes and plain autograd, wherever they could differ."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from paretune import InputError
from paretune.data.sampling import PairCollator, PairRows
from paretune.data.tokenization import tokenize_pairs
from paretune.gradients import ObjectiveGradients, per_objective
from paretune.gradients.bank import GradientBank
from paretune.gradients.objectives import loss_sums
from paretune.gradients.one_pass import unsupported_reason
from paretune.logprobs import score_sequences, sequence_logps
from paretune.losses import DPO, LOSSES
from paretune.models import products


def make_batch(
    pairs: Any, tokenizer: Any, reference_model: Any = None, n: int | None = None
) -> dict[str, Any]:
    data = tokenize_pairs(pairs, tokenizer)
    if reference_model is not None:
        data.reference = score_sequences(reference_model, data.sequences, tokenizer.pad_token_id)
    rows = PairRows(data, list(pairs))
    return PairCollator(data, tokenizer.pad_token_id)([rows[i] for i in range(n or len(rows))])


def flat(bank: GradientBank) -> torch.Tensor:
    return torch.cat([block.reshape(bank.n_objectives, -1) for block in bank.blocks], dim=1)


def gradients(
    model: nn.Module, batches: list[Any], losses: Any, method: Any, seed: int = 7
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    engine = ObjectiveGradients(model, losses, method)
    model.train()
    for batch in batches:
        engine.accumulate(batch)
    engine.bank.finish()
    assert method == "auto" or engine.method == method
    return flat(engine.bank).clone(), engine.bank.losses.clone()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "ipo", "cpo", "simpo"])
@pytest.mark.parametrize("shared", [True, False])
def test_one_pass_equals_separate_passes(
    name: Any, shared: bool, tiny_lora: Any, tiny_llama: Any, tokenizer: Any, random_pairs: Any
) -> None:
    objectives = ("one", "two", "three")
    batch = make_batch(
        random_pairs(objectives, shared=shared, weights=True), tokenizer, tiny_llama(3)
    )
    losses = dict.fromkeys(objectives, LOSSES[name](beta=0.3))
    model = tiny_lora()
    one, one_losses = gradients(model, [batch], losses, "one_pass")
    separate, losses_apart = gradients(model, [batch], losses, "per_objective")
    assert relative(one, separate) < 1e-5
    torch.testing.assert_close(one_losses, losses_apart, rtol=1e-6, atol=0)

    # Plain autograd on each weighted mean loss.
    sums, totals = loss_sums(sequence_logps(model, batch), batch, losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for m in range(3):
        expected = torch.autograd.grad(sums[m] / totals[m], parameters, retain_graph=True)
        assert relative(one[m], torch.cat([g.flatten() for g in expected])) < 1e-5


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("method", ["one_pass", "per_objective"])
def test_through_onednn(
    method: Any,
    packing: bool,
    tiny_lora: Any,
    tokenizer: Any,
    random_pairs: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not (torch.backends.mkldnn.is_available() and products._is_right()):
        pytest.skip("torch has no oneDNN here, or another operator")
    batch = make_batch(random_pairs(shared=True), tokenizer, tiny_lora(5))
    if not packing:
        del batch["packed"]
    losses = dict.fromkeys(("one", "two"), DPO())
    expected, _ = gradients(tiny_lora(fresh=False), [batch], losses, method)
    calls = []
    onednn = products._onednn
    monkeypatch.setattr(products, "products_are_slow", lambda: True)
    monkeypatch.setattr(products, "_ROWS", 1)
    monkeypatch.setattr(products, "_MULTIPLICATIONS", 1)
    monkeypatch.setattr(products, "_onednn", lambda *args: calls.append(1) or onednn(*args))
    found, _ = gradients(tiny_lora(fresh=False), [batch], losses, method)
    assert len(calls) > 50
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("shared", [True, False])
def test_same_dropout_masks(
    shared: bool, tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    batch = make_batch(random_pairs(shared=shared), tokenizer, tiny_lora(5))
    losses = dict.fromkeys(("one", "two"), DPO())
    model = tiny_lora(dropout=0.3)
    one, _ = gradients(model, [batch], losses, "one_pass")
    again, _ = gradients(model, [batch], losses, "one_pass", seed=8)
    assert relative(again, one) > 0.01
    torch.manual_seed(7)
    bank = ObjectiveGradients(model, losses, "per_objective").bank
    per_objective.accumulate(model, batch, losses, bank, shared_forward=True)
    bank.finish()
    assert relative(one, flat(bank)) < 1e-5
    # "auto" checks itself first; the check must not move the random state.
    auto, _ = gradients(model, [batch], losses, "auto")
    torch.testing.assert_close(auto, one, rtol=0, atol=0)


def test_accumulation_equals_one_large_batch(
    tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    pairs = random_pairs(n=7, weights=True)
    data = tokenize_pairs(pairs, tokenizer)
    data.reference = score_sequences(tiny_lora(5), data.sequences, tokenizer.pad_token_id)
    rows, collate = PairRows(data, list(pairs)), PairCollator(data, tokenizer.pad_token_id)
    everything = collate([rows[i] for i in range(7)])
    parts = [collate([rows[i] for i in range(3)]), collate([rows[i] for i in range(3, 7)])]
    losses = dict.fromkeys(pairs, DPO())
    for method in ("one_pass", "per_objective"):
        whole, whole_losses = gradients(tiny_lora(), [everything], losses, method)
        summed, summed_losses = gradients(tiny_lora(), parts, losses, method)
        assert relative(summed, whole) < 1e-5
        torch.testing.assert_close(summed_losses, whole_losses, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["one_pass", "per_objective"])
def test_activation_checkpointing(
    method: Any, tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    batch = make_batch(random_pairs(), tokenizer, tiny_lora(5))
    losses = dict.fromkeys(("one", "two"), DPO())
    model = tiny_lora(dropout=0.2)
    plain, _ = gradients(model, [batch], losses, method)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    checkpointed, _ = gradients(model, [batch], losses, method)
    assert relative(checkpointed, plain) < 1e-5


def test_checkpointing_still_saves_memory(
    tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    """Bytes that autograd keeps between forward and backward, counted as they are saved."""
    batch = make_batch(random_pairs(n=12), tokenizer, tiny_lora(5))
    losses = dict.fromkeys(("one", "two"), DPO())

    def kept(model: Any) -> int:
        engine, seen = ObjectiveGradients(model, losses, "one_pass"), {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            one_pass = engine._one_pass
            assert one_pass is not None
            with one_pass._capturing(batch["input_ids"].shape[0]):
                sequence_logps(model, batch)
        return sum(seen.values())

    model = tiny_lora()
    plain = kept(model)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    assert kept(model) < 0.6 * plain


def test_gramian_and_combination(tiny_lora: Any, tokenizer: Any, random_pairs: Any) -> None:
    batch = make_batch(random_pairs(), tokenizer, tiny_lora(5))
    model = tiny_lora()
    engine = ObjectiveGradients(model, dict.fromkeys(("one", "two"), DPO()))
    engine.accumulate(batch)
    engine.bank.finish()
    matrix = flat(engine.bank).double()
    gramian = engine.bank.gramian()
    assert gramian.dtype == torch.float64
    torch.testing.assert_close(gramian, matrix @ matrix.T, rtol=1e-6, atol=0)
    engine.bank.combine(torch.tensor([0.3, 0.7], dtype=torch.float64))
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(
        found.double(), torch.tensor([0.3, 0.7]).double() @ matrix, rtol=1e-5, atol=1e-7
    )


def test_loss_scale_cancels(tiny_lora: Any, tokenizer: Any, random_pairs: Any) -> None:
    batch = make_batch(random_pairs(), tokenizer, tiny_lora(5))
    losses = dict.fromkeys(("one", "two"), DPO())
    for method in ("auto", "one_pass", "per_objective"):
        results = []
        for scale in (1.0, 1024.0):
            engine = ObjectiveGradients(tiny_lora(), losses, method)  # type: ignore[arg-type]
            engine.accumulate(batch, scale)
            results.append(flat(engine.bank))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-8)


def test_small_gradients_survive_float16(tiny_lora: Any, tokenizer: Any, random_pairs: Any) -> None:
    """Late in training W is small; divided by the loss scale it would vanish in float16."""
    batch = make_batch(random_pairs(n=10), tokenizer, tiny_lora(5))
    losses = dict.fromkeys(("one", "two"), DPO(beta=1e-3))
    exact, _ = gradients(tiny_lora(), [batch], losses, "per_objective")
    for method in ("one_pass", "per_objective"):
        engine = ObjectiveGradients(tiny_lora(), losses, method)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.float16):
            engine.accumulate(batch, scale=4096.0)
        engine.bank.finish()
        assert relative(flat(engine.bank), exact) < 0.02


def test_bfloat16_autocast(tiny_lora: Any, tokenizer: Any, random_pairs: Any) -> None:
    batch = make_batch(random_pairs(n=10), tokenizer, tiny_lora(5))
    losses = dict.fromkeys(("one", "two"), DPO())
    model = tiny_lora()
    exact, _ = gradients(model, [batch], losses, "per_objective")
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = gradients(model, [batch], losses, "auto")
        plain, _ = gradients(model, [batch], losses, "per_objective")
    assert relative(rounded, exact) < 2 * relative(plain, exact)


def test_one_pass_is_refused_where_it_is_not_exact(
    tiny_lora: Any, tiny_llama: Any, tokenizer: Any, random_pairs: Any
) -> None:
    losses = dict.fromkeys(("one", "two"), DPO())
    dora = tiny_lora(use_dora=True)
    assert "magnitude" in str(unsupported_reason(dora))
    with pytest.raises(InputError, match="not exact"):
        ObjectiveGradients(dora, losses, "one_pass")
    assert ObjectiveGradients(dora, losses).method == "per_objective"
    assert "embed_tokens" in str(unsupported_reason(tiny_lora(modules_to_save=["embed_tokens"])))
    assert "output embeddings" in str(
        unsupported_reason(tiny_lora(target_modules=["q_proj", "lm_head"]))
    )
    assert ObjectiveGradients(tiny_llama(), losses).method == "per_objective"
    frozen = tiny_llama().requires_grad_(False)
    with pytest.raises(InputError, match="no trainable"):
        ObjectiveGradients(frozen, losses)


class _Mixing(nn.Module):
    """Adds to each sample the mean over samples: what one pass cannot see through."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y + y.mean(0, keepdim=True)


class _Flattening(_Mixing):
    """Hands its layer all tokens in one row, as routed experts do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], -1)


@pytest.mark.parametrize("wrapper", [_Mixing, _Flattening])
def test_auto_falls_back_when_samples_mix(
    wrapper: Any, tiny_lora: Any, tokenizer: Any, random_pairs: Any, caplog: Any
) -> None:
    batch = make_batch(random_pairs(), tokenizer, tiny_lora(5))
    if wrapper is _Flattening:  # a packed batch is one row of tokens anyway: nothing to fall from
        del batch["packed"]
    losses = dict.fromkeys(("one", "two"), DPO())
    model = tiny_lora()
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.up_proj = wrapper(mlp.up_proj)
    with caplog.at_level(logging.WARNING):
        found, _ = gradients(model, [batch], losses, "auto")
    assert "one backward pass per objective" in caplog.text
    assert ("Batches are padded" in caplog.text) == (wrapper is _Mixing)
    expected, _ = gradients(model, [batch], losses, "per_objective")
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="not exact here"):
        gradients(model, [batch], losses, "one_pass")


def test_flattened_tokens_are_exact_in_a_packed_batch(
    tiny_lora: Any, tokenizer: Any, random_pairs: Any
) -> None:
    batch = make_batch(random_pairs(), tokenizer, tiny_lora(5))
    losses = dict.fromkeys(("one", "two"), DPO())
    model = tiny_lora()
    expected, _ = gradients(model, [batch], losses, "per_objective")
    mlp = model.get_base_model().model.layers[0].mlp
    mlp.up_proj = _Flattening(mlp.up_proj)
    found, _ = gradients(model, [batch], losses, "one_pass")
    assert relative(found, expected) < 1e-5
