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
equally likely" as far as the Gaussian shift is true.

Without a sign mask (mode ``mixup``) e itself takes the place of e².
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..coefficients import draw_coefficients, mix_labels
from ..encoder import Encoder, FewPixelsWarning
from ..errors import InvalidInputError
from ..images import ImageSet
from ..mixing import to_unit_range
from ..randomness import Randomness
from .metrics import roc_auc, roc_auc_interval, true_positive_rate
from .view import AttackerView, AttackResult

MAX_FEATURES = 3072  # larger images are averaged over blocks: the covariance costs d³
NUM_SIMULATED = 4000
NUM_REFERENCES = 600
BLOCK_VALUES = 4_000_000  # of the (Q, N, block) array: 16 MB
NUM_COEFFICIENTS = 20_000
RIDGE = 0.03  # of the mean eigenvalue of the correlation matrix
SD_FLOOR = 0.01  # in units of e²: a pixel that never varies must not decide alone
GRID_SIZE = 10  # Q
LABEL_BINS = 21  # bin 0 is w = 0 exactly


def known_image_membership(
    view: AttackerView, candidates: ImageSet, is_member: NDArray[np.bool_]
) -> AttackResult:
    """Score ``candidates`` and say how well the scores tell members from others.

    Args:
        view: what the attacker has.
        candidates: M images, some of which were encoded; labels are used if both sides have them.
        is_member: (M,) the truth, used for the metrics only.

    Returns:
        metrics ``auc`` (with DeLong's 95 % interval) and ``tpr_at_1_percent_fpr``.

    Raises:
        InvalidInputError: shapes that differ, or no member, or no non-member.
    """
    is_member = np.asarray(is_member, dtype=bool)
    if is_member.shape != (len(candidates),):
        raise InvalidInputError(
            f"is_member has shape {is_member.shape} for {len(candidates)} candidates", hint="one flag each"
        )
    started = time.process_time()
    scores = membership_scores(view, candidates)
    cpu_seconds = time.process_time() - started
    members, others = scores[is_member], scores[~is_member]
    uses_labels = view.labels is not None and candidates.labels is not None
    return AttackResult(
        name="known-image membership",
        metrics={
            "auc": roc_auc(members, others),
            "tpr_at_1_percent_fpr": true_positive_rate(members, others, false_positive_rate=0.01),
        },
        intervals={"auc": roc_auc_interval(members, others)},
        cpu_seconds=cpu_seconds,
        assumptions=(
            "the attacker holds the exact candidate image, as it was before encoding",
            f"the attacker has {len(view.public_images)} other images of the same kind",
            *(["the attacker knows the public pool"] if view.public_pool is not None else []),
            "the coefficient law is public; coefficients, partners and sign masks are not",
            "soft labels are published and the candidate's class is known"
            if uses_labels
            else "no labels are used",
            "members and non-members are drawn from the same source",
        ),
        settings={
            "num_encodings": len(view.encodings),
            "num_members": int(is_member.sum()),
            "num_others": int((~is_member).sum()),
            "uses_labels": uses_labels,
            "scheme": view.scheme,
            "config": view.config.to_dict(),
        },
        scores=scores,
    )


def membership_scores(view: AttackerView, candidates: ImageSet) -> NDArray[np.float64]:
    """(M,) scores by equation (2): higher, likelier inside one of the encodings; 0 tells nothing."""
    if candidates.image_shape != view.public_images.image_shape:
        raise InvalidInputError(
            f"candidates are {candidates.image_shape}, encodings {view.public_images.image_shape}",
            hint="resize the candidates to the encodings' shape",
        )
    with torch.inference_mode():
        null = _null_law(view)
        features = null.whiten(_pooled(_visible(view.encodings, view)) - null.mean)
        law = _coefficient_law(view)
        references = ImageSet(view.public_images.images[-NUM_REFERENCES:])
        explained = torch.cat(list(_explained(view, references, features, null, law)), dim=1)
        typical = explained.logsumexp(1, keepdim=True) - math.log(len(references))  # (N, 1)
        scores = [
            (part - typical).logsumexp(0) - math.log(len(features))
            for part in _explained(view, candidates, features, null, law)
        ]
        return torch.cat(scores).numpy()


