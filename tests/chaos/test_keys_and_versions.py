"""Wrong and replayed keys, heads, answers and requests; another protocol version, another release.

What needs a gateway (unregistered, copied, revoked node keys, expired certificates, skewed clocks) is
in ``test_refused_nodes.py``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.audit_log import AuditLog
from federation.config import RunConfig
from federation.coordinator import rounds
from federation.coordinator.events import Events, read_events
from federation.identity import create_identity
from federation.joining import JoinAnswer, read_answer, write_answer
from federation.messages import PROTOCOL_VERSION, RoundRequest, SiteReply
from federation.node_folder import NodeFolder, join
from federation.provisioning import create_authority, create_node_key, public_key_fingerprint
from federation.site.audit import SiteAudit
from federation.site.policy import Policy, SiteFacts
from instahide.errors import InstaHideError, InvalidInputError, RefusedError

from ..federation.coordinator import fakes
from .scoreboard import Recorder

SETTINGS = {"class-names": ["benign", "malignant"], "image-shape": [1, 8, 8]}


def request(server_round: int = 1, **changes: Any) -> dict[str, Any]:
    asked = RoundRequest.for_round(RunConfig.from_mapping(SETTINGS), server_round, {}).to_mapping()
    return asked | changes


def signed_head(folder: Path) -> str:
    """A head of a log under a new key in ``folder``."""
    folder.mkdir()
    log = AuditLog(folder / "audit.jsonl", create_identity(folder / "key"), role="coordinator", name="x")
    return log.sign(log.append("round-started", round=1)).to_text()


def site_of(coordinator_key: str, folder: Path) -> SiteAudit:
    folder.mkdir()
    (folder / "coordinator.pub").write_text(coordinator_key + "\n")
    log = AuditLog(folder / "audit.jsonl", create_identity(folder / "key"), role="site", name="north")
    return SiteAudit(log, coordinator_key=folder / "coordinator.pub")


def expect(error: type[InstaHideError], *words: str) -> Any:
    """Expect an error that says what is wrong, with a hint."""
    return pytest.raises(error, match="(?s)" + ".*".join(words) + ".*hint: .")


# --- keys -------------------------------------------------------------------------------------------


def test_an_answer_for_another_nodes_key_is_refused(tmp_path: Path, chaos: Recorder) -> None:
    """Replayed from one hospital to another: its fingerprint is the first one's."""
    coordinator = tmp_path / "coordinator"
    coordinator.mkdir()
    authority = create_authority(coordinator)
    for name in ("anna", "bern"):
        create_node_key(tmp_path / name)
    answer = JoinAnswer(
        name="anna",
        coordinator="127.0.0.1:9443",
        authority=authority.certificate.read_text(),
        identity_key=create_identity(coordinator / "identity.key").public_line,
        fingerprint=public_key_fingerprint(tmp_path / "anna" / "node.pub"),
    )
    with chaos.attempt("keys", "join answer replayed to another node"):
        with expect(RefusedError, "the answer is for the key", "this node has"):
            join(NodeFolder(tmp_path / "bern"), answer)
        assert not (tmp_path / "bern" / "authority.crt").exists()


@pytest.mark.parametrize("head", ["none", "of another coordinator"])
def test_a_request_that_the_joined_coordinator_did_not_sign_is_refused(
    head: str, tmp_path: Path, chaos: Recorder
) -> None:
    site = site_of(create_identity(tmp_path / "joined.key").public_line, tmp_path / "site")
    text = "" if head == "none" else signed_head(tmp_path / "stranger")
    asked = RoundRequest.from_mapping(request(**{"audit-head": text}), kind="train", arrays={})
    with (
        chaos.attempt("keys", f"request with the head {head}"),
        expect(RefusedError, "no audit head signed by the coordinator this site joined"),
    ):
        site.check_coordinator(asked)


def test_a_request_that_is_replayed_is_served_as_often_as_the_policy_says(chaos: Recorder) -> None:
    policy, asked = Policy(), RoundRequest.from_mapping(request(), kind="train", arrays={})
    facts = SiteFacts(num_examples=1000, rounds_served=1, last_round=1)
    with chaos.attempt("keys", "round request replayed"):
        for repeats in range(policy.max_repeated_rounds):
            policy.check(asked, replace(facts, repeats=repeats))
        with expect(RefusedError, "repeat"):
            policy.check(asked, replace(facts, repeats=policy.max_repeated_rounds))


