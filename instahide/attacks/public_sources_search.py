"""Signs, matched filter, regression, again: the search for sources in blocks of encodings.

Axes: n encodings of a block, P candidates, m sources sought, G frequency bands, d = C·H·W values.

Candidates are compared after whitening with the law of images. What is left of an encoding, once the
sources found are taken off, holds unknown images, and one with much texture has more fine detail than
the law says; any other textured image would seem to match it. So the variance of the rest r is
measured per encoding in G bands of frequency and colour, and with w_g one over it::

    match(p) = ⟨r, w∘x_p⟩ / √⟨x_p, w∘x_p⟩                                                  (1)

which is standard normal for a photograph unrelated to those inside. Band energies of the pool are
kept, so (1) costs one matrix product of (n, d) by (d, P) and one of (n, G) by (G, P).

The alternation is a local search. Where it ends with a weak fit, it is started again from signs that
suppose a likely source: the best by :mod:`instahide.attacks.public_sources_squares`, which needs no
signs at all, and the best by (1). The fit with the largest Σt² is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from ..encoder_config import EncoderConfig
from .public_sources_prior import ImagePrior
from .public_sources_regression import (
    frequency_bands,
    nonnegative_least_squares,
    remaining_spread,
    standard_errors,
)
from .public_sources_signs import COLD_START, WARM_START, expected_mixtures
from .public_sources_squares import SquareFilter

MAX_ROUNDS = 8
SPARE_SOURCES = 2  # candidates tried in one round
ENTRY_SCORE = 3.8  # of equation (1): about √(2 ln P) for P = 1,400
KEEP_SCORE = 3.0  # t-statistic below which a candidate leaves the regression
NOISE = 0.02  # of z, in the whitening: what the signs leave uncertain in fine detail
SETTLED_SCORE = 30.0  # √Σt² from which an encoding is not tried again from guessed sources
GUESSES = 1  # of each kind
SUPPOSED_WEIGHT = 0.3  # λ a guessed source is given
TIGHT_FIT = 0.01  # root mean square of z below which all sources may have been found
LEAST_WEIGHT = 0.02  # that unknown sources are thought to have at least


@dataclass(frozen=True, eq=False)
class Found:
    """Candidates of n encodings.

    Args:
        rows: (n, m) of the pool, P for none.
        coefficients: (n, m) λ.
        scores: (n, m) t-statistics of λ.
        mixtures: (n, C, H, W) posterior mean of z.
        unexplained: (n,) root mean square of |e| − |fit|.
    """

    rows: torch.Tensor
    coefficients: torch.Tensor
    scores: torch.Tensor
    mixtures: torch.Tensor
    unexplained: torch.Tensor

    def subset(self, rows: torch.Tensor) -> Found:
        """Of some encodings."""
        return Found(*(getattr(self, item.name)[rows] for item in fields(self)))

    def replaced(self, rows: torch.Tensor, other: Found) -> Found:
        """With ``other`` in the place of encodings ``rows``."""
        return Found(
            *(
                getattr(self, item.name).index_copy(0, rows, getattr(other, item.name))
                for item in fields(self)
            )
        )


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a block otherwise: Σ λ_j·(x_j − mean) and Σ λ_j of sources outside the pool."""

    part: torch.Tensor  # (n, C, H, W)
    weight: torch.Tensor  # (n,)


