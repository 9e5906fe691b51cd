"""Gramian and combined gradient layer by layer, against autograd of the padded model."""

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretune import ClampConfig, InputError
from paretune.data.sampling import PairCollator
from paretune.data.tokenization import PairIndex, TokenizedPairs, TokenSequence
from paretune.gradients import ObjectiveGradients
from paretune.gradients.objectives import loss_sums
from paretune.logprobs import Packing
from paretune.losses import LOSSES

VOCABULARY = 43
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma3Text", {}),
}


def make_model(kind: str) -> Any:
    """A tiny model in float64, all of whose weights are trained."""
    import transformers

    name, options = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        pad_token_id=0,
        **options,
    )
    lm = {"Gemma3Text": "Gemma3"}.get(name, name)
    model = getattr(transformers, f"{lm}ForCausalLM")(config).double().train()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.3)
    return model


def make_batch(m: int, responses: int, shared: bool) -> dict[str, Any]:
    """Three prompts that all objectives label, or of each its own; one prompt of one token."""
    draw = torch.Generator().manual_seed(m + responses)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        count = int(torch.randint(low, high, (1,), generator=draw))
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=draw).tolist())

    sequences: list[TokenSequence] = []
    pairs = {f"o{i}": PairIndex() for i in range(m)}
    for row in range(3):
        for number, index in enumerate(pairs.values()):
            if number == 0 or not shared:
                prompt, first = tokens(1, 2) if row == 0 else tokens(3, 9), len(sequences)
                for _ in range(responses):
                    sequences.append(TokenSequence(prompt + tokens(2, 7), len(prompt)))
            chosen, rejected = torch.randperm(responses, generator=draw)[:2].tolist()
            index.chosen.append(first + chosen)
            index.rejected.append(first + rejected)
            index.prompt.append(first)
            index.weight.append(0.5 + row)
            index.row.append(row)
    data = TokenizedPairs(sequences, pairs)
    data.reference = torch.randn(len(sequences), generator=draw) - 20
    return PairCollator(data, 0)([dict.fromkeys(pairs, row) for row in range(3)])


