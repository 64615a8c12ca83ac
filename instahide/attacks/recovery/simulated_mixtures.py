"""The attacker's own mixtures: public images under the published law, with everything about them known.

Axes: B mixtures, k sources, C channels, H rows, W columns, P public images.

An attacker who knows the law of an encoder makes as many (magnitude, sign) examples as wanted from
images of the same kind. Seeds here are the attacker's own; no secret of any encoder is drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...coefficients import round_to_grid
from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError

MAX_ROUNDS = 1000
BLOCK = 64


def simulate_coefficients(
    rng: np.random.Generator, count: int, config: EncoderConfig, *, scheme: str
) -> NDArray[np.float32]:
    """(count, k) coefficients with the law and bounds of ``config``, from the attacker's generator."""
    k = config.num_mixed
    if k == 1:
        return np.ones((count, 1), dtype=np.float32)
    accepted: list[NDArray[np.float64]] = []
    for _ in range(MAX_ROUNDS):
        size = (2 * count + 64, k)
        rows = (
            np.abs(rng.normal(size=size))
            if config.coefficient_law == "folded-normal"
            else rng.exponential(size=size)
        )
        rows /= rows.sum(axis=1, keepdims=True)
        if config.coefficient_grid is not None:
            rows = round_to_grid(rows, config.coefficient_grid)
        keep = (rows.max(axis=1) <= config.max_coefficient) & (rows[:, 0] > 0)
        if scheme == "cross":
            keep &= rows[:, : config.num_private].sum(axis=1) >= config.min_private_sum
        accepted.append(rows[keep])
        if sum(map(len, accepted)) >= count:
            return np.concatenate(accepted)[:count].astype(np.float32)
    raise InvalidInputError(
        f"no coefficients within the bounds of {config}", hint="check the law the encodings were made with"
    )


class MixtureSimulator:
    """Draws mixtures of public images; ``images`` are (P, C, H, W) in [-1, 1].

    ``pool``, if it is known, takes the place of ``images`` in the public slots of a cross scheme: hospitals
    mix their radiographs with photographs, and a mixture looks like both.
    """

    def __init__(
        self,
        images: torch.Tensor,
        config: EncoderConfig,
        scheme: str,
        *,
        seed: int,
        pool: torch.Tensor | None = None,
    ) -> None:
        if len(images) < 2 * config.num_mixed:
            raise InvalidInputError(
                f"{len(images)} public images cannot stand for a population",
                hint="give some hundred images of the same kind",
            )
        self._images = images
        self._pool = pool if scheme == "cross" else None
        self._config = config
        self._scheme = scheme
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sources (B, k, C, H, W), each mirrored half of the time, and coefficients (B, k)."""
        k = self._config.num_mixed
        coefficients = simulate_coefficients(self._rng, count, self._config, scheme=self._scheme)
        rows = torch.from_numpy(self._rng.integers(0, len(self._images), (count, k)))
        sources = self._images[rows]
        if self._pool is not None:
            num_public = k - self._config.num_private
            drawn = torch.from_numpy(self._rng.integers(0, len(self._pool), (count, num_public)))
            sources[:, self._config.num_private :] = self._pool[drawn]
        if self._rng.random() < 0.5:
            sources = sources.flip(4)
        return sources, torch.from_numpy(coefficients)

    def mixtures(self, count: int) -> torch.Tensor:
        """(count, C, H, W) mixtures with their signs."""
        made = [self.draw(min(BLOCK, count - first)) for first in range(0, count, BLOCK)]
        return torch.cat([torch.einsum("bk,bkchw->bchw", weights, sources) for sources, weights in made])

    def rounded(self, mixtures: torch.Tensor) -> torch.Tensor:
        """``mixtures`` on the grid of the released values, with dithered rounding as the encoder's."""
        levels = self._config.quantization_levels
        if levels is None:
            return mixtures
        dither = torch.from_numpy(self._rng.random(tuple(mixtures.shape), dtype=np.float32))
        return torch.copysign(torch.floor(mixtures.abs() * levels + dither) / levels, mixtures)
