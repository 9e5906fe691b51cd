"""Multi-objective problems on torch tensors, with constraints and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from paretune.errors import InputError

Objective = Callable[[Tensor], Tensor]
Bound = float | Tensor  # lists and numpy arrays become tensors


@dataclass(frozen=True)
class Problem:
    """Objectives to be minimised together, where h(z) = 0, g(z) <= 0 and lower <= z <= upper.

    Attributes:
        objectives: z -> F(z), shape (M,), or a sequence of M functions z -> f_m(z), each a scalar;
            written in torch, differentiable. z has the shape of the start point.
        jacobian: z -> ∇F(z), shape (M, *z.shape), where it is known; otherwise automatic.
        constraints: z -> h(z), shape (q,); None without constraints.
        constraint_vjp: (z, d) -> Σ d_i ∇h_i(z) in the shape of z, for d of shape (q,), where it is
            known; otherwise automatic. ∇h is used only through such products.
        bounds: (lower, upper), numbers or arrays that broadcast to z's shape; ±inf for none.
        inequalities: z -> g(z), shape (r,), where g <= 0 is wanted; None without.
    """

    objectives: Objective | Sequence[Objective]
    jacobian: Objective | None = None
    constraints: Objective | None = None
    constraint_vjp: Callable[[Tensor, Tensor], Tensor] | None = None
    bounds: tuple[Bound, Bound] | None = None
    inequalities: Objective | None = None

    def __post_init__(self) -> None:
        if self.constraint_vjp is not None and self.constraints is None:
            raise InputError("constraint_vjp needs constraints.")
        object.__setattr__(self, "bounds", _checked(self.bounds))

    def at(self, z: Tensor) -> Point:
        """F and h at z, ready for gradients of their combinations."""
        return Point(self, z)

    def evaluate(self, z: Tensor) -> Tensor:
        """F(z), shape (M,). Raises InputError when the objectives return another shape."""
        if callable(self.objectives):
            values = self.objectives(z)
            if not isinstance(values, Tensor) or values.dim() != 1 or values.numel() == 0:
                found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise InputError(f"objectives(z) must be a tensor of shape (M,), got {found}.")
            return values
        if len(self.objectives) == 0:
            raise InputError("A problem needs at least one objective.")
        columns = []
        for m, objective in enumerate(self.objectives):
            value = objective(z)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise InputError(f"objectives[{m}](z) must be a tensor with one number.")
            columns.append(value.reshape(()))
        return torch.stack(columns)

    def constrain(self, z: Tensor) -> Tensor:
        """h(z), shape (q,); q = 0 without constraints. Raises InputError for another shape."""
        return _vector(self.constraints, z, "constraints(z)", "(q,)")

    def exceed(self, z: Tensor) -> Tensor:
        """g(z), shape (r,); r = 0 without inequalities. Raises InputError for another shape."""
        return _vector(self.inequalities, z, "inequalities(z)", "(r,)")

    def project(self, z: Tensor) -> Tensor:
        """The nearest point within the bounds."""
        if self.bounds is None:
            return z
        lower, upper = self.bounds
        if not (isinstance(lower, Tensor) or isinstance(upper, Tensor)):
            return torch.clamp(z, lower, upper)
        lower, upper = (torch.as_tensor(b, dtype=z.dtype, device=z.device) for b in self.bounds)
        return torch.clamp(z, lower, upper)

    def projected(self, z: Tensor, gradient: Tensor) -> Tensor:
        """z − project(z − g) in the shape of z: the gradient, but for what the bounds hold back."""
        if self.bounds is None:
            return gradient
        return z - self.project(z - gradient)

    def within_bounds(self, z: Tensor, gradient: Tensor) -> Tensor:
        """The gradient in the shape of z, with 1 or −1 for an infinite slope that a bound holds
        back, as that of √z at 0: only its sign matters there."""
        if self.bounds is None or bool(gradient.isfinite().all()):
            return gradient
        held = gradient.isinf() & (self.projected(z, gradient) == 0)
        return torch.where(held, gradient.sign(), gradient)


class Point:
    """One z: F(z), h(z) and gradients of their combinations, all from one forward pass.

    Attributes:
        z: the point, detached.
        objectives: F(z), shape (M,), detached.
        constraints: h(z), shape (q,), detached.
        inequalities: g(z), shape (r,), detached.

    Raises InputError for wrong shapes and where something has no gradient.
    """

    def __init__(self, problem: Problem, z: Tensor) -> None:
        self._problem = problem
        self.z = z.detach()
        self._leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            self._values = problem.evaluate(self._leaf if problem.jacobian is None else self.z)
            given = problem.constraint_vjp is not None
            self._residuals = problem.constrain(self.z if given else self._leaf)
            self._excesses = problem.exceed(self._leaf)
        if problem.jacobian is None:
            _check_differentiable(self._values, "objectives", "jacobian")
        if problem.constraints is not None and problem.constraint_vjp is None:
            _check_differentiable(self._residuals, "constraints", "constraint_vjp")
        if problem.inequalities is not None and not self._excesses.requires_grad:
            raise InputError(
                "The inequalities do not depend on z through torch operations, so they have no "
                "gradient."
            )
        self.objectives = self._values.detach()
        self.constraints = self._residuals.detach()
        self.inequalities = self._excesses.detach()

    def combine(
        self,
        weights: Tensor | Sequence[float] | None,
        direction: Tensor | None = None,
        excess: Tensor | None = None,
    ) -> Tensor:
        """∇(Σ w_m f_m + dᵀh + eᵀg) in the shape of z, by one backward pass; None leaves a sum
        out."""
        problem, z = self._problem, self.z
        outputs, cotangents = [], []
        total: Tensor | None = None
        if weights is not None:
            weights = torch.as_tensor(weights, dtype=self._values.dtype, device=self._values.device)
            if problem.jacobian is not None:
                total = (weights @ self._given_jacobian.flatten(1)).reshape(z.shape)
            else:
                outputs.append(self._values)
                cotangents.append(weights)
        if direction is not None and problem.constraints is not None:
            if problem.constraint_vjp is not None:
                product = problem.constraint_vjp(z, direction)
                if product.shape != z.shape:
                    raise InputError(
                        f"constraint_vjp(z, d) must have the shape of z, {tuple(z.shape)}, "
                        f"got {tuple(product.shape)}."
                    )
                total = product if total is None else total + product
            else:
                outputs.append(self._residuals)
                cotangents.append(direction.to(self._residuals))
        if excess is not None and problem.inequalities is not None:
            outputs.append(self._excesses)
            cotangents.append(excess.to(self._excesses))
        if outputs:
            (product,) = torch.autograd.grad(
                outputs, self._leaf, cotangents, retain_graph=True, allow_unused=True
            )
            if product is not None:
                total = product if total is None else total + product
        return torch.zeros_like(z) if total is None else total

    def gradients(self, wanted: Sequence[bool] | None = None) -> Tensor:
        """∇f_m, flattened, shape (M, z.numel()); rows that are not wanted are 0, not computed."""
        count = len(self._values)
        wanted = [True] * count if wanted is None else wanted
        if self._problem.jacobian is not None:
            keep = torch.tensor(wanted, device=self.z.device)[:, None]
            return self._given_jacobian.flatten(1) * keep
        rows, values = [], self._values
        for unit, is_wanted in zip(_units(count, values.dtype, values.device), wanted, strict=True):
            gradient = None
            if is_wanted:
                (gradient,) = torch.autograd.grad(
                    values, self._leaf, unit, retain_graph=True, allow_unused=True
                )
            rows.append(torch.zeros_like(self.z) if gradient is None else gradient)
        return torch.stack(rows).reshape(count, -1)

    def vjp(self, direction: Tensor | None, excess: Tensor | None = None) -> Tensor:
        """Σ d_i ∇h_i + Σ e_j ∇g_j, flattened, shape (z.numel(),)."""
        return self.combine(None, direction, excess).flatten()

    def jvp(self, moved: Tensor) -> Tensor:
        """∇hᵀ m = (∇h_iᵀ m)_i, shape (q,), for m of shape (z.numel(),).

        The derivative of the product Σ d_i ∇h_i with respect to d, where it is automatic;
        otherwise a central difference of h.
        """
        tangent = moved.to(self.z).reshape(self.z.shape)
        if self._problem.constraint_vjp is None:
            dual = torch.zeros_like(self._residuals, requires_grad=True)
            (product,) = torch.autograd.grad(
                self._residuals, self._leaf, dual, create_graph=True, materialize_grads=True
            )
            (jvp,) = torch.autograd.grad(product, dual, tangent, materialize_grads=True)
            return jvp
        size = float(tangent.norm())
        if size == 0:
            return torch.zeros_like(self.constraints)
        step = math.cbrt(torch.finfo(self.z.dtype).eps) * max(1.0, float(self.z.norm())) / size
        with torch.no_grad():
            ahead = self._problem.constrain(self.z + step * tangent)
            behind = self._problem.constrain(self.z - step * tangent)
        return (ahead - behind) / (2 * step)

    @cached_property
    def _given_jacobian(self) -> Tensor:
        assert self._problem.jacobian is not None
        jacobian = self._problem.jacobian(self.z).detach()
        if jacobian.shape != (len(self._values), *self.z.shape):
            raise InputError(
                f"jacobian(z) must have shape {(len(self._values), *self.z.shape)}, "
                f"got {tuple(jacobian.shape)}."
            )
        return jacobian


@dataclass(frozen=True)
class StochasticProblem:
    """Expectations of functions of z and a random batch: f_m(z) = E[f_m(z; ξ)], h = E[h(z; ζ)].

    Attributes:
        objectives: (z, batch) -> F, shape (M,): means over the batch, differentiable in z.
        draw: (size, generator) -> a batch of that many samples, of any type, drawn with that
            torch.Generator.
        full: the batch that stands for the expectation, such as the whole data set; the start is
            checked and results are certified on it.
        constraints: (z, batch) -> h, shape (q,); None without constraints.
        bounds: as in `Problem`.
    """

    objectives: Callable[[Tensor, Any], Tensor]
    draw: Callable[[int, torch.Generator], Any]
    full: Any = field(repr=False)
    constraints: Callable[[Tensor, Any], Tensor] | None = None
    bounds: tuple[Bound, Bound] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounds", _checked(self.bounds))

    def on(self, batch: Any, constraint_batch: Any = None) -> Problem:
        """The problem with the batch held fixed; constraints may have their own."""
        residuals = self.constraints
        other = batch if constraint_batch is None else constraint_batch
        return Problem(
            objectives=lambda z: self.objectives(z, batch),
            constraints=None if residuals is None else lambda z: residuals(z, other),
            bounds=self.bounds,
        )


def check_count(values: Tensor, size: int) -> None:
    """Raise InputError unless there are `size` objectives."""
    if len(values) != size:
        raise InputError(
            f"The problem has {len(values)} objectives, the preference {size} weights."
        )


def check_finite_constraints(start: Point) -> None:
    """Raise InputError unless h and g are finite at the start point."""
    for name in ("constraints", "inequalities"):
        if not bool(torch.isfinite(getattr(start, name)).all()):
            raise InputError(f"The {name} are not finite at x0.")


def check_no_inequalities(problem: Problem | StochasticProblem) -> None:
    """Raise InputError for a problem with inequalities."""
    if isinstance(problem, Problem) and problem.inequalities is not None:
        raise InputError("This method handles no inequalities; use method='wc_augmented'.")


@cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values of constraints that are not there; made once."""
    return torch.zeros(0, dtype=dtype, device=device)


