"""The published reconstruction: gradient descent on mixtures that explain the magnitudes.

Axes: N encodings, n private images, k_priv slots of an encoding, d = C·H·W values.

Given who was mixed with whom (a sparse matrix Λ of coefficients, (N, n)), the attack of 2020 looks for
images X (n, d) whose private parts M = ΛX come close to ±|E|; public parts are left unexplained::

    f(X) = mean min( (|E| − M)², (|E| + M)² ) + 0.05·mean(1 − |X|)                              (1)

The second term pushes values away from 0, to the ends of the range. X starts at 0; 1,000 steps of Adam
(Kingma and Ba 2015; learning rate 0.01); then each image is stretched to fill [−1, 1]. Source: arXiv
2011.05315, section on recovering the images, and steps 4 to 6 of the programs released with it.

**What (1) is.** min(...) = (|E| − |M|)², so with S = sign(M) and S = −1 where M = 0 (the released
comparison is strict, so a tie takes the second branch)::

    ∇f = 2/(N·d)·(ΛᵀΛ·X − Λᵀ(S∘|E|)) − 0.05/(n·d)·sign(X)                                      (2)

ΛᵀΛ is n×n and fixed; a step costs two sparse products and no autodiff. Values of a pixel meet no
other pixel, so blocks of pixels are taken through all steps one after the other and stay in the
processor's cache: the same numbers, some twenty times sooner than differentiating (1).

**What it cannot do.** The tie at the start makes every mixture negative, and on natural images none ever
crosses zero again: S stays −1, and the descent is a linear regression of −|E| on Λ with a constant added.
It ends where (2) is zero with S = −1 and X < 0::

    ΛᵀΛ·X = −Λᵀ|E| − 0.025·N/n                                                                  (3)

(on a replica of the challenge, 1,000 steps of Adam end within 3e-6 of it). That finds the images only as far
as mixtures *are* mostly negative (or mostly positive: then the answer is turned over). On a range symmetric
about zero bright parts come out folded: x̂ falls again where x rises. The colour step mends a part of that.
See :func:`end_of_descent`, :func:`share_of_positive_mixtures`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InvalidInputError

NUM_STEPS = 1000
LEARNING_RATE = 0.01
EXTREME_WEIGHT = 0.05
BETAS = (0.9, 0.999)
EPSILON = 1e-8
BLOCK = 64  # values: a block of 5,000 mixtures is 1.3 MB
TIMED_STEPS = 20
WELL_CONDITIONED = 100.0

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ObjectiveSettings:
    """Equation (1) and its descent; the defaults are the published ones."""

    num_steps: int = NUM_STEPS
    learning_rate: float = LEARNING_RATE
    extreme_weight: float = EXTREME_WEIGHT

    def __post_init__(self) -> None:
        if self.num_steps < 1 or not self.learning_rate > 0 or not self.extreme_weight >= 0:
            raise InvalidInputError(
                f"{self}", hint="at least one step, a positive learning rate, a weight of 0 or more"
            )


def published_objective(
    encodings: torch.Tensor | NDArray[np.floating],
    private_rows: NDArray[np.int64],
    coefficients: NDArray[np.floating],
    *,
    num_images: int,
    settings: ObjectiveSettings | None = None,
    start: NDArray[np.floating] | None = None,
    stretch: bool = True,
    shortcut: bool = False,
    max_seconds: float | None = None,
    progress: Callable[..., None] | None = None,
) -> Array:
    """Minimise (1).

    Args:
        encodings: (N, C, H, W); signs are ignored.
        private_rows: (N, k_priv) which private images are inside; −1 where that is not known.
        coefficients: (N, k_priv) their λ; ignored where the row is −1.
        num_images: n.
        start: (n, C, H, W) where to start; ``None``: zeros, as published.
        stretch: map each image's smallest value to −1 and its largest to 1, as published.
        shortcut: take :func:`end_of_descent` where it is known, instead of the steps towards it.
        max_seconds: fewer steps if ``settings.num_steps`` would take longer than this.

    Returns:
        (n, C, H, W) images, in [−1, 1] if stretched, else as found.

    Raises:
        InvalidInputError: shapes or rows that do not belong together.
    """
    settings = settings or ObjectiveSettings()
    magnitudes = _magnitudes(encodings)
    mixing = mixing_matrix(private_rows, coefficients, num_images)
    if mixing.shape[0] != len(magnitudes):
        raise InvalidInputError(
            f"{len(magnitudes)} encodings but private rows for {mixing.shape[0]}", hint="one row each"
        )
    shape = (num_images, *magnitudes.shape[1:])
    if start is not None and start.shape != shape:
        raise InvalidInputError(f"the start has shape {start.shape}", hint=f"it must be {shape}")
    flat = magnitudes.reshape(len(magnitudes), -1)
    first = np.zeros((num_images, flat.shape[1]), np.float32)
    if start is not None:
        first = np.asarray(start, dtype=np.float32).reshape(first.shape)
    found = end_of_descent(flat, mixing, settings) if shortcut and start is None else None
    if found is None:
        found = _minimise(flat, mixing, first, settings, max_seconds, progress)
    return stretched(found.reshape(shape)) if stretch else found.reshape(shape)


def end_of_descent(magnitudes: Array, mixing: Array, settings: ObjectiveSettings) -> Array | None:
    """(n, d) where the descent from zeros ends, by (3); ``None`` where that is not certain.

    Certain means: the solution is negative throughout, so that no mixture has crossed zero and (2) vanishes
    there; it lies within reach of the steps; and the regression is well enough conditioned for them to
    have arrived. Images in no encoding stay at 0.
    """
    used = np.any(mixing != 0, axis=0)
    columns = mixing[:, used].astype(np.float64)
    gram = columns.T @ columns
    reach = 0.5 * settings.num_steps * settings.learning_rate
    if not used.any() or np.linalg.cond(gram) > WELL_CONDITIONED or (columns < 0).any():
        return None
    push = settings.extreme_weight * len(mixing) / (2 * len(used))
    solution = np.linalg.solve(gram, -(columns.T @ magnitudes) - push)
    if solution.max() >= 0 or solution.min() < -reach:
        return None
    found = np.zeros((len(used), magnitudes.shape[1]), dtype=np.float32)
    found[used] = solution
    return found


def stretched(images: Array) -> Array:
    """Each image's values mapped linearly onto [−1, 1]; a constant image becomes −1."""
    flat = images.reshape(len(images), -1)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    scaled = (flat - low) / np.maximum(high - low, 1e-12) * 2 - 1
    return np.asarray(scaled.clip(-1, 1).reshape(images.shape), dtype=np.float32)


