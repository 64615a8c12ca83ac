from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.report import THREATS, write_report
from instahide.attacks.result_files import read_results, write_result
from instahide.attacks.view import AttackResult
from instahide.errors import IntegrityError, InvalidInputError


def result(name: str = "known-image membership", leaked: bool | None = True) -> AttackResult:
    return AttackResult(
        name=name,
        metrics={"auc": 0.91},
        intervals={"auc": (0.88, 0.94)},
        cpu_seconds=1.5,
        assumptions=("the attacker <knows> the law",),
        verdict="Whether a known image was encoded can be told.",
        leaked=leaked,
        baselines={"auc": 0.5},
        checks={"power": "planted images were found"},
        curves={"roc": [(0.001, 0.2), (0.01, 0.5), (1.0, 1.0)]},
        curve_axes=("false positive rate (log scale)", "true positive rate"),
        pictures={"encoded | recovered": np.zeros((4, 1, 8, 8), np.uint8)},
        seed=7,
    )


class Tags(HTMLParser):
    """Collects opened tags, and fails on one that is closed but not open."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_result_survives_the_disk(tmp_path: Path) -> None:
    write_result(result(), tmp_path / "a", attack="membership")
    [stored] = read_results(tmp_path)
    assert {name: stored.values[name] for name in result().to_dict()} == json.loads(
        json.dumps(result().to_dict())
    )
    [picture] = stored.pictures.values()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_holds_verdicts_numbers_pictures_and_what_was_not_tried(tmp_path: Path) -> None:
    write_result(result(), tmp_path / "a", attack="membership")
    write_result(result("update inversion", leaked=False), tmp_path / "b", attack="update-inversion")
    summary = write_report(tmp_path)
    page = (tmp_path / "index.html").read_text()
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    assert {"svg", "img", "table"} <= parser.seen
    assert "Whether a known image was encoded can be told." in page
    assert "0.880 to 0.940" in page
    assert "&lt;knows&gt;" in page
    assert "not tried" in page
    assert "script" not in parser.seen
    assert "http" not in page.replace("http-equiv", "")
    assert summary["threats"]["membership"]["leaked"] is True
    assert summary["threats"]["update"]["leaked"] is False
    assert summary["threats"]["recovery"]["leaked"] is None
    assert set(summary["threats"]) == set(THREATS)
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(summary))


def test_ten_audits_are_one_line_and_one_more_for_each_that_found_something(tmp_path: Path) -> None:
    for name, leaked in {"implementation audits": True, "mask reuse": True, "small seeds": False}.items():
        write_result(result(name, leaked), tmp_path / name.replace(" ", "-"), attack="audits")
    write_report(tmp_path)
    page = (tmp_path / "index.html").read_text()
    first = page[: page.index("<h3>")]
    assert "implementation audits" in first
    assert "mask reuse" in first
    assert "small seeds" not in first
    assert "<h3>small seeds</h3>" in page


def test_columns_and_tables_that_would_be_empty_are_left_out(tmp_path: Path) -> None:
    bare = result()
    write_result(replace(bare, intervals={}, curves={}), tmp_path / "a", attack="membership")
    write_result(replace(bare, metrics={}, curves={}), tmp_path / "b", attack="membership")
    write_report(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("without the release</th>") == 1
    assert "95 % interval" not in page


def test_curves_are_one_table_with_a_column_for_each_line(tmp_path: Path) -> None:
    curves = {"a": [(0.1, 0.5), (1.0, 1.0)], "b": [(0.2, 0.25), (1.0, 1.0)]}
    write_result(replace(result(), curves=curves), tmp_path / "a", attack="membership")
    write_report(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert ">a</th>" in page
    assert '<tr><td class="number">0.100</td><td class="number">0.500</td><td></td></tr>' in page


def test_a_folder_without_results_and_a_damaged_result_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no attack result"):
        write_report(tmp_path)
    write_result(result(), tmp_path / "a", attack="membership")
    (tmp_path / "a/result.json").write_text('{"format": "other"}')
    with pytest.raises(IntegrityError, match="not a result of this program"):
        write_report(tmp_path)
