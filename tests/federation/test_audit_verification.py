"""Two logs against each other: what either side cut, rewrote or began anew shows at the other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from federation.audit_log import Record, SignedHead
from federation.audit_verification import ReadLog, compare_logs, read_log
from federation.identity import create_identity, identity_fingerprint
from tests.federation.audit_logs import open_log


class Pair:
    """A site and its coordinator, exchanging heads as they do in rounds."""

    def __init__(self, folder: Path, rounds: int = 4) -> None:
        self.site_folder, self.coordinator_folder = folder / "site", folder / "coordinator"
        self.site = open_log(self.site_folder)
        self.coordinator = open_log(self.coordinator_folder, "coordinator", "coordinator")
        for server_round in range(1, rounds + 1):
            self.exchange(server_round)

    def exchange(self, server_round: int) -> None:
        asked = self.coordinator.append("round-started", round=server_round)
        head = self.coordinator.sign(asked).to_text()
        self.site.append("request-accepted", round=server_round, audit_head=head)
        update = hashlib.sha256(bytes([server_round])).hexdigest()
        sent = self.site.append("update-sent", round=server_round, update_sha256=update)
        self.coordinator.append(
            "site-replied", site="north", audit_head=self.site.sign(sent).to_text(), update_sha256=update
        )

    def read(self) -> tuple[ReadLog, ReadLog]:
        return read_log(self.site_folder / "audit.jsonl"), read_log(self.coordinator_folder / "audit.jsonl")

    def problems(self) -> list[str]:
        site, coordinator = self.read()
        assert not site.problems
        assert not coordinator.problems
        return list(compare_logs(site, coordinator).problems)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def cut(folder: Path, lines: int) -> None:
    path = folder / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))


def test_logs_that_were_left_alone_agree(pair: Pair) -> None:
    site, coordinator = pair.read()
    assert compare_logs(site, coordinator).problems == ()
    assert compare_logs(site, coordinator).heads == compare_logs(coordinator, site).heads == 8


@pytest.mark.parametrize("lines", [1, 2, 5])
def test_a_tail_that_is_missing_at_the_site_shows_at_the_coordinator(pair: Pair, lines: int) -> None:
    cut(pair.site_folder, lines)
    assert "the log of north: its tail is missing" in pair.problems()[0]


def test_a_tail_that_is_missing_at_the_coordinator_shows_at_the_site(pair: Pair) -> None:
    cut(pair.coordinator_folder, 2)
    assert "the log of coordinator: its tail is missing" in pair.problems()[0]


def rewrite(folder: Path, old: str, new: str) -> None:
    """What the owner of a log can do: change a record and make the chain anew from there."""
    path = folder / "audit.jsonl"
    made: list[Record] = []
    for record in read_log(path).records:
        fields = json.loads(json.dumps(dict(record.fields)).replace(old, new))
        previous = made[-1].hash if made else record.previous
        made.append(Record.build(record.sequence, record.time, record.event, fields, previous))
    path.write_bytes(b"".join(record.to_line() for record in made))


def test_a_log_written_anew_by_its_owner_shows(pair: Pair) -> None:
    rewrite(pair.site_folder, '"round": 2', '"round": 7')
    assert any("was written anew" in problem for problem in pair.problems())


def test_a_log_begun_anew_shows(pair: Pair) -> None:
    (pair.site_folder / "audit.jsonl").unlink()
    pair.site = open_log(pair.site_folder)
    pair.exchange(9)
    assert any("another log" in problem for problem in pair.problems())


def test_an_update_under_another_hash_than_was_sent_shows(pair: Pair) -> None:
    sent = pair.site.append("update-sent", update_sha256="ab" * 32)
    head = pair.site.sign(sent).to_text()
    pair.coordinator.append("site-replied", site="north", audit_head=head, update_sha256="cd" * 32)
    assert "names another update" in pair.problems()[0]


def test_a_head_that_its_owner_did_not_sign_shows(pair: Pair, tmp_path: Path) -> None:
    last = pair.site.append("stopped")
    stranger = create_identity(tmp_path / "stranger.key")
    forged = SignedHead.of(pair.site.log_id, last, stranger)
    pair.coordinator.append("site-replied", site="north", audit_head=forged.to_text())
    assert "not signed by this log's key" in pair.problems()[0]


def test_logs_of_strangers_do_not_pass_as_agreeing(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = Pair(tmp_path / "one", rounds=0), Pair(tmp_path / "other", rounds=0)
    assert "say nothing about each other" in compare_logs(one.read()[0], other.read()[1]).problems[0]


def test_heads_of_other_sites_are_left_alone(pair: Pair, tmp_path: Path) -> None:
    south = open_log(tmp_path / "south", "south")
    head = south.sign(south.append("update-sent")).to_text()
    pair.coordinator.append("site-replied", site="south", audit_head=head)
    assert pair.problems() == []


# --- a site that exchanged its identity key ---------------------------------------------------------


class TwoKeys(Pair):
    """A site whose first log was put aside when its identity key was exchanged, then rounds went on."""

    def __init__(self, folder: Path, *, told: bool = True) -> None:
        super().__init__(folder, rounds=0)
        self.folder = folder
        self.coordinator.append("site-admitted", site="north", identity_key=self.identity(self.site_folder))
        for server_round in (1, 2):
            self.exchange(server_round)
        self.old_folder, self.site_folder = self.site_folder, folder / "site after"
        self.site = open_log(self.site_folder)
        if told:
            self.coordinator.append(
                "site-admitted", site="north", identity_key=self.identity(self.site_folder)
            )
        for server_round in (3, 4, 5):
            self.exchange(server_round)

    @staticmethod
    def identity(folder: Path) -> str:
        return identity_fingerprint(read_log(folder / "audit.jsonl").public_key)


def test_each_of_two_logs_is_compared_with_its_own_part_of_the_coordinators(tmp_path: Path) -> None:
    pair = TwoKeys(tmp_path)
    site, coordinator = pair.read()
    old = read_log(pair.old_folder / "audit.jsonl")
    after, before = compare_logs(site, coordinator), compare_logs(old, coordinator)
    assert (after.heads, after.elsewhere, after.problems) == (6, 2, ())
    assert (before.heads, before.elsewhere, before.problems) == (4, 3, ())


def test_what_is_missing_shows_in_either_part(tmp_path: Path) -> None:
    pair = TwoKeys(tmp_path)
    cut(pair.old_folder, 1)
    cut(pair.site_folder, 1)
    coordinator = pair.read()[1]
    for folder in (pair.old_folder, pair.site_folder):
        problems = compare_logs(read_log(folder / "audit.jsonl"), coordinator).problems
        assert "its tail is missing" in problems[0]


def test_a_log_begun_anew_under_a_key_nobody_was_told_of_still_shows(tmp_path: Path) -> None:
    pair = TwoKeys(tmp_path, told=False)
    site, coordinator = pair.read()
    assert "begun elsewhere" in compare_logs(site, coordinator).problems[0]


def test_a_log_begun_anew_under_the_same_key_still_shows(tmp_path: Path) -> None:
    pair = TwoKeys(tmp_path)
    (pair.site_folder / "audit.jsonl").unlink()
    pair.site = open_log(pair.site_folder)
    pair.exchange(6)
    assert "begun elsewhere" in pair.problems()[0]
