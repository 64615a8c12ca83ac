"""Imputers side by side: how far their guesses are from entries that were known and then hidden.

Of a table (n × d) some rows are set aside. In every row a share of the observed entries is hidden, at random;
an imputer fits on the remaining rows and fills in both parts. Errors are root mean squares over the hidden
entries, in units of each column's deviation in the whole table, so 1 is about what the mean does.

mean, KNN, iterative    scikit-learn's SimpleImputer, KNNImputer (5 neighbours, columns scaled), and
                        IterativeImputer (Bayesian ridge)
soft-impute             Mazumder, Hastie and Tibshirani 2010, penalty chosen on held-out entries; rows it has
                        not seen are completed together with those it has
depth 2, depth 3        ``DeepMatrixFactorizationImputer``

    python -m theory_modules.imputation_comparison       # scikit-learn's breast cancer table, 569 × 30
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .imputation import DeepMatrixFactorizationImputer
from .matrix_completion_baselines import soft_impute

FloatArray = NDArray[np.float64]
METHODS = ("mean", "KNN", "iterative", "soft-impute", "depth 2", "depth 3")
Progress = Callable[[int, int], None]


class SoftImputer:
    """Soft-impute with the penalty chosen on a tenth of the observed entries; columns scaled."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, X: FloatArray) -> Self:
        known = np.isfinite(X)
        counts = np.maximum(known.sum(0), 1)
        self.means = np.where(known, X, 0).sum(0) / counts
        spread = np.sqrt(np.where(known, np.square(X - self.means), 0).sum(0) / counts)
        self.deviations = np.where(spread > 1e-12 * np.abs(self.means), spread, 1.0)
        self.table, Z = X, self._scaled(X)
        held = known & (np.random.default_rng(self.seed).random(X.shape) < 0.1)
        largest = float(np.linalg.norm(Z, 2))
        self.shrinkage = largest
        best = math.inf
        if largest and held.any() and (known & ~held).any():
            for level in np.geomspace(largest / 2, largest / 2000, 14):
                found = self._completed(np.where(held, np.nan, X), float(level))
                error = float(np.square(found - Z)[held].mean())
                if error < best:
                    best, self.shrinkage = error, float(level)
        return self

    def transform(self, X: FloatArray) -> FloatArray:
        """Rows of ``fit`` are recognised; any others are completed together with them."""
        same = X.shape == self.table.shape and np.array_equal(X, self.table, equal_nan=True)
        rows = X if same else np.vstack([self.table, X])
        found = self._completed(rows, self.shrinkage)[-len(X) :] * self.deviations + self.means
        return np.where(np.isfinite(X), X, found)

    def _scaled(self, X: FloatArray) -> FloatArray:
        return np.where(np.isfinite(X), (X - self.means) / self.deviations, 0.0)

    def _completed(self, X: FloatArray, level: float) -> FloatArray:
        if not level:
            return np.zeros_like(X)
        return soft_impute(self._scaled(X), np.isfinite(X), shrinkage=level, num_levels=4, tolerance=1e-4)


class ScaledKNN:
    """scikit-learn's KNNImputer on scaled columns; a column with nothing observed gets zeros."""

    def fit(self, X: FloatArray) -> Self:
        from sklearn.impute import KNNImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.pipeline = make_pipeline(StandardScaler(), KNNImputer(keep_empty_features=True))
        self.pipeline.fit(X)
        return self

    def transform(self, X: FloatArray) -> FloatArray:
        scaler = self.pipeline[0]
        scale, mean = np.nan_to_num(scaler.scale_, nan=1.0), np.nan_to_num(scaler.mean_)
        filled: FloatArray = self.pipeline.transform(X) * scale + mean
        return np.where(np.isfinite(X), X, filled)


def imputer(method: str, seed: int = 0) -> Any:
    """A fresh imputer with ``fit`` and ``transform``; all columns are kept, empty ones as zeros.

    Raises ValueError for a name not in ``METHODS``.
    """
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401  (what makes the next line work)
    from sklearn.impute import IterativeImputer, SimpleImputer

    makers: dict[str, Callable[[], Any]] = {
        "mean": lambda: SimpleImputer(keep_empty_features=True),
        "KNN": ScaledKNN,
        "iterative": lambda: IterativeImputer(max_iter=25, random_state=seed, keep_empty_features=True),
        "soft-impute": lambda: SoftImputer(seed),
        "depth 2": lambda: DeepMatrixFactorizationImputer(2, random_state=seed),
        "depth 3": lambda: DeepMatrixFactorizationImputer(3, random_state=seed),
    }
    if method not in makers:
        raise ValueError(f"no method {method!r}; choose from {', '.join(METHODS)}")
    return makers[method]()


