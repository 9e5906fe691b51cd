"""Packed batches against float64 autograd of the padded model, over architectures and losses."""

import itertools
import logging
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paretune import InputError
from paretune.data.packing import pack
from paretune.data.sampling import PairCollator
from paretune.data.tokenization import PairIndex, TokenizedPairs, TokenSequence
from paretune.gradients import ObjectiveGradients, per_objective
from paretune.gradients.objectives import loss_sums, parts_of, prompt_factors
from paretune.logprobs import PackedPass, Packing
from paretune.losses import LOSSES
from paretune.moo.gates import Gate
from paretune.training.gated_adapter import GatedAdapter

VOCABULARY = 61
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "mistral")
LOSS_NAMES = ("dpo", "ipo", "simpo", "cpo")
PROMPTS = ("shared", "separate", "mixed")


def make_model(kind: str, seed: int = 0, dropout: float = 0.0, **options: Any) -> Any:
    """A tiny model with LoRA on all linear layers, B not zero, in float64."""
    import transformers
    from peft import LoraConfig, get_peft_model

    name = {"gemma": "Gemma3Text", "gemma2": "Gemma2"}.get(kind, kind.capitalize())
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "pad_token_id": 0,
        **options,
    }
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**settings)
    lm = {"Gemma3Text": "Gemma3"}.get(name, name)
    base = getattr(transformers, f"{lm}ForCausalLM")(config)
    for parameter in base.parameters():
        if parameter.dim() == 2:  # away from uniform predictions
            nn.init.normal_(parameter, std=0.3)
    lora = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", lora_dropout=dropout)
    model = get_peft_model(base, lora).double()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.2)
    return model


def make_data(
    m: int, responses: int, prompts: str = "shared", n_prompts: int = 3, seed: int = 0
) -> TokenizedPairs:
    """Pairs of m objectives on prompts that all label, none shares, or both; one of one token."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(low, high)))

    sequences: list[TokenSequence] = []
    pairs = {f"o{i}": PairIndex() for i in range(m)}
    for row in range(n_prompts):
        apart = prompts == "separate" or (prompts == "mixed" and row % 2 == 1)
        first = 0
        for number, index in enumerate(pairs.values()):
            if number == 0 or apart:
                prompt = tokens(1, 1) if row == 0 else tokens(2, 9)
                first = len(sequences)
                for _ in range(responses):
                    sequences.append(TokenSequence(prompt + tokens(2, 7), len(prompt)))
            chosen, rejected = draw.sample(range(responses), 2)
            index.chosen.append(first + chosen)
            index.rejected.append(first + rejected)
            index.prompt.append(first)
            index.weight.append(draw.uniform(0.5, 2))
            index.row.append(row)
    return TokenizedPairs(sequences, pairs)


def make_batch(data: TokenizedPairs, by_row: bool = False) -> dict[str, Any]:
    torch.manual_seed(1)
    data.reference = torch.randn(len(data.sequences)) - 20
    rows = range(len(next(iter(data.pairs.values()))))
    return PairCollator(data, 0, by_row)([dict.fromkeys(data.pairs, row) for row in rows])


def padded_logps(model: Any, batch: dict[str, Any]) -> Tensor:
    """From all logits of the padded sequences, in the model's own precision."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (logps * batch["completion_mask"][:, 1:]).sum(1)


