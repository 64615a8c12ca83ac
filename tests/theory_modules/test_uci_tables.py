"""Reader, protocol, contenders, figures and resume; the fourteen tables at hand are run where they are."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from sklearn.svm import SVC

from theory_modules import svm_grid, uci_run
from theory_modules.uci_contenders import (
    KernelContender,
    contenders,
    gaussian_kernels,
    polynomial_kernels,
    tangent_kernels,
)
from theory_modules.uci_metrics import read_published, summarize
from theory_modules.uci_networks import WideNetwork, network_accuracy
from theory_modules.uci_protocol import TableScore, choose, score
from theory_modules.uci_run import Comparison, compare, sensible_processes
from theory_modules.uci_tables import (
    Split,
    UciTable,
    UciTableError,
    describe,
    inner_split,
    list_tables,
    read_table,
)

DATA = Path(os.environ.get("INSTAHIDE_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))
FOURTEEN = DATA / "tabular" / "uci_kfold"
EXPECTED = {  # accuracy and (L, L', C) of a fit of scikit-learn's SVC a setting, float64 kernels by arccos
    "balloons": (100.00, (2, 0, 1)),
    "breast-cancer-wisc-diag": (96.83, (4, 0, 1)),
    "echocardiogram": (85.61, (3, 2, 1)),
    "ecoli": (86.61, (1, 0, 0.1)),
    "glass": (68.40, (2, 0, 10)),
    "heart-cleveland": (59.54, (2, 0, 0.1)),
    "hepatitis": (82.05, (3, 2, 10)),
    "ionosphere": (94.89, (3, 1, 1)),
    "iris": (97.30, (1, 0, 0.1)),
    "lymphography": (87.16, (3, 1, 1)),
    "primary-tumor": (52.13, (4, 2, 1)),
    "statlog-heart": (88.06, (1, 0, 0.01)),
    "wine": (97.73, (2, 0, 0.1)),
    "zoo": (96.00, (1, 0, 0.1)),
}


def table(rows: int = 60, num_classes: int = 3, seed: int = 0, name: str = "made") -> UciTable:
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % num_classes
    features = rng.standard_normal((rows, 4)) + np.eye(4)[labels]

    def split(share: float) -> Split:
        order = rng.permutation(rows)
        return Split(order[: round(share * rows)], order[round(share * rows) :])

    return UciTable(name, features, labels, split(0.5), tuple(split(0.75) for _ in range(4)))


def write(folder: Path, made: UciTable, **description: object) -> Path:
    """The table as files of the published format."""
    folder.mkdir(parents=True)
    rows = [f"{k + 1}\t" + "\t".join(f"{v:.9g}" for v in x) for k, x in enumerate(made.features)]
    lines = [f"{row}\t{label}" for row, label in zip(rows, made.labels, strict=True)]
    (folder / f"{folder.name}_R.dat").write_text("\n".join(["\tf1\tf2\tf3\tf4\tclase", *lines]) + "\n")
    words = {"fich1": f"{folder.name}_R.dat", "n_patrons1": len(made.labels), **description}
    (folder / f"{folder.name}.txt").write_text("".join(f"{key}= {value}\n" for key, value in words.items()))

    def text(*splits: Split) -> str:
        return "".join(" ".join(map(str, part)) + " \n" for s in splits for part in (s.train, s.test))

    (folder / "conxuntos.dat").write_text(text(made.tuning))
    (folder / "conxuntos_kfold.dat").write_text(text(*made.folds))
    return folder


# ---- reading ----


def test_what_is_written_is_read(tmp_path: Path):
    made = table()
    read = read_table(write(tmp_path / "made", made))
    np.testing.assert_allclose(read.features, made.features, rtol=1e-8)
    assert (read.labels == made.labels).all()
    assert read.name == "made"
    for ours, theirs in zip((read.tuning, *read.folds), (made.tuning, *made.folds), strict=True):
        assert (ours.train == theirs.train).all()
        assert (ours.test == theirs.test).all()


def test_large_tables_and_those_with_a_test_file_are_left_out_with_the_reason(tmp_path: Path):
    for name, words in (
        ("a", {}),
        ("b", {"n_patrons2": 7}),
        ("c", {"n_patrons1": 5001}),
        ("d", {"n_patrons1": 5000}),
    ):
        write(tmp_path / name, table(), **words)
    (tmp_path / "notes").mkdir()
    listing = list_tables(tmp_path)
    assert [path.name for path in listing.tables] == ["a", "d"]
    assert listing.left_out == {"b": "7 rows in a separate test file", "c": "5001 rows, more than 5000"}
    assert describe(listing)[0] == "2 tables"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("t.txt", "n_clases= 2\n", "no number of rows"),
        ("t.txt", "n_patrons1= 59\nfich1= t_R.dat\n", "has 60 rows; t.txt says 59"),
        ("t_R.dat", "header\n1 2\n", "2 columns"),
        ("t_R.dat", "header\n1 x 0\n", "not a table of numbers"),
        ("conxuntos.dat", "0 1\n1 2\n", "both to train and to test"),
        ("conxuntos.dat", "0 0\n1 2\n", "a row twice"),
        ("conxuntos.dat", "0 60\n1 2\n", r"outside 0 \.\. 59"),
        ("conxuntos_kfold.dat", "0\n1\n", "has 2 lines of row numbers; 8 are needed"),
        ("conxuntos_kfold.dat", "a\nb\n", "not lines of row numbers"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file, text, message):
    folder = write(tmp_path / "t", table())
    (folder / file).write_text(text)
    with pytest.raises(UciTableError, match=message):
        read_table(folder)


@pytest.mark.parametrize(("value", "message"), [("nan", "NaN or infinity"), ("0.5", "classes 0, 1")])
def test_values_that_are_none_are_named(tmp_path: Path, value, message):
    folder = write(tmp_path / "t", table())
    lines = (folder / "t_R.dat").read_text().splitlines()
    lines[5] = "\t".join([*lines[5].split("\t")[:-1], value])
    (folder / "t_R.dat").write_text("\n".join(lines))
    with pytest.raises(UciTableError, match=message):
        read_table(folder)


def test_a_missing_file_is_named(tmp_path: Path):
    folder = write(tmp_path / "t", table())
    (folder / "t_R.dat").unlink()
    with pytest.raises(UciTableError, match=r"t_R\.dat"):
        read_table(folder)


def test_inner_halves_share_every_class_evenly():
    labels = np.repeat([0, 1, 2], [11, 6, 1])
    rows = np.arange(18)
    split = inner_split(labels, rows, seed=4)
    assert sorted([*split.train, *split.test]) == rows.tolist()
    counts = [np.bincount(labels[part], minlength=3) for part in (split.train, split.test)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert (inner_split(labels, rows, seed=4).train == split.train).all()
    assert not np.array_equal(inner_split(labels, rows, seed=5).train, split.train)


# ---- contenders ----


def test_kernels_are_those_of_scikit_learn():
    made = table()
    x, z = made.features[:20], made.features
    for (gamma,), K in gaussian_kernels(x, z, [(0.01,), (4.0,)]):
        np.testing.assert_allclose(K, rbf_kernel(x, z, gamma=gamma), atol=1e-12)
    for (degree, scale), K in polynomial_kernels(x, z, [(1.0, 0.1), (3.0, 0.01)]):
        np.testing.assert_allclose(
            K, polynomial_kernel(x, z, degree=int(degree), gamma=scale, coef0=1), rtol=1e-12
        )


def test_tangent_kernels_are_those_of_the_plain_recursion():
    made = table()
    x, z = made.features[:9], made.features
    settings = contenders()["ntk"].kernel_settings
    assert len(settings) == 15
    found = dict(tangent_kernels(x, z, settings))
    for one in ((1.0, 0.0), (4.0, 2.0)):
        np.testing.assert_allclose(
            dict(tangent_kernels(x, z, [one]))[one], found[one], rtol=1e-12, atol=1e-12
        )
    q = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(z, axis=1)
    S, T = x @ z.T, 0 * q
    for layer in range(2, 5):  # L = 4, L' = 2
        c = np.clip(S / q, -1, 1)
        angle = np.arccos(c)
        q = q / 2
        S = q * (np.sin(angle) + c * (np.pi - angle)) / np.pi
        T = T * (np.pi - angle) / np.pi / 2 + (S if layer > 2 else 0)
    np.testing.assert_allclose(found[4.0, 2.0], T, rtol=1e-7)


def plain_accuracy(made: UciTable, split: Split, K: np.ndarray, penalty: float) -> float:
    machine = SVC(C=penalty, kernel="precomputed")
    machine.fit(K[np.ix_(split.train, split.train)], made.labels[split.train])
    return float((machine.predict(K[np.ix_(split.test, split.train)]) == made.labels[split.test]).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_published_protocol_is_a_plain_loop_over_fits(seed):
    made = table(seed=seed)
    contender = contenders()["gaussian"]
    small = replace(contender, kernel_settings=((0.01,), (0.25,)), penalties=(0.1, 1.0, 30.0))
    kernels = {gamma: rbf_kernel(made.features, gamma=gamma) for (gamma,) in small.kernel_settings}
    best, chosen = -1.0, (0.0, 0.0)
    for gamma, K in kernels.items():
        for penalty in small.penalties:
            share = plain_accuracy(made, made.tuning, K, penalty)
            if share > best:
                best, chosen = share, (gamma, penalty)
    found = score(made, small)
    assert found.settings == (chosen,)
    assert found.validation_accuracies == (pytest.approx(100 * best),)
    expected = [100 * plain_accuracy(made, fold, kernels[chosen[0]], chosen[1]) for fold in made.folds]
    assert found.fold_accuracies == pytest.approx(expected)
    assert found.accuracy == pytest.approx(np.mean(expected))


class Remembering:
    """Answers whatever it is told to, and keeps what it was asked."""

    name, setting_names = "remembering", ("number",)

    def __init__(self, shares: list[float]) -> None:
        self.shares, self.asked = shares, []

    def settings(self, made: UciTable) -> list[tuple[float, ...]]:
        return [(float(k),) for k in range(len(self.shares))]

    def accuracies(self, made: UciTable, split: Split, settings: list[tuple[float, ...]]) -> np.ndarray:
        self.asked.append((split, settings))
        return np.array([self.shares[int(number)] for (number,) in settings])


def test_the_first_of_equals_is_chosen():
    made = table()
    assert choose(made, Remembering([0.5, 0.7, 0.7, 0.6]), made.tuning) == ((1.0,), 0.7)


def test_nested_tuning_sees_training_rows_only_and_published_tuning_sees_test_rows():
    made = table()
    contender = Remembering([0.1, 0.2])
    found = score(made, contender, protocol="nested")
    tunings = [split for split, settings in contender.asked if len(settings) == 2]
    scorings = [split for split, settings in contender.asked if len(settings) == 1]
    assert len(tunings) == len(scorings) == len(found.settings) == 4
    for inner, outer in zip(tunings, made.folds, strict=True):
        assert sorted([*inner.train, *inner.test]) == sorted(outer.train)
    assert scorings == list(made.folds)
    overlap = [
        np.intersect1d(np.r_[made.tuning.train, made.tuning.test], fold.test).size for fold in made.folds
    ]
    assert min(overlap) > 0


def test_nothing_of_a_test_row_reaches_what_nested_tuning_chooses():
    made = table(seed=3)
    fold = made.folds[0]
    features, labels = made.features.copy(), made.labels.copy()
    features[fold.test] = 100.0
    labels[fold.test] = 0
    spoiled = replace(made, features=features, labels=labels, folds=(fold,))
    contender = replace(contenders()["ntk"], penalties=(0.01, 1.0, 100.0))
    clean = score(replace(made, folds=(fold,)), contender, protocol="nested")
    assert score(spoiled, contender, protocol="nested").settings == clean.settings


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="published, nested"):
        score(table(), Remembering([1.0]), protocol="mine")


def test_a_training_part_of_one_class_is_answered_with_it():
    made = table(num_classes=2)
    split = Split(np.flatnonzero(made.labels == 1)[:9], np.arange(0, 10))
    contender = contenders()["ntk"]
    assert isinstance(contender, KernelContender)
    assert contender.accuracies(made, split, [(1.0, 0.0, 1.0)]).tolist() == [0.5]


def test_forests_learn_and_are_the_same_every_time():
    made = table(90, seed=2)
    forest = replace(contenders()["random-forest"], num_trees=20)
    assert [setting for (setting,) in forest.settings(made)] == [1.0, 2.0, 4.0]
    shares = forest.accuracies(made, made.tuning, [(2.0,)])
    assert shares == forest.accuracies(made, made.tuning, [(2.0,)])
    assert shares[0] > 0.45  # a third by chance


@pytest.mark.parametrize("parametrization", ["he", "ntk"])
def test_networks_learn_and_are_the_same_every_time(parametrization):
    made = table(90, seed=2)
    settings = {"parametrization": parametrization, "depth": 3, "width": 64}
    settings["learning_rate"] = 0.01 if parametrization == "he" else 0.5
    share = network_accuracy(made, made.tuning, **settings)
    assert share == network_accuracy(made, made.tuning, **settings)
    assert share > 0.45


def test_both_parametrizations_are_the_same_function_and_ntk_has_the_kernels_gradient():
    def network(parametrization: str, width: int = 16) -> WideNetwork:
        generator = torch.Generator().manual_seed(0)
        return WideNetwork(
            4, 1, depth=3, width=width, parametrization=parametrization, generator=generator
        ).double()

    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # weights are drawn in float32; their products with a scale round differently
    torch.testing.assert_close(network("he")(x), network("ntk")(x), rtol=1e-5, atol=1e-6)
    wide = network("ntk", width=1024)
    rows = []
    for point in x:
        wide.zero_grad()
        wide(point[None])[0, 0].backward()
        rows.append(torch.cat([p.grad.flatten() for p in wide.layers]))
    empirical = torch.stack(rows) @ torch.stack(rows).T

    from theory_modules.ntk import fully_connected_ntk

    # the scales multiply the kernel of theory_modules.ntk by (2/d) 2^(L−2), which is 1 for d = 4 and L = 3;
    # an entry's deviation is O(1/√1024) = 3 % of the norm, times a few for the sum over layers; fixed seed
    exact = torch.as_tensor(fully_connected_ntk(x.numpy(), depth=3))
    assert (empirical - exact).norm() < 0.15 * exact.norm()
    with pytest.raises(ValueError, match="he or ntk"):
        network("other")


# ---- figures ----


def test_figures_on_a_table_worked_out_by_hand():
    ours = {"a": {"t1": 90.0, "t2": 50.0, "t3": 80.0}, "b": {"t1": 100.0, "t2": 50.0}}
    others = {"c": {"t1": 94.0, "t2": 40.0, "t3": 100.0}}
    found = summarize(ours, others)
    a, b = found["a"], found["b"]
    assert (a.tables, b.tables) == (3, 2)
    assert a.mean == pytest.approx(220 / 3)
    assert a.deviation == pytest.approx(np.std([90, 50, 80], ddof=1))
    assert a.rank == pytest.approx((3 + 1.5 + 2) / 3)
    assert b.rank == pytest.approx((1 + 1.5) / 2)
    assert a.p90 == pytest.approx(200 / 3)  # 0.9 counts as reached
    assert a.p95 == pytest.approx(100 / 3)
    assert a.pma == pytest.approx(100 * (0.9 + 1 + 0.8) / 3)
    assert a.pma_deviation == pytest.approx(100 * np.std([0.9, 1, 0.8], ddof=1))
    assert b.pma == 100


def test_published_accuracies_are_read_with_holes_and_as_shares(tmp_path: Path):
    path = tmp_path / "results.txt"
    path.write_text("% a note\nproblem svm_C rf_caret\nIris 0.96 --\nheart_cleveland 0.5 0.25\n")
    assert read_published(path) == {
        "svm_C": {"iris": 96.0, "heart-cleveland": 50.0},
        "rf_caret": {"heart-cleveland": 25.0},
    }
    path.write_text("svm_C,rf_caret\niris,96.5,95\n")
    assert read_published(path) == {"svm_C": {"iris": 96.5}, "rf_caret": {"iris": 95.0}}
    for text, message in (("", "no table"), ("a b\niris 1 2\nwine 1\n", "wine has 1 results for 2")):
        path.write_text(text)
        with pytest.raises(UciTableError, match=message):
            read_published(path)


# ---- runs ----


def comparison(results: Path | None = None, **options: int) -> Comparison:
    return Comparison(("ntk",), ("published",), options, results)


def test_results_are_kept_a_table_a_file_and_used_again(tmp_path: Path, monkeypatch):
    tables = [write(tmp_path / name, table(seed=k)) for k, name in enumerate(("a", "b"))]
    told = []
    found = compare(tables, comparison(tmp_path / "out"), on_table=lambda *words: told.append(words))
    assert [words[:2] for words in told] == [(1, 2), (2, 2)]
    stored = json.loads((tmp_path / "out" / "a.json").read_text())
    assert stored["scores"]["published ntk"]["accuracy"] == found["published"]["a"]["ntk"].accuracy
    monkeypatch.setattr(uci_run, "score", lambda *_, **__: pytest.fail("computed again"))
    assert compare(tables, comparison(tmp_path / "out")) == found


def test_other_data_a_torn_file_or_another_format_are_computed_again(tmp_path: Path):
    folder, out = write(tmp_path / "a", table()), tmp_path / "out"
    whole = compare([folder], comparison(out))["published"]["a"]["ntk"]
    kept = json.loads((out / "a.json").read_text())
    kept["scores"]["published ntk"]["accuracy"] = -1.0
    for text in (
        json.dumps({**kept, "table_sha256": "0"}),
        json.dumps({**kept, "format": 0}),
        '{"format": 1, ',
    ):
        (out / "a.json").write_text(text)
        assert compare([folder], comparison(out))["published"]["a"]["ntk"].accuracy == whole.accuracy
    (out / "a.json").write_text(json.dumps(kept))
    assert compare([folder], comparison(out))["published"]["a"]["ntk"].accuracy == -1.0
    (folder / "a_R.dat").write_text((folder / "a_R.dat").read_text() + "\n")
    assert compare([folder], comparison(out))["published"]["a"]["ntk"].accuracy == whole.accuracy


def test_a_run_that_dies_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch):
    folder, out = write(tmp_path / "a", table()), tmp_path / "out"
    compare([folder], comparison(out))
    before = (out / "a.json").read_bytes()

    def die(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", die)
    wanted = Comparison(("ntk", "polynomial"), ("published",), {}, out)
    with pytest.raises(OSError, match="disk full"):
        compare([folder], wanted)
    assert (out / "a.json").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["a.json"]


def test_a_network_of_another_width_is_another_result(tmp_path: Path, monkeypatch):
    folder, out = write(tmp_path / "a", table(24)), tmp_path / "out"
    widths = []

    def scored(made, contender, *, protocol):
        widths.append(contender.width)
        return TableScore(1.0, (1.0,), ((1.0, 0.1),), (1.0,), 0.0)

    monkeypatch.setattr(uci_run, "score", scored)
    for width in (8, 16, 8):
        compare([folder], Comparison(("network-he",), ("published",), {"width": width}, out))
    assert widths == [8, 16]


def test_too_little_memory_is_said_before_starting(tmp_path: Path, monkeypatch):
    folder = write(tmp_path / "a", table(), n_patrons1=5000)

    class Little:
        available = 4 * 10**8

    monkeypatch.setattr(uci_run.psutil, "virtual_memory", lambda: Little)
    monkeypatch.setattr(uci_run, "score_table", lambda *_: pytest.fail("started"))
    with pytest.raises(
        UciTableError, match=r"(?s)up to 5000 rows take 0\.4 GB and 0\.4 GB .*fewer processes"
    ):
        compare([folder], comparison())


def test_workers_are_started_where_they_are_worth_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(uci_run.psutil, "cpu_count", lambda: 8)
    small = [write(tmp_path / "a", table())]
    large = [write(tmp_path / name, table(), n_patrons1=4900) for name in "bcd"]
    assert sensible_processes(small, ["ntk"]) == 1
    assert sensible_processes(small * 3, ["ntk", "random-forest"]) == 3
    assert sensible_processes(large, ["ntk"]) == 3


def test_what_a_terminated_worker_was_writing_goes(tmp_path: Path):
    for name in (".a.json.77", ".b.json.78", "a.json"):
        (tmp_path / name).write_text("{")
    uci_run._remove_unfinished(tmp_path, 77)
    uci_run._remove_unfinished(None, 78)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.78", "a.json"]


@pytest.mark.slow
def test_workers_find_what_one_process_finds_and_a_damaged_table_ends_them(tmp_path: Path):
    tables = [write(tmp_path / name, table(seed=k)) for k, name in enumerate(("a", "b", "c"))]

    def accuracies(processes: int) -> dict[str, float]:
        found = compare(tables, comparison(), processes=processes)["published"]
        return {name: row["ntk"].accuracy for name, row in found.items()}

    assert accuracies(2) == accuracies(1)
    (tables[1] / "b_R.dat").write_text("header\n")
    with pytest.raises(UciTableError, match=r"b_R\.dat"):
        compare(tables, comparison(), processes=2)


@pytest.mark.slow
@pytest.mark.skipif(not FOURTEEN.is_dir(), reason="the fourteen tables are not here")
@pytest.mark.parametrize("path", ["as installed", "libsvm"])
def test_the_fourteen_tables_choose_and_score_as_a_plain_loop_of_libsvm_does(path, monkeypatch):
    if path == "libsvm":
        monkeypatch.setattr(svm_grid, "_library", lambda: None)
    found = compare(list_tables(FOURTEEN).tables, comparison())["published"]
    assert {
        name: (round(row["ntk"].accuracy, 2), row["ntk"].settings[0]) for name, row in found.items()
    } == EXPECTED


@pytest.mark.skipif(not FOURTEEN.is_dir(), reason="the fourteen tables are not here")
def test_primary_tumor_is_the_published_neighbourhood():
    found = score(read_table(FOURTEEN / "primary-tumor"), contenders()["ntk"])
    assert found.settings == ((4.0, 2.0, 1.0),)
    assert round(found.accuracy, 2) == 52.13


def test_large_kernels_come_one_by_one_and_are_the_same(monkeypatch):
    made, settings = table(), contenders()["ntk"].kernel_settings
    small = dict(tangent_kernels(made.features[:9], made.features, settings))
    monkeypatch.setattr("theory_modules.uci_contenders._ENTRIES_IN_ONE_PASS", 1)
    large = dict(tangent_kernels(made.features[:9], made.features, settings))
    assert list(small) == list(large) == list(settings)
    for setting in settings:
        np.testing.assert_allclose(large[setting], small[setting], atol=1e-12)
