"""Identity keys: by which a hospital and a coordinator sign what they will later be held to.

An Ed25519 key (RFC 8032) a party, made where it is used and stored with mode 0600 in OpenSSH's
format; the public half travels in the join files and is known by its fingerprint, ``SHA256:...``
as ``ssh-keygen -l`` prints it. It is not the node key: Flower authenticates a connection with
that one, while this one signs statements that outlive the connection.

Every signature names its purpose: what is signed is

    "instahide-fl" 0x00 purpose 0x00 message

so that a signature made for one purpose is worth nothing for another.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from instahide.errors import IntegrityError, InvalidInputError

from .private_files import read_private_file, write_private_file

IDENTITY_FILE = "identity.key"
_PREFIX = b"instahide-fl\0"
_LONGEST_LINE = 1000


@dataclass(frozen=True)
class Identity:
    """A party's own key pair. ``repr`` shows the fingerprint only."""

    private_key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_line(self) -> str:
        """The public half as one OpenSSH line, ``ssh-ed25519 AAAA...``."""
        return public_line(self.private_key.public_key())

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` of the public half."""
        return identity_fingerprint(self.public_line)

    def sign(self, message: bytes, *, purpose: str) -> bytes:
        """64 bytes of signature over ``message`` for ``purpose``."""
        return self.private_key.sign(_signed_bytes(message, purpose))

    def __repr__(self) -> str:
        return f"Identity({self.fingerprint})"


def create_identity(path: Path) -> Identity:
    """Make a key and write it to ``path`` (mode 0600). Raises RefusedError if the file is there."""
    key = Ed25519PrivateKey.generate()
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private_file(path, encoded)
    return Identity(key)


def load_identity(path: Path) -> Identity:
    """The key in ``path``.

    Raises:
        InvalidInputError: there is no such file.
        RefusedError: it is a symbolic link, or others than its owner may read it.
        IntegrityError: it is no Ed25519 key in OpenSSH's format.
    """
    made_by = "`instahide node init` and `instahide coordinator init` make one"
    data = read_private_file(path, what="the identity key", restore=made_by)
    try:
        key = serialization.load_ssh_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IntegrityError(f"{path} is not an OpenSSH private key", hint="restore it") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IntegrityError(f"{path} is not an Ed25519 key", hint="restore it from a backup")
    return Identity(key)


def load_or_create_identity(path: Path) -> Identity:
    """The key in ``path``, made there the first time."""
    return load_identity(path) if path.exists() or path.is_symlink() else create_identity(path)


def load_public_identity(line: str) -> Ed25519PublicKey:
    """The public key in an OpenSSH line. Raises InvalidInputError for anything else."""
    hint = "it is the line `ssh-ed25519 AAAA...` of a join file"
    if len(line) > _LONGEST_LINE or not line.isascii():
        raise InvalidInputError("this is no public identity key", hint=hint)
    try:
        key = serialization.load_ssh_public_key(line.strip().encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError("this is no public identity key", hint=hint) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInputError(f"the identity key is {type(key).__name__}, not Ed25519", hint=hint)
    return key


def public_line(key: Ed25519PublicKey) -> str:
    """A public key as one OpenSSH line without a comment."""
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line.decode("ascii")


def identity_fingerprint(line: str) -> str:
    """``SHA256:...`` of a public identity key, the form OpenSSH prints (unpadded base64)."""
    blob = base64.b64decode(public_line(load_public_identity(line)).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def signature_is_good(line: str, signature: bytes, message: bytes, *, purpose: str) -> bool:
    """Whether ``signature`` over ``message`` for ``purpose`` is by the key in the OpenSSH ``line``."""
    try:
        load_public_identity(line).verify(signature, _signed_bytes(message, purpose))
    except InvalidSignature:
        return False
    return True


def _signed_bytes(message: bytes, purpose: str) -> bytes:
    if not purpose or "\0" in purpose:
        raise InvalidInputError("a signature needs a purpose without a NUL", hint="name what is signed")
    return _PREFIX + purpose.encode("utf-8") + b"\0" + message