def exact_gradients(model: Any, batch: dict[str, Any], losses: Any) -> list[Tensor]:
    sums, _ = loss_sums(padded_logps(model, batch), batch, losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for value in sums:
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        parts = [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]
        rows.append(torch.cat([g.flatten() for g in parts]))
    return rows


def packed_gradients(
    model: Any, batch: dict[str, Any], losses: Any, method: Any = "one_pass", proof: bool = False
) -> list[Tensor]:
    engine = ObjectiveGradients(model, losses, method, Packing(model, "on"))
    if not proof:
        engine._proven.add((True, method))
    engine.accumulate(batch)
    assert engine.method == method
    blocks = engine.bank.blocks
    return [torch.cat([b[m].flatten() for b in blocks]).double() for m in range(len(losses))]


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def check(kind: str, loss: str, m: int, responses: int, prompts: str) -> None:
    model = make_model(kind).train()
    batch = make_batch(make_data(m, responses, prompts))
    losses = {name: LOSSES[loss](beta=0.3) for name in batch["pairs"]}
    with torch.no_grad():
        found = PackedPass(model, batch["packed"]).logps
        torch.testing.assert_close(found, padded_logps(model, batch), rtol=1e-6, atol=1e-6)
    expected = exact_gradients(model, batch, losses)
    # transformers' norms compute in float32, and so does the bank.
    assert relative(packed_gradients(model, batch, losses), expected) < 2e-6
    if responses == 4:
        apart = packed_gradients(model, batch, losses, "per_objective")
        assert relative(apart, expected) < 2e-6


COVERING = [
    ("llama", "dpo", 1, 2, "shared"),
    ("llama", "cpo", 3, 4, "mixed"),
    ("qwen2", "ipo", 2, 4, "shared"),
    ("qwen3", "simpo", 3, 2, "separate"),
    ("gemma", "dpo", 3, 4, "mixed"),
    ("mistral", "cpo", 2, 2, "shared"),
    ("mistral", "ipo", 1, 4, "separate"),
]


@pytest.mark.parametrize("case", COVERING, ids=lambda case: "-".join(map(str, case)))
def test_packed_gradients_are_those_of_the_padded_model(case: Any) -> None:
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_packed_gradients_over_all_combinations(kind: str) -> None:
    for case in itertools.product(LOSS_NAMES, (1, 2, 3), (2, 4), PROMPTS):
        check(kind, *case)


def test_a_row_reads_each_prompt_once() -> None:
    one, two = (5, 6, 7), (5, 6, 8, 9)
    batch = pack(
        [
            TokenSequence((*one, 10, 11), 3),
            TokenSequence((*two, 12), 4),
            TokenSequence((*one, 13), 3),
        ]
    )
    assert batch.members == ((0, 2), (1,))
    assert batch.prompts.input_ids.tolist() == [[5, 6, 5, 6, 8]]
    assert batch.prompts.position_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.responses.input_ids.tolist() == [[7, 10, 9, 7]]
    assert batch.responses.position_ids.tolist() == [[2, 3, 3, 2]]
    assert batch.responses.sequence.tolist() == [0, 0, 1, 2]
    assert batch.targets.tolist() == [10, 11, 12, 13]
    assert batch.source.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert batch.tokens == 5 + 4
    apart = pack(batch.sequences, owners=[0, 0, 1])
    assert apart.members == ((0,), (1,), (2,))
    assert batch.select([2, 0]).members == ((0, 1),)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_a_pair_that_all_objectives_label_needs_one_cotangent(loss: str) -> None:
    batch = make_batch(make_data(3, 2))
    losses = {name: LOSSES[loss](beta=0.3) for name in batch["pairs"]}
    logps = torch.randn(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums, _ = loss_sums(logps, batch, losses)
    weights = torch.stack([torch.autograd.grad(v, logps, retain_graph=True)[0] for v in sums])
    factors = prompt_factors(weights, batch["packed"].members)
    assert len(factors) == (2 if loss == "cpo" else 1)
    rebuilt = sum(shares * combination for combination, shares in factors)
    torch.testing.assert_close(rebuilt, weights, rtol=1e-6, atol=0)


def test_factors_lose_no_objective_beside_a_larger_one() -> None:
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    weights[1] *= 1e-9
    weights[2] = 0
    factors = prompt_factors(weights, [(0, 3, 4), (1, 2)])
    rebuilt: Any = sum(shares * combination for combination, shares in factors)
    for row, expected in zip(rebuilt, weights, strict=True):
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=0)
    weights[0, 1] = float("nan")
    _, shares = prompt_factors(weights, [(0, 3, 4), (1, 2)])[0]
    assert shares[0, 1].isnan()


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize("method", ["one_pass", "per_objective"])
def test_parts_of_few_tokens_add_up_to_the_batch(method: Any, packing: Any) -> None:
    model = make_model("llama").train()
    data = make_data(2, 4, "mixed", n_prompts=5)
    for index in data.pairs.values():  # a second row on a prompt
        for side in (index.chosen, index.rejected, index.prompt, index.weight, index.row):
            side.append(side[0])
    batch = make_batch(data)
    losses = {name: LOSSES["cpo"](beta=0.3) for name in batch["pairs"]}
    engine = ObjectiveGradients(model, losses, method, Packing(model, packing))
    parts = engine.parts(batch, 40)
    assert len(parts) > 1
    counts = [
        part["packed"].tokens if packing == "on" else part["input_ids"].numel() for part in parts
    ]
    rows = [len(part["pairs"]["o0"]["weight"]) for part in parts]
    assert sum(rows) == 6
    assert all(count <= 40 or n == 1 for count, n in zip(counts, rows, strict=True))
    for part in parts:
        engine.accumulate(part)
    found = [torch.cat([b[m].flatten() for b in engine.bank.blocks]).double() for m in range(2)]
    assert relative(found, exact_gradients(model, batch, losses)) < 2e-6
    sums, totals = loss_sums(padded_logps(model, batch), batch, losses)
    torch.testing.assert_close(engine.bank.losses, sums.detach().double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(engine.bank.totals, totals.double(), rtol=1e-6, atol=0)
    assert engine.parts(batch, 10_000)[0]["pairs"]["o0"]["chosen"].tolist() == (
        batch["pairs"]["o0"]["chosen"].tolist()
    )


def test_there_are_as_many_parts_as_asked_for() -> None:
    batch = make_batch(make_data(2, 2, n_prompts=5))
    for count in range(1, 6):
        parts = parts_of(batch, 10_000, at_least=count)
        assert len(parts) == count
        assert sum(len(part["pairs"]["o0"]["weight"]) for part in parts) == 5
    assert len(parts_of(batch, 10_000, at_least=9)) == 5
    assert len(parts_of(batch, 1)) == 5


@pytest.mark.parametrize("method", ["one_pass", "per_objective"])
def test_checkpointed_layers_are_recomputed_in_their_stage(method: str) -> None:
    model = make_model("llama", dropout=0.3).train()
    batch = make_batch(make_data(2, 4))
    losses = {name: LOSSES["cpo"]() for name in batch["pairs"]}
    torch.manual_seed(3)
    plain = packed_gradients(model, batch, losses, method)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(3)
    again = packed_gradients(model, batch, losses, method, proof=True)
    assert relative(again, plain) < 1e-6


def test_dropout_of_a_shared_prompt_has_one_mask() -> None:
    """The same masks in one pass and in separate ones."""
    model = make_model("llama", dropout=0.5).train()
    batch = make_batch(make_data(3, 4))
    losses = {name: LOSSES["dpo"]() for name in batch["pairs"]}
    found = []
    for method in ("one_pass", "per_objective"):
        torch.manual_seed(5)
        engine = ObjectiveGradients(model, losses, method, Packing(model, "on"))  # type: ignore[arg-type]
        if method == "one_pass":
            engine.accumulate(batch)
        else:
            per_objective.accumulate(model, batch, losses, engine.bank, shared_forward=True)
        found.append([torch.cat([b[m].flatten() for b in engine.bank.blocks]) for m in range(3)])
    assert relative(*found) < 1e-6


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("mistral", {"sliding_window": 8}, "sliding_window of 8"),
        ("gemma2", {}, "soft-caps its attention"),
    ],
)
def test_where_packing_is_not_exact_batches_are_padded(
    kind: str, options: Any, told: str, caplog: Any
) -> None:
    model = make_model(kind, **options).train()
    batch = make_batch(make_data(2, 2))
    losses = {name: LOSSES["dpo"]() for name in batch["pairs"]}
    with caplog.at_level(logging.INFO):
        packing = Packing(model)
        engine = ObjectiveGradients(model, losses, "one_pass", packing)
        engine.accumulate(batch)
    assert told in caplog.text
    assert "padded" in caplog.text
    found = [torch.cat([b[m].flatten() for b in engine.bank.blocks]).double() for m in range(2)]
    assert relative(found, exact_gradients(model, batch, losses)) < 2e-6
    with pytest.raises(InputError, match="packing='on' is not exact here"):
        packed_gradients(model, batch, losses)
    short = TokenSequence((5, 6, 7), 2)
    assert packing.allows(len(short.input_ids)) == (kind == "mistral")


