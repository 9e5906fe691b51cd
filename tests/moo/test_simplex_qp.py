"""The simplex QP against exact rational enumeration, an independent solver, and its properties."""

from fractions import Fraction
from itertools import combinations

import daqp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import paretune.moo.numerics.simplex_qp as simplex_qp_module
from paretune.errors import InputError
from paretune.moo import simplex_qp
from paretune.moo.numerics.simplex_qp import solve_simplex_qp

SIZES = [1, 2, 3, 4, 5, 8, 16]


def gap(P, q, x):
    """The definition, in extended precision."""
    P, q, x = (np.asarray(a, np.longdouble) for a in (P, q, x))
    g = 2 * P @ x + q
    size = x @ np.abs(P) @ x + np.abs(q) @ x
    return float((x @ g - g.min()) / size) if size > 0 else 0.0


def enumerate_supports(P, q, ridge=Fraction(0)):
    """Slow twin: the exact minimiser in rational arithmetic, trying every support.

    A ridge makes the minimiser unique; as it goes to zero, that is the one closest to uniform.
    """
    size = len(q)
    P = [[Fraction(float(v)) + (ridge if i == j else 0) for j, v in enumerate(row)]
         for i, row in enumerate(P)]  # fmt: skip
    q = [Fraction(float(v)) for v in q]
    for count in range(1, size + 1):
        for support in combinations(range(size), count):
            solved = solve_face(P, q, support)
            if solved is None:
                continue
            x, level = solved
            slope = [2 * sum(P[i][j] * x[j] for j in support) + q[i] for i in range(size)]
            if min(x) >= 0 and min(slope) >= level:
                return x
    raise AssertionError("no support is optimal")


def solve_face(P, q, support):
    """Gauss-Jordan on [2P_SS, -1; 1ᵀ, 0] [x; level] = [-q_S; 1]."""
    rows = [[*(2 * P[i][j] for j in support), Fraction(-1), -q[i]] for i in support]
    rows.append([*(Fraction(1) for _ in support), Fraction(0), Fraction(1)])
    for c in range(len(rows)):
        pivot = next((r for r in range(c, len(rows)) if rows[r][c] != 0), None)
        if pivot is None:
            return None
        rows[c], rows[pivot] = rows[pivot], rows[c]
        rows[c] = [v / rows[c][c] for v in rows[c]]
        for r in range(len(rows)):
            if r != c and rows[r][c] != 0:
                rows[r] = [a - rows[r][c] * b for a, b in zip(rows[r], rows[c], strict=True)]
    x = [Fraction(0)] * len(q)
    for i, row in zip(support, rows, strict=False):
        x[i] = row[-1]
    return x, rows[-1][-1]


def problem(family, size, seed):
    """P and q of one of the families that break general solvers."""
    rng = np.random.default_rng(seed)
    G = rng.normal(size=(3 * size, size))
    p = rng.dirichlet(np.ones(size))
    q = np.zeros(size)
    if "clamp" in family:
        G = G * p
        q = -(10.0 ** rng.uniform(-2, 3)) * p * rng.uniform(0.1, 2, size)
    if "rankdef" in family:
        G = rng.normal(size=(3 * size, max(1, size - 2))) @ rng.normal(
            size=(max(1, size - 2), size)
        )
    if "stationary" in family:
        G[:, 0] = -(G[:, 1:] @ p[1:]) / p[0]
    if "antiparallel" in family:
        G = G[:, :1] * rng.choice([-1.0, 1.0], size) * rng.uniform(0.1, 3, size)
    if "spread" in family:
        G = G * 10.0 ** rng.uniform(-2, 2, size)
    if "badscale" in family:
        G = G * 10.0 ** rng.uniform(-6, 3, size)
    if "integer" in family:
        G = rng.integers(-2, 3, size=(rng.integers(1, size + 1), size)).astype(float)
        q = rng.integers(-2, 3, size).astype(float)
    if "float32" in family:
        G = G[:, : min(3, size)] @ rng.normal(size=(min(3, size), size))
        G = (G * 10.0 ** rng.uniform(-2, 2, size)).astype(np.float32).astype(float)
    P = G.T @ G
    if "float32" in family:
        P = P.astype(np.float32).astype(float)
    scale = 1e-12 if "tiny" in family else 1e6 if "huge" in family else 1.0
    return scale * P, scale * q


