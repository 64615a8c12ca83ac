"""How close recovered images are to the originals: one data range, one assignment, no best-of choice.

Axes: m recovered images, n originals, D decoys, C channels, H rows, W columns.

Images are float arrays in [−1, 1], so the data range is 2 everywhere; leaving it to the picture at hand
makes PSNR depend on the picture's contrast. An attacker does not say which original a recovered image is,
so the two sets are matched one to one, *once*, by the largest total SSIM (Kuhn 1955), and every metric
uses that match; letting each metric choose its own best match flatters all of them.

* **SSIM** (Wang et al. 2004): 7×7 uniform window, sample covariance, K1 = 0.01, K2 = 0.03, mean over the
  windows inside the image and over channels: the numbers of ``skimage.metrics.structural_similarity`` on
  *intensities* (x + 1)/2. It must not be computed on signed values: there a flipped image has both a
  negative luminance term and a negative structure term, whose product is positive, and SSIM cannot tell
  x from −x. (``signed_ssim`` is that number, for comparison with others who report it.)
* **PSNR** = 10·log10(4 / mean square error).
* **Gradient similarity** (Xue et al. 2014): mean over pixels of (2·g·g' + c)/(g² + g'² + c) of the
  gradient magnitudes (Prewitt): edges count, brightness does not.
* **Identification rate**: share of the originals whose recovered image correlates with its own original
  more than with any other original and any decoy. More decoys can only lower it. As the match was made
  with the truth, answers without any content are "identified" more often than 1/n; ``identification_chance``
  is the rate of the same answers turned over and shifted by half their size, which keeps their statistics
  and takes their content.

A score is a mean over *all n originals*; one that no recovered image was matched to counts as SSIM 0.
No recovered image is flipped, stretched or filtered here: the global sign, which encodings do not
determine, is the attacker's to choose, without the originals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..errors import InvalidInputError

DATA_RANGE = 2.0
WINDOW = 7
_GRADIENT_CONSTANT = 170.0 * (DATA_RANGE / 255.0) ** 2  # Xue et al. for an 8-bit range, squared units
_VALUES_AT_A_TIME = 1 << 18
_BOOTSTRAPS = 2000

Images = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RecoveryScore:
    """How well n originals were recovered; every figure uses the same match.

    Args:
        ssim, psnr: per original, in the originals' order; 0 and the PSNR of a grey image where unmatched.
        matched: (n,) row of the recovered image matched to each original; −1 for none.
        mean_ssim, mean_psnr, gradient_similarity, identification_rate: means over all originals.
        share_above_0_7: share of originals with SSIM above 0.7, recognisable at a glance.
        mean_ssim_interval: 95 % bootstrap interval over the originals.
    """

    ssim: NDArray[np.float64]
    psnr: NDArray[np.float64]
    matched: NDArray[np.int64]
    mean_ssim: float
    mean_psnr: float
    mean_signed_ssim: float
    gradient_similarity: float
    identification_rate: float
    identification_chance: float
    share_above_0_7: float
    mean_ssim_interval: tuple[float, float]

    def to_metrics(self) -> dict[str, float]:
        """The means, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


