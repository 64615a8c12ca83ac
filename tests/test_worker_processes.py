"""Worker processes of long measurements end with the program that started them, killed included."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from {module} import _start_worker

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start_worker)
    pool.submit(time.sleep, 600)
    while not pool._processes:
        time.sleep(0.05)
    pool.submit(time.sleep, 600)
    print(*pool._processes, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("module", ["instahide.attacks.frontier.table", "theory_modules.uci_run"])
def test_no_worker_outlives_its_parent(tmp_path: Path, module: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(module=module), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    (worker,) = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
    deadline = time.monotonic() + 60
    while worker.num_threads() < 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # its initializer has not run yet
    parent.kill()
    parent.wait(30)
    parent.stdout.close()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
