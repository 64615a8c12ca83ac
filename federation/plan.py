"""A plan: what a site is asked to agree to before it serves a run, in a form that has one hash.

    plan      = format, protocol version, SHA-256 of the app bundle, the run's settings as every
                site is told them (with secure aggregation, the roster of its sites among them)
    plan hash = SHA-256 over its canonical JSON

A site computes the plan of each request itself, from what arrived; the coordinator can export the
same plan beforehand (``instahide coordinator plan``), for the site to read and approve in its own
time. Round numbers and weights are not in it, everything else that a request says is: a run with
one setting changed is another plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

from instahide.atomic import atomic_write_text
from instahide.errors import IntegrityError, InvalidInputError

from .audit_log import canonical_json
from .config import TrainingSettings
from .messages import PROTOCOL_VERSION
from .setting_rules import to_kebab

PLAN_FORMAT: Final = "instahide-fl plan 1"
MAX_PLAN_BYTES: Final = 64 * 1024
SHORT: Final = 12
"""Hexadecimal digits of a plan's hash that are shown; people compare these."""

_KEYS: Final = {
    "format",
    "protocol-version",
    "bundle-sha256",
    "settings",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do at a site. ``settings`` are kebab-case, as in a request."""

    bundle_sha256: str
    settings: Mapping[str, Any]
    protocol_version: int = PROTOCOL_VERSION
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        content = canonical_json(self.to_mapping())
        if len(content) > MAX_PLAN_BYTES:
            raise InvalidInputError(f"a plan of {len(content)} bytes", hint=f"at most {MAX_PLAN_BYTES}")
        object.__setattr__(self, "sha256", hashlib.sha256(content).hexdigest())

    @classmethod
    def of(cls, settings: TrainingSettings, *, bundle_sha256: str) -> Self:
        """The plan behind a request, or behind a coordinator's whole configuration."""
        values = settings.to_mapping()
        shared = [to_kebab(item.name) for item in fields(TrainingSettings) if "rule" in item.metadata]
        return cls(
            bundle_sha256=bundle_sha256,
            settings={key: values[key] for key in shared},
        )

    @property
    def short(self) -> str:
        """The first digits of the hash."""
        return self.sha256[:SHORT]

    @property
    def run_name(self) -> str:
        """The run it is for."""
        return str(self.settings["run-name"])

    def to_mapping(self) -> dict[str, Any]:
        """Everything the hash is over."""
        return {
            "format": PLAN_FORMAT,
            "protocol-version": self.protocol_version,
            "bundle-sha256": self.bundle_sha256,
            "settings": dict(self.settings),
        }

    @classmethod
    def from_mapping(cls, table: Any) -> Self:
        """Inverse of ``to_mapping``, for plans of other releases, too. Raises InvalidInputError."""
        hint = "export it again with `instahide coordinator plan`, from the same release"
        if not isinstance(table, Mapping) or set(table) != _KEYS or table["format"] != PLAN_FORMAT:
            raise InvalidInputError("this is no plan", hint=hint)
        if not isinstance(table["settings"], Mapping) or type(table["protocol-version"]) is not int:
            raise InvalidInputError("this plan's entries have wrong types", hint=hint)
        if not isinstance(table["bundle-sha256"], str) or len(table["bundle-sha256"]) > 64:
            raise InvalidInputError("bundle-sha256 is no SHA-256", hint=hint)
        if not isinstance(table["settings"].get("run-name"), str):
            raise InvalidInputError("this plan names no run", hint=hint)
        return cls(
            bundle_sha256=table["bundle-sha256"],
            settings=dict(table["settings"]),
            protocol_version=table["protocol-version"],
        )

    def differences(self, other: Plan) -> list[tuple[str, Any, Any]]:
        """(entry, here, there) for each entry that is not the same in ``other``, in their order."""
        here, there = _flat(self), _flat(other)
        return [
            (key, here.get(key), there.get(key))
            for key in [*here, *(there.keys() - here.keys())]
            if here.get(key) != there.get(key)
        ]


def _flat(plan: Plan) -> dict[str, Any]:
    table = plan.to_mapping()
    return {key: value for key, value in table.items() if key != "settings"} | dict(plan.settings)


def write_plan(plan: Plan, path: Path) -> Path:
    """Write a plan with its hash, as JSON that a person can read."""
    table = {"plan": plan.to_mapping(), "sha256": plan.sha256}
    atomic_write_text(path, json.dumps(table, indent=2) + "\n")
    return path


def read_plan(path: Path) -> Plan:
    """The plan in a file that a coordinator exported; its settings are checked as a request's are.

    Raises:
        InvalidInputError: unreadable, too large, or no plan of this release.
        IntegrityError: it does not have the hash it names.
    """
    try:
        with path.open("rb") as file:
            data = file.read(2 * MAX_PLAN_BYTES + 1)
        table: Any = json.loads(data) if len(data) <= 2 * MAX_PLAN_BYTES else None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not JSON", hint="it should be a plan file") from error
    if not isinstance(table, dict) or set(table) != {"plan", "sha256"}:
        raise InvalidInputError(f"{path} is no plan file", hint="`instahide coordinator plan` writes one")
    plan = Plan.from_mapping(table["plan"])
    if plan.sha256 != table["sha256"]:
        raise IntegrityError(f"{path} does not have the hash it names", hint="it was edited; get it anew")
    if TrainingSettings.from_mapping(plan.settings).to_mapping() != plan.settings:
        raise InvalidInputError(f"{path} lacks settings of this release", hint="export it again")
    return plan