FAMILIES = [
    "mgda", "clamp", "rankdef", "rankdef_clamp", "stationary", "stationary_clamp", "tiny",
    "tiny_clamp", "huge", "huge_clamp", "antiparallel", "integer", "spread", "badscale",
    "badscale_clamp", "float32_singular", "float32_singular_clamp",
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gap(family, size):
    # Rows 1e9 apart in scale leave an answer stored in float64 a gap of up to about 1e-10.
    limit = 1e-9 if "float32" in family or family in ("badscale", "spread") else 1e-12
    for seed in range(20):
        P, q = problem(family, size, seed)
        solution = simplex_qp(P, q)
        assert solution.x.min() >= 0
        assert solution.x.sum() == pytest.approx(1, abs=1e-14)
        assert gap(P, q, solution.x) <= limit
        assert solution.gap <= 1e-12
        assert solution.value == pytest.approx(
            solution.x @ P @ solution.x + q @ solution.x, rel=1e-9, abs=1e-15 * np.abs(P).max()
        )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("family", ["mgda", "clamp", "rankdef_clamp", "integer", "spread"])
def test_matches_exact_enumeration(family, size):
    for seed in range(8):
        P, q = problem(family, size, seed)
        ridge = Fraction(1, 10**13) if family == "integer" else Fraction(0)
        exact = [float(v) for v in enumerate_supports(P, q, ridge)]
        np.testing.assert_allclose(simplex_qp(P, q).x, exact, atol=1e-8)


@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_agrees_with_daqp(size):
    for seed in range(20):
        P, q = problem("clamp", size, seed)
        scale = max(np.abs(P).max(), np.abs(q).max())
        A = np.ones((1, size))
        upper, lower = np.ones(size + 1), np.r_[np.zeros(size), 1.0]
        sense = np.zeros(size + 1, dtype=np.int32)
        sense[-1] = 5  # equality
        x, *_ = daqp.solve(2 * P / scale, q / scale, A, upper, lower, sense)
        np.testing.assert_allclose(simplex_qp(P, q).x, x, atol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.data())
def test_degenerate_integers_are_solved_exactly(data):
    size = data.draw(st.integers(1, 4))
    rows = data.draw(st.integers(1, 3))
    entry = st.integers(-2, 2).map(float)
    G = np.array(data.draw(st.lists(entry, min_size=rows * size, max_size=rows * size)))
    q = np.array(data.draw(st.lists(entry, min_size=size, max_size=size)))
    P = G.reshape(rows, size).T @ G.reshape(rows, size)
    solution = simplex_qp(P, q)
    assert gap(P, q, solution.x) <= 1e-14
    exact = [float(v) for v in enumerate_supports(P, q, Fraction(1, 10**13))]
    np.testing.assert_allclose(solution.x, exact, atol=1e-8)  # the tie-break


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["clamp", "stationary", "integer"])
def test_permuting_permutes(family, size):
    P, q = problem(family, size, 3)
    order = np.random.default_rng(0).permutation(size)
    permuted = simplex_qp(P[np.ix_(order, order)], q[order]).x
    np.testing.assert_allclose(permuted, simplex_qp(P, q).x[order], atol=1e-10)


@pytest.mark.parametrize("factor", [2.0**-60, 2.0**70, 1e-300, 1e290])
def test_scaling_changes_nothing(factor):
    for size in SIZES:
        P, q = problem("clamp", size, 5)
        x = simplex_qp(P, q).x
        np.testing.assert_allclose(simplex_qp(factor * P, factor * q).x, x, rtol=1e-9)
        if np.frexp(factor)[0] == 0.5:
            assert np.array_equal(simplex_qp(factor * P, factor * q).x, x)


@pytest.mark.parametrize("size", SIZES)
def test_ties_go_to_the_middle(size):
    uniform = np.full(size, 1 / size)
    np.testing.assert_allclose(simplex_qp(np.zeros((size, size)), np.zeros(size)).x, uniform)
    np.testing.assert_allclose(
        simplex_qp(np.ones((size, size)), np.ones(size)).x, uniform, atol=1e-9
    )


def test_same_kind_out():
    P, q = problem("clamp", 3, 0)
    from_numpy = simplex_qp(P, q).x
    from_torch = simplex_qp(torch.tensor(P, requires_grad=True), torch.tensor(q)).x
    assert isinstance(from_numpy, np.ndarray)
    assert from_torch.dtype == torch.float64
    assert np.array_equal(from_numpy, from_torch.numpy())


@pytest.mark.parametrize(
    ("P", "q", "message"),
    [
        ([[1, 0], [0, np.nan]], [0, 0], r"P\[1, 1\] is nan"),
        ([[1, 0], [0, 1]], [0, np.inf], r"q\[1\] is inf"),
        ([[1, 0.5], [0, 1]], [0, 0], "not symmetric"),
        ([[1, 2], [2, 1]], [0, 0], "not positive semi-definite"),
        ([[1, 0, 0], [0, -0.1, 0], [0, 0, 1]], [0, 0, 0], "not positive semi-definite"),
        ([[-1.0]], [0], "not positive semi-definite"),
        ([[1, 0]], [0, 0], "shape"),
        ([[1, 0], [0]], [0, 0], "real numbers"),
        (np.eye(17), np.zeros(17), "M <= 16"),
        (np.zeros((0, 0)), [], "1 <= M"),
        (np.eye(2), [0, 0, 0], r"q must have shape \(2,\)"),
        (np.eye(2), [[0, 0]], r"q must have shape \(2,\)"),
    ],
)
def test_bad_input(P, q, message):
    with pytest.raises(InputError, match=message):
        simplex_qp(P, q)


def test_two_objectives_take_a_shorter_way_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    problems = []
    for _ in range(2_000):
        a, c = 10 ** rng.uniform(-8, 8, 2)
        b = rng.choice([rng.uniform(-1, 1), 1, -1, 0, 1 - 1e-12]) * np.sqrt(a * c)
        q = a * rng.normal(size=2) * rng.integers(2)
        problems.append(([[a, b], [b, c]], q.tolist()))
    problems += [([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]), ([[1e-300, 0.0], [0.0, 1.0]], [0.0, 0.0])]
    short = [solve_simplex_qp(P, q) for P, q in problems]
    assert sum(simplex_qp_module._two_at_once(P, q) is not None for P, q in problems) > 1_500
    monkeypatch.setattr(simplex_qp_module, "_two_at_once", lambda P, q: None)
    for (P, q), (x, gap, value) in zip(problems, short, strict=True):
        expected, other, lowest = solve_simplex_qp(P, q)
        assert x == pytest.approx(expected, abs=1e-14)
        assert gap == pytest.approx(other, abs=1e-14)
        assert value == pytest.approx(lowest, rel=1e-12, abs=1e-14 * max(map(abs, P[0] + q)))
