"""The figures of the comparison, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from theory_modules.uci_metrics import read_published, summarize
from theory_modules.uci_tables import (
    UciTableError,
)


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
