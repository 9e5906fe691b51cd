"""How good is a bilevel solution really? Each method's own losses, and the re-solved ones.

    python examples/bilevel_gap.py                                  # wc_augmented and WC-Penalty
    python examples/bilevel_gap.py --methods soba wc_soba forum     # others, with their defaults

On two problems whose true optimum is known: which of three training sets should weigh how much (C8
of the tests, 3 validation sets), and a lower level with a line of solutions (C3). The losses depend
on y directly, so a y off the lower level's solution can make them lower than the true optimum is:
"own gap" is max λ_s f_s at the method's (x, y) minus the optimum, "true gap" the same after
re-solving the lower level at its x. Prints a table.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from paretune.moo import WCPenalty, minimize, polish_lower
from paretune.moo.bilevel import EqualityConstrained, StochasticWCAugmented
from paretune.moo.bilevel.choice import BilevelSolver
from paretune.moo.test_problems import KnownBilevel, data_weighting, rank_deficient_bilevel

Preference = tuple[float, ...]

PROBLEMS: list[tuple[str, KnownBilevel, list[Preference]]] = [
    ("C8, data weighting", data_weighting(), [(1 / 3, 1 / 3, 1 / 3), (0.5, 0.25, 0.25)]),
    ("C3, a line of minimisers", rank_deficient_bilevel(), [(0.5, 0.5), (0.7, 0.3)]),
]
ROOT = 1000**0.25  # 5.6, Theorem 3's u = v for T = 1000


def penalty(u: float, eta: float) -> EqualityConstrained:
    return EqualityConstrained(WCPenalty(u=u, v=u, eta=eta), record_every=1000)


DEFAULT: list[tuple[str, BilevelSolver | str]] = [
    ("wc_augmented", "wc_augmented"),
    ("wc_augmented, Adam", StochasticWCAugmented(record_every=1000)),
    ("wc_penalty, u = T^1/4", penalty(ROOT, 0.03)),
    ("wc_penalty, u = 30", penalty(30.0, 0.005)),
]


def height(objectives: Tensor, preference: Preference) -> float:
    return float((torch.tensor(preference, dtype=torch.float64) * objectives).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", help="names of `minimize`")
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    methods = [(name, name) for name in args.methods] if args.methods else DEFAULT
    for title, known, preferences in PROBLEMS:
        for preference in preferences:
            best = known.optimum(preference)
            shown = ", ".join(f"{p:.2f}" for p in preference)
            print(f"\n{title}, λ = ({shown}): optimum {best:.6f}")
            print(f"{'':22s} {'own gap':>10s} {'true gap':>10s} {'‖∇_y g‖':>9s} {'gradients':>9s}")
            for name, method in methods:
                result = minimize(
                    known.problem,
                    preference,
                    method=method,
                    x0=(known.x0, known.y0),
                    steps=args.steps,
                )
                polished = polish_lower(known.problem, *result.x)
                print(
                    f"{name:22s} {height(result.objectives, preference) - best:+10.1e} "
                    f"{height(polished.objectives, preference) - best:+10.1e} "
                    f"{result.lower_gradient_norm:9.1e} {result.n_gradient_evaluations:9d}"
                )


if __name__ == "__main__":
    main()
