"""Three hospitals with real training, one session by hand: what each sends, and what it will not do."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.hidden_sum import HiddenSum, hidden_sum, moved_by, roster_entry, to_vector
from federation.identity import Identity
from federation.messages import EVALUATE, SESSION, TRAIN, UNMASK, Arrays, RoundRequest, SiteReply
from federation.privacy_ledger import PrivacyLedger
from federation.secure_aggregation import (
    Advert,
    Report,
    ServerSession,
    UnmaskAnswer,
    check_test_vector,
    decode_sum,
)
from federation.site.dataset import SiteData
from federation.site.masked_rounds import MaskedRounds
from federation.site.plans import PlanBook
from federation.site.privacy_budget import SitePrivacy
from federation.site.round_task import SiteTasks
from federation.site.run_history import RunHistory
from instahide.exposure import ExposureLedger

from .site_examples import UNASKED, digit_images, initial_weights, request, site_audit

NAMES = ("north", "south", "west")
POLICY = (
    UNASKED
    + "minimum-examples = 1\nminimum-cohort-size = 1\nencoding-required = false\nmax-repeated-rounds = 9\n"
)
WEIGHTS = initial_weights()
LENGTH = sum(array.size for array in WEIGHTS.values())


@dataclass
class Hospital:
    """A site's tasks over some digits, and its identity key."""

    name: str
    folder: Path
    tasks: SiteTasks
    key: Ed25519PrivateKey

    def ask(self, order: RoundRequest, record: bytes) -> SiteReply:
        arrays: Arrays = WEIGHTS if order.kind in (TRAIN, EVALUATE) else {}
        return self.tasks.answer(order.kind, order.to_mapping(), arrays, aggregation_record=record)


