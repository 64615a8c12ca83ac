"""Requests and answers: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.identity import create_identity, load_identity
from federation.join_signatures import RequestKeys
from federation.joining import (
    JoinAnswer,
    JoinRequest,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from federation.provisioning import create_authority, create_node_key, load_node_key
from federation.safety_numbers import coordinator_safety_number, site_safety_number
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("joining")


@pytest.fixture(scope="module")
def request_file(folder: Path) -> Path:
    key = create_node_key(folder)
    request = JoinRequest(
        name="st-mary",
        public_key=key.public.read_text().strip(),
        identity_key=create_identity(folder / "identity.key").public_line,
        num_examples=1_000,
        evaluate_num_examples=200,
        class_names=("benign", "malignant"),
        image_shape=(3, 32, 32),
    )
    return write_request(request, folder / "st-mary.request.json", keys=keys_in(folder))


def keys_in(folder: Path) -> RequestKeys:
    """The keys that sign the request of this module."""
    return RequestKeys(
        node=load_node_key(folder / "node.key"), identity=load_identity(folder / "identity.key")
    )


@pytest.fixture(scope="module")
def answer_file(folder: Path, request_file: Path) -> Path:
    authority = create_authority(folder)
    answer = JoinAnswer(
        name="st-mary",
        coordinator="fl.example.org:9443",
        authority=authority.certificate.read_text(),
        identity_key=read_request(request_file).identity_key,
        fingerprint=read_request(request_file).fingerprint,
        number=7,
    )
    return write_answer(answer, folder / "st-mary.join.json", identity=load_identity(folder / "identity.key"))


def test_a_request_is_read_back_as_it_was_written(request_file: Path, tmp_path: Path) -> None:
    request = read_request(request_file)
    assert (request.name, request.num_examples, request.image_shape) == ("st-mary", 1_000, (3, 32, 32))
    again = write_request(request, tmp_path / "again.json", keys=keys_in(request_file.parent))
    assert read_request(again) == request
    assert request.safety_number == site_safety_number(request.public_key, request.identity_key)


def test_an_answer_is_read_back_as_it_was_written(answer_file: Path, tmp_path: Path) -> None:
    answer = read_answer(answer_file)
    assert (answer.coordinator, answer.number) == ("fl.example.org:9443", 7)
    identity = load_identity(answer_file.parent / "identity.key")
    assert read_answer(write_answer(answer, tmp_path / "again.json", identity=identity)) == answer
    assert answer.safety_number == coordinator_safety_number(answer.authority, answer.identity_key)


def test_no_private_key_is_in_what_travels(request_file: Path, answer_file: Path) -> None:
    for file in (request_file, answer_file):
        assert "PRIVATE" not in file.read_text()


def test_the_two_kinds_are_not_confused(request_file: Path, answer_file: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not a join-answer file"):
        read_answer(request_file)
    with pytest.raises(InvalidInputError, match="is not a join-request file"):
        read_request(answer_file)


def test_another_release_is_named(request_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="format version 2, this release reads 3"):
        read_request(edited(request_file, tmp_path, {"format-version": 2}))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no file"):
        read_request(tmp_path / "none.json")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_answer(tmp_path)


def test_a_huge_file_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "huge.json").write_text("[" + "1," * 200_000 + "1]")
    with pytest.raises(InvalidInputError, match="is not a join-request file"):
        read_request(tmp_path / "huge.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../st-mary"),
        ("name", "st mary"),
        ("name", ""),
        ("public-key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE"),
        ("public-key", "\ud800"),
        ("identity-key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE"),
        ("identity-key", "\ud800"),
        ("num-examples", -1),
        ("num-examples", True),
        ("num-examples", 1e3),
        ("class-names", []),
        ("class-names", ["a", "a"]),
        ("class-names", ["line\nbreak", "b"]),
        ("class-names", ["\ud800", "b"]),
        ("image-shape", [3, 32]),
        ("image-shape", [3, 0, 32]),
        ("image-shape", [3, 10**9, 32]),
        ("seed", 7),
    ],
)
def test_a_wrong_entry_of_a_request_is_refused(
    request_file: Path, tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        read_request(edited(request_file, tmp_path, {key: value}))
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("coordinator", "fl.example.org"),
        ("coordinator", "https://fl.example.org:9443"),
        ("coordinator", "fl.example.org:0"),
        ("coordinator", "fl.example.org:70000"),
        ("authority", "not a certificate"),
        ("authority", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("authority", "zürich"),
        ("identity-key", "zürich"),
        ("fingerprint", "MD5:00"),
    ],
)
def test_a_wrong_entry_of_an_answer_is_refused(
    answer_file: Path, tmp_path: Path, key: str, value: Any
) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        read_answer(edited(answer_file, tmp_path, {key: value}))
    assert refusal.value.hint


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_that_is_no_exchange_file_is_invalid_input(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "any.json").write_bytes(data)
    for read in (read_request, read_answer):
        with pytest.raises(InvalidInputError):
            read(tmp_path / "any.json")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_file_that_was_edited_anywhere_is_refused(
    request_file: Path, answer_file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is put in place of one entry: it is no such file any more, or the signature says so."""
    for file, read in ((request_file, read_request), (answer_file, read_answer)):
        table = json.loads(file.read_text())
        key = data.draw(st.sampled_from(sorted(table)))
        value = data.draw(JSON)
        if value == table[key] and type(value) is type(table[key]):
            continue
        with pytest.raises(InstaHideError) as refusal:
            read(edited(file, tmp_path, {key: value}))
        assert isinstance(refusal.value, InvalidInputError | IntegrityError)
        refusal.value.message.encode()  # can be printed
        assert refusal.value.hint


def edited(file: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A copy of ``file`` in ``folder`` with some entries replaced."""
    copy = folder / "edited.json"
    copy.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return copy
