"""Fronts by `explore` beside pymoo's NSGA-II and NSGA-III: hypervolume, evaluations, seconds.

    python benchmarks/fronts.py [NAME ...] [--points 50] [--output table.md]

Each problem is solved by `explore(problem, 50)` (91 points for three objectives) from one start,
and by pymoo (NSGA-II, with three objectives NSGA-III on 91 directions) for 200 generations of
100, seed 1, with pymoo's defaults for everything else; equality constraints and inequalities as
pymoo takes them. Hypervolume is in parts of the true front's where that is known, otherwise of
the union of both, with the reference point a tenth of the front's range beyond its worst values.
An evaluation is F, h and g at one point. `explore` needs gradients as well, which have a column of
their own: each of one function or of one combination of them, by one backward pass. A point counts
as certified where ‖K‖ is at most its tolerance. Needs pymoo: pip install 'paretune[bench]'.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.problem import Problem as PymooProblem
from pymoo.optimize import minimize as pymoo_minimize
from pymoo.util.ref_dirs import get_reference_directions

from paretune.errors import InputError
from paretune.moo import Exploration, Problem, explore, test_problems
from paretune.moo.indicators import hypervolume, nondominated
from paretune.moo.test_problems import KnownProblem

FEASIBLE = 1e-4  # constraints that miss by less are met


def toy_in_other_units() -> KnownProblem:
    """The toy with its first objective a hundredth and its second a hundred times as large."""
    known = test_problems.toy()
    units = torch.tensor([0.01, 100.0], dtype=torch.float64)
    problem = Problem(
        lambda z: units * known.problem.evaluate(z), constraints=known.problem.constraints
    )
    return KnownProblem(problem, 2, known.x0, lambda n: known.front(n) * units.numpy())


CASES: dict[str, Callable[[], KnownProblem]] = {
    "ZDT1": test_problems.zdt1,
    "ZDT2": test_problems.zdt2,
    "DTLZ2": test_problems.dtlz2,
    "BNH": test_problems.bnh,
    "TNK": test_problems.tnk,
    "OSY": test_problems.osy,
    "toy": test_problems.toy,
    "toy, f1 x 0.01, f2 x 100": toy_in_other_units,
    "Eq1-DTLZ2": lambda: test_problems.eq_dtlz(2),
}
# Where the start has no bounds pymoo searches this far around it.
AROUND = 5.0


class Adapted(PymooProblem):
    """One of ours as pymoo takes it, a row at a time."""

    def __init__(self, known: KnownProblem) -> None:
        self.known, problem, x0 = known, known.problem, known.x0
        at = problem.at(x0)
        lower, upper = (x0 - AROUND, x0 + AROUND)
        if problem.bounds is not None:
            lower, upper = (torch.as_tensor(b).expand(x0.shape) for b in problem.bounds)
        super().__init__(
            n_var=len(x0),
            n_obj=known.n_objectives,
            n_ieq_constr=len(at.inequalities),
            n_eq_constr=len(at.constraints),
            xl=lower.numpy(),
            xu=upper.numpy(),
        )

    def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
        problem = self.known.problem
        with torch.no_grad():
            rows = [torch.from_numpy(row) for row in x]
            out["F"] = np.stack([problem.evaluate(z).numpy() for z in rows])
            if problem.inequalities is not None:
                out["G"] = np.stack([problem.exceed(z).numpy() for z in rows])
            if problem.constraints is not None:
                out["H"] = np.stack([problem.constrain(z).numpy() for z in rows])


@dataclass(frozen=True)
class Found:
    points: Any
    evaluations: int
    gradients: int
    seconds: float
    note: str


def ours(known: KnownProblem, points: int) -> Found:
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        front = explore(known.problem, points, x0=known.x0)
    seconds = time.process_time() - begun
    certified = sum(result.converged for result in front.results)
    note = f"{certified} of {len(front.results)}" + (" (warns)" if told else "")
    spent = front.n_function_evaluations, front.n_gradient_evaluations
    return Found(met(front), *spent, seconds, note)


def met(front: Exploration) -> Any:
    """The points whose constraints are met."""
    return np.array(
        [
            result.objectives.numpy()
            for result in front.results
            if max([0.0, *result.constraints.abs().tolist(), *result.inequalities.tolist()])
            <= FEASIBLE
        ]
    )


def theirs(known: KnownProblem) -> Found:
    if known.n_objectives == 2:
        algorithm: Any = NSGA2(pop_size=100)
    else:
        directions = get_reference_directions("das-dennis", known.n_objectives, n_partitions=12)
        algorithm = NSGA3(directions, pop_size=100)
    begun = time.process_time()
    found = pymoo_minimize(Adapted(known), algorithm, ("n_gen", 200), seed=1)
    seconds = time.process_time() - begun
    points = np.empty((0, known.n_objectives)) if found.F is None else np.atleast_2d(found.F)
    return Found(points, found.algorithm.evaluator.n_eval, 0, seconds, f"{len(points)} points")


def volume(points: Any, reference: Any) -> float:
    return hypervolume(points, reference).value if len(points) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        "| problem | explore | points certified | evaluations | gradients | CPU s | pymoo | "
        "points | evaluations | CPU s | explore / pymoo |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in options.names or CASES:
        known = CASES[name]()
        two = known.n_objectives == 2
        own, other = ours(known, options.points if two else 91), theirs(known)
        try:
            front = known.front(5000)
        except InputError:
            both = [points for points in (own.points, other.points) if len(points)]
            front = np.concatenate(both)
            front = front[nondominated(front)]
        low, high = front.min(0), front.max(0)
        reference = high + 0.1 * (high - low)
        true = volume(front, reference)
        mine, pymoos = volume(own.points, reference) / true, volume(other.points, reference) / true
        ratio = f"{mine / pymoos:.3f}" if pymoos > 0 else "∞"
        lines.append(
            f"| {name} | {mine:.4f} | {own.note} | {own.evaluations:,} | {own.gradients:,} | "
            f"{own.seconds:.1f} | {pymoos:.4f} | {len(other.points)} | {other.evaluations:,} | "
            f"{other.seconds:.1f} | {ratio} |"
        )
        print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
