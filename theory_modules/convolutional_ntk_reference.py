r"""The convolutional recursion in torch: the reference, the fallback without a compiler, and the path on a
GPU.

One displacement δ = p' − p at a time, for many pairs of images at once. With S and T images over the places p
for which p and p + δ both lie inside, box = sum over the 3×3 window (p and p' move together), n the norms:

    S_1 = box(Σ_channels x(p) z(p + δ))              T_1 = S_1, or 0 where the first layer is fixed
    A = n_h(x, p) n_h(z, p + δ) k1(c) / 9            c = S_h / (n_h n_h')
    B = T_h k0(c) / 9 + A
    S_{h+1} = box(A),  T_{h+1} = box(B)              no box after the last ReLU

and K = Σ_δ Σ_p weight(δ, p) · (B, or B − A where the last layer is fixed, or A alone for the NNGP).
Along p' = p of an image with itself c = 1 throughout, so the squared norms are the box of the squared norms
over nine, and the diagonal of the kernel without pooling has a closed form.
"""

from __future__ import annotations

import torch

from .arc_cosine import arc_cosine_maps
from .kernel_loops import Prepared, Recursion, norms_in_c


def box(image: torch.Tensor) -> torch.Tensor:
    """Sums over 3×3 windows of (..., h, w), zeros outside."""
    rows = image.clone()
    rows[..., 1:, :] += image[..., :-1, :]
    rows[..., :-1, :] += image[..., 1:, :]
    both = rows.clone()
    both[..., 1:] += rows[..., :-1]
    both[..., :-1] += rows[..., 1:]
    return both


def prepare(images: torch.Tensor, num_relus: int, dtype: torch.dtype, *, in_c: bool = False) -> Prepared:
    """Norms n_h(x, p) of images (N, C, H, W), h = 1 .. R; the squares are summed in float64."""
    squares = (images.double() ** 2).sum(1)
    flat = images.to(dtype).flatten(2).contiguous()
    if in_c:
        return Prepared(flat, norms_in_c(squares, num_relus, dtype))
    square = box(squares)
    norms = []
    for _ in range(num_relus):
        norms.append(square.sqrt().flatten(1))
        square = box(square) / 9
    stacked = torch.stack(norms, dim=1)
    inverses = torch.where(stacked > 0, 1 / stacked, torch.zeros_like(stacked))
    return Prepared(flat, torch.stack([stacked, inverses], dim=-1).to(dtype))


def equal_images_value(images: torch.Tensor, recursion: Recursion) -> torch.Tensor:
    """What displacement 0 adds to K(x, x), in float64, by c = 1 at every place and layer: (N,)."""
    square = box((images.double() ** 2).sum(1))
    tangent = torch.zeros_like(square) if recursion.first_fixed else square
    for layer in range(recursion.num_relus):
        a = square / 9
        b = tangent / 9 + a
        if layer < recursion.num_relus - 1:
            square, tangent = box(a), box(b)
    last = a if not recursion.tangent else b - a if recursion.last_fixed else b
    rows = recursion.row_weights[recursion.height - 1].double()
    columns = recursion.column_weights[recursion.width - 1].double()
    return torch.einsum("iyx,y,x->i", last, rows.to(last.device), columns.to(last.device))


def kernel_block(rows: Prepared, columns: Prepared, recursion: Recursion) -> torch.Tensor:
    """K(x, z) of all pairs of a block: (n, m) float64."""
    height, width = recursion.height, recursion.width
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64, device=rows.images.device)
    for dy in range(-recursion.reach[0], recursion.reach[0] + 1):
        for dx in range(-recursion.reach[1], recursion.reach[1] + 1):
            view = _View(dy, dx, height, width)
            last = _chain(view.first(rows), view.second(columns), recursion)
            rows_weight = recursion.row_weights[dy + height - 1, view.ys].double().to(last.device)
            columns_weight = recursion.column_weights[dx + width - 1, view.xs].double().to(last.device)
            total += torch.einsum("ijyx,y,x->ij", last.double(), rows_weight, columns_weight)
    return total


class _View:
    """The places p of one displacement, and the places p + δ, as slices."""

    def __init__(self, dy: int, dx: int, height: int, width: int) -> None:
        self.shape = (height, width)
        self.ys, self.xs = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
        self._moved = (
            slice(max(0, dy), height - max(0, -dy)),
            slice(max(0, dx), width - max(0, -dx)),
        )

    def first(self, images: Prepared) -> Prepared:
        return self._cut(images, self.ys, self.xs)

    def second(self, images: Prepared) -> Prepared:
        return self._cut(images, *self._moved)

    def _cut(self, images: Prepared, ys: slice, xs: slice) -> Prepared:
        pixels = images.images.view(*images.images.shape[:2], *self.shape)
        scales = images.scales.view(*images.scales.shape[:2], *self.shape, 2)
        return Prepared(pixels[..., ys, xs], scales[..., ys, xs, :])


def _chain(rows: Prepared, columns: Prepared, recursion: Recursion) -> torch.Tensor:
    """The last map of one displacement: (n, m, h, w)."""
    s = box(torch.einsum("icyx,jcyx->ijyx", rows.images, columns.images))
    t = torch.zeros_like(s) if recursion.first_fixed else s
    for layer in range(recursion.num_relus):
        scale = rows.norms[:, None, layer] * columns.norms[None, :, layer]
        inverse = rows.inverses[:, None, layer] * columns.inverses[None, :, layer]
        gap = (scale - s.abs()).clamp(min=0) * inverse
        k0, k1 = arc_cosine_maps(gap, s < 0)
        a = scale * k1 / 9
        b = t * k0 / 9 + a
        if layer < recursion.num_relus - 1:
            s, t = box(a), box(b)
    if not recursion.tangent:
        return a
    return b - a if recursion.last_fixed else b
