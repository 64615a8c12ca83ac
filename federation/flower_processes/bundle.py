"""The app bundle (FAB) that the coordinator's SuperLink stores and ships.

It holds the server side of our app and the thin client shell, nothing else: the files named in
``BUNDLED`` plus a small ``pyproject.toml`` and the licence. It is built from the *installed*
package, so it works from a wheel, and it is the same bytes every time: the run's settings travel
beside it, with their defaults inside it, so its SHA-256 is what a hospital can allow or refuse.
Hospitals running our node never execute it; they run the client they installed themselves.

Flower puts the unpacked bundle first on ``sys.path``, so in a ServerApp process ``federation``
is the bundle's and ``instahide`` is the installed one.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w
from flwr.cli.build import build_fab_from_files

from instahide.errors import FederationError

from ..config import RunConfig

DISTRIBUTION = "instahide-fl"
# Relative to the package ``federation``; a folder stands for its Python files.
BUNDLED = (
    "__init__.py",
    "client_app.py",
    "server_app.py",
    "accounting.py",
    "audit_log.py",
    "config.py",
    "identity.py",
    "messages.py",
    "plan.py",
    "privacy_ledger.py",
    "private_files.py",
    "provisioning.py",
    "flower_records.py",
    "frames.py",
    "packing.py",
    "hidden_sum.py",
    "setting_rules.py",
    "coordinator",
    "secure_aggregation",
)
COMPONENTS = {"serverapp": "federation.server_app:app", "clientapp": "federation.client_app:app"}
PUBLISHER = "instahide-fl"
FLOWER_TARGET = "1.41.0"
FLOWER_RANGE = "flwr>=1.41,<1.43"


@dataclass(frozen=True)
class Bundle:
    """The bundle's bytes and their SHA-256 in hex, by which everyone knows it."""

    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def build_bundle() -> Bundle:
    """Build our app's bundle from the installed files; the same files give the same bytes."""
    package = Path(__file__).resolve().parents[1]
    files: dict[str, bytes | Path] = {f"federation/{name}": package / name for name in bundled_files(package)}
    files["pyproject.toml"] = tomli_w.dumps(app_description(RunConfig().to_run_config())).encode()
    files["LICENSE"] = _license_text()
    return bundle_from_files(files)


def bundle_from_files(files: Mapping[str, bytes | Path]) -> Bundle:
    """A bundle of any Flower app given as POSIX path -> content. Raises FederationError if refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Flower's own use of pathspec
            content, _ = build_fab_from_files(dict(files))
    except ValueError as error:
        raise FederationError(
            f"the app bundle cannot be built: {error}", hint="install the project again"
        ) from error
    return Bundle(content)


def bundle_from_folder(folder: Path) -> Bundle:
    """A bundle of the Flower app in ``folder`` (used with other apps: tests, benchmarks)."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return bundle_from_files(files)


def bundled_files(package: Path) -> Iterator[str]:
    """Paths of what goes into the bundle, relative to the package ``federation``, sorted."""
    for name in sorted(BUNDLED):
        source = package / name
        if source.is_dir():
            yield from (path.relative_to(package).as_posix() for path in sorted(source.rglob("*.py")))
        elif source.is_file():
            yield name
        else:
            raise FederationError(f"{source} is missing", hint="install the project again")


def app_description(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The bundle's ``pyproject.toml`` as a table: what Flower needs, and the settings' defaults."""
    about = metadata.metadata(DISTRIBUTION)
    return {
        "project": {
            "name": DISTRIBUTION,
            "version": about["Version"],
            "description": about["Summary"],
            "license": {"file": "LICENSE"},
            "dependencies": [FLOWER_RANGE],  # asked for by the format; nothing is installed at run time
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": PUBLISHER,
                    "fab-format-version": 1,
                    "flwr-version-target": FLOWER_TARGET,
                    "fab-include": ["/federation/**/*.py", "/LICENSE"],
                    "components": dict(COMPONENTS),
                    "config": dict(run_config),
                }
            }
        },
    }


def _license_text() -> bytes:
    """The licence: from the distribution's metadata, or beside the package in a source tree."""
    for file in metadata.files(DISTRIBUTION) or []:
        if file.name == "LICENSE":
            return Path(str(file.locate())).read_bytes()
    beside = Path(__file__).resolve().parents[2] / "LICENSE"
    if beside.is_file():
        return beside.read_bytes()
    raise FederationError("the licence text is not installed", hint="install the project again")
