"""Bilevel problems whose solutions are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from paretune.moo.bilevel.problem import BilevelProblem
from paretune.moo.test_problems.constrained import rank_deficient
from paretune.moo.test_problems.reference import Array, Weights, positive


@dataclass(frozen=True)
class KnownBilevel:
    """A bilevel problem with its answers.

    Attributes:
        problem: upper objectives and lower level.
        n_objectives: S.
        x0, y0: a start off the solution.
        optimum: p -> the least max_s p_s f_s(x, y) over all x and the y that minimise g(x, ·), for
            positive p.
        solution: p -> the x where it is taken (one of them), of x0's shape.
    """

    problem: BilevelProblem
    n_objectives: int
    x0: Tensor
    y0: Tensor
    optimum: Callable[[Weights], float]
    solution: Callable[[Weights], Array]


def rank_deficient_bilevel() -> KnownBilevel:
    """`rank_deficient` in its bilevel form: x in R, y in R², g = (y1 + y2 − x)²/2.

    g is convex in y with a line of minimisers for each x; the upper level picks among them.
    """
    flat = rank_deficient()

    def optimum(p: Weights) -> float:
        return float((np.array(p) * flat.chebyshev(p)).max())

    return KnownBilevel(
        problem=BilevelProblem(
            upper=lambda x, y: flat.problem.evaluate(torch.cat([x, y])),
            lower=lambda x, y: (y.sum() - x.sum()) ** 2 / 2,
        ),
        n_objectives=2,
        x0=flat.x0[:1],
        y0=flat.x0[1:],
        optimum=optimum,
        solution=lambda p: flat.solution(p)[:1],
    )


def data_weighting(n_features: int = 10, n_classes: int = 4, seed: int = 0) -> KnownBilevel:
    """How much should each of three training sets weigh for three validation sets that conflict?

    g = Σ_n softmax(x)_n L_n(y) with L_n the mean cross-entropy of a linear softmax classifier y on
    training set n; f_s is its mean cross-entropy on validation set s. Each set has labels drawn
    from a classifier of its own, near a common one. Adding a vector to all classes' weights
    changes nothing, so ∇²_yy g is singular everywhere (rank 30 of 40).

    The answers come from a slow way of their own: y*(x) by Newton steps with explicit derivatives,
    x by zooming in on a grid of log-weights (x1 = 0 fixed), to about 1e-7 in x.
    """
    data = _WeightingData(n_features, n_classes, seed)

    def loss(features: Array, labels: Array, x: Tensor, y: Tensor) -> Tensor:
        logits = torch.from_numpy(features).to(y) @ y.reshape(n_features, n_classes)
        return cross_entropy(logits, torch.from_numpy(labels).to(y.device))

    def weighted(n: int, x: Tensor, y: Tensor) -> Tensor:
        return torch.softmax(x, 0)[n] * loss(*data.training[n], x, y)

    @lru_cache
    def best(p: Weights) -> tuple[Array, float]:
        return data.search(np.array(positive(p, 3)))

    return KnownBilevel(
        problem=BilevelProblem(
            upper=[partial(loss, *part) for part in data.validation],
            lower=[partial(weighted, n) for n in range(3)],
        ),
        n_objectives=3,
        x0=torch.zeros(3, dtype=torch.float64),
        y0=torch.zeros(n_features * n_classes, dtype=torch.float64),
        optimum=lambda p: best(p)[1],
        solution=lambda p: best(p)[0],
    )


class _WeightingData:
    """The sets, and y*(x) for many x at once; numpy alone."""

    def __init__(self, n_features: int, n_classes: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.shape = n_features, n_classes
        common = random.normal(size=self.shape)
        teachers = common + random.normal(size=(3, *self.shape))

        def sample(teacher: Array, count: int) -> tuple[Array, Array]:
            features = random.normal(size=(count, n_features))
            scores = features @ teacher + random.gumbel(size=(count, n_classes))
            return features, scores.argmax(-1)

        self.training = [sample(teacher, 80) for teacher in teachers]
        self.validation = [
            sample(0.5 * (teachers[s] + teachers[(s + 1) % 3]), 80) for s in range(3)
        ]

    def losses(self, part: tuple[Array, Array], y: Array) -> Array:
        """Mean cross-entropy for classifiers y of shape (k, features, classes); shape (k,)."""
        features, labels = part
        scores = features @ y
        top = scores.max(-1, keepdims=True)
        logsum = top[..., 0] + np.log(np.exp(scores - top).sum(-1))
        return np.asarray((logsum - scores[:, np.arange(len(labels)), labels]).mean(-1))

    def solve(self, weights: Array, y: Array) -> Array:
        """y*(x) for weights softmax(x) of shape (k, 3), by Newton steps from y."""
        features, classes = self.shape
        shift = np.kron(np.eye(features), np.ones((classes, classes)))  # what changes nothing
        for _ in range(30):
            slope, curvature = np.zeros_like(y), np.zeros((len(y), *shift.shape))
            for n, (inputs, labels) in enumerate(self.training):
                scores = inputs @ y
                odds = np.exp(scores - scores.max(-1, keepdims=True))
                odds /= odds.sum(-1, keepdims=True)
                share = weights[:, n, None, None] / len(inputs)
                slope += share * (inputs.T @ (odds - np.eye(classes)[labels]))
                spread = odds[..., :, None] * (np.eye(classes) - odds[..., None, :])
                outer = (inputs[:, :, None] * inputs[:, None]).reshape(len(inputs), -1)
                block = outer.T @ spread.reshape(len(y), len(inputs), -1)
                block = block.reshape(len(y), features, features, classes, classes)
                curvature += share * block.transpose(0, 1, 3, 2, 4).reshape(curvature.shape)
            flat = slope.reshape(len(y), -1, 1)
            y = y - np.linalg.solve(curvature + shift, flat).reshape(y.shape)
            if np.abs(slope).max() < 1e-13:
                break
        return y

    def search(self, p: Array) -> tuple[Array, float]:
        """x (with x1 = 0) and the least max p∘f."""
        centre, width, y = np.zeros(2), 4.0, np.zeros((1, *self.shape))
        lowest = np.inf
        while width > 1e-8:
            line = np.linspace(-1, 1, 9)
            grid = centre + width * np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
            logits = np.pad(grid, ((0, 0), (1, 0)))
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            solved = self.solve(weights, np.repeat(y, len(grid), 0))
            values = np.stack([self.losses(part, solved) for part in self.validation], -1)
            heights = (p * values).max(-1)
            best = int(heights.argmin())
            lowest, centre, y = (
                min(lowest, float(heights[best])),
                grid[best],
                solved[best : best + 1],
            )
            width *= 0.45
        return np.concatenate([[0.0], centre]), lowest


@dataclass(frozen=True)
class QuadraticBilevel:
    """A bilevel problem with a quadratic lower level, and its hypergradients.

    f_s = c_s + |x − a_s|²/2 + |y − b_s|²/2 and g = yᵀHy/2 − yᵀBx, so that y*(x) = H⁻¹Bx and
    d/dx f_s(x, y*(x)) = x − a_s + Bᵀ H⁻¹ (y*(x) − b_s).

    Attributes:
        problem: with the f_s, and g as a sum of two terms, given as sequences.
        x0, y0: a start off the solution.
    """

    problem: BilevelProblem
    x0: Tensor
    y0: Tensor
    hessian: Tensor
    coupling: Tensor
    upper_x: Tensor
    upper_y: Tensor

    def solve_lower(self, x: Tensor) -> Tensor:
        """y*(x)."""
        found: Tensor = torch.linalg.solve(self.hessian, self.coupling @ x)
        return found

    def hypergradients(self, x: Tensor) -> Tensor:
        """d/dx f_s(x, y*(x)), shape (S, p)."""
        adjoint: Tensor = torch.linalg.solve(self.hessian, (self.solve_lower(x) - self.upper_y).T)
        return x - self.upper_x + (self.coupling.T @ adjoint).T

    def linear_solution(self, weights: Tensor) -> Tensor:
        """The x that minimises Σ w_s f_s(x, y*(x)), for w that sums to 1."""
        response = torch.linalg.solve(self.hessian, self.coupling)
        normal = torch.eye(len(self.x0), dtype=self.x0.dtype) + response.T @ response
        target = weights @ self.upper_x + response.T @ (weights @ self.upper_y)
        found: Tensor = torch.linalg.solve(normal, target)
        return found


def quadratic_bilevel(
    p: int = 3, q: int = 5, n_objectives: int = 2, seed: int = 0
) -> QuadraticBilevel:
    """A random one, with the eigenvalues of H between 0.5 and 2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(q, q))[0]
    hessian = basis @ torch.diag(torch.linspace(0.5, 2, q, dtype=torch.float64)) @ basis.T
    coupling, upper_x, upper_y = normal(q, p), normal(n_objectives, p), normal(n_objectives, q)

    def upper(s: int, x: Tensor, y: Tensor) -> Tensor:
        squares = ((x - upper_x[s]) ** 2).sum() + ((y - upper_y[s]) ** 2).sum()
        return 1 + squares / 2

    return QuadraticBilevel(
        problem=BilevelProblem(
            upper=[partial(upper, s) for s in range(n_objectives)],
            lower=[lambda x, y: y @ hessian @ y / 2, lambda x, y: -(y @ coupling @ x)],
        ),
        x0=normal(p),
        y0=normal(q),
        hessian=hessian,
        coupling=coupling,
        upper_x=upper_x,
        upper_y=upper_y,
    )