def _explained(
    view: AttackerView, candidates: ImageSet, features: torch.Tensor, null: _NullLaw, law: _CoefficientLaw
) -> Iterator[torch.Tensor]:
    """Blocks (N, some of M) of the log likelihood ratio of encoding n with and without candidate m."""
    first, second = _shifts(view, candidates, null)
    grid = torch.from_numpy(law.grid).float()
    # The weights of equation (1)'s two vectors; without a sign mask the shift is λ·(x − m).
    alpha, beta = (grid**2, 2 * grid * (1 - grid)) if view.config.has_sign_mask else (grid, 0 * grid)
    size = max(1, BLOCK_VALUES // (len(features) * len(grid)))
    for start in range(0, len(candidates), size):
        block = slice(start, start + size)
        a, b = first[block], second[block]
        shape = (len(grid), 1, 1)
        length = (
            alpha.view(shape) ** 2 * (a * a).sum(1)
            + beta.view(shape) ** 2 * (b * b).sum(1)
            + 2 * (alpha * beta).view(shape) * (a * b).sum(1)
        )
        ratios = alpha.view(shape) * (features @ a.T) + beta.view(shape) * (features @ b.T) - length / 2
        yield (ratios + _log_prior(view, candidates, law, block)).double().logsumexp(0)


@dataclass(frozen=True, eq=False)
class _NullLaw:
    """Mean and whitening of the visible part of encodings that hold only unknown images."""

    mean: torch.Tensor  # (d,)
    sd: torch.Tensor  # (d,)
    factor: torch.Tensor  # (d, d) lower triangular

    def whiten(self, rows: torch.Tensor) -> torch.Tensor:
        whitened: torch.Tensor = torch.linalg.solve_triangular(self.factor, (rows / self.sd).T, upper=False)
        return whitened.T


def _null_law(view: AttackerView) -> _NullLaw:
    rows = _pooled(_visible(_simulated_encodings(view), view))
    mean = rows.mean(0)
    sd = (rows.var(0) + SD_FLOOR**2).sqrt()
    scaled = (rows - mean) / sd
    correlation = scaled.T @ scaled / len(scaled)
    correlation.diagonal().add_(RIDGE)
    return _NullLaw(mean, sd, torch.linalg.cholesky(correlation))


def _simulated_encodings(view: AttackerView) -> torch.Tensor:
    """Encodings of public images under the published law, by the published encoder."""
    pool = view.public_images.images
    pool = pool[(pool != pool[:, :, :1, :1]).any(axis=(1, 2, 3))]  # the encoder refuses blank images
    if len(pool) <= view.config.num_mixed:
        raise InvalidInputError(
            f"{len(pool)} public images that are not blank cannot stand for a population",
            hint="give some hundred images of the same kind",
        )
    images = ImageSet(pool[:NUM_SIMULATED], np.zeros(min(len(pool), NUM_SIMULATED), dtype=np.int64))
    public = (view.public_pool or ImageSet(pool)) if view.scheme == "cross" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)  # a warning to those who encode
        encoder = Encoder(view.config, private=images, public=public)
    epochs = [encoder.encode_epoch().images for _ in range(-(-NUM_SIMULATED // len(images)))]
    return torch.cat(epochs)[:NUM_SIMULATED]


def _visible(images: torch.Tensor, view: AttackerView) -> torch.Tensor:
    """What the sign mask leaves: e²; everything if there is no sign mask."""
    return images * images if view.config.has_sign_mask else images


def _pooled(images: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) → (N, d), averaged over square blocks until d ≤ MAX_FEATURES; linear, as (1) needs."""
    C, H, W = images.shape[1:]
    block = math.ceil(math.sqrt(C * H * W / MAX_FEATURES))
    if block > 1:
        images = functional.avg_pool2d(images, block, ceil_mode=True)
    return images.flatten(1)


def _shifts(view: AttackerView, candidates: ImageSet, null: _NullLaw) -> tuple[torch.Tensor, torch.Tensor]:
    """The whitened vectors of equation (1), each (M, d): of x² − E x², and of o∘(x − E x)."""
    public, x = to_unit_range(view.public_images.images), to_unit_range(candidates.images)
    m = public.mean(0)
    others = m
    if view.scheme == "cross" and view.public_pool is not None and view.config.num_mixed > 1:
        from_pool = (view.config.num_mixed - view.config.num_private) / (view.config.num_mixed - 1)
        others = (1 - from_pool) * m + from_pool * to_unit_range(view.public_pool.images).mean(0)
    if not view.config.has_sign_mask:
        shift = null.whiten(_pooled(x - m))
        return shift, torch.zeros_like(shift)
    return null.whiten(_pooled(x * x - (public * public).mean(0))), null.whiten(_pooled(others * (x - m)))


@dataclass(frozen=True, eq=False)
class _CoefficientLaw:
    """On a grid of λ: log P(λ inside), and log P(λ, w | inside) − log P(w | not inside) by bin of w."""

    grid: NDArray[np.float64]  # (Q,)
    log_prior: torch.Tensor  # (Q,)
    log_prior_with_label: torch.Tensor | None  # (Q, LABEL_BINS)


def _coefficient_law(view: AttackerView) -> _CoefficientLaw:
    config = view.config
    num_private = config.num_private
    stream = Randomness().stream("coefficients")
    drawn = draw_coefficients(
        stream, NUM_COEFFICIENTS, config, num_private=num_private if view.scheme == "cross" else None
    )[:, :num_private]
    edges = np.unique(np.quantile(drawn, np.linspace(0, 1, GRID_SIZE + 1)[1:-1]))
    cell = np.searchsorted(edges, drawn)  # (n, num_private) → 0..Q-1
    Q = int(cell.max()) + 1
    sizes = np.bincount(cell.ravel(), minlength=Q)
    grid = np.bincount(cell.ravel(), weights=drawn.ravel(), minlength=Q) / np.maximum(sizes, 1)
    log_prior = torch.from_numpy(np.log(np.maximum(sizes, 0.5) / cell.size)).float()
    if view.labels is None:
        return _CoefficientLaw(grid, log_prior, None)
    frequencies = view.labels.double().mean(0).clamp(min=1e-9).numpy()
    frequencies /= frequencies.sum()
    classes = np.random.default_rng(0).choice(len(frequencies), size=drawn.shape, p=frequencies)
    labels = mix_labels(classes, drawn, len(frequencies), config).numpy()
    inside_bin = _label_bin(np.take_along_axis(labels, classes, axis=1))
    joint = (cell * LABEL_BINS + inside_bin).ravel()
    inside = np.bincount(joint, minlength=Q * LABEL_BINS).reshape(Q, LABEL_BINS) / cell.size
    by_class = np.broadcast_to(frequencies, labels.shape).ravel() / len(labels)
    outside = np.bincount(_label_bin(labels).ravel(), weights=by_class, minlength=LABEL_BINS)
    # Half a draw in every bin: a weight never drawn is unlikely, not impossible.
    floor = 0.5 / cell.size
    table = np.log(inside + floor / Q) - np.log(outside + floor)
    return _CoefficientLaw(grid, log_prior, torch.from_numpy(table).float())


def _label_bin(weights: NDArray[np.floating]) -> NDArray[np.int64]:
    """0 for a weight of 0, else 1 .. LABEL_BINS − 1 over (0, 1]."""
    bins = np.ceil(np.asarray(weights, dtype=np.float64) * (LABEL_BINS - 1) - 1e-6)
    return np.asarray(np.clip(bins, 0, LABEL_BINS - 1), dtype=np.int64)


def _log_prior(view: AttackerView, candidates: ImageSet, law: _CoefficientLaw, block: slice) -> torch.Tensor:
    """(Q, N, block), or (Q, 1, 1) where labels are not used."""
    if law.log_prior_with_label is None or view.labels is None or candidates.labels is None:
        return law.log_prior[:, None, None]
    weights = view.labels[:, torch.from_numpy(candidates.labels[block])]  # (N, block)
    table: torch.Tensor = law.log_prior_with_label
    return table[:, torch.from_numpy(_label_bin(weights.numpy()))]
