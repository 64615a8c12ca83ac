"""Public sources of signed mixtures, by matched filter and small regressions.

Axes: N encodings, P pool images, d coefficients, G bands, m candidates of a row.

Different photographs are nearly orthogonal once whitened, so the residual of a row correlates with
the pool image inside it √d·λ/√V standard deviations above all others. With r and p in units of the
prior's standard deviations and w_ig = 1/(noise of row i in band g), the matched filter is::

    t_ip = Σ_k w_ik r_ik p_k / √(Σ_k w_ik p_k²)                                              (1)

Candidates of a row are fitted together by weighted least squares; the one with the smallest
t-statistic leaves until all pass. Wrong signs make noise that looks like pieces of images, so the bar is
high at first (only the strongest source of a row enters) and falls as signs improve. A pool that was
not used yields nothing, and the decoder goes on without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BARS = (10.0, 8.5, 7.5, 6.5, 6.0)
"""t that a source needs in each round; 3·10⁷ tests of Gaussian noise reach 5.5."""
BLOCK = 250
SPARE = 2


@dataclass(frozen=True, eq=False)
class Pool:
    """P images, (P, d) in units of the prior's standard deviations; band of each coefficient (d,)."""

    images: torch.Tensor
    bands: torch.Tensor
    energy: torch.Tensor  # (P, G) Σ p² of each band

    @classmethod
    def of(cls, images: torch.Tensor, bands: torch.Tensor) -> Pool:
        energy = torch.zeros(len(images), int(bands.max()) + 1)
        return cls(images, bands, energy.index_add_(1, bands, images.square()))

    def scores(self, residuals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(B, P) equation (1), in units of the row's own residual."""
        weighted = residuals * weights[:, self.bands]
        size = (residuals * weighted).mean(1, keepdim=True).sqrt()
        return (weighted @ self.images.T) / (weights @ self.energy.T).sqrt() / size


@dataclass(frozen=True, eq=False)
class RowSources:
    """Pool rows (N, m) inside each encoding, −1 where none, and their coefficients (N, m)."""

    rows: torch.Tensor
    coefficients: torch.Tensor

    @property
    def found(self) -> torch.Tensor:
        """(N,) how many."""
        return (self.rows >= 0).sum(1)

    def of(self, chosen: torch.Tensor | slice) -> RowSources:
        """Some of the encodings."""
        return RowSources(self.rows[chosen], self.coefficients[chosen])

    def mixture(self, images: torch.Tensor) -> torch.Tensor:
        """(N, d) Σ c_j·image_j."""
        total = torch.zeros(len(self.rows), images.shape[1])
        for j in range(self.rows.shape[1]):
            total += self.coefficients[:, j, None] * images[self.rows[:, j].clamp(min=0)]
        return total


def no_sources(count: int, sought: int) -> RowSources:
    """Nothing found yet."""
    return RowSources(torch.full((count, sought), -1), torch.zeros(count, sought))


def row_signs(mixtures: torch.Tensor, weights: torch.Tensor, pool: Pool) -> torch.Tensor:
    """(N,) ±1 where one pool image stands out of a row whose sign is free, else 0."""
    signs = []
    for first in range(0, len(mixtures), BLOCK):
        scores = pool.scores(mixtures[first : first + BLOCK], weights[first : first + BLOCK])
        peak = scores.gather(1, scores.abs().argmax(1, keepdim=True))[:, 0]
        signs.append(torch.where(peak.abs() > BARS[0], peak.sign(), torch.zeros(())))
    return torch.cat(signs)


def find_sources(
    residuals: torch.Tensor,
    weights: torch.Tensor,
    known: RowSources,
    pool: Pool,
    bar: float,
    mass: torch.Tensor,
) -> RowSources:
    """Sources of each row given residuals (N, d), from which known ones are *not* subtracted.

    Args:
        weights: (N, G) of equation (1).
        known: (N, m) candidates from an earlier round; they must pass again.
        bar: t-statistic a source needs.
        mass: (N,) what the coefficients of all m sources sum to; imposed once m are found.
    """
    sought = known.rows.shape[1]
    rows, coefficients = [], []
    for first in range(0, len(residuals), BLOCK):
        part, weight = residuals[first : first + BLOCK], weights[first : first + BLOCK]
        have = known.of(slice(first, first + BLOCK))
        new = torch.full((len(part), min(sought + SPARE, len(pool.images))), -1)
        short = have.found < sought
        if short.any():
            new[short] = _candidates(part[short], weight[short], have.of(short), pool, bar, new.shape[1])
        candidates = torch.cat([have.rows, new], dim=1)
        rest = mass[first : first + BLOCK]
        fitted = _fit(part, weight[:, pool.bands], candidates, pool, sought, bar, rest)
        rows.append(fitted.rows)
        coefficients.append(fitted.coefficients)
    return RowSources(torch.cat(rows), torch.cat(coefficients))


def _candidates(
    part: torch.Tensor, weight: torch.Tensor, have: RowSources, pool: Pool, bar: float, most: int
) -> torch.Tensor:
    """(B, most) pool images that stand out of what the known sources leave, −1 where none."""
    scores = pool.scores(part - have.mixture(pool.images), weight)
    old = torch.zeros_like(scores).scatter_add_(1, have.rows.clamp(min=0), (have.rows >= 0).float())
    top = scores.masked_fill(old > 0, -1.0).topk(most, dim=1)
    return torch.where(top.values > bar, top.indices, -1)


def _fit(
    part: torch.Tensor,
    weight: torch.Tensor,
    candidates: torch.Tensor,
    pool: Pool,
    sought: int,
    bar: float,
    mass: torch.Tensor,
) -> RowSources:
    """Weighted least squares, dropping the weakest until ``sought`` are left and all pass."""
    chosen = pool.images[candidates.clamp(min=0)]  # (B, m, d)
    weighted = chosen * weight[:, None]
    gram, target = weighted @ chosen.transpose(1, 2), (weighted @ part[:, :, None])[:, :, 0]
    energy = (weight * part.square()).sum(1)
    alive = candidates >= 0
    zero, infinity = torch.zeros(()), torch.full((), float("inf"))
    for _ in range(candidates.shape[1] + 1):
        inside = alive[:, :, None] & alive[:, None, :]
        matrix = torch.where(inside, gram, zero) + torch.diag_embed((~alive).float())
        inverse = torch.linalg.inv(matrix)
        fit = (inverse @ torch.where(alive, target, zero)[:, :, None])[:, :, 0]
        noise = ((energy - (fit * target).sum(1)) / part.shape[1]).clamp(min=1e-8)
        t = fit / (inverse.diagonal(dim1=1, dim2=2) * noise[:, None]).sqrt()
        t = torch.where(alive, t, infinity)
        worst = t.argmin(1, keepdim=True)
        drop = (t.gather(1, worst)[:, 0] < bar) | (alive.sum(1) > sought)
        if not drop.any():
            break
        alive = alive.scatter(1, worst, alive.gather(1, worst) & ~drop[:, None])
    # Least squares under Σc = mass: a step along G⁻¹·1, the direction that costs least.
    along = (inverse * inside).sum(2)
    step = (mass - torch.where(alive, fit, zero).sum(1)) / along.sum(1).clamp(min=1e-12)
    complete = alive.sum(1) == sought
    fit = fit + torch.where(complete, step, zero)[:, None] * along
    order = torch.argsort(alive.float(), dim=1, descending=True, stable=True)[:, :sought]
    kept = alive.gather(1, order)
    return RowSources(
        torch.where(kept, candidates.gather(1, order), -1), torch.where(kept, fit.gather(1, order), zero)
    )
