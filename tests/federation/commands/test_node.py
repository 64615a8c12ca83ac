"""``instahide node``: options, outputs and exit codes, without any process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from federation.cli import run
from federation.identity import load_or_create_identity
from federation.joining import JoinAnswer, read_request, write_answer
from federation.provisioning import certificate_fingerprint, create_authority, create_node_key


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "scans.npz"
    np.savez(path, x=rng.integers(0, 256, (80, 8, 8), dtype=np.uint8), y=np.arange(80) % 2)
    return path


@pytest.fixture
def node(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "st-mary"
    assert run(["node", "init", str(folder), "--name", "st-mary", "--data", str(images)]) == 0
    capsys.readouterr()
    return folder


def answer_file(folder: Path, fingerprint: str) -> Path:
    authority = create_authority(folder).certificate
    identity = load_or_create_identity(folder / "identity.key")
    answer = JoinAnswer(
        name="st-mary",
        coordinator="fl.example.org:9443",
        authority=authority.read_text(),
        identity_key=identity.public_line,
        fingerprint=fingerprint,
    )
    return write_answer(answer, folder / "st-mary.join.json", identity=identity)


def fails(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> str:
    """Run ``words``, expect ``code`` and an error with a hint; what went to stderr."""
    assert run(words) == code
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "\nhint: " in text
    assert "Traceback" not in text
    return text


def test_init_tells_what_to_send_and_what_to_read_out(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "st-mary"
    assert run(["node", "init", str(folder), "--name", "st-mary", "--data", str(images)]) == 0
    text = capsys.readouterr().out
    request = read_request(folder / "st-mary.request.json")
    assert request.fingerprint in text
    assert str(folder / "st-mary.request.json") in text
    assert f"st-mary: {request.num_examples} training and {80 - request.num_examples} test images" in text


def test_init_in_json(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["node", "init", str(tmp_path / "n"), "--name", "n", "--data", str(images), "--format", "json"]
    assert run([*words, "--class", "0", "--class", "1", "--class", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    request = read_request(Path(facts["request"]))
    assert facts["fingerprint"] == request.fingerprint
    assert request.class_names == ("0", "1", "2")


def test_a_second_init_is_refused(node: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["node", "init", str(node), "--name", "st-mary", "--data", str(images)]
    assert "already holds a node" in fails(capsys, words, 3)


def test_init_without_images_or_with_none_to_be_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["node", "init", str(tmp_path / "n"), "--name", "n"]
    assert "--data" in fails(capsys, words, 2)
    fails(capsys, [*words, "--data", str(tmp_path / "nothing")], 2)
    assert list(tmp_path.iterdir()) == []


def test_join_shows_the_authority_to_compare(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = read_request(node / "st-mary.request.json").fingerprint
    answer = answer_file(node.parent, fingerprint)
    assert run(["node", "join", str(node), str(answer)]) == 0
    text = capsys.readouterr().out
    assert "the coordinator is fl.example.org:9443" in text
    assert certificate_fingerprint(node.parent / "authority.crt") in text
    assert run(["node", "join", str(node), str(answer), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["coordinator"] == "fl.example.org:9443"


def test_an_answer_for_another_node_is_refused(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = create_node_key(node.parent / "stranger")
    answer = answer_file(node.parent, stranger.fingerprint)
    assert stranger.fingerprint in fails(capsys, ["node", "join", str(node), str(answer)], 3)


def test_join_takes_an_answer_only(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["node", "join", str(node), str(node / "st-mary.request.json")]
    assert "is not a join-answer file" in fails(capsys, words, 2)


def test_a_node_that_has_not_joined_does_not_start(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has not joined" in fails(capsys, ["node", "start", str(node)], 2)


def test_status_of_a_node_that_is_down_fails_and_still_tells(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["node", "status", str(node), "--format", "json"]) == 5
    output = capsys.readouterr()
    facts = json.loads(output.out)
    assert (facts["worker"], facts["joined"], facts["ready"]) == ("down", False, {})
    assert facts["connection"]["state"] == "unknown"  # it never served
    assert f"hint: instahide node start {node}" in output.err


def test_status_of_a_folder_without_a_node_is_invalid_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no node" in fails(capsys, ["node", "status", str(tmp_path)], 2)
