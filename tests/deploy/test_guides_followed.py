"""Two hospitals and a coordinator set up by nothing but the guides: every command, in the order written.

Each role has a folder of its own and types the ``bash`` blocks of its guide, one after the other. The test is
what the people are to each other: it carries mail between the folders, reads safety numbers out by telephone,
and opens a second window for what stays in the foreground. It changes the host's name, the port, the second
hospital's name and the digits, and nothing else.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..federation.command_line import PATIENCE, Window, until
from .guide_pages import blocks, commands, text_of

DIGITS = r"\d{5}(?: \d{5}){5}"


class Role:
    """Somebody with a guide and a folder; ``following`` is what is still to be typed."""

    def __init__(self, folder: Path, guide: str, words: dict[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.words = folder, words
        self.following = [commands(block) for block in blocks(text_of(guide), "bash")]
        self.windows: list[Window] = []
        self.heard = ""  # the safety number they were told by telephone

    def types(self, *starts: str) -> str:
        """Type the next block, whose lines begin as ``starts`` say; what the screen shows."""
        block = self.following.pop(0)
        assert [line[: len(start)] for line, start in zip(block, starts, strict=True)] == list(starts)
        return "".join(self.enters(line) for line in block)

    def enters(self, line: str) -> str:
        """Type one line, which must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._own(line)],
            cwd=self.folder, env=self._environment(), capture_output=True, text=True, timeout=4 * PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def opens(self, start: str, shows: str) -> Window:
        """Type the next block in a window of its own and leave it open once it shows ``shows``."""
        [line] = self.following.pop(0)
        assert line.startswith(start)
        return self.leaves_running(line, shows)

    def leaves_running(self, line: str, shows: str) -> Window:
        """Type a line in a window of its own."""
        log = self.folder / f"window-{len(self.windows)}.log"
        window = Window(log, *self._absolute(shlex.split(self._own(line))[1:]))
        self.windows.append(window)
        window.wait_for(shows)
        return window

    def mails(self, name: str, *others: Role, as_name: str | None = None) -> None:
        """Send a file of this folder to others."""
        for other in others:
            shutil.copy(self.folder / name, other.folder / (as_name or Path(name).name))

    def _own(self, line: str) -> str:
        for old, new in self.words.items():
            line = line.replace(old, new)
        return re.sub(f'--safety-number "{DIGITS}"', f'--safety-number "{self.heard}"', line)

    def _absolute(self, words: list[str]) -> list[str]:
        return [str(self.folder / word) if (self.folder / word).exists() else word for word in words]

    def _environment(self) -> dict[str, str]:
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": programs, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return os.environ | own | {"INSTAHIDE_LEDGER": str(self.folder / "exposure.sqlite3")}


def _write_images(folder: Path, first: int, training: int, test: int, public: int) -> None:
    """Digits as PNG files, one folder a class; no two hospitals hold the same."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)
    parts = {
        "scans": range(first, first + training),
        "scans-test": range(first + training, first + training + test),
    }
    for part, rows in (parts | {"patches": range(1797 - public, 1797)}).items():
        for row in rows:
            path = folder / part / str(bunch.target[row])
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(path / f"{row:04}.png")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def roles() -> Iterator[tuple[Role, Role, Role, Role]]:
    """Coordinator, IT of St Mary's, IT of the North Clinic, and St Mary's privacy officer at IT's machine."""
    here = {"fl.example.org": "localhost", "9443": str(_free_port())}
    # Not tmp_path, whose name is long: the path of a socket is at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="guides-") as place:
        yield from _people(Path(place), here)


def _people(place: Path, here: dict[str, str]) -> Iterator[tuple[Role, Role, Role, Role]]:
    coordinator = Role(place / "coordinator", "coordinator", here)
    mary = Role(place / "st-mary", "hospital-it", {})
    north = Role(place / "north-clinic", "hospital-it", {"st-mary": "north-clinic"})
    officer = Role(place / "st-mary", "privacy-officer", {})
    _write_images(mary.folder, 0, 160, 60, 200)
    _write_images(north.folder, 300, 160, 60, 200)
    people = coordinator, mary, north, officer
    yield people
    for person in people:
        for window in person.windows:
            window.close()


def _digits(shown: str, before: str) -> str:
    found = re.search(rf"{before}.*?({DIGITS})", shown)
    assert found, shown
    return found[1]


