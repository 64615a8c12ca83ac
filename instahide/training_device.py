"""Where and how arithmetic runs: device, threads, deterministic kernels; all put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .errors import InvalidInputError
from .training_config import TrainingConfig

THREADS_BY_SIZE = ((100_000, 1), (1_000_000, 4))
"""(parameters, threads): a step of a smaller model is too short to share among more threads; where
other processes want the cores too, threads that wait for each other cost several times their gain."""


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is a GPU if there is one, else the CPU.

    Raises:
        InvalidInputError: not a device, or one this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(f"no device {name!r}", hint="use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"device {name!r} is not supported", hint="use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"device {name!r} is not on this machine ({torch.cuda.device_count()} GPUs found)",
            hint="use --device cpu, or auto",
        )
    return device


def uses_amp(config: TrainingConfig, device: torch.device) -> bool:
    """Whether this run computes in bfloat16: asked for, on a GPU that has it."""
    return config.amp and device.type == "cuda" and torch.cuda.is_bf16_supported()


def threads_for(model: nn.Module) -> int:
    """CPU threads worth using for a model of this size, at most as many as torch has now."""
    size = sum(parameter.numel() for parameter in model.parameters())
    limits = [limit for parameters, limit in THREADS_BY_SIZE if size < parameters]
    return min([torch.get_num_threads(), *limits])


@contextmanager
def at_most_threads(limit: int) -> Iterator[None]:
    """No more than ``limit`` CPU threads inside; small operations on more spend their time waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, limit))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def run_settings(model: nn.Module, config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Threads and determinism as ``config`` wants them, and as they were before on leaving."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    wanted = config.num_threads or (threads_for(model) if device.type == "cpu" else threads)
    try:
        torch.set_num_threads(wanted)
        if config.deterministic:
            # cuBLAS reads this once, at its first use in the process.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = device.type == "cuda" and not config.deterministic
        yield
    finally:
        torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:  # asking loads torch's compiler
            torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark
