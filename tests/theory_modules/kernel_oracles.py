"""Slow, plain forms of the kernels, written from the papers: what the fast ones are held against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fully_connected(x: Array, z: Array, depth: int, num_fixed_layers: int = 0, bias: float = 0.0) -> Array:
    """K_{L,L'} by arccos, in extended precision."""
    x, z = np.asarray(x, np.longdouble), np.asarray(z, np.longdouble)
    s = x @ z.T + bias**2
    xs, zs = (x * x).sum(1) + bias**2, (z * z).sum(1) + bias**2
    t = s if num_fixed_layers == 0 else 0 * s
    for layer in range(2, depth + 1):
        q = np.sqrt(xs[:, None] * zs)
        angle = np.arccos(np.clip(s / np.where(q > 0, q, 1), -1, 1))
        s = q * (np.sin(angle) + np.cos(angle) * (np.pi - angle)) / (2 * np.pi) + bias**2
        t = t * (np.pi - angle) / (2 * np.pi) + (s if layer > num_fixed_layers else 0)
        xs, zs = xs / 2 + bias**2, zs / 2 + bias**2
    return t.astype(np.float64)


def _box(matrix: Array, height: int, width: int) -> Array:
    """Sum over the window that moves both places together; (P, P)."""
    padded = np.zeros((height + 2, width + 2, height + 2, width + 2))
    padded[1:-1, 1:-1, 1:-1, 1:-1] = matrix.reshape(height, width, height, width)
    total = np.zeros((height, width, height, width))
    for dy in range(3):
        for dx in range(3):
            total += padded[dy : dy + height, dx : dx + width, dy : dy + height, dx : dx + width]
    return total.reshape(height * width, height * width)


def _layers(x: Array, z: Array, num_relus: int, first_fixed: bool) -> tuple[Array, Array]:
    """A and B after the last ReLU, between all places (P, P) of two images (C, H, W)."""
    height, width = x.shape[1:]

    def covariances(a: Array, b: Array) -> Array:
        return _box(a.reshape(len(a), -1).T @ b.reshape(len(b), -1), height, width)

    s, xx, zz = covariances(x, z), covariances(x, x), covariances(z, z)
    t = 0 * s if first_fixed else s
    for layer in range(num_relus):
        q = np.sqrt(np.outer(np.diag(xx), np.diag(zz)))
        cosine = np.clip(s / np.where(q > 0, q, 1), -1, 1)
        angle = np.arccos(cosine)
        a = q * (np.sin(angle) + cosine * (np.pi - angle)) / np.pi / 9
        b = t * (np.pi - angle) / np.pi / 9 + a
        if layer < num_relus - 1:
            s, t = _box(a, height, width), _box(b, height, width)
            xx = _box(np.diag(np.diag(xx)) / 9, height, width)
            zz = _box(np.diag(np.diag(zz)) / 9, height, width)
    return a, b


def convolutional(
    x: Array,
    z: Array,
    num_relus: int,
    *,
    pooling: str,
    radius: int = 0,
    nngp: bool = False,
    fixed: bool = False,
) -> float:
    """One entry of the convolutional kernel, from the full P × P covariance."""
    height, width = x.shape[1:]
    a, b = _layers(np.asarray(x, float), np.asarray(z, float), num_relus, fixed)
    last = a if nngp else b - a if fixed else b
    if pooling == "none":
        return float(np.trace(last))
    if pooling == "global":
        return float(last.mean())
    window = np.zeros((height * width, height * width))  # centre, place
    for y in range(height):
        for x_ in range(width):
            inside = np.zeros((height, width))
            inside[max(0, y - radius) : y + radius + 1, max(0, x_ - radius) : x_ + radius + 1] = 1
            window[y * width + x_] = inside.ravel()
    return float(np.einsum("cp,pq,cq->", window, last, window)) / (2 * radius + 1) ** 4


def convolutional_matrix(x: Array, z: Array, num_relus: int, **options: object) -> Array:
    return np.array([[convolutional(a, b, num_relus, **options) for b in z] for a in x])  # type: ignore[arg-type]
