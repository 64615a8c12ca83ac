"""The provable attack, as in the theorem: isotropic Gaussian features, two private images.

Axes: m encodings, n private images, P public ones, d features, k = 2 + k_pub vectors in an encoding.

Model (Chen, Li, Song, Zhuo, ICLR 2021; Huang et al., arXiv 2011.11877): private and public vectors have
independent N(0, 1) features, an encoding is y = |Σ_{j in S} x_j|/√k with two private images in S. What is
proved: m = O(n log n) encodings determine all private images (below that some image is in none). Steps:

1. public part from second moments (:mod:`.public_part`);
2. inner products of the private parts: folded covariances without a public part
   (:mod:`.folded_moments`), products of expected private parts with one;
3. who was mixed with whom: :mod:`.line_graph`;
4. the images: :mod:`.signed_regression`, exactly, per feature up to a sign if there is no public part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidInputError
from .folded_moments import folded_correlations
from .line_graph import refine_stars, stars_of_line_graph
from .public_part import expected_private_part, learn_public_rows, public_part
from .signed_regression import solve_signed_regression

Array = NDArray[np.float64]
NUM_QUADRATURE = 200_000


@dataclass(frozen=True, eq=False)
class GaussianView:
    """What the attacker of the theorem sees.

    Args:
        magnitudes: (m, d) y.
        num_images: n.
        public: (P, d), or ``None`` if all sources are private.
        num_public: k_pub.
    """

    magnitudes: Array
    num_images: int
    public: Array | None = None
    num_public: int = 0

    def __post_init__(self) -> None:
        if self.magnitudes.ndim != 2 or not np.isfinite(self.magnitudes).all():
            raise InvalidInputError("magnitudes are not a finite (m, d) array", hint="one row per encoding")
        if (self.public is None) != (self.num_public == 0):
            raise InvalidInputError("public vectors and num_public do not fit", hint="give both or neither")


@dataclass(frozen=True, eq=False)
class GaussianTruth:
    """What went in: (n, d) images, (m, 2) pairs, (m, k_pub) public rows."""

    images: Array
    pairs: NDArray[np.int64]
    public_rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GramRecovery:
    """What came out.

    Args:
        images: (≤ n, d); NaN where not reached. Without a public part each feature up to a sign.
        pairs: (m, 2) rows of ``images``.
        public_rows: (m, k_pub).
        inner_products: (m, m) of the private parts, estimated; 1/2 for one shared image, 1 for two.
    """

    images: Array
    pairs: NDArray[np.int64]
    public_rows: NDArray[np.int64]
    inner_products: Array


def gaussian_release(
    num_images: int,
    num_encodings: int,
    num_features: int,
    *,
    num_public: int = 0,
    pool_size: int = 0,
    seed: int = 0,
) -> tuple[GaussianView, GaussianTruth]:
    """Data of the theorem's model; the seed chooses the data."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(num_images, num_features))
    public = generator.normal(size=(pool_size, num_features)) if num_public else None
    pairs = _distinct(generator, num_encodings, num_images, 2)
    rows = _distinct(generator, num_encodings, pool_size, num_public)
    total = images[pairs].sum(axis=1)
    if public is not None:
        total += public[rows].sum(axis=1)
    view = GaussianView(np.abs(total) / math.sqrt(2 + num_public), num_images, public, num_public)
    return view, GaussianTruth(images, pairs, rows)


def recover_gaussian_features(view: GaussianView) -> GramRecovery:
    """All four steps."""
    k = 2 + view.num_public
    y = view.magnitudes
    if view.public is None:
        rows, known = np.empty((len(y), 0), dtype=np.int64), None
        products = folded_correlations(y)
    else:
        rows = learn_public_rows(y, view.public, num_public=view.num_public, num_mixed=k)
        known = public_part(rows, view.public, num_mixed=k)
        expected = expected_private_part(y, known, variance=2 / k)
        products = expected @ expected.T / y.shape[1] / (2 / k * kept_share(view.num_public))
    stars = stars_of_line_graph(products > 0.25)[: view.num_images]
    pairs = refine_stars(products, stars)
    images = solve_signed_regression(
        pairs,
        y * math.sqrt(k),
        num_images=len(stars),
        public_part=None if known is None else known * math.sqrt(k),
    )
    return GramRecovery(images, pairs, rows, products)


def kept_share(num_public: int) -> float:
    """E[û_i·û_j]/E[u_i·u_j] for encodings sharing one of two private images, û of equation (2) there.

    By quadrature over a fixed sample: 0.24 for two public images, 0.37 for four.
    """
    generator = np.random.default_rng(0)
    u = generator.normal(size=(3, NUM_QUADRATURE))
    first, second = u[0] + u[1], u[0] + u[2]
    known = math.sqrt(num_public) * generator.normal(size=(2, NUM_QUADRATURE))
    expected = [
        expected_private_part(np.abs(part + p), p, variance=2.0)
        for part, p in zip((first, second), known, strict=True)
    ]
    return float(np.mean(expected[0] * expected[1]))


def recovered_share(recovery: GramRecovery, truth: GaussianTruth, *, tolerance: float = 1e-6) -> float:
    """Share of the private images of which 99 % of the features came out within ``tolerance``.

    Features are compared by absolute value where there is no public part. An image is matched with the
    recovered one closest to it.
    """
    if len(recovery.images) == 0:
        return 0.0
    got, true = recovery.images, truth.images
    if recovery.public_rows.shape[1] == 0:
        got, true = np.abs(got), np.abs(true)
    got = np.where(np.isfinite(got), got, 1e9)
    probe = slice(0, min(64, true.shape[1]))
    close = [int((np.abs(got[:, probe] - row[probe]) < tolerance).sum(axis=1).argmax()) for row in true]
    right = [
        (np.abs(got[index] - row) < tolerance).mean() > 0.99 for index, row in zip(close, true, strict=True)
    ]
    return float(np.mean(right))


def _distinct(generator: np.random.Generator, count: int, size: int, width: int) -> NDArray[np.int64]:
    """(count, width) different indices below ``size`` in each row."""
    rows = [generator.choice(size, width, replace=False) for _ in range(count)] if width else []
    return np.array(rows, dtype=np.int64).reshape(count, width)
