"""``instahide coordinator admit`` and ``revoke``, with the hospital's side: what the two screens show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.cli import run
from federation.commands import coordinator
from federation.flower_processes.control import NodeRecord
from federation.joining import read_answer, read_request
from federation.provisioning import public_key_fingerprint
from federation.study import load_study
from instahide.errors import InvalidInputError

NUMBER = re.compile(r"\b[0-9]{5}(?: [0-9]{5}){5}\b")


@dataclass
class SuperLink:
    """Its list of nodes; ``up`` says whether anybody answers."""

    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    up: bool = True
    last: int = 100

    def register_node(self, public_key: bytes, *, name: str) -> int:
        fingerprint = public_key_fingerprint(public_key)
        if fingerprint not in self.nodes:
            self.last += 1
            self.nodes[fingerprint] = NodeRecord(self.last, name, fingerprint, "online")
        return self.nodes[fingerprint].node_id

    def list_nodes(self) -> list[NodeRecord]:
        return list(self.nodes.values())

    def unregister_node(self, node_id: int) -> None:
        self.nodes = {key: node for key, node in self.nodes.items() if node.node_id != node_id}


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    fake = SuperLink()

    @contextmanager
    def connect(study: Path) -> Iterator[SuperLink]:
        if not fake.up:
            raise InvalidInputError("no coordinator is running", hint="start it")
        yield fake

    monkeypatch.setattr(coordinator, "_control", connect)
    return fake


class Screen:
    """Runs verbs and keeps what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object, code: int = 0) -> str:
        assert run([str(word) for word in words]) == code
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.err
        if code:
            assert "\nhint: " in shown.err
        return shown.err if code else shown.out

    def facts(self, *words: object) -> dict[str, Any]:
        table: dict[str, Any] = json.loads(self(*words, "--format", "json"))
        return table


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str]) -> Screen:
    return Screen(capsys)


@pytest.fixture
def study(tmp_path: Path, screen: Screen) -> Path:
    screen("coordinator", "init", tmp_path / "study", "--host", "fl.example.org")
    return tmp_path / "study"


@pytest.fixture
def node(tmp_path: Path, screen: Screen) -> Path:
    rng = np.random.default_rng(0)
    images = tmp_path / "scans.npz"
    np.savez(images, x=rng.integers(0, 256, (80, 8, 8), dtype=np.uint8), y=np.arange(80) % 2)
    screen("node", "init", tmp_path / "st-mary", "--name", "st-mary", "--data", images)
    return tmp_path / "st-mary"


@pytest.fixture
def joined(study: Path, node: Path, superlink: SuperLink, screen: Screen) -> Path:
    screen("coordinator", "admit", study, node / "st-mary.request.json")
    screen("node", "join", node, node / "st-mary.join.json")
    return node


def test_both_screens_show_the_same_two_numbers(
    study: Path, node: Path, superlink: SuperLink, screen: Screen, tmp_path: Path
) -> None:
    [made] = NUMBER.findall(screen("coordinator", "init", tmp_path / "other", "--host", "fl.example.org"))
    asked = screen.facts("node", "request", node)["safety-number"]
    of_site, of_coordinator = NUMBER.findall(
        screen("coordinator", "admit", study, node / "st-mary.request.json")
    )
    seen_coordinator, seen_site = NUMBER.findall(screen("node", "join", node, node / "st-mary.join.json"))
    assert asked == of_site == seen_site
    assert of_coordinator == seen_coordinator
    assert len({made, of_site, of_coordinator}) == 3


def test_a_number_typed_in_is_compared_before_anything_is_done(
    study: Path, node: Path, superlink: SuperLink, screen: Screen
) -> None:
    request, right = node / "st-mary.request.json", read_request(node / "st-mary.request.json").safety_number
    wrong = right[::-1]
    text = screen("coordinator", "admit", study, request, "--safety-number", wrong, code=3)
    assert "the safety number of st-mary is not the one you typed" in text
    assert superlink.nodes == {}
    assert load_study(study).sites() == []
    assert "has 30 digits" in screen("coordinator", "admit", study, request, "--safety-number", "1", code=2)
    screen("coordinator", "admit", study, request, "--safety-number", right.replace(" ", "-"))
    answer = node / "st-mary.join.json"
    right = read_answer(answer).safety_number
    screen("node", "join", node, answer, "--safety-number", right[::-1], code=3)
    assert not (node / "authority.crt").exists()
    screen("node", "join", node, answer, "--safety-number", right)


