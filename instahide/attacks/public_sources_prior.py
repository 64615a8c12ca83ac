"""A Gaussian law of natural images that is diagonal in one fast transform.

Axes: N images, C channels, H rows, W columns.

Neighbouring pixels of a photograph agree and its colours move together. Both are caught by a
Gaussian whose covariance is diagonal after a discrete cosine transform of rows and columns and one
rotation of the channels (the principal axes of colour)::

    y = U·(D_H x D_Wᵀ),    x ~ N(mean, Sᵀ diag(variance) S)                               (1)

with S the orthogonal map x → y. For images that are stationary up to a reflecting border (1) is the
Karhunen-Loève transform; it needs d variances instead of d²/2 covariances, so a few hundred images
suffice where a full covariance of 32×32×3 images needs tens of thousands, and applying S costs
d·(H + W + C) multiplications, not d².
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import InvalidInputError
from ..images import ImageSet
from ..mixing import to_unit_range

VARIANCE_FLOOR = 1e-5
"""Of 8-bit rounding in [-1, 1]: (2/255)²/12 is 5e-6. A component that never varies decides nothing."""
CHUNK = 1024


@dataclass(frozen=True, eq=False)
class ImagePrior:
    """The Gaussian of equation (1).

    Args:
        mean: (C, H, W) in [-1, 1].
        variance: (C, H, W) of the transformed components.
        colors: (C, C) U, rows are axes.
        rows, columns: (H, H) and (W, W) orthonormal cosine matrices.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    colors: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def of(cls, images: ImageSet) -> ImagePrior:
        """Fitted to ``images``; some hundred are enough.

        Raises:
            InvalidInputError: fewer than two images.
        """
        if len(images) < 2:
            raise InvalidInputError(
                f"{len(images)} public images give no statistics", hint="give some hundred images"
            )
        C, H, W = images.image_shape
        chunks = range(0, len(images), CHUNK)
        mean = sum(to_unit_range(images.images[i : i + CHUNK]).double().sum(0) for i in chunks) / len(images)
        assert isinstance(mean, torch.Tensor)
        covariance = torch.zeros((C, C), dtype=torch.float64)
        for i in chunks:
            part = (
                (to_unit_range(images.images[i : i + CHUNK]).double() - mean).transpose(0, 1).reshape(C, -1)
            )
            covariance += part @ part.T
        colors = torch.linalg.eigh(covariance).eigenvectors.T.float().contiguous()
        prior = cls(mean.float(), torch.ones(C, H, W), colors, cosines(H), cosines(W))
        squares = torch.zeros((C, H, W), dtype=torch.float64)
        for i in chunks:
            squares += (
                prior.transform(to_unit_range(images.images[i : i + CHUNK]) - prior.mean)
                .double()
                .square()
                .sum(0)
            )
        variance = (squares / len(images)).float().clamp(min=VARIANCE_FLOOR)
        return cls(prior.mean, variance, colors, prior.rows, prior.columns)

    def transform(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → y of the same shape; linear and orthogonal, the mean is not taken off."""
        N, C, H, W = pixels.shape
        spectrum = self.rows @ (pixels @ self.columns.T)
        return (self.colors @ spectrum.reshape(N, C, H * W)).view(N, C, H, W)

    def inverse(self, components: torch.Tensor) -> torch.Tensor:
        """The transpose of :meth:`transform`."""
        N, C, H, W = components.shape
        spectrum = (self.colors.T @ components.reshape(N, C, H * W)).view(N, C, H, W)
        return self.rows.T @ (spectrum @ self.columns)

    def pixel_diagonal(self, eigenvalues: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) diagonal, in pixels, of the matrices Sᵀ diag(eigenvalues) S."""
        N, C, H, W = eigenvalues.shape
        spectrum = (self.colors.T.square() @ eigenvalues.reshape(N, C, H * W)).view(N, C, H, W)
        return self.rows.T.square() @ (spectrum @ self.columns.square())


def cosines(size: int) -> torch.Tensor:
    """(size, size) orthonormal DCT-II matrix: row u is frequency u."""
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    position = torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (position + 0.5) * frequency / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