@pytest.mark.slow
@pytest.mark.federated
@pytest.mark.timeout(2400)
def test_two_hospitals_and_a_coordinator_are_set_up_by_following_the_guides(
    roles: tuple[Role, Role, Role, Role],
) -> None:
    coordinator, mary, north, officer = roles
    hospitals = mary, north

    made = coordinator.types("instahide coordinator init", "instahide coordinator doctor")
    centre = coordinator.opens("instahide coordinator start", "Ctrl-C stops")
    told = []
    for hospital, name in ((mary, "st-mary"), (north, "north-clinic")):
        shown = hospital.types("instahide dataset inspect", "instahide node init")
        told.append(_digits(shown, "safety number"))
        hospital.heard = _digits(made, "safety number")
        hospital.mails(f"{name}/{name}.request.json", coordinator)
    admit_mary, admit_north, status = coordinator.following.pop(0)
    for line, heard, start in zip((admit_mary, admit_north), told, ("st-mary", "north-clinic"), strict=True):
        coordinator.heard = heard
        assert f"{start} admitted" in coordinator.enters(line)
    assert "2" in coordinator.enters(status)
    coordinator.mails("st-mary.join.json", mary)
    coordinator.mails("north-clinic.join.json", north)
    nodes = []
    for hospital in hospitals:
        shown = hospital.types("instahide node join", "instahide node doctor")
        assert "ok      dry run: round" in shown
        nodes.append(hospital.opens("instahide node start", "this node serves"))
        assert "listening" in hospital.types("instahide node status")

    # St Mary's privacy officer looks before anything is agreed to.
    assert "crafted weights" in officer.types("instahide explain", "instahide explain coordinator")
    _write_law(officer)
    attacks = ("instahide attack run membership", "instahide attack curve", "instahide attack report")
    officer.types(*attacks)
    assert (officer.folder / "audit/index.html").is_file()
    assert "hardened" in officer.types("instahide attack frontier")

    # North approves the plan from its file; at St Mary's it is read once the run asks for it.
    coordinator.types("instahide coordinator settings", "instahide coordinator plan")
    coordinator.mails("trial-1.plan.json", north, mary)
    north.types("instahide node plan list", "instahide node plan show", "instahide node plan approve")
    run = coordinator.opens("instahide coordinator run", "waits up to")
    shown = officer.types(*(f"instahide node plan {verb}" for verb in ("list", "show", "approve")))
    assert "secure-aggregation" in shown
    # The same plan by its file does no harm.
    mary.types("instahide node plan list", "instahide node plan show", "instahide node plan approve")
    assert run.process.wait(4 * PATIENCE) == 0, run.text
    assert "trial-1" in coordinator.types("instahide coordinator status")

    # One round more is another plan.
    coordinator.types("instahide coordinator plan")
    coordinator.mails("trial-1-longer.plan.json", north, as_name="trial-1.plan.json")
    north.enters('instahide node plan approve st-mary/ --file trial-1.plan.json --by "Dr. Roth"')
    resumed = coordinator.opens("instahide coordinator resume", "waits up to")
    assert "num-server-rounds" in officer.types("instahide node plan diff", "instahide node plan approve")
    assert resumed.process.wait(4 * PATIENCE) == 0, resumed.text
    coordinator.types("instahide export", "instahide log verify")
    assert (coordinator.folder / "model/model_card.md").is_file()

    coordinator.mails("study/audit.jsonl", officer, as_name="audit-of-the-coordinator.jsonl")
    checked = officer.types("instahide node privacy", "instahide log show", "instahide log verify")
    assert "whole" in checked
    assert "signed heads looked up" in checked
    for hospital, name in ((mary, "st-mary"), (north, "north-clinic")):
        hospital.types("instahide log verify", "(umask 077; tar")
        assert (hospital.folder / f"{name}-backup.tar.gz").stat().st_mode & 0o077 == 0

    # New keys at both, with nothing to compare; then St Mary's serves again.
    for hospital, name, line in ((mary, "st-mary", admit_mary), (north, "north-clinic", admit_north)):
        hospital.types("instahide node rotate")
        hospital.mails(f"{name}/{name}.request.json", coordinator)
        coordinator.enters(line.split(" --safety-number")[0])
        coordinator.mails(f"{name}.join.json", hospital)
        hospital.following[0] = [hospital.following[0][0].split(" --safety-number")[0]]
        hospital.types("instahide node join")
    for node in nodes:
        assert node.terminate()[0] == 0, node.text
    again = mary.leaves_running("instahide node start st-mary/", "this node serves")
    assert until(lambda: "online" in coordinator.enters("instahide coordinator status study/"))
    coordinator.types("instahide coordinator revoke", "instahide coordinator renew")
    assert again.terminate()[0] == 0
    assert centre.terminate()[0] == 0
    for person in roles:
        assert person.following == [], "commands of a guide that nobody typed"


def _write_law(officer: Role) -> None:
    [law] = blocks(text_of("privacy-officer"), "toml")
    (officer.folder / "law.toml").write_text(law, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_data_scientists_guide_runs_as_it_stands(tmp_path: Path) -> None:
    person = Role(tmp_path / "data-scientist", "data-scientist", {})
    _write_images(person.folder, 0, 300, 120, 300)
    while person.following:
        for line in person.following.pop(0):
            person.enters(line)
    made = {path.parent.name for path in person.folder.rglob("model.safetensors")}
    assert made == {"model-plain", "model-fresh", "model-encoded", "for-others"}
    assert (person.folder / "audit/index.html").is_file()
