"""Mean, SVD and soft-impute against what they must give."""

from __future__ import annotations

import numpy as np
import pytest

from theory_modules.matrix_completion_baselines import mean_fill, soft_impute, svd_mean_fill
from theory_modules.matrix_completion_problems import completion_problem
from theory_modules.nuclear_norm import NuclearNormInputError, complete_by_nuclear_norm


def test_mean_fill_uses_columns_and_falls_back_to_the_overall_mean():
    observed = np.array([[1.0, 9.0, 9.0], [3.0, 5.0, 9.0]])
    mask = np.array([[1, 0, 0], [1, 1, 0]])
    np.testing.assert_allclose(mean_fill(observed, mask), [[1, 5, 3], [3, 5, 3]])


def test_the_svd_keeps_what_is_known_and_has_full_use_of_the_rank():
    truth, mask = completion_problem(20, 2, 300, seed=0)
    filled = svd_mean_fill(truth, mask, rank=2)
    np.testing.assert_array_equal(filled[mask], truth[mask])
    assert np.square(filled - truth).mean() < np.square(mean_fill(truth, mask) - truth).mean()
    np.testing.assert_allclose(svd_mean_fill(truth, np.ones_like(mask), rank=2), truth, atol=1e-12)


def test_soft_impute_meets_its_optimality_conditions():
    """X minimises ½|A(X) − b|² + λ|X|_* iff A*(b − A(X))/λ is a subgradient of |X|_*."""
    truth, mask = completion_problem(15, 2, 140, seed=0)
    level = 0.5
    X = soft_impute(truth, mask, shrinkage=level, max_iter=5000, tolerance=1e-12)
    subgradient = np.where(mask, truth - X, 0) / level
    assert np.linalg.norm(subgradient, 2) <= 1 + 1e-6
    assert (subgradient * X).sum() == pytest.approx(np.linalg.norm(X, "nuc"), rel=1e-6)


def test_soft_impute_tends_to_the_least_nuclear_norm():
    truth, mask = completion_problem(15, 2, 140, seed=0)
    X = soft_impute(truth, mask, shrinkage=1e-4, max_iter=3000, tolerance=1e-9)
    least = complete_by_nuclear_norm(truth, mask).nuclear_norm
    assert np.linalg.norm(X, "nuc") == pytest.approx(least, rel=1e-3)


def test_wrong_input_is_named():
    with pytest.raises(NuclearNormInputError, match="rank is 0"):
        svd_mean_fill(np.ones((2, 2)), np.ones((2, 2)), rank=0)
    with pytest.raises(NuclearNormInputError, match="shrinkage is"):
        soft_impute(np.ones((2, 2)), np.ones((2, 2)), shrinkage=-1.0)
    with pytest.raises(NuclearNormInputError, match="shape"):
        mean_fill(np.ones((2, 2)), np.ones((3, 2)))