def score_recovery(
    recovered: NDArray[np.floating], originals: NDArray[np.floating], *, decoys: Images | None = None
) -> RecoveryScore:
    """Match ``recovered`` (m, C, H, W) to ``originals`` (n, C, H, W), both in [−1, 1], and score them.

    Args:
        decoys: (D, C, H, W) images that were never encoded, for the identification rate only.

    Raises:
        InvalidInputError: shapes that differ, values that are not numbers, or more recovered images than
            originals (an attacker who may answer more often than asked always scores better).
    """
    recovered, originals = _checked("recovered", recovered), _checked("originals", originals)
    if recovered.shape[1:] != originals.shape[1:] or len(recovered) > len(originals):
        raise InvalidInputError(
            f"recovered images have shape {recovered.shape}, originals {originals.shape}",
            hint="give at most as many recovered images as there are originals, of the same shape",
        )
    table = ssim_matrix(originals, recovered)
    matched = match(table)
    found = matched >= 0
    partner = np.where(found, matched, 0)
    similarity = np.where(found, table[np.arange(len(originals)), partner], 0.0)
    answer = np.where(found[:, None, None, None], recovered[partner], np.float32(0.0))
    noise = psnr(answer, originals)
    return RecoveryScore(
        ssim=similarity,
        psnr=noise,
        matched=matched,
        mean_ssim=float(similarity.mean()),
        mean_psnr=float(noise.mean()),
        mean_signed_ssim=float(np.where(found, signed_ssim(answer, originals), 0.0).mean()),
        gradient_similarity=float(np.where(found, gradient_similarity(answer, originals), 0.0).mean()),
        identification_rate=float((found & _identified(answer, originals, decoys)).mean()),
        identification_chance=_identification_chance(recovered, originals, decoys),
        share_above_0_7=float((similarity > 0.7).mean()),
        mean_ssim_interval=bootstrap_interval(similarity),
    )


def match(similarity: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n, m) similarities → (n,) column of each row under the one-to-one match of largest total; −1: none."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-similarity)
    matched = np.full(len(similarity), -1, dtype=np.int64)
    matched[rows] = columns
    return matched


