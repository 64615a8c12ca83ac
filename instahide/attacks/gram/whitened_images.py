"""The same attack on photographs: whitened private remainders have a Gram matrix, and it gives the pairs.

Axes: N encodings, n private images, C channels, H rows, W columns, d = C·H·W values.

Photographs are not isotropic Gaussian, but whitened with the statistics of public ones they are nearly
orthogonal, which is all the theorem needs. Two more steps of ours take the place of folded moments:
signs come from the smoothness of mixtures, and the public part from the pool
(:mod:`instahide.attacks.public_sources`). What is left of an encoding is::

    r_i ≈ λ_ia·(x_a − mean) + λ_ib·(x_b − mean),    ⟨r_i, r_j⟩ ≈ λ_ia·λ_ja·|x_a|²  if a is shared     (1)

in whitened coordinates. Unequal coefficients make shared entries range from nothing to one, so stars are
found among the clear ones and all encodings attached afterwards. Then images and coefficients by turns:

* X = argmin Σ |r_i − Σ_j L_ij·x_j|² + small·|X|², all images at once;
* row i of L: the two images that explain r_i best, with nonnegative least squares;
* the scale of each image, which a factorisation leaves open, so that coefficients sum to what the
  public part leaves of 1;
* and twice the signs anew, now that all sources predict them.

The mean in (1) is that of the *private* images, learnt by regressing what is left on 1 − Σ λ of the public
part, and whitening uses their own spectrum: cells or radiographs differ from photographs in both.

No labels are used. If labels are published they are left for the caller to check the pairs with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ..public_sources import PublicSources, identify_public_sources
from ..public_sources_prior import ImagePrior
from ..public_sources_regression import nonnegative_least_squares, remaining_spread
from ..public_sources_signs import WARM_START, expected_mixtures
from ..view import AttackerView
from .line_graph import stars_of_line_graph

SHARED = 0.2  # normalised inner product from which two encodings surely share an image
NOISE = 0.03  # of r, in the whitening
RIDGE = 0.05
TURNS = 6
SIGN_ROUNDS = 2
PRIOR_ENCODINGS = 20.0  # the public spectrum counts as so many of unit weight
SCALE_TURNS = 15
CANDIDATES = 6  # images tried for each encoding
LEAST_STAR = 3
RESIDUAL_SPREAD = 0.01  # v of what all found sources leave open


@dataclass(frozen=True, eq=False)
class WhitenedRecovery:
    """What came out.

    Args:
        images: (n', C, H, W) in [−1, 1]; n' ≤ n.
        pairs: (N, 2) rows of ``images``, the heavier first; −1 where none fits.
        coefficients: (N, 2).
        sources: the public part.
        null_spread: robust standard deviation of (1) over all pairs: what "not shared" looks like.
    """

    images: torch.Tensor
    pairs: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    sources: PublicSources
    null_spread: float


def recover_by_gram(
    view: AttackerView,
    num_images: int,
    *,
    sources: PublicSources | None = None,
    progress: Callable[..., None] | None = None,
    max_seconds: float | None = None,
) -> WhitenedRecovery:
    """Private images from the Gram matrix of what the public part leaves.

    Args:
        num_images: n, the number of private images; at most so many come out.
        sources: of :func:`identify_public_sources` if it was run already.

    Raises:
        InvalidInputError: not two private images per encoding, or no public pool.
    """
    config = view.config
    if config.num_private != 2 or num_images < 2:
        raise InvalidInputError(
            f"{config.num_private} of {num_images} private images in an encoding; the attack is for 2",
            hint="use a release with num_private = 2",
        )
    if view.scheme != "cross":
        raise InvalidInputError(
            "all sources are private, and this attack starts from the public ones",
            hint="use the recovery attack, or --gaussian for the theorem's own model",
        )
    with torch.inference_mode():
        pool = view.public_pool or view.public_images
        if sources is None:
            sources = identify_public_sources(view, progress=progress, max_seconds=max_seconds)
        prior = ImagePrior.of(view.public_images)
        left = torch.from_numpy(1 - sources.weight).float()
        private_mean = _private_mean(sources.mixtures - sources.known_part(pool), left)
        known = sources.known_part(pool) + left.view(-1, 1, 1, 1) * private_mean
        model = _PairModel(prior, view, known, left, sources.mixtures - known)
        rest = model.whiten(sources.mixtures - known)
        similarity, spread = _similarity(rest)
        stars = stars_of_line_graph(similarity > SHARED, least=LEAST_STAR)[:num_images]
        if not stars:
            nothing = np.full((len(rest), 2), -1)
            return WhitenedRecovery(
                torch.empty((0, *prior.mean.shape)), nothing, np.zeros(nothing.shape), sources, spread
            )
        weights = torch.zeros((len(rest), len(stars)))
        for index, star in enumerate(stars):
            weights[torch.from_numpy(star), index] = 1 / len(star)
        images = torch.nn.functional.normalize(weights.T @ rest)
        mixtures = sources.mixtures
        for turn in range(SIGN_ROUNDS + 1):
            rest = model.whiten(mixtures - known)
            images, rows, coefficients = _factorise(rest, images)
            coefficients = _with_scale(rows, coefficients, left, len(images))
            pixels = _images_in_pixels(mixtures - known, rows, coefficients, len(images))
            if turn < SIGN_ROUNDS:
                mixtures = model.resigned(pixels, rows, coefficients)
            if progress is not None:
                progress(turn + 1, total=SIGN_ROUNDS + 1, text="images")
        return WhitenedRecovery(
            (pixels + private_mean).clamp(-1, 1), rows.numpy(), coefficients.double().numpy(), sources, spread
        )


class _PairModel:
    """Whitening, and signs from what is believed about all sources."""

    def __init__(
        self,
        prior: ImagePrior,
        view: AttackerView,
        known: torch.Tensor,
        left: torch.Tensor,
        rest: torch.Tensor,
    ) -> None:
        self.prior, self.view, self.known, self.left = prior, view, known, left
        # The private images' own spectrum, held to the public one where encodings are few.
        spread = float(remaining_spread(left, 2.0).sum())
        measured = prior.transform(rest).square().sum(0)
        variance = (measured + PRIOR_ENCODINGS * prior.variance) / (spread + PRIOR_ENCODINGS)
        self.weights = (variance + NOISE**2 / 0.2).rsqrt()

    def whiten(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) → (N, d)."""
        return self.prior.transform(pixels).mul_(self.weights).flatten(1)

    def resigned(self, images: torch.Tensor, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) mixtures again, with the private images in the mean."""
        magnitudes = self.view.encodings.abs()
        if not self.view.config.has_sign_mask:
            return self.view.encodings
        mean = self.known + (coefficients[:, :, None, None, None] * images[rows.clamp(min=0)]).sum(1)
        # A sign not yet fixed by a public source is fixed by the private ones.
        open_weight = (self.left - coefficients.sum(1)).clamp(min=0.0)
        spread = remaining_spread(open_weight, 2.0) + RESIDUAL_SPREAD
        variance = spread.view(-1, 1, 1, 1) * self.prior.pixel_diagonal(self.prior.variance[None])
        start = torch.tanh(magnitudes * mean / variance)
        return expected_mixtures(self.prior, magnitudes, mean, spread, start=start, temperatures=WARM_START)


def _private_mean(rest: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """(C, H, W) mean private image: encodings hold ``left`` of it on average, by least squares.

    Cells or radiographs have a mean of their own; with the pool's in its place all remainders would agree.
    """
    weights = left.view(-1, 1, 1, 1)
    mean: torch.Tensor = (weights * rest).sum(0) / left.square().sum().clamp(min=1e-6)
    return mean


def _similarity(rest: torch.Tensor) -> tuple[NDArray[np.float64], float]:
    """(N, N) cosines of the rows, and 1.48 times the median absolute one."""
    unit = torch.nn.functional.normalize(rest)
    cosines = (unit @ unit.T).numpy()
    return cosines, float(1.4826 * np.median(np.abs(cosines)))


def _factorise(rest: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (n', d) and, per encoding, two rows and coefficients, by turns."""
    for _ in range(TURNS):
        rows, coefficients = _two_best(rest, images)
        images = _least_squares(rest, rows, coefficients, len(images))
    rows, coefficients = _two_best(rest, images)
    return images, rows, coefficients


def _two_best(rest: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 2) rows and λ: of the pairs among the best candidates the one with the least error."""
    lengths = images.norm(dim=1).clamp(min=1e-9)
    products = rest @ images.T
    count = min(CANDIDATES, len(images))
    candidates = (products / lengths).topk(count, dim=1).indices
    gram = (images @ images.T)[candidates[:, :, None], candidates[:, None, :]]
    moments = products.gather(1, candidates)
    best = torch.zeros((len(rest), 2), dtype=torch.long)
    fitted, gain = torch.zeros((len(rest), 2)), torch.full((len(rest),), -1.0)
    for i in range(count):
        for j in range(i + 1, count):
            pair = torch.tensor([i, j])
            g, b = gram[:, pair][:, :, pair], moments[:, pair]
            x = nonnegative_least_squares(g, b, sweeps=12)
            explained = (2 * b * x).sum(1) - torch.einsum("ni,nij,nj->n", x, g, x)
            better = explained > gain
            best[better], fitted[better], gain[better] = (
                candidates[better][:, pair],
                x[better],
                explained[better],
            )
    order = fitted.argsort(1, descending=True)
    best, fitted = best.gather(1, order), fitted.gather(1, order)
    return best.masked_fill(fitted <= 0, -1), fitted


def _with_scale(
    rows: torch.Tensor, coefficients: torch.Tensor, left: torch.Tensor, count: int
) -> torch.Tensor:
    """Coefficients in the scale where those of an encoding sum to what the public part leaves.

    A factorisation leaves one scale s_j per image open; Σ_j s_j·L_ij = left_i fixes it, by least
    absolute deviations (reweighted least squares), since some encodings have an unnoticed public image.
    """
    system = torch.zeros((len(rows), count + 1))
    system.scatter_add_(1, torch.where(rows < 0, count, rows), coefficients)
    system = system[:, :count].double()
    usable = (rows >= 0).all(1)
    system, target = system[usable], left[usable].double()
    trust, eye = torch.ones_like(target), 1e-6 * torch.eye(count, dtype=torch.float64)
    scale = torch.ones(count, dtype=torch.float64)
    for _ in range(SCALE_TURNS):
        weighted = system * trust[:, None]
        scale = torch.linalg.solve(system.T @ weighted + eye, weighted.T @ target)
        trust = (target - system @ scale).abs().clamp(min=0.01).reciprocal()
    scale = scale.clamp(min=1e-3).float()
    return coefficients * scale[rows.clamp(min=0)]


def _least_squares(
    values: torch.Tensor, rows: torch.Tensor, coefficients: torch.Tensor, count: int
) -> torch.Tensor:
    """(n', d) minimisers of Σ |values_i − Σ_j L_ij·x_j|² + ridge."""
    system = torch.zeros((len(values), count + 1))
    system.scatter_add_(1, torch.where(rows < 0, count, rows), coefficients)
    system = system[:, :count]
    normal = system.T @ system + RIDGE * torch.eye(count)
    solution: torch.Tensor = torch.linalg.solve(normal, system.T @ values)
    return solution


def _images_in_pixels(
    rest: torch.Tensor, rows: torch.Tensor, coefficients: torch.Tensor, count: int
) -> torch.Tensor:
    return _least_squares(rest.flatten(1), rows, coefficients, count).view(count, *rest.shape[1:])
