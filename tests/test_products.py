"""Products through oneDNN: those of float64, and of torch itself, with all their gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import linear  # the one that `fast_products` replaces

from paretune.models import products
from paretune.models.products import fast_products, product, products_are_slow

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and products._is_right()),
    reason="torch has no oneDNN here, or another operator",
)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on a machine where torch's own products are slow; the shapes that went to oneDNN."""
    seen: list[tuple[int, ...]] = []
    onednn = products._onednn

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(tuple(x.shape))
        return onednn(x, weight, bias)

    monkeypatch.setattr(products, "products_are_slow", lambda: True)
    monkeypatch.setattr(products, "_onednn", noted)
    return seen


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(200, 96), (2, 100, 96), (3, 2, 40, 96)])
def test_values_and_gradients(slow: list[Any], shape: tuple[int, ...], bias: bool) -> None:
    given = [draw(*shape), draw(160, 96, seed=1)] + [draw(160, seed=2)] * bias
    inputs = [each.clone().requires_grad_() for each in given]
    exact = [each.double().requires_grad_() for each in given]
    with fast_products():
        made = functional.linear(*inputs)
        found = torch.autograd.grad(made.sin().sum(), inputs)
    wanted = functional.linear(*exact)
    expected = torch.autograd.grad(wanted.sin().sum(), exact)
    assert len(slow) == 3  # forward, by the inputs and by the weight
    torch.testing.assert_close(made.double(), wanted, rtol=1e-4, atol=1e-4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3)


def test_second_derivatives(slow: list[Any]) -> None:
    def along_a_direction(kind: torch.dtype) -> list[Tensor]:
        sizes = [(150, 120), (110, 120)]
        x, weight = (draw(*s, seed=n).to(kind).requires_grad_() for n, s in enumerate(sizes))
        value = (functional.linear(x, weight) / 10).tanh().square().sum()
        first = torch.autograd.grad(value, [x, weight], create_graph=True)
        along = torch.stack([(g * draw(*g.shape, seed=7).to(kind)).sum() for g in first]).sum()
        return list(torch.autograd.grad(along, [x, weight]))

    with fast_products():
        found = along_a_direction(torch.float32)
    assert len(slow) > 3
    for one, other in zip(found, along_a_direction(torch.float64), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_what_goes_the_plain_way(slow: list[Any]) -> None:
    x, weight = draw(200, 96), draw(160, 96)

    class Own(Tensor):
        pass

    with fast_products():
        functional.linear(x[:2], weight)  # few rows
        functional.linear(x, weight[:8])  # few columns
        functional.linear(x[0], weight)
        functional.linear(x.double(), weight.double())
        functional.linear(x.bfloat16(), weight.bfloat16())
        functional.linear(x.as_subclass(Own), weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.linear(x, weight).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="shapes"):
            functional.linear(x, weight[:, 1:])
    functional.linear(x, weight)
    assert product(x, weight.T).shape == (200, 160)
    assert slow == []
    with fast_products(), fast_products():
        functional.linear(x, weight)
        assert torch.allclose(product(x, weight.T), x @ weight.T, atol=1e-4)
        assert torch.allclose(product(x.T, draw(200, 90)), x.T @ draw(200, 90), atol=1e-4)
    assert len(slow) == 3
    functional.linear(x, weight)
    assert len(slow) == 3


def test_inputs_of_frozen_weights_are_not_kept(slow: list[Any]) -> None:
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    x = draw(200, 96).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), fast_products():
        functional.linear(x, draw(160, 96)).sum().backward()
    assert kept == [(160, 96)]
    assert len(slow) == 2


def test_it_lasts_until_the_last_thread_is_done(slow: list[Any]) -> None:
    within, end = threading.Event(), threading.Event()

    def work() -> None:
        with fast_products():
            within.set()
            end.wait(60)

    other = threading.Thread(target=work)
    with fast_products():
        other.start()
        within.wait(60)
    functional.linear(draw(200, 96), draw(160, 96))
    assert len(slow) == 1
    end.set()
    other.join()
    assert functional.linear is linear


def test_what_others_put_there_stays(slow: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*given: Any) -> Tensor:
        return linear(*given)

    monkeypatch.setattr(functional, "linear", theirs)
    with fast_products():
        assert functional.linear is theirs
    assert functional.linear is theirs


def test_who_turns_onednn_off_has_it_off(slow: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with fast_products():
        functional.linear(draw(200, 96), draw(160, 96))
    assert slow == []


def test_an_error_ends_it(slow: list[Any]) -> None:
    @fast_products()
    def fail() -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            fail()
    functional.linear(draw(200, 96), draw(160, 96))
    assert slow == []


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_with_an_adapter(
    slow: list[Any],
    tiny_lora: Callable[..., Any],
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_ROWS", 1)
    monkeypatch.setattr(products, "_MULTIPLICATIONS", 1)
    model = tiny_lora(fresh=False)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.arange(2 * 12).reshape(2, 12) % 20
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients() -> list[Tensor]:
        value = model(input_ids=ids, labels=ids, use_cache=False).loss
        return list(torch.autograd.grad(value, weights))

    expected = gradients()
    assert slow == []
    with fast_products():
        found = gradients()
    assert len(slow) > 10
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm()) + 1e-9


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("torch.backends.cpu.get_cpu_capability", lambda: "AVX2"),
        ("torch.backends.mkl.is_available", lambda: False),
        ("torch.backends.mkldnn.is_available", lambda: False),
        ("paretune.models.products._onednn", lambda x, weight, bias: x),
        ("pathlib.Path.read_text", lambda self, encoding: "vendor_id : GenuineIntel"),
    ],
)
def test_elsewhere_nothing_changes(
    change: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda self, encoding: "AuthenticAMD")
    decide = products_are_slow.__wrapped__
    assert decide()
    monkeypatch.setattr(change, value)
    assert not decide()
    monkeypatch.setattr(products, "products_are_slow", decide)
    with fast_products():
        assert functional.linear is linear


def test_rows_are_rounded_to_few_numbers(slow: list[Any]) -> None:
    assert {products._rounded(rows) for rows in range(1, 9)} == {8}
    for rows in (33, 64, 100, 511, 513, 1000, 4097):
        assert rows <= products._rounded(rows) <= max(1.125 * rows, rows + 7)
    assert len({products._rounded(rows) for rows in range(512, 4096)}) <= 3 * 8 + 1
    weight = draw(160, 96).requires_grad_()
    with fast_products():
        for rows in range(120, 140):
            x = draw(rows, 96).requires_grad_()
            made = functional.linear(x, weight)
            assert made.is_contiguous()
            signal = draw(rows, 160, seed=1)
            found = torch.autograd.grad(made, [x, weight], signal)
            torch.testing.assert_close(made, x @ weight.T, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found[0], signal @ weight, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found[1], signal.T @ x, rtol=1e-4, atol=1e-4)
    assert {shape[0] for shape in slow} == {
        120,
        128,
        144,
        160,
    }  # the last is of the weight's gradient