class SourceSearch:
    """Searches encodings for images of one pool.

    Args:
        config: the law.
        prior: of images.
        pixels: (P, C, H, W) candidates minus the prior's mean.
        wanted: m.
    """

    def __init__(self, config: EncoderConfig, prior: ImagePrior, pixels: torch.Tensor, wanted: int) -> None:
        self.config, self.prior, self.wanted = config, prior, wanted
        spread = float(remaining_spread(torch.ones(1), float(config.num_mixed)))
        self.weights = (prior.variance + NOISE**2 / spread).rsqrt()
        self.none = len(pixels)
        self.pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])  # a row of zeros stands for "none"
        self.whitened = self.whiten(self.pixels)
        self.bands = frequency_bands(*prior.mean.shape)
        self.squares = SquareFilter(config, prior, pixels)
        self.energies = (self.whitened.square() @ self.bands)[:-1]  # (P, G)

    def run(self, encodings: torch.Tensor, signed: torch.Tensor | None, known: Known) -> Found:
        """Search one block; ``signed``: estimates of z up to one sign each."""
        found = self._alternate(encodings.abs(), self._first_mixtures(encodings, signed, known), known)
        if not self.config.has_sign_mask:
            return found
        unsettled = torch.nonzero(found.scores.square().sum(1).sqrt() < SETTLED_SCORE)[:, 0]
        if len(unsettled) == 0:
            return found
        z, known = found.mixtures[unsettled], Known(known.part[unsettled], known.weight[unsettled])
        magnitudes = encodings[unsettled].abs()
        for guess in self._guesses(magnitudes, z, known).unbind(1):
            again = self._alternate(magnitudes, self._supposing(magnitudes, guess, known), known)
            better = again.scores.square().sum(1) > found.scores[unsettled].square().sum(1)
            found = found.replaced(unsettled[better], again.subset(better))
        return found

    def _alternate(self, magnitudes: torch.Tensor, z: torch.Tensor, known: Known) -> Found:
        """From first estimates of z to sources that no longer change."""
        z = z.clone()
        sign_is_free = self.config.has_sign_mask and not bool(known.weight.any())
        rows, coefficients = self._first_source(z, known, sign_is_free)
        z = self._resign(magnitudes, z, known, rows, coefficients)
        active = torch.arange(len(magnitudes))
        for _ in range(MAX_ROUNDS):
            here = Known(known.part[active], known.weight[active])
            target = self._target(z[active], here)
            chosen, fitted, _ = self._improve(target, rows[active], coefficients[active])
            changed = (chosen.sort(1).values != rows[active].sort(1).values).any(1)
            rows[active], coefficients[active] = chosen, fitted
            active = active[changed]
            if len(active) == 0:
                break
            here = Known(known.part[active], known.weight[active])
            z[active] = self._resign(magnitudes[active], z[active], here, rows[active], coefficients[active])
        rows, coefficients, scores = self._regress(self._target(z, known), rows)
        unexplained = self._unexplained(magnitudes, known, rows, coefficients)
        tight = torch.nonzero(unexplained < TIGHT_FIT)[:, 0]
        if len(tight):
            here = Known(known.part[tight], known.weight[tight])
            coefficients[tight] = self._exact(magnitudes[tight], here, rows[tight], coefficients[tight])
            unexplained = self._unexplained(magnitudes, known, rows, coefficients)
        return Found(rows, coefficients, scores, z, unexplained)

    def _guesses(self, magnitudes: torch.Tensor, z: torch.Tensor, known: Known) -> torch.Tensor:
        """(n, ·) candidates to suppose: the best by |z|² and the best by the signs so far."""
        by_squares = self.squares.match(magnitudes).topk(min(GUESSES, self.none), dim=1).indices
        by_signs = self.match(self._target(z, known)).abs().topk(min(GUESSES, self.none), dim=1).indices
        return torch.cat([by_squares, by_signs], dim=1)

    def _supposing(self, magnitudes: torch.Tensor, guess: torch.Tensor, known: Known) -> torch.Tensor:
        """z if candidate ``guess`` (n,) were inside with a typical coefficient."""
        weight = torch.full(guess.shape, SUPPOSED_WEIGHT)
        here = Known(known.part + SUPPOSED_WEIGHT * self.pixels[guess], known.weight + weight)
        left = (1 - here.weight).clamp(min=LEAST_WEIGHT)
        spread = remaining_spread(left, float(max(1, self.config.num_mixed - 1)))
        start = torch.zeros_like(magnitudes)
        mean = self.prior.mean + here.part
        return expected_mixtures(self.prior, magnitudes, mean, spread, start=start, temperatures=COLD_START)

    def nothing(self, encodings: torch.Tensor) -> Found:
        """Of a block that is not searched."""
        zero = torch.zeros((len(encodings), self.wanted))
        rest = encodings.flatten(1).square().mean(1).sqrt()
        return Found(torch.full(zero.shape, self.none), zero, zero, torch.zeros_like(encodings), rest)

    def whiten(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) → (n, d), of unit variance for images of the law."""
        return self.prior.transform(pixels).mul_(self.weights).flatten(1)

    def match(self, residual: torch.Tensor) -> torch.Tensor:
        """(n, P) scores by equation (1)."""
        precision = self._precision(residual)
        scores = (residual * (precision @ self.bands.T)) @ self.whitened[:-1].T
        return scores.div_((precision @ self.energies.T).sqrt_().clamp_(min=1e-12))

    def _precision(self, rest: torch.Tensor) -> torch.Tensor:
        """(n, G) w: one over the variance of what is left, by band."""
        return (rest.square() @ self.bands / self.bands.sum(0)).clamp(min=1e-6).reciprocal()

    def _target(self, z: torch.Tensor, known: Known) -> torch.Tensor:
        return self.whiten(z - self.prior.mean - known.part)

    def _first_mixtures(
        self, encodings: torch.Tensor, signed: torch.Tensor | None, known: Known
    ) -> torch.Tensor:
        if not self.config.has_sign_mask:
            return encodings.clone()
        if signed is not None:
            return signed.float().clone()
        spread = remaining_spread((1 - known.weight).clamp(min=LEAST_WEIGHT), float(self.config.num_mixed))
        mean = self.prior.mean + known.part
        start = torch.zeros_like(encodings)
        return expected_mixtures(
            self.prior, encodings.abs(), mean, spread, start=start, temperatures=COLD_START
        )

    def _first_source(
        self, z: torch.Tensor, known: Known, sign_is_free: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best match, (n, m) padded; turns z round in place where it matches with a minus."""
        target = self._target(z, known)
        scores = self.match(target)
        best = (scores.abs() if sign_is_free else scores).argmax(1, keepdim=True)
        if sign_is_free:
            z *= scores.gather(1, best).sign().view(-1, 1, 1, 1)
            target = self._target(z, known)
        rows = torch.cat([best, torch.full((len(z), self.wanted - 1), self.none)], dim=1)
        rows, coefficients, _ = self._regress(target, rows)
        return rows, coefficients

    def _improve(
        self, target: torch.Tensor, rows: torch.Tensor, coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Try the best further candidates, keep the best m."""
        scores = self.match(target - torch.einsum("nm,nmd->nd", coefficients, self.whitened[rows]))
        taken = rows < self.none
        first = torch.where(taken, rows, 0)
        scores = scores.scatter(1, first, torch.where(taken, -math.inf, scores.gather(1, first)))
        top = scores.topk(min(SPARE_SOURCES, self.none), dim=1)
        added = torch.where(top.values > ENTRY_SCORE, top.indices, self.none)
        return self._regress(target, torch.cat([rows, added], dim=1))

    def _regress(
        self, target: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Nonnegative weighted least squares: rows, λ and t of the best m with t > KEEP_SCORE, (n, m)."""
        rest = target
        for _ in range(3):  # weights from the rest of the last time; those that left are gone
            sources = self.whitened[rows]
            weighted = sources * (self._precision(rest) @ self.bands.T)[:, None, :]
            gram = weighted @ sources.transpose(1, 2)
            coefficients = nonnegative_least_squares(gram, torch.einsum("nmd,nd->nm", weighted, target))
            rest = target - torch.einsum("nm,nmd->nd", coefficients, sources)
            error = standard_errors(gram, absent=rows == self.none)
            scores = torch.where(rows < self.none, coefficients / error, 0.0)
            order = scores.argsort(1, descending=True)[:, : self.wanted]
            weak = scores.gather(1, order) <= KEEP_SCORE
            rows = rows.gather(1, order).masked_fill(weak, self.none)
            coefficients = coefficients.gather(1, order).masked_fill(weak, 0.0)
            scores = scores.gather(1, order).masked_fill(weak, 0.0)
        return rows, coefficients, scores

    def _unexplained(
        self, magnitudes: torch.Tensor, known: Known, rows: torch.Tensor, coefficients: torch.Tensor
    ) -> torch.Tensor:
        """(n,) root mean square of |e| − |fit|."""
        fit = self._expected(known, rows, coefficients)
        missed: torch.Tensor = (magnitudes - fit.abs()).flatten(1).square().mean(1).sqrt()
        return missed

    def _exact(
        self, magnitudes: torch.Tensor, known: Known, rows: torch.Tensor, coefficients: torch.Tensor
    ) -> torch.Tensor:
        """(n, m) λ by plain least squares in double precision: if nothing is unknown, exact to rounding."""
        fit = self._expected(known, rows, coefficients)
        target = torch.copysign(magnitudes, fit) - self.prior.mean - known.part
        sources = self.pixels[rows].flatten(2).double()
        gram = sources @ sources.mT
        gram += torch.diag_embed((rows == self.none).double() + 1e-9)
        moments = torch.einsum("nmd,nd->nm", sources, target.flatten(1).double())
        solution: torch.Tensor = torch.linalg.solve(gram, moments).float()
        return solution

    def _expected(self, known: Known, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) μ: what the sources found say of z."""
        found = torch.einsum("nm,nmchw->nchw", coefficients, self.pixels[rows])
        return found.add_(known.part).add_(self.prior.mean)

    def _resign(
        self,
        magnitudes: torch.Tensor,
        z: torch.Tensor,
        known: Known,
        rows: torch.Tensor,
        coefficients: torch.Tensor,
    ) -> torch.Tensor:
        """z anew, from the signs of μ on."""
        if not self.config.has_sign_mask:
            return z
        mean = self._expected(known, rows, coefficients)
        left = (1 - known.weight - coefficients.sum(1)).clamp(min=LEAST_WEIGHT)
        unknown = (self.config.num_mixed - (rows < self.none).sum(1)).clamp(min=1).float()
        spread = remaining_spread(left, unknown)
        variance = spread.view(-1, 1, 1, 1) * self.prior.pixel_diagonal(self.prior.variance[None])
        start = torch.tanh(magnitudes * mean / variance)
        return expected_mixtures(self.prior, magnitudes, mean, spread, start=start, temperatures=WARM_START)