class _Neighbour(nn.Module):
    """Adds to each token what comes before it in the row: a short convolution."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + nn.functional.pad(x, (0, 0, 1, 0))[:, :-1])  # type: ignore[no-any-return]


def test_the_proof_finds_layers_that_mix_along_the_row(caplog: Any) -> None:
    model = make_model("llama").train()
    model.get_base_model().model.layers[1].mlp = _Neighbour(
        model.get_base_model().model.layers[1].mlp
    )
    batch = make_batch(make_data(2, 2))
    losses = {name: LOSSES["dpo"]() for name in batch["pairs"]}
    engine = ObjectiveGradients(model, losses)
    engine.accumulate(batch)
    assert "Batches are padded" in caplog.text
    assert engine.method == "one_pass"
    found = [torch.cat([b[m].flatten() for b in engine.bank.blocks]).double() for m in range(2)]
    assert relative(found, exact_gradients(model, batch, losses)) < 2e-6
    packing = Packing(model)
    packing.prove(batch["packed"].sequences, 0)
    assert "differ" in str(packing.reason)


def test_weights_used_past_their_layer_leave_batches_packed(caplog: Any) -> None:
    """As adapters of routed experts do: one pass does not see them, packing does not mind."""
    model = make_model("llama").train()
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    down, up = layer.lora_A["default"], layer.lora_B["default"]

    def forward(x: Tensor) -> Tensor:
        return layer.base_layer(x) + 2 * x @ (up.weight @ down.weight).T  # type: ignore[no-any-return]

    layer.forward = forward
    batch = make_batch(make_data(2, 2))
    losses = {name: LOSSES["dpo"]() for name in batch["pairs"]}
    engine = ObjectiveGradients(model, losses)
    engine.accumulate(batch)
    assert engine.method == "per_objective"
    assert engine.packing.reason is None
    assert "one backward pass per objective" in caplog.text
    found = [torch.cat([b[m].flatten() for b in engine.bank.blocks]).double() for m in range(2)]
    assert relative(found, exact_gradients(model, batch, losses)) < 2e-6


def test_parts_of_gated_rows_keep_their_gates() -> None:
    model = make_model("llama", hidden_size=24).train()
    gated = GatedAdapter(model, Gate(3, "objectives"))
    batch = make_batch(make_data(3, 2, n_prompts=4), by_row=True)
    losses = {name: LOSSES["dpo"]() for name in batch["pairs"]}
    positions = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).double()
    positions = (positions / positions.sum(1, keepdim=True)).numpy()
    engine = ObjectiveGradients(model, losses, "one_pass", Packing(model, "on"))
    for part in engine.parts(batch, 30):
        gated.set(positions[part["row"].numpy()])
        engine.accumulate(part)
    found = [torch.cat([b[m].flatten() for b in engine.bank.blocks]).double() for m in range(3)]
    gated.set(positions[batch["row"].numpy()])
    assert len(engine.parts(batch, 30)) > 1
    assert relative(found, exact_gradients(model, batch, losses)) < 2e-6


def test_a_gate_for_each_row_reaches_its_tokens() -> None:
    """The same prompt in two rows, with other gates, against the padded batch."""
    model = make_model("llama", hidden_size=24)
    gated = GatedAdapter(model, Gate(3, "objectives"))
    model.train()
    data = make_data(3, 4)
    for index in data.pairs.values():  # a row more on the first prompt
        for values in (index.chosen, index.rejected, index.prompt, index.weight, index.row):
            values.append(values[0])
    batch = make_batch(data, by_row=True)
    positions = torch.rand(4, 3).softmax(-1).numpy()
    gated.set(positions[batch["row"].numpy()])
    losses = {name: LOSSES["dpo"](beta=0.3) for name in batch["pairs"]}
    expected = exact_gradients(model, batch, losses)
    assert relative(packed_gradients(model, batch, losses, proof=True), expected) < 2e-6


def test_packed_rounding_in_bfloat16_is_that_of_padded_batches() -> None:
    model = make_model("llama").float().train()
    batch = make_batch(make_data(2, 4))
    losses = {name: LOSSES["dpo"](beta=0.3) for name in batch["pairs"]}
    exact = exact_gradients(model, batch, losses)
    padded = {name: value for name, value in batch.items() if name != "packed"}
    with torch.autocast("cpu", torch.bfloat16):
        found = packed_gradients(model, batch, losses)
        engine = ObjectiveGradients(model, losses, "one_pass")
        engine.accumulate(padded)
    plain = [torch.cat([b[m].flatten() for b in engine.bank.blocks]).double() for m in range(2)]
    assert relative(found, exact) < 2 * relative(plain, exact)
