"""Each weighting against its own definition, and CLAMP's state."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from paretune.errors import InputError
from paretune.moo import MGDA, RACO, Clamp, ClampState, Descent, Linear, test_problems
from paretune.moo import minimize as solve
from paretune.moo.weightings.clamp_state import neutral_factor


def sample(size, seed=0, n=12):
    rng = np.random.default_rng(seed)
    G = torch.tensor(rng.normal(size=(n, size)))
    losses = torch.tensor(rng.uniform(0.2, 1.5, size))
    preference = torch.tensor(rng.dirichlet(np.full(size, 3.0)))
    return G, losses, preference


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("mu", [0.0, 1.0, 100.0])
def test_clamp_minimises_eq_6(size, mu):
    G, losses, p = sample(size)

    def eq_6(lam):
        w = p.numpy() * lam
        return float(((G.numpy() @ w) ** 2).sum() - mu * lam @ (p * losses).numpy())

    found = Clamp(mu)(G.T @ G, losses, p)
    start = np.full(size, 1 / size)
    simplex = {"type": "eq", "fun": lambda lam: lam.sum() - 1}
    rival = minimize(eq_6, start, bounds=[(0, 1)] * size, constraints=simplex, tol=1e-12)
    assert eq_6(found.lam.numpy()) <= rival.fun + 1e-9 * max(1, abs(rival.fun))
    assert found.weights.tolist() == pytest.approx((p * found.lam).tolist())
    assert found.mgda_term == pytest.approx(float((G @ found.weights).square().sum()))
    assert found.chebyshev_term == pytest.approx(mu * float(found.lam @ (p * losses)))
    assert found.gap <= 1e-12


def test_ideal_and_nadir_scale_losses_and_gradients_alike():
    G, losses, p = sample(3)
    ideal, nadir = torch.tensor([0.1, 0.0, -0.2]), torch.tensor([0.7, 2.0, 1.0])
    scaled = Clamp(3.0, ideal=ideal.tolist(), nadir=nadir.tolist())(G.T @ G, losses, p)
    H = G / (nadir - ideal).double()
    plain = Clamp(3.0)(H.T @ H, (losses - ideal) / (nadir - ideal), p)
    assert scaled.lam.tolist() == pytest.approx(plain.lam.tolist(), abs=1e-6)
    assert (G @ scaled.weights).tolist() == pytest.approx((H @ plain.weights).tolist(), abs=1e-5)
    from_zero = Clamp(3.0, ideal=[0.0] * 3)(G.T @ G, losses, p)
    assert torch.equal(from_zero.lam, Clamp(3.0)(G.T @ G, losses, p).lam)


def test_mgda_is_the_nearest_point_and_a_common_descent_direction():
    G, losses, p = sample(4)
    found = MGDA()(G.T @ G, losses, p)
    direction = G @ found.weights
    assert found.mgda_term == pytest.approx(found.min_norm)
    assert bool((G.T @ direction >= direction @ direction - 1e-12).all())


def cagrad_dual(G, p, c):
    """(G q)ᵀ(G p) + c ‖G p‖ ‖G q‖ as a function of q, and its least value on the simplex."""
    G, p = G.numpy(), p.numpy()
    g = G @ p

    def dual(q):
        return float((G @ q) @ g + c * np.linalg.norm(g) * np.linalg.norm(G @ q))

    simplex = {"type": "eq", "fun": lambda q: q.sum() - 1}
    starts = [np.full(len(p), 1 / len(p)), *(0.9 * np.eye(len(p)) + 0.1 / len(p))]
    options = {"bounds": [(0, 1)] * len(p), "constraints": simplex, "tol": 1e-13}
    return dual, min(minimize(dual, start, **options).fun for start in starts)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_raco_solves_the_dual_and_clips_it(size, c, seed):
    G, losses, p = sample(size, seed, n=3)  # few rows: gradients that conflict
    dual, least = cagrad_dual(G, p, c)
    found = RACO(c)(G.T @ G, losses, p)
    assert dual(found.lam.numpy()) <= least + 1e-9 * max(1, abs(least))
    assert found.gap <= 1e-6
    correction = found.weights - p
    direction = torch.minimum(found.lam, p)
    assert correction.tolist() == pytest.approx(
        (c * (G @ p).norm() / (G @ direction).norm() * direction).tolist()
    )
    # Cauchy-Schwarz: the correction is as long as the radius, whatever was clipped.
    assert float((G @ correction).norm()) == pytest.approx(c * float((G @ p).norm()))


@pytest.mark.parametrize("seed", range(4))
def test_raco_without_clipping_is_cagrad_in_its_primal_form(seed):
    """The direction maximises the worst improvement within the ball around g (Liu et al. 2021)."""
    G, losses, p = sample(3, seed, n=3)
    c = 0.5
    g = (G @ p).numpy()
    found = (G @ RACO(c, clip=False)(G.T @ G, losses, p).weights).numpy()
    assert np.linalg.norm(found - g) == pytest.approx(c * np.linalg.norm(g))
    ball = {"type": "ineq", "fun": lambda x: (c * c) * (g @ g) - ((x[:3] - g) ** 2).sum()}
    worst = {"type": "ineq", "fun": lambda x: G.T.numpy() @ x[:3] - x[3]}
    start = np.append(g, (G.T.numpy() @ g).min())
    rival = minimize(lambda x: -x[3], start, constraints=[ball, worst], tol=1e-12)
    assert (G.T.numpy() @ found).min() == pytest.approx(-rival.fun, abs=1e-5)


def test_raco_limits():
    G, losses, p = sample(3)
    assert torch.equal(RACO(0.0)(G.T @ G, losses, p).weights, p)
    for scale in (1e-8, 1e8):  # a pure function of directions
        scaled = RACO()((scale * G).T @ (scale * G), losses, p).weights
        assert scaled.tolist() == pytest.approx(RACO()(G.T @ G, losses, p).weights.tolist())
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert RACO()(opposed, losses[:2], [0.5, 0.5]).weights.tolist() == [0.5, 0.5]  # g = 0
    assert RACO()(torch.zeros(2, 2), losses[:2], [0.3, 0.7]).weights.tolist() == [0.3, 0.7]
    alike = torch.ones(2, 2)  # one gradient: only the length changes
    assert float(RACO(0.4)(alike, losses[:2], [0.3, 0.7]).weights.sum()) == pytest.approx(1.4)


def test_raco_clipping_keeps_to_the_preference():
    """With the published witness, CAGrad leans on the first objective and the clip does not."""
    G = torch.tensor([[1.0, -1.0], [-4.0, 1.0]], dtype=torch.float64)
    p = torch.tensor([0.2, 0.8], dtype=torch.float64)
    found = RACO(0.5)(G.T @ G, torch.ones(2), p)
    assert found.lam.tolist() == pytest.approx([0.356145, 1 - 0.356145], abs=1e-6)
    weights = found.weights / found.weights.sum()
    free = RACO(0.5, clip=False)(G.T @ G, torch.ones(2), p).weights
    assert abs(weights[0] - p[0]) < abs(free[0] / free.sum() - p[0])
    with pytest.raises(InputError, match=r"c must be in \[0, 1\)"):
        RACO(1.0)


def test_linear_is_the_preference():
    G, losses, p = sample(3)
    found = Linear()(G.T @ G, losses, p)
    assert torch.equal(found.weights, p)
    assert found.min_norm <= found.mgda_term


def test_stationary_certificate():
    G = torch.tensor([[1.0, -2.0], [0.0, 0.0]], dtype=torch.float64)  # opposed gradients
    p = torch.tensor([0.5, 0.5], dtype=torch.float64)
    balanced = Clamp(1.0)(G.T @ G, torch.tensor([1.0, 1.0]), p)
    assert balanced.mgda_term == pytest.approx(0, abs=1e-15)
    assert balanced.complementarity == pytest.approx(0, abs=1e-12)
    assert balanced.lam.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert not balanced.vertex
    unbalanced = Clamp(1e-6)(G.T @ G, torch.tensor([1.0, 0.8]), p)
    assert unbalanced.complementarity == pytest.approx(0.1, abs=1e-3)


def test_vertex_at_large_mu():
    G, _, p = sample(3)
    losses = torch.tensor([1.0, 2.0, 3.0]) / p
    found = Clamp(1e6)(G.T @ G, losses, p)
    assert found.vertex
    assert found.lam.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mu": -1.0}, "mu must be"),
        ({"nadir": [1.0, 1.0]}, "needs an ideal"),
        ({"ideal": [0.0, 1.0], "nadir": [1.0, 1.0]}, "objective 1"),
        ({"mu": 1.0, "mu_schedule": "steps", "mu_final": 1.0}, "Unknown mu_schedule"),
        ({"mu": 1.0, "mu_final": 1.0}, "mu_final together"),
        ({"mu": 1.0, "mu_schedule": "linear"}, "mu_final together"),
        ({"mu": 1.0, "mu_schedule": "exponential", "mu_final": 0.0}, "above 0"),
        ({"loss_ema": 1.0}, "loss_ema"),
        ({"mu": "automatic"}, "a number or 'auto', got 'automatic'"),
        ({"mu": True}, "a number or 'auto'"),
        ({"scale_free": True}, "finds its own scale"),
        ({"mu_schedule": "linear", "mu_final": 1.0}, "finds its own scale"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        ClampState(**settings)


def test_plain_state_is_the_pure_weighting():
    G, losses, p = sample(3)
    state = ClampState(mu=7.0)
    for progress in (0.0, 0.5, 1.0):
        found = state.step(G.T @ G, losses * (1 + progress), p, progress)
        assert torch.equal(found.lam, Clamp(7.0)(G.T @ G, losses * (1 + progress), p).lam)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 50.5), ("cosine", 50.5), ("exponential", 10.0)]
)
def test_mu_schedules(schedule, middle):
    state = ClampState(mu=100.0, mu_final=1.0, mu_schedule=schedule)
    assert [state.mu_at(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([100.0, middle, 1.0])


def test_loss_average_enters_the_linear_term():
    G, losses, p = sample(2)
    state = ClampState(mu=1.0, loss_ema=0.75)
    state.step(G.T @ G, losses, p)
    found = state.step(G.T @ G, 3 * losses, p)
    assert torch.equal(found.lam, Clamp(1.0)(G.T @ G, 0.75 * losses + 0.25 * (3 * losses), p).lam)


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_scale_free_mu_ignores_the_unit_of_the_losses(factor):
    plain, scaled = (ClampState(mu=2.0, scale_free=True) for _ in range(2))
    for seed in range(4):
        G, losses, p = sample(3, seed)
        here = plain.step(G.T @ G, losses, p)
        there = scaled.step(factor**2 * G.T @ G, factor * losses, p)
        assert here.lam.tolist() == pytest.approx(there.lam.tolist(), abs=1e-9)


def test_scale_free_mu_by_hand():
    gramian, losses = torch.diag(torch.tensor([4.0, 1.0])).double(), torch.tensor([1.0, 3.0])
    p = [0.5, 0.5]
    found = ClampState(mu=2.0, scale_free=True).step(gramian, losses, p)
    mu = 2.0 * ((1.0 + 0.25) / 2) / ((0.5 + 1.5) / 2)
    assert found.chebyshev_term == pytest.approx(mu * float(found.lam @ (0.5 * losses.double())))
    assert torch.allclose(found.lam, Clamp(mu)(gramian, losses, p).lam)


def test_resumed_state_goes_on_bit_for_bit():
    settings = {"mu": 5.0, "scale_free": True, "loss_ema": 0.9, "ideal": [0.0, 0.1, 0.2]}
    state, resumed = ClampState(**settings), ClampState(**settings)
    for seed in range(6):
        G, losses, p = sample(3, seed)
        if seed == 3:
            resumed.load_state_dict(json.loads(json.dumps(state.state_dict())))
        here = state.step(G.T @ G, losses, p, seed / 6)
        if seed >= 3:
            assert torch.equal(here.weights, resumed.step(G.T @ G, losses, p, seed / 6).weights)


def test_refused_step_leaves_the_state_alone():
    G, losses, p = sample(3)
    state = ClampState(mu=100.0, scale_free=True, loss_ema=0.5)
    state.step(G.T @ G, losses, p)
    before = state.state_dict()
    for bad in (losses * math.nan, losses[:2]):
        with pytest.raises(InputError):
            state.step(G.T @ G, bad, p)
    with pytest.raises(InputError, match="averaged 3 objectives"):
        state.step(torch.eye(2), losses[:2], [0.5, 0.5])
    with pytest.raises(InputError, match="progress"):
        state.step(G.T @ G, losses, p, 1.5)
    assert state.state_dict() == before


@given(
    cosine=st.floats(-0.99, 0.99),
    first=st.floats(0.01, 0.99),
    loss=st.floats(1e-3, 1e3),
    norm=st.floats(1e-3, 1e3),
)
def test_neutral_mu_begins_as_the_weighted_gradient(cosine, first, loss, norm):
    """Equal losses and gradient norms: λ* = (½, ½) for any angle and any preference."""
    gramian = norm**2 * torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
    losses = torch.full((2,), loss, dtype=torch.float64)
    found = ClampState().step(gramian, losses, [first, 1 - first])
    assert found.lam.tolist() == pytest.approx([0.5, 0.5], abs=1e-9)


@pytest.mark.parametrize("p", [[0.6, 0.2, 0.2], [0.1, 0.45, 0.45], [1 / 3] * 3])
def test_neutral_mu_of_three_objectives(p):
    """Two equal weights, orthogonal gradients: the direction has the ratios of p, exactly."""
    found = ClampState().step(torch.eye(3).double() * 4, torch.full((3,), 0.7), p)
    assert (found.weights / found.weights.sum()).tolist() == pytest.approx(p)


def test_neutral_factor_is_the_least_squares_fit():
    for size, seed in [(2, 0), (3, 1), (5, 2)]:
        p = np.random.default_rng(seed).dirichlet(np.ones(size))
        design = np.stack([p, np.ones(size)], axis=1)
        slope = np.linalg.lstsq(design, 2 * p**2 / size, rcond=None)[0][0]
        assert neutral_factor(p) == pytest.approx(slope)
        near = 1 / size + 1e-4 * (p - 1 / size)
        assert neutral_factor(near) == pytest.approx(4 / size**2, rel=1e-3)


@pytest.mark.parametrize("scales", [(1e-3, 1e-3), (100.0, 0.01)])
def test_neutral_mu_has_no_unit(scales):
    """Of all losses together; with ranges, of each."""
    s = torch.tensor(scales, dtype=torch.float64)
    ideal, nadir = [0.1, 0.1], [2.0, 2.0]
    plain = ClampState(ideal=ideal, nadir=nadir)
    scaled = ClampState(
        ideal=[a * b for a, b in zip(ideal, scales, strict=True)],
        nadir=[a * b for a, b in zip(nadir, scales, strict=True)],
    )
    for seed in range(4):
        G, losses, p = sample(2, seed)
        gramian = G.T @ G
        here = plain.step(gramian, losses, p)
        there = scaled.step(s[:, None] * gramian * s, s * losses, p)
        assert here.lam.tolist() == pytest.approx(there.lam.tolist(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("make", [test_problems.fonseca_fleming, test_problems.zdt2_smooth])
@pytest.mark.parametrize("first", [0.3, 0.5, 0.7])
def test_neutral_mu_reaches_the_chebyshev_point(make, first):
    known, p = make(), [first, 1 - first]
    descent = Descent(ClampState(), lr=0.05, optimizer="adam")
    result = solve(known.problem, p, method=descent, x0=known.x0, steps=300)
    assert np.linalg.norm(result.objectives.numpy() - known.chebyshev(p)) < 0.02


def test_neutral_mu_reaches_the_chebyshev_point_of_three_objectives():
    known, p = test_problems.sphere3(), [0.2, 0.3, 0.5]
    descent = Descent(ClampState(), lr=0.05, optimizer="adam")
    result = solve(known.problem, p, method=descent, x0=known.x0, steps=300)
    assert np.linalg.norm(result.objectives.numpy() - known.chebyshev(p)) < 0.02


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_an_ideal_point_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="ideal must be finite"):
        Clamp(ideal=[0.0, value])
    with pytest.raises(InputError, match="ideal must be finite"):
        ClampState(ideal=[value, 0.0])


def test_terms_that_overflow_are_one_sentence() -> None:
    losses = torch.tensor([1e10, 2e10], dtype=torch.float64)
    with pytest.raises(InputError, match="give a smaller mu"):
        Clamp(1e300)(torch.eye(2, dtype=torch.float64), losses, [0.5, 0.5])
    with pytest.raises(InputError, match="too large"):
        Clamp(ideal=[0, 0], nadir=[1e-200, 1e-200])(torch.eye(2).double(), losses, [0.5, 0.5])
