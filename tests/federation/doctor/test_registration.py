"""Asking whether a key is registered: what is sent is Flower's own form, and nothing changes there."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from federation.doctor.checks import State
from federation.doctor.network import Address
from federation.doctor.registration import (
    INVALID_INTERVAL,
    NOT_ACTIVATED,
    announcement,
    check_registration,
    check_release,
)
from federation.provisioning import create_authority, create_node_key, issue_server_certificate
from instahide import __version__
from instahide.errors import InvalidInputError

from .gateways import HOST, Behaviour, gateway


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_node_key(tmp_path_factory.mktemp("node")).private


@contextmanager
def serving(folder: Path, behaviour: Behaviour) -> Iterator[Address]:
    authority = create_authority(folder)
    files = issue_server_certificate(authority, folder, names=[HOST])
    with gateway(files, authority.certificate, behaviour) as address:
        yield address


@pytest.mark.parametrize("length", [0, 1, 127, 128, 215, 16_383, 16_384, 70_000])
def test_the_announcement_is_flowers_message(length: int) -> None:
    key = bytes(index % 251 for index in range(length))
    expected = ActivateNodeRequest(public_key=key, heartbeat_interval=0.0)
    read = ActivateNodeRequest.FromString(announcement(key))
    assert read == expected
    if length:
        assert announcement(key) == expected.SerializeToString(deterministic=True)


def test_the_codes_are_flowers() -> None:
    assert ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL == INVALID_INTERVAL
    assert ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED == NOT_ACTIVATED


def test_the_call_is_signed_as_flower_verifies_it(tmp_path: Path, key: Path) -> None:
    behaviour = Behaviour()
    with serving(tmp_path, behaviour) as address:
        assert check_registration(address, key).state is State.ok
    [(path, headers, body)] = behaviour.calls
    headers = {name.lower(): value for name, value in headers.items()}
    public = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
    stamp = headers[TIMESTAMP_HEADER]
    signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
    assert path == "/v1/fleet/activate-node"
    assert verify_signature(bytes_to_public_key(public), stamp.encode(), signature)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()) < 3600
    sent = ActivateNodeRequest.FromString(body)
    assert (sent.public_key, sent.heartbeat_interval) == (public, 0.0)


@pytest.mark.parametrize(
    ("status", "code", "state", "words"),
    [
        (400, 2003, State.ok, "knows this node's key"),
        (412, 2004, State.failed, "does not know"),
        (401, None, State.failed, "time stamp"),
        (502, None, State.skipped, "HTTP 502"),
        (200, None, State.skipped, "HTTP 200"),
    ],
)
def test_what_the_answers_mean(
    tmp_path: Path, key: Path, status: int, code: int | None, state: State, words: str
) -> None:
    with serving(tmp_path, Behaviour(status=status, code=code)) as address:
        outcome = check_registration(address, key)
    assert outcome.state is state
    assert words in outcome.seen


@pytest.mark.parametrize(
    ("release", "state"), [(__version__, State.ok), ("9.9.9", State.warning), (None, State.skipped)]
)
def test_releases_are_compared(tmp_path: Path, key: Path, release: str | None, state: State) -> None:
    with serving(tmp_path, Behaviour(release=release)) as address:
        outcome = check_release(address, key)
    assert outcome.state is state
    assert __version__ in outcome.seen


def test_nothing_is_signed_for_a_peer_that_is_not_trusted(tmp_path: Path, key: Path) -> None:
    behaviour = Behaviour()
    other = create_authority(tmp_path / "other").certificate
    with serving(tmp_path, behaviour) as address:
        distrusting = Address(address.host, address.port, other)
        assert check_registration(distrusting, key).state is State.skipped
        assert check_release(distrusting, key).state is State.skipped
    assert behaviour.calls == []


def test_what_is_not_a_node_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_text("nothing")
    (tmp_path / "node.key").chmod(0o600)
    for name in ("node.key", "missing.key"):
        with pytest.raises(InvalidInputError, match=name):
            check_registration(Address(HOST, 1, tmp_path), tmp_path / name)
