"""Membership with the public pool known: the candidate is one more image that could be inside.

Axes: N encodings, M candidates, P pool images, d values of an image.

The published scheme mixes with images that anybody can download. An attacker who has them need not
treat them as unknown noise: :func:`.public_sources.identify_public_sources` finds most of them in
each encoding and takes them out, and what is left is a mixture of one or two private images, in
which a candidate stands out. So candidates are simply put into the pool. The score of a candidate
is the t-statistic of its coefficient in the encoding where it is found; mirrored images as decoys
keep the expected share of false ones among those found below q. Candidates that are not found
anywhere are ordered below them by the likelihood ratio of :mod:`.membership`.

On CIFAR-10, k = 6, one encoding of each image, this finds about nine members in ten and no stranger,
where the likelihood ratio alone finds half to three quarters at 1 % false positives. It needs a
picture with enough values (8×8 digits have too few: nothing passes) and some five encodings or more:
with fewer than 1/q sources found in all, decoys cannot vouch for any of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..images import ImageSet
from .public_sources import identify_public_sources
from .view import AttackerView

FALSE_DISCOVERY_RATE = 0.05


def searched_scores(
    view: AttackerView,
    candidates: ImageSet,
    *,
    progress: Callable[..., None] | None = None,
    max_seconds: float | None = None,
) -> NDArray[np.float64]:
    """(M,) largest t-statistic of each candidate among the sources found; 0 where it is found nowhere.

    Args:
        view: the release; the pool is ``view.public_pool``, empty if that is ``None``.
        candidates: M images; equal images share their score.
        max_seconds: encodings not reached in this time count as without the candidate.
    """
    pool = view.public_pool
    both = candidates.images if pool is None else np.concatenate([pool.images, candidates.images])
    P = len(both) - len(candidates)
    found = identify_public_sources(
        view,
        pool=ImageSet(both),
        max_sources=view.config.num_mixed,
        false_discovery_rate=FALSE_DISCOVERY_RATE,
        progress=progress,
        max_seconds=max_seconds,
    )
    scores = np.zeros(len(both))
    inside = found.rows >= 0
    np.maximum.at(scores, found.rows[inside], found.scores[inside])
    return _shared_among_equals(both, scores)[P:]


def found_first(searched: NDArray[np.float64], likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    """Likelihood scores, with the candidates that were found above all others, by t-statistic."""
    top = max(0.0, float(likelihood.max(initial=0.0)))
    return np.where(searched > 0, top + searched, likelihood)


def _shared_among_equals(images: NDArray[np.uint8], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """A search names one of several equal images; which one is chance."""
    _, group = np.unique(images.reshape(len(images), -1), axis=0, return_inverse=True)
    best = np.zeros(int(group.max()) + 1)
    np.maximum.at(best, group.ravel(), scores)
    return best[group.ravel()]