def test_a_forged_file_is_turned_down_on_either_side(
    study: Path, node: Path, superlink: SuperLink, screen: Screen
) -> None:
    request = node / "st-mary.request.json"
    genuine = request.read_text()
    request.write_text(genuine.replace('"num-examples": ', '"num-examples": 1'))
    assert "not signed by its node-key" in screen("coordinator", "admit", study, request, code=4)
    request.write_text(genuine)
    screen("coordinator", "admit", study, request)
    answer = node / "st-mary.join.json"
    answer.write_text(answer.read_text().replace("fl.example.org", "fl.example.com"))
    assert "not signed by the coordinator's key" in screen("node", "join", node, answer, code=4)


def test_more_images_are_admitted_without_a_telephone(
    study: Path, joined: Path, superlink: SuperLink, screen: Screen, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "scans.npz", x=rng.integers(0, 256, (200, 8, 8), dtype=np.uint8), y=np.arange(200) % 2
    )
    text = screen("node", "request", joined)
    assert "--accept-changed-data" in text
    [before] = load_study(study).sites()
    shown = screen("coordinator", "admit", study, joined / "st-mary.request.json")
    assert "signed by the keys admitted before" in shown
    assert not NUMBER.search(shown)
    [after] = load_study(study).sites()
    assert after.num_examples > before.num_examples
    assert (after.node_id, after.fingerprint) == (before.node_id, before.fingerprint)
    assert "signed by the coordinator joined before" in screen(
        "node", "join", joined, joined / "st-mary.join.json"
    )


def test_keys_are_exchanged_without_a_telephone_and_the_old_one_is_taken_off(
    study: Path, joined: Path, superlink: SuperLink, screen: Screen
) -> None:
    [old] = superlink.nodes
    facts = screen.facts("node", "rotate", joined)
    assert facts["replaced-keys"] == [old]
    shown = screen.facts("coordinator", "admit", study, joined / "st-mary.request.json")
    assert shown["signed-by-known-keys"] is True
    assert list(superlink.nodes) == [facts["fingerprint"]]
    screen("node", "join", joined, joined / "st-mary.join.json")
    assert public_key_fingerprint(joined / "node.pub") == facts["fingerprint"]
    [site] = load_study(study).sites()
    assert site.node_id == superlink.nodes[facts["fingerprint"]].node_id


def test_a_revoked_hospital_is_out_and_comes_back_with_new_keys_and_a_telephone_call(
    study: Path, joined: Path, superlink: SuperLink, screen: Screen
) -> None:
    text = screen("coordinator", "revoke", study, "st-mary", "--reason", "laptop stolen")
    assert "st-mary is revoked" in text
    assert "the SuperLink has taken the key off" in text
    assert superlink.nodes == {}
    assert load_study(study).sites() == []
    request = joined / "st-mary.request.json"
    assert "was revoked on" in screen("coordinator", "admit", study, request, code=3)
    screen("node", "rotate", joined)
    assert "the identity key of st-mary was revoked" in screen("coordinator", "admit", study, request, code=3)
    assert superlink.nodes == {}
    screen("node", "rotate", joined, "--new-identity")
    shown = screen("coordinator", "admit", study, request)
    assert read_request(request).safety_number in shown
    screen("node", "join", joined, joined / "st-mary.join.json")
    assert [site.name for site in load_study(study).sites()] == ["st-mary"]


def test_a_coordinator_that_is_down_revokes_all_the_same(
    study: Path, joined: Path, superlink: SuperLink, screen: Screen
) -> None:
    superlink.up = False
    facts = screen.facts("coordinator", "revoke", study, "st-mary")
    assert (facts["is-new"], facts["taken-off-superlink"]) == (True, False)
    assert "no coordinator is running" in facts["reason-not-taken-off"]
    assert load_study(study).sites() == []
    assert len(superlink.nodes) == 1
    assert "at the next `instahide coordinator start`" in screen("coordinator", "revoke", study, "st-mary")
    superlink.up = True
    facts = screen.facts("coordinator", "revoke", study, "st-mary")  # a second time, to be sure
    assert (facts["is-new"], facts["taken-off-superlink"]) == (False, True)
    assert superlink.nodes == {}


def test_a_hospital_nobody_knows_cannot_be_revoked(study: Path, joined: Path, screen: Screen) -> None:
    text = screen("coordinator", "revoke", study, "st-marry", code=2)
    assert "hint: admitted: st-mary" in text
