"""Algorithms 1 and 3 against a plain twin, the theory's rate and floor, and bad input."""

import math

import numpy as np
import pytest
import torch

from paretune.errors import InputError
from paretune.moo import (
    Problem,
    StochasticProblem,
    WCPenalty,
    best_multipliers,
    kkt_system,
    minimize,
    test_problems,
)

# The toy with its derivatives, which makes a step cheap.
SCALE = torch.tensor([[1.0, 4.0], [4.0, 1.0]], dtype=torch.float64)
CENTRE = torch.tensor([[0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
NORMAL = torch.tensor([0.5, -1.0], dtype=torch.float64)
TOY = Problem(
    lambda z: (SCALE * (z - CENTRE) ** 2).sum(1),
    jacobian=lambda z: 2 * SCALE * (z - CENTRE),
    constraints=lambda z: (NORMAL @ z - 0.1)[None],
    constraint_vjp=lambda z, d: d * NORMAL,
)
START = [0.0, 2.0]


def algorithm_1(p, u, v, eta, steps):
    """Algorithm 1 by Eq. (2), in numpy: (ρ, z, δ) after the steps, and every K of Definition 5."""
    p, centre, scale, normal = np.array(p), CENTRE.numpy(), SCALE.numpy(), NORMAL.numpy()
    rho, z, delta, systems = 0.0, np.array(START), np.zeros(2), []
    for step in range(steps + 1):
        f, h = (scale * (z - centre) ** 2).sum(1), normal @ z - 0.1
        gradients = 2 * scale * (z - centre)
        c = p * f + delta - rho
        omega, nu = v * c, u * h
        slope = u * h * normal + v * (c * p) @ gradients
        systems.append(np.r_[omega.sum() - 1, slope, h, np.minimum(omega, rho - p * f)])
        if step < steps:
            rho, z, delta = (
                rho - eta * (1 - v * c.sum()),
                z - eta * slope,
                np.maximum(delta - eta * v * c, 0),
            )
    return rho, z, omega, nu, np.array(systems)


def test_equals_algorithm_1_as_printed():
    method = WCPenalty(u=5.0, v=3.0, eta=2e-3)
    found = minimize(TOY, (0.25, 0.75), method, x0=START, steps=300, tol=0.0)
    rho, z, omega, nu, systems = algorithm_1((0.25, 0.75), 5.0, 3.0, 2e-3, 300)
    np.testing.assert_allclose(found.x, z, atol=1e-12)
    np.testing.assert_allclose(found.multipliers, omega, atol=1e-10)
    np.testing.assert_allclose(found.constraint_multipliers, [nu], atol=1e-10)
    assert found.rho == pytest.approx(rho)
    np.testing.assert_allclose(
        found.history.kkt_residual, np.linalg.norm(systems, axis=1), rtol=1e-10
    )
    system = kkt_system(
        TOY, found.x, found.rho, found.multipliers, found.constraint_multipliers, (0.25, 0.75)
    )
    assert system.norm == pytest.approx(found.kkt_residual, rel=1e-9)
    assert found.n_gradient_evaluations == found.n_function_evaluations == 301


@pytest.mark.slow
@pytest.mark.parametrize("p", [(0.25, 0.75), (0.75, 0.25)])
def test_slope_of_the_running_mean(p):
    """Theorem 3's −1/2, over T = 1e2 ... 1e4; benchmarks/wc_penalty.py goes to 1e6."""
    times, means = [100, 1000, 10_000], []
    for steps in times:
        found = minimize(TOY, p, "wc_penalty", x0=START, steps=steps, tol=0.0)
        means.append(float((found.history.kkt_residual[:-1] ** 2).mean()))
    slope = np.polyfit(np.log(times), np.log(means), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("p", [(0.25, 0.75), (0.75, 0.25)])
@pytest.mark.parametrize("penalty", [20.0, 60.0])
def test_floor(p, penalty):
    """With u = v fixed, ‖K‖² ends at ‖ν*‖²/u² + ‖ω*‖²/v²; z and ω tend to the solution."""
    method = WCPenalty(u=penalty, v=penalty, eta=0.01 / penalty)
    found = minimize(TOY, p, method, x0=START, steps=20_000, tol=0.0)
    x = test_problems.toy().solution(p)
    _, omega, nu = best_multipliers(TOY, x, p)
    floor = float((nu @ nu + omega @ omega) / penalty**2)
    assert found.kkt_residual**2 == pytest.approx(floor, rel=0.10)
    np.testing.assert_allclose(found.x, x, atol=0.3 / math.sqrt(penalty))


def test_schedule():
    assert WCPenalty().schedule(10_000) == pytest.approx((10.0, 10.0, 4e-4))
    assert WCPenalty(penalty_scale=3.0, step_scale=0.1).schedule(16) == pytest.approx((6, 6, 0.05))
    assert WCPenalty(u=1.0, v=2.0, eta=3.0).schedule(16) == (1.0, 2.0, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "known", [test_problems.toy(), test_problems.random_quadratics(n=10, n_constraints=3)]
)
def test_warm_up_finds_stable_parameters(known):
    """Remark 5: the default step diverges on the quadratics, the warm-up's does not."""
    p = (1 / known.n_objectives,) * known.n_objectives
    method = WCPenalty(warm_up=5)
    short, long = (
        minimize(known.problem, p, method, x0=known.x0, steps=steps, tol=0.0)
        for steps in (300, 3000)
    )
    assert long.kkt_residual < short.kkt_residual < float(short.history.kkt_residual[0])
    q = len(long.constraints)
    assert long.n_gradient_evaluations == 3001 + 6 * (known.n_objectives + q)


def test_warm_up_refuses_dependent_constraints():
    known = test_problems.rank_deficient()
    with pytest.raises(InputError, match="Assumption 2"):
        minimize(known.problem, (0.5, 0.5), WCPenalty(warm_up=3), x0=known.x0)


@pytest.mark.slow
def test_bounds_by_projection():
    problem = Problem(
        lambda z: torch.stack([(z[0] - 2) ** 2, (z[0] - 3) ** 2]) + 1,
        constraints=lambda z: (z[1] - 0.5)[None],
        bounds=(0.0, 1.0),
    )
    method = WCPenalty(u=100.0, v=100.0, eta=2e-3)
    found = minimize(problem, (0.5, 0.5), method, x0=[0.0, 0.0], steps=4000)
    np.testing.assert_allclose(found.x, [1.0, 0.5], atol=1e-3)
    assert found.kkt_parts.stationarity < 1e-6


def test_stops_at_the_tolerance_and_at_overflow():
    found = minimize(
        TOY, (0.25, 0.75), WCPenalty(u=50, v=50, eta=2e-4), x0=START, steps=9999, tol=0.1
    )
    assert found.converged
    assert found.kkt_residual <= 0.1
    assert found.message.startswith("Converged after")
    wild = minimize(TOY, (0.25, 0.75), WCPenalty(u=50, v=50, eta=1.0), x0=START, steps=9999)
    assert "no longer finite; try a smaller eta" in wild.message
    assert bool(torch.isfinite(wild.x).all())


def noisy(size: float) -> StochasticProblem:
    """The toy with f(z; ξ) = f(z) + size (4 ξ + ξ·z) and h(z; ζ) = h(z) + size ζ·(1, z)."""

    def objectives(z, batch):
        return TOY.evaluate(z) + size * (4 * batch[:2] + batch[2:] @ z)

    def constraints(z, batch):
        return TOY.constrain(z) + size * (batch[0] + batch[1:3] @ z)

    def draw(count, generator):
        return torch.randn(count, 4, generator=generator, dtype=torch.float64).mean(0)

    return StochasticProblem(objectives, draw, torch.zeros(4, dtype=torch.float64), constraints)


def test_without_noise_algorithm_3_is_algorithm_1():
    method = WCPenalty(u=5.0, v=3.0, eta=2e-3)
    here = minimize(noisy(0.0), (0.25, 0.75), method, x0=START, steps=200)
    there = minimize(TOY, (0.25, 0.75), method, x0=START, steps=200)
    np.testing.assert_allclose(here.x, there.x, atol=1e-12)
    np.testing.assert_allclose(here.history.kkt_residual, there.history.kkt_residual, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("independent", [False, True])
def test_stochastic_toy(independent):
    method = WCPenalty(
        u=20.0,
        v=20.0,
        eta=5e-4,
        objective_batch=64,
        constraint_batch=256,
        independent_batches=independent,
        certify_every=1000,
    )
    runs = [minimize(noisy(1.0), (0.25, 0.75), method, x0=START, steps=4000) for _ in range(2)]
    assert torch.equal(runs[0].x, runs[1].x)
    exact = minimize(TOY, (0.25, 0.75), WCPenalty(u=20, v=20, eta=5e-4), x0=START, steps=4000)
    np.testing.assert_allclose(runs[0].x, exact.x, atol=0.05)
    assert len(runs[0].history.kkt_residual) == 5
    assert runs[0].n_gradient_evaluations == 4005
    assert runs[0].n_function_evaluations == (8005 if independent else 4005)


def test_batches_have_the_sizes_asked_for():
    sizes = []
    toy = noisy(0.1)

    def draw(count, generator):
        sizes.append(count)
        return toy.draw(count, generator)

    problem = StochasticProblem(toy.objectives, draw, toy.full, toy.constraints)
    method = WCPenalty(objective_batch=5, constraint_batch=7)
    minimize(problem, (0.25, 0.75), method, x0=START, steps=3)
    assert sizes == [5, 7] * 3


def test_independent_batches_remove_the_bias():
    """E[h ∇h] with h(z; ζ) = z + ζ: Algorithm 3's product of one batch is biased by Var ζ."""
    problem = StochasticProblem(
        objectives=lambda z, batch: 0 * z + 1,
        draw=lambda count, g: torch.randn(count, generator=g, dtype=torch.float64).mean(),
        full=torch.zeros((), dtype=torch.float64),
        constraints=lambda z, batch: z * (1 + batch),
    )
    ends = []
    for independent in (False, True):
        method = WCPenalty(
            u=1.0, v=1.0, eta=1e-3, objective_batch=1, independent_batches=independent
        )
        ends.append(float(minimize(problem, (1.0,), method, x0=[1.0], steps=1000).x))
    # E dz/dt = −z for independent batches, −2 z for shared ones: e^-1 and e^-2.
    assert ends[1] == pytest.approx(math.exp(-1), rel=0.15)
    assert ends[0] == pytest.approx(math.exp(-2), rel=0.25)


def test_stochastic_problems_need_wc_penalty():
    with pytest.raises(InputError, match="Algorithm 3"):
        minimize(noisy(0.1), (0.25, 0.75), "wc_augmented", x0=START)
    assert minimize(noisy(0.1), (0.25, 0.75), x0=START, steps=5).message.startswith("Stopped")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"u": 0.0}, "u must be"),
        ({"v": math.inf}, "v must be"),
        ({"eta": -1.0}, "eta must be"),
        ({"rho0": -1.0}, "rho0 must be"),
        ({"warm_up": -1}, "warm_up must be"),
        ({"objective_batch": 0}, "at least 1"),
        ({"certify_every": 0}, "at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        WCPenalty(**options)


@pytest.mark.parametrize(
    ("problem", "p", "options", "message"),
    [
        (TOY, (0.25, 0.75), {"x0": [math.nan, 0.0]}, "x0 must be finite"),
        (TOY, (1.0, 0.0), {}, "'f2' is 0"),
        (TOY, (1.25, -0.25), {}, "'f2' is -0.25"),
        (TOY, (0.2, 0.3, 0.5), {}, "2 objectives, the preference 3 weights"),
        (TOY, (0.25, 0.75), {"shift": -1000.0}, "positive objectives: give shift"),
        (TOY, (0.25, 0.75), {"lr": 0.1}, r"WCPenalty\(eta=0.001\)"),
        (
            Problem(lambda z: (z**2).sum()[None] + 1, constraints=lambda z: z.sum()),
            (1.0,),
            {},
            r"shape \(q,\)",
        ),
    ],
)
def test_bad_input(problem, p, options, message):
    with pytest.raises(InputError, match=message):
        minimize(problem, p, **{"method": "wc_penalty", "x0": START, **options})
