"""Equality-constrained multi-objective problems: evaluations and CPU seconds to a KKT residual.

    python benchmarks/wc_penalty.py [problems] [dimensions] [cost] [front] [--output table.md]

problems: combined gradient evaluations (one = one gradient of Σ w_s λ_s f_s + dᵀh) and seconds to
    ‖K‖ <= 1e-2, 1e-4, 1e-6 for wc_augmented, Algorithm 1, and scipy's SLSQP and trust-constr on
    min ρ s.t. h = 0, λ_s f_s <= ρ. scipy needs each gradient by itself: S + q of them count for
    one Jacobian. Its iterates are certified with `best_multipliers`, with the clock stopped.
    Algorithm 1 gets what it cannot know, the u = v whose floor is just below the tolerance, and
    the best of four steps from the largest stable one down.
dimensions: seconds to ‖K‖ <= 1e-4 on random quadratics of growing dimension.
cost: seconds for one evaluation with its combined gradient against S and q.
front: what 21 points of a front cost one after another, and what all at once would save.
Seconds are medians of CPU seconds on one thread, in float64; set OMP_NUM_THREADS=1 for scipy's
sake. The rate of Algorithm 1 is in examples/ecmo_toy.py.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from scipy.optimize import NonlinearConstraint
from scipy.optimize import minimize as scipy_minimize

from paretune.errors import InputError
from paretune.moo import (
    Problem,
    WCAugmented,
    WCPenalty,
    best_multipliers,
    explore,
    kkt_system,
    minimize,
    test_problems,
)

TOLERANCES = (1e-2, 1e-4, 1e-6)
Spent = tuple[int, float] | None  # gradient evaluations and seconds; None where it failed


def wavy(seed: int, size: int = 30, n_constraints: int = 10) -> tuple[Problem, torch.Tensor]:
    """Three convex quadratics under quadratic constraints that are not convex."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factors, centres = normal(3, size, size) / size**0.5, normal(3, size)
    linear, offset = normal(n_constraints, size) / size**0.5, 0.3 * normal(n_constraints)
    bend = normal(n_constraints, size, size) / (10 * size)
    hessians = factors @ factors.mT + 0.1 * torch.eye(size)

    def objectives(z: torch.Tensor) -> torch.Tensor:
        return 1 + 0.5 * torch.einsum("si,sij,sj->s", z - centres, hessians, z - centres)

    problem = Problem(objectives, constraints=lambda z: linear @ z - offset + (bend @ z) @ z)
    return problem, torch.zeros(size, dtype=torch.float64)


def cases() -> list[tuple[str, Problem, torch.Tensor, tuple[float, ...]]]:
    thirds = (1 / 3, 1 / 3, 1 / 3)
    named = [
        ("toy (.25, .75)", test_problems.toy(), (0.25, 0.75)),
        ("toy (.75, .25)", test_problems.toy(), (0.75, 0.25)),
        ("sphere (.7, .3)", test_problems.sphere_arc(), (0.7, 0.3)),
        ("rank deficient (.7, .3)", test_problems.rank_deficient(), (0.7, 0.3)),
        ("Eq1-DTLZ2 (.3, .3, .4)", test_problems.eq_dtlz(2), (0.3, 0.3, 0.4)),
        ("DD1 (.5, .5)", test_problems.dd1(), (0.5, 0.5)),
        ("random quadratics, n 30, q 10", test_problems.random_quadratics(), thirds),
    ]
    found = [(name, known.problem, known.x0, p) for name, known, p in named]
    for seed in range(3):
        found.append((f"wavy quadratics {seed}, n 30, q 10", *wavy(seed), thirds))
    return found


def augmented(problem: Problem, x0: torch.Tensor, p: tuple[float, ...], tol: float) -> Spent:
    start = time.process_time()
    found = minimize(problem, p, "wc_augmented", x0=x0, tol=tol, steps=3000)
    spent = found.n_gradient_evaluations, time.process_time() - start
    return spent if found.converged else None


def algorithm_1(
    problem: Problem, x0: torch.Tensor, p: tuple[float, ...], tol: float, limit: int
) -> Spent:
    solution = minimize(problem, p, "wc_augmented", x0=x0, tol=1e-8, steps=3000)
    nu, omega = solution.constraint_multipliers, solution.multipliers
    penalty = 1.5 * math.sqrt(float(nu @ nu + omega @ omega)) / tol

    def run(eta: float, steps: int) -> tuple[Spent, bool]:
        method = WCPenalty(u=penalty, v=penalty, eta=eta)
        start = time.process_time()
        try:
            found = minimize(problem, p, method, x0=x0, tol=tol, steps=steps)
        except InputError:  # an objective left the positive range on the way
            return None, False
        spent = found.n_gradient_evaluations, time.process_time() - start
        return (spent if found.converged else None), "finite" not in found.message

    eta = 1 / penalty
    while not run(eta, min(2000, limit))[1] and eta > 1e-12:
        eta /= 2
    reached = [run(eta / 2**k, limit)[0] for k in range(4)]
    return min((spent for spent in reached if spent), default=None)


