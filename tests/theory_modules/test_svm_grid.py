"""The path of machines against libsvm, the optimality conditions, and another optimiser."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.svm import SVC

from theory_modules import svm_grid
from theory_modules.kernel_input import KernelInputError
from theory_modules.svm_grid import SvmGrid, active_path, fit_svm_grid

DECADES = 10.0 ** np.arange(-2, 5)

needs_c = pytest.mark.skipif(active_path() != "c", reason="no compiler at installation")


def blobs(count: int, num_features: int, num_classes: int, seed: int, spread: float = 1.0):
    """Classes that overlap: features (count, d) and labels, every class present."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    centres = rng.standard_normal((num_classes, num_features))
    return centres[labels] + spread * rng.standard_normal((count, num_features)), labels


def gaussian(x: np.ndarray, z: np.ndarray, gamma: float = 0.3) -> np.ndarray:
    return np.exp(-gamma * np.square(x[:, None] - z[None]).sum(-1))


def dual_objective(K: np.ndarray, signs: np.ndarray, b: np.ndarray) -> float:
    return float(b @ K @ b / 2 - signs @ b)


def pair_of(grid: SvmGrid, a: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of a pair of classes and b (penalties, rows)."""
    rows_a, rows_c = (np.flatnonzero(grid.class_of == k) for k in (a, c))
    b = np.concatenate([grid.coefficients[:, rows_a, c - 1], grid.coefficients[:, rows_c, a]], axis=1)
    return np.concatenate([rows_a, rows_c]), b


def largest_violation(K: np.ndarray, signs: np.ndarray, b: np.ndarray, penalty: float) -> float:
    f = signs - K @ b
    lower, upper = np.minimum(0, signs * penalty), np.maximum(0, signs * penalty)
    assert (b >= lower).all()
    assert (b <= upper).all()
    assert abs(b.sum()) <= 1e-9 * penalty * len(b)
    return float(f[b < upper].max() - f[b > lower].min())


@needs_c
@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(4, 40),
    d=st.integers(1, 8),
    num_classes=st.integers(2, 4),
    seed=st.integers(0, 10**6),
    linear=st.booleans(),
)
def test_every_pair_meets_the_optimality_conditions_at_every_penalty(count, d, num_classes, seed, linear):
    x, y = blobs(count, d, num_classes, seed, spread=2.0)
    K = x @ x.T if linear else gaussian(x, x)
    grid = fit_svm_grid(K, y, DECADES)
    assert grid.converged.all()
    for a, c in itertools.combinations(range(len(grid.classes)), 2):
        rows, b = pair_of(grid, a, c)
        signs = np.where(grid.class_of[rows] == a, 1.0, -1.0)
        for penalty, solution in zip(DECADES, b, strict=True):
            # a thousandth, and what rounding makes of sums of entries up to the penalty
            rounding = 1e-13 * penalty * len(rows) * np.abs(K).max()
            assert largest_violation(K[np.ix_(rows, rows)], signs, solution, penalty) < 1e-3 + rounding


def test_the_optimum_is_that_of_a_general_optimiser():
    x, y = blobs(14, 2, 2, seed=3)
    K, signs = gaussian(x, x), np.where(y == 0, 1.0, -1.0)
    grid = fit_svm_grid(K, y, [0.7], tolerance=1e-8)
    _, b = pair_of(grid, 0, 1)
    order = np.argsort(y, kind="stable")
    general = minimize(
        lambda b: dual_objective(K, signs, b),
        np.zeros(len(y)),
        jac=lambda b: K @ b - signs,
        bounds=[(0, 0.7) if s > 0 else (-0.7, 0) for s in signs],
        constraints={"type": "eq", "fun": np.sum, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert dual_objective(K[np.ix_(order, order)], signs[order], b[0]) == pytest.approx(general.fun, abs=1e-8)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("path", [pytest.param("c", marks=needs_c), "libsvm"])
def test_decisions_and_answers_are_those_of_libsvm(num_classes, path, monkeypatch):
    if path == "libsvm":
        monkeypatch.setattr(svm_grid, "_library", lambda: None)
    x, y = blobs(90, 4, num_classes, seed=num_classes)
    z, _ = blobs(60, 4, num_classes, seed=99)
    names = np.array(["egg", "ant", "fly", "bee", "cow"])[y]
    grid = fit_svm_grid(gaussian(x, x), names, DECADES, tolerance=1e-6)
    decisions, answers = grid.decision_function(gaussian(z, x)), grid.predict(gaussian(z, x))
    for index, penalty in enumerate(DECADES):
        machine = SVC(C=penalty, kernel="precomputed", tol=1e-6, decision_function_shape="ovo")
        machine.fit(gaussian(x, x), names)
        expected = machine.decision_function(gaussian(z, x)).reshape(len(z), -1)
        if num_classes == 2:
            expected = -expected  # positive for the second class there
        # both stop at a violation of 1e-6; at the largest penalty errors add up over 36 to 90 samples
        np.testing.assert_allclose(decisions[index], expected, atol=2e-5)
        sure = (np.abs(expected) > 1e-4).all(axis=1)
        assert (answers[index] == machine.predict(gaussian(z, x)))[sure].all()
        assert sure.mean() > 0.7


@needs_c
def test_a_kernel_of_low_rank_at_a_large_penalty_is_solved_to_the_optimum_libsvm_creeps_towards():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 4))
    y = (x[:, 0] + 1.5 * rng.standard_normal(80) > 0).astype(int)
    K, penalty = x @ x.T, 1e4
    grid = fit_svm_grid(K, y, [penalty], max_steps=20_000)
    assert grid.converged.all()
    rows, b = pair_of(grid, 0, 1)
    signs = np.where(y[rows] == 0, 1.0, -1.0)
    machine = SVC(C=penalty, kernel="precomputed", max_iter=200_000)
    with pytest.warns(match="max_iter"):
        machine.fit(K, y)
    theirs = np.zeros(80)
    theirs[machine.support_] = -machine.dual_coef_[0]
    ours = dual_objective(K[np.ix_(rows, rows)], signs, b[0])
    assert ours < dual_objective(K[np.ix_(rows, rows)], signs, theirs[rows])
    # the primal objective is an upper bound of the optimum's negative: the gap proves both
    w, rest = (
        x[rows].T @ b[0],
        np.maximum(0, 1 - signs * (K[np.ix_(rows, rows)] @ b[0] + grid.intercepts[0, 0])),
    )
    primal = w @ w / 2 + penalty * rest.sum()
    assert primal + ours < 1e-3 * penalty * 80
    assert primal + ours > -1e-6 * primal


def test_a_solution_inside_its_box_serves_all_larger_penalties():
    x, y = blobs(30, 6, 2, seed=1, spread=0.2)
    grid = fit_svm_grid(gaussian(x, x), y, [100.0, 1e3, 1e4])
    assert np.abs(grid.coefficients[0]).max() < 100
    assert (grid.coefficients == grid.coefficients[0]).all()
    assert (grid.predict(gaussian(x, x)) == y).all()


def test_a_tie_of_votes_goes_to_the_lower_class():
    """Three classes on a triangle and a point in its middle: every class has one vote, or none is beaten."""
    angles = np.array([0.0, 2.0, 4.0]) * np.pi / 3
    x = np.repeat(np.stack([np.cos(angles), np.sin(angles)], 1), 3, axis=0)
    y = np.repeat([0, 1, 2], 3)
    grid = fit_svm_grid(x @ x.T, y, [1.0])
    middle = np.zeros((1, 9))
    machine = SVC(C=1.0, kernel="precomputed").fit(x @ x.T, y)
    cyclic = SvmGrid(
        grid.classes, grid.class_of, 0 * grid.coefficients, np.array([[1.0, -1.0, 1.0]]), grid.converged
    )
    assert cyclic.predict(middle)[0, 0] == 0  # 0 beats 1, 2 beats 0, 1 beats 2
    assert (grid.predict(x @ x.T)[0] == machine.predict(x @ x.T)).all()


@pytest.mark.parametrize("labels", [[0, 1, 1, 1, 1], [2, 7, 2, 7, 9], ["b", "a", "b", "a", "a"]])
def test_classes_of_one_sample_and_labels_of_any_kind(labels):
    x = np.arange(10.0).reshape(5, 2) ** 1.5
    K = gaussian(x, x, 0.01)
    grid = fit_svm_grid(K, np.array(labels), [1e4])
    assert grid.predict(K)[0].tolist() == labels


def test_equal_samples_of_different_classes_end():
    x = np.repeat([[0.0, 1.0], [1.0, 0.0]], 6, axis=0)
    y = np.arange(12) % 2
    grid = fit_svm_grid(x @ x.T, y, DECADES)
    assert grid.converged.all()
    assert np.isfinite(grid.decision_function(x @ x.T)).all()


def test_what_is_not_done_within_the_steps_is_said():
    x, y = blobs(60, 3, 2, seed=0, spread=3.0)
    assert not fit_svm_grid(gaussian(x, x), y, [10.0], max_steps=3).converged.any()


def test_a_matrix_that_is_no_kernel_ends_too():
    rng = np.random.default_rng(0)
    K = rng.standard_normal((40, 40))
    grid = fit_svm_grid(K + K.T, np.arange(40) % 2, [1.0, 100.0], max_steps=5_000)
    assert np.isfinite(grid.coefficients).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kernel": np.ones((3, 2))}, "must be square"),
        ({"kernel": np.array([[1.0, 2], [3, 4]])}, "not symmetric"),
        ({"kernel": np.array([[1.0, np.nan], [np.nan, 4]])}, "row 0"),
        ({"labels": [1, 1]}, "one class"),
        ({"labels": [1, 2, 3]}, "labels have shape"),
        ({"labels": [1.0, np.inf]}, "not finite"),
        ({"penalties": [1.0, 1.0]}, "ascending"),
        ({"penalties": [0.0]}, "positive"),
        ({"penalties": []}, "penalties"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
)
def test_impossible_input_is_refused(change, text):
    arguments = {"kernel": np.eye(2), "labels": [0, 1], "penalties": [1.0], **change}
    with pytest.raises(KernelInputError, match=text):
        fit_svm_grid(**arguments)
