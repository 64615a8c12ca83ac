"""What is known about the matrix: some of its entries, or some linear measurements of it.

Both kinds are a linear map A and values b, with the *mean* square as the loss (the published convention,
no factor 1/2) over the m observations of each problem:

    loss(W) = |A(W) − b|² / m,        dloss/dW = (2/m) A*(A(W) − b).

Legend: S problems solved side by side, n × p the matrix, m observations. Residuals are (S, n, p) with zeros
off the observed entries for completion, (S, m) for sensing; nothing outside this file looks inside them.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class FactorizationInputError(ValueError):
    """An argument of a completion or sensing problem is wrong; the message names it and what to do."""


class Observations(Protocol):
    """A linear map with values, over S problems at once."""

    shape: tuple[int, int]
    num_problems: int

    def residual(self, W: Tensor, out: Tensor | None = None) -> Tensor:
        """A(W) − b."""

    def measure(self, W: Tensor) -> Tensor:
        """A(W), shaped as a residual."""

    def adjoint(self, residual: Tensor) -> Tensor:
        """A*(residual): (S, n, p)."""

    def loss(self, residual: Tensor) -> Tensor:
        """(S,) mean squares over the observations."""

    def loss_gradient(self, residual: Tensor) -> Tensor:
        """(S, n, p): (2/m) A*(residual). May overwrite the residual."""

    def curvature(self) -> Tensor:
        """(S,) (2/m)|A|², at most: how much the loss curves along a unit direction of W."""

    def typical_norm(self) -> Tensor:
        """(S,) the Frobenius norm of W to expect: observations as large as a typical entry makes them."""

    def select(self, rows: list[int]) -> Observations:
        """Some of the problems."""


class Completion:
    """Entries: A keeps the entries where the mask is 1."""

    def __init__(self, observed: Tensor, mask: Tensor) -> None:
        self.mask = mask
        self.values = torch.where(mask > 0, observed, torch.zeros_like(observed))
        self.count = mask.sum((1, 2)).clamp(min=1)
        self.num_problems = observed.shape[0]
        self.shape = (observed.shape[1], observed.shape[2])

    def residual(self, W: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul(W, self.mask, out=out).sub_(self.values)

    def measure(self, W: Tensor) -> Tensor:
        return W * self.mask

    def adjoint(self, residual: Tensor) -> Tensor:
        return residual

    def loss(self, residual: Tensor) -> Tensor:
        return square_norms(residual) / self.count

    def loss_gradient(self, residual: Tensor) -> Tensor:
        return residual.mul_((2 / self.count)[:, None, None])

    def curvature(self) -> Tensor:
        return 2 / self.count

    def typical_norm(self) -> Tensor:
        return (square_norms(self.values) / self.count * math.prod(self.shape)).sqrt()

    def select(self, rows: list[int]) -> Completion:
        return Completion(self.values[rows], self.mask[rows])


class Sensing:
    """Inner products with known matrices: A(W)_i = ⟨A_i, W⟩, the same matrices for all S problems."""

    def __init__(self, measurements: Tensor, values: Tensor, norm: float | None = None) -> None:
        self.flat = measurements.flatten(1)
        self.values = values
        self.shape = (measurements.shape[1], measurements.shape[2])
        self.num_problems = values.shape[0]
        self.count = measurements.shape[0]
        self.norm = norm or float(torch.linalg.matrix_norm(self.flat.double(), 2))

    def residual(self, W: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mm(W.flatten(1), self.flat.T, out=out).sub_(self.values)

    def measure(self, W: Tensor) -> Tensor:
        return W.flatten(1) @ self.flat.T

    def adjoint(self, residual: Tensor) -> Tensor:
        return (residual @ self.flat).view(-1, *self.shape)

    def loss(self, residual: Tensor) -> Tensor:
        return square_norms(residual) / self.count

    def loss_gradient(self, residual: Tensor) -> Tensor:
        return self.adjoint(residual).mul_(2 / self.count)

    def curvature(self) -> Tensor:
        return torch.full((self.num_problems,), 2 / self.count * self.norm**2, dtype=self.flat.dtype)

    def typical_norm(self) -> Tensor:
        weight = self.flat.square().sum()
        return (square_norms(self.values) / weight * math.prod(self.shape)).sqrt()

    def select(self, rows: list[int]) -> Sensing:
        return Sensing(self.flat.view(-1, *self.shape), self.values[rows], self.norm)


def square_norms(tensor: Tensor) -> Tensor:
    """(S, ...) → (S,) sums of squares."""
    flat = tensor.flatten(1)
    squares: Tensor = torch.linalg.vecdot(flat, flat)
    return squares


def completion(observed: Any, mask: Any, num_problems: int, dtype: torch.dtype) -> Completion:
    """Checked problems from arrays (n, p) or (S, n, p); what lies off the mask is ignored, NaN included.

    Raises:
        FactorizationInputError: shapes differ, nothing is observed, or an observed entry is not finite.
    """
    values, known = np.asarray(observed), np.asarray(mask)
    if values.ndim not in (2, 3) or known.shape not in (values.shape, values.shape[-2:]):
        raise FactorizationInputError(
            f"observed has shape {values.shape} and mask {known.shape}; give both as (n, p) or (S, n, p)"
        )
    if known.dtype != np.bool_ and not np.isin(known, (0, 1)).all():
        raise FactorizationInputError(
            "mask holds values other than 0 and 1; give True where an entry is known"
        )
    known = np.broadcast_to(known.astype(bool), values.shape)
    if not known.any(axis=(-2, -1)).all():
        raise FactorizationInputError("mask marks no entry as observed; there is nothing to complete from")
    if not np.isfinite(values[known]).all():
        raise FactorizationInputError("an observed entry is not finite; set its mask to False")
    tensors = [
        torch.as_tensor(np.array(a, dtype=np.float64)).to(dtype) for a in (np.where(known, values, 0), known)
    ]
    if values.ndim == 2:
        tensors = [t.expand(num_problems, -1, -1).contiguous() for t in tensors]
    elif num_problems not in (1, values.shape[0]):
        raise FactorizationInputError(
            f"{values.shape[0]} stacked problems but {num_problems} random states; give one, or one for each"
        )
    return Completion(*tensors)


def sensing(measurements: Any, values: Any, num_problems: int, dtype: torch.dtype) -> Sensing:
    """Checked problems from measurement matrices (m, n, p) and values (m,) or (S, m).

    Raises:
        FactorizationInputError: shapes do not fit, or a number is not finite.
    """
    matrices, b = np.asarray(measurements, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if matrices.ndim != 3 or not matrices.size or b.ndim not in (1, 2) or b.shape[-1] != len(matrices):
        raise FactorizationInputError(
            f"measurements are {matrices.shape} and values {b.shape}; give (m, n, p) and (m,) or (S, m)"
        )
    if not (np.isfinite(matrices).all() and np.isfinite(b).all()):
        raise FactorizationInputError("a measurement or a value is not finite; leave it out")
    if b.ndim == 1:
        b = np.broadcast_to(b, (num_problems, len(b))).copy()
    elif num_problems not in (1, len(b)):
        raise FactorizationInputError(
            f"{len(b)} stacked problems but {num_problems} random states; give one, or one for each"
        )
    return Sensing(torch.as_tensor(matrices).to(dtype), torch.as_tensor(b).to(dtype))
