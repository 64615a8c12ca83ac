"""Installing without network: every byte is named by its hash, and that there was no network is proven.

Two wheels made by hand stand for the packages; pip, its hash checking and the network namespace are real.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .deploy_files import DEPLOY

OTHER = "1" * 64


def wheel(folder: Path, name: str, requires: str = "") -> Path:
    """A wheel with one module, and a command where it is called ``instahide_fl``."""
    folder.mkdir(parents=True, exist_ok=True)
    info, public = f"{name}-1.0.dist-info", name.replace("_", "-")
    files = {
        f"{name}.py": "def main():\n    print('help')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {public}\nVersion: 1.0\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "instahide_fl":
        files[f"{info}/entry_points.txt"] = "[console_scripts]\ninstahide = instahide_fl:main\n"
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in files.items())
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in (files | {f"{info}/RECORD": record + f"{info}/RECORD,,\n"}).items():
            archive.writestr(inside, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def pips_own_wheel(folder: Path) -> Path:
    """The pip of this environment, put back into a wheel, so that no registry is asked."""
    import pip

    package = Path(pip.__file__).parent
    [info] = package.parent.glob("pip-*.dist-info")
    path = folder / f"{info.name.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in [*package.rglob("*"), *info.rglob("*")]:
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(package.parent))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A wheelhouse, and the SHA-256 that its maker would read out."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    found = folder / "found"
    wheel(found, "instahide_fl", "Requires-Dist: small-one\n")
    wheel(found, "small_one")
    pips_own_wheel(found)
    command = [sys.executable, DEPLOY / "wheelhouse.py", folder / "out", "--require", "instahide-fl"]
    done = subprocess.run(
        [*command, "--", "--no-index", "--find-links", found], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout.splitlines()[-1]


@pytest.fixture
def wheelhouse(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(made[0], tmp_path / "wheelhouse")
    return tmp_path / "wheelhouse"


def install(wheelhouse: Path, *words: object, code: int = 0, **environment: str) -> str:
    command = [wheelhouse / "install.sh", *map(str, words)]
    # Settings that would send pip elsewhere, were they heeded.
    elsewhere = {"PIP_INDEX_URL": "https://127.0.0.1:9/simple", "PIP_NO_INDEX": "0", "PYTHON": sys.executable}
    done = subprocess.run(
        command, env=os.environ | elsewhere | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0
    and subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode != 0,
    reason="this system permits no network namespace",
)


def test_every_file_is_named_with_its_hash(made: tuple[Path, str]) -> None:
    out, said = made
    lines = (out / "requirements.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines]
    assert names == ["instahide-fl", "small-one"]
    assert len(list(out.glob("pip-*.whl"))) == 1
    for path in (out / "wheels").iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert sum(digest in line for line in lines) == 1
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    inside = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(sums) == inside - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert hashlib.sha256((out / "SHA256SUMS").read_bytes()).hexdigest() == said
    about = json.loads((out / "wheelhouse.json").read_text())
    assert (about["release"], about["wheels"]) == ("1.0", 2)
    assert about["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_a_folder_that_exists_is_refused(made: tuple[Path, str]) -> None:
    program = [sys.executable, DEPLOY / "wheelhouse.py"]
    again = subprocess.run([*program, made[0]], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.splitlines()[1][:5]) == (2, "hint:")


@pytest.mark.slow
def test_a_package_that_cannot_be_had_leaves_no_list_of_sums(tmp_path: Path) -> None:
    program = [sys.executable, DEPLOY / "wheelhouse.py"]
    missing = ["--require", "instahide-fl", "--", "--no-index", "--find-links", tmp_path]
    failed = subprocess.run(
        [*program, tmp_path / "out", *missing], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert not (tmp_path / "out/SHA256SUMS").exists()


@needs_namespaces
def test_it_installs_without_network_and_says_so(made: tuple[Path, str], tmp_path: Path) -> None:
    out, digest = made
    said = install(out, tmp_path / "new", digest)
    assert "without network" in said
    assert "not compared" not in said
    run = subprocess.run([tmp_path / "new/bin/instahide"], capture_output=True, text=True, check=True)
    assert run.stdout == "help\n"
    assert "exists already" in install(out, tmp_path / "new", digest, code=2)


@pytest.mark.slow
@needs_namespaces
def test_a_changed_file_is_refused_and_nothing_is_left(
    wheelhouse: Path, made: tuple[Path, str], tmp_path: Path
) -> None:
    target = tmp_path / "new"
    assert f"not {OTHER}" in install(wheelhouse, target, OTHER, code=4)
    wheel(wheelhouse / "wheels", "small_one", "Summary: another\n")
    assert "not what it was" in install(wheelhouse, target, made[1], code=4)
    # Somebody who mends the list of sums as well meets pip's own hashes, and the digest read out.
    sums = wheelhouse / "SHA256SUMS"
    lines = [line.split("  ")[1] for line in sums.read_text().splitlines()]
    sums.write_text(
        "".join(f"{hashlib.sha256((wheelhouse / name).read_bytes()).hexdigest()}  {name}\n" for name in lines)
    )
    assert "read out" not in install(wheelhouse, target, made[1], code=4)
    install(wheelhouse, target, code=1)
    assert not target.exists()


@pytest.mark.slow
@needs_namespaces
def test_a_package_without_its_wheel_fails(wheelhouse: Path, tmp_path: Path) -> None:
    (wheelhouse / "wheels/small_one-1.0-py3-none-any.whl").unlink()
    assert "not what it was" in install(wheelhouse, tmp_path / "new", code=4)
    sums = wheelhouse / "SHA256SUMS"
    sums.write_text("".join(f"{line}\n" for line in sums.read_text().splitlines() if "small_one" not in line))
    install(wheelhouse, tmp_path / "new", code=1)
    assert not (tmp_path / "new").exists()


def test_a_namespace_that_has_a_network_is_no_proof(made: tuple[Path, str], tmp_path: Path) -> None:
    """With an `unshare` that isolates nothing, the installer itself notices."""
    if Path("/proc/net/dev").read_text().count(":") == 1:
        pytest.skip("this machine has no network interface at all")
    pretender = tmp_path / "bin/unshare"
    pretender.parent.mkdir()
    pretender.write_text('#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n')
    pretender.chmod(0o755)
    path = f"{pretender.parent}:{os.environ['PATH']}"
    assert "nothing would be proven" in install(made[0], tmp_path / "new", code=3, PATH=path)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_where_there_is_no_namespace_it_stops_unless_told_otherwise(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    denied = tmp_path / "bin/unshare"
    denied.parent.mkdir()
    denied.write_text("#!/bin/sh\nexit 1\n")
    denied.chmod(0o755)
    path = f"{denied.parent}:{os.environ['PATH']}"
    assert "nothing can be proven" in install(made[0], tmp_path / "new", code=3, PATH=path)
    said = install(made[0], tmp_path / "new", PATH=path, INSTAHIDE_UNPROVEN="1")
    assert "NOT proven" in said
    assert "not compared" in said


def test_another_python_is_refused(wheelhouse: Path, tmp_path: Path) -> None:
    about = json.loads((wheelhouse / "wheelhouse.json").read_text())
    (wheelhouse / "wheelhouse.json").write_text(json.dumps(about | {"python": "3.99"}))
    assert "for Python 3.99" in install(wheelhouse, tmp_path / "new", code=2)
