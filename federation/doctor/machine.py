"""The machine: room on the disk, memory, a GPU, and whether something keeps its clock."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from .checks import Outcome, failed, ok, skipped, warning
from .network import SET_CLOCK

GIB = 2**30
MIB = 2**20
CLOCK_SECONDS = 2.0
WARN_OFFSET, MOST_OFFSET = 1.0, 5.0  # of the clock, in seconds; Flower accepts 5 s ahead
_CGROUP = Path("/sys/fs/cgroup")
_GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_COUNT_GPUS = (
    "import torch; n = torch.cuda.device_count(); "
    "print(n, *(torch.cuda.get_device_name(i) for i in range(n)), sep='|')"
)


def check_disk(folder: Path, *, least: float = 0.5 * GIB, enough: float = 5 * GIB) -> Outcome:
    """Free bytes where ``folder`` is: below ``least`` it fails, below ``enough`` it warns."""
    usage = shutil.disk_usage(folder)
    seen = f"{usage.free / GIB:.1f} GiB of {usage.total / GIB:.0f} GiB are free at {folder}"
    fix = "free some space, or move the folder to a larger disk"
    if usage.free < least:
        return failed(seen, fix=fix)
    return warning(seen, fix=fix) if usage.free < enough else ok(seen)


def check_memory(
    *, least: float = 0.5 * GIB, enough: float = 2 * GIB, limit_gib: float | None = None
) -> Outcome:
    """Memory that is free now; a policy's ``limit_gib`` above the machine's memory limits nothing."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    group = container_limit()
    if group is not None and group[0] < total:
        total, free = group[0], min(free, max(0, group[0] - group[1]))
    seen = f"{free / GIB:.1f} GiB of {total / GIB:.1f} GiB are free"
    fix = "stop other programs, or give this machine (or its container) more memory"
    if free < least:
        return failed(seen, fix=fix)
    if free < enough:
        return warning(seen, fix=fix)
    if limit_gib is not None and limit_gib * GIB > total:
        return warning(
            f"{seen}; max-memory-gib {limit_gib:g} is above that, so the system ends the worker first",
            fix=f"set max-memory-gib in policy.toml to at most {max(0.25, int(0.9 * total / GIB * 4) / 4):g}",
        )
    return ok(seen)


def container_limit(root: Path = _CGROUP) -> tuple[int, int] | None:
    """(limit, used) bytes of this container (control groups, version 2); None if there is no limit."""
    try:
        limit = int((root / "memory.max").read_text(encoding="ascii"))
        return limit, int((root / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such system, or "max"
        return None


def check_gpu(device: str, *, devices: Sequence[str] = _GPU_DEVICES, within: float = 60.0) -> Outcome:
    """Whether what ``device`` in worker.toml asks for is there; torch is asked in a process of its own."""
    if device == "cpu":
        return ok("device is cpu: no GPU is asked for")
    wanted = device.startswith("cuda")
    if sys.platform == "linux" and not any(Path(name).exists() for name in devices):
        if wanted:
            return failed(
                f"device is {device}, and this machine (or its container) shows no GPU",
                fix='install the driver, pass the GPU to the container, or set device = "cpu" in worker.toml',
            )
        return ok(f"device is {device}: no GPU here, training runs on the processor")
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, timeout=within, check=False
        )
    except subprocess.TimeoutExpired:
        return skipped(
            f"torch did not tell within {within:g} s", fix="see how long `python -c 'import torch'` takes"
        )
    count, *names = asked.stdout.strip().splitlines()[-1].split("|") if asked.stdout.strip() else ("",)
    if asked.returncode or not count.isdigit():
        return failed(
            "torch cannot be loaded or asked for GPUs",
            fix="`python -c 'import torch'` shows why",
        )
    needed = int(device.partition(":")[2] or 0) if wanted and device.partition(":")[2].isdigit() else 0
    if int(count) > needed:
        return ok(f"device is {device}: torch sees {', '.join(names)}")
    seen = f"device is {device}: there is a GPU here, torch sees {count}"
    fix = 'install the torch build for this driver (`nvidia-smi` shows its version), or set device = "cpu"'
    return failed(seen, fix=fix) if wanted else warning(seen, fix=fix)


def check_time_service() -> Outcome:
    """Whether a time service keeps the clock, as ``timedatectl`` or ``chronyc`` tell."""
    before = time.time() - time.monotonic()
    outcome = _chrony() or _timedatectl()
    moved = abs(time.time() - time.monotonic() - before)
    if moved > WARN_OFFSET:
        return warning(f"the clock was moved by {moved:.1f} s while it was looked at", fix=SET_CLOCK)
    return outcome or skipped(
        "neither timedatectl nor chronyc tells whether a time service keeps this clock",
        fix="in a container, look on its host; else compare `date -u` with a known clock",
    )


def _chrony() -> Outcome | None:
    """From ``chronyc -c tracking``: comma-separated; the fifth field is the offset in seconds."""
    fields = _output_of("chronyc", "-c", "tracking").split(",")
    try:
        offset = float(fields[4])
    except (IndexError, ValueError):
        return None
    if fields[-1].strip() == "Not synchronised":
        return warning("chrony runs and has not set the clock yet", fix="`chronyc sources` shows its servers")
    return judge_offset(offset)


def judge_offset(offset: float) -> Outcome:
    """An outcome for a clock that a time service says is ``offset`` seconds off."""
    seen = f"chrony: the clock is {abs(offset):.3g} s off"
    if abs(offset) > MOST_OFFSET:
        return failed(seen, fix="`chronyc makestep` sets it at once")
    return warning(seen, fix="`chronyc makestep` sets it at once") if abs(offset) > WARN_OFFSET else ok(seen)


def _timedatectl() -> Outcome | None:
    match _output_of("timedatectl", "show", "--property=NTPSynchronized", "--value").strip():
        case "yes":
            return ok("a time service keeps this clock (timedatectl)")
        case "no":
            return warning("no time service keeps this clock (timedatectl)", fix=SET_CLOCK)
    return None


def _output_of(*command: str) -> str:
    """What a program prints; nothing if it is not there, fails or hangs."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=CLOCK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""
