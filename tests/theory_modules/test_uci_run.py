"""Results kept a table a file, workers, and what a stop leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.theory_modules.uci_made import EXPECTED, FOURTEEN, table, write
from theory_modules import svm_grid, uci_run
from theory_modules.uci_contenders import (
    contenders,
    tangent_kernels,
)
from theory_modules.uci_protocol import TableScore, score
from theory_modules.uci_run import Comparison, compare, sensible_processes
from theory_modules.uci_tables import (
    UciTableError,
    list_tables,
    read_table,
)


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
