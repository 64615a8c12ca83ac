#!/usr/bin/env python3
"""A folder from which a machine without network installs this release, and can check every byte of it.

    python3 deploy/wheelhouse.py OUT                     on a machine with network, of the target's kind
    (carry OUT over; read the SHA-256 it printed out over the telephone)
    OUT/install.sh /opt/instahide SHA256                 on the target

OUT gets

    wheels/            one wheel of every package, ours and pip included; nothing is compiled at the target
    requirements.txt   NAME==VERSION --hash=sha256:... of each, so that no other byte is installed
    install.sh         makes the environment, without network, and proves it
    wheelhouse.json    Python and machine it is for, release, number of files and bytes
    SHA256SUMS         of all files; its own SHA-256 stands for everything

The wheels fit the Python and the machine this is run with: run it with the target's version of Python, on
the target's kind of system. Needs pip; a compiler for our own wheel, which works without, more slowly.

Whatever comes after ``--`` is given to pip: another index, or ``--no-index --find-links FOLDER``. Which
torch that is, with CUDA or without, the index decides; torch and torchvision must come from one place.
"""

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-[^-]+-(?P<platform>[^-]+)\.whl"
)
SOURCE = ("pyproject.toml", "README.md", "LICENSE", "instahide", "federation", "theory_modules")
BLOCK = 1 << 20


class WrongInputError(Exception):
    """What is wrong, and what to do about it."""


def main(words: list[str]) -> int:
    """Build a wheelhouse as the command line says; the exit code."""
    parser = argparse.ArgumentParser(
        prog="wheelhouse.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument(
        "--extra",
        action="append",
        help="an extra of ours; repeat (default: dicom, nifti, dp)",
        metavar="NAME",
    )
    parser.add_argument(
        "--require",
        action="append",
        help="put this requirement in, instead of ours; repeat (to try it out, or for tools beside ours)",
        metavar="REQUIREMENT",
    )
    ours, for_pip = _split(words)
    options = parser.parse_args(ours)
    extras = options.extra if options.extra is not None else ["dicom", "nifti", "dp"]
    try:
        with TemporaryDirectory() as folder:
            wanted = options.require or [f"{_source(Path(folder))}[{','.join(extras)}]"]
            digest = build(options.out, wanted, for_pip)
    except WrongInputError as error:
        print(f"error: {error.args[0]}\nhint: {error.args[1]}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(
            f"error: pip failed with status {error.returncode}\nhint: its own words are above",
            file=sys.stderr,
        )
        return 1
    print(f"{options.out} is whole; read this out to who installs it:\n{digest}")
    return 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Our words, and pip's after ``--``."""
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def _source(folder: Path) -> Path:
    """A copy of what our wheel is made of: setuptools leaves its workings where it builds."""
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(out: Path, wanted: list[str], for_pip: list[str]) -> str:
    """Fill ``out``; the SHA-256 (hex) of its SHA256SUMS, which is written last."""
    if out.exists():
        raise WrongInputError(
            f"{out} exists already", "give a folder that does not: a wheelhouse is made whole"
        )
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "--wheel-dir", str(wheels), *pinned, *for_pip, *wanted], check=True)
    subprocess.run([*pip, "--wheel-dir", str(out), "--no-deps", *for_pip, "pip"], check=True)
    lines = sorted(map(_requirement, wheels.iterdir()))
    (out / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    shutil.copy(HERE / "wheelhouse-install.sh", out / "install.sh")
    (out / "wheelhouse.json").write_text(json.dumps(_about(wheels), indent=2) + "\n", encoding="utf-8")
    files = sorted(path for path in out.rglob("*") if path.is_file())
    sums = "".join(f"{_sha256(path)}  {path.relative_to(out).as_posix()}\n" for path in files)
    (out / "SHA256SUMS").write_text(sums, encoding="utf-8")
    return _sha256(out / "SHA256SUMS")


def _requirement(wheel: Path) -> str:
    """One line that pip's hash-checking mode accepts for this file and for no other."""
    found = WHEEL.fullmatch(wheel.name)
    if found is None:
        raise WrongInputError(
            f"{wheel.name} is no wheel", "pip should have built one; is a compiler missing?"
        )
    name = re.sub(r"[-_.]+", "-", found["name"]).lower()
    return f"{name}=={found['version']} --hash=sha256:{_sha256(wheel)}\n"


def _about(wheels: Path) -> dict[str, object]:
    found = sorted(wheels.iterdir())
    ours = [WHEEL.fullmatch(path.name) for path in found if path.name.startswith("instahide_fl-")]
    return {
        "release": ours[0]["version"] if ours and ours[0] else None,
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "machine": platform.machine(),
        "platform": sysconfig.get_platform(),
        "wheels": len(found),
        "bytes": sum(path.stat().st_size for path in found),
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
