"""`minimize` for bilevel problems: from a name to a method, and the checks of the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.moo.bilevel import METHODS
from paretune.moo.bilevel.equality import BILEVEL_AUGMENTED, EqualityConstrained
from paretune.moo.bilevel.problem import AnyBilevel, StochasticBilevelProblem
from paretune.moo.bilevel.result import BilevelResult
from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
from paretune.moo.numerics.kkt import as_tensor
from paretune.moo.preference import Preference
from paretune.moo.shift import Shift
from paretune.moo.solvers.loop import default_tolerance
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.moo.solvers.wc_penalty import WCPenalty
from paretune.options import load_kind

BilevelName = str


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
    tol: float | None,
    shift: Shift = None,
) -> BilevelResult:
    """What `minimize` does with a bilevel problem."""
    solver = choose_bilevel(problem, method, shift)
    start = read_start(x0)
    tol = default_tolerance(start[1].dtype, 1e-8) if tol is None else tol
    if steps < 0 or not tol >= 0:
        raise InputError(f"steps and tol must be at least 0, got {steps} and {tol}.")
    return solver.run(problem, Preference.of(preference), start, steps, tol)


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
        return EqualityConstrained(replace(BILEVEL_AUGMENTED, shift=shift))
    if method == "wc_penalty":
        return EqualityConstrained(WCPenalty(shift=shift))
    kind = load_kind(METHODS, method, "bilevel method")
    if shift is not None:
        raise InputError(f"Method {method!r} has no shift; it belongs to the 'wc' methods.")
    solver: BilevelSolver = kind()
    return solver


def uses_preference(name: str) -> bool:
    """Whether the preference has a part in a method."""
    return bool(getattr(load_kind(METHODS, name, "bilevel method"), "uses_preference", True))


def read_start(x0: object) -> tuple[Tensor, Tensor]:
    """The pair (x, y) as tensors. Raises InputError."""
    if not isinstance(x0, tuple | list) or len(x0) != 2:
        raise InputError("A bilevel problem starts from a pair: x0=(x, y).")
    x, y = (as_tensor(part).detach() for part in x0)
    for name, part in (("x", x), ("y", y)):
        if not torch.isfinite(part).all():
            raise InputError(f"The start's {name} must be finite.")
    return x, y
