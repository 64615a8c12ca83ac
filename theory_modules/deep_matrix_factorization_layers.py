"""The product W = W_N ··· W_1 and its gradients by hand: one forward and one backward chain.

With P_j = W_j ··· W_1 kept from the forward pass and G = dloss/dW, walk down from B_N = G:

    dloss/dW_j = B_j P_{j−1}ᵀ,        B_{j−1} = W_jᵀ B_j,        dloss/dW_1 = B_1,

3N − 3 products of matrices altogether, into buffers allocated once; no graph is recorded.

Legend: S starts side by side, n × p the matrix, widths d_0 = p, d_1, ..., d_N = n; W_j is (S, d_j, d_{j−1}).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .deep_matrix_factorization_problem import FactorizationInputError

STARTS = ("gaussian", "balanced", "identity")


class LayerChain:
    """N layers, their running products and their gradients, S times over."""

    def __init__(self, layers: list[Tensor]) -> None:
        """``layers[0]`` is W_1, the one applied first. The tensors are used in place."""
        self.layers = layers
        S, columns = layers[0].shape[0], layers[0].shape[2]
        self._products = [layers[0]] + [w.new_empty(S, w.shape[1], columns) for w in layers[1:]]
        self.gradients = [torch.empty_like(w) for w in layers]
        # B_1 is dloss/dW_1 itself, so it is written there.
        self._signals = [self.gradients[0]] + [w.new_empty(S, w.shape[1], columns) for w in layers[1:-1]]

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def product(self) -> Tensor:
        """(S, n, p): W of the last forward pass."""
        return self._products[-1]

    def forward(self) -> Tensor:
        """W = W_N ··· W_1, (S, n, p); the buffer is overwritten by the next call."""
        for below, layer, out in zip(self._products, self.layers[1:], self._products[1:], strict=False):
            torch.bmm(layer, below, out=out)
        return self.product

    def backward(self, G: Tensor) -> list[Tensor]:
        """dloss/dW_1 ... dloss/dW_N from G = dloss/dW at the last forward pass."""
        signal = G
        for j in range(self.depth - 1, 0, -1):
            torch.bmm(signal, self._products[j - 1].mT, out=self.gradients[j])
            signal = torch.bmm(self.layers[j].mT, signal, out=self._signals[j - 1])
        if self.depth == 1:
            self.gradients[0].copy_(G)
        return self.gradients

    def left_products(self) -> list[Tensor | None]:
        """W_N ··· W_{j+1} for each layer j; None stands for the identity above the last."""
        above: list[Tensor | None] = [None]
        for layer in self.layers[:0:-1]:
            above.append(layer.clone() if above[-1] is None else above[-1] @ layer)
        return above[::-1]

    def right_products(self) -> list[Tensor | None]:
        """W_{j−1} ··· W_1 for each layer j, of the last forward pass; None is the identity."""
        return [None, *self._products[:-1]]

    def select(self, rows: list[int]) -> LayerChain:
        """A chain of some of the starts, in memory of its own."""
        return LayerChain([w[rows] for w in self.layers])

    def one(self, row: int) -> LayerChain:
        """One start as a chain of its own that shares the layers' memory."""
        return LayerChain([w[row : row + 1] for w in self.layers])


def initial_chain(
    shape: tuple[int, int],
    *,
    depth: int,
    scale: float,
    seeds: list[int],
    hidden_width: int | None = None,
    start: str = "gaussian",
    dtype: torch.dtype = torch.float32,
) -> LayerChain:
    """Starts whose products have Frobenius norm about scale·√n.

    ``gaussian`` (published): entries of W_j of deviation scale^(1/N)/√d_{j−1}. ``balanced``: a product drawn
    as at N = 1, split so that W_{j+1}ᵀW_{j+1} = W_jW_jᵀ exactly. ``identity``: scale^(1/N) on the diagonals.
    Draws are made in float64, a generator a seed, so neither dtype nor company changes a start.
    """
    n, p = shape
    hidden = hidden_width or min(n, p)
    if start not in STARTS:
        raise FactorizationInputError(f"start is {start!r}; choose one of {', '.join(STARTS)}")
    if start == "balanced" and hidden < min(n, p):
        raise FactorizationInputError(
            f"hidden_width is {hidden}, too narrow to balance {n} × {p}; leave it out or use start='gaussian'"
        )
    widths = [p, *[hidden] * (depth - 1), n]
    drawn = [_start_layers(widths, scale, start, torch.Generator().manual_seed(seed)) for seed in seeds]
    return LayerChain([torch.stack(same).to(dtype).contiguous() for same in zip(*drawn, strict=True)])


def _start_layers(widths: list[int], scale: float, start: str, generator: torch.Generator) -> list[Tensor]:
    depth, pairs = len(widths) - 1, list(zip(widths[1:], widths[:-1], strict=True))
    root = scale ** (1 / depth)
    if start == "identity":
        return [root * torch.eye(rows, columns, dtype=torch.float64) for rows, columns in pairs]
    if start == "gaussian":
        return [
            torch.randn(rows, columns, generator=generator, dtype=torch.float64) * (root / math.sqrt(columns))
            for rows, columns in pairs
        ]
    n, p = widths[-1], widths[0]
    return balanced_layers(
        torch.randn(n, p, generator=generator, dtype=torch.float64) * (scale / math.sqrt(p)), depth, widths[1]
    )


def balanced_layers(W: Tensor, depth: int, hidden_width: int | None = None) -> list[Tensor]:
    """W_1 ... W_N with product W (n, p) and W_{j+1}ᵀW_{j+1} = W_jW_jᵀ: each layer gets Σ^(1/N)."""
    if depth == 1:
        return [W.clone()]
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    rank, hidden = len(s), hidden_width or len(s)
    root = torch.diag(s ** (1 / depth))
    pad = torch.zeros(hidden, rank, dtype=W.dtype)
    pad[:rank, :rank] = torch.eye(rank, dtype=W.dtype)
    return [pad @ root @ Vt, *[pad @ root @ pad.T for _ in range(depth - 2)], U @ root @ pad.T]
