"""New keys for a hospital that has joined: made here, signed by the old ones, used once admitted.

    hospital      instahide node rotate NODE        node.next.key, NAME.request.json
    coordinator   instahide coordinator admit ...   the old key is refused from here on
    hospital      instahide node join NODE ...      node.next.key becomes node.key

Until the answer comes the old keys stay in use. ``--new-identity`` makes a new identity key as well;
since an audit log belongs to one identity key, the log so far is put aside under the first digits of
its own name, whole and verifiable, and a new one begins. What the site has spent (exposures,
differential privacy, plans, rounds served) is kept in any case: it is about images, not about keys.

Each step of the exchange is one rename, in an order in which it can be cut short anywhere and be
done again by the same ``node join``.
"""

from __future__ import annotations

from pathlib import Path

from instahide.atomic import atomic_write_text, sync_folder
from instahide.errors import RefusedError

from .audit_log import MAX_LINE_BYTES, parse_line
from .coordinator.audit import AUDIT_FILE
from .identity import create_identity, load_identity
from .joining import JoinRequest
from .node_folder import NodeFolder, worker_listens
from .node_request import request_again
from .provisioning import create_node_key, load_node_key, public_key_fingerprint, public_line_of

_LOG_DIGITS = 12


def rotate(folder: NodeFolder, *, new_identity: bool = False) -> tuple[JoinRequest, Path]:
    """Make new keys that wait for the coordinator, and the request for them; both.

    Done again before the answer is in, it writes the request for the same waiting keys. Raises
    InvalidInputError if the folder holds no node.
    """
    folder.check()
    if not folder.next_key.exists():
        create_node_key(folder.path, name=folder.next_key.stem)
    # Anew in any case: a rotation that was cut short has left the private half alone.
    atomic_write_text(folder.next_public_key, public_line_of(load_node_key(folder.next_key)) + "\n")
    if new_identity and not folder.next_identity_key.exists():
        create_identity(folder.next_identity_key)
    return request_again(folder)


def is_waiting(folder: NodeFolder, fingerprint: str) -> bool:
    """Whether the key with this fingerprint is the one that waits for an answer."""
    path = folder.next_public_key
    return path.exists() and public_key_fingerprint(path) == fingerprint


def use_waiting_keys(folder: NodeFolder) -> None:
    """Put the waiting keys in the place of the old ones, which are gone then.

    Raises RefusedError while the site worker is up and its identity key would change.
    """
    if folder.next_identity_key.exists():
        if worker_listens(folder):
            raise RefusedError(
                "the site worker is up, and its identity key is to be replaced",
                hint="stop `instahide node start` first, join again, then start it",
            )
        _put_audit_log_aside(folder)
        folder.next_identity_key.replace(folder.identity_key)
    if folder.next_key.exists():
        folder.next_key.replace(folder.key)
    folder.next_public_key.replace(folder.public_key)
    sync_folder(folder.path)


def _put_audit_log_aside(folder: NodeFolder) -> None:
    """A log that was begun under the key that goes, to ``audit.DIGITS.jsonl``."""
    path = folder.state / AUDIT_FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        first = parse_line(file.readline(MAX_LINE_BYTES).rstrip(b"\n"))
    if first is None or first.fields.get("public-key") == load_identity(folder.next_identity_key).public_line:
        return
    path.rename(path.with_name(f"{path.stem}.{first.hash[:_LOG_DIGITS]}{path.suffix}"))
    sync_folder(folder.state)
