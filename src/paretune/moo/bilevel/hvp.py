"""Products of a direction with the second derivatives of the lower level, streamed over its terms.

For d in y's shape: (Jᵀd, Hd) with J = ∇²_yx g and H = ∇²_yy g, the gradient in (x, y) of the
directional derivative ⟨∇_y g(x, y), d⟩.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from paretune.errors import InputError, first_line
from paretune.moo.bilevel.problem import BilevelProblem

# What torch says where an operation has no second derivative.
_NO_SECOND = ("derivative for aten::", "is not implemented", "once_differentiable")
_LADDER = 3.0
_RUNGS = 12
# Products between checks of the step of finite differences.
_CHECK_EVERY = 200


def pair_gradient(
    value: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None, keep: bool = False
) -> tuple[Tensor, Tensor]:
    """(∇_x, ∇_y) of a number, or of Σ weight·value; 0 for what it does not depend on.

    The graph is freed unless `keep`.
    """
    if not value.requires_grad:
        return torch.zeros_like(x), torch.zeros_like(y)
    gx, gy = torch.autograd.grad(value, (x, y), weight, retain_graph=keep, materialize_grads=True)
    return gx, gy


def leaves(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y as fresh leaves of a graph."""
    return x.detach().requires_grad_(), y.detach().requires_grad_()


def lower_gradient(problem: BilevelProblem, x: Tensor, y: Tensor) -> tuple[float, Tensor, Tensor]:
    """g, ∇_x g and ∇_y g, one term at a time."""
    total, gx, gy = 0.0, torch.zeros_like(x), torch.zeros_like(y)
    u, w = leaves(x, y)
    for term in problem.lower_terms:
        with torch.enable_grad():
            value = term(u, w)
        dx, dy = pair_gradient(value, u, w)
        total, gx, gy = total + float(value.detach()), gx.add_(dx), gy.add_(dy)
    return total, gx, gy


class HessianProducts:
    """(Jᵀd, Hd), with the mode and the step that were found to work.

    Attributes:
        mode: "double" or "finite_difference"; for hvp="auto" it turns to the latter when needed.
        step: ‖Δy‖ of the finite differences, found by calibration; None before the first.
        n_gradients: what has been spent, in gradients of g. A product costs 2 either way.
    """

    def __init__(self, hvp: str) -> None:
        self.mode = "finite_difference" if hvp == "finite_difference" else "double"
        self.step: float | None = None
        self.n_gradients = 0
        self._may_switch = hvp == "auto"
        self._count = 0

    def __call__(
        self, problem: BilevelProblem, x: Tensor, y: Tensor, d: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Raises InputError where double backward was asked for and torch does not have it."""
        size = float(torch.linalg.vector_norm(d))
        if size == 0:
            return torch.zeros_like(x), torch.zeros_like(y)
        if self.mode == "double":
            try:
                self.n_gradients += 2
                return double_backward(problem, x, y, d)
            except torch.OutOfMemoryError:
                if not self._may_switch:
                    raise
            except (RuntimeError, NotImplementedError) as error:
                if not any(sign in str(error) for sign in _NO_SECOND):
                    raise
                if not self._may_switch:
                    raise InputError(_remedy(error)) from error
            self.mode = "finite_difference"
        unit = d / size
        if not math.isfinite(size):
            return torch.full_like(x, math.nan), torch.full_like(y, math.nan)
        if self._count % _CHECK_EVERY == 0:
            self.calibrate(problem, x, y, unit)
        self._count += 1
        assert self.step is not None  # calibrated
        px, py = self._difference(problem, x, y, unit, self.step)
        return px * size, py * size

    def calibrate(self, problem: BilevelProblem, x: Tensor, y: Tensor, unit: Tensor) -> None:
        """Find the step at which products with neighbouring steps disagree least.

        Rounding makes short steps disagree, curvature of ∇g long ones: computing in bfloat16 wants
        steps 10 to 30 times those of float32. From a guess for y's dtype, or the step in use, the
        steps are tried up and down by factors of 3 until Hd disagrees more. Jᵀd, often a small
        difference of large numbers, may want a longer step than Hd; it gets one as long as Hd
        disagrees at most ten times as much as at its best.
        """
        guess = torch.finfo(y.dtype).eps ** 0.4 * max(1.0, float(y.norm())) ** 0.5
        self.step = start = self.step or guess
        middle = self._difference(problem, x, y, unit, start)
        gaps: dict[float, tuple[float, float]] = {}
        lowest = math.inf
        for direction in (1, -1):
            near, worse = middle, 0
            for rung in range(1, _RUNGS):
                far = self._difference(problem, x, y, unit, start * _LADDER ** (direction * rung))
                gap_x, gap_y = map(_disagreement, near, far)
                gaps[direction * (rung - 0.5)] = gap_y, max(gap_x, gap_y)
                worse = worse + 1 if gap_y >= lowest else 0
                if worse == 2:
                    break
                near, lowest = far, min(lowest, gap_y)
        best = min(gaps, key=gaps.__getitem__)
        longer = [k for k in gaps if k >= best and gaps[k][0] <= 10 * gaps[best][0]]
        self.step = start * _LADDER ** min(longer, key=lambda k: gaps[k][1])

    def _difference(
        self, problem: BilevelProblem, x: Tensor, y: Tensor, unit: Tensor, step: float
    ) -> tuple[Tensor, Tensor]:
        self.n_gradients += 2
        return central_difference(problem, x, y, unit, step)


def _disagreement(first: Tensor, second: Tensor) -> float:
    size = max(float(first.norm()), float(second.norm()))
    gap = float((first - second).norm())
    if gap == 0:
        return 0.0
    return gap / size if math.isfinite(size) else math.inf


def double_backward(
    problem: BilevelProblem, x: Tensor, y: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    """(Jᵀd, Hd) by differentiating ⟨∇_y g, d⟩, exact to rounding."""
    px, py = torch.zeros_like(x), torch.zeros_like(y)
    u, w = leaves(x, y)
    for term in problem.lower_terms:
        with torch.enable_grad():
            value = term(u, w)
            if not value.requires_grad:
                continue
            (slope,) = torch.autograd.grad(value, w, create_graph=True, materialize_grads=True)
        dx, dy = pair_gradient(slope, u, w, d)
        px, py = px.add_(dx), py.add_(dy)
    return px, py


def central_difference(
    problem: BilevelProblem, x: Tensor, y: Tensor, unit: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """(Jᵀd, Hd) for a unit d as (∇g(x, y + εd) − ∇g(x, y − εd)) / 2ε.

    Both passes of a term see the same random numbers, so that dropout drops the same units.
    y itself is never written to.
    """
    px, py = torch.zeros_like(x), torch.zeros_like(y)
    for term in problem.lower_terms:
        for sign in (1.0, -1.0):
            u, w = leaves(x, y + sign * step * unit)
            with torch.enable_grad(), _replayed(keep=sign > 0, device=y.device):
                value = term(u, w)
                dx, dy = pair_gradient(value, u, w)
            px, py = px.add_(dx, alpha=sign), py.add_(dy, alpha=sign)
    return px / (2 * step), py / (2 * step)


@contextmanager
def _replayed(keep: bool, device: torch.device) -> Iterator[None]:
    """Put the generators back afterwards if `keep`, so that the next pass draws the same."""
    if not keep:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _remedy(error: Exception) -> str:
    return (
        f"hvp='double' needs second derivatives that torch does not have here "
        f"({first_line(error)}): load the model with attn_implementation='eager', or run "
        "it under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or use "
        "hvp='finite_difference'."
    )
