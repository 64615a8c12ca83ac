"""Two small files bring a hospital into a federation; no private key ever travels.

    hospital      instahide node init       makes the keys, writes  NAME.request.json
    coordinator   instahide coordinator admit NAME.request.json    writes  NAME.join.json
    hospital      instahide node join NAME.join.json

The request holds the public halves of the node's key and of the site's identity key, how many
images the site has, and the class names and image shape that all sites of a study must share. The
answer holds the coordinator's address, the certificate of the federation's authority and the
coordinator's identity key.

Both files are signed (``join_signatures``): the request by both of its keys, so that nobody can ask
with a key that is not his, the answer by the coordinator's identity key. A signature shows that a
file is of one piece, not whose it is: for that, both sides read a safety number to each other over
another channel (``safety_numbers``). A request that replaces keys is signed by the old ones as well,
and an answer to a hospital that has joined must be by the coordinator it joined; then nobody need
telephone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cryptography import x509

from instahide.atomic import atomic_write_text
from instahide.errors import InvalidInputError

from .identity import Identity, identity_fingerprint, load_public_identity
from .join_signatures import (
    IDENTITY,
    SIGNATURES,
    RequestKeys,
    check_answer,
    check_request,
    sign_answer,
    signed_bytes,
)
from .provisioning import public_key_fingerprint
from .safety_numbers import coordinator_safety_number, site_safety_number
from .setting_rules import Rule, check_value

FORMAT_VERSION = 3
MAX_BYTES = 256 * 1024
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_NAME = Rule(kind=str, meaning="the hospital's short name", pattern=NAME_PATTERN)
_COUNT = Rule(kind=int, meaning="a number of images", minimum=0, maximum=10**12)
MAX_CLASSES, MAX_CLASS_NAME, MAX_SIDE = 10_000, 200, 65_536
_TEXT = Rule(kind=str, meaning="text", pattern=r"[^\x00]{1,100000}")
_TEXT_OR_NONE = Rule(kind=str, meaning="text, or nothing", pattern=r"[^\x00]{0,100000}")


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """What a hospital asks with. ``public_key`` and ``identity_key`` are OpenSSH lines: the node's
    key, with which it connects, and the site's, with which it signs; those it had before, where it
    replaces them, are ``replaced_public_key`` and ``replaced_identity_key`` ("" where it does not)."""

    name: str
    public_key: str
    identity_key: str
    num_examples: int
    evaluate_num_examples: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    replaced_public_key: str = ""
    replaced_identity_key: str = ""

    RULES: ClassVar[dict[str, Rule]] = {
        "name": _NAME,
        "public-key": _TEXT,
        "identity-key": _TEXT,
        "num-examples": _COUNT,
        "evaluate-num-examples": _COUNT,
        "class-names": Rule(kind=(str,), meaning="class names in label order"),
        "image-shape": Rule(kind=(int,), meaning="channels, height, width"),
        "replaced-public-key": _TEXT_OR_NONE,
        "replaced-identity-key": _TEXT_OR_NONE,
    }

    def __post_init__(self) -> None:
        for key in (self.public_key, self.replaced_public_key or self.public_key):
            if not key.isascii():
                raise InvalidInputError("a node key is no OpenSSH line", hint="send the file as it was made")
            public_key_fingerprint(key.encode("ascii"))  # raises for what is not a node key
        for line in (self.identity_key, self.replaced_identity_key or self.identity_key):
            load_public_identity(line)
        _check_class_names(self.class_names)
        if len(self.image_shape) != 3 or not all(1 <= side <= MAX_SIDE for side in self.image_shape):
            raise InvalidInputError(
                f"image-shape is {list(self.image_shape)!r:.100}, not channels, height and width",
                hint="for example [3, 32, 32]",
            )

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` of the node's key, to be compared by telephone."""
        return public_key_fingerprint(self.public_key.encode("ascii"))

    @property
    def identity(self) -> str:
        """``SHA256:...`` of the site's identity key, to be compared by telephone."""
        return identity_fingerprint(self.identity_key)

    @property
    def safety_number(self) -> str:
        """Of both keys, to be compared by telephone."""
        return site_safety_number(self.public_key, self.identity_key)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Fingerprints of the keys this request replaces: none, the node's, or node's and identity's."""
        found = []
        if self.replaced_public_key:
            found.append(public_key_fingerprint(self.replaced_public_key.encode("ascii")))
        if self.replaced_identity_key:
            found.append(identity_fingerprint(self.replaced_identity_key))
        return tuple(found)


def _check_class_names(names: tuple[str, ...]) -> None:
    for name in names:
        if not name.isprintable() or not 1 <= len(name) <= MAX_CLASS_NAME:
            raise InvalidInputError(
                f"the class name {name!r:.100} is not printable text of up to {MAX_CLASS_NAME} characters",
                hint="rename the class",
            )
    if not names or len(set(names)) != len(names):
        raise InvalidInputError(
            f"class-names has {len(names)} names, {len(set(names))} of them different",
            hint="a study has at least one class, and every class its own name",
        )


