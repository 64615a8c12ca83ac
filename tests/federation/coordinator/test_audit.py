"""The coordinator's audit log: hashes of what came and what was made of it, and the sites' heads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from coordinator_fakes import FakeClock, FakeGrid, honest, prepare
from safetensors.numpy import load_file

from federation.audit_log import AuditLog, SignedHead
from federation.audit_verification import ReadLog, compare_logs, read_log
from federation.config import RunConfig
from federation.coordinator import rounds
from federation.coordinator.events import read_events
from federation.identity import create_identity
from federation.messages import RoundRequest, SiteReply
from federation.packing import arrays_sha256
from instahide.errors import FederationError, InvalidInputError

NAMES = {11: "Anna", 12: "Bern", 13: "Cork"}


class Hospitals:
    """Honest sites, each with an audit log under a key of its own."""

    def __init__(self, folder: Path) -> None:
        self.logs: dict[int, AuditLog] = {}
        self.keys: dict[int, str] = {}
        for node, name in NAMES.items():
            (folder / name).mkdir(parents=True)
            identity = create_identity(folder / name / "identity.key")
            self.logs[node] = AuditLog(folder / name / "audit.jsonl", identity, role="site", name=name)
            self.keys[node] = identity.public_line

    def __call__(self, node: int, request: RoundRequest) -> SiteReply:
        reply, log = honest(node, request), self.logs[node]
        log.append("request-accepted", round=request.server_round, audit_head=request.audit_head)
        digest = {"update_sha256": arrays_sha256(reply.arrays)} if reply.arrays else {}
        head = log.sign(log.append("update-sent", **digest))
        return SiteReply(
            site_name=reply.site_name, metrics=reply.metrics, arrays=reply.arrays, audit_head=head.to_text()
        )


@pytest.fixture
def hospitals(tmp_path: Path) -> Hospitals:
    return Hospitals(tmp_path / "hospitals")


@pytest.fixture
def config(tmp_path: Path, hospitals: Hospitals) -> RunConfig:
    (tmp_path / "study").mkdir()
    create_identity(tmp_path / "study" / "identity.key")
    sites = {node: {"name": name, "identity-key": hospitals.keys[node]} for node, name in NAMES.items()}
    return prepare(
        tmp_path / "run", sites, num_server_rounds=2, audit_folder=str(tmp_path / "study"), run_name="trial"
    )


def run(config: RunConfig, behaviour: Any) -> ReadLog:
    clock = FakeClock()
    try:
        rounds.run(config, FakeGrid(clock, behaviour=behaviour), clock=clock)
    finally:
        log = read_log(Path(config.audit_folder) / "audit.jsonl")
    assert log.problems == ()
    return log


def test_what_came_and_what_was_made_of_it_is_recorded_by_hash(
    config: RunConfig, hospitals: Hospitals
) -> None:
    log = run(config, hospitals)
    by_event = {record.event: record.fields for record in log.records}
    assert {record.fields["run"] for record in log.records[1:]} == {"trial"}
    folder = Path(config.run_directory)
    model = folder / "model.safetensors"
    assert by_event["run-finished"]["model-sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert by_event["round-finished"]["aggregate-sha256"] == arrays_sha256(load_file(model))
    checkpoint = folder / "checkpoints" / "round-0002.safetensors"
    assert by_event["checkpoint-saved"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    settings = read_events(folder / "events.jsonl")[0]["settings"]
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    assert by_event["run-started"]["settings-sha256"] == hashlib.sha256(text.encode()).hexdigest()
    replies = [record.fields for record in log.records if record.event == "site-replied"]
    assert sorted((reply["site"], reply["round"], reply["kind"]) for reply in replies) == sorted(
        (name, *rest) for name in NAMES.values() for rest in ((1, "train"), (2, "train"), (2, "evaluate"))
    )


def test_heads_are_exchanged_so_that_both_logs_vouch_for_each_other(
    config: RunConfig, hospitals: Hospitals, tmp_path: Path
) -> None:
    coordinator = run(config, hospitals)
    for name in NAMES.values():
        site = read_log(tmp_path / "hospitals" / name / "audit.jsonl")
        comparison = compare_logs(site, coordinator)
        assert comparison.problems == ()
        assert comparison.heads == 6  # two rounds and an evaluation, both ways


def test_an_update_without_its_sites_signed_head_is_not_used(
    config: RunConfig, hospitals: Hospitals, tmp_path: Path
) -> None:
    stranger = create_identity(tmp_path / "stranger.key")

    def behaviour(node: int, request: RoundRequest) -> SiteReply:
        reply = hospitals(node, request)
        if node == 11:
            return honest(node, request)
        if node == 12:
            last = hospitals.logs[node].append("update-sent")
            forged = SignedHead.of(hospitals.logs[node].log_id, last, stranger).to_text()
            return SiteReply(site_name="Bern", metrics=reply.metrics, arrays=reply.arrays, audit_head=forged)
        return reply

    with pytest.raises(FederationError, match="not signed by the key this site registered"):
        run(config, behaviour)
    log = read_log(Path(config.audit_folder) / "audit.jsonl")
    rejected = [record.fields["site"] for record in log.records if record.event == "site-rejected"]
    assert set(rejected) == {"Anna", "Bern"}
    assert log.records[-1].event == "run-failed"


def test_no_metric_weight_or_path_is_in_it(config: RunConfig, hospitals: Hospitals) -> None:
    run(config, hospitals)
    text = (Path(config.audit_folder) / "audit.jsonl").read_text()
    for word in ("loss", "accuracy", "num-examples", config.run_directory, "safetensors"):
        assert word not in text, word


def test_without_an_audit_folder_requests_carry_no_head(tmp_path: Path) -> None:
    config, clock = prepare(tmp_path, num_server_rounds=1), FakeClock()
    grid = FakeGrid(clock)
    rounds.run(config, grid, clock=clock)
    assert {request.audit_head for _, _, request in grid.sent} == {""}


def test_a_folder_without_a_key_is_refused_in_words_that_the_run_keeps(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    config = prepare(tmp_path / "run", audit_folder=str(tmp_path / "study"))
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="identity key"):
            rounds.run(config, FakeGrid(FakeClock()), clock=FakeClock())
    last = read_events(tmp_path / "run" / "events.jsonl")[-1]
    assert last["event"] == "run-failed"
    assert "identity key" in last["reason"]
