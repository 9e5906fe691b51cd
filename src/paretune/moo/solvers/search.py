"""The runs of an exploration: which are done, which point to keep for which preference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from torch import Tensor

from paretune.errors import InputError
from paretune.moo.preference import Preference
from paretune.moo.ranking import Ranking
from paretune.moo.solvers.result import Result
from paretune.moo.solvers.warm_start import Stop, mix
from paretune.moo.solvers.watch import Watch

Start = Tensor | Result
Solve = Callable[[Preference, Start], Result]


class Solved(NamedTuple):
    """A preference that is done, as a callback of `explore` is told of it.

    Attributes:
        preference: which, as asked for; aimed at a normalised front, in its objectives.
        result: the best run for it so far.
        done: how many preferences are done.
        total: how many there will be at most.
    """

    preference: Preference
    result: Result
    done: int
    total: int


class Search:
    """The best result so far for each preference, and all runs there were.

    Args:
        solve: one run, for what is minimised (`aims`) and a start.
        ranking: which of two runs to keep.
        watch: which says when to stop.
        told: called when a preference is done, with its number.
        workers: how many runs at the same time, in threads.
    """

    def __init__(
        self,
        solve: Solve,
        ranking: Ranking,
        watch: Watch,
        told: Callable[[int], None],
        workers: int = 1,
    ) -> None:
        self.solve, self.ranking, self.watch = solve, ranking, watch
        self.told, self.workers = told, workers
        self.aims: list[Preference] = []
        self.kept: dict[int, Result] = {}
        self.runs: list[Result] = []
        self.failed: dict[int, InputError] = {}

    def run(self, n: int, start: Start) -> Result | None:
        """Solve for preference n from a start, and keep the better result.

        A run that was told to stop half-way counts, but is kept only if there is nothing else.
        """
        if self.watch.over():
            return None
        try:
            found = self.solve(self.aims[n], start)
        except InputError as error:
            self.failed[n] = error
            return None
        self.runs.append(found)
        if self.watch.over() and not found.converged and self.kept:
            return None
        if n not in self.kept or self.ranking.better(self.aims[n], found, self.kept[n]):
            self.kept[n] = found
        return found

    def all(self, stops: Iterable[Stop], job: Callable[[Stop], None]) -> None:
        """`job(stop)` for each, after those it is near to; what comes of it does not depend on
        the number of workers."""
        waiting = list(stops)
        if self.workers == 1:
            for stop in waiting:
                if not self.watch.over():
                    job(stop)
                    self.told(stop.n)
            return
        pending = {stop.n for stop in waiting}
        with ThreadPoolExecutor(self.workers) as pool:
            running: dict[Future[None], int] = {}
            try:
                while (waiting and not self.watch.over()) or running:
                    ready = [stop for stop in waiting if pending.isdisjoint(stop.near)]
                    for stop in [] if self.watch.over() else ready:
                        waiting.remove(stop)
                        running[pool.submit(job, stop)] = stop.n
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        n = running.pop(future)
                        future.result()
                        pending.discard(n)
                        self.told(n)
            except BaseException:
                self.watch.stop("interrupted.")
                pool.shutdown(cancel_futures=True)
                raise

    def starts(self, stop: Stop, project: Callable[[Tensor], Tensor]) -> Iterator[Result]:
        """From what is solved near a place: a mixture, and the nearest that converged."""
        runs = [self.kept.get(n) for n in stop.near]
        good = [run for run in runs if run is not None and run.converged]
        if stop.weights and len(good) == len(runs):
            yield mix(good, stop.weights, project)
        if runs and runs[0] is not None and runs[0].converged:
            yield runs[0]

    def share(self) -> None:
        """Run again from other preferences' points, where one is better than a preference's own."""
        tried: set[tuple[int, int]] = set()
        while pairs := [pair for pair in self.improvable() if pair not in tried]:
            for n, k in pairs:
                self.run(n, self.kept[k])
            if self.watch.over():
                return
            tried.update(pairs)

    def improvable(self) -> list[tuple[int, int]]:
        """The (n, k) where the point of preference k, the best there is for n, beats n's own."""
        numbers = sorted(self.kept)
        runs = [self.kept[n] for n in numbers]
        best = self.ranking.lowest([self.aims[n] for n in numbers], runs)
        return [(n, numbers[k]) for n, k in zip(numbers, best, strict=True) if numbers[k] != n]
