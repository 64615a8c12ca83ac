"""Tables with gaps at several hospitals: does the way they are filled in matter, alone and together?

For each seed every hospital sets rows aside for testing, an imputer fits on its other rows (labels unseen)
and fills in both parts, at that hospital. Then the product trains its MLP on each hospital's rows alone
(``site.local_baseline``) and on all of them by federated averaging (``simulation``), for the same number of
steps, and each model is asked about each hospital's test rows. ``none`` is the reader's own form: a gap in
the middle of its range, and a mark that it was one. ``federated`` is one imputer for all: each hospital fits
the deep factorisation (depth 2) to its rows about its own means, in units that all share, and second moments
are averaged (``theory_modules.imputation.averaged``); a column it never measured takes the others' mean.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instahide.errors import InvalidInputError
from instahide.evaluation import evaluate
from instahide.models import ImageClassifier
from instahide.readers.limits import Limits
from instahide.readers.table_form import form_of
from instahide.readers.tabular import Table, read_table_of_numbers
from instahide.training_device import at_most_threads
from theory_modules.imputation import DeepMatrixFactorizationImputer, averaged, shared_scaling
from theory_modules.imputation_comparison import (
    METHODS,
    FloatArray,
    ImputationError,
    hide_entries,
    imputer,
    in_words,
    paired_interval,
)

from .config import RunConfig
from .messages import RoundRequest
from .simulation import simulate
from .site.dataset import SiteData
from .site.local_baseline import train_local
from .site.weights import load_weights

NONE, FEDERATED, POOLED = "none", "federated", "pooled"
STUDY_METHODS = (NONE, *METHODS, FEDERATED)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """``num_rounds`` × ``local_epochs`` passes over the rows; the share of rows to test on."""

    num_rounds: int = 10
    local_epochs: int = 2
    learning_rate: float = 0.05
    batch_size: int = 32
    test_fraction: float = 0.3

    def run_config(self, num_sites: int) -> RunConfig:
        """The run that every method is tried with."""
        return RunConfig(
            run_name="table-study",
            model="mlp",
            encoding="none",
            evaluate=False,
            num_server_rounds=self.num_rounds,
            local_epochs=self.local_epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            minimum_sites=num_sites,
            settle_time=0.0,
        )


@dataclass(frozen=True)
class MethodResult:
    """Test accuracy of one method: hospital → a value a seed; ``overall`` counts every test row once."""

    method: str
    alone: dict[str, list[float]]
    federated: dict[str, list[float]]
    alone_overall: list[float]
    federated_overall: list[float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StudyResult:
    """All methods; ``majority``: the accuracy of each hospital's more frequent class, every test row once."""

    settings: StudySettings
    methods: list[MethodResult]
    majority: list[float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "majority": self.majority,
            "methods": [method.to_dict() for method in self.methods],
        }

    def lines(self) -> list[str]:
        """Accuracies, and each method less the mean's, paired by seed with Student's 95 % interval."""
        base = next((m for m in self.methods if m.method == "mean"), self.methods[0])
        lines = [f"always the hospital's more frequent class: {np.mean(self.majority):.3f}"]
        for method in self.methods:
            line = f"{method.method:12s}"
            for name in ("alone", "federated"):
                mine, theirs = getattr(method, f"{name}_overall"), getattr(base, f"{name}_overall")
                line += f"  {name} {np.mean(mine):.3f}"
                if method is not base:
                    line += f", minus mean {in_words(paired_interval(np.subtract(mine, theirs)))}"
            lines.append(line)
        return lines


def read_hospitals(folder: Path) -> dict[str, Table]:
    """Every table of numbers in ``folder`` whose form is known, by its file's name.

    Raises InvalidInputError where there are fewer than two, or their columns differ.
    """
    if not folder.is_dir():
        raise InvalidInputError(
            f"{folder} is no folder", hint="give the folder that holds the hospitals' tables"
        )
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".csv", ".tsv", ".data")]
    tables = {
        file.stem.removeprefix("processed."): read_table_of_numbers(file)
        for file in files
        if form_of(file, Limits()) is not None
    }
    if len(tables) < 2 or len(_forms(tables)) != 1:
        raise InvalidInputError(
            f"{folder} holds {len(tables)} tables of {len(_forms(tables))} forms",
            hint="give two hospitals or more with the same columns; columns.toml says what they are",
        )
    return tables


