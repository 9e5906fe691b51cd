"""Coverage of a concave constrained front by 21 preferences: Chebyshev against linear weighting.

python examples/front_coverage.py                                             # the figures
python examples/front_coverage.py --figure docs/images/front_coverage.png     # and the picture
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

from paretune.moo import Problem, explore, minimize, test_problems
from paretune.moo.indicators import epsilon_additive, epsilon_multiplicative, hypervolume
from paretune.moo.solvers.exploration import Exploration
from paretune.moo.test_problems import KnownProblem

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PREFERENCES = [(k / 22, 1 - k / 22) for k in range(1, 22)]
REFERENCE = (1.1, 1.1)  # both objectives are below 1


def linear(known: KnownProblem) -> np.ndarray:
    """Σ p_m f_m minimised under the same constraint, once for each preference: F, shape (21, 2)."""
    points = []
    for p in PREFERENCES:
        weights = torch.tensor(p, dtype=torch.float64)
        total = Problem(
            lambda z, w=weights: (w @ known.problem.evaluate(z)).reshape(1),
            constraints=known.problem.constraints,
        )
        found = minimize(total, [1.0], "wc_augmented", x0=known.x0, steps=2000, tol=1e-6)
        if not found.converged:
            print(f"linear weighting with {p}: {found.message}")
        points.append(known.problem.evaluate(found.x).numpy())
    return np.array(points)


def report(known: KnownProblem, front: Exploration, sums: np.ndarray, exact: np.ndarray) -> None:
    print(f"residuals at most {float(front.residuals.max()):.0e}, converged: {front.converged}")
    error = np.abs(front.objectives.numpy() - exact).max()
    print(f"largest distance of F from its exact Chebyshev point: {error:.0e}")
    print(f"gradient evaluations: {front.n_gradient_evaluations}")
    whole, best = known.front(2000), hypervolume(exact, REFERENCE).value
    print(f"\nhypervolume with reference {REFERENCE}, ε against 2,000 points of the front")
    print("| points | hypervolume | of the exact 21 | additive ε | multiplicative ε |")
    print("|---|---|---|---|---|")
    found = front.objectives.numpy()
    for name, points in [("exact", exact), ("explore", found), ("linear weighting", sums)]:
        value = hypervolume(points, REFERENCE).value
        print(
            f"| {name} | {value:.6f} | {value / best:.6f} | {epsilon_additive(points, whole):.3f} "
            f"| {epsilon_multiplicative(points, whole):.3f} |"
        )


def draw(known: KnownProblem, found: np.ndarray, sums: np.ndarray, picture: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharex=True, sharey=True)
    whole, exact = known.front(300), np.array([known.chebyshev(p) for p in PREFERENCES])
    titles = ["explore", "linear weighting"]
    for axis, title, points, colour in zip(axes, titles, [found, sums], ["C0", "C3"], strict=True):
        axis.plot(*whole.T, color="0.75", linewidth=4, label="Pareto front", zorder=1)
        area = hypervolume(points, REFERENCE).value
        steps = points[np.argsort(points[:, 0])]
        corners = np.vstack([[steps[0, 0], REFERENCE[1]], steps, [REFERENCE[0], steps[-1, 1]]])
        axis.fill_between(
            corners[:, 0], corners[:, 1], REFERENCE[1], step="post", color=colour, alpha=0.12
        )
        axis.plot(*points.T, "o", color=colour, label="21 preferences", zorder=3)
        axis.set(
            title=f"{title}: hypervolume {area:.3f}", xlabel="f₁", xlim=(0, 1.12), ylim=(0, 1.12)
        )
        axis.set_aspect("equal")
    axes[0].plot(*exact.T, "k+", markersize=10, label="exact Chebyshev point", zorder=4)
    axes[0].set_ylabel("f₂")
    for axis in axes:
        axis.plot(*REFERENCE, "k*", markersize=9, label="reference", clip_on=False)
        axis.legend(loc="lower left", frameon=False)
    figure.tight_layout(pad=1.2)
    figure.savefig(picture, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, metavar="PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = test_problems.sphere_arc(5, radius=1.2, angle=2.0, concave=True)
    front = explore(known.problem, PREFERENCES, "wc_augmented", x0=known.x0)
    sums = linear(known)
    report(known, front, sums, np.array([known.chebyshev(p) for p in PREFERENCES]))
    if arguments.figure:
        draw(known, front.objectives.numpy(), sums, arguments.figure)


if __name__ == "__main__":
    main()
