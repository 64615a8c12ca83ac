"""The mixing pass on a GPU: one Triton kernel, the numbers of :mod:`instahide.mixing`.

Axes: B records, k sources of a record, d = C·H·W values.

Images lie on the GPU as uint8, once. Secrets are still drawn on the host from the stream cipher and
sent along: one bit a value for the signs, one byte a value for the dither. Multiply and add are kept
apart (``enable_fp_fusion=False``) and division is correctly rounded, so the results agree bit for bit
with the CPU's. ``TRITON_INTERPRET=1`` runs the same kernel on the CPU, which is how it is tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from .mixing_kernel import Recipe, Sources

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _mix(  # type: ignore[no-untyped-def]
    private, private_rows, public, public_rows, weights, sign_bits, dither, out,
    d, total, ratio, levels, sign_stride, dither_stride,
    NUM_PRIVATE: tl.constexpr, NUM_PUBLIC: tl.constexpr,
    SIGNED: tl.constexpr, QUANTISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    record = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < d
    k = NUM_PRIVATE + NUM_PUBLIC
    acc = tl.zeros((BLOCK,), dtype=tl.float32)
    for j in tl.static_range(NUM_PRIVATE):
        row = tl.load(private_rows + record * NUM_PRIVATE + j)
        pixels = tl.load(private + row * d + at, mask=inside, other=0).to(tl.float32)
        acc = acc + tl.load(weights + record * k + j) * pixels
    for j in tl.static_range(NUM_PUBLIC):
        row = tl.load(public_rows + record * NUM_PUBLIC + j)
        pixels = tl.load(public + row * d + at, mask=inside, other=0).to(tl.float32)
        acc = acc + tl.load(weights + record * k + NUM_PRIVATE + j) * pixels
    scaled = tl.minimum(tl.maximum(2.0 * acc - total, -total), total)
    if QUANTISED:
        byte = tl.load(dither + record * dither_stride + at, mask=inside, other=0).to(tl.float32)
        level = (tl.abs(scaled) * ratio + (byte + 0.5) * 0.00390625).to(tl.int32).to(tl.float32)
        size = tl.div_rn(level, tl.zeros_like(level) + levels)
        value = tl.where(scaled < 0, -size, size)
    else:
        value = tl.div_rn(scaled, tl.zeros_like(scaled) + total)
    if SIGNED:
        byte = tl.load(sign_bits + record * sign_stride + at // 8, mask=inside, other=0).to(tl.int32)
        flips = ((byte >> (at % 8)) & 1) << 31
        value = (value.to(tl.int32, bitcast=True) ^ flips).to(tl.float32, bitcast=True)
    tl.store(out + record * d + at, value + 0.0, mask=inside)


class GpuMixer:
    """Mixes on one device; keeps the pools it was given there, so an epoch moves only its draws."""

    def __init__(self, device: torch.device, pools: list[NDArray[np.uint8]]) -> None:
        self._device = device
        self._pools = [(images, self._uploaded(images)) for images in pools]

    def mix(self, recipe: Recipe, out: torch.Tensor) -> None:
        """Write the B encodings of ``recipe`` to ``out``, float32 (B, d), contiguous, on the device."""
        count, d = out.shape
        first, *more = recipe.sources
        second = more[0] if more else Sources(first.images, np.zeros((count, 0), dtype=np.int64))
        levels = recipe.levels or 0
        nothing = np.zeros((1, 1), dtype=np.uint8)
        signs = nothing if recipe.sign_bits is None else recipe.sign_bits
        dither = nothing if recipe.dither is None else recipe.dither
        _mix[(count, triton.cdiv(d, _BLOCK))](
            *(self._pool(first.images), self._sent(first.indices)),
            *(self._pool(second.images), self._sent(second.indices)),
            *(self._sent(recipe.weights), self._sent(signs), self._sent(dither), out),
            *(d, recipe.total, float(np.float32(levels) / np.float32(recipe.total)), float(levels)),
            *(signs.shape[1], dither.shape[1]),
            NUM_PRIVATE=first.indices.shape[1],
            NUM_PUBLIC=second.indices.shape[1],
            SIGNED=recipe.sign_bits is not None,
            QUANTISED=recipe.levels is not None,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )

    def _pool(self, images: NDArray[np.uint8]) -> torch.Tensor:
        known = [uploaded for pool, uploaded in self._pools if pool is images]
        return known[0] if known else self._uploaded(images)

    def _uploaded(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return self._sent(images).reshape(-1)

    def _sent(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)