def _forms(tables: Mapping[str, Table]) -> set[tuple[Any, ...]]:
    return {(table.form.columns, table.form.class_names) for table in tables.values()}


def run_study(
    tables: Mapping[str, Table],
    *,
    methods: Sequence[str] = STUDY_METHODS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    settings: StudySettings | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Every method with every seed. Progress is told (trainings done, trainings in all)."""
    settings = settings or StudySettings()
    results = [
        MethodResult(method, {name: [] for name in tables}, {name: [] for name in tables}, [], [])
        for method in methods
    ]
    majority = []
    with _quiet(), at_most_threads(1):
        for number, seed in enumerate(seeds):
            parts = {name: _split(table, settings.test_fraction, seed) for name, table in tables.items()}
            majority.append(_majority(parts))
            for done, result in enumerate(results):
                sites = _sites(parts, result.method, seed)
                _train_and_ask(sites, settings, seed, result)
                if progress is not None:
                    progress(number * len(results) + done + 1, len(seeds) * len(results))
    return StudyResult(settings, results, majority)


def _split(table: Table, test_fraction: float, seed: int) -> tuple[Table, Table]:
    """(training, test) rows, at random."""
    order = np.random.default_rng(seed).permutation(len(table))
    num_test = max(1, round(test_fraction * len(table)))
    return table.rows(order[num_test:]), table.rows(order[:num_test])


def _sites(parts: Mapping[str, tuple[Table, Table]], method: str, seed: int) -> dict[str, SiteData]:
    """Each hospital's data with its gaps filled in."""
    if method == NONE:
        return {name: SiteData(*(part.to_images() for part in both)) for name, both in parts.items()}
    imputers = fitted_imputers({name: training.values for name, (training, _) in parts.items()}, method, seed)
    sites = {}
    for name, both in parts.items():
        chosen = imputers[name]
        empty = ~np.asarray(getattr(chosen, "observed_columns_", ~both[0].gaps.all(axis=0)))
        training, test = (
            part.completed(_in_range(chosen.transform(part.values), empty, part)) for part in both
        )
        sites[name] = SiteData(training.to_images(), test.to_images())
    return sites


def fitted_imputers(tables: Mapping[str, FloatArray], method: str, seed: int) -> dict[str, Any]:
    """An imputer for each hospital: its own, or with ``federated`` one that all made together."""
    if method != FEDERATED:
        return {name: imputer(method, seed).fit(values) for name, values in tables.items()}
    shared_means = shared_scaling(list(tables.values()))[0]
    centres = {
        name: np.where(np.isfinite(values).any(axis=0), shared_scaling([values])[0], shared_means)
        for name, values in tables.items()
    }
    scaling = shared_scaling([values - centres[name] for name, values in tables.items()])
    own = [
        DeepMatrixFactorizationImputer(2, scaling=scaling, random_state=seed).fit(values - centres[name])
        for name, values in tables.items()
    ]
    together = averaged(own)
    return {name: _Centred(together, centre) for name, centre in centres.items()}


@dataclass(frozen=True)
class _Centred:
    """An imputer of deviations from a hospital's own means."""

    imputer: DeepMatrixFactorizationImputer
    centre: FloatArray

    @property
    def observed_columns_(self) -> NDArray[np.bool_]:
        return np.asarray(self.imputer.observed_columns_)

    def transform(self, X: FloatArray) -> FloatArray:
        filled: FloatArray = self.imputer.transform(X - self.centre) + self.centre
        return np.where(np.isfinite(X), X, filled)


def imputation_together(
    tables: Mapping[str, FloatArray],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    hidden_fraction: float = 0.2,
    unseen_fraction: float = 0.3,
    progress: Progress | None = None,
) -> dict[str, list[ImputationError]]:
    """Hospital → errors of its own mean, its own factorisation, the federated one and one of pooled rows.

    All on the same hidden entries, in the hospital's own deviations; as ``imputation_errors``.
    """
    methods = ("mean", "depth 2", FEDERATED, POOLED)
    found = {name: [ImputationError(method, [], []) for method in methods] for name in tables}
    with _quiet():
        for number, seed in enumerate(seeds):
            hidings = {
                name: hide_entries(X, seed, hidden_fraction, unseen_fraction) for name, X in tables.items()
            }
            fit_on = {name: given[~unseen] for name, (given, _, unseen) in hidings.items()}
            for place, method in enumerate(methods):
                if method == POOLED:
                    pooled = imputer("depth 2", seed).fit(np.vstack(list(fit_on.values())))
                    imputers = dict.fromkeys(tables, pooled)
                else:
                    imputers = fitted_imputers(fit_on, method, seed)
                for name, (given, hidden, unseen) in hidings.items():
                    filled = imputers[name].transform(given)
                    found[name][place].add(filled, tables[name], hidden, unseen)
            if progress is not None:
                progress(number + 1, len(seeds))
    return found


def _in_range(values: NDArray[np.float64], empty: NDArray[np.bool_], table: Table) -> NDArray[np.float64]:
    """Of a column without an entry to learn from imputers make zeros; it gets the middle of its range."""
    middles = np.array([(column.low + column.high) / 2 for column in table.form.columns])
    filled: NDArray[np.float64] = np.where(empty & table.gaps, middles, values)
    return filled


def _train_and_ask(
    sites: Mapping[str, SiteData], settings: StudySettings, seed: int, result: MethodResult
) -> None:
    config = settings.run_config(len(sites))
    config = RunConfig.from_mapping(config.to_mapping() | {"initialization-seed": seed})
    with TemporaryDirectory(prefix="instahide-study-") as folder:
        together = simulate(config, sites, Path(folder))
    right_alone = right_together = total = 0.0
    for name, data in sites.items():
        own = config.to_mapping() | {
            "class-names": list(data.class_names),
            "image-shape": list(data.training.image_shape),
        }
        request = RoundRequest.for_round(RunConfig.from_mapping(own), 1, {})
        alone = _with_weights(together, train_local(data, request, device="cpu", threads=1).arrays)
        accuracies = [evaluate(model, data.test).plain.accuracy for model in (alone, together)]
        result.alone[name].append(accuracies[0])
        result.federated[name].append(accuracies[1])
        right_alone += accuracies[0] * len(data.test)
        right_together += accuracies[1] * len(data.test)
        total += len(data.test)
    result.alone_overall.append(right_alone / total)
    result.federated_overall.append(right_together / total)


def _with_weights(like: ImageClassifier, arrays: Any) -> ImageClassifier:
    from copy import deepcopy

    model = deepcopy(like)
    load_weights(model, arrays)
    return model.eval()


def _majority(parts: Mapping[str, tuple[Table, Table]]) -> float:
    right = [(test.labels == np.bincount(training.labels).argmax()) for training, test in parts.values()]
    return float(np.concatenate(right).mean())


@contextmanager
def _quiet() -> Iterator[None]:
    """Imputers warn of empty columns, sites of being asked without approval; a study knows both."""
    logger = logging.getLogger("federation")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def draw(errors: Mapping[str, Sequence[ImputationError]], study: StudyResult | None, path: Path) -> None:
    """Left: errors on hidden entries, a group a table. Right: accuracy of each method alone and federated."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for group, table in enumerate(errors.values()):
        for place, error in enumerate(table):
            x = group + (place - (len(table) - 1) / 2) * 0.85 / len(table)
            label = error.method if group == 0 else None
            left.bar(x, np.mean(error.unseen), 0.75 / len(table), color=f"C{place}", label=label)
            left.plot([x] * len(error.unseen), error.unseen, ".", color="black", markersize=2)
    left.set_xticks(range(len(errors)), list(errors))
    left.set_title("error on hidden entries of unseen rows (deviations of a column)")
    left.legend(fontsize=7, ncols=3, loc="lower right")
    if study is not None:
        names = [method.method for method in study.methods]
        for offset, name in ((-0.18, "alone"), (0.18, "federated")):
            values = [getattr(method, f"{name}_overall") for method in study.methods]
            right.bar(np.arange(len(names)) + offset, [np.mean(v) for v in values], 0.34, label=name)
            for x, seeds in enumerate(values):
                right.plot([x + offset] * len(seeds), seeds, ".", color="black", markersize=2)
        right.axhline(float(np.mean(study.majority)), color="grey", linestyle=":", label="majority")
        right.set_xticks(range(len(names)), names, fontsize=7)
        right.set_ylim(0.5, 1.0)
        right.set_title("accuracy on the hospitals' test rows")
        right.legend(fontsize=7)
    figure.savefig(path, format="png", dpi=130)
