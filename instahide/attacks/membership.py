"""Known-image membership: is *this* image inside one of these encodings?

Axes: N encodings, M candidates, d = C·H·W values of an image, Q coefficients of a grid, K classes.

The attacker holds candidate images (a radiograph seen elsewhere, say), the released encodings, the
public law and some other images of the same kind. An encoding is e = σ∘z, z = λ·x + Σ λ_j·x_j, and
the sign mask σ leaves e² = z² untouched. So for a candidate x that is inside with coefficient λ::

    E[e² | x, λ] − E[e² | λ] = λ²·(x² − E x²) + 2λ(1 − λ)·o∘(x − E x)                     (1)

with o the mean of the other sources (E x itself, or with a public pool the mean of both kinds in
the numbers the law mixes), while without x the vector e² has a mean μ and a covariance S that
anyone can get by encoding public images. With S = L·Lᵀ the log likelihood ratio of a Gaussian shift
is ⟨f, g⟩ − |g|²/2, where f = L⁻¹(e² − μ) and g = L⁻¹ times (1). Whitening by L is what makes the
attack strong: neighbouring pixels agree, and the whitened e² is free of what all images share. (1)
is linear in two vectors per candidate, so all M·N·Q ratios cost two matrix products.

Coefficient and label enter by Bayes' rule: the law of (λ, w), w the weight of the candidate's class
in the label, is drawn from the public law both for "inside" and for "not inside"; a label so tells
roughly which λ to look for, and rules out encodings without the class.

Every encoding does hold *some* images, so the alternative to "x is inside" is "another one is". The
ratio of x is therefore divided by the mean ratio of public images on the same encoding::

    score(x) = log mean_e [ p(e | x inside) / mean_x' p(e | x' inside) ]                 (2)

which takes out encodings that anything seems to fit (on 8×8 digits it lifts the area under the ROC
curve from 0.70 to 0.78). This is the Neyman-Pearson statistic under "inside one encoding, each
equally likely" as far as the Gaussian shift is true. For an image that is in u > 1 of the encodings,
taken as inside each independently with chance u/N, it becomes ::

    score(x) = Σ_e log( 1 − u/N + (u/N)·ratio_e(x) )                                      (3)

Without a sign mask (modes ``mixup`` and ``dp``) e itself takes the place of e².

The trivial attacker (:func:`nearest_encoding_scores`) looks for the encoding whose |e| is most like
|x|. Checks that a result carries are in :mod:`.membership_checks`; candidates held only in a
cropped, brightened or compressed copy in :mod:`.membership_perturbed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..images import ImageSet
from ..mixing import to_unit_range
from .cost import Cost
from .membership_law import ROLES, coefficient_law, mean_of_others, null_law, pooled, visible
from .membership_outcome import ROC_AXES, MembershipOutcome, membership_outcome
from .metrics import clopper_pearson
from .view import AttackerView, AttackResult

Scores = NDArray[np.float64]
Progress = Callable[..., None]
NUM_REFERENCES = 600
REFERENCE_TRIM = 0.01
"""References taken from a known pool may be inside an encoding themselves: this share, the best, is left
out. (Without it the area under the ROC curve is 0.90 instead of 0.93, and 0.81 instead of 0.87, on the
two development settings: CIFAR-10, k = 6, two private images with labels, one without.)"""
BLOCK_CANDIDATES = 2000  # their whitened vectors take 50 MB
BLOCK_VALUES = 4_000_000  # of the (Q, N, block) array: 16 MB


def known_image_membership(
    view: AttackerView,
    candidates: ImageSet,
    is_member: NDArray[np.bool_],
    *,
    uses: int = 1,
    role: str = "training",
    search: bool | None = None,
    check: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    max_seconds: float | None = None,
) -> AttackResult:
    """Score ``candidates`` and say how well the scores tell members from others.

    Args:
        view: what the attacker has.
        candidates: M images, some of which were encoded; labels are used if both sides have them.
        is_member: (M,) the truth, used for the metrics only.
        uses: in how many of the encodings an image is, if it is inside: releases times (one as its
            own and ``num_private`` − 1 as a partner).
        role: "training", a release to learn from; or "query", encoded queries as
            :meth:`instahide.Encoder.encode_views` makes them, where the image has the largest
            coefficient, all partners come from the pool and there is no label.
        search: look for candidates and pool images together (:mod:`.membership_search`); ``None``: if
            the view has the public pool.
        check: run the power check (planted canaries) and the null check (noise); about doubles the cost.
        seed: of the checks' choices.
        progress: called as ``progress(done, total, text)``.
        max_seconds: of the search; what it does not reach is judged by likelihood alone.

    Returns:
        metrics ``auc`` (with DeLong's 95 % interval), ``tpr_at_1_percent_fpr`` and
        ``tpr_at_0.1_percent_fpr`` (Clopper-Pearson), the ROC curve for logarithmic axes, and the same
        figures of the trivial attacker as baselines. With a search also ``found_members`` and
        ``found_others``, the shares that were named as inside, and the AUC of likelihood alone.

    Raises:
        InvalidInputError: shapes that differ, or no member, or no non-member.
    """
    from .membership_checks import membership_checks  # they build on what is here
    from .membership_search import found_first, searched_scores

    is_member = np.asarray(is_member, dtype=bool)
    if is_member.shape != (len(candidates),):
        raise InvalidInputError(
            f"is_member has shape {is_member.shape} for {len(candidates)} candidates", hint="one flag each"
        )
    searches = search if search is not None else view.public_pool is not None
    searched = None
    with Cost() as cost:
        attacker = MembershipAttacker(view, role)
        scores = attacker.scores(view.encodings, view.labels, candidates, uses=uses, progress=progress)
        if searches:
            searched = searched_scores(view, candidates, progress=progress, max_seconds=max_seconds)
    by_likelihood = membership_outcome(scores[is_member], scores[~is_member])
    if searched is not None:
        scores = found_first(searched, scores)
    outcome = membership_outcome(scores[is_member], scores[~is_member])
    nearest = nearest_encoding_scores(view, candidates)
    trivial = membership_outcome(nearest[is_member], nearest[~is_member])
    checks = membership_checks(attacker, candidates, is_member, search=searches, seed=seed) if check else None
    leaked, verdict = outcome.leaked, outcome.sentence("a known image", "in these encodings")
    if leaked is False and checks is not None and not checks.has_power:
        leaked = None
        verdict = "Undecided: nothing was found, but planted images were not found either."
    metrics, intervals = dict(outcome.metrics), dict(outcome.intervals)
    if searched is not None:
        _add_search(metrics, intervals, searched, is_member, by_likelihood)
    curves = {"this attack": outcome.curve, "nearest encoding": trivial.curve}
    if searched is not None:
        curves["likelihood alone"] = by_likelihood.curve
    return AttackResult(
        name="known-image membership",
        metrics=metrics,
        intervals=intervals,
        **cost.figures(),
        assumptions=_assumptions(view, candidates, role, uses, searches),
        settings=_settings(view, candidates, is_member, role, uses, searches),
        scores=scores,
        verdict=verdict,
        leaked=leaked,
        baselines=trivial.metrics,
        seed=seed,
        checks={} if checks is None else checks.words,
        curves=curves | {"chance": [(rate, rate) for rate, _ in outcome.curve]},
        curve_axes=ROC_AXES,
    )


def membership_scores(
    view: AttackerView,
    candidates: ImageSet,
    *,
    uses: int = 1,
    role: str = "training",
    progress: Progress | None = None,
) -> Scores:
    """(M,) scores by equation (2) or (3): higher, likelier inside; 0 tells nothing."""
    attacker = MembershipAttacker(view, role)
    return attacker.scores(view.encodings, view.labels, candidates, uses=uses, progress=progress)


class MembershipAttacker:
    """All that can be prepared before looking at encodings: the laws of ``view``, whitening, references.

    The encodings of ``view`` are not used here, so one attacker may be set on several releases under
    one law. Preparing costs most of the time: 4·d simulated encodings and a d × d factorisation.
    """

    def __init__(self, view: AttackerView, role: str = "training") -> None:
        if role not in ROLES:
            raise InvalidInputError(f"role is {role!r}", hint=f"use one of {', '.join(ROLES)}")
        self.view, self.role = view, role
        self._seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        with torch.inference_mode():
            self._null, self._law = null_law(view, role), coefficient_law(view, role)
            public = to_unit_range(view.public_images.images)
            self._mean, self._mean_square = public.mean(0), (public * public).mean(0)
            self._others = mean_of_others(view, role)
            self._references = self._shifts(ImageSet(view.public_images.images[-NUM_REFERENCES:]))

    def scores(
        self,
        encodings: torch.Tensor,
        labels: torch.Tensor | None,
        candidates: ImageSet,
        *,
        uses: int = 1,
        progress: Progress | None = None,
    ) -> Scores:
        """(M,) scores of ``candidates`` against ``encodings`` (N, C, H, W) with ``labels`` (N, K) or none."""
        if candidates.image_shape != self.view.public_images.image_shape:
            raise InvalidInputError(
                f"candidates are {candidates.image_shape}, encodings {self.view.public_images.image_shape}",
                hint="resize the candidates to the encodings' shape",
            )
        if not 1 <= uses <= len(encodings):
            raise InvalidInputError(
                f"uses is {uses} with {len(encodings)} encodings", hint="in how many an image is, if in any"
            )
        parts = []
        with torch.inference_mode():
            features, typical = self._looked_at(encodings)
            for start in range(0, len(candidates), BLOCK_CANDIDATES):
                stop = min(start + BLOCK_CANDIDATES, len(candidates))
                some = candidates.subset(np.arange(start, stop))
                for part in self._explained(features, labels, self._shifts(some), some.labels):
                    parts.append(_combined(part - typical, uses))
                if progress is not None:
                    progress(stop, len(candidates), "candidates scored:")
        return torch.cat(parts).numpy()

    def _looked_at(self, encodings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, d) whitened features and (N, 1) what is typical of references; kept for the next candidates."""
        if self._seen is None or self._seen[0] is not encodings:
            features = self._null.whiten(visible(encodings, self.view) - self._null.mean)
            references = torch.cat(list(self._explained(features, None, self._references, None)), dim=1)
            self._seen = (encodings, features, _typical(references))
        return self._seen[1:]

    def _explained(
        self,
        features: torch.Tensor,
        labels: torch.Tensor | None,
        shifts: tuple[torch.Tensor, torch.Tensor],
        classes: NDArray[np.int64] | None,
    ) -> Iterator[torch.Tensor]:
        """Blocks (N, some of M) of the log likelihood ratio of encoding n with and without candidate m."""
        grid = torch.from_numpy(self._law.grid).float()
        # The weights of equation (1)'s two vectors; without a sign mask the shift is λ·(x − m).
        masked = self.view.config.has_sign_mask
        alpha, beta = (grid**2, 2 * grid * (1 - grid)) if masked else (grid, 0 * grid)
        alpha, beta = alpha.view(-1, 1, 1), beta.view(-1, 1, 1)
        size = max(1, BLOCK_VALUES // (len(features) * len(grid)))
        for start in range(0, len(shifts[0]), size):
            a, b = (part[start : start + size] for part in shifts)
            length = alpha**2 * (a * a).sum(1) + beta**2 * (b * b).sum(1) + 2 * alpha * beta * (a * b).sum(1)
            ratios = alpha * (features @ a.T) + beta * (features @ b.T) - length / 2
            block = None if classes is None else classes[start : start + size]
            yield (ratios + self._law.prior(labels, block)).double().logsumexp(0)

    def _shifts(self, images: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
        """The whitened vectors of equation (1), each (M, d): of x² − E x², and of o∘(x − E x)."""
        x = to_unit_range(images.images)
        if not self.view.config.has_sign_mask:
            shift = self._null.whiten(pooled(x - self._mean))
            return shift, torch.zeros_like(shift)
        squares = self._null.whiten(pooled(x * x - self._mean_square))
        return squares, self._null.whiten(pooled(self._others * (x - self._mean)))


def nearest_encoding_scores(view: AttackerView, candidates: ImageSet) -> Scores:
    """(M,) the largest correlation of |x| with an |e|, each less its mean picture: the trivial attacker."""
    with torch.inference_mode():
        x, e = pooled(to_unit_range(candidates.images).abs()), pooled(view.encodings.abs())
        typical = pooled(to_unit_range(view.public_images.images).abs()).mean(0)
        x, e = x - typical, e - e.mean(0)
        x, e = (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12) for rows in (x, e))
        size = max(1, BLOCK_VALUES // len(e))
        parts = [(x[start : start + size] @ e.T).amax(1) for start in range(0, len(x), size)]
        return torch.cat(parts).double().numpy()


def _typical(references: torch.Tensor) -> torch.Tensor:
    """(N, 1) log of the mean ratio of references (N, R), without the best of them."""
    kept = max(1, int(references.shape[1] * (1 - REFERENCE_TRIM)))
    smallest = references.topk(kept, dim=1, largest=False).values
    return smallest.logsumexp(1, keepdim=True) - math.log(kept)


def _combined(log_ratios: torch.Tensor, uses: int) -> torch.Tensor:
    """(N, M) → (M,): equation (2) for one use, (3) for more."""
    N = len(log_ratios)
    if uses == 1:
        return log_ratios.logsumexp(0) - math.log(N)
    chance = min(uses / N, 1 - 1e-9)
    not_inside = torch.full_like(log_ratios, math.log1p(-chance))
    return torch.logaddexp(not_inside, log_ratios + math.log(chance)).sum(0)


def _uses_labels(view: AttackerView, candidates: ImageSet, role: str) -> bool:
    return role == "training" and view.labels is not None and candidates.labels is not None


def _assumptions(
    view: AttackerView, candidates: ImageSet, role: str, uses: int, searches: bool
) -> tuple[str, ...]:
    uses_labels = _uses_labels(view, candidates, role)
    return (
        "the attacker holds the exact candidate image, as it was before encoding",
        f"the attacker has {len(view.public_images)} other images of the same kind",
        *(["the attacker has the public pool that was mixed in"] if view.public_pool is not None else []),
        *(["pool and candidates are searched together in each encoding"] if searches else []),
        "the coefficient law is public; coefficients, partners and sign masks are not",
        "soft labels are published and the candidate's class is known"
        if uses_labels
        else "no labels are used",
        "the encodings are queries: the image has the largest coefficient and public partners"
        if role == "query"
        else f"an image that is inside is in {uses} of the encodings (own and partner uses counted)",
        "members and non-members are drawn from the same source",
    )


def _settings(
    view: AttackerView,
    candidates: ImageSet,
    is_member: NDArray[np.bool_],
    role: str,
    uses: int,
    searches: bool,
) -> dict[str, Any]:
    return {
        "num_encodings": len(view.encodings),
        "num_members": int(is_member.sum()),
        "num_others": int((~is_member).sum()),
        "uses_labels": _uses_labels(view, candidates, role),
        "uses": uses,
        "role": role,
        "search": searches,
        "scheme": view.scheme,
        "config": view.config.to_dict(),
    }


def _add_search(
    metrics: dict[str, float],
    intervals: dict[str, tuple[float, float]],
    searched: Scores,
    is_member: NDArray[np.bool_],
    by_likelihood: MembershipOutcome,
) -> None:
    """Who was named as inside, and what likelihood alone would have reached."""
    for name, group in (("found_members", is_member), ("found_others", ~is_member)):
        found, size = int((searched[group] > 0).sum()), int(group.sum())
        metrics[name], intervals[name] = found / size, clopper_pearson(found, size)
    for name in ("auc", "tpr_at_1_percent_fpr"):
        metrics[f"{name}_likelihood"] = by_likelihood.metrics[name]
        intervals[f"{name}_likelihood"] = by_likelihood.intervals[name]