def hospital(folder: Path, name: str, first: int, policy: str = "") -> Hospital:
    folder.mkdir()
    (folder / "policy.toml").write_text(POLICY + policy)
    key = Ed25519PrivateKey.generate()
    tasks = SiteTasks(
        name,
        SiteData(digit_images(first, first + 40 + first // 10), digit_images(1500, 1520)),
        ledger=ExposureLedger(folder / "ledger.sqlite3"),
        history=RunHistory(folder),
        plans=PlanBook(folder),
        audit=site_audit(folder),
        masked_rounds=MaskedRounds(name, lambda: key),
        privacy=SitePrivacy(PrivacyLedger(folder / "privacy.sqlite3")),
        policy_path=folder / "policy.toml",
        encodings_folder=folder / "encodings",
        device="cpu",
        threads=1,
    )
    return Hospital(name, folder, tasks, key)


@dataclass
class Federation:
    hospitals: dict[str, Hospital]
    order: RoundRequest
    agreed: HiddenSum

    def of(self, kind: str, server_round: int = 1) -> RoundRequest:
        return replace(self.order, kind=kind, server_round=server_round)

    def opened(self) -> ServerSession:
        session = ServerSession(self.agreed.roster, check_test_vector(self.agreed.plan))
        for each in self.hospitals.values():
            reply = each.ask(self.of(SESSION), session.request().to_bytes())
            assert reply.refusal is None, reply.refusal
            session.add_advert(Advert.from_bytes(reply.aggregation_record))
        return session

    def reported(self, session: ServerSession, kind: str = TRAIN, server_round: int = 1) -> list[SiteReply]:
        asked = session.start_round(server_round + (kind == EVALUATE)).to_bytes()
        replies = [each.ask(self.of(kind, server_round), asked) for each in self.hospitals.values()]
        for reply in replies:
            assert reply.refusal is None, reply.refusal
            session.add_report(Report.from_bytes(reply.aggregation_record))
        return replies


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    hospitals = {name: hospital(tmp_path / name, name, 100 * i) for i, name in enumerate(NAMES)}
    roster = [roster_entry(name, Identity(each.key).public_line) for name, each in sorted(hospitals.items())]
    order = request(
        encoding="none",
        secure_aggregation=True,
        roster=roster,
        max_site_examples=100,
        reconstruction_threshold=2,
        minimum_sites=2,
    )
    return Federation(hospitals, order, hidden_sum(order, LENGTH))


def test_only_the_sum_of_real_updates_and_figures_can_be_read(federation: Federation) -> None:
    session = federation.opened()
    replies = federation.reported(session)
    assert all(reply.metrics == {} and reply.arrays == {} for reply in replies)
    session.close_reports()
    for name, message in session.unmask_requests().items():
        reply = federation.hospitals[name].ask(federation.of(UNMASK), message.to_bytes())
        session.add_answer(UnmaskAnswer.from_bytes(reply.aggregation_record))
    total = session.finish()
    decoded = decode_sum(federation.agreed.plan, total.vector, total.channels, num_survivors=3)
    assert decoded.counts == {"num-examples": 40 + 50 + 60, "evaluate-num-examples": 3 * 20}
    assert 0 < decoded.means["train-loss"] < 10
    assert 0 <= decoded.means["evaluate-accuracy-plain"] <= 1
    moved = moved_by(WEIGHTS, decoded.mean)
    assert 0.01 < float(np.linalg.norm(to_vector(moved) - to_vector(WEIGHTS))) < 10


def test_the_vector_of_a_single_report_looks_uniform(federation: Federation) -> None:
    [reply, *_] = federation.reported(federation.opened())
    vector = np.frombuffer(Report.from_bytes(reply.aggregation_record).vector, dtype="<u4")
    # Bytes of a key stream: 256 cells, chi-square of 255 degrees; 400 is 6.4 standard deviations off.
    cells = np.bincount(vector.view(np.uint8), minlength=256)
    expected = vector.nbytes / 256
    assert ((cells - expected) ** 2 / expected).sum() < 400


def test_an_evaluation_travels_under_the_mask_and_moves_nothing(federation: Federation) -> None:
    session = federation.opened()
    federation.reported(session, EVALUATE)
    session.close_reports()
    for name, message in session.unmask_requests().items():
        reply = federation.hospitals[name].ask(federation.of(UNMASK), message.to_bytes())
        session.add_answer(UnmaskAnswer.from_bytes(reply.aggregation_record))
    total = session.finish()
    decoded = decode_sum(federation.agreed.plan, total.vector, total.channels, num_survivors=3)
    assert float(np.abs(decoded.mean).max()) == 0.0
    assert decoded.counts["evaluate-num-examples"] == 60


def test_shares_are_given_once(federation: Federation) -> None:
    session = federation.opened()
    federation.reported(session)
    session.close_reports()
    message = session.unmask_requests()["north"].to_bytes()
    north = federation.hospitals["north"]
    assert north.ask(federation.of(UNMASK), message).refusal is None
    again = north.ask(federation.of(UNMASK), message)
    assert again.refusal is not None
    assert "shares are given once" in again.refusal.hint


def test_a_site_without_a_session_trains_nothing(federation: Federation) -> None:
    session = federation.opened()
    asked = session.start_round(1).to_bytes()
    north = federation.hospitals["north"]
    north.tasks._masked = MaskedRounds("north", lambda: north.key)  # as after a restart
    reply = north.ask(federation.of(TRAIN), asked)
    assert reply.refusal is not None
    assert "no session" in reply.refusal.reason
    assert RunHistory(north.folder).rounds_trained() == {}


def test_a_masked_run_cannot_be_asked_for_in_the_clear(federation: Federation) -> None:
    federation.opened()
    reply = federation.hospitals["north"].ask(federation.of(TRAIN), b"")
    assert reply.refusal is not None
    assert "do not go together" in reply.refusal.reason


def test_a_figure_that_the_policy_keeps_home_keeps_the_site_out_of_the_sum(tmp_path: Path) -> None:
    only = 'allowed-metrics = ["num-examples"]\n'
    hospitals = {name: hospital(tmp_path / name, name, 100 * i, only) for i, name in enumerate(NAMES)}
    roster = [roster_entry(name, Identity(each.key).public_line) for name, each in hospitals.items()]
    order = request(encoding="none", secure_aggregation=True, roster=roster, max_site_examples=100)
    agreed = hidden_sum(order, LENGTH)
    session = ServerSession(agreed.roster, check_test_vector(agreed.plan))
    reply = hospitals["north"].ask(replace(order, kind=SESSION), session.request().to_bytes())
    assert reply.refusal is not None
    assert "keeps it home" in reply.refusal.reason


@pytest.mark.parametrize("change", [{"clipping_range": 4.0}, {"learning_rate": 0.5}, {"ring_bits": 64}])
def test_settings_that_differ_at_the_two_ends_stop_the_session(
    federation: Federation, change: dict[str, float]
) -> None:
    other = hidden_sum(replace(federation.order, **change), LENGTH)  # type: ignore[arg-type]
    session = ServerSession(other.roster, check_test_vector(other.plan))
    reply = federation.hospitals["north"].ask(federation.of(SESSION), session.request().to_bytes())
    assert reply.refusal is not None


def test_the_audit_log_says_what_was_masked_and_holds_no_share(federation: Federation) -> None:
    session = federation.opened()
    federation.reported(session)
    session.close_reports()
    north = federation.hospitals["north"]
    answer = north.ask(federation.of(UNMASK), session.unmask_requests()["north"].to_bytes())
    lines = [json.loads(line) for line in (north.folder / "audit.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[-4:] == ["session-opened", "request-accepted", "update-sent", "shares-given"]
    sent = lines[events.index("update-sent")]
    assert sent["fields"]["masked"] is True
    shares = UnmaskAnswer.from_bytes(answer.aggregation_record).shares
    assert shares.hex()[:64] not in (north.folder / "audit.jsonl").read_text()
