"""Speed and accuracy of the simplex QP against scipy SLSQP, daqp and clarabel.

    python benchmarks/simplex_qp.py [--repeats 30] [--output table.md]

Prints two Markdown tables: median time of a solve for each M (each solve is timed five times),
and the worst scale-free gap for each family of problems over all M. The rivals get P and q divided
by max(|P|, |q|), which only helps them; paretune gets them as they are. Every answer is clipped at
0 and renormalised, and its gap (xᵀg - min g) / (xᵀ|P|x + |q|ᵀx), g = 2Px + q, is evaluated in
extended precision: 0 is exact, 1 is useless. A rival that raises or returns no point has failed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import clarabel
import daqp
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize

from paretune.moo import simplex_qp

Array = NDArray[np.float64]
Solver = Callable[[Array, Array], Array]


def paretune(P: Array, q: Array) -> Array:
    return simplex_qp(P, q).x


def slsqp(P: Array, q: Array) -> Array:
    """The solver of the CLAMP paper, which sets its tolerance to 1e-5; 1e-12 here."""
    size = len(q)
    return minimize(
        lambda x: x @ P @ x + q @ x,
        np.full(size, 1 / size),
        jac=lambda x: 2 * P @ x + q,
        bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    ).x


def daqp_solve(P: Array, q: Array, **tolerances: float) -> Array:
    size = len(q)
    sense = np.zeros(size + 1, dtype=np.int32)
    sense[-1] = 5  # the last row, the sum, is an equality
    lower, upper = np.r_[np.zeros(size), 1.0], np.ones(size + 1)
    x, _, exitflag, _ = daqp.solve(2 * P, q, np.ones((1, size)), upper, lower, sense, **tolerances)
    if exitflag < 1:
        raise ArithmeticError(f"daqp exit flag {exitflag}")
    return np.asarray(x)


def clarabel_solve(P: Array, q: Array) -> Array:
    size = len(q)
    A = sparse.csc_matrix(np.vstack([np.ones((1, size)), -np.eye(size)]))
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(size)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    upper = sparse.csc_matrix(np.triu(2 * P))
    solver = clarabel.DefaultSolver(upper, q, A, np.r_[1.0, np.zeros(size)], cones, settings)
    return np.array(solver.solve().x)


SOLVERS: dict[str, Solver] = {
    "paretune": paretune,
    "scipy SLSQP": slsqp,
    "daqp": daqp_solve,
    "daqp, tight": partial(daqp_solve, primal_tol=1e-12, dual_tol=1e-14),
    "clarabel": clarabel_solve,
}


def problems(size: int, rng: np.random.Generator) -> Iterator[tuple[str, Array, Array]]:
    """One problem of each family: gradients G, P = DGᵀGD, q = -μ p∘F or 0."""
    G = rng.normal(size=(3 * size, size))
    p, losses = rng.dirichlet(np.ones(size)), rng.uniform(0.1, 2, size)
    q = -(10.0 ** rng.uniform(-2, 3)) * p * losses
    zero = np.zeros(size)
    P, clamp = G.T @ G, (G * p).T @ (G * p)
    yield "regular, q = 0", P, zero
    yield "regular, Eq. 6", clamp, q
    rank = max(1, size - 2)
    flat = rng.normal(size=(3 * size, rank)) @ rng.normal(size=(rank, size))
    yield "rank deficient, q = 0", flat.T @ flat, zero
    yield "rank deficient, Eq. 6", (flat * p).T @ (flat * p), q
    still = G.copy()
    still[:, 0] = -(G[:, 1:] @ p[1:]) / p[0]
    yield "stationary", still.T @ still, zero
    yield "tiny (1e-12)", 1e-12 * clamp, 1e-12 * q
    yield "huge (1e6)", 1e6 * clamp, 1e6 * q
    mixed = G * 10.0 ** rng.uniform(-6, 3, size)
    yield "mixed scales (1e-12 to 1e6), q = 0", mixed.T @ mixed, zero
    yield "mixed scales (1e-12 to 1e6), Eq. 6", (mixed * p).T @ (mixed * p), q
    whole = rng.integers(-2, 3, size=(size, size)).astype(float)
    yield "integers with ties", whole.T @ whole, rng.integers(-2, 3, size).astype(float)
    low = rng.normal(size=(3 * size, min(2, rank))) @ rng.normal(size=(min(2, rank), size))
    low = low * 10.0 ** rng.uniform(-1, 1, size)
    rounded = (low.T @ low).astype(np.float32).astype(float)
    yield "float32-rounded, singular", rounded, zero


def gap(P: Array, q: Array, x: Array) -> float:
    x = np.clip(x, 0, None)
    P, q, x = (np.asarray(a, np.longdouble) for a in (P, q, x / x.sum()))
    g = 2 * P @ x + q
    size = x @ np.abs(P) @ x + np.abs(q) @ x
    return float((x @ g - g.min()) / size) if size > 0 else 0.0


def measure(sizes: list[int], repeats: int) -> tuple[dict, dict, dict]:
    """Times by (solver, M), worst gaps and failures by (solver, family)."""
    times, worst, failed = defaultdict(list), defaultdict(float), defaultdict(int)
    rng = np.random.default_rng(0)
    for size in sizes:
        for _ in range(repeats):
            for family, P, q in problems(size, rng):
                scale = max(np.abs(P).max(), np.abs(q).max())
                for name, solve in SOLVERS.items():
                    scaled = (P, q) if name == "paretune" else (P / scale, q / scale)
                    spent = []
                    for _ in range(5):
                        start = time.perf_counter()
                        try:
                            x = solve(*scaled)
                        except ArithmeticError:
                            x = np.full(size, np.nan)
                        spent.append(time.perf_counter() - start)
                    times[name, size].append(float(np.median(spent)))
                    if np.isfinite(x).all() and x.max() > 0:
                        worst[name, family] = max(worst[name, family], gap(P, q, x))
                    else:
                        failed[name, family] += 1
    return times, worst, failed


def tables(sizes: list[int], times: dict, worst: dict, failed: dict) -> str:
    names = list(SOLVERS)
    lines = ["| median µs | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for size in sizes:
        cells = [f"{1e6 * np.median(times[name, size]):.0f}" for name in names]
        lines.append(f"| M = {size} | " + " | ".join(cells) + " |")
    lines += ["", "| worst gap | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for family in dict.fromkeys(family for _, family in worst):
        cells = []
        for name in names:
            failures = failed[name, family]
            cells.append(
                f"{worst[name, family]:.0e}" + (f", {failures} failed" if failures else "")
            )
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--repeats", type=int, default=30, help="problems of each family and size")
    parser.add_argument("--output", type=Path, help="also write the tables there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # SLSQP warns about values outside the bounds
    text = tables(arguments.sizes, *measure(arguments.sizes, arguments.repeats))
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
