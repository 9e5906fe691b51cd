"""The numbers in docs/methods/theory.md: what the second paper's statements give on small examples.

python examples/ecmo_theory.py              # all of them
python examples/ecmo_theory.py licq cone    # some
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from paretune.moo import (
    AffineConstraints,
    Problem,
    WCPenalty,
    best_multipliers,
    kkt_system,
    minimize,
    test_problems,
)

TOY = test_problems.toy()
PREFERENCES = [(0.25, 0.75), (0.75, 0.25)]


def gradients(problem: Problem, z: np.ndarray) -> tuple[Tensor, Tensor]:
    """∇f_s, shape (M, n), and ∇h_i, shape (q, n)."""
    point = torch.as_tensor(z)
    jacobian = torch.autograd.functional.jacobian
    return jacobian(problem.evaluate, point), jacobian(problem.constrain, point)


def licq() -> None:
    """Lemma 1's LICQ, in z-space and in (ρ, z)-space, at solutions."""
    cases = [("toy", TOY, 2), ("sphere in R^10", test_problems.sphere_arc(10), 2)]
    cases.append(("30 variables, S = 3, q = 10", test_problems.random_quadratics(), 3))
    print("| problem | vectors | rank in z | rank in (ρ, z) |\n|---|---|---|---|")
    for name, known, size in cases:
        p = PREFERENCES[0] if size == 2 else (1 / 3,) * 3
        objective, constraint = gradients(known.problem, known.solution(p))
        scaled = torch.tensor(p, dtype=torch.float64)[:, None] * objective
        flat = torch.cat([scaled, constraint])
        lift = torch.cat([-torch.ones(len(scaled)), torch.zeros(len(constraint))])[:, None]
        lifted = torch.cat([lift.double(), flat], dim=1)
        ranks = [int(torch.linalg.matrix_rank(rows, rtol=1e-9)) for rows in (flat, lifted)]
        print(f"| {name} | {len(flat)} | {ranks[0]} | {ranks[1]} |")


def cone() -> None:
    """Definition 4 on the unit sphere, at a feasible point that is not Pareto optimal."""
    known = test_problems.sphere_arc(2)
    z = np.array([math.cos(0.5), -math.sin(0.5)])  # 0.5 before the arc's first end
    objective, constraint = gradients(known.problem, z)
    tangent = torch.tensor([math.sin(0.5), math.cos(0.5)], dtype=torch.float64)
    slopes = ", ".join(f"{value:.2f}" for value in (objective @ tangent).tolist())
    print(f"∇h·d = {float(constraint[0] @ tangent):.0e}, ∇f_s·d = {slopes}")
    print("| ε | h(z + εd) | F(z + εd, back on the sphere) − F(z) |\n|---|---|---|")
    for step in (1e-1, 1e-2, 1e-3):
        moved = torch.tensor(z) + step * tangent
        change = known.problem.evaluate(moved / moved.norm()) - known.problem.evaluate(
            torch.tensor(z)
        )
        residual = float(known.problem.constrain(moved)[0])
        print(f"| {step:g} | {residual:.1e} | ({change[0]:.1e}, {change[1]:.1e}) |")
    inverse = 1 / known.problem.evaluate(torch.tensor(z))
    p = (inverse / inverse.sum()).tolist()  # the λ of Theorem 2's proof
    found = best_multipliers(known.problem, z, p)
    print(f"smallest ‖K‖ there: {kkt_system(known.problem, z, *found, p).norm:.3f}")


