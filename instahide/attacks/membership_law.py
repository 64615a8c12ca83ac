"""What an encoding looks like to someone who knows the law and similar images, but not what is inside.

Axes: N encodings, d values of an image (after averaging), Q coefficients of a grid, K classes.

Two laws, both drawn from the real encoder rather than from formulas: mean and covariance of the
visible part of encodings of public images, and the coefficient (with the weight of its class in the
label) that an image has if it is inside. A release for training and a query for inference differ in
both: a query takes the *largest* coefficient and all its partners come from the pool.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..coefficients import draw_coefficients, mix_labels
from ..encoder import Encoder, FewPixelsWarning
from ..errors import InvalidInputError
from ..images import ImageSet
from ..mixing import to_unit_range
from ..randomness import Randomness
from .view import AttackerView

ROLES = ("training", "query")
MAX_FEATURES = 3072  # larger images are averaged over blocks: the covariance costs d³
MIN_SIMULATED, SIMULATED_PER_FEATURE = 4000, 4  # fewer rows than features make a poor inverse
NUM_COEFFICIENTS = 20_000
RIDGE = 0.01  # of the mean eigenvalue of the correlation matrix
SD_FLOOR = 0.01  # in units of e²: a pixel that never varies must not decide alone
GRID_SIZE = 10  # Q
LABEL_BINS = 21  # bin 0 is w = 0 exactly


def visible(images: torch.Tensor, view: AttackerView) -> torch.Tensor:
    """What the sign mask leaves, e², or everything if there is none; (N, C, H, W) → (N, d).

    Averaged over square blocks until d ≤ ``MAX_FEATURES``, which is linear, as the attack needs.
    """
    scaled = images * view.config.output_range  # noisy modes divide by it to stay in [-1, 1]
    return pooled(scaled * scaled if view.config.has_sign_mask else scaled)


def pooled(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) → (N, d), averaged over square blocks until d ≤ ``MAX_FEATURES``."""
    C, H, W = images.shape[1:]
    block = math.ceil(math.sqrt(C * H * W / MAX_FEATURES))
    if block > 1:
        images = functional.avg_pool2d(images, block, ceil_mode=True)
    return images.flatten(1)


@dataclass(frozen=True, eq=False)
class NullLaw:
    """Mean and whitening of the visible part of encodings that hold only unknown images."""

    mean: torch.Tensor  # (d,)
    sd: torch.Tensor  # (d,)
    factor: torch.Tensor  # (d, d) lower triangular

    def whiten(self, rows: torch.Tensor) -> torch.Tensor:
        """L⁻¹ of every row (n, d), with S = L·Lᵀ."""
        whitened: torch.Tensor = torch.linalg.solve_triangular(self.factor, (rows / self.sd).T, upper=False)
        return whitened.T


def null_law(view: AttackerView, role: str) -> NullLaw:
    """The law of what is visible when nothing about the sources is known; sums over simulated blocks."""
    count, sums, squares, centre = 0, torch.zeros(0), torch.zeros(0), torch.zeros(0)
    for images in _simulated(view, role):
        rows = visible(images, view)
        if count == 0:
            centre, d = rows.mean(0), rows.shape[1]
            sums, squares = torch.zeros(d), torch.zeros(d, d)
        rows = rows - centre  # float32 sums of centred values keep their digits
        count, sums = count + len(rows), sums + rows.sum(0)
        squares.addmm_(rows.T, rows)
    offset = sums / count
    covariance = squares / count - offset[:, None] * offset
    sd = (covariance.diagonal().clamp(min=0) + SD_FLOOR**2).sqrt()
    correlation = covariance / sd[:, None] / sd
    correlation.diagonal().add_(RIDGE)
    return NullLaw(centre + offset, sd, torch.linalg.cholesky(correlation))


def _simulated(view: AttackerView, role: str) -> Iterator[torch.Tensor]:
    """Encodings of public images by the published encoder, in blocks; 4,000 or four a feature in all."""
    pool = view.public_images.images
    pool = pool[(pool != pool[:, :, :1, :1]).any(axis=(1, 2, 3))]  # the encoder refuses blank images
    if len(pool) <= view.config.num_mixed:
        raise InvalidInputError(
            f"{len(pool)} public images that are not blank cannot stand for a population",
            hint="give some hundred images of the same kind",
        )
    features = min(MAX_FEATURES, int(np.prod(view.public_images.image_shape)))
    wanted = max(MIN_SIMULATED, SIMULATED_PER_FEATURE * features)
    images = ImageSet(pool[:wanted], np.zeros(min(len(pool), wanted), dtype=np.int64))
    public = (view.public_pool or ImageSet(pool)) if view.scheme == "cross" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)  # a warning to those who encode
        encoder = Encoder(view.config, private=images, public=public)
    for done in range(0, wanted, len(images)):
        rows = np.arange(min(len(images), wanted - done))
        if role == "query":
            yield encoder.encode_views(images.subset(rows), 1)[0]
        else:
            yield encoder.encode_epoch().images[: len(rows)]


