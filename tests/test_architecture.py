"""Who may import whom, held by reading the source instead of by good intentions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("instahide", "federation", "theory_modules")
ALLOWED = {
    "instahide": {"instahide"},
    "theory_modules": {"theory_modules"},
    "federation": {"federation", "instahide", "theory_modules"},
}
EXCEPTIONS = {
    "instahide/training.py": {"theory_modules"},
    "instahide/kernel_estimate.py": {"theory_modules"},
}
FLWR_HOMES = (
    "federation/client_app.py",
    "federation/flower_records.py",
    "federation/server_app.py",
    "federation/flower_processes/",
)


def sources() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imported_modules(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Absolute names of everything a file imports; relative imports resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(part for part in (base, node.module or "") if part)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_package_imports_only_what_the_house_allows(path: Path) -> None:
    name = name_of(path)
    allowed = ALLOWED[name.split("/")[0]] | EXCEPTIONS.get(name, set())
    ours = {module.split(".")[0] for module in imported_modules(path)} & set(OURS)
    assert ours <= allowed, f"{name} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_flower_is_imported_only_in_its_own_rooms(path: Path) -> None:
    name = name_of(path)
    uses_flower = any(module.split(".")[0] == "flwr" for module in imported_modules(path))
    assert not uses_flower or name.startswith(FLWR_HOMES), f"{name} imports flwr"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_relative_inside_a_package_absolute_across(path: Path) -> None:
    own = name_of(path).split("/")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    absolute_to_own = [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == own
    ]
    assert not absolute_to_own


def test_only_the_named_packages_are_in_the_wheel() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in OURS
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert listed == present


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    program = (
        "import sys; import federation.cli; "
        "print([m for m in ('torch', 'torchvision', 'flwr', 'sklearn', 'matplotlib', 'scipy') if m "
        "in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_instahide_and_theory_modules_import_without_flower() -> None:
    program = (
        "import sys; sys.modules['flwr'] = None; "
        "import instahide.encoder, instahide.training, instahide.storage, instahide.readers, "
        "theory_modules; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ok"


def test_no_file_names_a_home_directory_or_a_package_index() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    forbidden = ("/wo" + "rk/", "/ro" + "ot/", "index-" + "url", "pypi" + ".org", "pythonhosted" + ".org")
    found = [
        (name, word)
        for name in listing.stdout.split()
        if (ROOT / name).suffix in {".py", ".md", ".toml", ".txt", ".c", ".yaml", ".cfg", ""}
        and (ROOT / name).is_file()
        for word in forbidden
        if word in (ROOT / name).read_text(encoding="utf-8", errors="ignore")
    ]
    assert not found
