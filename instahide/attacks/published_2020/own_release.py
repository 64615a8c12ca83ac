"""A release the attacker makes, of public images under the published law, with everything about it known.

Axes: n own images, T releases of each, N = n·T encodings, k sources, C channels, H rows, W columns.

The pair network and the colour map are learnt on such releases: nothing of the attacked one is needed.
Seeds are the attacker's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ...mixing import to_unit_range
from ..recovery.simulated_mixtures import simulate_coefficients
from ..view import AttackerView


@dataclass(frozen=True, eq=False)
class OwnRelease:
    """Magnitudes of N own encodings, and what went into them.

    Args:
        magnitudes: (N, C, H, W) |e|.
        private_rows: (N, k_priv) rows of ``images``.
        coefficients: (N, k_priv) their λ.
        images: (n, C, H, W) in [−1, 1].
    """

    magnitudes: torch.Tensor
    private_rows: NDArray[np.int64]
    coefficients: NDArray[np.float32]
    images: torch.Tensor


class OwnReleases:
    """Draws releases of images the attacker has; ``view`` gives the law, the images and the pool."""

    def __init__(self, view: AttackerView, *, seed: int) -> None:
        if len(view.public_images) < 4 * view.config.num_mixed:
            raise InvalidInputError(
                f"{len(view.public_images)} public images cannot stand for a population",
                hint="give some hundred images of the same kind",
            )
        self._images = to_unit_range(view.public_images.images)
        pool = view.public_pool if view.scheme == "cross" else None
        self._pool = self._images if pool is None else to_unit_range(pool.images)
        self._config: EncoderConfig = view.config
        self._scheme = view.scheme
        self._rng = np.random.default_rng(seed)

    @property
    def num_private(self) -> int:
        """Slots that hold images of the release; in the inside scheme all of them."""
        return self._config.num_private if self._scheme == "cross" else self._config.num_mixed

    def draw(self, num_images: int, releases: int) -> OwnRelease:
        """Own images each ``releases`` times in slot 0, and as often in every other private slot."""
        chosen = self._rng.integers(0, len(self._images), num_images)
        images = self._images[torch.from_numpy(chosen)]
        if self._rng.random() < 0.5:
            images = images.flip(3)
        rows = np.concatenate([self._partners(num_images) for _ in range(releases)])
        coefficients = simulate_coefficients(self._rng, len(rows), self._config, scheme=self._scheme)
        mixed = torch.zeros(len(rows), *images.shape[1:])
        for slot in range(self._config.num_mixed):
            weight = torch.from_numpy(coefficients[:, slot])[:, None, None, None]
            if slot < self.num_private:
                mixed.addcmul_(weight, images[torch.from_numpy(rows[:, slot])])
            else:
                other = torch.from_numpy(self._rng.integers(0, len(self._pool), len(rows)))
                mixed.addcmul_(weight, self._pool[other])
        return OwnRelease(self._rounded(mixed.abs()), rows, coefficients[:, : self.num_private], images)

    def _partners(self, num_images: int) -> NDArray[np.int64]:
        """(n, k_priv): each image once in every slot, never twice in one encoding (distinct rotations)."""
        order = self._rng.permutation(num_images)
        steps = self._rng.choice(np.arange(1, num_images), self.num_private - 1, replace=False)
        place = np.empty_like(order)
        place[order] = np.arange(num_images)
        columns = [np.arange(num_images)] + [order[(place + step) % num_images] for step in steps]
        return np.stack(columns, axis=1)

    def _rounded(self, magnitudes: torch.Tensor) -> torch.Tensor:
        levels = self._config.quantization_levels
        if levels is None:
            return magnitudes
        dither = torch.from_numpy(self._rng.random(tuple(magnitudes.shape), dtype=np.float32))
        return torch.floor(magnitudes * levels + dither) / levels
