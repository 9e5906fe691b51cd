"""The CLAMP paper's statements by numbers (`examples/clamp_theory.py`)."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from paretune.losses import dpo, ipo

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


@pytest.mark.parametrize("weights", ["equal", "skewed"])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_theorem_5_4_bounds_the_mean(theory: ModuleType, size: int, weights: str) -> None:
    """The mean of min ‖∇F λ‖² falls as 1/T, and without noise the bound is 8 to 65 times as high.

    The first term of the bound is at equal weights 16 / ((1 − 1/M)² T) times the fall.
    """
    p = theory.skewed(size) if weights == "skewed" else np.full(size, 1 / size)
    means = []
    for steps, sigma in ((20, 0.0), (200, 0.0), (60, 0.1)):
        taken = list(theory.run(theory.quadratics(size), p, steps, sigma, theory.SMALL))
        mean = sum(each[3] for each in taken) / steps
        fall = float((taken[0][2] - taken[-1][2]).max())
        alpha = (1 - p.max()) / (2 * p.max())
        first = 8 * p.max() / (alpha * p.min() ** 2 * steps * (1 - p.max())) * fall
        if weights == "equal":
            assert first == pytest.approx(16 / ((1 - 1 / size) ** 2 * steps) * fall)
        assert 0 < mean < first + theory.constant(p) * sigma**2
        if sigma == 0:
            assert 8 < first / mean < 65
            means.append(mean)
    assert means[0] / means[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_measure_is_the_least_norm_of_the_hull(theory: ModuleType, size: int) -> None:
    """By the optimality of a least-norm point x: ⟨g_m, x⟩ >= ‖x‖², and x is a convex combination.

    A least norm below any other point of the hull has to be the value of Theorem 5.4.
    """
    centres, theta = theory.quadratics(size), np.full(theory.DIMENSION, 2.0)
    gradients = theta - centres
    lam = np.full(size, 1 / size)
    for step in range(200_000):  # Frank-Wolfe, which knows of no quadratic program
        point = lam @ gradients
        best = int((gradients @ point).argmin())
        if point @ point - gradients[best] @ point < 1e-3:
            break
        lam += 2 / (step + 2) * (np.eye(size)[best] - lam)
    _, _, _, measured = next(theory.run(centres, np.full(size, 1 / size), 1, 0.0, theory.SMALL))
    assert measured == pytest.approx(float(point @ point), abs=2e-3)


@pytest.mark.parametrize(("size", "value"), [(2, 24), (3, 36), (5, 75), (8, 36 + 4 / 7 + 128)])
def test_the_constant_grows_with_the_objectives(
    theory: ModuleType, size: int, value: float
) -> None:
    assert theory.constant(np.full(size, 1 / size)) == pytest.approx(value)
    assert value == pytest.approx(4 * size**2 / (size - 1) + 2 * size**2)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_lemma_5_3_holds_without_the_chebyshev_term_and_not_as_printed(
    theory: ModuleType, size: int
) -> None:
    p = theory.skewed(size)
    printed = 0
    for drawn, step, _, _ in theory.run(theory.quadratics(size), p, 60, 0.0, 0.0):
        # What makes it true: p_m ⟨g^m, g⟩ >= ‖g‖² where g is the shortest of the hull of p_m g^m.
        assert (step @ step <= p * (drawn @ step) + 1e-9).all()
        right = 2 * p.max() * drawn @ step
        assert (step @ step <= right + 1e-9).all()
        printed += int(((drawn**2).sum(axis=1) <= right).sum())
    assert printed == 0 or size == 2  # at M = 2 it is true of a few


@pytest.mark.parametrize("size", [2, 3, 5])
def test_lemma_5_3_holds_where_mu_is_as_small_as_its_proof_takes_it(
    theory: ModuleType, size: int
) -> None:
    """μ λᵀ(p∘F) <= ‖g‖² in a step is enough; that a fixed μ is not that small breaks it."""
    p, kept, broken, printed = theory.skewed(size), 0, 0, 0
    for mu in (theory.SMALL, 1.0, 100.0):
        for drawn, step, losses, _ in theory.run(theory.quadratics(size), p, 60, 0.0, mu):
            weights, *_ = np.linalg.lstsq(drawn.T, step, rcond=None)  # p∘λ, from g alone
            holds = step @ step <= 2 * p.max() * drawn @ step + 1e-9
            printed += int(((drawn**2).sum(axis=1) <= 2 * p.max() * drawn @ step).sum())
            if mu * weights @ losses <= step @ step:
                kept += 1
                assert holds.all()
            broken += int((~holds).any())
    assert kept
    assert broken
    assert printed == (1 if size == 2 else 0)


# ------------------------------------------------------------------ Appendix E


@pytest.mark.parametrize(("kind", "curvature"), [("DPO", 0.25), ("IPO", 2.0)])
def test_smoothness_is_the_closed_form_and_below_what_is_printed(
    theory: ModuleType, kind: str, curvature: float
) -> None:
    """f = g(β (θ_w − θ_l)) has the Hessian g'' β² (e_w − e_l)(e_w − e_l)ᵀ, of norm 2 β² g''."""
    exact = 2 * theory.BETA**2 * curvature
    measured = theory.measured_smoothness(kind, rounds=1)
    assert 0.97 * exact < measured <= exact * (1 + 1e-6)
    c_g, printed, doubled = theory.printed_constants(kind)
    assert measured < printed < doubled
    beta, curved, reach = theory.BETA, theory.CURVATURE, theory.REACH
    for factor, value in ((16, printed), (32, doubled)):
        square = factor * curvature**2 * beta**4 * reach**4 + 8 * beta**2 * curved**2 * c_g**2
        assert value == pytest.approx(np.sqrt(square))


def test_smoothness_by_the_second_derivative_of_the_librarys_losses(theory: ModuleType) -> None:
    """Through a softmax, at the reference, where DPO's g'' is largest; IPO's is 2 / β² there."""
    beta, answers = theory.BETA, theory.ANSWERS
    theta = torch.linspace(-1, 1, answers, dtype=torch.float64)
    fixed = torch.log_softmax(theta, 0)

    def curvature(loss: Callable[..., torch.Tensor]) -> float:
        def of(theta: torch.Tensor) -> torch.Tensor:
            logps = torch.log_softmax(theta, 0)
            return loss(logps[0], logps[1], fixed[0], fixed[1], beta)

        hessian = torch.autograd.functional.hessian(of, theta)
        return float(torch.linalg.matrix_norm(hessian, 2))

    assert curvature(dpo) == pytest.approx(2 * beta**2 / 4)
    assert curvature(dpo) == pytest.approx(theory.measured_smoothness("DPO", 1), rel=0.03)
    assert curvature(ipo) == pytest.approx(2 * beta**2 * (2 / beta**2))  # not Appendix E's 2
    h = 20.0
    table_1 = float(ipo(torch.tensor(h), *torch.zeros(3), beta))
    assert table_1 == pytest.approx((h * beta - 0.5) ** 2 / beta**2) == pytest.approx(225)
    assert (h * beta - 1) ** 2 == pytest.approx(1)


def test_bounds_of_the_softmax_that_appendix_e_uses(theory: ModuleType) -> None:
    """‖e_y − π‖ < √2, and the eigenvalues of diag(π) − ππᵀ end at ½, which two answers reach."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=random.uniform(0, 8, (500, 1)), size=(500, theory.ANSWERS))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for share in shares:
        reach = np.linalg.norm(np.eye(theory.ANSWERS) - share, axis=1)
        assert reach.max() < theory.REACH + 1e-12
        top = np.linalg.eigvalsh(np.diag(share) - np.outer(share, share))[-1]
        assert top <= theory.CURVATURE + 1e-12
    halves = np.array([0.5, 0.5, 0, 0, 0])
    top = np.linalg.eigvalsh(np.diag(halves) - np.outer(halves, halves))[-1]
    assert top == pytest.approx(theory.CURVATURE)


def test_slopes_by_finite_differences(theory: ModuleType) -> None:
    """g' of Appendix E, and C_g: 1 bounds DPO's; IPO's is largest at the end of u's range."""
    reach = 2 * np.sqrt(2) * theory.BETA * theory.RADIUS
    u = np.linspace(-reach, reach, 101)
    values = {"DPO": lambda u: np.log1p(np.exp(-u)), "IPO": lambda u: (u - 1) ** 2}
    for kind, value in values.items():
        slope, l_g = theory.losses_of(kind)
        assert slope(u) == pytest.approx((value(u + 1e-6) - value(u - 1e-6)) / 2e-6, abs=1e-8)
        assert np.abs(np.diff(slope(u)) / np.diff(u)).max() <= l_g + 1e-9
        assert np.abs(slope(u)).max() <= theory.printed_constants(kind)[0] + 1e-12
    assert np.abs(theory.losses_of("IPO")[0](u)).max() == pytest.approx(
        theory.printed_constants("IPO")[0]
    )
