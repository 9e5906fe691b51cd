"""The numbers in docs/methods/clamp-theory.md: what the CLAMP paper's statements give by numbers.

python examples/clamp_theory.py                  # all of them
python examples/clamp_theory.py rate lemma       # some
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from paretune.moo.weightings import Clamp

Array = NDArray[np.float64]

SIZES = (2, 3, 5, 8)
DIMENSION = 20
SMALL = 1e-3  # mu, "sufficiently small" as the proof of Lemma 5.3 asks


def quadratics(size: int, seed: int = 0) -> Array:
    """Minimisers c_m, (M, d), of f_m(θ) = ½ ‖θ − c_m‖², for which L_f = 1."""
    return np.random.default_rng([seed, size]).standard_normal((size, DIMENSION))


def skewed(size: int) -> Array:
    """One objective with twice the weight of the others."""
    weights = np.array([2.0] + [1.0] * (size - 1))
    return weights / weights.sum()


def run(
    centres: Array, p: Array, steps: int, sigma: float, mu: float, seed: int = 0
) -> Iterator[tuple[Array, Array, Array, float]]:
    """CLAMP at the theorem's largest step: g^m (M, d) and g of each step, f, and min ‖∇F λ‖²."""
    random = np.random.default_rng(seed)
    size = len(p)
    alpha = (1 - p.max()) / (2 * p.max())
    theta = np.full(DIMENSION, 2.0)
    weigh = Clamp(mu=mu)
    for _ in range(steps):
        exact = theta - centres
        noise = random.standard_normal((size, DIMENSION)) * sigma / math.sqrt(DIMENSION)
        drawn = exact + noise
        losses = 0.5 * (exact**2).sum(axis=1)
        stationarity = weigh(tensor(exact @ exact.T), tensor(losses), p.tolist()).min_norm
        chosen = weigh(tensor(drawn @ drawn.T), tensor(losses), p.tolist()).weights
        step = np.asarray(chosen) @ drawn
        yield drawn, step, losses, stationarity
        theta = theta - alpha * step


def tensor(values: Array):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(np.ascontiguousarray(values))


def constant(p: Array) -> float:
    """C of Theorem 5.4."""
    return float(4 * p.max() / (p.min() ** 2 * (1 - p.max())) + 2 * len(p) ** 2)


