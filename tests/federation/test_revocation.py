"""A revoked hospital is out of the study, of new runs and of rosters, and Flower is made to forget it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from federation.audit_verification import read_log
from federation.coordinator.revocations import REPLACED, REVOKED, RevokedNodes, read_revocations
from federation.identity import identity_fingerprint
from federation.revocation import refuse, revoke, take_off
from federation.study import Study, admit, check_admissible, create_study, prepare_run, run_config
from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from .test_study import request_of


@dataclass
class Node:
    """A node as Flower lists it."""

    node_id: int
    name: str
    fingerprint: str


@dataclass
class Registry:
    """A SuperLink's list of nodes."""

    nodes: list[Node] = field(default_factory=list)

    def list_nodes(self) -> list[Node]:
        return list(self.nodes)

    def unregister_node(self, node_id: int) -> None:
        self.nodes = [node for node in self.nodes if node.node_id != node_id]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = create_study(tmp_path / "study", names=("fl.example.org",), listen="0.0.0.0", port=9443)
    for node_id, name in ((11, "st-mary"), (22, "northside"), (33, "west")):
        admit(made, request_of(name, tmp_path), node_id)
    return made


def registry_of(study: Study) -> Registry:
    return Registry([Node(site.node_id, site.name, site.fingerprint) for site in study.sites()])


def test_a_revoked_hospital_is_in_no_new_run_and_in_no_roster(study: Study) -> None:
    revoke(study, "st-mary", reason="laptop stolen")
    assert [site.name for site in study.sites()] == ["northside", "west"]
    hidden = run_config(study, {"secure-aggregation": True})
    assert [entry.split(" ")[0] for entry in hidden.roster] == ["northside", "west"]
    prepare_run(study, {"run-name": "t", "model": "mlp"})
    assert set(json.loads((study.run_folder("t") / "sites.json").read_text())) == {"22", "33"}


def test_the_audit_log_says_whose_keys_and_why(study: Study) -> None:
    [site] = [site for site in study.sites() if site.name == "st-mary"]
    entry, is_new = revoke(study, "st-mary", reason="laptop stolen")
    assert is_new
    log = read_log(study.path / "audit.jsonl")
    assert not log.problems
    assert log.records[-1].event == "site-revoked"
    assert log.records[-1].fields == {
        "site": "st-mary",
        "node-key": site.fingerprint,
        "identity-key": identity_fingerprint(site.identity_key),
        "reason": "laptop stolen",
    }
    assert (entry.node_id, entry.why, entry.time) == (11, REVOKED, log.records[-1].time)
    assert study.revocations() == (entry,)
    assert (study.path / "revoked.json").stat().st_mode & 0o077 == 0


def test_a_second_time_changes_nothing_and_says_when_it_was(study: Study) -> None:
    first, _ = revoke(study, "st-mary")
    records = len(read_log(study.path / "audit.jsonl").records)
    assert revoke(study, "st-mary", reason="again") == (first, False)
    assert len(read_log(study.path / "audit.jsonl").records) == records


def test_a_name_nobody_has_is_refused_with_those_there_are(study: Study) -> None:
    with pytest.raises(InvalidInputError, match="no hospital is called 'st-marry'") as refusal:
        revoke(study, "st-marry")
    assert refusal.value.hint == "admitted: northside, st-mary, west"
    assert study.revocations() == ()


@pytest.mark.parametrize("reason", ["two\nlines", "x" * 201])
def test_a_reason_is_one_short_line(study: Study, reason: str) -> None:
    with pytest.raises(InvalidInputError, match="one line"):
        revoke(study, "st-mary", reason=reason)
    assert len(study.sites()) == 3


