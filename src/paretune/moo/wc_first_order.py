"""First-order inner solvers of the augmented Lagrangian: heavy ball and Adam."""

from __future__ import annotations

import math
from typing import Literal

import torch

from paretune.moo.augmented import AugmentedLagrangian, View
from paretune.moo.wc_augmented import Track, projected

_MOMENTUM = 0.9
_DAMPING = 0.1
# The dual step is halved when ‖h‖ grew from one window of so many steps to the next.
_WINDOW = 50


def run_first_order(
    lagrangian: AugmentedLagrangian,
    track: Track,
    view: View,
    steps: int,
    inner: Literal["heavy_ball", "adam"],
    lr: float | None,
) -> str:
    """One step on z per damped update of the multipliers; why it stopped."""
    z = view.point.z.clone()
    problem = lagrangian.problem
    if lr is None:
        lr = 0.01 if inner == "adam" else 0.5 / _smoothness(lagrangian, view)
    if inner == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam([z], lr=lr)
    else:
        optimizer = torch.optim.SGD([z], lr=lr, momentum=_MOMENTUM)
    damping, previous, current = _DAMPING, math.inf, 0.0
    for step in range(steps + 1):
        gradient = lagrangian.gradient(view)
        parts, done = track.look(view, projected(problem, z, gradient))
        if not math.isfinite(math.hypot(*parts)):
            return (
                f"Stopped at step {step}: K was no longer finite; give a smaller lr. "
                "x is the point of smallest residual."
            )
        track.record(view, parts, f"at step {step}")
        if done:
            return f"Converged after {step} steps: kkt_residual is at most tol."
        if step == steps:
            break
        current = max(current, parts.feasibility)
        if (step + 1) % _WINDOW == 0:
            damping = damping / 2 if current > previous else damping
            previous, current = current, 0.0
        lagrangian.step(view, damping)
        z.grad = gradient.reshape(z.shape)
        optimizer.step()
        if problem.bounds is not None:
            z.copy_(problem.project(z))
        view = lagrangian.at(z.clone())
    return f"Stopped after all {steps} steps."


def _smoothness(lagrangian: AugmentedLagrangian, view: View) -> float:
    """The largest eigenvalue of ∇²A at the start, by power iteration on gradient differences."""
    z, problem = view.point.z, lagrangian.problem
    base = lagrangian.gradient(view)
    direction = base if float(base.norm()) > 0 else torch.ones_like(base)
    length = 1e-4 * max(1.0, float(z.norm()))
    largest = 0.0
    for _ in range(8):
        move = direction * (length / float(direction.norm()))
        near = lagrangian.at(problem.project(z + move.reshape(z.shape)))
        moved = float((near.point.z - z).norm())
        if moved == 0:
            move = -move
            near = lagrangian.at(problem.project(z + move.reshape(z.shape)))
            moved = float((near.point.z - z).norm())
        direction = lagrangian.gradient(near) - base
        size = float(direction.norm())
        if moved == 0 or size == 0:
            break
        largest = max(largest, size / moved)
    return largest or 1.0
