"""A node's folder as it stands after some runs, without any process and without an image."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from federation.accounting import PrivacyEvent
from federation.audit_log import AuditLog
from federation.flower_processes.node import NodeSettings
from federation.identity import load_or_create_identity
from federation.node_folder import NodeFolder
from federation.privacy_ledger import LEDGER_NAME, PrivacyLedger
from federation.provisioning import create_authority
from federation.site.policy import write_default_policy


def make_node(path: Path) -> NodeFolder:
    """A node that has joined fl.example.org."""
    folder = NodeFolder(path)
    folder.state.mkdir(parents=True)
    folder.key.write_text("a key")
    write_default_policy(folder.policy)
    create_authority(path)
    settings = NodeSettings(
        name="st-mary",
        coordinator="fl.example.org:9443",
        authority=folder.authority,
        private_key=folder.key,
        state_folder=folder.state,
        worker_socket=folder.socket,
    )
    folder.node_config.write_text(settings.to_toml())
    return folder


def open_site_log(folder: NodeFolder) -> AuditLog:
    """The site's audit log, begun the first time."""
    identity = load_or_create_identity(folder.path / "identity.key")
    return AuditLog(folder.state / "audit.jsonl", identity, role="site", name="st-mary")


def serve_rounds(log: AuditLog, run: str, rounds: int, *, first: int = 1) -> None:
    """The records of answered requests; every image was encoded once a round."""
    for number in range(first, first + rounds):
        about = {"kind": "train", "run": run, "round": number}
        log.append("request-accepted", **about, plan_sha256="0" * 64, plan_approved=True)
        exposures = {"exposures_own": 120 * number, "exposures_partner": 90, "exposures_largest": number}
        log.append("update-sent", **about, masked=False, norm=1.0, bytes=10, **exposures)


def charge(folder: NodeFolder) -> PrivacyLedger:
    """A ledger in which one round of DP-SGD was paid for."""
    ledger = PrivacyLedger(folder.state / LEDGER_NAME)
    ledger.charge(
        PrivacyEvent(
            run_name="trial-1",
            server_round=1,
            mechanism="dp-sgd",
            noise_multiplier=5.0,
            sample_rate=1.0,
            num_steps=1,
            num_draws=1000,
        )
    )
    return ledger


@contextmanager
def listening_worker(folder: NodeFolder) -> Iterator[None]:
    """Something that accepts connections where the site worker would."""
    folder.socket.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.socket))
        listener.listen(16)
        yield
