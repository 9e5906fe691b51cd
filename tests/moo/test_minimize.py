"""`minimize` on problems with known answers."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from paretune.errors import InputError
from paretune.moo import (
    MGDA,
    Clamp,
    ClampState,
    Descent,
    Preference,
    Problem,
    das_dennis,
    minimize,
    test_problems,
)

PAIRS = [test_problems.fonseca_fleming, test_problems.convex_pair, test_problems.zdt2_smooth]


@pytest.mark.slow
@pytest.mark.parametrize("p1", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("make", PAIRS)
def test_clamp_reaches_the_chebyshev_point(make, p1):
    known = make()
    found = minimize(
        known.problem, [p1, 1 - p1], method="clamp", x0=known.x0, steps=300, lr=0.3, mu=1.0
    )
    np.testing.assert_allclose(found.objectives, known.chebyshev((p1, 1 - p1)), atol=1e-4)
    assert found.kkt_residual < 1e-4


@pytest.mark.parametrize("p", [(0.2, 0.3, 0.5), (0.6, 0.2, 0.2), (1 / 3, 1 / 3, 1 / 3)])
def test_clamp_with_three_objectives(p):
    known = test_problems.sphere3()
    found = minimize(known.problem, p, "clamp", x0=known.x0, steps=300, lr=0.3)
    np.testing.assert_allclose(found.objectives, known.chebyshev(p), atol=1e-4)


@pytest.mark.parametrize("make", [*PAIRS, test_problems.sphere3])
def test_known_answers_agree_with_an_independent_solver(make):
    """The true Chebyshev point, from SLSQP on min ρ s.t. p∘F <= ρ."""
    known = make()
    p = (0.3, 0.7) if known.n_objectives == 2 else (0.2, 0.3, 0.5)

    def spare(v):
        return v[-1] - np.array(p) * known.problem.evaluate(torch.tensor(v[:-1])).numpy()

    start = np.r_[known.x0.numpy(), 2.0]
    inequality = {"type": "ineq", "fun": spare}
    found = scipy_minimize(lambda v: v[-1], start, constraints=inequality, tol=1e-12)
    values = known.problem.evaluate(torch.tensor(found.x[:-1])).numpy()
    np.testing.assert_allclose(known.chebyshev(p), values, atol=1e-5)


@pytest.mark.parametrize("make", [*PAIRS, test_problems.sphere3])
def test_fronts_are_attained_and_mutually_nondominated(make):
    known = make()
    front = known.front(50)
    assert front.shape[1] == known.n_objectives
    worse = (front[:, None] >= front[None] + 1e-12).all(-1)
    assert not worse.any()
    for p in das_dennis(known.n_objectives, 4):
        if min(p) > 0:
            point = known.chebyshev(p)
            assert np.abs(front - point).max(-1).min() < 0.2
            assert not (front < point - 1e-9).all(-1).any()


def test_linear_weighting_reaches_only_the_ends_of_a_concave_front():
    known = test_problems.fonseca_fleming()
    for p1 in (0.3, 0.7):
        found = minimize(
            known.problem, [p1, 1 - p1], method="linear", x0=known.x0, steps=2000, lr=0.3
        )
        assert float(found.objectives.min()) < 1e-3


def test_linear_weighting_on_a_convex_front():
    known = test_problems.convex_pair()
    found = minimize(known.problem, [0.8, 0.2], method="linear", x0=known.x0, lr=0.2)
    np.testing.assert_allclose(found.objectives, [(0.6 - 1) ** 2, (0.6 + 1) ** 2], atol=1e-8)
    assert found.converged


def test_mgda_stops_on_the_pareto_set_whatever_the_preference():
    known = test_problems.fonseca_fleming()
    ends = [
        minimize(known.problem, [p, 1 - p], method="mgda", x0=known.x0, steps=3000, lr=0.3)
        for p in (0.2, 0.8)
    ]
    assert all(end.kkt_residual < 1e-6 for end in ends)
    assert torch.equal(ends[0].x, ends[1].x)
    f1, f2 = ends[0].objectives.tolist()
    assert math.sqrt(-math.log1p(-f1)) + math.sqrt(-math.log1p(-f2)) == pytest.approx(2, abs=1e-4)


def test_theorem_5_4_measure_falls_at_least_like_one_over_t():
    known = test_problems.convex_pair()
    found = minimize(known.problem, [0.4, 0.6], "clamp", x0=known.x0, steps=400, lr=0.05, tol=0.0)
    running = found.history.min_norm.cumsum(0) / torch.arange(1, 402)
    times = torch.tensor([50, 100, 200, 400])
    slopes = running[times].log().diff() / times.log().diff()
    assert bool((slopes <= -0.9).all())


@pytest.mark.parametrize("rate", [0.25, 1.0, 3.0, 5.0])
def test_imbalance_shrinks_at_the_stated_rate(rate):
    """On the front p1 f1 - p2 f2 contracts by 1 - lr mu / 2 a step; past lr mu = 4 it grows."""
    known = test_problems.convex_pair(1)
    p = torch.tensor([0.45, 0.55], dtype=torch.float64)
    start = torch.tensor([(p[0].sqrt() - p[1].sqrt()) / (p[0].sqrt() + p[1].sqrt()) + 1e-4])
    found = minimize(
        known.problem, p.tolist(), "clamp", x0=start, steps=1, lr=0.5, mu=rate / 0.5, tol=0.0
    )
    before, after = (p * found.history.objectives).diff(dim=1)[:, 0].tolist()
    assert after / before == pytest.approx(1 - rate / 2, abs=1e-2)


@pytest.mark.parametrize(("p", "lr"), [((0.3, 0.7), 0.05), ((0.7, 0.3), 0.4), ((0.5, 0.5), 1.5)])
def test_without_mu_a_step_is_prox_linear(p, lr):
    """The step minimises max_m p_m (f_m + g_m·v) + ‖v‖² / (2 lr), which SLSQP does, too."""
    known = test_problems.convex_pair(3)
    x = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
    found = minimize(known.problem, p, "clamp", x0=x, steps=1, lr=lr, tol=0.0)
    values, jacobian = known.problem.evaluate(x), torch.func.jacrev(known.problem.evaluate)(x)
    rows, levels = np.array(p)[:, None] * jacobian.numpy(), np.array(p) * values.numpy()
    model = scipy_minimize(
        lambda v: v[-1] + v[:-1] @ v[:-1] / (2 * lr),
        np.r_[np.zeros(3), levels.max()],
        constraints={"type": "ineq", "fun": lambda v: v[-1] - levels - rows @ v[:-1]},
        tol=1e-13,
    )
    np.testing.assert_allclose(found.x - x, model.x[:-1], atol=1e-6)


@pytest.mark.parametrize("make", [*PAIRS, test_problems.sphere3])
def test_without_mu_clamp_reaches_the_chebyshev_point(make):
    known = make()
    p = (0.3, 0.7) if known.n_objectives == 2 else (0.2, 0.3, 0.5)
    found = minimize(known.problem, p, "clamp", x0=known.x0, steps=150, lr=0.2)
    np.testing.assert_allclose(found.objectives, known.chebyshev(p), atol=1e-4)


def test_zero_preference_is_not_differentiated():
    calls = []

    def unwanted(z):
        calls.append(z.requires_grad)
        return (z.detach() ** 2).sum()

    problem = Problem([lambda z: ((z - 1) ** 2).sum(), unwanted])
    found = minimize(problem, [1.0, 0.0], "clamp", x0=torch.zeros(2, 2), lr=0.2, steps=200)
    assert torch.allclose(found.x, torch.ones(2, 2), atol=1e-5)
    assert found.x.dtype == torch.float32
    assert found.multipliers.tolist() == [1.0, 0.0]
    assert found.n_gradient_evaluations == found.n_function_evaluations == len(calls)


def test_counts_and_history():
    known = test_problems.sphere3()
    found = minimize(known.problem, [0.2, 0.3, 0.5], "clamp", x0=known.x0, steps=7)
    assert found.n_function_evaluations == 8
    assert found.n_gradient_evaluations == 24
    assert found.history.objectives.shape == found.history.multipliers.shape == (8, 3)
    assert torch.equal(found.history.objectives[-1], found.objectives)
    assert found.kkt_residual == float(found.history.kkt_residual[-1])
    assert not found.converged
    assert found.message == "Stopped after all 7 steps."


def test_given_jacobian_equals_autograd():
    centre = torch.tensor([[1.0], [-1.0]])
    by_hand = Problem(lambda z: ((z - centre) ** 2).sum(1), jacobian=lambda z: 2 * (z - centre))
    automatic = Problem(lambda z: ((z - centre) ** 2).sum(1))
    options = {"x0": torch.tensor([0.3, 2.0]), "steps": 20}
    here, there = (minimize(p, [0.4, 0.6], "clamp", **options) for p in (by_hand, automatic))
    assert torch.allclose(here.x, there.x)


@pytest.mark.parametrize("optimizer", ["adam", lambda z, lr: torch.optim.SGD(z, lr, momentum=0.5)])
def test_optimizers(optimizer):
    known = test_problems.convex_pair()
    found = minimize(
        known.problem, [0.6, 0.4], "clamp", x0=known.x0, steps=400, lr=0.05, optimizer=optimizer
    )
    np.testing.assert_allclose(found.objectives, known.chebyshev((0.6, 0.4)), atol=1e-2)


def test_sgd_through_torch_equals_the_plain_step():
    known = test_problems.zdt2_smooth()
    plain, torch_sgd = (
        minimize(known.problem, [0.6, 0.4], "clamp", x0=known.x0, steps=50, optimizer=optimizer)
        for optimizer in (None, lambda z, lr: torch.optim.SGD(z, lr))
    )
    assert torch.allclose(plain.x, torch_sgd.x, rtol=0, atol=1e-14)


def test_method_object_and_state():
    known = test_problems.convex_pair()
    state = ClampState(mu=4.0, mu_final=1.0, mu_schedule="linear")
    method = Descent(state, lr=0.2)
    preference = Preference.of({"a": 0.7, "b": 0.3})
    runs = [minimize(known.problem, preference, method, x0=known.x0) for _ in range(2)]
    assert torch.equal(runs[0].x, runs[1].x)
    assert state.state_dict()["losses"] is None
    np.testing.assert_allclose(runs[0].objectives, known.chebyshev((0.7, 0.3)), atol=1e-6)


def test_divergence_returns_the_last_finite_point():
    problem = Problem(lambda z: torch.stack([(z**4).sum(), ((z - 1) ** 4).sum()]))
    found = minimize(problem, [0.5, 0.5], "clamp", x0=[3.0], lr=10.0)
    assert not found.converged
    assert "no longer finite; try a smaller lr" in found.message
    assert torch.isfinite(found.x).all()
    assert torch.allclose(problem.evaluate(found.x), found.objectives)


def good(z):
    return torch.stack([(z**2).sum(), ((z - 1) ** 2).sum()])


@pytest.mark.parametrize(
    ("objectives", "preference", "options", "message"),
    [
        (good, [0.5, 0.6], {}, "must sum to 1"),
        (good, [0.2, 0.3, 0.5], {}, "2 objectives, the preference 3 weights"),
        (good, [0.5, 0.5], {"method": "magic"}, "Unknown method 'magic'"),
        (good, [0.5, 0.5], {"method": "mgda", "mu": 1.0}, "has no mu"),
        (good, [0.5, 0.5], {"method": Descent(MGDA()), "lr": 1.0}, "inside the method"),
        (good, [0.5, 0.5], {"method": "clamp", "lr": 0.0}, "lr must be"),
        (good, [0.5, 0.5], {"lr": 0.1}, "'wc_augmented' has no lr or optimizer"),
        (good, [0.5, 0.5], {"method": "clamp", "mu": -1.0}, "mu must be"),
        (good, [0.5, 0.5], {"method": "clamp", "optimizer": "magic"}, "Unknown optimizer"),
        (good, [0.5, 0.5], {"steps": -1}, "at least 0"),
        (good, [0.5, 0.5], {"x0": [math.nan]}, "x0 must be finite"),
        (good, [0.5, 0.5], {"x0": None}, "array of numbers, got None"),
        (good, [0.5, 0.5], {"x0": [[1.0], [1.0, 2.0]]}, "array of numbers"),
        (good, [0.5, 0.5], {"x0": []}, "must hold real numbers"),
        (good, [0.5, 0.5], {"x0": torch.tensor([1j])}, "must hold real numbers"),
        (good, 0.5, {}, "must be a list of weights, got 0.5"),
        (lambda z: good(z) / 0, [0.5, 0.5], {}, "inf at the start point"),
        (lambda z: good(z) / 0, [0.5, 0.5], {"method": "clamp"}, "not finite at x0"),
        (lambda z: z.sum(), [1.0], {}, r"shape \(M,\), got \(\)"),
        (lambda z: good(z.detach()), [0.5, 0.5], {}, "do not depend on z"),
        ([], [1.0], {}, "at least one objective"),
        ([lambda z: z], [1.0], {"x0": [1.0, 2.0]}, r"objectives\[0\]\(z\)"),
    ],
)
def test_bad_input(objectives, preference, options, message):
    with pytest.raises(InputError, match=message):
        minimize(Problem(objectives), preference, **{"x0": [2.0], **options})


def test_restarts_leave_a_local_minimum():
    known, p = test_problems.eq_dtlz(2), (0.6, 0.2, 0.2)
    starts = known.x0.repeat(3, 1)
    starts[:, :2] = torch.tensor([[0.48, 0.44], [0.58, 0.29], [0.18, 0.35]])
    alone = [minimize(known.problem, p, x0=start, tol=1e-7) for start in starts]
    levels = [float((torch.tensor(p) * run.objectives).max()) for run in alone]
    assert max(levels) > min(levels) + 1e-2  # the starts lead to different valleys
    best = minimize(known.problem, p, x0=starts[0], restarts=starts[1:], tol=1e-7)
    kept = min(zip(levels, alone, strict=True), key=lambda pair: pair[0])[1]
    assert torch.allclose(best.objectives, kept.objectives, atol=1e-6)
    assert (known.chebyshev(p) * p).max() == pytest.approx(min(levels), abs=1e-6)
    assert best.n_gradient_evaluations == sum(run.n_gradient_evaluations for run in alone)
    assert best.n_function_evaluations == sum(run.n_function_evaluations for run in alone)
    assert "The best of 3 starts." in best.message


def test_restarts_that_do_not_converge_do_not_win():
    valleys = Problem(lambda z: torch.stack([(z**2 - 1) ** 2 + 0.3 * z + 2, z**2 + 2]).flatten())
    few = {"method": "clamp", "steps": 3, "lr": 0.01}
    at_rest = minimize(valleys, [1.0, 0.0], x0=[0.96], tol=1e-10, method="clamp", lr=0.1)
    best = minimize(valleys, [1.0, 0.0], x0=at_rest.x, restarts=[[-0.9]], tol=1e-6, **few)
    assert best.converged  # the other one ends lower, but still on its way
    assert torch.allclose(best.x, at_rest.x)
    both = minimize(valleys, [1.0, 0.0], x0=[-2.0], restarts=[[0.9]], tol=1e-6, **few)
    nearer = minimize(valleys, [1.0, 0.0], x0=[0.9], tol=1e-6, **few)
    assert not both.converged
    assert both.kkt_residual == nearer.kkt_residual


@pytest.mark.parametrize(
    ("restarts", "message"),
    [
        ([[math.nan]], r"restarts\[0\] must be finite"),
        ([[0.5], [3.0]], r"restarts\[1\]\[0\] is 3, outside the bounds"),
        ([[0.5, 0.5]], r"restarts\[0\] must have x0's shape \(1,\), got \(2,\)"),
    ],
)
def test_bad_restarts(restarts, message):
    with pytest.raises(InputError, match=message):
        minimize(Problem(good, bounds=(-1, 2)), [0.5, 0.5], x0=[0.0], restarts=restarts)


def test_problem_must_be_a_problem():
    with pytest.raises(InputError, match="must be a Problem"):
        minimize(good, [0.5, 0.5], x0=[0.0])
    with pytest.raises(InputError, match="jacobian"):
        minimize(Problem(good, jacobian=lambda z: z), [0.5, 0.5], x0=[0.0])
    assert Descent().weighting == Clamp(mu=1.0)


@pytest.mark.parametrize("method", [None, "linear"])
def test_any_number_of_objectives(method):
    centres = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    problem = Problem(lambda z: ((z - centres) ** 2).sum(1) + 1)
    p = [1 / 20] * 20
    found = minimize(problem, p, method, x0=[0.0] * 3)
    assert found.converged
    if method == "linear":
        torch.testing.assert_close(found.x, centres.mean(0), rtol=0, atol=1e-7)
    for refused in ("clamp", "mgda"):
        with pytest.raises(
            InputError, match="at most 16 objectives of positive preference, got 20"
        ):
            minimize(problem, p, refused, x0=[0.0] * 3)
