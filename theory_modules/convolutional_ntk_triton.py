r"""The convolutional recursion on a GPU: one Triton program a pair of images (and run of displacements).

A displacement's S and T are tiles of 32 × 32 that never leave the registers: all layers of
:mod:`theory_modules.convolutional_ntk_reference` run on them, with the polynomials of the loops in C. The box
is two products with the matrix of 0 and 1 that is 1 where |row − column| ≤ 1, box(A) = E A E; 0 and 1 are
exact in any format, and A is split in three parts of TF32 (``input_precision="tf32x3"``), so nothing of
float32 is lost. Places outside a displacement hold zeros, which is the padding.

``TRITON_INTERPRET=1`` runs the same kernel on the CPU, which is how it is tested; no figure of its speed is
known.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .arc_cosine import slope_and_bend_polynomials
from .kernel_loops import Prepared, Recursion

LARGEST_SIDE = 64
_SLOPE_DEGREE, _BEND_DEGREE = 6, 5
_DISPLACEMENTS_PER_PROGRAM = 64


@triton.jit  # type: ignore[untyped-decorator]
def _rectified(s, t, scale, inverse, polynomials, SLOPE: tl.constexpr, BEND: tl.constexpr):  # type: ignore[no-untyped-def]
    size = tl.abs(s)
    gap = tl.maximum(scale - size, 0.0)
    u = gap * inverse
    root = tl.sqrt(u)
    slope = tl.load(polynomials + SLOPE)
    for i in tl.static_range(SLOPE):
        slope = slope * u + tl.load(polynomials + (SLOPE - 1 - i))
    bend = tl.load(polynomials + SLOPE + 1 + BEND)
    for i in tl.static_range(BEND):
        bend = bend * u + tl.load(polynomials + (SLOPE + BEND - i))
    a = tl.maximum(s, 0.0) / 9 + gap * root * bend
    part = root * slope
    b = t * tl.where(s < 0, part, 1.0 / 9 - part) + a
    return a, b


@triton.jit  # type: ignore[untyped-decorator]
def _box(a, near, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    across = tl.dot(a, near, input_precision=PRECISION)
    return tl.dot(near, across, input_precision=PRECISION)


@triton.jit  # type: ignore[untyped-decorator]
def _pairs(  # type: ignore[no-untyped-def]
    x, x_norm, x_inverse, z, z_norm, z_inverse, row_weights, column_weights, polynomials, out,
    num_columns, height, width, channels, num_relus, reach_y, reach_x, num_displacements, num_runs,
    TANGENT: tl.constexpr, FIRST_FIXED: tl.constexpr, LAST_FIXED: tl.constexpr,
    SLOPE: tl.constexpr, BEND: tl.constexpr, RUN: tl.constexpr, SIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    i, j = pair // num_columns, pair % num_columns
    places = height * width
    side = tl.arange(0, SIDE)
    near = tl.where(tl.abs(side[:, None] - side[None, :]) <= 1, 1.0, 0.0)
    ys, xs = side[:, None], side[None, :]
    total = 0.0
    for step in range(RUN):
        d = tl.program_id(1) * RUN + step
        dy, dx = d // (2 * reach_x + 1) - reach_y, d % (2 * reach_x + 1) - reach_x
        inside = (d < num_displacements) & (ys < height) & (xs < width)
        inside = inside & (ys + dy >= 0) & (ys + dy < height) & (xs + dx >= 0) & (xs + dx < width)
        p, q = ys * width + xs, (ys + dy) * width + xs + dx
        products = tl.zeros((SIDE, SIDE), dtype=tl.float32)
        for c in range(channels):
            left = tl.load(x + (i * channels + c) * places + p, mask=inside, other=0.0)
            products += left * tl.load(z + (j * channels + c) * places + q, mask=inside, other=0.0)
        s = tl.where(inside, _box(products, near, PRECISION), 0.0)
        t = s * 0.0 if FIRST_FIXED else s
        for h in range(num_relus - 1):
            here, there = (i * num_relus + h) * places + p, (j * num_relus + h) * places + q
            scale = tl.load(x_norm + here, mask=inside, other=0.0) * tl.load(
                z_norm + there, mask=inside, other=0.0
            )
            inverse = tl.load(x_inverse + here, mask=inside, other=0.0)
            inverse *= tl.load(z_inverse + there, mask=inside, other=0.0)
            a, b = _rectified(s, t, scale, inverse, polynomials, SLOPE, BEND)
            s = tl.where(inside, _box(tl.where(inside, a, 0.0), near, PRECISION), 0.0)
            if TANGENT:
                t = tl.where(inside, _box(tl.where(inside, b, 0.0), near, PRECISION), 0.0)
        here, there = (
            (i * num_relus + num_relus - 1) * places + p,
            (j * num_relus + num_relus - 1) * places + q,
        )
        scale = tl.load(x_norm + here, mask=inside, other=0.0) * tl.load(
            z_norm + there, mask=inside, other=0.0
        )
        inverse = tl.load(x_inverse + here, mask=inside, other=0.0)
        inverse *= tl.load(z_inverse + there, mask=inside, other=0.0)
        a, b = _rectified(s, t, scale, inverse, polynomials, SLOPE, BEND)
        value = a
        if TANGENT:
            value = b - a if LAST_FIXED else b
        rows = tl.load(row_weights + (dy + height - 1) * height + ys, mask=inside, other=0.0)
        columns = tl.load(column_weights + (dx + width - 1) * width + xs, mask=inside, other=0.0)
        total += tl.sum(tl.where(inside, value, 0.0) * rows * columns)
    tl.store(out + pair * num_runs + tl.program_id(1), total)


def fits(recursion: Recursion, dtype: torch.dtype) -> bool:
    """Whether a displacement is one tile of float32."""
    return dtype == torch.float32 and max(recursion.height, recursion.width) <= LARGEST_SIDE


def kernel_block(
    rows: Prepared, columns: Prepared, recursion: Recursion, *, input_precision: str = "tf32x3"
) -> torch.Tensor:
    """K(x, z) of all pairs of a block: (n, m) float64, on the device of the images."""
    device = rows.images.device
    reach_y, reach_x = recursion.reach
    displacements = (2 * reach_y + 1) * (2 * reach_x + 1)
    run = min(_DISPLACEMENTS_PER_PROGRAM, displacements)
    runs = -(-displacements // run)
    slope, bend = slope_and_bend_polynomials(_SLOPE_DEGREE, _BEND_DEGREE)
    polynomials = torch.tensor([*slope, *bend], dtype=torch.float32, device=device) / 9
    out = torch.empty(len(rows), len(columns), runs, dtype=torch.float32, device=device)
    parts = [
        part.contiguous() for side in (rows, columns) for part in (side.images, side.norms, side.inverses)
    ]
    _pairs[(len(rows) * len(columns), runs)](
        *parts, recursion.row_weights.to(device), recursion.column_weights.to(device), polynomials, out,
        len(columns), recursion.height, recursion.width, recursion.channels, recursion.num_relus,
        reach_y, reach_x, displacements, runs,
        TANGENT=recursion.tangent, FIRST_FIXED=recursion.first_fixed, LAST_FIXED=recursion.last_fixed,
        SLOPE=_SLOPE_DEGREE, BEND=_BEND_DEGREE, RUN=run,
        SIDE=max(16, triton.next_power_of_2(max(recursion.height, recursion.width))),
        PRECISION=input_precision,
    )  # fmt: skip
    return out.double().sum(2)