def exact(model: Any, batch: dict[str, Any], losses: Any) -> Tensor:
    """The gradients of the mean losses ``(M, d)``, from all logits of the padded sequences."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    logps = (logps * batch["completion_mask"][:, 1:]).sum(1)
    sums, totals = loss_sums(logps, batch, losses)
    rows = []
    for value in sums / totals:
        found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def check(
    kind: str, loss: str, m: int, responses: int, shared: bool, packing: Any, **more: Any
) -> None:
    model = make_model(kind)
    if more.get("checkpointing"):
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    batch = make_batch(m, responses, shared)
    losses = {name: LOSSES[loss](beta=0.3) for name in batch["pairs"]}
    engine = ObjectiveGradients(model, losses, "auto", Packing(model, packing), single=True)
    engine.bank.zero()
    engine.accumulate(batch, more.get("scale", 1.0))
    assert engine.method == "layerwise"
    engine.bank.finish()
    expected = exact(model, batch, losses)
    # transformers' norms compute in float32.
    gramian = expected @ expected.T
    sizes = gramian.diagonal().sqrt()
    error = (engine.bank.gramian() - gramian).abs() / (sizes[:, None] * sizes)
    assert float(error.max()) < 1e-6
    weights = torch.linspace(0.2, 1, m, dtype=torch.float64)
    engine.bank.combine(weights, more.get("scale", 1.0))
    found = torch.cat([p.grad.flatten() for p in model.parameters()]) / more.get("scale", 1.0)
    wanted = weights @ expected
    assert float((found - wanted).norm() / (weights @ sizes)) < 1e-6


@pytest.mark.parametrize(
    "case",
    [
        ("llama", "dpo", 2, 2, True, "on"),
        ("tied", "cpo", 3, 4, True, "on"),
        ("qwen3", "simpo", 2, 2, False, "on"),
        ("gemma", "ipo", 3, 2, True, "off"),
        ("tied", "dpo", 2, 4, False, "off"),
    ],
    ids=lambda case: "-".join(map(str, case)),
)
def test_layer_by_layer_is_exact(case: Any) -> None:
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_layer_by_layer_over_all_combinations(kind: str) -> None:
    cases = itertools.product(("dpo", "cpo"), (2, 3), (2, 4), (True, False), ("on", "off"))
    for case in cases:
        check(kind, *case)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_with_checkpointing_and_a_loss_scale(packing: Any) -> None:
    check("tied", "cpo", 2, 4, True, packing, checkpointing=True)
    check("llama", "dpo", 2, 2, True, packing, scale=256.0)


class _Skipping(nn.Module):
    """A layer that also gives what it took to a later one, past the layers between."""

    def __init__(self, inner: nn.Module, kept: list[Tensor], first: bool) -> None:
        super().__init__()
        self.inner, self.kept, self.first = inner, kept, first

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            self.kept[:] = [x]
            return self.inner(x)  # type: ignore[no-any-return]
        return self.inner(x + self.kept[0])  # type: ignore[no-any-return]


def test_ways_past_a_layer_are_followed() -> None:
    model = make_model("llama")
    kept: list[Tensor] = []
    for number in (0, 2):
        layer = model.model.layers[number]
        layer.mlp = _Skipping(layer.mlp, kept, first=number == 0)
    batch = make_batch(2, 2, True)
    losses = {name: LOSSES["dpo"](beta=0.3) for name in batch["pairs"]}
    engine = ObjectiveGradients(model, losses, "layerwise", Packing(model, "off"), single=True)
    engine.accumulate(batch)
    assert engine.method == "layerwise"
    engine.bank.finish()
    expected = exact(model, batch, losses)
    torch.testing.assert_close(engine.bank.gramian(), expected @ expected.T, rtol=1e-6, atol=1e-9)


def test_what_is_not_exact_takes_the_bank(caplog: Any, monkeypatch: Any) -> None:
    """Where Gramian or direction come out wrong on the first batch, for whatever reason."""
    from paretune.gradients import engine as engines
    from paretune.gradients import layerwise

    monkeypatch.setattr(engines, "_proven", set())
    model = make_model("qwen3")
    batch = make_batch(2, 2, True)
    losses = {name: LOSSES["dpo"](beta=0.3) for name in batch["pairs"]}
    below: Callable[..., Any] = layerwise._below

    def short(roots: Any, cuts: Any) -> Any:
        places, leaves = below(roots, cuts)
        return places, leaves[1:]

    monkeypatch.setattr(layerwise, "_below", short)
    with pytest.raises(InputError, match="gradients='layerwise' is not exact here: the gradients"):
        ObjectiveGradients(model, losses, "layerwise", single=True).accumulate(batch)
    engine = ObjectiveGradients(model, losses, single=True)
    engine.accumulate(batch)
    assert engine.method == "per_objective"
    assert engine.packing.reason is None
    assert "layer by layer the gradients differ" in caplog.text
    engine.bank.finish()
    expected = exact(model, batch, losses)
    torch.testing.assert_close(engine.bank.gramian(), expected @ expected.T, rtol=1e-5, atol=1e-9)


def test_steps_of_several_micro_batches_take_the_bank(caplog: Any, tmp_path: Any) -> None:
    model = make_model("llama")
    losses = {name: LOSSES["dpo"]() for name in ("a", "b")}
    with caplog.at_level(logging.WARNING):
        engine = ObjectiveGradients(model, losses)
    assert engine.method == "per_objective"
    assert "of 2 objectives take 0.0 GiB beside the model" in caplog.text
    with pytest.raises(InputError, match="not possible here: a step may need them"):
        ObjectiveGradients(model, losses, "layerwise")
    for more in ({"gradient_accumulation_steps": 2}, {"tokens_per_batch": 100}):
        with pytest.raises(InputError, match="gradients='layerwise' needs the graph"):
            ClampConfig(str(tmp_path), use_cpu=True, gradients="layerwise", **more)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_a_step_needs_the_room_of_one_gradient_not_of_m() -> None:
    worker, peaks = Path(__file__).with_name("memory_worker.py"), {}
    # What is freed goes back to the system at once, so that the peak is of live data.
    eager = {"MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": "0"}
    for method in ("layerwise", "per_objective"):
        done = subprocess.run(
            [sys.executable, str(worker), method],
            env={**os.environ, **eager},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[method] = float(done.stdout.splitlines()[-1])
    assert peaks["layerwise"] < 1.6
    assert peaks["per_objective"] > 3.5