def mean_of_others(view: AttackerView, role: str) -> torch.Tensor:
    """(C, H, W) mean of the images a candidate is mixed with: of its kind, of the pool, as the law mixes."""
    own = to_unit_range(view.public_images.images).mean(0)
    if view.scheme != "cross" or view.public_pool is None or view.config.num_mixed == 1:
        return own
    from_pool = 1.0
    if role == "training":
        from_pool = (view.config.num_mixed - view.config.num_private) / (view.config.num_mixed - 1)
    return (1 - from_pool) * own + from_pool * to_unit_range(view.public_pool.images).mean(0)


@dataclass(frozen=True, eq=False)
class CoefficientLaw:
    """On a grid of λ: log P(λ inside), and log P(λ, w | inside) − log P(w | not inside) by bin of w."""

    grid: NDArray[np.float64]  # (Q,)
    log_prior: torch.Tensor  # (Q,)
    log_prior_with_label: torch.Tensor | None  # (Q, LABEL_BINS)

    def prior(self, labels: torch.Tensor | None, classes: NDArray[np.int64] | None) -> torch.Tensor:
        """(Q, N, M) for soft labels (N, K) and candidates' classes (M,); (Q, 1, 1) without either."""
        if self.log_prior_with_label is None or labels is None or classes is None:
            return self.log_prior[:, None, None]
        weights = labels[:, torch.from_numpy(classes)]
        return self.log_prior_with_label[:, torch.from_numpy(label_bin(weights.numpy()))]


def coefficient_law(view: AttackerView, role: str) -> CoefficientLaw:
    """Drawn from the public law; cells of the grid hold equally many draws."""
    drawn = _own_coefficients(view, role)
    edges = np.unique(np.quantile(drawn, np.linspace(0, 1, GRID_SIZE + 1)[1:-1]))
    cell = np.searchsorted(edges, drawn)  # (n, sources that could be the candidate) → 0..Q-1
    Q = int(cell.max()) + 1
    sizes = np.bincount(cell.ravel(), minlength=Q)
    grid = np.bincount(cell.ravel(), weights=drawn.ravel(), minlength=Q) / np.maximum(sizes, 1)
    log_prior = torch.from_numpy(np.log(np.maximum(sizes, 0.5) / cell.size)).float()
    if view.labels is None or role == "query":
        return CoefficientLaw(grid, log_prior, None)
    return CoefficientLaw(grid, log_prior, _label_table(view, drawn, cell, Q))


def _own_coefficients(view: AttackerView, role: str) -> NDArray[np.float64]:
    """(n, private sources) coefficients a private image may have; (n, 1) the query's, the largest."""
    config, stream = view.config, Randomness().stream("coefficients")
    if role == "query":
        largest = draw_coefficients(stream, NUM_COEFFICIENTS, config).max(axis=1, keepdims=True)
        return np.asarray(largest, dtype=np.float64)
    bounded = config.num_private if view.scheme == "cross" else None
    drawn = draw_coefficients(stream, NUM_COEFFICIENTS, config, num_private=bounded)
    return drawn[:, : config.num_private]


def _label_table(
    view: AttackerView, drawn: NDArray[np.float64], cell: NDArray[np.int64], Q: int
) -> torch.Tensor:
    """(Q, LABEL_BINS) log P(λ, w | inside) − log P(w | not inside), w the weight of the class."""
    assert view.labels is not None
    frequencies = view.labels.double().mean(0).clamp(min=1e-9).numpy()
    frequencies /= frequencies.sum()
    classes = np.random.default_rng(0).choice(len(frequencies), size=drawn.shape, p=frequencies)
    labels = mix_labels(classes, drawn, len(frequencies), view.config).numpy()
    inside_bin = label_bin(np.take_along_axis(labels, classes, axis=1))
    joint = (cell * LABEL_BINS + inside_bin).ravel()
    inside = np.bincount(joint, minlength=Q * LABEL_BINS).reshape(Q, LABEL_BINS) / cell.size
    by_class = np.broadcast_to(frequencies, labels.shape).ravel() / len(labels)
    outside = np.bincount(label_bin(labels).ravel(), weights=by_class, minlength=LABEL_BINS)
    # Half a draw in every bin: a weight never drawn is unlikely, not impossible.
    floor = 0.5 / cell.size
    return torch.from_numpy(np.log(inside + floor / Q) - np.log(outside + floor)).float()


def label_bin(weights: NDArray[np.floating]) -> NDArray[np.int64]:
    """0 for a weight of 0, else 1 .. LABEL_BINS − 1 over (0, 1]."""
    bins = np.ceil(np.asarray(weights, dtype=np.float64) * (LABEL_BINS - 1) - 1e-6)
    return np.asarray(np.clip(bins, 0, LABEL_BINS - 1), dtype=np.int64)
