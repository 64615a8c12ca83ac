"""Who can write a join file: only holders of every key it names, old ones included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from federation.identity import create_identity
from federation.join_signatures import RequestKeys
from federation.joining import JoinAnswer, JoinRequest, read_answer, read_request, write_answer, write_request
from federation.provisioning import create_authority, create_node_key, load_node_key, public_line_of
from instahide.errors import IntegrityError, InvalidInputError


class Hospital:
    """The keys of one hospital."""

    def __init__(self, folder: Path) -> None:
        self.node = load_node_key(create_node_key(folder).private)
        self.identity = create_identity(folder / "identity.key")


def request_of(hospital: Hospital, old: Hospital | None = None, **changes: Any) -> JoinRequest:
    values: dict[str, Any] = {
        "name": "st-mary",
        "public_key": public_line_of(hospital.node),
        "identity_key": hospital.identity.public_line,
        "num_examples": 100,
        "evaluate_num_examples": 20,
        "class_names": ("benign", "malignant"),
        "image_shape": (1, 8, 8),
    }
    if old is not None:
        values["replaced_public_key"] = public_line_of(old.node)
        values["replaced_identity_key"] = old.identity.public_line
    return JoinRequest(**(values | changes))


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Hospital]:
    root = tmp_path_factory.mktemp("hospitals")
    return [Hospital(root / name) for name in ("new", "old", "stranger")]


def test_a_request_for_new_keys_is_signed_by_the_old_ones_as_well(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    new, old, _ = hospitals
    keys = RequestKeys(
        node=new.node, identity=new.identity, replaced_node=old.node, replaced_identity=old.identity
    )
    request = request_of(new, old)
    path = write_request(request, tmp_path / "request.json", keys=keys)
    assert read_request(path) == request
    assert read_request(path).replaced == (request_of(old).fingerprint, request_of(old).identity)
    names = {"node-key", "identity-key", "replaced-node-key", "replaced-identity-key"}
    assert set(json.loads(path.read_text())["signatures"]) == names


@pytest.mark.parametrize("forged", ["node", "identity", "replaced_node", "replaced_identity"])
def test_whoever_lacks_one_of_the_keys_cannot_write_the_request(
    hospitals: list[Hospital], tmp_path: Path, forged: str
) -> None:
    new, old, stranger = hospitals
    keys: dict[str, Any] = {
        "node": new.node,
        "identity": new.identity,
        "replaced_node": old.node,
        "replaced_identity": old.identity,
    }
    keys[forged] = stranger.identity if forged.endswith("identity") else stranger.node
    path = write_request(request_of(new, old), tmp_path / "request.json", keys=RequestKeys(**keys))
    expected = forged.replace("_", "-") + "-key"
    with pytest.raises(IntegrityError, match=f"not signed by its {expected}"):
        read_request(path)


@pytest.mark.parametrize("change", ["left out", "too many", "no text", "no base64", "no list"])
def test_signatures_are_all_there_and_no_more(hospitals: list[Hospital], tmp_path: Path, change: str) -> None:
    new, *_ = hospitals
    path = write_request(
        request_of(new), tmp_path / "r.json", keys=RequestKeys(node=new.node, identity=new.identity)
    )
    table = json.loads(path.read_text())
    match change:
        case "left out":
            del table["signatures"]["node-key"]
        case "too many":
            table["signatures"]["replaced-node-key"] = table["signatures"]["node-key"]
        case "no text":
            table["signatures"]["node-key"] = 5
        case "no base64":
            table["signatures"]["identity-key"] = "é"
        case "no list":
            table["signatures"] = []
    path.write_text(json.dumps(table))
    with pytest.raises((IntegrityError, InvalidInputError), match="sign"):
        read_request(path)


def test_an_old_key_that_is_named_must_sign_though_none_asked(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    """Otherwise anybody could have a hospital's key taken off."""
    new, old, _ = hospitals
    keys = RequestKeys(node=new.node, identity=new.identity)
    path = write_request(request_of(new, old), tmp_path / "r.json", keys=keys)
    with pytest.raises(IntegrityError, match="'replaced-identity-key' is missing"):
        read_request(path)


def test_a_stamp_signed_for_flower_is_no_signature_on_a_request(
    hospitals: list[Hospital], tmp_path: Path
) -> None:
    """A node signs times with the same key; the file itself as such a text is worth nothing here."""
    import base64

    new, *_ = hospitals
    path = write_request(
        request_of(new), tmp_path / "r.json", keys=RequestKeys(node=new.node, identity=new.identity)
    )
    table = json.loads(path.read_text())
    unsigned = {key: value for key, value in table.items() if key != "signatures"}
    message = json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
    good = base64.b64decode(table["signatures"]["node-key"])
    prefix = b"instahide-fl\x00node key: join request 1\x00"
    new.node.public_key().verify(good, prefix + message, ec.ECDSA(hashes.SHA384()))
    for text in (message, prefix):
        stamp = new.node.sign(text, ec.ECDSA(hashes.SHA384()))
        table["signatures"]["node-key"] = base64.b64encode(stamp).decode()
        path.write_text(json.dumps(table))
        with pytest.raises(IntegrityError):
            read_request(path)


def test_an_answer_is_by_the_coordinator_in_it(hospitals: list[Hospital], tmp_path: Path) -> None:
    coordinator, stranger = create_identity(tmp_path / "a.key"), create_identity(tmp_path / "b.key")
    answer = JoinAnswer(
        name="st-mary",
        coordinator="fl.example.org:9443",
        authority=create_authority(tmp_path).certificate.read_text(),
        identity_key=coordinator.public_line,
        fingerprint=request_of(hospitals[0]).fingerprint,
    )
    path = write_answer(answer, tmp_path / "st-mary.join.json", identity=coordinator)
    assert read_answer(path) == answer
    with pytest.raises(IntegrityError, match="not signed by the coordinator's key"):
        read_answer(write_answer(answer, path, identity=stranger))


def test_the_keys_are_not_shown(hospitals: list[Hospital]) -> None:
    keys = RequestKeys(node=hospitals[0].node, identity=hospitals[0].identity)
    assert repr(keys) == f"RequestKeys(Identity({hospitals[0].identity.fingerprint}))"
