"""A kernel on disk: resumed after a kill and after Ctrl-C, never taken for whole, never mixed up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from theory_modules import convolutional_ntk_job, kernel_file, kernel_loops
from theory_modules.convolutional_ntk import convolutional_ntk
from theory_modules.kernel_input import KernelInputError


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, 6, 6))


@pytest.fixture(autouse=True)
def eager_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_file, "_SECONDS_BETWEEN_CHECKPOINTS", 0.0)


class StoppedError(Exception):
    """What the test's own progress raises."""


def stop_after(pairs: int) -> object:
    def progress(done: int, total: int) -> None:
        if done >= pairs:
            raise StoppedError

    return progress


def test_a_kernel_on_disk_is_the_kernel_in_memory(tmp_path: Path) -> None:
    x, z = pictures(20), pictures(40, seed=1)
    told: list[tuple[int, int]] = []
    kernel = convolutional_ntk(
        x, z, depth=3, out=tmp_path / "k.npy", progress=lambda done, total: told.append((done, total))
    )
    assert isinstance(kernel, np.memmap)
    np.testing.assert_array_equal(kernel, convolutional_ntk(x, z, depth=3))
    assert told[-1] == (800, 800)
    assert [path.name for path in tmp_path.iterdir()] == ["k.npy"]


def test_a_stopped_kernel_is_resumed_and_only_the_rest_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = pictures(100)
    with pytest.raises(StoppedError):
        convolutional_ntk(x, depth=3, out=tmp_path / "k.npy", num_threads=1, progress=stop_after(2500))  # type: ignore[arg-type]
    assert not (tmp_path / "k.npy").exists()
    done = json.loads((tmp_path / "k.npy.partial.json").read_text())["done"]
    assert done
    computed: list[tuple[int, int]] = []
    original = convolutional_ntk_job.ConvolutionalKernel._against

    def counted(self: convolutional_ntk_job.ConvolutionalKernel, block: tuple[int, int]) -> object:
        computed.append(block)
        return original(self, block)

    monkeypatch.setattr(convolutional_ntk_job.ConvolutionalKernel, "_against", counted)
    kernel = convolutional_ntk(x, depth=3, out=tmp_path / "k.npy", num_threads=1)
    blocks = {(first, min(first + 16, 100)) for first in range(0, 100, kernel_loops.LANES[torch.float32])}
    if kernel_loops.has_loops():
        assert {tuple(block[2:]) for block in done} | set(computed) == blocks
    assert not {tuple(block[2:]) for block in done} & set(computed)
    np.testing.assert_array_equal(kernel, convolutional_ntk(x, depth=3))
    assert [path.name for path in tmp_path.iterdir()] == ["k.npy"]


KILLED = """
import sys, time
import numpy as np
from theory_modules import convolutional_ntk_job, kernel_file
from theory_modules.convolutional_ntk import convolutional_ntk
kernel_file._SECONDS_BETWEEN_CHECKPOINTS = 0.0
x = np.random.default_rng(0).normal(size=(100, 2, 6, 6))
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.1)
convolutional_ntk(x, depth=3, out=sys.argv[1], num_threads=1, progress=progress)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_a_kernel_that_can_be_resumed(tmp_path: Path, stop: signal.Signals) -> None:
    path = tmp_path / "k.npy"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, preexec_fn=lambda: signal.signal(signal.SIGINT,
        signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(stop)
    started = time.monotonic()
    process.wait(60)
    process.stdout.close()
    assert process.returncode != 0
    assert time.monotonic() - started < 30
    assert not path.exists()
    assert (tmp_path / "k.npy.partial").exists()
    kernel = convolutional_ntk(pictures(100), depth=3, out=path)
    np.testing.assert_array_equal(kernel, convolutional_ntk(pictures(100), depth=3))


def test_half_a_kernel_of_other_inputs_or_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        convolutional_ntk(
            pictures(60), depth=3, out=tmp_path / "k.npy", num_threads=1, progress=stop_after(1100)  # type: ignore[arg-type]
        )  # fmt: skip
    for x, depth in ((pictures(60, seed=1), 3), (pictures(60), 4)):
        with pytest.raises(KernelInputError, match="half a kernel of other inputs or settings; remove it"):
            convolutional_ntk(x, depth=depth, out=tmp_path / "k.npy")
    (tmp_path / "k.npy.partial.json").write_text("{")
    with pytest.raises(KernelInputError, match=r"k.npy.partial.json is damaged; remove it"):
        convolutional_ntk(pictures(60), depth=3, out=tmp_path / "k.npy")


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "k.npy").write_bytes(b"mine")
    with pytest.raises(KernelInputError, match="exists; give another name"):
        convolutional_ntk(pictures(3), depth=2, out=tmp_path / "k.npy")
    assert (tmp_path / "k.npy").read_bytes() == b"mine"


def test_a_wrong_name_a_missing_folder_and_a_full_disk_are_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KernelInputError, match=r"give a name that ends in .npy"):
        convolutional_ntk(pictures(3), depth=2, out=tmp_path / "k.npz")
    with pytest.raises(KernelInputError, match="does not exist; make it first"):
        convolutional_ntk(pictures(3), depth=2, out=tmp_path / "no" / "k.npy")
    real = os.statvfs(tmp_path)

    class Full:
        f_bavail, f_frsize = 0, real.f_frsize

    monkeypatch.setattr(kernel_file.os, "statvfs", lambda path: Full)
    with pytest.raises(KernelInputError, match=r"does not fit: 0.0 GB are free"):
        convolutional_ntk(pictures(3), depth=2, out=tmp_path / "k.npy")
    assert not list(tmp_path.iterdir())