def mixing_matrix(
    private_rows: NDArray[np.int64], coefficients: NDArray[np.floating], num_images: int
) -> Array:
    """Λ (N, n) dense float32; a row −1 contributes nothing, a repeated row adds up."""
    private_rows, coefficients = np.asarray(private_rows), np.asarray(coefficients)
    if private_rows.ndim != 2 or private_rows.shape != coefficients.shape:
        raise InvalidInputError(
            f"private rows have shape {private_rows.shape}, coefficients {coefficients.shape}",
            hint="give both as (N, k_priv)",
        )
    if private_rows.size and not -1 <= private_rows.min() <= private_rows.max() < num_images:
        raise InvalidInputError(
            f"private rows from {private_rows.min()} to {private_rows.max()} for {num_images} images",
            hint="rows count from 0; -1 stands for unknown",
        )
    known = private_rows >= 0
    matrix = np.zeros((len(private_rows), num_images), dtype=np.float32)
    owners = np.broadcast_to(np.arange(len(private_rows))[:, None], private_rows.shape)
    np.add.at(matrix, (owners[known], private_rows[known]), coefficients[known].astype(np.float32))
    return matrix


def objective_value(
    images: torch.Tensor,
    magnitudes: torch.Tensor,
    mixing: torch.Tensor,
    extreme_weight: float = EXTREME_WEIGHT,
) -> torch.Tensor:
    """f(X) by (1), differentiable. ``images`` (n, d), ``magnitudes`` (N, d), ``mixing`` Λ (N, n)."""
    mixed = mixing @ images
    above, below = magnitudes - mixed, magnitudes + mixed
    unexplained = torch.where(above.abs() < below.abs(), above, below)
    return unexplained.square().mean() + extreme_weight * (1 - images.abs()).mean()