def rate() -> None:
    """Theorem 5.4: the mean of min ‖∇F λ‖² beside the bound, with all its constants."""
    print("| M | p | σ² | T | α | measured mean | bound: 1/T term | C σ² |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        for name, p in (("equal", np.full(size, 1 / size)), ("2 : 1", skewed(size))):
            for sigma in (0.0, 0.1):
                for steps in (100, 1000):
                    taken = list(run(quadratics(size), p, steps, sigma, SMALL))
                    mean = sum(each[3] for each in taken) / steps
                    alpha = (1 - p.max()) / (2 * p.max())
                    fall = float((taken[0][2] - taken[-1][2]).max())
                    factor = 8 * p.max() / (alpha * p.min() ** 2 * steps * (1 - p.max()))
                    noise = constant(p) * sigma**2
                    print(
                        f"| {size} | {name} | {sigma**2:g} | {steps} | {alpha:.3g} | {mean:.3g} | "
                        f"{factor * fall:.3g} | {noise:.3g} |"
                    )


def lemma() -> None:
    """Lemma 5.3 as printed in Section 5, and as Appendix E proves it, step by step."""
    print("| M | μ | as printed: ‖g^m‖² ≤ 2 p_max ⟨g^m, g⟩ | as proved: ‖g‖² ≤ 2 p_max ⟨g^m, g⟩ |")
    print("|---|---|---|---|")
    for size in SIZES:
        p = skewed(size)
        for mu in (0.0, SMALL, 1.0, 100.0):
            printed = proved = count = 0
            for drawn, step, _, _ in run(quadratics(size), p, 200, 0.0, mu):
                right = 2 * p.max() * drawn @ step
                slack = 1e-9 * (1 + step @ step)
                printed += int(((drawn**2).sum(axis=1) <= right + slack).sum())
                proved += int((step @ step <= right + slack).sum())
                count += size
            print(f"| {size} | {mu:g} | {printed / count:.0%} | {proved / count:.0%} |")


# ------------------------------------------------------------------ Appendix E


def losses_of(kind: str) -> tuple[Callable[[Array], Array], float]:
    """g' as a function of u, and L_g, of Appendix E's DPO and IPO."""
    if kind == "DPO":
        return lambda u: -1 / (1 + np.exp(u)), 0.25
    return lambda u: 2 * (u - 1), 2.0


ANSWERS, BETA, RADIUS = 5, 0.1, 3.0
REACH = math.sqrt(2)  # sup ‖∇ log π‖ = ‖e_y − π‖ < √2: K and C_π
CURVATURE = 0.5  # sup of the largest eigenvalue of diag(π) − ππᵀ: L


def printed_constants(kind: str) -> tuple[float, float, float]:
    """C_g; L_f of Proposition E.4 as printed; and with 32 for its 16."""
    _, l_g = losses_of(kind)
    # u = β (θ_w − θ_l) less the reference's: within 2 √2 β radius of it.
    bound = 1.0 if kind == "DPO" else 2 * (1 + 2 * math.sqrt(2) * BETA * RADIUS)
    first = 16 * l_g**2 * BETA**4 * REACH**2 * REACH**2
    second = 8 * BETA**2 * CURVATURE**2 * bound**2
    return bound, math.sqrt(first + second), math.sqrt(2 * first + second)


def measured_smoothness(kind: str, rounds: int = 20) -> float:
    """The largest ‖Δ∇f‖ / ‖Δθ‖ of so many times 10,000 pairs of θ."""
    slope, _ = losses_of(kind)
    random = np.random.default_rng(0)
    largest = 0.0
    pairs = np.eye(ANSWERS)[0] - np.eye(ANSWERS)[1]
    for _ in range(rounds):
        a, b = random.uniform(-RADIUS, RADIUS, (2, 10_000, ANSWERS))
        b = a + 10.0 ** random.uniform(-3, 0, (len(a), 1)) * (b - a)

        # ∇ log π_w − ∇ log π_l = e_w − e_l, and u = β (θ_w − θ_l): the softmax drops out.
        fall = BETA * (slope(BETA * a @ pairs) - slope(BETA * b @ pairs))
        ratio = np.abs(fall) * np.linalg.norm(pairs)
        largest = max(largest, float((ratio / np.linalg.norm(a - b, axis=1)).max()))
    return largest


def smooth() -> None:
    """Proposition E.4 on a softmax over 5 answers: L_f measured and as printed."""
    print("| loss | C_g | L_f printed | with 32 for 16 | largest ‖Δ∇f‖ / ‖Δθ‖ of 200,000 pairs |")
    print("|---|---|---|---|---|")
    for kind in ("DPO", "IPO"):
        bound, printed, doubled = printed_constants(kind)
        largest = measured_smoothness(kind)
        print(f"| {kind} | {bound:.3g} | {printed:.4f} | {doubled:.4f} | {largest:.4f} |")
    v, w = np.array([1.0, 0.0]), np.array([-1.0, 0.0])
    print(
        f"\nStep (e) bounds ‖v − w‖² by ‖v‖² + ‖w‖²: for v = −w = e it is {(v - w) @ (v - w):g}, "
        f"not at most {v @ v + w @ w:g}."
    )
    print(
        f"u = β h of Table 1's IPO (h − 1/(2β))²: at h = 20, β = {BETA}, Table 1 has "
        f"{(20 - 1 / (2 * BETA)) ** 2:g}, Appendix E's (u − 1)² has {(20 * BETA - 1) ** 2:g}."
    )


CHECKS = {"rate": rate, "lemma": lemma, "smooth": smooth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="check", help=", ".join(CHECKS))
    for name in parser.parse_args().checks or CHECKS:
        print(f"\n## {name}\n")
        CHECKS[name]()


if __name__ == "__main__":
    main()