def test_nothing_is_revoked_where_it_cannot_be_written_down(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from federation import revocation

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(revocation, "open_audit_log", full)
    with pytest.raises(OSError, match="No space"):
        revoke(study, "st-mary")
    assert len(study.sites()) == 3


def test_the_superlink_forgets_the_revoked_and_only_them(study: Study) -> None:
    registry = registry_of(study)
    assert take_off(study.path, registry) == []
    revoke(study, "st-mary")
    assert take_off(study.path, registry) == ["st-mary"]
    assert [node.name for node in registry.nodes] == ["northside", "west"]
    assert take_off(study.path, registry) == []


def test_a_request_under_the_old_keys_is_refused_and_one_under_new_keys_is_a_first_one(
    study: Study, tmp_path: Path
) -> None:
    revoke(study, "st-mary")
    with pytest.raises(RefusedError, match="was revoked on"):
        check_admissible(study, request_of("st-mary", tmp_path))
    with pytest.raises(RefusedError, match="was revoked on"):
        admit(study, replace(request_of("st-mary", tmp_path), name="st-mary-2"), 44)
    admit(study, request_of("st-mary", tmp_path / "new machine"), 55)
    assert {site.name: site.node_id for site in study.sites()} == {"northside": 22, "west": 33, "st-mary": 55}


def test_an_exchange_of_keys_takes_the_old_place_and_refuses_the_old_key(
    study: Study, tmp_path: Path
) -> None:
    old = request_of("st-mary", tmp_path)
    new = request_of(
        "st-mary", tmp_path / "new", identity_key=old.identity_key, replaced_public_key=old.public_key
    )
    registry = registry_of(study)
    registry.nodes.append(Node(44, "st-mary", new.fingerprint))
    answer = admit(study, new, 44)
    assert take_off(study.path, registry) == ["st-mary"]
    assert {node.node_id for node in registry.nodes} == {22, 33, 44}
    [site] = [site for site in study.sites() if site.name == "st-mary"]
    assert (site.node_id, site.fingerprint) == (44, answer.fingerprint)
    [entry] = study.revocations()
    assert (entry.node_id, entry.node_key, entry.identity_key, entry.why) == (
        11,
        old.fingerprint,
        "",
        REPLACED,
    )
    record = read_log(study.path / "audit.jsonl").records[-1]
    assert record.fields["replaced-keys"] == [old.fingerprint]
    assert answer.number == record.sequence
    with pytest.raises(RefusedError, match="was replaced on"):
        check_admissible(study, old)
    admit(study, new, 44)  # the file is lost: once more
    assert len(study.revocations()) == 1
    assert len(study.sites()) == 3


def test_of_two_answers_the_later_has_the_larger_number(study: Study, tmp_path: Path) -> None:
    first = admit(study, request_of("st-mary", tmp_path), 11)
    assert admit(study, request_of("st-mary", tmp_path), 11).number > first.number > 0


def test_a_damaged_list_stops_everything_rather_than_letting_somebody_in(study: Study) -> None:
    revoke(study, "st-mary")
    for text in ("{", "[5]", '[{"name": "st-mary"}]', "5"):
        (study.path / "revoked.json").write_text(text)
        with pytest.raises(IntegrityError, match=r"revoked\.json is damaged"):
            study.sites()
        with pytest.raises(IntegrityError, match=r"revoked\.json is damaged"):
            take_off(study.path, registry_of_nothing())


def registry_of_nothing() -> Registry:
    return Registry()


def test_a_run_under_way_sees_the_list_as_soon_as_it_changes(study: Study) -> None:
    nodes = RevokedNodes(study.path / "revoked.json")
    assert 11 not in nodes
    revoke(study, "st-mary")
    assert 11 in nodes
    assert 22 not in nodes
    revoke(study, "northside")
    assert {11, 22} == {node for node in (11, 22, 33) if node in nodes}
    (study.path / "revoked.json").unlink()
    assert 11 in nodes  # nobody comes back because a file is gone
    assert 11 not in RevokedNodes(None)


def test_entries_are_kept_once_and_in_order(study: Study) -> None:
    first, _ = revoke(study, "st-mary")
    second, _ = revoke(study, "west")
    refuse(study.path, [first, second])
    assert read_revocations(study.path / "revoked.json") == (first, second)
    assert read_revocations(study.path / "none.json") == ()