def assumption_2() -> None:
    """Rank of ∇h = ∇(∇_y g) for data weighting with a linear softmax classifier."""
    generator = torch.Generator().manual_seed(0)
    features, classes, sets, rows = 10, 4, 3, 50
    inputs = torch.randn(sets, rows, features, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (sets, rows), generator=generator)

    def lower(x: Tensor, y: Tensor) -> Tensor:
        logits = inputs @ y.reshape(features, classes)
        chosen = logits.gather(2, labels[..., None])[..., 0]
        losses = (logits.logsumexp(2) - chosen).mean(1)
        return torch.softmax(x, 0) @ losses

    x = torch.randn(sets, generator=generator, dtype=torch.float64)
    y = torch.randn(features * classes, generator=generator, dtype=torch.float64)

    def h(z: Tensor) -> Tensor:
        return torch.func.grad(lower, argnums=1)(z[:sets], z[sets:])

    jacobian = torch.func.jacrev(h)(torch.cat([x, y]))
    sizes = torch.linalg.svdvals(jacobian)
    print(f"∇h is {tuple(jacobian.T.shape)}, singular values {sizes[0]:.2g} to {sizes[-1]:.2g}")
    print(f"rank {int((sizes > 1e-10 * sizes[0]).sum())} of q = {len(sizes)}")
    known = test_problems.rank_deficient()
    for p in [(0.5, 0.5), (0.7, 0.3)]:
        found = minimize(known.problem, p, x0=known.x0, tol=1e-8)
        error = np.abs(found.x.numpy() - known.solution(p)).max()
        print(
            f"rank-deficient problem, {p}: ‖K‖ = {found.kkt_residual:.0e}, error {error:.0e}, "
            f"ν = {[round(n, 4) for n in found.constraint_multipliers.tolist()]}"
        )


def theorem_4() -> None:
    """The gradient of the weighted sum at its constrained minimum, whole and tangential."""
    print("| preference | z | ‖∇L‖² | ‖tangential part‖² |\n|---|---|---|---|")
    constraint = TOY.problem.constraints
    assert isinstance(constraint, AffineConstraints)
    for p in PREFERENCES:
        found = minimize(TOY.problem, p, "linear", x0=TOY.x0, tol=1e-14)
        objective, _ = gradients(TOY.problem, found.x.numpy())
        whole = torch.tensor(p, dtype=torch.float64) @ objective
        tangential = whole + constraint.A.T @ constraint.duals(whole)
        z = ", ".join(f"{value:.6f}" for value in found.x.tolist())
        print(
            f"| {p} | ({z}) | {float(whole @ whole):.4f} | {float(tangential @ tangential):.0e} |"
        )


def shifts() -> None:
    """What f > 0 is for: which λ maps where, and what a negative objective loses."""
    print("| shift | λ = (.25, .75) | λ′ = (.75, .25) | reached of 99 preferences |")
    print("|---|---|---|---|")
    grid = [(k / 100, 1 - k / 100) for k in range(1, 100)]
    t = np.linspace(0.1, 18.1 / 8.5, 200_001)
    values = np.stack([2 * t**2 - 0.4 * t + 0.04, 4.25 * t**2 - 18.1 * t + 20.41], -1)
    for shift in (0.0, 1.0, 10.0, -3.0):
        found = {p: t[((values + shift) * p).max(1).argmin()] for p in [*grid, *PREFERENCES]}
        reached = [found[p] for p in grid]
        texts = [f"z₁ = {found[p]:.4f}" for p in PREFERENCES]
        span = f"z₁ from {min(reached):.2f} to {max(reached):.2f}"
        print(f"| {shift:g} | {texts[0]} | {texts[1]} | {span} |")


def weak() -> None:
    """A weakly Pareto optimal solution, and the small sum that excludes it."""
    p, start = (0.5, 0.5), [0.9, 0.5]
    for share in (0.0, 0.01):

        def objectives(z: Tensor, share: float = share) -> Tensor:
            values = torch.stack([1 + z[0] ** 2, 2 + z[1] ** 2])
            return values + share * values.sum()

        found = minimize(Problem(objectives), p, "wc_augmented", x0=start, tol=1e-8)
        z, omega = (
            ", ".join(f"{v:.3f}" for v in part.tolist()) for part in (found.x, found.multipliers)
        )
        print(f"f + {share:g} Σ f: z = ({z}), ω = ({omega}), ‖K‖ = {found.kkt_residual:.0e}")


