"""Random crops and flips as tensor operations: a whole batch at once, no worker processes.

Axes: N images, C channels, H rows, W columns.

Each image is padded with zeros, shifted by up to ``padding`` pixels in both
directions and mirrored with probability one half (He et al. 2016, section 4.2). On encodings
these are still valid: shifting or mirroring an encoding equals encoding shifted or mirrored
images, and zero is the middle of the range [-1, 1].
"""

from __future__ import annotations

import torch
from torch.nn import functional


def random_crop(images: torch.Tensor, *, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Shift every image (N, C, H, W) by its own offset in [-padding, padding]²; the border is 0."""
    N, _, H, W = images.shape
    padded = functional.pad(images, (padding,) * 4)
    offsets = torch.randint(2 * padding + 1, (2, N), generator=generator).to(images.device)
    rows = offsets[0, :, None] + torch.arange(H, device=images.device)
    columns = offsets[1, :, None] + torch.arange(W, device=images.device)
    index = torch.arange(N, device=images.device)[:, None, None]
    # Advanced indices around the channel slice put channels last: (N, H, W, C).
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image (N, C, H, W) left to right with probability 1/2."""
    flip = torch.randint(2, (len(images), 1, 1, 1), generator=generator).to(images.device)
    return torch.where(flip.bool(), images.flip(3), images)


def augment_batch(images: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Random crop (an eighth of the side, at least one pixel) and flip; shape and type are kept."""
    padding = max(1, min(images.shape[2:]) // 8)
    return random_flip(random_crop(images, padding=padding, generator=generator), generator=generator)
