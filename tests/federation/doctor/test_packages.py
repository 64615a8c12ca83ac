"""Whose code runs: a distribution or a folder that brings a package of our name is found."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from federation.doctor.checks import State
from federation.doctor.packages import NAMES, OURS, check_packages, check_versions
from instahide import __version__


def distribution(folder: Path, name: str, *, files: str = "", top_level: str = "") -> str:
    """A distribution as pip leaves it, with these lists; the entry for the search path."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(files)
    if top_level:
        (info / "top_level.txt").write_text(top_level)
    return str(folder)


def test_this_installation_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_packages().state is State.ok


@pytest.mark.parametrize("name", NAMES)
def test_another_distribution_of_our_name_is_named(tmp_path: Path, name: str) -> None:
    by_files = distribution(tmp_path / "a", "Star.Fleet", files=f"{name}/__init__.py,sha256=x,1\n")
    by_module = distribution(tmp_path / "b", "star-fleet", files=f"{name}.py,sha256=x,1\n")
    by_names = distribution(tmp_path / "c", "old-fleet", top_level=f"bridge\n{name}\n")
    for entry, owner in ((by_files, "Star.Fleet"), (by_module, "star-fleet"), (by_names, "old-fleet")):
        outcome = check_packages([entry])
        assert outcome.state is State.failed
        assert outcome.seen == f"{name} is also in {owner}"
        assert outcome.fix.startswith(f"pip uninstall {owner}, ")


def test_names_that_only_begin_or_end_alike_are_not_ours(tmp_path: Path) -> None:
    files = "federation_tools/__init__.py,,\nmy/federation/__init__.py,,\ninstahidetools.py,,\n"
    assert check_packages([distribution(tmp_path, "tools", files=files)]).state is State.ok


def test_our_own_distribution_may_have_our_names(tmp_path: Path) -> None:
    for index, spelling in enumerate((OURS, "InstaHide_FL", "instahide.fl")):
        entry = distribution(tmp_path / str(index), spelling, top_level="\n".join(NAMES))
        assert check_packages([entry]).state is State.ok


def test_a_folder_that_would_be_imported_first_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "federation").mkdir()
    assert check_packages().state is State.ok  # without __init__.py it hides nothing
    (tmp_path / "federation" / "__init__.py").touch()
    outcome = check_packages()
    assert outcome.state is State.failed
    assert str(tmp_path / "federation") in outcome.seen
    monkeypatch.chdir("/")
    assert check_packages().state is State.ok
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "instahide.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "modules")])
    assert "instahide.py" in check_packages().seen


def test_versions_are_listed_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{OURS} {__version__}" in check_versions().seen
    real = metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", without_torch)
    outcome = check_versions()
    assert outcome.state is State.failed
    assert outcome.seen == "torch not installed"
