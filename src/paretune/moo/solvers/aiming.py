"""Rays at a normalised front, as preferences of a search: gap by gap for two objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from paretune.moo.preference import Preference
from paretune.moo.solvers.normalization import Normalization, aimed
from paretune.moo.solvers.rays import Array, divides, front_line, next_gaps
from paretune.moo.solvers.result import Result
from paretune.moo.solvers.search import Search, Start
from paretune.moo.solvers.warm_start import Stop, mix

# Where in a gap is aimed at, one after the other while nothing is found there.
_PARTS = (0.5, 0.25, 0.75, 0.125, 0.875)
# All but the first only in gaps longer than so many middling ones.
_WIDE = 3.0
# Nearer to an end than this the start is next to it anyway.
_NEAR_END = 0.2
# A point outside the gap that was aimed at is one more if all others are so far, in ranges.
_NEW = 0.02


class Aim:
    """Adds rays to a search; `places` are their preferences as the caller is told of them."""

    def __init__(
        self,
        search: Search,
        scale: Normalization,
        names: tuple[str, ...],
        places: list[Preference],
        project: Callable[[Tensor], Tensor],
    ) -> None:
        self.project = project
        self.search, self.scale, self.names, self.places = search, scale, names, places

    def add(self, ray: Sequence[float]) -> int:
        """The number of a new ray."""
        preference = aimed(self.names, ray)
        self.places.append(preference)
        self.search.aims.append(self.scale.scaled(preference))
        return len(self.places) - 1

    def divide(self, count: int, others: Sequence[Tensor]) -> None:
        """The two ends, then within the largest gaps, until there are `count` points."""
        search, tried = self.search, dict[tuple[int, int], int]()
        ends = dict(zip((self.add((1, 0)), self.add((0, 1))), self.scale.runs[-2:], strict=True))

        def end(stop: Stop) -> None:
            n = stop.n
            search.run(n, ends[n])
            for other in others:
                search.run(n, other)

        search.all([Stop(n) for n in ends], end)
        while len(search.kept) < count and not search.watch.stopped:
            good = [n for n in sorted(search.kept) if search.kept[n].converged]
            if len(good) < 2:
                return
            placed = self.place(good)
            closed = self.closed(placed, good, tried)
            gaps, parts = dict[int, tuple[int, int]](), dict[int, float]()
            for left, right in next_gaps(placed, closed, count - len(search.kept)):
                gap = good[left], good[right]
                part = _PARTS[tried.get(gap, 0)]
                n = self.add(((1 - part) * placed[left] + part * placed[right]).tolist())
                gaps[n], parts[n] = gap, part
            if not gaps:
                return

            def job(
                stop: Stop,
                gaps: dict[int, tuple[int, int]] = gaps,
                parts: dict[int, float] = parts,
            ) -> None:
                n = stop.n
                left, right = (search.kept[k] for k in gaps[n])
                part = parts[n]
                between = mix((left, right), (1 - part, part), self.project)
                ends = [left, right] if _NEAR_END < part < 1 - _NEAR_END else []
                starts: list[Start] = [between, *ends, *others]
                for near in starts:
                    search.run(n, near)
                    if self.lies_between(n, left, right) and not others:
                        return

            search.all([Stop(n) for n in gaps], job)
            for n, gap in gaps.items():
                if not self.lies_between(n, *(search.kept[k] for k in gap)):
                    tried[gap] = tried.get(gap, 0) + 1
                    if not self.is_new(n):
                        search.kept.pop(n, None)

    def place(self, numbers: Sequence[int]) -> Array:
        """Where on the normalised front the points of these rays are."""
        points = torch.stack([self.search.kept[n].objectives for n in numbers])
        return self.scale.place(points.numpy())

    def closed(
        self, placed: Array, good: Sequence[int], tried: dict[tuple[int, int], int]
    ) -> set[tuple[int, int]]:
        """The gaps, by place in `good`, where nothing was found as often as it was worth."""
        line = front_line(placed)
        lengths = [math.dist(placed[a], placed[b]) for a, b in pairwise(line)]
        usual = median(lengths) if lengths else 0.0
        found = set()
        for (left, right), times in tried.items():
            if left in good and right in good:
                gap = good.index(left), good.index(right)
                wide = math.dist(placed[gap[0]], placed[gap[1]]) > _WIDE * usual
                if times >= (len(_PARTS) if wide else 1):
                    found.add(gap)
        return found

    def lies_between(self, n: int, left: Result, right: Result) -> bool:
        """Whether the point of a ray divides the gap between two others."""
        found = self.search.kept.get(n)
        if found is None or not found.converged:
            return False
        three = torch.stack([run.objectives for run in (found, left, right)]).numpy()
        return divides(*self.scale.place(three).tolist())

    def is_new(self, n: int) -> bool:
        """Whether the point of a ray is on the front, and at none of the others."""
        found = self.search.kept.get(n)
        if found is None or not found.converged:
            return False
        good = [k for k, run in self.search.kept.items() if run.converged]
        placed, own = self.place(good), good.index(n)
        apart = min(math.dist(row, placed[own]) for k, row in enumerate(placed) if k != own)
        return apart > _NEW and own in front_line(placed)
