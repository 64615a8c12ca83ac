r"""The fully connected recursion, exact at every correlation.

L weight layers, so L − 1 ReLUs; the first L' layers fixed (they contribute no gradient); bias b in every
layer (Arora et al., *Harnessing the power of infinitely wide deep nets on small-data tasks*, ICLR 2020; Jacot
et al. 2018):

    S_1 = ⟨x, z⟩ + b²                        T_1 = S_1 if L' = 0 else 0
    q = √(S_h(x,x) S_h(z,z)),  c = S_h / q
    S_{h+1} = q k1(c) / 2 + b²               T_{h+1} = T_h k0(c) / 2 + [h + 1 > L'] S_{h+1}

K_{L,L'} = T_L; with L' = L − 1 it is S_L, the kernel of the Gaussian process. What is carried is u = 1 − c:

    u_{h+1} = (b² (√α − √β)² / (q' + √(αβ) + b²) + √(αβ) (u − bend(u))) / q'

with α = S_h(x,x)/2, β = S_h(z,z)/2, q' = √((α + b²)(β + b²)): no difference of nearly equal numbers, so equal
inputs, nearly equal ones and antipodes are as exact as the rest. After the first ReLU no correlation is
negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .arc_cosine import angle_of, arc_cosine_maps, bend_of


@dataclass(frozen=True)
class Start:
    """Layer 1 of some pairs: u = 1 − |c|, c < 0, and the two squared norms, of one broadcastable shape."""

    gap: torch.Tensor
    negative: torch.Tensor
    x_square: torch.Tensor
    z_square: torch.Tensor


def layers(start: Start, depth: int, bias: float) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """S_h and the factor k0/2 that carries T_{h−1} to T_h (``None`` at h = 1), for h = 1 .. depth."""
    alpha, beta, gap = start.x_square, start.z_square, start.gap
    scale = alpha.sqrt() * beta.sqrt()
    sign = torch.where(start.negative, -1.0, 1.0).to(gap.dtype)
    yield sign * scale * (1 - gap), None
    negative: torch.Tensor | None = start.negative
    for _ in range(1, depth):
        k0, k1 = arc_cosine_maps(gap, negative)
        lack = _one_minus_k1(gap, k1, negative)
        alpha, beta, scale = alpha / 2, beta / 2, scale / 2
        s = scale * k1 + bias**2
        grown = (alpha + bias**2).sqrt() * (beta + bias**2).sqrt()
        spread = bias**2 * (alpha.sqrt() - beta.sqrt()) ** 2 / _positive(grown + scale + bias**2)
        gap = ((spread + scale * lack) / _positive(grown)).clamp(0, 1)
        alpha, beta, scale = alpha + bias**2, beta + bias**2, grown
        negative = None
        yield s, k0 / 2


def tangent_kernel(start: Start, depth: int, num_fixed_layers: int, bias: float) -> torch.Tensor:
    """K_{L,L'} at every pair of ``start``."""
    total = torch.zeros_like(start.gap)
    for layer, (s, factor) in enumerate(layers(start, depth, bias), start=1):
        if factor is not None:
            total = total * factor
        if layer > num_fixed_layers:
            total = total + s
    return total


def _one_minus_k1(gap: torch.Tensor, k1: torch.Tensor, negative: torch.Tensor | None) -> torch.Tensor:
    above = gap - bend_of(angle_of(gap))
    return above if negative is None else torch.where(negative, 1 - k1, above)


def _positive(value: torch.Tensor) -> torch.Tensor:
    """Where a norm is zero so is every numerator above it."""
    return torch.where(value > 0, value, torch.ones_like(value))
