"""One cell: one method on one task, for one preference and seed, measured whole.

The losses that a method ends with are its own; they are lower than any true solution where y has
left the lower level's minimisers for the validation sets. So the lower level is solved again, at
the end and along the way, and both are reported.
"""

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from paretune.data_weighting.tasks.task import Task
from paretune.errors import InputError, validation_problem
from paretune.moo.bilevel.choice import BilevelSolver, choose_bilevel, uses_preference
from paretune.moo.bilevel.equality import EqualityConstrained
from paretune.moo.bilevel.polish import polish_lower
from paretune.moo.bilevel.problem import AnyBilevel, StochasticBilevelProblem
from paretune.moo.bilevel.result import BilevelResult
from paretune.moo.preference import Preference
from paretune.moo.solvers.wc_augmented import WCAugmented
from paretune.names import shown
from paretune.options import options_of
from paretune.recipes.data_weighting import WeighRecipe

ANY = "any"  # stands for the preference where it plays no part

_PROBE = 2  # steps, and twice as many, that are run to see what one costs
_POLISH_TOL = 1e-6
_DIVERGED = 1e3  # times the largest loss of the start


@dataclass(frozen=True)
class Cell:
    """What is run: the preference is None where it plays no part."""

    method: str
    preference: Preference | None
    seed: int

    @property
    def name(self) -> str:
        slug = ANY if self.preference is None else self.preference.slug()
        return f"{self.method}-{slug}-seed{self.seed}"

    def folder(self, run: Path) -> Path:
        return run / "cells" / self.name


@dataclass(frozen=True)
class Curve:
    """Columns of equal length, one entry a record, the start included; losses are (T, S).

    `seconds` and `n_gradients` are the method's own, without measuring.
    """

    step: list[int]
    seconds: list[float]
    n_gradients: list[int]
    own: list[list[float]]
    resolved: list[list[float]]
    weights: list[list[float]]


@dataclass(frozen=True)
class CellResult:
    """A cell's outcome; `to_json` is what ``result.json`` holds.

    Attributes:
        status: "done", or "failed" for `reason`; what could not be measured is then empty.
        own: losses where the method stopped, in the order of the objectives.
        resolved: losses after the lower level was solved again from there.
        held_out: the same on test data, after solving again.
        lower_gradient_norm: ‖∇_y g‖ where the method stopped.
        lower_gradient_norm_resolved: and after solving again.
        kkt: the residual ‖K‖ and its four parts; null where unknown.
        weights: of the training sets at the end, in their order.
        steps, n_gradients, seconds: what the method spent.
        converged, message: as in `BilevelResult`.
        warnings: what was warned of, such as a lower level that is not convex.
        curve: the way there.
    """

    method: str
    preference: dict[str, float] | None
    seed: int
    options: dict[str, Any]
    status: Literal["done", "failed"]
    reason: str = ""
    own: tuple[float, ...] = ()
    resolved: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    lower_gradient_norm: float = math.nan
    lower_gradient_norm_resolved: float = math.nan
    kkt: dict[str, float | None] | None = None
    weights: tuple[float, ...] = ()
    steps: int = 0
    n_gradients: int = 0
    seconds: float = 0.0
    converged: bool = False
    message: str = ""
    warnings: tuple[str, ...] = ()
    curve: Curve | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CellResult":
        curve = value["curve"] and Curve(**value["curve"])
        tuples = ("own", "resolved", "held_out", "weights", "warnings")
        return cls(**{**value, **{name: tuple(value[name]) for name in tuples}, "curve": curve})


def cells(recipe: WeighRecipe) -> list[Cell]:
    """The recipe's cells, seed by seed and method by method."""
    return [
        Cell(method, preference, seed)
        for seed in recipe.seeds
        for method in recipe.methods
        for preference in (recipe.points if uses_preference(method) else [None])
    ]


def run_cell(recipe: WeighRecipe, task: Task, cell: Cell) -> CellResult:
    """Run a method and measure it; what goes wrong while it runs is in the result."""
    options = recipe.methods[cell.method]
    preference = cell.preference
    named = None if preference is None else dict(preference)
    failed = CellResult(cell.method, named, cell.seed, options, "failed")
    if preference is None:
        share = 1 / len(task.objectives)
        preference = Preference.of(dict.fromkeys(task.objectives, share))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = _solve(recipe, task, cell, preference)
            done = _measured(recipe, task, result, failed)
        except (InputError, ArithmeticError, RuntimeError) as error:
            done = replace(failed, reason=str(error))
    told = dict.fromkeys(str(warning.message) for warning in caught)
    return replace(done, warnings=tuple(told))


