"""Which images of a known pool are inside each encoding, and with which coefficients?

Axes: N encodings, P images of the pool, D decoys, k sources, m ≤ k sought, d = C·H·W values.

An encoding is e = σ∘z, z = Σ λ_j·x_j. If the pool is known this is the k-vector subset sum on which
InstaHide rests (Huang et al., ICML 2020, section 4: conjectured work min{P^(k/2), 2^d}). The
conjecture is about worst-case vectors. Photographs are not, and that gives a way in that tries no
combinations at all:

1. *signs*: neighbouring pixels of a mixture agree, so |z| tells most signs, up to one common flip
   (:mod:`instahide.attacks.public_sources_signs`);
2. *matched filter*: whiten z and the pool with the law of images and correlate. Whitened photographs
   are nearly orthogonal, so a source stands √d·λ/√(Σλ²) standard deviations above the P others, whose
   largest is near √(2 ln P);
3. *regression*: nonnegative least squares of z on the sources found so far (orthogonal matching
   pursuit);
4. *again*: the sources found predict most signs, the rest is a mixture of fewer images, and its signs
   and the next source come out more easily. Sources that better signs contradict are dropped.

A round costs N·d·P multiplications: linear in P for every k, and one release of each image is enough.

A score is the t-statistic of λ_j. Unknown images may resemble one of the pool (an edge at the same
place), and signs were fitted to the source that is tested, so a textbook threshold is too low. Decoys
set it: mirrored pool images have the same statistics and are in no encoding. They compete in the same
search, and the threshold is the least t with

    (1 + P/D · #{decoys ≥ t}) / #{pool images ≥ t} ≤ q                                     (1)

which keeps the expected share of false identifications below q (target-decoy search: Elias and Gygi,
Nature Methods 2007; the 1 + of Barber and Candès, Annals of Statistics 2015). With a pool that was
not used, "anything at all is identified" has probability at most q.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import ImageSet
from ..mixing import to_unit_range
from .public_sources_prior import ImagePrior
from .public_sources_search import Found, Known, SourceSearch
from .view import AttackerView

MAX_DECOYS = 2000
MAX_LIKENESS = 0.1  # of a decoy with the image it mirrors, a correlation after whitening
BLOCK_ENCODINGS = 250
DEFAULT_RATE = 0.02  # smaller ones need more encodings: at least 1/q true sources per release


@dataclass(frozen=True, eq=False)
class PublicSources:
    """What :func:`identify_public_sources` found.

    Args:
        rows: (N, m) rows of the pool, strongest first; −1 where nothing passed the threshold.
        coefficients: (N, m) λ; 0 there.
        scores: (N, m) t-statistics; 0 there.
        threshold: that the scores passed; infinite if none did.
        false_discovery_rate: q, the expected share of false ones among the rows given.
        mixtures: (N, C, H, W) posterior mean of z; its common sign is right where a source was found.
        unexplained: (N,) root mean square of |e| − |Σ λ_j·x_j + mean image of the rest|; about 1e-7
            where *all* k sources were found.
        num_decoys: D that took part, and how many of them passed the threshold.
        num_decoys_passed: see there.
    """

    rows: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    scores: NDArray[np.float64]
    threshold: float
    false_discovery_rate: float
    mixtures: torch.Tensor
    unexplained: NDArray[np.float64]
    num_decoys: int
    num_decoys_passed: int

    @property
    def weight(self) -> NDArray[np.float64]:
        """(N,) Σ λ_j of the sources found."""
        return np.asarray(self.coefficients.sum(axis=1))

    def known_part(self, pool: ImageSet) -> torch.Tensor:
        """(N, C, H, W) Σ λ_j·x_j over the sources found; ``mixtures`` minus this is the unknown part."""
        total = torch.zeros_like(self.mixtures)
        for j in range(self.rows.shape[1]):
            sources = to_unit_range(pool.images[np.maximum(self.rows[:, j], 0)])
            total += torch.from_numpy(self.coefficients[:, j]).float().view(-1, 1, 1, 1) * sources
        return total


def identify_public_sources(
    view: AttackerView,
    *,
    pool: ImageSet | None = None,
    signed: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    mean_weight: torch.Tensor | None = None,
    max_sources: int | None = None,
    false_discovery_rate: float = DEFAULT_RATE,
    progress: Callable[..., None] | None = None,
    max_seconds: float | None = None,
) -> PublicSources:
    """Find the pool's images in each encoding, with their coefficients. No labels are used.

    Args:
        view: the release; ``view.public_images`` give the law of images.
        pool: the candidates; default ``view.public_pool``, else ``view.public_images``.
        signed: (N, C, H, W) estimates of z up to one sign each, to start from; default: found here.
        mean: (N, C, H, W) Σ λ_j·x_j over sources known otherwise (private images already
            recovered, say), with ``mean_weight`` (N,) their Σ λ_j.
        max_sources: m; default k − ``num_private`` with a public pool, else k.
        false_discovery_rate: q of equation (1). At least (1 + false decoys)/q identifications are needed
            for any to be reported, so a release of few encodings needs a larger q.
        max_seconds: of wall time; encodings not reached get no source.

    Raises:
        InvalidInputError: shapes that differ, an empty pool, or q outside (0, 1).
    """
    candidates = pool or view.public_pool or view.public_images
    config = view.config
    default = config.num_mixed - config.num_private if view.scheme == "cross" else config.num_mixed
    wanted = default if max_sources is None else max_sources
    _check(view, candidates, signed, mean, mean_weight, wanted, false_discovery_rate)
    with torch.inference_mode():
        prior = ImagePrior.of(view.public_images)
        pixels = to_unit_range(candidates.images) - prior.mean
        decoys = _decoys(pixels, prior)
        search = SourceSearch(config, prior, torch.cat([pixels, decoys]), wanted)
        started, N = time.monotonic(), len(view.encodings)
        parts: list[Found] = []
        for first in range(0, N, BLOCK_ENCODINGS):
            block = slice(first, min(first + BLOCK_ENCODINGS, N))
            if max_seconds is not None and time.monotonic() - started > max_seconds:
                parts.append(search.nothing(view.encodings[block]))
                continue
            known = _known(mean, mean_weight, block, prior, view.encodings[block])
            start = None if signed is None else signed[block]
            parts.append(search.run(view.encodings[block], start, known))
            if progress is not None:
                progress(block.stop, total=N, text="public sources")
        return _accepted(parts, len(candidates), len(decoys), false_discovery_rate)


def decoy_threshold(
    scores: NDArray[np.floating], is_decoy: NDArray[np.bool_], *, pool_to_decoys: float, rate: float
) -> float:
    """The least score with equation (1); infinite if there is none.

    Args:
        scores: of all candidates that came out of the search.
        is_decoy: for each of them.
        pool_to_decoys: P/D.
        rate: q.
    """
    order = np.argsort(-scores, kind="stable")
    decoys = np.cumsum(is_decoy[order])
    targets = np.cumsum(~is_decoy[order])
    passes = np.flatnonzero((1 + pool_to_decoys * decoys) <= rate * targets)
    return float(scores[order][passes[-1]]) if len(passes) else math.inf


def _decoys(pixels: torch.Tensor, prior: ImagePrior) -> torch.Tensor:
    """(D, C, H, W) mirrored candidates, evenly spread over the pool; without those that look the same.

    A nearly symmetric image mirrored is still a source, and would be counted as a false alarm.
    """
    pixels = pixels[:: max(1, len(pixels) // (2 * MAX_DECOYS))]
    whitened = prior.transform(pixels).mul_(prior.variance.rsqrt())
    mirrored = prior.transform(pixels.flip(-1)).mul_(prior.variance.rsqrt())
    likeness = (whitened * mirrored).sum((1, 2, 3)) / whitened.square().sum((1, 2, 3)).clamp(min=1e-12)
    usable = torch.nonzero(likeness.abs() < MAX_LIKENESS)[:, 0]
    chosen = np.linspace(0, len(usable) - 1, min(len(usable), MAX_DECOYS)).astype(np.int64)
    return pixels[usable[torch.from_numpy(chosen)]].flip(-1)


def _known(
    mean: torch.Tensor | None,
    weight: torch.Tensor | None,
    block: slice,
    prior: ImagePrior,
    encodings: torch.Tensor,
) -> Known:
    if mean is None or weight is None:
        return Known(torch.zeros_like(encodings), torch.zeros(len(encodings)))
    own = weight[block].float()
    return Known(mean[block].float() - own.view(-1, 1, 1, 1) * prior.mean, own)


def _accepted(parts: list[Found], P: int, D: int, rate: float) -> PublicSources:
    rows, coefficients, scores = (
        torch.cat([getattr(part, name) for part in parts]).numpy()
        for name in ("rows", "coefficients", "scores")
    )
    there = rows < P + D
    is_decoy = (rows >= P) & there
    threshold = decoy_threshold(scores[there], is_decoy[there], pool_to_decoys=P / max(D, 1), rate=rate)
    passed = there & ~is_decoy & (scores >= threshold)
    order = np.argsort(-np.where(passed, scores, 0), axis=1, kind="stable")

    def chosen(values: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        return np.take_along_axis(np.where(passed, values, fill), order, axis=1)

    return PublicSources(
        rows=chosen(rows, -1).astype(np.int64),
        coefficients=chosen(coefficients, 0).astype(np.float64),
        scores=chosen(scores, 0).astype(np.float64),
        threshold=threshold,
        false_discovery_rate=rate,
        mixtures=torch.cat([part.mixtures for part in parts]),
        unexplained=torch.cat([part.unexplained for part in parts]).double().numpy(),
        num_decoys=D,
        num_decoys_passed=int((is_decoy & (scores >= threshold)).sum()),
    )


def _check(
    view: AttackerView,
    pool: ImageSet,
    signed: torch.Tensor | None,
    mean: torch.Tensor | None,
    mean_weight: torch.Tensor | None,
    wanted: int,
    rate: float,
) -> None:
    shape = tuple(view.encodings.shape)
    if len(pool) == 0 or pool.image_shape != shape[1:]:
        raise InvalidInputError(
            f"the pool is {len(pool)} images of {pool.image_shape}, the encodings {shape[1:]}",
            hint="give the pool in the encodings' shape",
        )
    for name, values in (("signed", signed), ("mean", mean)):
        if values is not None and tuple(values.shape) != shape:
            raise InvalidInputError(
                f"{name} is {tuple(values.shape)}, the encodings {shape}", hint="give one image an encoding"
            )
    if (mean is None) != (mean_weight is None) or (
        mean_weight is not None and tuple(mean_weight.shape) != shape[:1]
    ):
        raise InvalidInputError(
            "mean and mean_weight do not fit", hint="give both, mean_weight of shape (N,)"
        )
    if not 1 <= wanted <= view.config.num_mixed:
        raise InvalidInputError(
            f"{wanted} sources are sought in mixtures of {view.config.num_mixed}",
            hint="use max_sources from 1 to num_mixed",
        )
    if not 0 < rate < 1:
        raise InvalidInputError(f"false_discovery_rate is {rate}", hint="use a number in (0, 1)")
