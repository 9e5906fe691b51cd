"""A task of `paretune weigh` for one seed: a bilevel problem, its start, and its names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from paretune.moo.bilevel.module import ModuleVector
from paretune.moo.bilevel.problem import AnyBilevel


@dataclass(frozen=True)
class Task:
    """What a method is to solve.

    Attributes:
        problem: on (x, y).
        start: x and y to start from; every method and preference starts there.
        objectives: names of the upper objectives.
        sets: names of the training sets that softmax(x) weighs; none where x is something else.
        matched: for training sets that are made for one objective, that objective.
        random: sets that are known to be worthless.
        at: x -> the problem with x held fixed at that value, as cheap in y as can be.
        held_out: (x, y) -> the objectives on test data, shape (S,).
        counts: what the data is made of; can be written as JSON.
    """

    problem: AnyBilevel
    start: tuple[Tensor, Tensor]
    objectives: tuple[str, ...]
    sets: tuple[str, ...]
    matched: dict[str, str]
    random: tuple[str, ...]
    at: Callable[[Tensor], AnyBilevel]
    held_out: Callable[[Tensor, Tensor], Tensor]
    counts: dict[str, object]

    def weights(self, x: Tensor) -> list[float]:
        """The weight of each set at x."""
        return x.detach().double().softmax(0).tolist() if self.sets else []


def network(widths: Sequence[int], activation: type[nn.Module], seed: int) -> ModuleVector:
    """Linear layers of these widths with an activation between them, float64, drawn by seed.

    With ReLU weights are drawn as He et al. (2015) do, so that features are of the inputs' size.
    """
    modules: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for left, right in pairwise(widths):
            linear = nn.Linear(left, right, dtype=torch.float64)
            if activation is nn.ReLU:
                nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            modules += [linear, activation()]
    return ModuleVector(nn.Sequential(*modules[:-1]))