def examples() -> None:
    """The paper's Examples 1 and 2, shifted to f > 0: Pareto points that are not KKT points."""

    def first_h(z: Tensor) -> Tensor:
        return torch.where(z.abs() <= 1, torch.zeros_like(z), (z.abs() - 1) ** 2)

    first = Problem(lambda z: torch.cat([2 - z**2 / 2, 4 - z]), constraints=first_h)
    second = Problem(
        lambda z: torch.stack([z[0] + z[1], z[0] - z[1]]) + 20,
        constraints=lambda z: torch.stack([z[0] ** 2 + z[2] ** 2 - 1, z[2] - 1]),
    )
    start = {"1": [0.5], "2": [0.5, 0.3, 0.8]}
    for name, problem, z in [("1", first, [1.0]), ("2", second, [0.0, 0.0, 1.0])]:
        p = (0.5, 0.5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            best = best_multipliers(problem, z, p)
        system = kkt_system(problem, z, *best, p)
        print(f"Example {name} at z = {z}: smallest ‖K‖ = {system.norm:.3f}")
        print(f"  warning: {caught[0].message if caught else 'none'}")
        for method in (WCPenalty(u=100.0, v=10.0, eta=1e-3), "wc_augmented"):
            found = minimize(problem, p, method, x0=start[name], steps=20_000, tol=1e-6)
            label = method if isinstance(method, str) else "Algorithm 1"
            print(
                f"  {label}: z = {[round(v, 4) for v in found.x.tolist()]}, "
                f"‖K‖ = {found.kkt_residual:.1e}, ‖ν‖ = "
                f"{float(found.constraint_multipliers.norm()):.1e}, converged: {found.converged}"
            )


def smoothness() -> None:
    """L_P grows with S: the largest eigenvalue of P's Hessian in (ρ, δ) over v."""
    for size in (2, 5, 10):
        block = torch.eye(size + 1, dtype=torch.float64)
        block[0, 0] = size
        block[0, 1:] = block[1:, 0] = -1
        print(f"S = {size}: {float(torch.linalg.eigvalsh(block)[-1]):.6f}")


def monotone() -> None:
    """Appendix F, Part B takes ρ_t for non-increasing: ρ_t of Algorithm 1 from ρ_0 = 0."""
    rhos = []
    for steps in (0, 10, 100, 1000, 10_000):
        method = WCPenalty(u=10.0, v=10.0, eta=4e-4)
        found = minimize(TOY.problem, PREFERENCES[0], method, x0=TOY.x0, steps=steps, tol=0.0)
        rhos.append(f"ρ_{steps} = {found.rho:.4f}")
    print(", ".join(rhos))


def batches() -> None:
    """E[h(z; B) ∇h(z; B)] where h(z) = 0, with one batch for both factors, and with two.

    h(z; ζ) = (1 + ζ) z − 1, ζ standard normal, z = 1: the true value is 0, one batch of size B
    gives Var(ζ̄) z = 1/B.
    """
    print("| batch size | one batch | two batches | standard error |\n|---|---|---|---|")
    generator, draws = torch.Generator().manual_seed(0), 1_000_000
    for size in (8, 32):
        noise = torch.randn(2, draws, generator=generator, dtype=torch.float64) / math.sqrt(size)
        h, slope, other = noise[0], 1 + noise[0], 1 + noise[1]
        error = float((h * other).std()) / math.sqrt(draws)
        same, apart = float((h * slope).mean()), float((h * other).mean())
        print(f"| {size} | {same:.4f} | {apart:.4f} | {error:.4f} |")


def preferences() -> None:
    """How many objectives are active at the solution, for weights .96/.01, .84/.04 and equal."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    row = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    problem = Problem(
        lambda z: ((z - centres) ** 2).sum(1) + 0.5,
        constraints=AffineConstraints(row, torch.zeros(2)),
    )
    print("| preference | ω | F |\n|---|---|---|")
    for large, small in [(0.96, 0.01), (0.84, 0.04), (0.2, 0.2)]:
        p = (large, small, small, small, small)
        found = minimize(problem, p, x0=torch.zeros(8, dtype=torch.float64), tol=1e-8)
        omega, values = (
            ", ".join(f"{v:.2f}" for v in part.tolist())
            for part in (found.multipliers, found.objectives)
        )
        print(f"| {p} | ({omega}) | ({values}) |")


CHECKS: dict[str, Callable[[], None]] = {
    "licq": licq,
    "cone": cone,
    "assumption_2": assumption_2,
    "theorem_4": theorem_4,
    "shifts": shifts,
    "weak": weak,
    "examples": examples,
    "smoothness": smoothness,
    "monotone": monotone,
    "batches": batches,
    "preferences": preferences,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="check", help=f"among {', '.join(CHECKS)}")
    torch.set_num_threads(1)
    for name in parser.parse_args().checks or CHECKS:
        print(f"\n[{name}] {CHECKS[name].__doc__.splitlines()[0]}")
        CHECKS[name]()


if __name__ == "__main__":
    main()
