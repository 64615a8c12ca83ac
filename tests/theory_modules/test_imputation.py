"""The imputer: what it recovers, what it leaves alone, and that scikit-learn takes it for one of its own."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from theory_modules.deep_matrix_factorization import FactorizationInputError
from theory_modules.imputation import (
    DeepMatrixFactorizationImputer,
    averaged,
    conditional_means,
    shared_scaling,
)
from theory_modules.imputation_comparison import (
    METHODS,
    ImputationError,
    draw,
    imputation_errors,
    imputer,
    lines,
    main,
)


def low_rank_table(noise: float, *, n: int = 80, d: int = 8, seed: int = 0) -> np.ndarray:
    """Rank 2 and some noise, columns of very different sizes and places."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((n, 2)) @ rng.standard_normal((2, d))
    return (table + noise * rng.standard_normal((n, d))) * np.logspace(-2, 3, d) + np.linspace(-5, 50, d)


def hide(table: np.ndarray, share: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.random.default_rng(seed).random(table.shape) < share
    return np.where(hidden, np.nan, table), hidden


@pytest.fixture(scope="module")
def fitted() -> tuple[np.ndarray, np.ndarray, np.ndarray, DeepMatrixFactorizationImputer]:
    table = low_rank_table(0.1)
    given, hidden = hide(table, 0.25)
    return table, given, hidden, DeepMatrixFactorizationImputer().fit(given)


def error(found: np.ndarray, table: np.ndarray, hidden: np.ndarray) -> float:
    return float(np.sqrt(np.square((found - table) / table.std(0))[hidden].mean()))


def test_scikit_learn_finds_no_fault():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checks themselves
        check_estimator(DeepMatrixFactorizationImputer(max_steps=20))


def test_hidden_entries_come_back_nearly_to_the_noise(fitted):
    table, given, hidden, model = fitted
    assert error(SimpleImputer().fit_transform(given), table, hidden) > 0.9
    noise = float(np.mean(0.1 * np.logspace(-2, 3, 8) / table.std(0)))
    assert error(model.transform(given), table, hidden) < 2 * noise
    assert error(model.completed_, table, hidden) < 2 * noise


def test_rows_it_has_not_seen_are_filled_in_as_well(fitted):
    model = fitted[-1]
    # The same columns' mixture: the generator draws the factor of the columns after that of the rows.
    rng = np.random.default_rng(0)
    rng.standard_normal((80, 2))
    columns = rng.standard_normal((2, 8))
    more = (np.random.default_rng(9).standard_normal((200, 2)) @ columns) * np.logspace(-2, 3, 8)
    more += np.linspace(-5, 50, 8)
    given, hidden = hide(more, 0.25)
    assert error(model.transform(given), more, hidden) < 0.35
    assert error(np.where(hidden, model.means_, more), more, hidden) > 0.8


def test_what_is_observed_stays_bit_for_bit_and_nothing_stays_missing(fitted):
    _, given, hidden, model = fitted
    filled = model.transform(given)
    assert np.array_equal(filled[~hidden], given[~hidden])
    assert np.isfinite(filled).all()
    assert np.array_equal(model.completed_[~hidden], given[~hidden])


def test_a_row_is_filled_in_without_a_look_at_the_rows_beside_it(fitted):
    _, given, _, model = fitted
    whole = model.transform(given)
    one_by_one = np.vstack([model.transform(row[None]) for row in given[:10]])
    assert np.allclose(whole[:10], one_by_one, rtol=1e-10)
    assert np.allclose(model.fit_transform(given), whole)


def test_units_of_the_columns_are_nothing(fitted):
    _, given, _, model = fitted
    scale, shift = np.logspace(4, -4, 8), np.linspace(100, -100, 8)
    other = DeepMatrixFactorizationImputer().fit_transform(given * scale + shift)
    assert np.allclose(other, model.transform(given) * scale + shift, rtol=1e-6)


def test_in_a_table_of_independent_columns_it_settles_on_the_means():
    table = np.random.default_rng(3).standard_normal((60, 6))
    given, hidden = hide(table, 0.2)
    model = DeepMatrixFactorizationImputer().fit(given)
    means = SimpleImputer().fit_transform(given)
    assert np.abs(model.transform(given) - means)[hidden].max() < 0.5
    assert error(model.transform(given), table, hidden) < 1.02 * error(means, table, hidden)


def test_the_guess_is_the_normal_distributions_conditional_mean():
    """Against the textbook formula with C + ρI for the observed part, row by row, by an explicit inverse."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((5, 5))
    C, noise = factor @ factor.T, 0.3
    known = rng.random((20, 5)) < 0.5
    Z = np.where(known, rng.standard_normal((20, 5)), 0.0)
    found = conditional_means(Z, known, C, noise)
    for row in range(20):
        o = np.flatnonzero(known[row])
        expected = C[:, o] @ np.linalg.inv(C[np.ix_(o, o)] + noise * np.eye(len(o))) @ Z[row, o]
        assert np.allclose(found[row], expected if len(o) else 0.0)


def test_empty_columns_empty_rows_and_constant_columns_are_no_trouble():
    table = low_rank_table(0.1, n=30)
    table[:, 2], table[:, 4], table[7] = np.nan, 3.0, np.nan
    filled = DeepMatrixFactorizationImputer(max_steps=100).fit_transform(table)
    assert np.isfinite(filled).all()
    assert (filled[:, 2] == 0).all()
    assert np.allclose(filled[:, 4], 3.0)
    assert np.allclose(filled[7, 5], np.nanmean(table[:, 5]))


def test_it_stands_in_a_pipeline_and_tells_its_names():
    given, _ = hide(low_rank_table(0.1), 0.2)
    labels = (low_rank_table(0.1)[:, 0] > -5).astype(int)
    pipeline = make_pipeline(DeepMatrixFactorizationImputer(max_steps=200), LogisticRegression(max_iter=2000))
    assert (
        pipeline.fit(given / np.logspace(-2, 3, 8), labels).score(given / np.logspace(-2, 3, 8), labels) > 0.8
    )
    names = pipeline[0].get_feature_names_out(["a", "b", "c", "d", "e", "f", "g", "h"])
    assert names.tolist() == list("abcdefgh")


@pytest.mark.parametrize(
    "wrong", [{"depth": 0}, {"num_folds": 1}, {"initialization_scale": 0.0}, {"check_every": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(FactorizationInputError, match=next(iter(wrong))):
        DeepMatrixFactorizationImputer(**wrong).fit(np.ones((4, 2)))


def test_infinite_entries_are_refused():
    with pytest.raises(ValueError, match="infinity"):
        DeepMatrixFactorizationImputer().fit(np.array([[1.0, np.inf], [2.0, 3.0]]))


@pytest.mark.parametrize("method", METHODS)
def test_every_imputer_keeps_what_it_is_given_and_every_column(method):
    given, _ = hide(low_rank_table(0.3, n=40), 0.2)
    given[:, 3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = imputer(method)
        chosen.fit(given[:30])
        for rows in (given[:30], given[30:]):
            filled = chosen.transform(rows)
            assert filled.shape == rows.shape
            assert np.isfinite(filled).all()
            assert np.allclose(filled[np.isfinite(rows)], rows[np.isfinite(rows)])


def test_errors_are_measured_on_entries_that_were_hidden():
    table = low_rank_table(0.2, n=60)
    found = {e.method: e for e in imputation_errors(table, methods=("mean", "depth 2"), seeds=(0, 1))}
    assert np.mean(found["mean"].unseen) == pytest.approx(1.0, abs=0.25)
    assert max(found["depth 2"].unseen) < 0.6
    assert "minus mean" in lines(list(found.values()))[1]
    mean, low, high = ImputationError("a", [0], [0.3, 0.5]).minus(ImputationError("b", [0], [0.2, 0.2]))
    # Differences 0.1 and 0.3: standard error 0.1; t(0.975, 1) = 12.7062 from a table.
    assert (mean, high - mean, mean - low) == pytest.approx((0.2, 1.27062, 1.27062), rel=1e-5)


def test_errors_are_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    draw({"t": [ImputationError("mean", [1.0], [1.0])]}, tmp_path / "errors")
    assert (tmp_path / "errors").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_module_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--seeds", "1", "--out", str(tmp_path / "i.png")])
    printed = capsys.readouterr().out
    assert all(method in printed for method in METHODS)


def test_scaling_from_sums_is_that_of_the_tables_as_one():
    table, _ = hide(low_rank_table(0.5), 0.2)
    means, deviations = shared_scaling([table[:30], table[30:35], table[35:]])
    assert np.allclose(means, np.nanmean(table, axis=0), rtol=1e-12)
    assert np.allclose(deviations, np.nanstd(table, axis=0), rtol=1e-12)
    alone = DeepMatrixFactorizationImputer(max_steps=0).fit(table)
    assert np.allclose((alone.means_, alone.deviations_), (means, deviations), rtol=1e-12)


def test_small_tables_do_better_together_than_each_alone():
    """Four tables of 15 rows; the mean of their second moments is asked about rows of a fifth."""
    table = low_rank_table(0.1, n=160)
    given, hidden = hide(table, 0.25)
    parts = [given[start : start + 15] for start in (0, 15, 30, 45)]
    scaling = shared_scaling(parts)
    fitted = [DeepMatrixFactorizationImputer(scaling=scaling).fit(part) for part in parts]
    together = error(averaged(fitted).transform(given[60:]), table[60:], hidden[60:])
    alone = [error(one.transform(given[60:]), table[60:], hidden[60:]) for one in fitted]
    assert together < min(alone)


def test_a_column_one_table_lacks_is_learned_from_the_others():
    table = low_rank_table(0.05, n=90)
    lacking = table[:30].copy()
    lacking[:, 5] = np.nan
    parts = [lacking, table[30:60], table[60:]]
    scaling = shared_scaling(parts)
    shared = averaged([DeepMatrixFactorizationImputer(scaling=scaling).fit(part) for part in parts])
    hidden = np.isnan(lacking)
    assert error(shared.transform(lacking), table[:30], hidden) < 0.4
    assert np.linalg.eigvalsh(shared.second_moment_).min() > -1e-12
    assert shared.observed_columns_.all()


def test_imputers_of_different_scalings_are_not_averaged():
    table, _ = hide(low_rank_table(0.1), 0.2)
    fitted = [DeepMatrixFactorizationImputer(max_steps=10).fit(part) for part in (table[:40], table[40:])]
    with pytest.raises(FactorizationInputError, match="one scaling"):
        averaged(fitted)
    with pytest.raises(FactorizationInputError, match="one scaling"):
        averaged([])
