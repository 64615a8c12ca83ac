"""The certified solver against closed forms, brute force, another method, and its own certificate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from theory_modules.deep_matrix_factorization import DeepMatrixFactorization, effective_rank
from theory_modules.matrix_completion_problems import completion_problem, low_rank_matrix, sensing_problem
from theory_modules.nuclear_norm import (
    NuclearNormInputError,
    NuclearNormResult,
    complete_by_nuclear_norm,
    sense_by_nuclear_norm,
)
from theory_modules.nuclear_norm_shrinkage import ShrunkMatrix


def nuclear(X: np.ndarray) -> float:
    return float(np.linalg.norm(X, "nuc"))


def check_certificate(result: NuclearNormResult, observed: np.ndarray, mask: np.ndarray, gap: float) -> None:
    """Everything a reader needs to believe the result, recomputed here."""
    np.testing.assert_allclose(result.matrix[mask], observed[mask], rtol=0, atol=1e-9)
    assert np.linalg.norm(result.dual_matrix, 2) <= 1 + 1e-12
    assert not result.dual_matrix[~mask].any()
    upper, lower = nuclear(result.matrix), float((result.dual_matrix * np.where(mask, observed, 0)).sum())
    assert upper - lower <= gap + 1e-9
    assert result.duality_gap == pytest.approx(upper - lower, abs=1e-9)
    assert result.converged


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 7), p=st.integers(1, 7), seed=st.integers(0, 10**6), share=st.floats(0.2, 1.0))
def test_every_result_carries_its_proof(n, p, seed, share):
    rng = np.random.default_rng(seed)
    observed, mask = rng.standard_normal((n, p)), rng.random((n, p)) < share
    mask[0, 0] = True
    check_certificate(complete_by_nuclear_norm(observed, mask, gap=1e-6), observed, mask, 1e-6)


@pytest.mark.parametrize(
    ("a", "b", "c"), [(1.0, 2.0, 2.0), (3.0, -1.0, 0.5), (0.2, 1.0, 1.0), (2.0, 0.0, 1.0)]
)
def test_two_by_two_with_one_gap_against_brute_force(a, b, c):
    result = complete_by_nuclear_norm(np.array([[a, b], [c, 0]]), np.array([[1, 1], [1, 0]]), gap=1e-9)
    brute = minimize_scalar(lambda x: nuclear(np.array([[a, b], [c, x]])), bracket=(-3, 3), tol=1e-10)
    assert result.nuclear_norm == pytest.approx(brute.fun, abs=1e-8)


def test_the_two_closed_forms():
    """Diagonal known: |X|_* ≥ tr X = Σ y. Constant row known, rest of the row free: the least norm is the

    row's.
    """
    observed = np.diag([3.0, 2.0, 1.0])
    assert complete_by_nuclear_norm(observed, np.eye(3)).nuclear_norm == pytest.approx(6.0, abs=1e-7)
    row = np.zeros((4, 6))
    row[1, :4] = [1.0, 2.0, -2.0, 4.0]
    result = complete_by_nuclear_norm(row, row != 0)
    assert result.nuclear_norm == pytest.approx(5.0, abs=1e-7)
    np.testing.assert_allclose(result.matrix, row, atol=1e-5)


def test_all_known_gives_the_matrix_back():
    observed = np.random.default_rng(0).standard_normal((5, 7))
    result = complete_by_nuclear_norm(observed, np.ones((5, 7)))
    assert np.array_equal(result.matrix, observed) or np.abs(result.matrix - observed).max() < 1e-12
    assert result.nuclear_norm == pytest.approx(nuclear(observed), rel=1e-12)


@pytest.mark.parametrize("count", [2000, 5000])
def test_the_published_size_is_certified(count):
    truth, mask = completion_problem(100, 5, count, seed=0)
    result = complete_by_nuclear_norm(truth, mask)
    check_certificate(result, truth, mask, 1e-7)
    error = np.square(result.matrix - truth).mean()
    assert error < 1e-15 if count == 5000 else error > 1e-2


def test_it_agrees_with_an_independent_convex_solver():
    cvxpy = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(0)
    observed, mask = rng.standard_normal((8, 6)), rng.random((8, 6)) < 0.5
    X = cvxpy.Variable((8, 6))
    problem = cvxpy.Problem(
        cvxpy.Minimize(cvxpy.normNuc(X)), [X[i] == observed[i] for i in zip(*mask.nonzero(), strict=True)]
    )
    problem.solve(solver="SCS", eps=1e-9)
    assert complete_by_nuclear_norm(observed, mask).nuclear_norm == pytest.approx(problem.value, abs=1e-5)


def test_sensing_recovers_and_is_certified():
    truth, measurements, values = sensing_problem(12, 1, 90, seed=0)
    result = sense_by_nuclear_norm(measurements, values)
    assert result.converged
    np.testing.assert_allclose(np.einsum("mij,ij->m", measurements, result.matrix), values, atol=1e-9)
    np.testing.assert_allclose(result.matrix, truth, atol=1e-5)
    # Sensing by unit matrices is completion.
    observed, mask = completion_problem(6, 2, 20, seed=1)
    units = np.eye(36).reshape(36, 6, 6)[mask.reshape(-1)]
    a, b = sense_by_nuclear_norm(units, observed[mask]), complete_by_nuclear_norm(observed, mask)
    assert a.nuclear_norm == pytest.approx(b.nuclear_norm, abs=2e-7)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), p=st.integers(1, 6), seed=st.integers(0, 10**6), tau=st.floats(0.1, 2.0))
def test_the_derivative_of_shrinkage_is_the_limit_of_differences(n, p, seed, tau):
    rng = np.random.default_rng(seed)
    Z, H = rng.standard_normal((n, p)), rng.standard_normal((n, p))
    if np.abs(np.linalg.svd(Z, compute_uv=False) - tau).min() < 1e-2:
        return  # a kink: no derivative there
    step = 1e-6
    difference = (ShrunkMatrix(Z + step * H, tau).matrix - ShrunkMatrix(Z - step * H, tau).matrix) / (
        2 * step
    )
    np.testing.assert_allclose(ShrunkMatrix(Z, tau).derivative(H), difference, atol=2e-4)


def test_gradient_descent_prefers_low_rank_to_low_nuclear_norm():
    """The evidence against the conjecture: depth 3 ends with larger norm and smaller rank than the convex

    optimum.
    """
    truth, mask = completion_problem(60, 3, 720, seed=0)
    convex = complete_by_nuclear_norm(truth, mask, gap=1e-4)
    deep = DeepMatrixFactorization(3, 1e-4, random_state=0).fit(truth, mask)
    deep_values, convex_values = (np.linalg.svd(X, compute_uv=False) for X in (deep.matrix_, convex.matrix))
    assert deep_values.sum() > convex.nuclear_norm + 1
    assert effective_rank(deep_values) < effective_rank(convex_values) - 1
    assert np.square(deep.matrix_ - truth).mean() < np.square(convex.matrix - truth).mean() / 100


@pytest.mark.parametrize(
    ("observed", "mask", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), "shape"),
        (np.ones((2, 2)), np.zeros((2, 2)), "no entry"),
        (np.full((2, 2), np.inf), np.ones((2, 2)), "not finite"),
    ],
)
def test_wrong_input_is_named(observed, mask, message):
    with pytest.raises(NuclearNormInputError, match=message):
        complete_by_nuclear_norm(observed, mask)


def test_dependent_measurements_and_a_gap_of_zero_are_refused():
    twice = np.stack([np.eye(2), np.eye(2)])
    with pytest.raises(NuclearNormInputError, match="dependent"):
        sense_by_nuclear_norm(twice, np.ones(2))
    with pytest.raises(NuclearNormInputError, match="gap is 0"):
        complete_by_nuclear_norm(np.ones((2, 2)), np.ones((2, 2)), gap=0)


def test_the_problems_have_entries_of_mean_square_one():
    W = low_rank_matrix(30, 2, np.random.default_rng(0))
    assert np.square(W).mean() == pytest.approx(1.0)
    assert np.linalg.matrix_rank(W) == 2
