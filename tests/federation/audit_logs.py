"""A log for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from federation.audit_log import AuditLog
from federation.identity import load_or_create_identity


def open_log(folder: Path, name: str = "north", role: str = "site", **options: Any) -> AuditLog:
    folder.mkdir(exist_ok=True)
    identity = load_or_create_identity(folder / "identity.key")
    return AuditLog(folder / "audit.jsonl", identity, role=role, name=name, **options)
