"""`explore`: a front, one preference at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.numerics.kkt import as_tensor
from paretune.moo.optimize import MethodName, choose_method, solve_from
from paretune.moo.preference import Preference
from paretune.moo.problem import Problem, StochasticProblem
from paretune.moo.ranking import Ranking
from paretune.moo.shift import Shift, read_shift
from paretune.moo.solvers.aiming import Aim
from paretune.moo.solvers.front import Exploration
from paretune.moo.solvers.journal import Journal, digest, key_of
from paretune.moo.solvers.loop import default_tolerance
from paretune.moo.solvers.normalization import (
    Normalization,
    find_normalization,
    scattered,
)
from paretune.moo.solvers.rays import grid_rays
from paretune.moo.solvers.result import Method, Result
from paretune.moo.solvers.search import Search, Solved, Start
from paretune.moo.solvers.warm_start import Stop, tour
from paretune.moo.solvers.watch import Watch
from paretune.moo.solvers.wc_augmented import WCAugmented

# Points closer than this part of the front's range, in each objective, count as one.
_SAME = 1e-5
# More starts from which each objective alone is minimised, where there are bounds on all sides.
_SCATTERED = 2
# How far beside the start a problem is looked at too, in parts of its size.
_BESIDE = 1e-2

_COUNTED = "A number of points"


class FrontWarning(UserWarning):
    """A front that does not cover what was asked for."""


def explore(
    problem: Problem | StochasticProblem,
    preferences: int | Sequence[Preference | Sequence[float]],
    method: MethodName | Method | None = None,
    *,
    x0: Tensor | ArrayLike,
    steps: int = 1000,
    tol: float | None = None,
    shift: Shift = None,
    warm_start: bool = True,
    restarts: Sequence[Tensor | ArrayLike] = (),
    normalise: bool = False,
    callback: Callable[[Solved], object] | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    journal: str | os.PathLike[str] | None = None,
    workers: int = 1,
) -> Exploration:
    """The front of a problem: `minimize` for each of many preferences, or that many even points.

    A number of points instead of preferences places them: objectives are measured from the ideal
    point in parts of their range on the front, for 3 M runs more, and each point is aimed at along
    a ray from the ideal point. With two objectives the rays go to the middle of the largest gaps
    between the points there are, with more along a Das-Dennis grid. Units do not matter then.

    With warm starts the preferences are taken from the middle outwards, each starting from a
    mixture of the solutions near it (then the nearest, then x0, where that does not converge). At
    the end each preference is compared with the points of all others: where one of them has a
    lower max_m p_m f_m (Σ p_m f_m for "linear") the run had ended in a local minimum, and is done
    again from there. "mgda", where p has no say, always starts from x0.

    Args:
        problem: as for `minimize`.
        preferences: how many points, or preferences such as `das_dennis(2, 20)`; "wc_penalty"
            needs all weights positive. A number needs "wc_augmented" without a shift.
        method: as for `minimize`.
        x0: start point.
        steps: the most steps for each run.
        tol: as for `minimize`, by default 1e-6 (1.2e-5 in float32).
        shift: as for `minimize`; one that a method object carries counts as well.
        warm_start: False starts every preference from x0 alone.
        restarts: more start points, tried for every preference; the best solution is kept. For
            problems that are not convex, where each run may end in a local minimum.
        normalise: whether given preferences are for objectives measured from the ideal point in
            parts of their range on the front (`Exploration.normalization`), for 3 M runs more. For
            "wc_augmented" without a shift of its own.
        callback: called with a `Solved` after each preference; True ends the exploration.
        max_evaluations: end it once as many evaluations of F and h are spent. What is solved is
            returned, as it is after Ctrl-C, with a `FrontWarning`.
        max_seconds: the same for time.
        journal: a file that keeps each run as it ends. Called again with the same arguments it
            resumes where it was ended, and returns what it would have returned, to the last bit.
        workers: preferences at the same time, in threads: for objectives that release Python's
            lock, such as those that wait for a simulation. The result does not depend on it.

    A preference that `minimize` refuses, such as one whose objectives are not finite at a start, is
    left out with a `FrontWarning`, which also tells of points that have not converged and of many
    preferences that end at one point.

    Raises:
        InputError: no preferences, what `minimize` raises for all of them, or a journal of
            something else.

    >>> from paretune.moo import test_problems
    >>> known = test_problems.toy()
    >>> front = explore(known.problem, 5, x0=known.x0)
    >>> front.points.shape, front.converged
    (torch.Size([5, 2]), True)
    """
    asked, count = _asked(preferences)
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}.")
    start, others = as_tensor(x0), [as_tensor(other) for other in restarts]
    chosen = choose_method(problem, method, shift=shift)
    tol = default_tolerance(start.dtype, 1e-6) if tol is None else tol
    watch = Watch(None, max_evaluations, max_seconds)
    runs = _Runs(problem, steps, tol, watch, None)
    names = asked[0].names if asked else runs.names(start)
    if journal is not None:
        what = [p.weights for p in asked] if count is None else count
        runs.journal = Journal(
            Path(journal),
            {
                "preferences": digest(what),
                "method": digest(repr(chosen)),
                "x0": digest(start.tolist(), str(start.dtype), [o.tolist() for o in others]),
                "options": digest(steps, tol, warm_start, normalise),
                "problem": digest(*runs.seen(start)),
            },
        )
    scale = None
    if normalise or count is not None:
        plain = _shiftable(chosen, problem, "normalise=True" if count is None else _COUNTED)
        scale = runs.normalize(plain, names, [start, *others])
        chosen = replace(plain, shift=tuple(scale.shift))
    ranking = Ranking(chosen)
    places = list(asked)  # what the caller is told

    def told(n: int) -> None:
        if callback is not None and n in search.kept:
            told = Solved(places[n], search.kept[n], len(search.kept), count or len(asked))
            if callback(told) is True:
                watch.stop("the callback ended it.")

    search = Search(lambda p, x: runs.solve(chosen, p, x), ranking, watch, told, workers)
    search.runs.extend(scale.runs if scale is not None else ())
    project = problem.project if isinstance(problem, Problem) else (lambda x: x)
    warm = warm_start and ranking.by_preference

    def job(stop: Stop) -> None:
        n = stop.n
        for near in search.starts(stop, project) if warm else ():
            search.run(n, near)
            if n in search.kept and search.kept[n].converged:
                break
        if n not in search.kept or not search.kept[n].converged:
            search.run(n, start)
        for other in others:
            search.run(n, other)

    try:
        if count is None:
            search.aims.extend(asked if scale is None else map(scale.scaled, asked))
            search.all(tour([p.weights for p in asked]), job)
        else:
            assert scale is not None
            aim = Aim(search, scale, names, places, project)
            if len(names) == 2 and count > 1:
                aim.divide(count, others)
            else:
                rays = grid_rays(count, len(names))
                for ray in rays:
                    aim.add(ray.tolist())
                search.all(tour(rays.tolist()), job)
        if warm and search.kept and not watch.stopped:
            search.share()
    except KeyboardInterrupt:
        if not search.kept:
            raise
        watch.stop("interrupted.")
    _check_solved(search, watch.stopped, scale)
    _warn(search, places, len(asked), count, watch.stopped)
    return _front(search, places, runs.looks, scale)


def _asked(
    preferences: int | Sequence[Preference | Sequence[float]],
) -> tuple[tuple[Preference, ...], int | None]:
    """The preferences that were given, or else how many points."""
    if isinstance(preferences, Integral):
        if preferences < 1:
            raise InputError(f"explore needs at least one point, got {preferences}.")
        return (), int(preferences)
    if not isinstance(preferences, Iterable):
        raise InputError(f"preferences must be a whole number or a list, got {preferences!r}.")
    asked = tuple(Preference.of(preference) for preference in preferences)
    if not asked or len({len(preference) for preference in asked}) > 1:
        raise InputError("explore needs at least one preference, all with as many weights.")
    return asked, None


def _shiftable(method: Method, problem: Problem | StochasticProblem, what: str) -> WCAugmented:
    """The method, seen to be one whose objectives can be measured from the ideal point."""
    plain = isinstance(method, WCAugmented) and isinstance(problem, Problem)
    if not isinstance(method, WCAugmented) or not plain or method.shift is not None:
        raise InputError(f"{what} needs method 'wc_augmented', without a shift.")
    return method


def _check_solved(search: Search, stopped: str, scale: Normalization | None) -> None:
    """Raise what stands in the way where no preference was solved."""
    if not search.kept:
        if stopped:
            begun = "" if scale is None else ", since finding the ends of the front took all of it"
            raise InputError(f"No point is solved{begun}: {stopped}")
        raise next(iter(search.failed.values()))


def _front(
    search: Search, places: Sequence[Preference], looks: int, scale: Normalization | None
) -> Exploration:
    """What was found, in the order of the preferences, with all that it cost."""
    found = sorted(search.kept)
    return Exploration(
        tuple(places[n] for n in found),
        tuple(search.kept[n] for n in found),
        sum(run.n_gradient_evaluations for run in search.runs),
        sum(run.n_function_evaluations for run in search.runs) + looks,
        scale,
    )


class _Runs:
    """Runs of one problem, from the journal where it has them."""

    def __init__(
        self,
        problem: Problem | StochasticProblem,
        steps: int,
        tol: float,
        watch: Watch,
        journal: Journal | None,
    ) -> None:
        self.problem, self.steps, self.tol = problem, steps, tol
        self.watch, self.journal = watch, journal
        self.looks = 0

    def seen(self, start: Tensor) -> list[Any]:
        """What tells the problem from others: (F, h, g) at the start and beside it, and bounds."""
        known = self.problem
        problem = known if isinstance(known, Problem) else known.on(known.full)
        draw = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
        size = max(1.0, float(start.norm()))
        beside = problem.project(start + _BESIDE * size * draw.to(start))
        values: list[Any] = []
        with torch.no_grad():
            for z in (start, beside):
                parts = problem.evaluate(z), problem.constrain(z), problem.exceed(z)
                values.extend(part.tolist() for part in parts)
        return [*values, *(torch.as_tensor(bound).tolist() for bound in problem.bounds or ())]

    def names(self, start: Tensor) -> tuple[str, ...]:
        """f1, f2, …, as many as there are objectives."""
        if not isinstance(self.problem, Problem):
            raise InputError("A number of points needs a Problem, not a stochastic one.")
        self.looks += 1
        with torch.no_grad():
            count = len(self.problem.evaluate(start))
        return tuple(f"f{m}" for m in range(1, count + 1))

    def solve(self, method: Method, preference: Preference, start: Start) -> Result:
        key = ""
        if self.journal is not None:
            shift = getattr(method, "shift", None)
            key = key_of(preference, read_shift(shift, len(preference)), start)
            like = start.x if isinstance(start, Result) else start
            if (found := self.journal.find(key, like)) is not None:
                return found
        found = solve_from(
            method, self.problem, preference, start, self.steps, self.tol, self.watch
        )
        if self.journal is not None and not self.watch.stopped:
            self.journal.add(key, found)
        return found

    def normalize(
        self, method: WCAugmented, names: tuple[str, ...], starts: Sequence[Tensor]
    ) -> Normalization:
        def solve(preference: Preference, shift: Sequence[float], x: Start) -> Result:
            return self.solve(replace(method, shift=tuple(shift)), preference, x)

        assert isinstance(self.problem, Problem)
        everywhere = [*starts, *scattered(self.problem, starts[0], _SCATTERED)]
        scale = find_normalization(solve, names, everywhere)
        for s, name in enumerate(names):
            tried = scale.runs[s * len(everywhere) : (s + 1) * len(everywhere)]
            if not any(run.converged for run in tried) and not self.watch.stopped:
                warnings.warn(
                    f"The least value of {name} was not found, so the points are spread by a "
                    f"wrong range: {tried[0].message}",
                    FrontWarning,
                    stacklevel=3,
                )
        return scale


def _warn(
    search: Search, places: Sequence[Preference], asked: int, count: int | None, stopped: str
) -> None:
    """Tell of preferences that failed or are not done, and of many that ended at one point."""
    total = count or asked

    def warn(text: str) -> None:
        warnings.warn(text, FrontWarning, stacklevel=4)

    kept = search.kept
    unmet = [n for n in sorted(kept) if not kept[n].converged]
    if unmet and not stopped:
        n = unmet[0]
        warn(
            f"{len(unmet)} of {len(kept)} points have not converged, such as that of "
            f"{places[n].weights}: {kept[n].message}"
        )
    missing = {n: error for n, error in search.failed.items() if n not in search.kept}
    if missing:
        n, error = next(iter(missing.items()))
        warn(
            f"{len(missing)} of {total} preferences are left out, such as "
            f"{places[n].weights}: {error}"
        )
    if stopped:
        warn(f"{len(search.kept)} of {total} points are solved: {stopped}")
    elif len(search.kept) + len(missing) < total:
        warn(
            f"{len(search.kept)} points in place of {total}: between the others no point was found "
            "that is on the front. It may be in pieces, or one point; or runs ended in local "
            "minima: try restarts."
        )
    points = torch.stack([found.objectives for found in search.kept.values()])
    spread = (points.amax(0) - points.amin(0)).clamp(min=torch.finfo(points.dtype).tiny)
    near = ((points[:, None] - points[None]).abs() <= _SAME * spread).all(-1)
    most = int(near.sum(1).max())
    if search.ranking.by_preference and most >= max(4, len(points) // 4):
        where = points[int(near.sum(1).argmax())].tolist()
        aims = "rays" if count else "preferences"
        warn(
            f"{most} of {len(points)} {aims} end at the same point, F = "
            f"({', '.join(f'{value:.4g}' for value in where)}). The front may have a gap or an "
            "end there, or runs may have stopped at a stationary point that is no minimum: try "
            f"restarts{'' if count else ', or a number of points in place of preferences'}."
        )
