"""What a watcher folds from the events of real runs is what the run's own tables and card say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coordinator_fakes import FakeClock, FakeGrid, honest, prepare, refuse

from federation.config import RunConfig
from federation.coordinator import rounds
from federation.messages import RoundRequest
from federation.status.privacy import RunPrivacy
from federation.status.run_progress import FINISHED, INFERENCES, RunProgress

from .test_masked_collection import Hospitals, a_run

PRIVATE: dict[str, Any] = {
    "differential_privacy": "client",
    "noise_multiplier": 4.0,
    "max_update_norm": 0.5,
    "over_norm": "clip",
    "encoding": "none",
}


def run(config: RunConfig, **options: Any) -> None:
    clock = FakeClock()
    rounds.run(config, FakeGrid(clock, **options), clock=clock)


def watched(folder: Path) -> RunProgress:
    progress = RunProgress(name="run")
    for line in (folder / "events.jsonl").read_bytes().splitlines():
        progress.take_line(line)
    assert progress.unreadable_lines == 0
    return progress


def rows(folder: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text())["rounds"]
    return table


def agrees_with_the_table(progress: RunProgress, table: list[dict[str, Any]]) -> None:
    for inference, name in INFERENCES.items():
        assert progress.curve(inference) == [(row["round"], row[name]) for row in table if name in row]
    last = table[-1]
    assert (progress.last_round, len(progress.sites_of_last_round)) == (last["round"], last["sites"])
    assert (progress.last_seconds, progress.train_loss) == (last["seconds"], last["train-loss"])


def test_a_run_in_which_a_site_refuses(tmp_path: Path) -> None:
    def behave(node: int, request: RoundRequest) -> Any:
        return (
            refuse("spent", "budget") if node == 13 and request.server_round == 2 else honest(node, request)
        )

    config = prepare(tmp_path, num_server_rounds=3)
    run(config, behaviour=behave)
    progress = watched(tmp_path)
    agrees_with_the_table(progress, rows(tmp_path))
    assert (progress.state, progress.planned_rounds, progress.rounds_finished) == (FINISHED, 3, 3)
    assert progress.refusals == {("Cork", "budget"): 1}
    assert progress.troubles[0].reason == "spent"
    assert progress.seconds_of_rounds == pytest.approx(sum(row["seconds"] for row in rows(tmp_path)[1:]))
    assert progress.settings == config.to_mapping()


def test_a_run_that_was_resumed_from_an_old_checkpoint(tmp_path: Path) -> None:
    def nobody_after_the_third(node: int, request: RoundRequest) -> Any:
        return honest(node, request) if request.server_round <= 3 else "gone"

    config = prepare(tmp_path, num_server_rounds=5, checkpoint_every=2, max_failed_rounds=0)
    with pytest.raises(Exception, match="round 4 failed"):
        run(config, behaviour=nobody_after_the_third)
    failed = watched(tmp_path)
    assert (failed.state, failed.last_round, failed.rounds_failed) == ("failed", 3, 1)
    assert "round 4 failed" in failed.end_reason
    run(replace(config, resume=True))
    progress = watched(tmp_path)
    agrees_with_the_table(progress, rows(tmp_path))
    assert (progress.last_round, progress.rounds_finished, progress.end_reason) == (5, 6, "")


def epsilon_of_the_card(folder: Path) -> str:
    found = re.search(r"Epsilon ([\d.]+) at delta", (folder / "model_card.md").read_text())
    assert found
    return found[1]


def test_epsilon_of_a_run_with_noise_by_the_coordinator_is_that_of_its_card(tmp_path: Path) -> None:
    run(prepare(tmp_path, num_server_rounds=2, evaluate=False, **PRIVATE))
    [row] = RunPrivacy(tmp_path).rows(watched(tmp_path))
    assert row.epsilon is not None
    assert f"{row.epsilon:.3g}" == epsilon_of_the_card(tmp_path)


def test_epsilon_of_a_run_with_noise_by_the_sites_is_that_of_its_card(tmp_path: Path) -> None:
    hospitals = Hospitals()
    a_run(tmp_path, hospitals, evaluate=False, clipping_range=1.0, **PRIVATE)
    [row] = RunPrivacy(tmp_path).rows(watched(tmp_path))
    assert row.problem == ""
    assert row.epsilon is not None
    assert f"{row.epsilon:.3g}" == epsilon_of_the_card(tmp_path)


def test_a_run_without_noise_has_no_figure_and_neither_has_its_card(tmp_path: Path) -> None:
    run(prepare(tmp_path, num_server_rounds=1))
    assert RunPrivacy(tmp_path).rows(watched(tmp_path)) == []
    assert "epsilon" not in (tmp_path / "model_card.md").read_text().lower()