@cache
def _units(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """What asks for the gradient of each objective alone."""
    return torch.eye(count, dtype=dtype, device=device).unbind()


def _checked(bounds: Any) -> tuple[Bound, Bound] | None:
    """Bounds as numbers or tensors, with lower <= upper."""
    if bounds is None:
        return None
    try:
        if len(bounds) != 2:
            raise InputError("bounds must be a pair (lower, upper).")
        lower, upper = (
            bound
            if isinstance(bound, Tensor | float | int)
            else torch.as_tensor(bound, dtype=torch.float64)
            for bound in bounds
        )
        ordered = bool((torch.as_tensor(lower) <= torch.as_tensor(upper)).all())
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"bounds must be numbers or arrays that fit together, ±inf for none, got {bounds}."
        ) from None
    if not ordered:
        raise InputError("bounds must have lower <= upper in every coordinate.")
    return lower, upper


def _vector(function: Objective | None, z: Tensor, name: str, shape: str) -> Tensor:
    if function is None:
        return _nothing(z.dtype, z.device)
    values = function(z)
    if not isinstance(values, Tensor) or values.dim() != 1 or values.numel() == 0:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{name} must be a tensor of shape {shape}, got {found}.")
    return values


def _check_differentiable(values: Tensor, name: str, remedy: str) -> None:
    if not values.requires_grad:
        raise InputError(
            f"The {name} do not depend on z through torch operations, so they have no "
            f"gradient; give Problem(..., {remedy}=...)."
        )
