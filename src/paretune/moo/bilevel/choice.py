"""`minimize` for bilevel problems: from a name to a method, and the checks of the start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel.equality import EqualityConstrained
from paretune.moo.bilevel.forum import FORUM
from paretune.moo.bilevel.gmoba import GMOBA
from paretune.moo.bilevel.itd import ITD
from paretune.moo.bilevel.moco import MoCo
from paretune.moo.bilevel.moml import MOML
from paretune.moo.bilevel.problem import AnyBilevel, StochasticBilevelProblem
from paretune.moo.bilevel.result import BilevelResult
from paretune.moo.bilevel.soba import SOBA
from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
from paretune.moo.bilevel.wc_soba import WCSOBA
from paretune.moo.numerics.kkt import as_tensor
from paretune.moo.preference import Preference
from paretune.moo.shift import Shift
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.moo.solvers.wc_penalty import WCPenalty

BilevelName = Literal[
    "wc_augmented", "wc_penalty", "moml", "moco", "forum", "gmoba", "itd", "soba", "wc_soba"
]

_METHODS: dict[str, Callable[[], BilevelSolver]] = {
    "moml": MOML,
    "moco": MoCo,
    "forum": FORUM,
    "gmoba": GMOBA,
    "itd": ITD,
    "soba": SOBA,
    "wc_soba": WCSOBA,
}


class BilevelSolver(Protocol):
    """A bilevel method with its options."""

    def run(
        self,
        problem: AnyBilevel,
        preference: Preference,
        start: tuple[Tensor, Tensor],
        steps: int,
        tol: float,
    ) -> BilevelResult: ...


def minimize_bilevel(
    problem: AnyBilevel,
    preference: Preference | Sequence[float],
    method: BilevelName | BilevelSolver | WCAugmented | WCPenalty | None,
    x0: object,
    steps: int,
    tol: float,
    shift: Shift = None,
) -> BilevelResult:
    """What `minimize` does with a bilevel problem."""
    solver = choose_bilevel(problem, method, shift)
    if steps < 0 or not tol >= 0:
        raise InputError(f"steps and tol must be at least 0, got {steps} and {tol}.")
    return solver.run(problem, Preference.of(preference), read_start(x0), steps, tol)


def choose_bilevel(
    problem: AnyBilevel,
    method: BilevelName | BilevelSolver | WCAugmented | WCPenalty | None,
    shift: Shift = None,
) -> BilevelSolver:
    """The method with the given shift, which is refused where it would have no effect."""
    stochastic = isinstance(problem, StochasticBilevelProblem)
    if method is not None and not isinstance(method, str):
        if shift is not None:
            raise InputError("Give shift inside the method, not beside it.")
        return (
            EqualityConstrained(method) if isinstance(method, WCAugmented | WCPenalty) else method
        )
    if method is None or method == "wc_augmented":
        if stochastic:
            return StochasticWCAugmented(shift=shift)
        return EqualityConstrained(WCAugmented(shift=shift))
    if method == "wc_penalty":
        return EqualityConstrained(WCPenalty(shift=shift))
    if method not in _METHODS:
        names = ", ".join(["wc_augmented", "wc_penalty", *_METHODS])
        raise InputError(f"Unknown bilevel method {method!r}; there are {names}.")
    if shift is not None:
        raise InputError(f"Method {method!r} has no shift; it belongs to the 'wc' methods.")
    return _METHODS[method]()


def read_start(x0: object) -> tuple[Tensor, Tensor]:
    """The pair (x, y) as tensors. Raises InputError."""
    if not isinstance(x0, tuple | list) or len(x0) != 2:
        raise InputError("A bilevel problem starts from a pair: x0=(x, y).")
    x, y = (as_tensor(part).detach() for part in x0)
    for name, part in (("x", x), ("y", y)):
        if not torch.isfinite(part).all():
            raise InputError(f"The start's {name} must be finite.")
    return x, y
