"""The sign mask undone: a mixture from its magnitude alone, up to one sign for the whole image.

Axes: N encodings, C channels, H rows, W columns.

An encoding e = σ∘z shows |z| of the mixture z = Σ_j λ_j x_j. Value by value the sign is lost; as an
image it is not. Mixtures of natural images are smooth and their channels agree, so z changes sign
only along curves where |z| has a kink down to zero, and the curves can be read off |z|. What remains is
one sign per encoding (z and −z have the same magnitude).

:class:`SignNetwork` is a small convolutional network (U-Net: three scales) which the attacker trains on
mixtures of *public* images of the same kind (:mod:`.simulated_mixtures`). Its inputs are

* |z| / r with r the root mean square of |z|,
* a guide g / r: what is known of z by now, e.g. λ_0·x̂_a + λ_1·x̂_b plus identified public sources;
* the guide's error, sd(z − g) / r, as a constant plane.

Without a guide the one free sign is fixed by convention: z is taken to be positive around the
largest local mean of |z| (:func:`anchor`), and the guide is |z| there and 0 elsewhere. The output is
a logit per value; posterior mean E[z | ...] = |z|·tanh(logit / 2), confidence |tanh(logit / 2)|. Loss: the
logistic loss weighted by |z|. The network sees no private image; its training data and seed are
the attacker's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ...images import ImageSet
from ...mixing import to_unit_range
from .simulated_mixtures import MixtureSimulator

DEFAULT_TRAINING_SECONDS = 120.0
BATCH = 64
FORWARD_BATCH = 128
LEARNING_RATE = 2e-3
ANCHOR_WINDOW = 5
NO_GUIDE_ERROR = 1.0
UNGUIDED_SHARE = 0.4
WIDTHS = (48, 80, 128)
SCALE = 8  # sides are padded to a multiple of this


@dataclass(frozen=True, eq=False)
class SignedMixtures:
    """Posterior means of N mixtures.

    Args:
        mean: (N, C, H, W) E[z | |z|, guide]; without a guide up to one sign per row.
        confidence: (N,) Σ|mean| / Σ|z|, in [0, 1]: the share of the magnitude whose sign is settled.
    """

    mean: torch.Tensor
    confidence: torch.Tensor


class SignNetwork(nn.Module):
    """Sign logits of every value from magnitudes, guide and the guide's error; see the module text."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        a, b, c = WIDTHS
        self.channels = channels
        self.enter = _conv((2 * channels + 1) * 4, a)
        self.fine_in, self.fine_out = _Residual(a, 1), _Residual(a, 2)
        self.to_middle, self.middle_in, self.middle_out = (
            nn.Conv2d(a, b, 2, 2),
            _Residual(b, 2),
            _Residual(b, 2),
        )
        self.to_coarse, self.coarse = nn.Conv2d(b, c, 2, 2), _Residual(c, 3)
        self.from_coarse, self.from_middle = nn.ConvTranspose2d(c, b, 2, 2), nn.ConvTranspose2d(b, a, 2, 2)
        self.leave = _conv(a, channels * 4)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """(N, 2C + 1, H, W) → (N, C, H, W); H and W multiples of 8."""
        fine = self.fine_in(torch.relu(self.enter(functional.pixel_unshuffle(planes, 2))))
        middle = self.middle_in(torch.relu(self.to_middle(fine)))
        coarse = self.coarse(torch.relu(self.to_coarse(middle)))
        middle = self.middle_out(middle + torch.relu(self.from_coarse(coarse)))
        fine = self.fine_out(fine + torch.relu(self.from_middle(middle)))
        logits: torch.Tensor = functional.pixel_shuffle(self.leave(fine), 2)
        return logits


