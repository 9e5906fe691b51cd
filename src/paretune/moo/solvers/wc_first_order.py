"""First-order inner solvers of the augmented Lagrangian: heavy ball and Adam."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from paretune.moo.solvers.augmented import AugmentedLagrangian, View
from paretune.moo.solvers.wc_track import Track, projected

_MOMENTUM = 0.9
_ADAM_LR = 0.03
# An inner solve ends when the gradient has shrunk by this factor, or after so many steps.
_INNER_ACCURACY, _INNER_LIMIT = 0.1, 50
_EXPLOSION = 100.0


def run_first_order(
    lagrangian: AugmentedLagrangian,
    track: Track,
    view: View,
    steps: int,
    inner: Literal["heavy_ball", "adam"],
    lr: float | None,
) -> str:
    """Steps on z between updates of the multipliers; why it stopped.

    Without a given lr, heavy ball steps by 1/L, estimated anew at each update. A step that makes
    the gradient explode is taken back to the best point, and the rate is halved.
    """
    z, problem = view.point.z.clone(), lagrangian.problem
    sharpness = _Sharpness(lagrangian) if inner == "heavy_ball" and lr is None else None
    rate = lr or (1 / sharpness.estimate(view, 8) if sharpness else _ADAM_LR)
    if inner == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam([z], lr=rate)
    else:
        optimizer = torch.optim.SGD([z], lr=rate, momentum=_MOMENTUM)
    safety, entered, since = 1.0, math.inf, 0
    for step in range(steps + 1):
        gradient = lagrangian.gradient(view)
        stationarity, done = track.look(view, projected(problem, z, gradient))
        exploded = not stationarity <= _EXPLOSION * entered
        if exploded and track.best is None:
            return "K was not finite at the start."
        if exploded and track.best is not None:
            view, safety, since = track.best.view, safety / 2, 0
            optimizer.state.clear()
            optimizer.param_groups[0]["lr"] /= 2
            z.copy_(view.point.z)
            view = lagrangian.view(view.point)
            continue
        if since == 0:
            entered = stationarity
        finished = stationarity <= _INNER_ACCURACY * entered or since >= _INNER_LIMIT
        if finished or done or step == steps:
            _, parts = lagrangian.certify(view, stationarity)
            track.record(view, parts, f"at step {step}")
        if done:
            return f"Converged after {step} steps: kkt_residual is at most tol."
        if finished and since and step < steps:
            lagrangian.update(view, parts)
            view = lagrangian.view(view.point)
            if sharpness is not None:
                optimizer.param_groups[0]["lr"] = safety / sharpness.estimate(view, 3)
            gradient, since = lagrangian.gradient(view), -1
        z.grad = gradient.reshape(z.shape)
        optimizer.step()
        if problem.bounds is not None:
            z.copy_(problem.project(z))
        view = lagrangian.at(z.clone())
        since += 1
    return f"Stopped after all {steps} steps."


class _Sharpness:
    """The largest eigenvalue of ∇²A, by power iteration on gradient differences."""

    def __init__(self, lagrangian: AugmentedLagrangian) -> None:
        self._lagrangian = lagrangian
        self._direction: Tensor | None = None

    def estimate(self, view: View, iterations: int) -> float:
        z, problem = view.point.z, self._lagrangian.problem
        base = self._lagrangian.gradient(view)
        direction = base if self._direction is None else self._direction
        length = 1e-4 * max(1.0, float(z.norm()))
        largest = 0.0
        for _ in range(iterations):
            size = float(direction.norm())
            if size == 0:
                break
            move = (direction * (length / size)).reshape(z.shape)
            near = self._lagrangian.at(problem.project(z + move))
            if torch.equal(near.point.z, z):
                near = self._lagrangian.at(problem.project(z - move))
            moved = float((near.point.z - z).norm())
            if moved == 0:
                break
            direction = self._lagrangian.gradient(near) - base
            largest = max(largest, float(direction.norm()) / moved)
        self._direction = direction
        return largest or 1.0
