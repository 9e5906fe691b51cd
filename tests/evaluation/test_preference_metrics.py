"""Preference metrics against plain Python sums, and across processes."""

from __future__ import annotations

import math

import pytest
import torch

from paretune.errors import InputError
from paretune.evaluation.preference_metrics import PreferenceMetrics, chebyshev_value


def test_means_are_weighted_and_a_tie_counts_half() -> None:
    metrics = PreferenceMetrics(["a", "b"])
    weight = torch.tensor([1.0, 3.0, 4.0])
    metrics.update("a", torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.0, -1.0]), weight)
    metrics.update("b", torch.tensor([0.25, 0.75]), torch.tensor([1.0, 2.0]))
    result = metrics.result({"a": 0.25, "b": 0.75}, prefix="test")
    assert result == {
        "test_a_loss": (1 + 6 + 16) / 8,
        "test_a_accuracy": (1 + 1.5) / 8,
        "test_a_margin": (0.5 - 4) / 8,
        "test_b_loss": 0.5,
        "test_b_accuracy": 1.0,
        "test_b_margin": 1.5,
        "test_chebyshev": 0.25 * 23 / 8,
    }
    assert "eval_chebyshev" not in metrics.result()


def test_sums_of_two_processes_are_those_of_the_joined_data() -> None:
    generator = torch.Generator().manual_seed(0)
    losses, margins, weight = torch.rand(3, 20, generator=generator)
    joined, first, second = (PreferenceMetrics(["a", "b"]) for _ in range(3))
    for name in ("a", "b"):
        joined.update(name, losses, margins, weight)
        first.update(name, losses[:7], margins[:7], weight[:7])
        second.update(name, losses[7:], margins[7:], weight[7:])
    summed = PreferenceMetrics.from_tensor(["a", "b"], first.tensor() + second.tensor())
    preference = {"a": 0.5, "b": 0.5}
    assert summed.result(preference) == pytest.approx(joined.result(preference), rel=1e-12)


def test_an_objective_of_weight_zero_does_not_enter_the_chebyshev_value() -> None:
    assert chebyshev_value({"a": 0.5, "b": math.nan}, {"a": 1.0, "b": 0.0}) == 0.5
    assert math.isnan(chebyshev_value({"a": 0.5, "b": math.nan}, {"a": 0.5, "b": 0.5}))
    assert chebyshev_value({"a": 0.5}, {"a": 1.0, "unmeasured": 0.0}) == 0.5


def test_nan_margins_are_not_counted_as_accurate_or_wrong() -> None:
    metrics = PreferenceMetrics(["a"])
    metrics.update("a", torch.tensor([1.0]), torch.tensor([math.nan]))
    assert math.isnan(metrics.result()["eval_a_accuracy"])


def test_missing_data_is_named() -> None:
    metrics = PreferenceMetrics(["safe"])
    with pytest.raises(InputError, match="'safe' has no evaluation pair"):
        metrics.result()
    metrics.update("safe", torch.ones(1), torch.ones(1))
    with pytest.raises(InputError, match="'helpful', which was not evaluated"):
        metrics.result({"safe": 0.5, "helpful": 0.5})
