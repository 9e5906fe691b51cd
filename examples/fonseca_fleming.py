"""CLAMP and linear weighting on a concave front (Fonseca-Fleming), one run for each preference.

python examples/fonseca_fleming.py                      # a table
python examples/fonseca_fleming.py --figure front.png   # picture of docs/methods/weightings.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from paretune.moo import Clamp, Descent, Linear, minimize, test_problems
from paretune.moo.solvers.result import Result
from paretune.moo.test_problems import KnownProblem

PREFERENCES = [(k / 10, 1 - k / 10) for k in range(1, 10)]
STARTS = [[-0.8, -0.1, 0.6], [0.3, 0.3, -0.4], [-0.2, -0.5, 0.1]]


def run(known: KnownProblem, p: tuple[float, float], method: Descent, start: list[float]) -> Result:
    return minimize(known.problem, p, method, x0=start, steps=1000)


def draw(known: KnownProblem, clamp: list[Result], linear: list[Result], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    front = known.front(200)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharex=True, sharey=True)
    for axis, title, results, colour in zip(
        axes, ["CLAMP, μ = 1", "Linear weighting"], [clamp, linear], ["C0", "C3"], strict=True
    ):
        axis.plot(front[:, 0], front[:, 1], color="0.75", linewidth=4, label="Pareto front")
        for n, result in enumerate(results):
            path_taken = result.history.objectives.numpy()
            axis.plot(*path_taken.T, color=colour, alpha=0.3, linewidth=1)
            label = "end of each run" if n == 0 else None
            axis.plot(*path_taken[-1], "o", color=colour, markersize=7, zorder=3, label=label)
        axis.set(title=title, xlabel="f₁", xlim=(-0.06, 1.14), ylim=(-0.06, 1.06))
        axis.set_aspect("equal")
    for p, result in zip(PREFERENCES, clamp, strict=True):
        f1, f2 = result.objectives.tolist()
        axes[0].annotate(
            f"p₁ = {p[0]:.1f}", (f1, f2), (9, 3), textcoords="offset points", fontsize=8
        )
    exact = np.array([known.chebyshev(p) for p in PREFERENCES])
    axes[0].plot(*exact.T, "k+", markersize=11, zorder=4, label="exact Chebyshev point")
    axes[0].set_ylabel("f₂")
    for axis in axes:
        axis.legend(loc="lower left", frameon=False)
    figure.tight_layout(pad=1.2)
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})


def table_of_mu(known: KnownProblem) -> None:
    print("largest distance to the Chebyshev point over p₁ = .1, .5, .9 (steps at a vertex)")
    lrs = (0.03, 0.3)
    print("| μ | " + " | ".join(f"lr = {lr}" for lr in lrs) + " |\n|---|---|---|")
    for mu in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0):
        cells = []
        for lr in lrs:
            errors, at_vertex = [], []
            for p in [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)]:
                result = run(known, p, Descent(Clamp(mu=mu), lr=lr), STARTS[0])
                errors.append(np.abs(result.objectives.numpy() - known.chebyshev(p)).max())
                at_vertex.append(float((result.history.multipliers.amax(1) == 1).double().mean()))
            cells.append(f"{max(errors):.0e} ({100 * np.mean(at_vertex):.0f} %)")
        print(f"| {mu:g} | " + " | ".join(cells) + " |")


def table_of_rates() -> None:
    known = test_problems.convex_pair()
    print("running mean over t < T of min ‖Gλ‖² (Definition 3.2), convex pair, p = (.4, .6)")
    print("| T | μ = 0.1 | μ = 1 | μ = 10 |\n|---|---|---|---|")
    means = []
    for mu in (0.1, 1.0, 10.0):
        result = minimize(
            known.problem,
            [0.4, 0.6],
            Descent(Clamp(mu=mu), lr=0.05),
            x0=known.x0,
            steps=1000,
            tol=0,
        )
        measure = result.history.min_norm
        means.append(measure.cumsum(0) / torch.arange(1, len(measure) + 1))
    for steps in (10, 30, 100, 300, 1000):
        print(f"| {steps} | " + " | ".join(f"{mean[steps - 1]:.1e}" for mean in means) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="where to write the picture")
    parser.add_argument("--mu", action="store_true", help="a table over μ and lr instead")
    parser.add_argument("--rate", action="store_true", help="a table of the rate instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = test_problems.fonseca_fleming()
    if arguments.mu or arguments.rate:
        if arguments.mu:
            table_of_mu(known)
        if arguments.rate:
            table_of_rates()
        return
    methods = {
        "CLAMP": Descent(Clamp(mu=1.0), lr=0.3),
        "linear": Descent(Linear(), lr=0.3),
    }
    ends: dict[str, list[Result]] = {"CLAMP": [], "linear": []}
    print(f"{'p₁':>4}  {'exact Chebyshev':>17}  {'CLAMP':>17}  {'error':>8}  {'linear':>17}")
    for n, p in enumerate(PREFERENCES):
        for name, method in methods.items():
            ends[name].append(run(known, p, method, STARTS[n % len(STARTS)]))
        exact = known.chebyshev(p)
        found, rival = ends["CLAMP"][-1].objectives.numpy(), ends["linear"][-1].objectives.numpy()
        texts = [f"({f[0]:.4f}, {f[1]:.4f})" for f in (exact, found, rival)]
        error = np.abs(found - exact).max()
        print(f"{p[0]:4.1f}  {texts[0]:>17}  {texts[1]:>17}  {error:8.0e}  {texts[2]:>17}")
    if arguments.figure:
        draw(known, ends["CLAMP"], ends["linear"], arguments.figure)


if __name__ == "__main__":
    main()
