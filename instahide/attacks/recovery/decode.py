"""Private images from encodings whose pairing and coefficients are known: the decode tier.

Axes: N encodings, n private images, T releases (N = n·T), k sources, C H W of an image, d = C·H·W.

Given are which private images are in each encoding and with which coefficients (an upper bound for any
attack that must find them first; the published decoder, Carlini et al. 2020, step 5, is given the same).
Signs, public sources and their coefficients are not. Four steps:

1. *signs of each encoding alone* (:mod:`.sign_recovery`): z from |z| but for one sign per row;
2. *signs of rows together* (:mod:`.synchronise`): rows that share an image agree;
3. *regression* (:mod:`.regression`): x̂ from z = W x + public part, the public part being noise with
   the spectrum of images;
4. *again*: W x̂ guides the sign recovery of every row, which gives a better z, and so on.

With the public pool in hand, sources are picked out of the residuals z − W x̂ (:mod:`.pool_sources`), join
the guide and leave the noise; once all are found z = W x + known part holds exactly and a single release
of each image is enough. With a pool that was not used nothing is picked and nothing changes.

One sign for each group of connected rows is beyond the encodings. It is taken from what mixtures of
photographs look like (:func:`.image_prior.sign_odds`), or from a pool source, whose sign is known; never
from the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...mixing import to_unit_range
from .decode_view import DecodedImages, DecodeView
from .image_prior import ImagePrior, sign_odds
from .local_prior import LocalPrior
from .pool_sources import BARS, Pool, find_sources, no_sources, row_signs
from .regression import Regression, band_means, octave_bands, remaining_noise, solve_images
from .sign_recovery import SignedMixtures, SignNetwork, sign_recovery, train_sign_network
from .simulated_mixtures import MixtureSimulator
from .synchronise import row_agreement, synchronise

__all__ = ["DecodeView", "DecodedImages", "decode_images"]

MAX_ROUNDS = 8
MAX_ROUNDS_WITH_POOL = 16
CONVERGED = 6e-3
"""Relative mean square change of the images below which another round is not worth its time."""
FIRST_ROWS = 1000
FIRST_RELEASES = 10
"""So many rows, or releases of each image, are decoded without a guide; more would only cost time."""
NUM_EXAMPLES = 1500
NUM_CALIBRATION = 256
KNOWN_ODDS = 50.0


def decode_images(
    view: DecodeView,
    *,
    network: SignNetwork | None = None,
    rounds: int | None = None,
    progress: Callable[..., None] | None = None,
    max_seconds: float | None = None,
    seed: int = 0,
) -> DecodedImages:
    """Recover the n private images.

    Args:
        network: from :func:`.sign_recovery.train_sign_network` for this law; ``None`` trains one first.
        rounds: exactly so many of regression and guided sign recovery; ``None``: until the images stay.
        max_seconds: wall-clock budget; no new round starts beyond it.
        seed: of the attacker's own choices.
    """
    started = time.monotonic()
    if network is None and view.config.has_sign_mask:
        network = train_sign_network(
            view.public_images, view.config, scheme=view.scheme, seed=seed, progress=progress
        )
    total = rounds or (MAX_ROUNDS if view.public_pool is None else MAX_ROUNDS_WITH_POOL)
    with torch.inference_mode():
        decoder = _started(view, network, seed)
        done = 0
        for done in range(1, total + 1):
            change = decoder.regress()
            if progress is not None:
                progress(done, total, "decode")
            late = max_seconds is not None and time.monotonic() - started > max_seconds
            if done == total or late or (rounds is None and change < CONVERGED):
                break
            decoder.refine()
        return decoder.result(rounds=done)


def _started(view: DecodeView, network: SignNetwork | None, seed: int) -> _Decoder:
    """A decoder past steps 1 and 2; of many rows some are decoded first, and guide all of them."""
    decoder = _Decoder(view, network, seed)
    enough = max(FIRST_ROWS, FIRST_RELEASES * view.num_images)
    if len(view.encodings) < 2 * enough:
        decoder.start()
        return decoder
    rows = np.random.default_rng(seed).permutation(len(view.encodings))[:enough]
    first = _Decoder(_part(view, rows), network, seed)
    first.start()
    first.regress()
    first.refine()
    first.regress()
    decoder.start_from(first)
    return decoder


def _part(view: DecodeView, rows: NDArray[np.int64]) -> DecodeView:
    return replace(
        view,
        encodings=view.encodings[torch.from_numpy(rows)],
        private_rows=view.private_rows[rows],
        private_coefficients=view.private_coefficients[rows],
        public_pool=None,
    )


class _Decoder:
    """The state between the steps; (N, d) arrays are centred coefficients in units of the prior's sd."""

    def __init__(self, view: DecodeView, network: SignNetwork | None, seed: int) -> None:
        self.view, self.network, self.seed = view, network, seed
        self.size = view.encodings.abs().float()
        public = to_unit_range(view.public_images.images)
        self.prior = ImagePrior.of(public)
        self.variances = self.prior.variances.flatten()
        self.sd = self.variances.sqrt()
        self.bands = octave_bands(view.public_images.image_shape).flatten()
        self.band_variance = band_means(self.variances, self.bands)
        self.weights = _design(view)
        self.num_public = view.config.num_mixed - view.private_rows.shape[1]
        self.sources = no_sources(len(self.size), self.num_public)
        known = None if view.public_pool is None else to_unit_range(view.public_pool.images)
        large = min(view.public_images.image_shape[1:]) >= 3
        self.local = LocalPrior.of(public - self.prior.mean) if large else None
        self.simulator = MixtureSimulator(public, view.config, view.scheme, seed=seed, pool=known)
        self.pool: Pool | None = None
        if view.public_pool is not None and self.num_public > 0:
            pool = self._standardised(to_unit_range(view.public_pool.images))
            self.pool = Pool.of(pool, self.bands)
        self.images = torch.zeros(view.num_images, len(self.sd))
        self.bars = iter(BARS)
        self.bar = BARS[0]

    def _standardised(self, images: torch.Tensor) -> torch.Tensor:
        return self.prior.coefficients(images).flatten(1) / self.sd

    def start(self) -> None:
        """Steps 1 and 2: mixtures without a guide, then the signs of rows."""
        if not self.view.config.has_sign_mask:
            self._start_unmasked()
            return
        assert self.network is not None
        blind = sign_recovery(self.size, self.network)
        examples = self.simulator.mixtures(NUM_EXAMPLES)
        error = self._blind_error(examples[:NUM_CALIBRATION])
        features = self.prior.coefficients(blind.mean, centre=False).flatten(1) / self.sd
        odds = sign_odds(examples, blind.mean)
        noise = self.law_noise() + error.median()
        if self.pool is not None:
            weight = 1 / (error + self.law_noise().mean() + 0.1)
            known = row_signs(features, weight.expand(len(features), -1), self.pool)
            odds = odds + KNOWN_ODDS * known
        whitened = features / (error[self.bands] + self.law_noise().mean()).sqrt()
        signs = synchronise(whitened, self.weights, _solver(self.weights, noise), odds)
        self.log_odds = float((odds * signs).sum())
        self.evidence = self._evidence(whitened, signs, odds, noise)
        upright = signs.sign() + (signs == 0)
        self._set_mixtures(SignedMixtures(blind.mean * upright[:, None, None, None], blind.confidence))

    def _start_unmasked(self) -> None:
        """Mode ``mixup``: the encodings are the mixtures."""
        mixtures = self.view.encodings.float()
        self._set_mixtures(SignedMixtures(mixtures, torch.ones(len(mixtures))))
        noise, signs = self.law_noise(), torch.ones(len(mixtures))
        self.log_odds = float("inf")
        self.evidence = self._evidence(self.standardised, signs, KNOWN_ODDS * signs, noise)

    def _evidence(
        self, features: torch.Tensor, signs: torch.Tensor, odds: torch.Tensor, noise: torch.Tensor
    ) -> float:
        """z-score: do rows agree with what others say of their images, more than under a wrong pairing?"""
        rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(self.seed))
        agreements = []
        for weights in (self.weights, self.weights[rows]):
            solver = _solver(weights, noise)
            if weights is not self.weights:
                signs = synchronise(features, weights, solver, odds)
            agreements.append(row_agreement(features, weights, solver, signs))
        difference = agreements[0].mean() - agreements[1].mean()
        spread = sum(each.var() for each in agreements) / len(features)
        return float(difference / (spread + 1e-12) ** 0.5)

    def _blind_error(self, examples: torch.Tensor) -> torch.Tensor:
        """(G,) mean square error of blind recovery in units of v, from mixtures the attacker made."""
        assert self.network is not None
        blind = sign_recovery(self.simulator.rounded(examples), self.network).mean
        turn = (blind * examples).flatten(1).sum(1).sign()
        wrong = self.prior.coefficients(blind * turn[:, None, None, None] - examples, centre=False)
        return band_means((wrong.flatten(1) / self.sd).square().mean(0), self.bands)

    def _set_mixtures(self, signed: SignedMixtures) -> None:
        self.confidence = signed.confidence
        self.mixtures = signed.mean
        self.open = (self.size.square() - signed.mean.square()).flatten(1).mean(1)
        self.standardised = self._standardised(signed.mean)

    def regress(self) -> float:
        """Step 3, and sources from the pool; returns the relative mean square change of the images."""
        before = self.images
        self.solution = self._solve()
        if self.pool is not None:
            self.bar = next(self.bars, self.bar)
            residuals = self.standardised - self.solution.prediction
            noise = self.solution.noise + self.solution.prediction_variance
            mass = 1 - self.weights.sum(1)
            self.sources = find_sources(residuals, 1 / noise, self.sources, self.pool, self.bar, mass)
            self.solution = self._solve()
        self.images = self.solution.images * self.sd
        return float((self.images - before).square().sum() / self.images.square().sum().clamp(min=1e-12))

    def _solve(self) -> Regression:
        target = self.standardised - self._known_public()
        open_signs = self.open[:, None] / self.band_variance
        return solve_images(target, open_signs, self.weights, self.bands, self.law_noise())

    def _known_public(self) -> torch.Tensor:
        return torch.zeros(()) if self.pool is None else self.sources.mixture(self.pool.images)

    def refine(self) -> None:
        """Step 4: signs once more, guided by all that is known."""
        if self.network is None or not self.view.config.has_sign_mask:
            return
        guide = self.solution.prediction + self._known_public()
        self._recover_signs(guide, self.solution.noise + self.solution.prediction_variance)

    def start_from(self, first: _Decoder) -> None:
        """Steps 1 and 2 from what some of the rows gave."""
        self.log_odds, self.evidence = first.log_odds, first.evidence
        if self.network is None or not self.view.config.has_sign_mask:
            self._set_mixtures(SignedMixtures(self.view.encodings.float(), torch.ones(len(self.size))))
            return
        self._recover_signs(*first.solution.predict(self.weights))

    def _recover_signs(self, guide: torch.Tensor, variance: torch.Tensor) -> None:
        """Guided sign recovery; ``guide`` (N, d) and the variance of its error (N, G) in units of v."""
        assert self.network is not None
        sd = (variance[:, self.bands] @ self.variances / len(self.variances)).sqrt()
        pixels = self.prior.images((guide * self.sd).view_as(self.size))
        signed = sign_recovery(self.size, self.network, guide=pixels, guide_error=sd)
        if self.local is not None:
            share = sd.square() / self.prior.pixel_variance
            mean = self.local.repair(signed.mean, self.size, pixels, share)
            signed = SignedMixtures(mean, signed.confidence)
        self._set_mixtures(signed)

    def law_noise(self) -> torch.Tensor:
        """(N,) expected Σ λ² of the public sources not yet found."""
        left = self.num_public - self.sources.found
        mass = 1 - self.weights.sum(1) - self.sources.coefficients.sum(1)
        noise = remaining_noise(mass.clamp(min=0), left, self.view.config.coefficient_law)
        return torch.where(left > 0, noise, torch.zeros(())).clamp(min=1e-4)

    def result(self, *, rounds: int) -> DecodedImages:
        images = self.prior.images(self.images.view(-1, *self.prior.mean.shape))
        return DecodedImages(
            images.clamp(-1, 1),
            self.mixtures,
            self.confidence,
            self.sources.rows.numpy(),
            self.sources.coefficients.numpy(),
            self.log_odds,
            self.network,
            self.evidence,
            {
                "rounds": float(rounds),
                "mean_confidence": float(self.confidence.mean()),
                "share_of_public_sources_found": float(
                    (self.sources.rows >= 0).float().mean() if self.num_public else 0.0
                ),
            },
        )


def _design(view: DecodeView) -> torch.Tensor:
    """(N, n) W."""
    weights = np.zeros((len(view.private_rows), view.num_images), dtype=np.float32)
    rows = np.arange(len(weights))
    for j in range(view.private_rows.shape[1]):
        np.add.at(weights, (rows, view.private_rows[:, j]), view.private_coefficients[:, j])
    return torch.from_numpy(weights)


def _solver(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """(n, N) the matrix of equation (2) of :mod:`.regression` for one noise level per row."""
    weighted = (weights / noise[:, None]).T
    solver: torch.Tensor = torch.linalg.solve(weighted @ weights + torch.eye(weights.shape[1]), weighted)
    return solver
