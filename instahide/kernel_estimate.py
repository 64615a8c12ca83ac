"""What a network would reach, estimated without training one: kernel regression on plain images or encodings.

A neural tangent kernel is the network of its architecture at infinite width, trained to the end. On a
thousand images it takes seconds, so k, the public pool, the image size and the absolute value can be compared
before anything is trained or sent. It is a baseline of its own on small data, and an estimate of the *order*
of settings rather than of their accuracies: over 11 settings of k and |x| and two data sets, Spearman's
correlation with a trained small CNN is 0.82 to 0.88 for plain queries and 0.41 to 0.69 for averages of ten
views, alike for both kernels. The fully connected one takes a tenth of the training's time, the convolutional
one twice as much (tests/benchmarks/kernel_estimate.py).

    f(x) = ȳ + k(x, X) (K + ρ 1)⁻¹ (Y − ȳ)

on soft labels Y with their mean ȳ. The ridge ρ makes up for what mixing does to labels; it is chosen by the
error of leaving one out, in closed form, on the training rows alone:

    r_i = (y_i − f_i) / (1 − h_i),       h = diag K (K + ρ 1)⁻¹

Inputs are taken as |x| where the network would take them so, then standardised by channel. The three
inference modes are those of :mod:`instahide.evaluation`.

Axes: N training rows, K classes, C channels, H rows, W columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .errors import InvalidInputError
from .evaluation import EvaluationReport, evaluate
from .images import ImageSet
from .mixing import to_unit_range

if TYPE_CHECKING:
    from .encoder import Encoder

KERNELS = ("fully-connected", "convolutional")
RIDGES = tuple(float(value) for value in np.logspace(-6, 2, 33))

Kernel = Callable[[torch.Tensor, torch.Tensor | None], NDArray[np.float64]]


def kernel_named(name: str, *, depth: int = 6) -> Kernel:
    """The kernel between images (N, C, H, W): exact, of five ReLUs by default, without pooling.

    Raises:
        InvalidInputError: an unknown name.
    """
    if name == "convolutional":
        from theory_modules.convolutional_ntk import convolutional_ntk

        return lambda x, z: np.asarray(convolutional_ntk(x, z, depth=depth), dtype=np.float64)
    if name == "fully-connected":
        from theory_modules.ntk import fully_connected_ntk

        def flat(x: torch.Tensor, z: torch.Tensor | None) -> NDArray[np.float64]:
            rows = None if z is None else z.flatten(1)
            return np.asarray(fully_connected_ntk(x.flatten(1), rows, depth=depth), dtype=np.float64)

        return flat
    raise InvalidInputError(f"there is no kernel {name!r}", hint=f"choose one of {', '.join(KERNELS)}")


class KernelModel(nn.Module):
    """Kernel regression as a model: images (B, C, H, W) in [-1, 1] to scores (B, K).

    Args:
        images: float32 (N, C, H, W), plain images or encodings in [-1, 1].
        labels: (N, K), soft.
        absolute_input: take |x| first.

    Raises:
        InvalidInputError: fewer than two rows, or labels that are all alike.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, kernel: Kernel, *, absolute_input: bool
    ) -> None:
        super().__init__()
        if len(images) < 2:
            raise InvalidInputError(f"there are {len(images)} training images", hint="give at least two")
        self._kernel, self._absolute = kernel, absolute_input
        entering = images.abs() if absolute_input else images
        self._mean = entering.mean((0, 2, 3), keepdim=True)
        deviation = entering.std((0, 2, 3), keepdim=True)
        self._deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        self._rows = self._entering(images)
        targets = labels.double().numpy()
        self._prior = targets.mean(0)
        if not (targets - self._prior).any():
            raise InvalidInputError(
                "all labels are alike", hint="the training images need two classes or more"
            )
        gram = kernel(self._rows, None)
        self.ridge, self._weights = regress(gram, targets - self._prior)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        kernel = self._kernel(self._entering(images), self._rows)
        return torch.from_numpy(kernel @ self._weights + self._prior).float()

    def _entering(self, images: torch.Tensor) -> torch.Tensor:
        return ((images.abs() if self._absolute else images) - self._mean) / self._deviation


def regress(kernel: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The relative ridge of least leave-one-out error, and the weights (K + ρ 1)⁻¹ Y under it.

    ρ = ridge · tr K / N. One eigendecomposition serves every ridge.
    """
    values, vectors = np.linalg.eigh(kernel)
    values = values.clip(0)
    rotated, squares = vectors.T @ targets, vectors**2
    scale = values.sum() / len(kernel)
    best = (np.inf, RIDGES[0])
    for ridge in RIDGES:
        kept = ridge * scale / (values + ridge * scale)  # eigenvalues of 1 − K (K + ρ 1)⁻¹
        residuals = (vectors @ (kept[:, None] * rotated)) / (squares @ kept)[:, None]
        best = min(best, (float(np.mean(residuals**2)), ridge))
    weights = vectors @ (rotated / (values + best[1] * scale)[:, None])
    return best[1], weights


@dataclass(frozen=True)
class KernelEstimate:
    """``ridge`` relative to the mean of the kernel's diagonal; seconds of processor time."""

    evaluation: EvaluationReport
    num_train: int
    ridge: float
    cpu_seconds: float


def estimate(
    images: torch.Tensor,
    labels: torch.Tensor,
    test: ImageSet,
    *,
    kernel: str = "fully-connected",
    absolute_input: bool = False,
    encoder: Encoder | None = None,
    num_views: int = 10,
) -> KernelEstimate:
    """Fit on ``images`` (N, C, H, W) in [-1, 1] with soft ``labels`` (N, K); measure on plain ``test``
    images.

    With an ``encoder`` the two modes that hide the query are measured, too.
    """
    start = time.process_time()
    model = KernelModel(images, labels, kernel_named(kernel), absolute_input=absolute_input)
    report = evaluate(model, test, encoder=encoder, num_views=num_views)
    return KernelEstimate(report, len(images), model.ridge, time.process_time() - start)


def plain_rows(images: ImageSet, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``most`` images as a network gets them, with one-hot labels."""
    assert images.labels is not None
    labels = torch.from_numpy(images.labels[:most])
    one_hot = nn.functional.one_hot(labels, images.num_classes).float()
    return to_unit_range(images.images[:most]), one_hot
