"""The counts behind the limits on rounds: right, kept over restarts, and never lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.site.policy import SiteFacts
from federation.site.run_history import HISTORY_NAME, RunHistory
from instahide.errors import IntegrityError

from .site_examples import request


def facts(history: RunHistory, run: str = "run") -> SiteFacts:
    return history.facts(request(run_name=run), num_examples=7)


def test_rounds_repeats_and_evaluations_are_counted_by_run(tmp_path: Path) -> None:
    history = RunHistory(tmp_path)
    for server_round in (1, 2, 2, 5, 4):
        history.record(request(server_round))
    history.record(request(5, kind="evaluate"))
    assert facts(history) == SiteFacts(
        num_examples=7, rounds_served=5, last_round=5, repeats=2, evaluations_served=1, other_runs=0
    )
    assert facts(history, "another") == SiteFacts(num_examples=7, other_runs=1)


def test_counts_survive_a_restart(tmp_path: Path) -> None:
    RunHistory(tmp_path).record(request(3))
    assert facts(RunHistory(tmp_path)).last_round == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format-version": 2, "runs": {}}',
        '{"format-version": 1, "runs": {"run": {"rounds": 1}}}',
        '{"format-version": 1, "runs": {"run": {"rounds_served": -1}}}',
        '{"format-version": 1, "runs": {"run": {"rounds_served": "1"}}}',
    ],
)
def test_a_damaged_history_is_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / HISTORY_NAME).write_text(text)
    with pytest.raises(IntegrityError, match="cannot be read"):
        RunHistory(tmp_path)
