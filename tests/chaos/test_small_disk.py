"""A run on a real file system that is full (a small tmpfs): what ``sweep.py`` injects is what happens."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .scoreboard import Recorder, Timer
from .test_clocks import perform

pytestmark = pytest.mark.nightly

SIZE = 256 * 1024


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 256 kB at ``path``."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("free", [20, 28, 36, 44])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_space(
    free: int, tmp_path: Path, faults: Path, chaos: Recorder
) -> None:
    """``free`` kB are left for the run: enough to begin it, not enough to end it."""
    plain = perform("coordinator-run", tmp_path / "plain", faults, "--prepare", shift_clock=0)
    assert plain.returncode == 0, plain.stderr
    with small_disk(tmp_path / "disk") as disk, chaos.attempt("disk full", "a small file system") as attempt:
        folder = disk / "run"
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(SIZE - free * 1024))
        ended = perform("coordinator-run", folder, faults, "--prepare", shift_clock=0)
        assert ended.returncode, "there was space for the whole run"
        assert "No space left on device" in ended.stderr
        assert not list(folder.rglob("*.partial"))
        ballast.unlink()
        timer = Timer()
        again = perform("coordinator-run", folder, faults, "--again", shift_clock=0)
        assert again.returncode == 0, again.stderr
        attempt.seconds = timer.seconds
        assert json.loads(again.stdout) == json.loads(plain.stdout)