@dataclass(frozen=True)
class ImputationError:
    """Root mean square errors of a method on hidden entries, a value a seed: rows of ``fit``, and others."""

    method: str
    seen: list[float]
    unseen: list[float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def add(
        self, filled: FloatArray, X: FloatArray, hidden: NDArray[np.bool_], unseen: NDArray[np.bool_]
    ) -> None:
        """One seed's errors: ``filled`` against ``X`` where ``hidden``, by rows of ``fit`` and others."""
        wrong = (filled - X) / _deviations(X)
        for rows, errors in ((~unseen, self.seen), (unseen, self.unseen)):
            part = wrong[rows][hidden[rows]]
            errors.append(float(np.sqrt(np.square(part).mean())) if part.size else math.nan)

    def minus(self, other: ImputationError) -> tuple[float, float, float]:
        """(mean, low, high) of ``unseen`` less the other's, paired by seed, Student's 95 % interval."""
        return paired_interval(np.subtract(self.unseen, other.unseen))


def paired_interval(differences: FloatArray) -> tuple[float, float, float]:
    """(mean, low, high), Student's 95 % interval; infinite with one value."""
    from scipy.stats import t

    mean, S = float(np.mean(differences)), len(differences)
    if S < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.975, S - 1) * np.std(differences, ddof=1) / math.sqrt(S))
    return mean, mean - half, mean + half


def in_words(interval: tuple[float, float, float]) -> str:
    """Mean and 95 % interval; one value has none."""
    mean, low, high = interval
    return f"{mean:+.3f}" + ("" if math.isinf(low) else f" (95 % {low:+.3f} to {high:+.3f})")


def imputation_errors(
    X: FloatArray,
    *,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    hidden_fraction: float = 0.2,
    unseen_fraction: float = 0.3,
    progress: Progress | None = None,
) -> list[ImputationError]:
    """Every method on the same hidden entries of ``X`` (n, d), NaN where missing.

    Raises ValueError where a share is not in (0, 1) or the table has too little to hide.
    """
    found: dict[str, ImputationError] = {method: ImputationError(method, [], []) for method in methods}
    for number, seed in enumerate(seeds):
        given, hidden, unseen = hide_entries(X, seed, hidden_fraction, unseen_fraction)
        for done, method in enumerate(methods):
            found[method].add(_filled(method, given, unseen, seed), X, hidden, unseen)
            if progress is not None:
                progress(number * len(methods) + done + 1, len(seeds) * len(methods))
    return list(found.values())


def hide_entries(
    X: FloatArray, seed: int, hidden_fraction: float, unseen_fraction: float
) -> tuple[FloatArray, NDArray[np.bool_], NDArray[np.bool_]]:
    """(given, hidden, unseen): ``X`` (n, d) with entries hidden; which; and which rows (n,) are set aside.

    Raises ValueError where a share is not in (0, 1) or there are fewer than four rows.
    """
    if not 0 < hidden_fraction < 1 or not 0 < unseen_fraction < 1 or len(X) < 4:
        raise ValueError(
            f"hidden_fraction {hidden_fraction} and unseen_fraction {unseen_fraction} of {len(X)} rows: give "
            "shares between 0 and 1 of at least four rows"
        )
    rng = np.random.default_rng(seed)
    hidden = np.isfinite(X) & (rng.random(X.shape) < hidden_fraction)
    unseen = rng.permutation(len(X)) < max(1, round(unseen_fraction * len(X)))
    return np.where(hidden, np.nan, X), hidden, unseen


def _filled(method: str, given: FloatArray, unseen: NDArray[np.bool_], seed: int) -> FloatArray:
    chosen = imputer(method, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns without entries, and rounds that did not settle
        chosen.fit(given[~unseen])
        filled = np.empty_like(given)
        filled[~unseen] = chosen.transform(given[~unseen])
        filled[unseen] = chosen.transform(given[unseen])
    return filled


def _deviations(X: FloatArray) -> FloatArray:
    known = np.isfinite(X)
    counts = np.maximum(known.sum(0), 1)
    means = np.where(known, X, 0).sum(0) / counts
    spread: FloatArray = np.sqrt(np.where(known, np.square(X - means), 0).sum(0) / counts)
    return np.where(spread > 0, spread, 1.0)


def lines(errors: Sequence[ImputationError]) -> list[str]:
    """A line a method, and what it gains over the first one."""
    shown = []
    for error in errors:
        seen, unseen = np.mean(error.seen), np.mean(error.unseen)
        line = f"{error.method:12s} rows of fit {seen:.3f}, other rows {unseen:.3f}"
        if error is not errors[0]:
            line += f"; minus {errors[0].method} {in_words(error.minus(errors[0]))}"
        shown.append(line)
    return shown


def draw(errors: dict[str, Sequence[ImputationError]], path: Path) -> None:
    """Errors on unseen rows: a group of bars a table, a bar a method, a dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 2.2 * len(errors), 3.6), layout="constrained")
    axes = figure.subplots()
    for group, table in enumerate(errors.values()):
        for place, error in enumerate(table):
            x = group + (place - (len(table) - 1) / 2) * 0.13
            label = error.method if group == 0 else None
            axes.bar(x, np.mean(error.unseen), 0.11, color=f"C{place}", label=label)
            axes.plot([x] * len(error.unseen), error.unseen, ".", color="black", markersize=3)
    axes.set_xticks(range(len(errors)), list(errors))
    axes.set_ylabel("error on hidden entries\n(deviations of a column)")
    axes.legend(fontsize=7, ncols=3)
    figure.savefig(path, format="png", dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    from importlib.util import find_spec

    from sklearn.datasets import load_breast_cancer

    parser = argparse.ArgumentParser(
        prog="python -m theory_modules.imputation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("imputation.png"))
    options = parser.parse_args(arguments)
    errors = imputation_errors(load_breast_cancer().data, seeds=range(options.seeds))
    print("\n".join(lines(errors)))
    if find_spec("matplotlib") is not None:
        draw({"breast cancer": errors}, options.out)
        print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
