"""The CLAMP paper's statements by numbers (`examples/clamp_theory.py`)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "clamp_theory.py"


@pytest.fixture(scope="module")
def theory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clamp_theory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["clamp_theory"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [2, 8])
def test_theorem_5_4_bounds_the_mean(theory: ModuleType, size: int) -> None:
    p, steps, sigma = theory.skewed(size), 60, 0.1
    taken = list(theory.run(theory.quadratics(size), p, steps, sigma, theory.SMALL))
    mean = sum(each[3] for each in taken) / steps
    alpha = (1 - p.max()) / (2 * p.max())
    factor = 8 * p.max() / (alpha * p.min() ** 2 * steps * (1 - p.max()))
    fall = (taken[0][2] - taken[-1][2]).max()
    assert 0 < mean < factor * fall + theory.constant(p) * sigma**2


def test_the_constant_by_hand(theory: ModuleType) -> None:
    assert theory.constant(np.full(2, 0.5)) == pytest.approx(4 * 0.5 / (0.25 * 0.5) + 8)


def test_lemma_5_3_holds_without_the_chebyshev_term_and_not_as_printed(theory: ModuleType) -> None:
    p = theory.skewed(3)
    for drawn, step, _, _ in theory.run(theory.quadratics(3), p, 60, 0.0, 0.0):
        right = 2 * p.max() * drawn @ step
        assert (step @ step <= right + 1e-9).all()
        assert not ((drawn**2).sum(axis=1) <= right).any()
