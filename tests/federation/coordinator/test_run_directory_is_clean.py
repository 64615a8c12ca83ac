"""Nothing a coordinator writes or hands on holds a generator's state, a key, or an encoder's seed."""

from __future__ import annotations

from pathlib import Path

from coordinator_fakes import FakeClock, FakeGrid, prepare

from federation.coordinator import rounds
from instahide.attacks.implementation_audits import audit_artefacts


def test_a_run_directory_passes_the_artefact_audit(tmp_path: Path) -> None:
    config = prepare(tmp_path / "run", num_server_rounds=2)
    clock = FakeClock()
    rounds.run(config, FakeGrid(clock), clock=clock)
    result = audit_artefacts([tmp_path / "run"])
    assert result.metrics["files"] >= 6
    assert result.settings["findings"] == []
    assert result.settings["unread"] == []
    assert result.leaked is False
