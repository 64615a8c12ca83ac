"""What a site writes down about each request, before its reply leaves."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.audit_log import AuditLog, Record, SignedHead
from federation.audit_verification import read_log
from federation.identity import create_identity, load_identity
from federation.messages import Arrays, SiteReply
from federation.packing import arrays_sha256
from federation.plan import Plan
from federation.site.audit import AUDIT_FILE, SiteAudit, open_site_log, update_norm
from federation.site.plans import APPROVED, PlanBook
from federation.site.refusals import CancelledTaskError
from federation.site.worker_config import load_worker_config

from .site_examples import UNASKED, request, write_site
from .test_round_task import WEIGHTS, Site, why


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def records(site: Site) -> list[Record]:
    log = read_log(site.folder / AUDIT_FILE)
    assert log.problems == ()
    return list(log.records)


def events(site: Site) -> list[str]:
    return [record.event for record in records(site)]


def digest_by_hand(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        shape = ", ".join(str(side) for side in array.shape)
        digest.update(f'["{name}", "float32", [{shape}]]'.encode() + array.tobytes())
    return digest.hexdigest()


def test_a_round_is_accepted_and_its_update_described_before_it_leaves(site: Site) -> None:
    reply = site.ask(1, run_name="trial")
    asked, sent = records(site)[-2:]
    assert asked.event == "request-accepted"
    plan = Plan.of(request(1, run_name="trial"), bundle_sha256="")
    assert asked.fields == {
        "kind": "train",
        "run": "trial",
        "round": 1,
        "plan-sha256": plan.sha256,
        "plan-approved": False,
    }
    assert sent.event == "update-sent"
    squares = sum(np.sum((reply.arrays[name] - WEIGHTS[name]).astype(float) ** 2) for name in WEIGHTS)
    assert sent.fields["norm"] == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert sent.fields["bytes"] == 4 * sum(array.size for array in WEIGHTS.values())
    assert sent.fields["update-sha256"] == digest_by_hand(reply.arrays) == arrays_sha256(reply.arrays)
    assert (sent.fields["exposures-own"], sent.fields["exposures-partner"]) == (120, 360)
    assert sent.fields["exposures-largest"] == 1


def test_the_head_that_comes_with_a_reply_is_that_of_its_record(site: Site) -> None:
    key = load_identity(site.folder / "identity.key").public_line
    for asked in ({"server_round": 1}, {"server_round": 2, "kind": "evaluate"}, {"num_mixed": 2}):
        reply = site.ask(**asked)
        head = SignedHead.from_text(reply.audit_head)
        last = records(site)[-1]
        assert (head.sequence, head.hash) == (last.sequence, last.hash)
        assert head.is_by(key)
    assert events(site)[-4:] == [
        "update-sent",
        "request-accepted",
        "measurement-sent",
        "request-refused",
    ]


def test_a_refusal_by_policy_is_recorded_with_its_reason_and_an_error_without(site: Site) -> None:
    site.ask(1, num_mixed=2)
    by_policy = records(site)[-1].fields
    assert by_policy["refusal"] == "policy"
    assert "num-mixed 2" in by_policy["reason"]
    site.ask(1, arrays={})
    by_error = records(site)[-1].fields
    assert by_error["refusal"] == "error"
    assert "reason" not in by_error


def test_nonsense_is_recorded_in_bounds(site: Site) -> None:
    site.tasks.answer("x" * 500, {"run-name": "line\nbreak" * 100, "server-round": -7, "y": 1}, {})
    fields = records(site)[-1].fields
    assert len(fields["kind"]) <= 20
    assert len(fields["run"]) <= 64
    assert "\n" not in fields["run"]
    assert fields["round"] == 0


def test_a_changed_or_lost_policy_is_recorded_once(site: Site) -> None:
    path = site.folder / "policy.toml"
    for text in (UNASKED, UNASKED, UNASKED + "max-rounds = 9\n"):
        path.write_text(text)
        assert site.ask(1, kind="evaluate").refusal is None
    path.unlink()
    site.ask(1, kind="evaluate")
    changes = [record for record in records(site) if record.event == "policy-changed"]
    assert [change.fields["policy-sha256"] for change in changes] == [
        hashlib.sha256(UNASKED.encode()).hexdigest(),
        hashlib.sha256((UNASKED + "max-rounds = 9\n").encode()).hexdigest(),
        "unreadable",
    ]


def test_an_abandoned_request_is_recorded(site: Site) -> None:
    questions = iter([False] * 5)
    mapping = request(local_epochs=1000).to_mapping()
    with pytest.raises(CancelledTaskError):
        site.tasks.answer("train", mapping, WEIGHTS, should_stop=lambda: next(questions, True))
    assert events(site)[-2:] == ["request-accepted", "request-abandoned"]


def test_a_waiting_plan_is_recorded_once_and_served_after_it_was_approved(site: Site) -> None:
    (site.folder / "policy.toml").write_text("")
    for _ in range(2):
        kind, reason = why(site.ask(1))
        assert kind == "approval"
        assert "waits for this site's approval" in reason
    assert events(site)[-3:] == ["plan-pending", "request-refused", "request-refused"]
    assert site.uses() == ({0}, {0})
    book = PlanBook(site.folder)
    book.decide(book.find("").plan, APPROVED, by="somebody")
    assert site.ask(1).arrays
    assert [record for record in records(site) if record.event == "request-accepted"][-1].fields[
        "plan-approved"
    ]
    assert why(site.ask(2, local_epochs=2))[0] == "approval"


def test_a_plan_that_policy_forbids_anyway_does_not_wait_for_anyone(site: Site) -> None:
    (site.folder / "policy.toml").write_text("")
    assert why(site.ask(1, num_mixed=2))[0] == "policy"
    assert "class names" in why(site.ask(1, class_names=["a", "b"]))[1]
    assert PlanBook(site.folder).entries() == []


class FullDisk:
    """``os.write`` on a disk that is full from the ``after``-th write on."""

    def __init__(self, after: int) -> None:
        self.left, self.real = after, os.write

    def __call__(self, descriptor: int, data: Any) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(descriptor, data)


@pytest.mark.parametrize("records_that_fit", [0, 1, 2])
def test_where_the_log_cannot_be_written_no_update_leaves(
    site: Site, monkeypatch: pytest.MonkeyPatch, records_that_fit: int
) -> None:
    """Records of a round: policy-changed, request-accepted, update-sent."""
    monkeypatch.setattr("federation.audit_log.os.write", FullDisk(records_that_fit))
    reply = site.ask(1)
    kind, reason = why(reply)
    assert kind == "error"
    assert reason == "the site's audit log cannot be written, so nothing leaves the site"
    assert reply.audit_head == ""
    assert site.uses() == (({1}, {3}) if records_that_fit == 2 else ({0}, {0}))
    monkeypatch.undo()
    assert site.ask(2).arrays


# --- the coordinator's head --------------------------------------------------------------------


@pytest.fixture
def joined(site: Site) -> tuple[Site, AuditLog]:
    """The site knows a coordinator's key; that coordinator's log."""
    coordinator = site.folder / "coordinator"
    coordinator.mkdir()
    identity = create_identity(coordinator / "identity.key")
    (site.folder / "coordinator.pub").write_text(identity.public_line + "\n")
    own = AuditLog(
        site.folder / AUDIT_FILE, load_identity(site.folder / "identity.key"), role="site", name="north"
    )
    site.tasks._audit = SiteAudit(own, coordinator_key=site.folder / "coordinator.pub")
    return site, AuditLog(coordinator / "audit.jsonl", identity, role="coordinator", name="coordinator")


def ask_with(site: Site, head: str) -> SiteReply:
    mapping = request(1, evaluate=False).to_mapping() | {"audit-head": head}
    return site.tasks.answer("train", mapping, WEIGHTS)


def test_the_coordinators_head_is_kept(joined: tuple[Site, AuditLog]) -> None:
    site, coordinator = joined
    head = coordinator.sign(coordinator.append("round-started", round=1)).to_text()
    assert ask_with(site, head).arrays
    [accepted] = [record for record in records(site) if record.event == "request-accepted"]
    assert accepted.fields["audit-head"] == head


def test_a_request_that_the_joined_coordinator_did_not_sign_is_refused(
    joined: tuple[Site, AuditLog], tmp_path: Path
) -> None:
    site, coordinator = joined
    last = coordinator.append("round-started", round=1)
    stranger = SignedHead.of(coordinator.log_id, last, create_identity(tmp_path / "stranger.key"))
    good = coordinator.sign(last).to_text()
    for head in ("", stranger.to_text(), good.replace(f":{last.sequence}:", f":{last.sequence + 1}:")):
        kind, reason = why(ask_with(site, head))
        assert kind == "policy"
        assert "no audit head signed by the coordinator" in reason
    assert why(ask_with(site, "nonsense"))[0] == "error"
    assert site.uses() == ({0}, {0})


def test_the_log_of_a_site_is_begun_under_the_key_that_worker_toml_names(tmp_path: Path) -> None:
    config = load_worker_config(write_site(tmp_path, worker='identity-key = "own.key"\n'))
    log = open_site_log(config)
    read = read_log(tmp_path / "state" / AUDIT_FILE)
    assert read.log_id == log.log_id
    assert read.public_key == load_identity(tmp_path / "own.key").public_line


def test_the_norm_is_over_all_arrays_in_double_precision() -> None:
    received = {"a": np.array([1e4], np.float32), "b": np.zeros((1, 2), np.float32)}
    update = {"a": np.array([1e4 + 3], np.float32), "b": np.array([[0.0, 4.0]], np.float32)}
    assert update_norm(update, received) == 5.0