class _Residual(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_conv(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return x


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def sign_recovery(
    magnitudes: torch.Tensor,
    network: SignNetwork,
    *,
    guide: torch.Tensor | None = None,
    guide_error: torch.Tensor | float = 0.0,
) -> SignedMixtures:
    """Posterior mean of mixtures from their magnitudes.

    Args:
        magnitudes: (N, C, H, W) |e|; signs are ignored.
        network: trained by :func:`train_sign_network` on mixtures of the same law.
        guide: (N, C, H, W) what is known of z; ``None``: nothing, then each row has a free sign.
        guide_error: standard deviation of z − guide, one number or (N,); unused without a guide.
    """
    if magnitudes.ndim != 4 or magnitudes.shape[1] != network.channels:
        raise InvalidInputError(
            f"magnitudes have shape {tuple(magnitudes.shape)}; the network takes {network.channels} channels",
            hint="give (N, C, H, W) with the channels the network was trained on",
        )
    means, confidences = [], []
    error = torch.as_tensor(guide_error, dtype=torch.float32).expand(len(magnitudes))
    with torch.inference_mode():
        for first in range(0, len(magnitudes), FORWARD_BATCH):
            rows = slice(first, first + FORWARD_BATCH)
            size = magnitudes[rows].abs()
            planes = (
                _planes(size, size * anchor(size), None)
                if guide is None
                else _planes(size, guide[rows], error[rows])
            )
            signs = torch.tanh(_logits(network, planes) / 2)
            means.append(size * signs)
            total = size.flatten(1).sum(1).clamp(min=1e-12)
            confidences.append(means[-1].abs().flatten(1).sum(1) / total)
    return SignedMixtures(torch.cat(means), torch.cat(confidences))


def anchor(magnitudes: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) 1 on the 5×5 window whose mean magnitude is largest, else 0: there z > 0 by convention."""
    smooth = functional.avg_pool2d(
        magnitudes.mean(1, keepdim=True), ANCHOR_WINDOW, 1, ANCHOR_WINDOW // 2, count_include_pad=True
    )
    peak = torch.zeros_like(smooth).flatten(1)
    peak.scatter_(1, smooth.flatten(1).argmax(1, keepdim=True), 1.0)
    return functional.max_pool2d(peak.view_as(smooth), ANCHOR_WINDOW, 1, ANCHOR_WINDOW // 2)


def train_sign_network(
    public_images: ImageSet,
    config: EncoderConfig,
    *,
    scheme: str = "cross",
    public_pool: ImageSet | None = None,
    cpu_seconds: float = DEFAULT_TRAINING_SECONDS,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> SignNetwork:
    """Train on mixtures of public images for ``cpu_seconds`` of processor time.

    Args:
        public_images: images like the private ones (some hundred at least; thousands are better).
        config: the published law; mixtures are made under it.
        scheme: ``"inside"`` or ``"cross"``.
        public_pool: the pool of the public slots, if it is known and of another kind.
        seed: of the attacker's own mixtures and of the network's start.
    """
    images = to_unit_range(public_images.images)
    pool = None if public_pool is None else to_unit_range(public_pool.images)
    simulator = MixtureSimulator(images, config, scheme, seed=seed, pool=pool)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = SignNetwork(images.shape[1])
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.train()
        optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        started, step = time.process_time(), 0
        while (spent := time.process_time() - started) < cpu_seconds:
            cosine = 0.5 * (1 + math.cos(math.pi * spent / cpu_seconds)) + 0.01
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * cosine
            loss = _loss(network, simulator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if progress is not None and step % 10 == 0:
                progress(int(spent), int(cpu_seconds), f"sign network: loss {loss.item():.3f}")
    network.eval()
    return network


def _loss(network: SignNetwork, simulator: MixtureSimulator) -> torch.Tensor:
    with torch.no_grad():
        sources, coefficients = simulator.draw(BATCH)
        parts = coefficients[:, :, None, None, None] * sources
        mixtures = parts.sum(1)
        size = simulator.rounded(mixtures).abs()
        unguided = torch.rand(BATCH) < UNGUIDED_SHARE
        window = anchor(size)
        turn = (mixtures * window).flatten(1).sum(1).sign()
        guide, error = _simulated_guides(parts, coefficients, sources)
        mixtures = torch.where(unguided[:, None, None, None], mixtures * turn[:, None, None, None], mixtures)
        guide = torch.where(unguided[:, None, None, None], size * window, guide)
        planes = _planes(size, guide, error)
        planes[unguided, -1] = NO_GUIDE_ERROR
    losses = functional.softplus(-_logits(network, planes) * mixtures.sign())
    return (losses * (size / size.mean())).mean()


def _simulated_guides(
    parts: torch.Tensor, coefficients: torch.Tensor, sources: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guides as a decoder has them: a random subset of the sources, plus an error that looks like images."""
    batch, k = coefficients.shape
    known = (torch.rand(batch, k) < torch.rand(batch, 1)).float()
    mean = sources.mean(dim=(0, 1), keepdim=False)
    sd = (sources - mean).square().mean().sqrt()
    guide = (parts * known[:, :, None, None, None]).sum(1)
    unknown = (coefficients * (1 - known)).sum(1)
    guide = guide + unknown[:, None, None, None] * mean
    level = 0.5 * torch.rand(batch) ** 2 * torch.linalg.vector_norm(coefficients, dim=1)
    weights = torch.randn(batch, 2)
    weights = weights / torch.linalg.vector_norm(weights, dim=1, keepdim=True)
    wrong = sources[torch.randperm(batch)][:, :2] - mean
    guide = guide + level[:, None, None, None] * (weights[:, :, None, None, None] * wrong).sum(1)
    variance = (coefficients.square() * (1 - known)).sum(1) + level.square()
    return guide, sd * variance.sqrt()


def _planes(size: torch.Tensor, guide: torch.Tensor, error: torch.Tensor | None) -> torch.Tensor:
    scale = size.flatten(1).square().mean(1).sqrt().clamp(min=1e-6)[:, None, None, None]
    plane = torch.full_like(size[:, :1], NO_GUIDE_ERROR)
    if error is not None:
        plane = plane * error[:, None, None, None] / scale
    return torch.cat([size / scale, guide / scale, plane], dim=1)


def _logits(network: SignNetwork, planes: torch.Tensor) -> torch.Tensor:
    """Network on padded planes, in bfloat16 where that is exact enough and faster."""
    H, W = planes.shape[2:]
    below, right = -H % SCALE, -W % SCALE
    padded = functional.pad(planes, (0, right, 0, below)) if below or right else planes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits: torch.Tensor = network(padded.contiguous(memory_format=torch.channels_last))
    return logits[:, :, :H, :W].float()