def once(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The function, not evaluated again at the point it was evaluated at last."""
    at: np.ndarray | None = None
    found: np.ndarray

    def remembered(v: np.ndarray) -> np.ndarray:
        nonlocal at, found
        if at is None or not np.array_equal(at, v):
            at, found = v.copy(), function(v)
        return found

    return remembered


class Stop(Exception):
    """The tolerance or the time limit is reached."""


def scipy_solver(
    method: str, problem: Problem, x0: torch.Tensor, p: tuple[float, ...], tol: float, limit: float
) -> Spent:
    """SLSQP or trust-constr on (z, ρ), with separate gradients by torch."""
    weights = torch.tensor(p, dtype=torch.float64)
    size, gradients, paused = len(x0), 0, 0.0
    n_constraints = len(problem.constrain(x0))

    def value(v: np.ndarray) -> np.ndarray:
        z = torch.tensor(v[:-1])
        with torch.no_grad():
            gaps = v[-1] - (weights * problem.evaluate(z)).numpy()
            return np.r_[problem.constrain(z).numpy(), gaps]

    def jacobian(v: np.ndarray) -> np.ndarray:
        nonlocal gradients
        gradients += n_constraints + len(p)
        point = problem.at(torch.tensor(v[:-1]))
        rows = np.zeros((n_constraints + len(p), size + 1))
        for i, unit in enumerate(torch.eye(n_constraints, dtype=torch.float64)):
            rows[i, :-1] = point.vjp(unit)
        rows[n_constraints:, :-1] = -(weights[:, None] * point.gradients()).numpy()
        rows[n_constraints:, -1] = 1
        return rows

    def watch(v: np.ndarray, *_: object) -> None:
        nonlocal paused
        stopped = time.process_time()
        x = problem.project(torch.tensor(v[:-1]))
        residual = kkt_system(problem, x, *best_multipliers(problem, x, p), p).norm
        if residual <= tol or stopped - start - paused > limit:
            raise Stop(residual, stopped - start - paused)
        paused += time.process_time() - stopped

    top = float((weights * problem.evaluate(x0)).max())
    upper = np.r_[np.zeros(n_constraints), np.full(len(p), np.inf)]
    if method == "SLSQP":
        values, rows = once(value), once(jacobian)

        def part(equal: bool) -> dict[str, object]:
            own = slice(0, n_constraints) if equal else slice(n_constraints, None)
            return {
                "type": "eq" if equal else "ineq",
                "fun": lambda v: values(v)[own],
                "jac": lambda v: rows(v)[own],
            }

        constraints: object = [part(True), part(False)]
        options = {"ftol": 1e-15, "maxiter": 2000}
    else:
        constraints = NonlinearConstraint(value, np.zeros(len(upper)), upper, jac=jacobian)
        options = {"gtol": 1e-10, "xtol": 1e-14, "maxiter": 3000}
    bounds = None
    if problem.bounds is not None:
        low, high = (np.broadcast_to(b, size) for b in problem.bounds)
        bounds = list(zip(np.r_[low, -np.inf], np.r_[high, np.inf], strict=True))
    start = time.process_time()
    try:
        scipy_minimize(
            lambda v: v[-1],
            np.r_[x0.numpy(), top],
            jac=lambda v: np.eye(1, size + 1, size)[0],
            hess=(lambda v: np.zeros((size + 1, size + 1))) if method != "SLSQP" else None,
            method=method,
            constraints=constraints,
            bounds=bounds,
            callback=watch,
            options=options,
        )
    except Stop as stop:
        residual, seconds = stop.args
        return (gradients, seconds) if residual <= tol else None
    return None


def in_turns(runs: int, *solvers: Callable[[], Spent]) -> list[Spent]:
    """The median of some runs of each solver, None when its first fails.

    The solvers take turns, so that a busy machine slows all of them alike.
    """
    found: list[list[Spent]] = [[solve()] for solve in solvers]
    for _ in range(runs - 1):
        for own, solve in zip(found, solvers, strict=True):
            if own[0]:
                own.append(solve())
    return [own[0] and (own[0][0], median(s[1] for s in own if s)) for own in found]


def cell(spent: Spent, otherwise: str = "fails") -> str:
    return f"{spent[0]} / {spent[1]:.4f} s" if spent else otherwise


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def problems(limit: int, runs: int, seconds: float) -> str:
    rows = []
    for name, problem, x0, p in cases():
        plain_failed = False
        for tol in TOLERANCES:
            plain = None if plain_failed else algorithm_1(problem, x0, p, tol, limit)
            plain_failed = plain is None
            case = problem, x0, p, tol
            ours, *rivals = in_turns(
                runs,
                partial(augmented, *case),
                partial(scipy_solver, "SLSQP", *case, seconds),
                partial(scipy_solver, "trust-constr", *case, seconds),
            )
            fastest = min((rival[1] for rival in rivals if rival), default=None)
            ratio = f"{ours[1] / fastest:.1f}" if ours and fastest else ""
            cells = [cell(ours), ratio, cell(plain, f"> {limit}"), *map(cell, rivals)]
            rows.append([f"{name}, {tol:.0e}", *cells])
            print(rows[-1], flush=True)
    head = ["gradients / seconds", "wc_augmented", "seconds / the better of scipy's"]
    return table([*head, "Algorithm 1", "SLSQP", "trust-constr"], rows)


def dimensions(sizes: list[int], limit: float) -> str:
    rows = []
    rivals: dict[str, Spent] = {"SLSQP": (0, 0.0), "trust-constr": (0, 0.0)}
    for size in sizes:
        known = test_problems.random_quadratics(n=size, seed=1)
        case = known.problem, known.x0, (1 / 3, 1 / 3, 1 / 3), 1e-4
        alive = [method for method, spent in rivals.items() if spent]
        ours, *found = in_turns(
            3,
            partial(augmented, *case),
            *(partial(scipy_solver, method, *case, limit) for method in alive),
        )
        rivals.update(zip(alive, found, strict=True))
        others = [cell(spent, f"> {limit:.0f} s") for spent in rivals.values()]
        rows.append([str(size), cell(ours), *others])
        print(rows[-1], flush=True)
    return table(["n (S 3, q 10), to 1e-4", "wc_augmented", "SLSQP", "trust-constr"], rows)


def seconds(function: Callable[[], object]) -> float:
    spent = []
    for _ in range(15):
        start = time.process_time()
        function()
        spent.append(time.process_time() - start)
    return min(spent)


def cost() -> str:
    rows = []  # sizes beyond the caches, so that memory does not hide the growth
    for count in (1, 2, 5, 10):
        known = test_problems.random_quadratics(n=200_000, n_objectives=count, n_constraints=1)
        weights, dual = [1 / count] * count, torch.ones(1, dtype=torch.float64)
        spent = seconds(lambda k=known, w=weights, d=dual: k.problem.at(k.x0).combine(w, d))
        rows.append([f"S {count}, q 1, n 200000", f"{1e3 * spent:.2f}"])
    z = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    for count in (1250, 2500, 5000, 10_000):
        matrix = torch.randn(count, 2000, dtype=torch.float64)
        problem = Problem(
            lambda z: torch.stack([((z - 1) ** 2).sum(), ((z + 1) ** 2).sum()]),
            constraints=lambda z, matrix=matrix: matrix @ z**2,
        )
        dual = torch.ones(count, dtype=torch.float64)
        spent = seconds(lambda k=problem, d=dual: k.at(z).combine([0.5, 0.5], d))
        rows.append([f"S 2, q {count}, n 2000", f"{1e3 * spent:.2f}"])
    return table(["one evaluation and combined gradient", "ms"], rows)


def front() -> str:
    """In lockstep, runs take as many batched evaluations as the longest of them takes alone."""
    known = test_problems.sphere_arc(5, radius=1.2, angle=2.0, concave=True)
    problem, x0 = known.problem, known.x0
    preferences = [(k / 22, 1 - k / 22) for k in range(1, 22)]
    rows = []
    for name, warm, method in [
        ("`explore`", True, WCAugmented()),
        ("each from x0", False, WCAugmented()),
    ]:
        start = time.process_time()
        found = explore(problem, preferences, method, x0=x0, warm_start=warm, steps=30_000)
        spent = time.process_time() - start
        longest = max(result.n_gradient_evaluations for result in found.results)
        rows.append([name, str(found.n_gradient_evaluations), str(longest), f"{spent:.2f} s"])
    weights, duals = torch.tensor(preferences), torch.ones(21, 1, dtype=torch.float64)

    def batched() -> None:
        z = x0.repeat(21, 1).requires_grad_()
        values = [torch.vmap(part)(z) for part in (problem.objectives, problem.constraints)]
        torch.autograd.grad(values, z, [weights.double(), duals])

    alone = seconds(lambda: [problem.at(x0).combine(p, duals[0]) for p in preferences])
    header = ["21 points, to 1e-6", "gradients", "longest run", "CPU seconds"]
    return table(header, rows) + (
        f"\nF, h and a combined gradient at 21 points: {1e3 * alone:.2f} ms one after another, "
        f"{1e3 * seconds(batched):.2f} ms by vmap.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["problems", "dimensions", "cost", "front"]
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(parts)}; default all")
    parser.add_argument("--limit", type=int, default=30_000, help="evaluations for Algorithm 1")
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for scipy")
    parser.add_argument("--runs", type=int, default=15, help="in 'problems'")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 100, 300, 1000, 3000])
    parser.add_argument("--output", type=Path, help="also write the tables there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # scipy's on singular steps, ours on dependent constraints
    chosen = arguments.parts or parts
    if unknown := set(chosen) - set(parts):
        parser.error(f"unknown part {sorted(unknown)[0]!r}; there are {', '.join(parts)}")
    run: dict[str, Callable[[], str]] = {
        "problems": lambda: problems(arguments.limit, arguments.runs, arguments.seconds),
        "dimensions": lambda: dimensions(arguments.sizes, arguments.seconds),
        "cost": cost,
        "front": front,
    }
    text = "\n".join(run[part]() for part in chosen)
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
