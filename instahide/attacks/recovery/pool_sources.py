"""Public sources of signed mixtures, by matched filter and small regressions.

Axes: N encodings, P pool images, d coefficients, m candidates of a row.

Different photographs are nearly orthogonal once whitened, so the residual of a row correlates with
the pool image inside it √d·λ/√V standard deviations above all others. Candidates of a row are fitted
together; the one with the smallest t-statistic leaves until all pass ``KEEP``. A source counts as found
only above ``ENTER`` (P·N tests of noise at N·P = 3·10⁷ reach 5.5). A pool that was not used yields
nothing, and the decoder goes on without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ENTER = 6.0
KEEP = 5.0
BLOCK = 250
SPARE = 2


@dataclass(frozen=True, eq=False)
class RowSources:
    """Pool rows (N, m) inside each encoding, −1 where none, and their coefficients (N, m)."""

    rows: torch.Tensor
    coefficients: torch.Tensor

    @property
    def found(self) -> torch.Tensor:
        """(N,) how many."""
        return (self.rows >= 0).sum(1)

    def mixture(self, pool: torch.Tensor) -> torch.Tensor:
        """(N, d) Σ c_j·pool_j."""
        total = torch.zeros(len(self.rows), pool.shape[1])
        for j in range(self.rows.shape[1]):
            total += self.coefficients[:, j, None] * pool[self.rows[:, j].clamp(min=0)]
        return total


def no_sources(count: int, sought: int) -> RowSources:
    """Nothing found yet."""
    return RowSources(torch.full((count, sought), -1), torch.zeros(count, sought))


def row_signs(residuals: torch.Tensor, pool: torch.Tensor) -> torch.Tensor:
    """(N,) ±1 where one pool image stands out of a row whose sign is free, else 0. Both whitened."""
    unit = pool / torch.linalg.vector_norm(pool, dim=1, keepdim=True)
    signs = []
    for first in range(0, len(residuals), BLOCK):
        part = residuals[first : first + BLOCK]
        scores = part @ unit.T / part.square().mean(1, keepdim=True).sqrt()
        peak = scores.gather(1, scores.abs().argmax(1, keepdim=True))[:, 0]
        signs.append(torch.where(peak.abs() > ENTER, peak.sign(), torch.zeros(())))
    return torch.cat(signs)


def find_sources(residuals: torch.Tensor, known: RowSources, pool: torch.Tensor, sought: int) -> RowSources:
    """Sources of each row given whitened residuals (N, d), from which known ones are *not* subtracted.

    Args:
        known: candidates from an earlier round; they must pass again.
        pool: (P, d) whitened.
        sought: m, public sources of a row.
    """
    lengths = torch.linalg.vector_norm(pool, dim=1)
    rows, coefficients = [], []
    for first in range(0, len(residuals), BLOCK):
        part = residuals[first : first + BLOCK]
        have = RowSources(known.rows[first : first + BLOCK], known.coefficients[first : first + BLOCK])
        left = part - have.mixture(pool)
        scores = left @ (pool / lengths[:, None]).T / left.square().mean(1, keepdim=True).sqrt()
        old = torch.zeros_like(scores).scatter_(1, have.rows.clamp(min=0), (have.rows >= 0).float())
        top = scores.masked_fill(old > 0, -1.0).topk(min(sought + SPARE, len(pool)), dim=1)
        new_rows = torch.where(top.values > ENTER, top.indices, -1)
        fitted = _fit(part, torch.cat([have.rows, new_rows], dim=1), pool, sought)
        rows.append(fitted.rows)
        coefficients.append(fitted.coefficients)
    return RowSources(torch.cat(rows), torch.cat(coefficients))


def _fit(part: torch.Tensor, candidates: torch.Tensor, pool: torch.Tensor, sought: int) -> RowSources:
    """Least squares on the candidates, dropping the weakest until ``sought`` are left and all pass."""
    width = candidates.shape[1]
    chosen = pool[candidates.clamp(min=0)]  # (B, m, d)
    gram, target = chosen @ chosen.transpose(1, 2), (chosen @ part[:, :, None])[:, :, 0]
    alive = candidates >= 0
    for _ in range(width + 1):
        inside = alive[:, :, None] & alive[:, None, :]
        matrix = torch.where(inside, gram, torch.zeros(())) + torch.diag_embed((~alive).float())
        inverse = torch.linalg.inv(matrix)
        fit = (inverse @ torch.where(alive, target, torch.zeros(()))[:, :, None])[:, :, 0]
        explained = (fit * target).sum(1)
        noise = ((part.square().sum(1) - explained) / part.shape[1]).clamp(min=1e-8)
        t = fit / (inverse.diagonal(dim1=1, dim2=2) * noise[:, None]).sqrt()
        t = torch.where(alive, t, torch.full((), float("inf")))
        worst = t.argmin(1, keepdim=True)
        drop = (t.gather(1, worst)[:, 0] < KEEP) | (alive.sum(1) > sought)
        if not drop.any():
            break
        alive = alive.scatter(1, worst, alive.gather(1, worst) & ~drop[:, None])
    order = torch.argsort(alive.float(), dim=1, descending=True, stable=True)[:, :sought]
    kept = alive.gather(1, order)
    return RowSources(
        torch.where(kept, candidates.gather(1, order), -1),
        torch.where(kept, fit.gather(1, order), torch.zeros(())),
    )