@pytest.mark.parametrize("fault", ["signed by another key", "not signed"])
def test_an_update_under_another_sites_name_is_rejected_and_the_run_goes_on(
    fault: str, tmp_path: Path, chaos: Recorder
) -> None:
    own = create_identity(tmp_path / "anna.key")
    sites = {11: {"name": "Anna", "identity-key": own.public_line}, 12: "Bern", 13: "Cork"}
    config = fakes.prepare(tmp_path / "run", sites, num_server_rounds=2)
    head = signed_head(tmp_path / "stranger") if fault == "signed by another key" else ""

    def behave(node: int, asked: RoundRequest) -> SiteReply:
        reply = fakes.honest(node, asked)
        return replace(reply, audit_head=head) if node == 11 else reply

    clock = fakes.FakeClock()
    with chaos.attempt("keys", f"update {fault}") as attempt:
        rounds.run(config, fakes.FakeGrid(clock, behave), clock=clock)
        events = read_events(tmp_path / "run" / "events.jsonl")
        rejected = [event for event in events if event["event"] == "site-rejected"]
        assert {event["site"] for event in rejected} == {"Anna"}
        assert all("not signed by the key this site registered" in event["reason"] for event in rejected)
        finished = [event for event in events if event["event"] == "round-finished"]
        assert [event["sites"] for event in finished] == [["Bern", "Cork"]] * 2
        attempt.rounds_lost = 0


# --- versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [PROTOCOL_VERSION + 1, 10_000])
def test_a_request_of_another_protocol_version_is_refused_with_both_named(
    version: int, chaos: Recorder
) -> None:
    with (
        chaos.attempt("versions", "request of another protocol version"),
        expect(InvalidInputError, f"protocol version {version}, this side {PROTOCOL_VERSION}"),
    ):
        RoundRequest.from_mapping(request(**{"protocol-version": version}), kind="train", arrays={})


def test_a_setting_of_another_release_is_refused_by_name(chaos: Recorder) -> None:
    with (
        chaos.attempt("versions", "request with a setting of another release"),
        expect(InvalidInputError, "setting-of-tomorrow"),
    ):
        RoundRequest.from_mapping(request(**{"setting-of-tomorrow": 1}), kind="train", arrays={})


def test_a_reply_of_another_release_is_refused_by_name(chaos: Recorder) -> None:
    records = SiteReply(site_name="anna", metrics={"num-examples": 5}).to_mapping()
    with (
        chaos.attempt("versions", "reply with a record of another release"),
        expect(InvalidInputError, "proof-of-tomorrow"),
    ):
        SiteReply.from_mapping(records | {"proof-of-tomorrow": {}}, {"w": np.zeros(2, np.float32)})


def test_a_join_file_of_another_release_is_refused(tmp_path: Path, chaos: Recorder) -> None:
    coordinator = tmp_path / "coordinator"
    coordinator.mkdir()
    identity = create_identity(coordinator / "identity.key")
    path = write_answer(
        JoinAnswer(
            name="anna",
            coordinator="127.0.0.1:9443",
            authority=create_authority(coordinator).certificate.read_text(),
            identity_key=identity.public_line,
            fingerprint="SHA256:" + "A" * 43,
        ),
        tmp_path / "anna.join.json",
        identity=identity,
    )
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"format-version": table["format-version"] + 1}))
    with (
        chaos.attempt("versions", "join file of another release"),
        expect(InvalidInputError, "format version", "this release reads"),
    ):
        read_answer(path)


def test_a_checkpoint_of_another_release_is_refused(tmp_path: Path, chaos: Recorder) -> None:
    """Its settings cannot be compared with ours, so the run is not continued by guesswork."""

    class Nowhere(Events):
        def emit(self, event: str, **fields: Any) -> None:
            return

    clock = fakes.FakeClock()
    config = fakes.prepare(tmp_path, num_server_rounds=1)
    rounds.run(config, fakes.FakeGrid(clock), clock=clock)
    from federation.coordinator.checkpoints import CheckpointStore

    store = CheckpointStore(tmp_path / "checkpoints", config)
    store._config = replace(config, learning_rate=0.5)
    with (
        chaos.attempt("versions", "checkpoint under other settings"),
        expect(RefusedError, "made under other settings", "learning-rate"),
    ):
        store.load_latest(Nowhere())
