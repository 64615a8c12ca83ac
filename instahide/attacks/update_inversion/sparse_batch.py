r"""A batch behind a ReLU layer: the sparsest vectors of the gradient's column space are its images.

Axes: n images, H units of the first layer, R of them that any image activates, d inputs, T starts.

M = [∇W | ∇b] = Δᵀ·[X | 1] has rank n and its row space holds every [x_i, 1] (Dimitrov et al. 2024,
"SPEAR", who found that this determines a ReLU batch). With M = U·S·V there are vectors q_i with U·q_i =
δ_i up to scale, and a ReLU makes δ_i zero at every unit that image i leaves inactive, about half of them;
any other direction has hardly more zeros than the n − 1 that can always be forced. So the U·q_i are the
*sparsest vectors of a subspace*: dictionary learning (Spielman, Wang & Wright 2012). SPEAR draws n − 1
rows at random and hopes that all are inactive for one image, at odds of 2^−(n−1); we minimise Σ_r
|u_r·q|^p over unit q by reweighted least squares from many starts: n × n eigenproblems, all starts at
once.

The scales follow from ∇b = Σ δ_i, and X from M = Δᵀ·[X | 1]. An image is *verified* without truth if
W·x̂_i + b is positive exactly where δ̂_i is not zero, or if its values lie on the grid of 8-bit pixels,
which mixtures of images miss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

STARTS = 192  # directions sharpened at a time, fewer for batches beyond 20
MAX_ROUNDS = 30
HOPELESS = 2  # rounds without any sparse direction
REWEIGHTINGS = 40
POWERS = (1.0, 0.5)  # p; the second is less smooth and reaches larger batches
SPARSE_MARGIN = 2  # zeros beyond the n − 1 that can always be forced, and beyond what noise makes
SAME_DIRECTION = 0.9999  # cosine of two estimates of one q
INDEPENDENT = 0.02  # length of a new unit vector outside the span of the others
AGREEING_UNITS = 0.95  # share of silent units that were off at the start, where steps moved the weights
EXACTLY_AGREEING_UNITS = 0.99  # of one gradient: at 0.95 an image with a trace of another would pass
MIN_LATTICE_VALUES, LATTICE_MISS = 25, 0.06


@dataclass(frozen=True)
class SearchEffort:
    """How long to look: the seed of the starts, rounds of them, and what may end the search early."""

    seed: int = 0
    max_rounds: int = MAX_ROUNDS
    should_stop: Callable[[], bool] = lambda: False


def unmix_sparse_batch(
    left: torch.Tensor,
    noise: torch.Tensor,
    matrix: torch.Tensor,
    first: tuple[torch.Tensor, torch.Tensor],
    effort: SearchEffort,
    one_step: bool,
) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """(images, verified, residual) of the best set of factors found; ``None`` if no full set was.

    Args:
        left: (H, n) orthonormal columns spanning those of Δᵀ: the axes in which the q_i are well apart.
        noise: (n,) standard deviation of a value in each column.
        one_step: whether an image's active units are the same all along.
    """
    size = left.norm(dim=1)
    # A unit no image activates holds rounding and noise only, and would look like a row of random signs.
    alive = size > max(1e-6 * float(size.max()), 6 * float(noise.norm()))
    search = _SparseSearch(left[alive], noise)
    generator = torch.Generator().manual_seed(effort.seed)
    best: tuple[torch.Tensor, torch.Tensor, float] | None = None
    for round_number in range(effort.max_rounds):
        if effort.should_stop():
            break
        fresh = search.sharpen(generator, POWERS[round_number % len(POWERS)])
        if round_number >= HOPELESS and not search.found:
            break  # nothing is sparse here: not a ReLU, or too much noise
        if not fresh:
            continue
        chosen = search.chosen()
        images, residual = _unmix(left @ chosen.T, matrix)
        zero = search.zeros(chosen).T
        verified = _confirmed(images, zero, (first[0][alive], first[1][alive]), exact=one_step)
        verified |= on_lattice(images)
        if best is None or int(verified.sum()) > int(best[1].sum()):
            best = images, verified, residual
        if bool(verified.all()):
            break
    return best


class _SparseSearch:
    """Directions q for which rows @ q has many zeros, kept as a list from the sparsest on."""

    def __init__(self, rows: torch.Tensor, noise: torch.Tensor) -> None:
        self.size = rows.norm(dim=1)
        self.rows, self.noise, self.n = rows / self.size[:, None], noise, rows.shape[1]
        self.outer = (self.rows[:, :, None] * self.rows[:, None, :]).flatten(1)  # (R, n²)
        self.found: list[tuple[int, torch.Tensor]] = []

    def sharpen(self, generator: torch.Generator, power: float) -> bool:
        """One round of starts; whether new directions came and n independent ones are known."""
        n, before = self.n, len(self.found)
        if len(self.rows) <= n + SPARSE_MARGIN:
            return False
        q = self._starts(generator)
        floor = max(1e-7, float(self.noise.mean() / self.size.mean()))
        width = 0.1
        for _ in range(REWEIGHTINGS):
            weights = ((self.rows @ q.T).square() + width**2) ** (power / 2 - 1)  # (R, T)
            moments = (weights.T @ self.outer).reshape(-1, n, n)
            q = torch.linalg.eigh(moments).eigenvectors[:, :, 0]
            width = max(0.75 * width, floor)
        zeros, by_chance = self.zeros(q).sum(0), self._zeros_by_chance(q)
        good = (zeros >= n - 1 + SPARSE_MARGIN + 2 * by_chance).nonzero()[:, 0]
        for index in good[zeros[good].argsort(descending=True)].tolist():
            self._add(q[index])
        self.found = sorted(self.found, key=lambda pair: -pair[0])[:256]
        return len(self.found) > before and len(self._independent()) == n

    def _starts(self, generator: torch.Generator) -> torch.Tensor:
        """(T, n) random directions, half of them near a row, the later rounds' away from what is known."""
        count = min(STARTS, max(16, 4096 // self.n))
        q = torch.randn(count, self.n, generator=generator, dtype=self.rows.dtype)
        chosen = self.rows[torch.randint(len(self.rows), (count // 2,), generator=generator)]
        q[: count // 2] = chosen + 0.3 * q[: count // 2] / self.n**0.5
        if known := self._independent():
            frame = torch.linalg.qr(torch.stack(known[: self.n - 1]).T).Q
            q = q - 0.9 * (q @ frame) @ frame.T
        unit: torch.Tensor = q / q.norm(dim=1, keepdim=True)
        return unit

    def chosen(self) -> torch.Tensor:
        """(n, n) directions, one a row."""
        return torch.stack(self._independent())

    def zeros(self, q: torch.Tensor) -> torch.Tensor:
        """(rows, T) whether row · q is zero up to rounding and noise."""
        spread = (q * self.noise).norm(dim=1)  # (T,)
        near: torch.Tensor = (self.rows @ q.T).abs() < 1e-4 + 4 * spread / self.size[:, None]
        return near

    def _zeros_by_chance(self, q: torch.Tensor) -> torch.Tensor:
        """(T,) how many rows a random direction of n dimensions would leave below the tolerance."""
        spread = (q * self.noise).norm(dim=1)
        tolerance = 1e-4 + 4 * spread / self.size[:, None]
        expected: torch.Tensor = (2 * tolerance * math.sqrt(self.n / (2 * math.pi))).clamp(max=1).sum(0)
        return expected

    def _add(self, q: torch.Tensor) -> None:
        """Keep the direction that all rows near zero agree on, not only those drawn, unless it is known."""
        for _ in range(2):
            near = self.rows[self.zeros(q[None])[:, 0]]
            q = torch.linalg.eigh(near.T @ near).eigenvectors[:, 0]
        if all(abs(float(q @ known)) < SAME_DIRECTION for _, known in self.found):
            self.found.append((int(self.zeros(q[None]).sum()), q))

    def _independent(self) -> list[torch.Tensor]:
        """Greedily the sparsest directions that are not in the span of those already taken."""
        taken: list[torch.Tensor] = []
        frame = torch.zeros(0, self.n, dtype=self.rows.dtype)
        for _, q in self.found:
            rest = q - frame.T @ (frame @ q)
            if float(rest.norm()) > INDEPENDENT:
                taken.append(q)
                frame = torch.cat([frame, rest[None] / rest.norm()])
            if len(taken) == self.n:
                break
        return taken


def _unmix(columns: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(images, residual) from the columns (H, n) of Δᵀ, each up to its scale."""
    scales = torch.linalg.lstsq(columns, matrix[:, -1:]).solution[:, 0]
    delta = columns * scales
    images = torch.linalg.lstsq(delta, matrix[:, :-1]).solution
    rebuilt = delta @ torch.cat([images, torch.ones(len(images), 1, dtype=images.dtype)], dim=1)
    return images, float((matrix - rebuilt).square().sum() / matrix.square().sum())


def _confirmed(
    images: torch.Tensor, zero: torch.Tensor, first: tuple[torch.Tensor, torch.Tensor], *, exact: bool
) -> torch.Tensor:
    """(n,) whether the units that W·x̂ + b switches on are those where δ̂ is not zero.

    Over several steps a unit may come on later: then only "zero means it was off at the start" can be asked.

    Args:
        zero: (n, R) units, of those that any image activates, where δ̂ is zero up to noise.
        first: W and b of these units.
    """
    active = images @ first[0].T + first[1] > 0
    if exact:
        return (active != zero).double().mean(1) >= EXACTLY_AGREEING_UNITS
    off = (zero & ~active).sum(1) / zero.sum(1).clamp_min(1)
    return (off >= AGREEING_UNITS) & (zero.sum(1) >= len(images) - 1 + SPARSE_MARGIN)


def on_lattice(images: torch.Tensor) -> torch.Tensor:
    """(n,) whether the values of each row (n, d) are those of 8-bit pixels or of 8-bit encodings.

    A pixel p is p/127.5 − 1, a quantised encoding j/127. A mixture of images with real weights misses the
    grid by 1/4 of a step on average; over 25 values that mean has a standard deviation of 0.03 steps.
    """
    found = []
    for image in images:
        inner = image[(image.abs() < 0.99) & (image.abs() > 0.01)]
        misses = [float((v - v.round()).abs().mean()) for v in (127.5 * (inner + 1), 127 * inner)]
        found.append(
            len(inner) >= MIN_LATTICE_VALUES and min(misses) < LATTICE_MISS and bool(inner.std() > 0)
        )
    return torch.tensor(found, dtype=torch.bool)