def ssim(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(B,) SSIM of image b of ``first`` with image b of ``second``, both (B, C, H, W) in [−1, 1]."""
    return signed_ssim(np.asarray(first, np.float64) + 1, np.asarray(second, np.float64) + 1)


def signed_ssim(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(B,) the SSIM formula on the values as they are, for a data range of 2. Blind to a flipped sign."""
    x, y = _as_double(first), _as_double(second)
    return np.asarray(_local_ssim(_moments(x), _moments(y), _means(x * y)).flatten(1).mean(1))


def ssim_matrix(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(A, B) SSIM of every image of ``first`` with every image of ``second``."""
    x, y = _as_double(first) + 1, _as_double(second) + 1
    of_x, of_y = ([part.flatten(1).T for part in _moments(images)] for images in (x, y))
    patches_x, patches_y = _patches(x), _patches(y)
    table = torch.zeros((len(x), len(y)), dtype=torch.float64)
    size = max(1, _VALUES_AT_A_TIME // (len(x) * len(y)))
    for start in range(0, len(patches_x), size):
        block = slice(start, start + size)
        crossed = patches_x[block] @ patches_y[block].mT / patches_x.shape[2]
        left = tuple(part[block, :, None] for part in of_x)
        right = tuple(part[block, None, :] for part in of_y)
        table += _local_ssim(left, right, crossed).sum(0)
    return np.asarray(table / len(patches_x))


def psnr(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(B,) peak signal-to-noise ratio in dB for a data range of 2; infinite for equal images."""
    error = (_as_double(first) - _as_double(second)).square().flatten(1).mean(1)
    return np.asarray(10 * torch.log10(DATA_RANGE**2 / error))


def gradient_similarity(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(B,) mean similarity of gradient magnitudes (Xue et al. 2014, eq. 4; channels averaged to grey)."""
    a, b = (_gradient_magnitude(_as_double(images)) for images in (first, second))
    similarity = (2 * a * b + _GRADIENT_CONSTANT) / (a * a + b * b + _GRADIENT_CONSTANT)
    return np.asarray(similarity.flatten(1).mean(1))


def leaderboard_scores(
    answers: NDArray[np.floating], originals: NDArray[np.floating], private_rows: NDArray[np.int64]
) -> dict[str, float]:
    """Max-SSIM and Mean-SSIM of the InstaHide challenge (2020), means over N encodings.

    There, an attacker answers one image for each *encoding*, which holds two private images: Max-SSIM
    takes the nearer of the two, Mean-SSIM the mean of both. An image is as a rule unlike the other one, so a
    perfect answer scores about (1 + 0)/2: **Mean-SSIM cannot exceed about 0.5**, and a Mean-SSIM near 0.5 is
    no half success but a whole one. Max-SSIM chooses with the truth in hand and so favours the attacker.

    Args:
        answers: (N, C, H, W), one for each encoding.
        originals: (n, C, H, W).
        private_rows: (N, k_priv) rows of ``originals`` inside each encoding.
    """
    both = np.stack([ssim(answers, originals[column]) for column in private_rows.T], axis=1)
    return {"max_ssim": float(both.max(axis=1).mean()), "mean_ssim_of_both": float(both.mean())}


def bootstrap_interval(values: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values`` (Efron 1979; 2,000 resamples)."""
    draws = np.random.default_rng(seed).integers(0, len(values), (_BOOTSTRAPS, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _identification_chance(recovered: Images, originals: Images, decoys: Images | None) -> float:
    empty = np.roll(recovered[..., ::-1], (recovered.shape[2] // 2, recovered.shape[3] // 2), axis=(2, 3))
    matched = match(ssim_matrix(originals, empty))
    answer = np.where((matched >= 0)[:, None, None, None], empty[np.maximum(matched, 0)], np.float32(0.0))
    return float(((matched >= 0) & _identified(answer, originals, decoys)).mean())


def _identified(answer: Images, originals: Images, decoys: Images | None) -> NDArray[np.bool_]:
    """Whether each answer correlates most with its own original."""
    others = originals if decoys is None else np.concatenate([originals, _checked("decoys", decoys)])
    table = _standardised(answer) @ _standardised(others).T
    own = table[np.arange(len(originals)), np.arange(len(originals))].copy()
    table[np.arange(len(originals)), np.arange(len(originals))] = -np.inf
    return np.asarray(own > table.max(axis=1)) if table.shape[1] > 1 else np.asarray(own > 0)


def _standardised(images: Images) -> NDArray[np.float64]:
    rows = images.reshape(len(images), -1).astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _window(H: int, W: int) -> int:
    smallest = min(H, W)
    return min(WINDOW, smallest if smallest % 2 else smallest - 1)


def _means(images: torch.Tensor) -> torch.Tensor:
    """Means over every window that lies inside the image."""
    return functional.avg_pool2d(images, _window(*images.shape[-2:]), stride=1)


def _moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size = _window(*images.shape[-2:]) ** 2
    mean = _means(images)
    variance = (_means(images * images) - mean * mean) * (size / (size - 1))
    return mean, variance, torch.tensor(size / (size - 1), dtype=torch.float64).expand_as(mean)


def _patches(images: torch.Tensor) -> torch.Tensor:
    """(windows, images, values of a window): every window of every channel."""
    window = _window(*images.shape[-2:])
    parts = images.unfold(2, window, 1).unfold(3, window, 1)
    return parts.permute(1, 2, 3, 0, 4, 5).reshape(-1, len(images), window * window)


def _local_ssim(
    x: tuple[torch.Tensor, ...], y: tuple[torch.Tensor, ...], crossed: torch.Tensor
) -> torch.Tensor:
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    mean_x, variance_x, unbiased = x
    mean_y, variance_y, _ = y
    covariance = (crossed - mean_x * mean_y) * unbiased
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )


def _gradient_magnitude(images: torch.Tensor) -> torch.Tensor:
    grey = images.mean(1, keepdim=True)
    across = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=torch.float64) / 3
    both = torch.stack([across, across.T])[:, None]
    return (
        functional.conv2d(functional.pad(grey, (1, 1, 1, 1), mode="replicate"), both).square().sum(1).sqrt()
    )


def _as_double(images: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float64))


def _checked(name: str, images: NDArray[np.floating]) -> Images:
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0 or min(images.shape[2:]) < 3:
        raise InvalidInputError(
            f"{name} images have shape {images.shape}", hint="give (N, C, H, W) with at least 3×3 pixels"
        )
    if not np.isfinite(images).all() or float(np.abs(images).max()) > 1 + 1e-5:
        low, high = (math.nan, math.nan) if not np.isfinite(images).all() else (images.min(), images.max())
        raise InvalidInputError(
            f"{name} images are not in [-1, 1] ({low:.3g} to {high:.3g})", hint="map 8-bit x to x / 127.5 - 1"
        )
    return np.asarray(images, dtype=np.float32)
