"""Smooth random pictures, bright on dark, and a sign network trained on them once a test session."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from instahide.attacks.recovery.sign_recovery import SignNetwork, train_sign_network
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet

CONFIG = EncoderConfig(num_mixed=4, num_private=2, mode="compat")
SIDE = 16


def blotches(count: int, *, seed: int, side: int = SIDE) -> ImageSet:
    """Noise averaged over 5×5 windows, stretched; squared, so that bright spots stand on a dark ground."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, side + 4, side + 4))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    pixels = (60 + 260 * smooth + 700 * smooth**2).clip(0, 255).astype(np.uint8)
    return ImageSet(pixels, np.arange(count) % 3)


@lru_cache(maxsize=1)
def small_network() -> SignNetwork:
    """Eight seconds of training: enough for these pictures."""
    return train_sign_network(blotches(1500, seed=100), CONFIG, cpu_seconds=8.0)