@dataclass(frozen=True, kw_only=True)
class JoinAnswer:
    """What the coordinator answers with. ``authority`` is a PEM certificate, ``identity_key`` the
    OpenSSH line of the key that signs the heads of its audit log, ``number`` that of the record in it:
    of two answers, the later has the larger."""

    name: str
    coordinator: str
    authority: str
    identity_key: str
    fingerprint: str
    number: int = 0

    RULES: ClassVar[dict[str, Rule]] = {
        "name": _NAME,
        "coordinator": Rule(kind=str, meaning="host:port of the gateway", pattern=r"[^\s/]{1,260}:\d{1,5}"),
        "authority": _TEXT,
        "identity-key": _TEXT,
        "fingerprint": Rule(kind=str, meaning="of the node's key", pattern=r"SHA256:[A-Za-z0-9+/]{43}"),
        "number": Rule(kind=int, meaning="grows with each answer", minimum=0, maximum=10**15),
    }

    def __post_init__(self) -> None:
        load_public_identity(self.identity_key)
        port = int(self.coordinator.rpartition(":")[2])
        if not self.coordinator.isascii() or not 1 <= port <= 65_535:
            raise InvalidInputError(
                f"coordinator is {self.coordinator!r:.100}, not host:port", hint="ask for the file anew"
            )
        try:
            x509.load_pem_x509_certificate(self.authority.encode("ascii"))
        except ValueError as error:  # also for what is not ASCII
            raise InvalidInputError(
                "authority is not a PEM certificate", hint="ask the coordinator for the file anew"
            ) from error

    @property
    def safety_number(self) -> str:
        """Of the coordinator's authority and identity key, to be compared by telephone."""
        return coordinator_safety_number(self.authority, self.identity_key)


def write_request(request: JoinRequest, path: Path, *, keys: RequestKeys) -> Path:
    """Write a request as JSON, signed by its keys and by those it replaces."""
    table = _table(request)
    return _write(table, keys.sign(signed_bytes(table)), path)


def write_answer(answer: JoinAnswer, path: Path, *, identity: Identity) -> Path:
    """Write an answer as JSON, signed by the coordinator's identity key."""
    table = _table(answer)
    return _write(table, {IDENTITY: sign_answer(identity, signed_bytes(table))}, path)


def read_request(path: Path) -> JoinRequest:
    """Read a hospital's request. Raises InvalidInputError for anything else, IntegrityError for a
    request that is not signed by all keys it names."""
    values, table, signatures = _read(path, JoinRequest)
    request = JoinRequest(**values)
    check_request(signatures, table, request)
    return request


def read_answer(path: Path) -> JoinAnswer:
    """Read a coordinator's answer. Raises InvalidInputError for anything else, IntegrityError for an
    answer that is not signed by the identity key in it."""
    values, table, signatures = _read(path, JoinAnswer)
    answer = JoinAnswer(**values)
    check_answer(signatures, table, answer.identity_key)
    return answer


def _table(record: JoinRequest | JoinAnswer) -> dict[str, Any]:
    table: dict[str, Any] = {"format-version": FORMAT_VERSION, "kind": _kind(type(record))}
    for key in record.RULES:
        value = getattr(record, key.replace("-", "_"))
        table[key] = list(value) if isinstance(value, tuple) else value
    return table


def _write(table: dict[str, Any], signatures: Mapping[str, str], path: Path) -> Path:
    atomic_write_text(path, json.dumps(table | {SIGNATURES: dict(signatures)}, indent=2) + "\n")
    return path


def _kind(record: type[JoinRequest] | type[JoinAnswer]) -> str:
    return "join-request" if record is JoinRequest else "join-answer"


def _read(
    path: Path, record: type[JoinRequest] | type[JoinAnswer]
) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """The fields by name, the bytes that were signed, the signatures."""
    hint = f"it should be the {_kind(record)} file written by `instahide " + (
        "node init`" if record is JoinRequest else "coordinator admit`"
    )
    try:
        data = path.read_bytes()[: MAX_BYTES + 1]
        table: Any = json.loads(data) if len(data) <= MAX_BYTES else None
    except FileNotFoundError as error:
        raise InvalidInputError(f"there is no file {path}", hint=hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} cannot be read as JSON", hint=hint) from error
    if not isinstance(table, Mapping) or table.get("kind") != _kind(record):
        raise InvalidInputError(f"{path} is not a {_kind(record)} file", hint=hint)
    if table.get("format-version") != FORMAT_VERSION:
        raise InvalidInputError(
            f"{path} has format version {table.get('format-version')!r:.20}, this release reads "
            f"{FORMAT_VERSION}",
            hint="install the same release of instahide-fl on both sides",
        )
    signatures = table.get(SIGNATURES)
    fields = {key: value for key, value in table.items() if key not in ("kind", "format-version", SIGNATURES)}
    if not isinstance(signatures, dict):
        raise InvalidInputError(f"{path} is not signed", hint=hint)
    if set(fields) != set(record.RULES):
        wrong = sorted(set(fields) ^ set(record.RULES))
        raise InvalidInputError(f"{path} has a missing or unknown entry {wrong[0]!r:.60}", hint=hint)
    values = {key: check_value(key, rule, fields[key]) for key, rule in record.RULES.items()}
    signed = signed_bytes({key: value for key, value in table.items() if key != SIGNATURES})
    return {key.replace("-", "_"): value for key, value in values.items()}, signed, signatures