def solver(
    name: str,
    options: Mapping[str, Any],
    problem: AnyBilevel,
    record_every: int = 1,
    seed: int = 0,
    batch: int | None = None,
    source: str = "the recipe",
) -> BilevelSolver:
    """A method with options as a recipe gives them; those that draw get seed and batch size.

    Args:
        source: Where the recipe is from, for messages.

    Raises:
        InputError: an option that the method does not have, or a value that does not fit.
    """
    chosen: Any = choose_bilevel(problem, name)
    wrapped = isinstance(chosen, EqualityConstrained)
    method = chosen.method if wrapped else chosen
    around = {"warm_start"} if isinstance(method, WCAugmented) else set()  # the wrapper's options
    outside = {key: value for key, value in options.items() if key in around}
    outside = _checked(name, outside, EqualityConstrained, source)
    inside = {key: value for key, value in options.items() if key not in around}
    given = _checked(name, inside, type(method), source, around)
    drawing = {"seed": seed, "batch": batch, "objective_batch": batch}
    known = _names(type(method))
    given |= {key: value for key, value in drawing.items() if key in known and value is not None}
    try:
        method = replace(method, **given) if wrapped else method
        changes = {"method": method, **outside} if wrapped else given
        solver: BilevelSolver = replace(chosen, **changes, record_every=record_every)
    except InputError as error:
        raise InputError(f"{source}: methods.{name}: {error}") from None
    return solver


def _solve(recipe: WeighRecipe, task: Task, cell: Cell, preference: Preference) -> BilevelResult:
    """Run as many steps as the budget allows, judged by the first few."""

    def run(steps: int, record_every: int) -> BilevelResult:
        method = solver(
            cell.method,
            recipe.methods[cell.method],
            task.problem,
            record_every=record_every,
            seed=cell.seed,
            batch=getattr(recipe.task, "batch_size", None),
        )
        return method.run(task.problem, preference, task.start, steps, recipe.tolerance)

    # Only line searches make steps differ in cost, and no stochastic method has one.
    probe = 1 if isinstance(task.problem, StochasticBilevelProblem) else _PROBE
    first, second = (run(n, n).n_gradient_evaluations for n in (probe, 2 * probe))
    each = max(1.0, (second - first) / probe)
    steps = max(1, int((recipe.budget - first) / each) + probe)
    if recipe.steps is not None:
        steps = min(steps, recipe.steps)
    return run(steps, max(1, steps // recipe.visits))


def _measured(
    recipe: WeighRecipe, task: Task, result: BilevelResult, failed: CellResult
) -> CellResult:
    """The cell's numbers, with the lower level solved again at the end and along the way."""
    x, y = result.x
    history = result.history
    own = result.objectives
    if not bool(own.isfinite().all()) or float(own.max()) > _DIVERGED * float(
        history.objectives[0].max()
    ):
        return replace(failed, reason=f"The losses grew without bound. {result.message}")
    polished = polish_lower(task.at(x), x, y, recipe.polish_steps, _POLISH_TOL)
    kept = _spread(history.n_gradients, recipe.records)
    resolved = [
        polish_lower(
            task.at(history.x[row]), history.x[row], polished.y, recipe.polish_steps, _POLISH_TOL
        ).objectives.tolist()
        for row in kept[:-1]
    ]
    parts = result.kkt_parts._asdict()
    return replace(
        failed,
        status="done",
        own=tuple(own.tolist()),
        resolved=tuple(polished.objectives.tolist()),
        held_out=tuple(task.held_out(x, polished.y).detach().tolist()),
        lower_gradient_norm=polished.lower_gradient_norm_before,
        lower_gradient_norm_resolved=polished.lower_gradient_norm_after,
        kkt={name: _known(v) for name, v in {"residual": result.kkt_residual, **parts}.items()},
        weights=tuple(task.weights(x)),
        steps=int(history.step[-1]),
        n_gradients=result.n_gradient_evaluations,
        seconds=result.seconds,
        converged=result.converged,
        message=result.message,
        curve=Curve(
            step=history.step[kept].tolist(),
            seconds=history.seconds[kept].tolist(),
            n_gradients=history.n_gradients[kept].tolist(),
            own=history.objectives[kept].tolist(),
            resolved=[*resolved, polished.objectives.tolist()],
            weights=[task.weights(history.x[row]) for row in kept],
        ),
    )


def _spread(cost: Tensor, count: int) -> list[int]:
    """Rows whose costs are about evenly spaced on a logarithmic scale, first and last included."""
    last = len(cost) - 1
    if last < 1:
        return [last]
    marks = torch.logspace(
        math.log10(max(1, int(cost[1]))), math.log10(max(2, int(cost[-1]))), count - 1
    )
    rows = torch.searchsorted(cost.to(marks), marks - 0.5).clamp(1, last).tolist()
    return sorted({0, last, *rows})


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind) if field.init}


def _checked(
    method: str,
    options: Mapping[str, Any],
    kind: Any,
    source: str,
    beside: Collection[str] = (),
) -> dict[str, Any]:
    """Options with values of the right types; those `beside` are known, but checked elsewhere."""
    types = {each.key: each.type for each in options_of(kind) if each.key}
    checked = {}
    for name, value in options.items():
        key = f"methods.{method}.{name}"
        if name not in types:
            names = {*types, *beside}
            nearest = get_close_matches(name, names, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {sorted(names)}."
            raise InputError(f"Unknown key '{key}' in {source}; {hint}")
        adapter = TypeAdapter(types[name], config=ConfigDict(arbitrary_types_allowed=True))
        try:
            checked[name] = adapter.validate_python(value, strict=True)
        except ValidationError as error:
            problem = validation_problem(error.errors()[0])
            raise InputError(f"{source}: '{key}' is {shown(value)}, but {problem}.") from None
    return checked
