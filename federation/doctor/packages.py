"""Whether the code that runs is ours: other distributions, and folders that come first on the path.

``federation`` is a common name. Two distributions that both install it overwrite each other's
files; a folder of that name where a command is started hides the installed one.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from instahide import __version__

from .checks import Outcome, failed, ok

OURS = "instahide-fl"
NAMES = ("federation", "instahide", "theory_modules")


def check_packages(search_path: Sequence[str] | None = None) -> Outcome:
    """Whether another distribution owns one of our top-level names, or another folder hides ours.

    ``search_path`` defaults to this process's, with the current folder, which a started worker has first.
    """
    path = [str(Path.cwd()), *sys.path] if search_path is None else list(search_path)
    if others := sorted(set(_other_owners(importlib.metadata.distributions(path=path)))):
        what = "; ".join(f"{name} is also in {owner}" for owner, name in others)
        return failed(
            what,
            fix=f"pip uninstall {others[0][0]}, then install {OURS} again, best in an environment of its own",
        )
    for name in NAMES:
        if hidden := _other_places(name, path):
            return failed(
                f"{hidden[0]} would be taken for our {name}",
                fix="start commands in another folder, or take that one off PYTHONPATH",
            )
    return ok(f"{', '.join(NAMES)} are ours alone")


def check_versions() -> Outcome:
    """What runs here, for a letter to the other side."""
    parts = [f"{OURS} {__version__}", f"Python {platform.python_version()}"]
    missing = []
    for name in ("flwr", "torch", "cryptography"):
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return failed(f"{', '.join(missing)} not installed", fix=f"install {OURS} here again")
    return ok(", ".join(parts))


def _other_owners(found: Iterable[importlib.metadata.Distribution]) -> Iterable[tuple[str, str]]:
    """(distribution, our name it also owns), by its list of files or of top-level names."""
    for distribution in found:
        owner = distribution.metadata["Name"] or "a distribution without a name"
        if re.sub(r"[-_.]+", "-", owner).lower() == OURS:
            continue
        record = distribution.read_text("RECORD") or ""
        declared = (distribution.read_text("top_level.txt") or "").split()
        for name in NAMES:
            if name in declared or re.search(rf"^{name}(/|\.py,)", record, re.MULTILINE):
                yield owner, name


def _other_places(name: str, search_path: Iterable[str]) -> list[Path]:
    """Where on the path a package or module of this name lies that is not the one we are of."""
    ours = (Path(__file__).resolve().parents[2] / name).resolve()
    places = []
    for entry in search_path:
        package, module = Path(entry or ".") / name, Path(entry or ".") / f"{name}.py"
        if (package / "__init__.py").is_file() and package.resolve() != ours:
            places.append(package)
        elif module.is_file():
            places.append(module)
    return places