def objective_gradient(
    images: Array, magnitudes: Array, mixing: Array, extreme_weight: float = EXTREME_WEIGHT
) -> Array:
    """(n, d) ∇f by (2), in the dtype of ``images``."""
    scale = 2 / magnitudes.size
    explained = np.copysign(magnitudes, _with_ties_negative(mixing @ images))
    gradient = scale * (mixing.T @ mixing @ images - mixing.T @ explained)
    return np.asarray(gradient - extreme_weight / images.size * np.sign(images), dtype=images.dtype)


def share_of_positive_mixtures(images: Array, mixing: Array) -> float:
    """Share of the values of M = ΛX above zero: 0 or 1 means that no sign was found, only assumed."""
    flat = images.reshape(len(images), -1)
    return float(np.mean(mixing[np.any(mixing != 0, axis=1)] @ flat > 0))


def _with_ties_negative(mixed: Array) -> Array:
    negative: Array = np.where(mixed == 0, np.float32(-1), mixed)
    return negative


def _magnitudes(encodings: torch.Tensor | NDArray[np.floating]) -> Array:
    values = encodings.numpy() if isinstance(encodings, torch.Tensor) else np.asarray(encodings)
    if values.ndim != 4 or len(values) == 0:
        raise InvalidInputError(f"encodings have shape {values.shape}", hint="give (N, C, H, W)")
    if not np.isfinite(values).all():
        raise InvalidInputError("encodings hold values that are not numbers", hint="drop those rows")
    return np.asarray(np.abs(values), dtype=np.float32)


def _minimise(
    magnitudes: Array,
    mixing: Array,
    start: Array,
    settings: ObjectiveSettings,
    max_seconds: float | None,
    progress: Callable[..., None] | None,
) -> Array:
    blocks = [slice(first, first + BLOCK) for first in range(0, magnitudes.shape[1], BLOCK)]
    descent = _Descent(mixing, settings, magnitudes.shape[1])
    num_steps = settings.num_steps
    if max_seconds is not None:
        began = time.perf_counter()
        descent.run(magnitudes[:, blocks[0]], start[:, blocks[0]], TIMED_STEPS)
        affordable = max_seconds * TIMED_STEPS / (len(blocks) * (time.perf_counter() - began))
        num_steps = max(1, min(num_steps, int(affordable)))
    found = np.empty_like(start)
    for done, block in enumerate(blocks):
        found[:, block] = descent.run(magnitudes[:, block], start[:, block], num_steps)
        if progress is not None:
            progress(done + 1, len(blocks), f"published objective, {num_steps} steps")
    return found


class _Descent:
    """Adam on (1) for blocks of pixels; scales are those of the whole objective, not of the block."""

    def __init__(self, mixing: Array, settings: ObjectiveSettings, num_values: int) -> None:
        from scipy.sparse import csr_array

        self._mix, self._adjoint = csr_array(mixing), csr_array(mixing.T)
        self._gram = mixing.T @ mixing
        self._settings = settings
        N, n = mixing.shape
        self._scale = np.float32(2 / (N * num_values))
        self._push = np.float32(settings.extreme_weight / (n * num_values))

    def run(self, magnitudes: Array, start: Array, num_steps: int) -> Array:
        magnitudes, images = np.ascontiguousarray(magnitudes), np.ascontiguousarray(start).copy()
        mean, square = np.zeros_like(images), np.zeros_like(images)
        for step in range(1, num_steps + 1):
            gradient = self._gradient(magnitudes, images, first=step == 1)
            mean += np.float32(1 - BETAS[0]) * (gradient - mean)
            square += np.float32(1 - BETAS[1]) * (gradient * gradient - square)
            rate = np.float32(self._settings.learning_rate / (1 - BETAS[0] ** step))
            spread = np.sqrt(square / np.float32(1 - BETAS[1] ** step)) + np.float32(EPSILON)
            images -= rate * mean / spread
        return images

    def _gradient(self, magnitudes: Array, images: Array, *, first: bool) -> Array:
        mixed = self._mix @ images
        if first:  # later a value is 0 in every slot only by a chance of the last bit
            mixed = _with_ties_negative(mixed)
        np.copysign(magnitudes, mixed, out=mixed)
        gradient = self._gram @ images - self._adjoint @ mixed
        return np.asarray(self._scale * gradient - self._push * np.sign(images), dtype=np.float32)
