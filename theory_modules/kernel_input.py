"""What the kernels take: rows or images, checked once; and what they say when it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class KernelInputError(ValueError):
    """Inputs or settings for which there is no kernel; the text says which value and what to do."""


P = ParamSpec("P")
R = TypeVar("R")


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Run as under ``no_grad``, and outside a caller's inference mode, which is of its thread."""

    @wraps(function)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*arguments, **options)

    return wrapped


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise KernelInputError(f"dtype is {dtype!r}; choose float32 or float64")
    assert found is not None
    return found


def checked_pair(x1: Any, x2: Any, axes: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Both inputs as finite tensors of the given axes, such as ``"N d"``, alike in all but the first."""
    first = _checked(x1, "x1", axes)
    if x2 is None:
        return first, None
    second = _checked(x2, "x2", axes)
    if first.shape[1:] != second.shape[1:]:
        raise KernelInputError(
            f"x1 has shape {tuple(first.shape)} and x2 has shape {tuple(second.shape)}; all but the first "
            "number must be equal"
        )
    return first, second.to(first.device)


def checked_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise KernelInputError(f"{name} is {value!r}; give a whole number of at least {least}")
    if most is not None and value > most:
        raise KernelInputError(f"{name} is {value}; give at most {most}")
    return int(value)


def like(kernel: torch.Tensor, x1: Any) -> Any:
    """The kernel as a tensor where the caller gave a tensor, as a NumPy array otherwise."""
    return kernel if isinstance(x1, torch.Tensor) else kernel.numpy()


def _checked(value: Any, name: str, axes: str) -> torch.Tensor:
    tensor = value.detach() if isinstance(value, torch.Tensor) else _as_tensor(value, name, axes)
    if tensor.dtype == torch.bool or tensor.dtype.is_complex:
        raise KernelInputError(f"{name} has type {tensor.dtype}; give real numbers")
    if tensor.ndim != len(axes.split()):
        raise KernelInputError(f"{name} has shape {tuple(tensor.shape)}; give ({', '.join(axes.split())})")
    if 0 in tensor.shape:
        raise KernelInputError(f"{name} has shape {tuple(tensor.shape)}; there is nothing to compare")
    if not tensor.dtype.is_floating_point:
        return tensor.double()
    if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # one pass, where all is well
        bad = ~torch.isfinite(tensor.flatten(1)).all(1)
        row = int(bad.nonzero()[0])
        raise KernelInputError(
            f"{name}[{row}] holds a NaN or infinity ({int(bad.sum())} of {len(tensor)} do)"
        )
    return tensor


def _as_tensor(value: Any, name: str, axes: str) -> torch.Tensor:
    array = np.ascontiguousarray(value)
    try:
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except TypeError:
        raise KernelInputError(f"{name} does not hold numbers; give an array ({axes})") from None
