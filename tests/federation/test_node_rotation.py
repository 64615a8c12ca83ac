"""New keys for a hospital that has joined: the old ones work until the answer is in, then they are gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from federation.audit_log import AuditLog
from federation.audit_verification import read_log
from federation.identity import create_identity, load_identity
from federation.joining import JoinAnswer, JoinRequest, read_request
from federation.node_folder import NodeFolder, create_node, join
from federation.node_request import request_again
from federation.node_rotation import rotate, use_waiting_keys
from federation.provisioning import create_authority, load_node_key, public_key_fingerprint, public_line_of
from instahide.errors import InvalidInputError, RefusedError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "scans.npz"
    write_images(path, 80)
    return path


def write_images(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
    np.savez(
        path,
        x_train=pixels[20:],
        y_train=np.arange(count - 20) % 2,
        x_test=pixels[:20],
        y_test=np.arange(20) % 2,
    )


class Coordinator:
    """What a node sees of one: an authority, an identity, and answers with growing numbers."""

    def __init__(self, folder: Path) -> None:
        self.authority = create_authority(folder).certificate
        self.identity = create_identity(folder / "identity.key")
        self._number = 0

    def answer(self, request: JoinRequest) -> JoinAnswer:
        self._number += 1
        return JoinAnswer(
            name=request.name,
            coordinator="fl.example.org:9443",
            authority=self.authority.read_text(),
            identity_key=self.identity.public_line,
            fingerprint=request.fingerprint,
            number=self._number,
        )


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "coordinator")


@pytest.fixture
def node(tmp_path: Path, images: Path, coordinator: Coordinator) -> NodeFolder:
    """A node that has joined."""
    folder, request, _ = create_node(
        tmp_path / "st-mary", name="st-mary", data=images, test_data=None, public_data=None
    )
    join(folder, coordinator.answer(request))
    return folder


def private_files(folder: NodeFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.path.glob("*.key"))}


# --- asking again -----------------------------------------------------------------------------------


def test_a_hospital_whose_images_grew_asks_again_under_the_same_keys(node: NodeFolder, images: Path) -> None:
    before, keys = read_request(node.path / "st-mary.request.json"), private_files(node)
    write_images(images, 150)
    request, path = request_again(node)
    assert read_request(path) == request
    assert (before.num_examples, request.num_examples) == (60, 130)
    assert (request.fingerprint, request.identity, request.replaced) == (
        before.fingerprint,
        before.identity,
        (),
    )
    assert private_files(node) == keys


def test_asking_again_needs_a_node(tmp_path: Path) -> None:
    for ask in (request_again, rotate):
        with pytest.raises(InvalidInputError, match="holds no node"):
            ask(NodeFolder(tmp_path))


# --- new keys ---------------------------------------------------------------------------------------


def test_the_old_key_stays_in_use_until_the_answer_is_in(node: NodeFolder, coordinator: Coordinator) -> None:
    old, keys = public_key_fingerprint(node.public_key), private_files(node)
    request, path = rotate(node)
    assert read_request(path) == request
    assert request.replaced == (old,)
    assert request.fingerprint != old
    assert request.identity == load_identity(node.identity_key).fingerprint
    assert {name: private_files(node)[name] for name in keys} == keys
    join(node, coordinator.answer(request))
    assert public_key_fingerprint(node.public_key) == request.fingerprint
    assert public_line_of(load_node_key(node.key)) == request.public_key
    assert node.key.stat().st_mode & 0o077 == 0
    assert set(private_files(node)) == {"node.key", "identity.key"}
    assert keys["node.key"] not in private_files(node).values()
    assert private_files(node)["identity.key"] == keys["identity.key"]


def test_a_second_rotation_before_the_answer_asks_for_the_same_key(node: NodeFolder, images: Path) -> None:
    first, _ = rotate(node)
    write_images(images, 100)
    again, _ = request_again(node)
    second, path = rotate(node)
    assert first.fingerprint == again.fingerprint == second.fingerprint == read_request(path).fingerprint
    assert again.num_examples == 80


def test_an_answer_for_the_old_key_changes_nothing_of_what_waits(
    node: NodeFolder, coordinator: Coordinator
) -> None:
    before = read_request(node.path / "st-mary.request.json")
    request, _ = rotate(node)
    join(node, coordinator.answer(before))
    assert public_key_fingerprint(node.public_key) == before.fingerprint
    join(node, coordinator.answer(request))
    assert public_key_fingerprint(node.public_key) == request.fingerprint


def test_what_was_spent_and_decided_is_kept(node: NodeFolder, coordinator: Coordinator) -> None:
    node.state.mkdir(exist_ok=True)
    for name in ("exposure.sqlite3", "privacy.jsonl", "rounds.json", "dataset.json"):
        (node.state / name).write_bytes(b"spent")
    policy, worker = node.policy.read_bytes(), node.worker_config.read_bytes()
    request, _ = rotate(node, new_identity=True)
    join(node, coordinator.answer(request))
    assert all(path.read_bytes() == b"spent" for path in node.state.iterdir())
    assert (node.policy.read_bytes(), node.worker_config.read_bytes()) == (policy, worker)


def test_with_a_new_identity_the_audit_log_is_put_aside_whole(
    node: NodeFolder, coordinator: Coordinator
) -> None:
    node.state.mkdir(exist_ok=True)
    old = load_identity(node.identity_key)
    log = AuditLog(node.state / "audit.jsonl", old, role="site", name="st-mary")
    last = log.append("started")
    request, path = rotate(node, new_identity=True)
    assert read_request(path).replaced == (public_key_fingerprint(node.public_key), old.fingerprint)
    join(node, coordinator.answer(request))
    new = load_identity(node.identity_key)
    assert new.fingerprint == request.identity != old.fingerprint
    [aside] = node.state.glob("audit.*.jsonl")
    assert aside.name == f"audit.{log.log_id[:12]}.jsonl"
    kept = read_log(aside)
    assert not kept.problems
    assert kept.records[-1] == last
    begun = AuditLog(node.state / "audit.jsonl", new, role="site", name="st-mary")
    assert begun.log_id != log.log_id


def test_an_identity_key_does_not_change_under_a_running_worker(
    node: NodeFolder, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from federation import node_rotation

    request, _ = rotate(node, new_identity=True)
    before = private_files(node)
    monkeypatch.setattr(node_rotation, "worker_listens", lambda folder: True)
    with pytest.raises(RefusedError, match="the site worker is up"):
        join(node, coordinator.answer(request))
    assert private_files(node) == before


@pytest.mark.parametrize("new_identity", [False, True])
def test_an_exchange_that_is_cut_short_anywhere_is_finished_by_the_next_join(
    node: NodeFolder, coordinator: Coordinator, tmp_path: Path, new_identity: bool
) -> None:
    """Every rename in turn is the last that is done."""
    node.state.mkdir(exist_ok=True)
    log = AuditLog(node.state / "audit.jsonl", load_identity(node.identity_key), role="site", name="st-mary")
    log.append("started")
    request, _ = rotate(node, new_identity=new_identity)
    answer = coordinator.answer(request)
    for steps in range(6):
        cut = NodeFolder(tmp_path / f"cut-{steps}")
        shutil.copytree(node.path, cut.path)
        with pytest.MonkeyPatch.context() as patched:
            stop_after(patched, steps)
            try:
                use_waiting_keys(cut)
            except InterruptedError:
                pass
            else:
                assert steps >= (4 if new_identity else 2)
        join(cut, answer)
        assert set(private_files(cut)) == {"node.key", "identity.key"}
        assert not cut.next_public_key.exists()
        assert public_line_of(load_node_key(cut.key)) == request.public_key
        assert public_key_fingerprint(cut.public_key) == request.fingerprint
        assert load_identity(cut.identity_key).fingerprint == request.identity
        assert len(list(cut.state.glob("audit.*.jsonl"))) == int(new_identity)


def stop_after(patched: pytest.MonkeyPatch, steps: int) -> None:
    """Let ``steps`` renames be done and end the process, so to speak, at the next."""
    left = [steps]

    def counting(real: object) -> object:
        def move(self: Path, target: Path) -> Path:
            left[0] -= 1
            if left[0] < 0:
                raise InterruptedError
            return real(self, target)  # type: ignore[operator]

        return move

    for name in ("replace", "rename"):
        patched.setattr(Path, name, counting(getattr(Path, name)))


def test_a_key_whose_public_half_was_never_written_is_asked_for_all_the_same(node: NodeFolder) -> None:
    first, _ = rotate(node)
    node.next_public_key.unlink()
    second, _ = rotate(node)
    assert first.fingerprint == second.fingerprint == public_key_fingerprint(node.next_public_key)


# --- whose answer -----------------------------------------------------------------------------------


def test_a_joined_node_takes_answers_of_its_own_coordinator_only(
    node: NodeFolder, coordinator: Coordinator, tmp_path: Path
) -> None:
    request = read_request(node.path / "st-mary.request.json")
    other = Coordinator(tmp_path / "other")
    with pytest.raises(
        RefusedError, match="another coordinator than the one this node has joined"
    ) as refusal:
        join(node, other.answer(request))
    assert "--another-coordinator" in refusal.value.hint
    assert node.authority.read_text() == coordinator.authority.read_text()
    join(node, other.answer(request), another_coordinator=True)
    assert node.authority.read_text() == other.authority.read_text()
    with pytest.raises(RefusedError, match="another coordinator"):
        join(node, coordinator.answer(request))


def test_an_older_answer_of_the_same_coordinator_is_refused(
    node: NodeFolder, coordinator: Coordinator
) -> None:
    """With an authority whose key was stolen since, say."""
    request = read_request(node.path / "st-mary.request.json")
    older, newer = coordinator.answer(request), coordinator.answer(request)
    join(node, newer)
    join(node, newer)
    with pytest.raises(RefusedError, match="older than the one this node has taken in"):
        join(node, older)
