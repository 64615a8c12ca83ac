"""``instahide theory ntk``: what is printed, kept, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation import cli


def write_table(folder: Path, *, rows: int = 40, seed: int = 0, test_rows: int = 0) -> None:
    """Two noisy classes in three features, in the published format."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    labels = np.arange(rows) % 2
    features = rng.standard_normal((rows, 3)) + 1.5 * labels[:, None]
    features = (features - features.mean(0)) / features.std(0)
    lines = ["\tf1\tf2\tf3\tclase"]
    for number, (values, label) in enumerate(zip(features, labels, strict=True), start=1):
        lines.append("\t".join([str(number), *(f"{value:.6g}" for value in values), str(label)]))
    (folder / f"{folder.name}_R.dat").write_text("\n".join(lines) + "\n")
    extra = f"n_patrons2= {test_rows}\n" if test_rows else ""
    (folder / f"{folder.name}.txt").write_text(
        f"n_entradas= 3\nn_clases= 2\nfich1= {folder.name}_R.dat\nn_patrons1= {rows}\n{extra}"
    )

    def split(share: float) -> str:
        order = rng.permutation(rows)
        cut = round(share * rows)
        return "\n".join(" ".join(map(str, part)) for part in (order[:cut], order[cut:])) + "\n"

    (folder / "conxuntos.dat").write_text(split(0.5))
    (folder / "conxuntos_kfold.dat").write_text("".join(split(0.75) for _ in range(4)))


@pytest.fixture
def uci(tmp_path: Path) -> Path:
    for number, name in enumerate(("one", "two")):
        write_table(tmp_path / "uci" / name, seed=number)
    write_table(tmp_path / "uci" / "three", seed=3, test_rows=10)
    return tmp_path / "uci"


def ntk(*words: object) -> int:
    return cli.run(["theory", "ntk", "--uci", *map(str, words)])


def test_accuracies_and_summary_stand_beside_the_published(
    uci: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ntk(uci, "--classifiers", "ntk,gaussian", "--nested") == 0
    out = capsys.readouterr().out
    published, nested = out.split("Nested: ")
    for part in (published, nested):
        assert [line.split()[0] for line in part.splitlines() if line.startswith(("one", "two"))] == [
            "one",
            "two",
        ]
        assert "L=" in part
    assert "81.95 ± 14.10" in published
    assert "81.95" not in nested
    assert "left out: three (10 rows in a separate test file)" in out
    assert ntk(uci, "--classifiers", "gaussian") == 0
    assert "ntk chose" not in capsys.readouterr().out


def test_json_holds_every_fold_and_setting(uci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ntk(uci, "--classifiers", "ntk", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    score = found["tables"]["published"]["one"]["ntk"]
    assert score["accuracy"] == pytest.approx(np.mean(score["fold_accuracies"]))
    assert len(score["fold_accuracies"]) == 4
    assert len(score["settings"][0]) == 3
    assert found["summary"]["published"]["ntk"]["tables"] == 2
    assert found["published"]["ntk"]["mean"] == 81.95
    assert found["published"]["polynomial"]["deviation"] is None
    assert found["left_out"].keys() == {"three"}
    assert found["machines_trained_by"] in ("c", "libsvm")


def test_published_results_take_part_in_ranks(
    uci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = tmp_path / "results.txt"
    others.write_text("perfect hopeless absent\none 100 10 --\ntwo 100 20 --\nelsewhere 50 50 50\n")
    assert ntk(uci, "--classifiers", "ntk", "--published-results", others, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    row = found["summary"]["published"]["ntk"]
    accuracies = [found["tables"]["published"][name]["ntk"]["accuracy"] for name in ("one", "two")]
    assert row["pma"] == pytest.approx(np.mean(accuracies))
    assert row["rank"] == pytest.approx(np.mean([1.5 if value == 100 else 2.0 for value in accuracies]))
    assert found["compared_with"] == ["absent", "hopeless", "perfect"]


def test_a_second_run_reads_what_the_first_kept(
    uci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    assert ntk(uci, "--classifiers", "ntk", "--out", results, "--format", "json") == 0
    first = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in results.iterdir()) == ["one.json", "two.json"]
    monkeypatch.setattr("theory_modules.uci_run.read_table", lambda path: pytest.fail("read again"))
    assert ntk(uci, "--classifiers", "ntk", "--out", results, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == first


def test_ctrl_c_keeps_what_is_done(
    uci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from theory_modules import uci_run

    whole = uci_run.score

    def until_two(table, contender, *, protocol):  # type: ignore[no-untyped-def]
        if table.name == "two":
            raise KeyboardInterrupt
        return whole(table, contender, protocol=protocol)

    monkeypatch.setattr(uci_run, "score", until_two)
    results = tmp_path / "results"
    assert ntk(uci, "--classifiers", "ntk", "--out", results) == 130
    shown = capsys.readouterr().err
    assert "error: interrupted: 1 of 2 tables are done" in shown
    assert "same --out" in shown
    assert [path.name for path in results.iterdir()] == ["one.json"]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["no/such/folder"], "is not a folder", "one folder a table"),
        (["{empty}"], "no table", "conxuntos_kfold.dat"),
        (["{uci}", "--classifiers", "ntk,magic"], "no classifier 'magic'", "random-forest"),
        (["{uci}", "--published-results", "no.txt"], "no.txt cannot be read", "--help"),
        (["{uci}", "--processes", "0"], "--processes", "--help"),
    ],
)
def test_wrong_input_is_refused_in_two_lines(
    words: list[str], message: str, hint: str, uci: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [word.format(empty=tmp_path / "empty", uci=uci) for word in words]
    assert ntk(*filled) == 2
    error, *rest = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint in rest[0]


def test_a_damaged_table_is_named(uci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (uci / "two" / "conxuntos_kfold.dat").write_text("0 1\n2 3\n")
    assert ntk(uci, "--classifiers", "ntk") == 2
    assert "conxuntos_kfold.dat has 2 lines of row numbers; 8 are needed" in capsys.readouterr().err
