"""Hospitals with gaps in their tables, filled in and trained on, alone and together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation import cli
from federation.table_study import (
    FEDERATED,
    NONE,
    StudyResult,
    StudySettings,
    _sites,
    draw,
    imputation_together,
    read_hospitals,
    run_study,
)
from instahide.errors import InvalidInputError
from theory_modules.imputation_comparison import ImputationError

COLUMNS = 5
FORM = """
label = "ill"
[classes]
"0" = "absent"
"1" = "present"
""" + "".join(f'[[columns]]\nname = "c{i}"\nlow = -3\nhigh = 3\n' for i in range(COLUMNS))
FORM += '[[columns]]\nname = "ill"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hospitals, columns that go together, illness where they are high; a tenth is missing."""
    tmp_path = tmp_path_factory.mktemp("hospitals")
    (tmp_path / "columns.toml").write_text(FORM)
    for seed, (name, count) in enumerate({"anna": 60, "bern": 40, "cork": 80}.items()):
        rng = np.random.default_rng(seed)
        hidden = rng.standard_normal((count, 1))
        values = hidden + 0.5 * rng.standard_normal((count, COLUMNS))
        rows = [
            [*("" if rng.random() < 0.1 else f"{value:.3f}" for value in row), str(int(h > 0))]
            for row, (h,) in zip(values, hidden, strict=True)
        ]
        if name == "cork":
            rows = [["", *row[1:]] for row in rows]  # a column this hospital never measures
        (tmp_path / f"{name}.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    (tmp_path / "notes.txt").write_text("not a table")
    return tmp_path


def test_every_table_of_a_folder_is_a_hospital(folder: Path) -> None:
    tables = read_hospitals(folder)
    assert {name: len(table) for name, table in tables.items()} == {"anna": 60, "bern": 40, "cork": 80}


def test_fewer_than_two_hospitals_are_no_study(folder: Path, tmp_path: Path) -> None:
    for name in ("columns.toml", "anna.csv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(InvalidInputError, match="1 tables"):
        read_hospitals(tmp_path)
    with pytest.raises(InvalidInputError, match="no folder"):
        read_hospitals(folder / "absent")


@pytest.mark.parametrize("method", [NONE, "mean", "depth 2"])
def test_gaps_are_filled_in_from_the_training_rows_alone(folder: Path, method: str) -> None:
    table = read_hospitals(folder)["cork"]
    training, test = table.rows(np.arange(50)), table.rows(np.arange(50, 80))
    whole = _sites({"cork": (training, test)}, method, 0)["cork"]
    part = _sites({"cork": (training, test.rows(np.arange(5)))}, method, 0)["cork"]
    assert np.array_equal(whole.test.images[:5], part.test.images)
    marks = whole.training.images[:, 0, 1]
    assert marks.any() == (method == NONE)
    assert (whole.training.images[:, 0, 0, 0] == 128).all()  # never measured: the middle of the range


def test_a_column_one_hospital_lacks_is_guessed_by_what_the_others_know(folder: Path) -> None:
    """Cork never measures its first column: alone the middle of the range, together what fits the rest."""
    tables = read_hospitals(folder).items()
    parts = {name: (table.rows(np.arange(30)), table.rows(np.arange(30, 40))) for name, table in tables}
    images = _sites(parts, FEDERATED, 0)["cork"].training.images[:, 0, 0].astype(float)
    assert parts["cork"][0].gaps[:, 0].all()
    assert np.corrcoef(images[:, 0], images[:, 1:].mean(axis=1))[0, 1] > 0.8


def test_together_hospitals_guess_as_well_as_from_pooled_rows(folder: Path) -> None:
    tables = {name: table.values for name, table in read_hospitals(folder).items()}
    found = imputation_together(tables, seeds=(0, 1, 2))
    methods = [error.method for error in found["anna"]]
    means = {
        method: np.mean([np.mean(errors[place].unseen) for errors in found.values()])
        for place, method in enumerate(methods)
    }
    assert means["federated"] < 0.75 * means["mean"]
    assert means["federated"] < 1.03 * min(means["pooled"], means["depth 2"])


@pytest.fixture(scope="module")
def study(folder: Path) -> StudyResult:
    settings = StudySettings(num_rounds=4)
    return run_study(read_hospitals(folder), methods=("mean", "depth 2"), seeds=(0,), settings=settings)


def test_models_alone_and_together_beat_the_more_frequent_class(study: StudyResult) -> None:
    mean, deep = study.methods
    assert study.majority[0] < 0.7
    assert min(*mean.alone_overall, *mean.federated_overall, *deep.federated_overall) > 0.75
    assert len(mean.alone["anna"]) == 1
    # Overall counts every test row once: 18, 12 and 24 of them.
    by_hospital = np.array([deep.federated[name][0] for name in ("anna", "bern", "cork")])
    assert deep.federated_overall[0] == pytest.approx(np.array([18, 12, 24]) / 54 @ by_hospital)
    assert "minus mean" in study.lines()[2]


def test_the_picture_has_errors_and_accuracies(study: StudyResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw({"anna": [ImputationError("mean", [1.0], [1.0])]}, study, tmp_path / "p")
    assert (tmp_path / "p").read_bytes().startswith(b"\x89PNG")


def test_by_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["theory", "impute", "--seeds", "1", "--no-train", "--format", "json", "--data"]
    assert cli.run([*words, str(folder)]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert set(result["imputation"]) == set(result["together"]) == {"anna", "bern", "cork"}
    errors = {error["method"]: error["unseen"][0] for error in result["imputation"]["anna"]}
    assert errors["depth 2"] < 0.85 * errors["mean"]
    together = {error["method"]: error["unseen"][0] for error in result["together"]["anna"]}
    assert together["depth 2"] == errors["depth 2"]
    assert max(together["federated"], together["pooled"]) < 0.85 * errors["mean"]
    assert result["training"] is None


def test_a_folder_without_tables_is_said_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["theory", "impute", "--data", str(tmp_path)]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "0 tables" in error
    assert "columns.toml" in hint
