"""A hospital's folder: made from images that can be read, joined with an answer for its own key."""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.flower_processes.node import load_settings
from federation.identity import create_identity
from federation.joining import JoinAnswer, JoinRequest, read_request
from federation.node_folder import (
    NodeFolder,
    create_node,
    join,
    relay_process,
    start_worker,
    worker_listens,
    worker_process,
)
from federation.provisioning import create_authority
from federation.site.policy import default_policy_text, load_policy
from federation.site.worker_config import load_worker_config
from federation.supervision import ManagedProcess
from instahide.errors import InvalidInputError, RefusedError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, 8, 8), dtype=np.uint8)
    labels = np.arange(80) % 2
    path = tmp_path / "scans.npz"
    np.savez(path, x_train=pixels[:60], y_train=labels[:60], x_test=pixels[60:], y_test=labels[60:])
    return path


def make(path: Path, images: Path, **changes: Any) -> tuple[NodeFolder, JoinRequest, Path]:
    values: dict[str, Any] = {"name": "st-mary", "data": images, "test_data": None, "public_data": None}
    return create_node(path, **(values | changes))


@pytest.fixture
def node(tmp_path: Path, images: Path) -> NodeFolder:
    return make(tmp_path / "st-mary", images)[0]


def answer_for(fingerprint: str, folder: Path) -> JoinAnswer:
    return JoinAnswer(
        name="st-mary",
        coordinator="fl.example.org:9443",
        authority=create_authority(folder).certificate.read_text(),
        identity_key=create_identity(folder / "identity.key").public_line,
        fingerprint=fingerprint,
    )


def test_a_node_is_made_with_key_policy_settings_and_request(tmp_path: Path, images: Path) -> None:
    folder, request, path = make(tmp_path / "st-mary", images, threads=1)
    assert read_request(path) == request
    assert (request.num_examples, request.evaluate_num_examples) == (60, 20)
    assert (request.class_names, request.image_shape) == (("0", "1"), (1, 8, 8))
    assert folder.policy.read_text() == default_policy_text()
    assert load_policy(folder.policy).encoding_required
    config = load_worker_config(folder.worker_config)
    assert (config.site_name, config.threads, config.path(config.data)) == ("st-mary", 1, images)
    assert config.path(config.socket) == folder.socket
    assert config.path(config.ready_file) == folder.ready_file


def test_folder_and_secrets_are_private(node: NodeFolder) -> None:
    assert node.path.stat().st_mode & 0o077 == 0
    for path in (node.key, node.identity_key, node.worker_config, node.policy):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_request_says_nothing_about_where_the_images_are(tmp_path: Path, images: Path) -> None:
    _, _, path = make(tmp_path / "st-mary", images)
    assert str(tmp_path) not in path.read_text()
    assert "scans" not in path.read_text()


def test_a_path_with_quotes_survives_the_settings_file(tmp_path: Path, images: Path) -> None:
    odd = images.rename(tmp_path / 'a "b" \\ ünï.npz')
    folder, _, _ = make(tmp_path / "st-mary", odd)
    assert tomllib.loads(folder.worker_config.read_text())["data"] == str(odd)


def test_class_names_of_the_study_are_taken_over(tmp_path: Path, images: Path) -> None:
    _, request, _ = make(tmp_path / "st-mary", images, class_names=["0", "1", "2"])
    assert request.class_names == ("0", "1", "2")


def test_a_second_init_is_refused_and_keeps_the_key(node: NodeFolder, images: Path) -> None:
    key = node.key.read_bytes()
    with pytest.raises(RefusedError, match="already holds a node"):
        make(node.path, images)
    assert node.key.read_bytes() == key


def test_a_policy_that_is_there_is_kept(tmp_path: Path, images: Path) -> None:
    (tmp_path / "st-mary").mkdir()
    (tmp_path / "st-mary" / "policy.toml").write_text("max-rounds = 3\n")
    folder, _, _ = make(tmp_path / "st-mary", images)
    assert load_policy(folder.policy).max_rounds == 3


@pytest.mark.parametrize("name", ["st mary", "../st-mary", "", "-x"])
def test_a_wrong_name_leaves_nothing_behind(tmp_path: Path, images: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="site-name"):
        make(tmp_path / "node", images, name=name)
    assert list(tmp_path.iterdir()) == [images]


def test_unreadable_images_leave_nothing_behind(tmp_path: Path, images: Path) -> None:
    with pytest.raises(InvalidInputError):
        make(tmp_path / "node", tmp_path / "nothing.npz")
    assert list(tmp_path.iterdir()) == [images]
    make(tmp_path / "node", images)  # and the second try is not refused


def test_joining_writes_what_the_node_needs(node: NodeFolder, tmp_path: Path) -> None:
    answer = answer_for(read_request(node.path / "st-mary.request.json").fingerprint, tmp_path)
    settings = join(node, answer)
    assert load_settings(node.node_config) == settings
    assert (settings.coordinator, settings.worker_socket) == ("fl.example.org:9443", node.socket)
    assert node.authority.read_text() == answer.authority
    assert node.coordinator_key.read_text().strip() == answer.identity_key
    assert relay_process(node).command[-1] == str(node.node_config)


def test_an_answer_for_another_key_is_refused_and_nothing_is_trusted(
    node: NodeFolder, tmp_path: Path, images: Path
) -> None:
    _, other, _ = make(tmp_path / "other", images)
    with pytest.raises(RefusedError, match="the answer is for the key"):
        join(node, answer_for(other.fingerprint, tmp_path))
    assert not node.authority.exists()
    assert not node.node_config.exists()


def test_joining_needs_a_node(node: NodeFolder, tmp_path: Path) -> None:
    answer = answer_for(read_request(node.path / "st-mary.request.json").fingerprint, tmp_path)
    with pytest.raises(InvalidInputError, match="holds no node"):
        join(NodeFolder(tmp_path), answer)


def test_serving_needs_a_node_that_has_joined(node: NodeFolder, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has not joined a federation yet"):
        relay_process(node)
    with pytest.raises(InvalidInputError, match="holds no node"):
        worker_process(NodeFolder(tmp_path))


@pytest.fixture
def listening(node: NodeFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeFolder]:
    """Something accepts connections on the node's socket (bound by a short name: paths are limited)."""
    node.socket.parent.mkdir(parents=True)
    monkeypatch.chdir(node.socket.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(node.socket.name)
        server.listen()
        yield node


def test_whether_a_worker_listens_is_asked_at_its_socket(node: NodeFolder) -> None:
    assert not worker_listens(node)


def test_a_second_worker_is_refused(listening: NodeFolder) -> None:
    assert worker_listens(listening)
    with pytest.raises(RefusedError, match="already up"):
        start_worker(listening)


def test_a_worker_that_does_not_come_up_is_stopped(node: NodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[ManagedProcess] = []
    monkeypatch.setattr(ManagedProcess, "start", lambda self: self)
    monkeypatch.setattr(ManagedProcess, "stop", lambda self: stopped.append(self))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ManagedProcess, "wait_until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_worker(node)
    assert len(stopped) == 1
