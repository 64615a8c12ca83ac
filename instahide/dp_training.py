"""DP-SGD: training whose weights are differentially private of every training image.

Axes: N images, B sampled images of a step, D weights of the model.

Abadi et al., CCS 2016, algorithm 1. In each step every image is sampled on its own with probability
q ``sample_rate``; with g_i the gradient of image i alone, the step uses

    ĝ = (Σ_{i sampled} g_i·min(1, C' / ‖g_i‖) + N(0, (z·C)²·I)) / (q·N)                            (1)

C ``max_grad_norm``, z ``noise_multiplier``. Per-example gradients come from Opacus (``GradSampleModule``),
which is needed for nothing else here. Momentum, weight decay and the learning rate come after (1) and
cost nothing; so does the scale of the weights under ``exponential-equivalent``, which is a function of the
schedule alone: gradients enter (1) as those of the run with weight decay.

**Guarantee**: (ε, δ) of one image under add-or-remove-one, from the privacy loss distribution of the
Poisson-sampled Gaussian over all steps (``dp-accounting``); :func:`epsilon_by_method` gives the RDP and PRV
figures beside it. It holds for whoever sees every intermediate weight. Several images of one person need
a guarantee of their own. N is used in (1) and for q, and is taken as public.

**Noise.** Opacus' ``secure_mode`` needs ``torchcsprng``, which cannot be installed on a current Python, so
neither its generator nor torch's is used: noise and sampling come from the operating system's entropy
through ChaCha20 (:mod:`instahide.randomness`), in whole numbers on a grid
(:mod:`instahide.integer_noise`). C' is C less what rounding to that grid can add, h·√D with
h = z·C / 2^14, so the sensitivity of (1) is C exactly. Sums are in float64.

**Not covered.** Gradients are computed in float32 for a whole batch at a time, and one image more or
less may change the last bits of another's gradient (relative 1e-7); the proof does not see that.
Losses and accuracies on training images are not private and so not recorded. The choice of
hyper-parameters by looking at several runs is not counted. BatchNorm mixes images and is refused.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .augmentation import augment_batch
from .errors import InvalidInputError
from .images import ImageSet
from .integer_noise import MOST_EPSILON, add_noise, grid_step, ideal_delta
from .mixing import to_unit_range
from .models import ImageClassifier
from .privacy_curves import bisect, check_delta, require, sampled_gaussian_epsilon
from .randomness import Randomness
from .training import descent_for
from .training_config import TrainingConfig
from .training_data import check_fit, tensors_of
from .training_device import resolve_device, run_settings
from .training_loop import soft_cross_entropy

_GRADIENT_VALUES = 1 << 25
"""Per-example gradients held at once, all together: 128 MB."""
_CLIP_MARGIN = 1e-9
"""Relative; covers float64 rounding of norms and sums."""


class GradientObserver(Protocol):
    """Somebody who adds gradients to the sampled ones and sees what a step releases: an audit."""

    def extra_gradients(self) -> torch.Tensor | None:
        """(b, D) further per-example gradients of this step, before clipping."""

    def see(self, noisy_sum: torch.Tensor) -> None:
        """(D,) float64: the noisy sum of this step, before the division by q·N."""


@dataclass(frozen=True, kw_only=True)
class PrivateTrainingResult:
    """What a private run did and guarantees; the weights are in the model it was given.

    Args:
        epsilon, delta: of one image, add-or-remove-one, for the steps that were taken.
        expected_batch_size: q·N. How many were really sampled is not told.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    num_steps: int
    expected_batch_size: float
    seconds: float
    interrupted: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is ``None``."""
        return {**asdict(self), "epsilon": self.epsilon if math.isfinite(self.epsilon) else None}


def train_with_dp(
    model: nn.Module,
    data: ImageSet,
    config: TrainingConfig,
    *,
    target_delta: float,
    target_epsilon: float | None = None,
    noise_multiplier: float | None = None,
    max_grad_norm: float = 1.0,
    sample_rate: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    learning_rates: Callable[[int], float] | None = None,
    observer: GradientObserver | None = None,
) -> PrivateTrainingResult:
    """Train ``model`` in place with DP-SGD; it ends on the training device, in evaluation mode.

    Args:
        data: labelled images. Encodings are refused: one private image is in several of them.
        config: as for :func:`instahide.training.train`. ``epochs`` are counted in expected images;
            ``max_gradient_norm``, ``deterministic`` and ``amp`` have no say, FedProx is refused.
        target_epsilon: find the noise that keeps this; or give ``noise_multiplier``.
        sample_rate: q; by default ``batch_size`` / N.
        on_step: called with (steps taken, steps in all).
        should_stop: asked before each step; the guarantee is then that of the steps taken.

    Raises:
        InvalidInputError: data, model or settings that allow no guarantee; Opacus or dp-accounting missing.
    """
    started = time.perf_counter()
    q = sample_rate if sample_rate is not None else min(1.0, config.batch_size / max(1, len(data)))
    num_steps = _check(model, data, config, q, target_delta, target_epsilon, noise_multiplier, max_grad_norm)
    D = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if noise_multiplier is None:
        assert target_epsilon is not None
        noise_multiplier = noise_multiplier_for(target_epsilon, target_delta, q, num_steps, num_weights=D)
    device = resolve_device(config.device)
    run = _PrivateRun(
        model,
        data,
        config,
        q,
        PrivateSum(D, max_grad_norm, noise_multiplier),
        device,
        observer,
        learning_rates,
    )
    with run_settings(model, config, device):
        taken, interrupted = run.steps(num_steps, on_step, should_stop)
    return PrivateTrainingResult(
        epsilon=training_epsilon(noise_multiplier, q, taken, target_delta, num_weights=D),
        delta=target_delta,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        sample_rate=q,
        num_steps=taken,
        expected_batch_size=q * len(data),
        seconds=time.perf_counter() - started,
        interrupted=interrupted,
    )


def training_epsilon(
    noise_multiplier: float, sample_rate: float, num_steps: int, target_delta: float, *, num_weights: int
) -> float:
    """The ε claimed for a run, the noise sampler's own error included; infinite beyond 30."""
    if num_steps == 0:
        return 0.0
    delta, extra = ideal_delta(num_steps * num_weights, target_delta)
    epsilon = sampled_gaussian_epsilon(noise_multiplier, sample_rate, num_steps, delta) + extra
    return epsilon if epsilon <= MOST_EPSILON else math.inf


def epsilon_by_method(
    noise_multiplier: float, sample_rate: float, num_steps: int, target_delta: float
) -> dict[str, float]:
    """ε of the ideal mechanism by dp-accounting's PLD and RDP and by Opacus' PRV accountant, side by side."""
    return {
        method: sampled_gaussian_epsilon(
            noise_multiplier, sample_rate, num_steps, target_delta, method=method
        )
        for method in ("pld", "rdp", "prv")
    }


def noise_multiplier_for(
    target_epsilon: float, target_delta: float, sample_rate: float, num_steps: int, *, num_weights: int
) -> float:
    """The smallest noise multiplier (to half a per cent) that keeps ``target_epsilon``."""
    if not 0 < target_epsilon <= MOST_EPSILON:
        raise InvalidInputError(f"target_epsilon is {target_epsilon}", hint="1 to 10 is usual")

    def by_moments(multiplier: float) -> bool:
        return target_epsilon >= sampled_gaussian_epsilon(
            multiplier, sample_rate, num_steps, target_delta, method="rdp"
        )

    # The moments accountant is quick and asks for some more noise than needed: search a little below it.
    enough = bisect(by_moments, relative=1e-3)
    share = bisect(
        lambda share: (
            training_epsilon(enough * share, sample_rate, num_steps, target_delta, num_weights=num_weights)
            <= target_epsilon
        ),
        relative=5e-3,
        low=0.7,
    )
    return enough * share


class PrivateSum:
    """Equation (1) without the division: shortens gradients, adds them up, and lets only a noisy sum out."""

    def __init__(self, num_weights: int, max_grad_norm: float, noise_multiplier: float) -> None:
        self._sd = noise_multiplier * max_grad_norm
        # Rounding the sum to the noise's grid may move it by one step in each of D values.
        rounding = grid_step("gaussian", self._sd) * math.sqrt(num_weights)
        self.clip_norm = (max_grad_norm - rounding) * (1 - _CLIP_MARGIN)
        if self.clip_norm <= 0:
            raise InvalidInputError(
                f"{num_weights:,} weights are too many for a noise multiplier of {noise_multiplier:g}: "
                "rounding to the noise's grid alone would use up the clipping norm",
                hint="use a smaller model or a smaller noise multiplier",
            )
        self._randomness = Randomness()
        self._stream = self._randomness.stream("noise")
        self._sum = torch.zeros(num_weights, dtype=torch.float64)

    def add(self, gradients: list[torch.Tensor]) -> None:
        """Per-example gradients of each parameter, (B, …) each; an example that is not finite counts as 0."""
        flat = [gradient.detach().flatten(1) for gradient in gradients]
        norms = torch.stack([torch.linalg.vector_norm(p, dim=1, dtype=torch.float64) for p in flat]).norm(
            dim=0
        )
        factors = (self.clip_norm / norms).clamp(max=1.0)
        finite = norms.isfinite()
        place = 0
        for part in flat:
            kept = part[finite].double()
            total = (factors[finite] @ kept).cpu()
            self._sum[place : place + part.shape[1]] += total
            place += part.shape[1]

    def release(self) -> torch.Tensor:
        """(D,) float64 noisy sum; the sum starts anew."""
        noisy = add_noise(self._stream, self._sum.numpy(), "gaussian", self._sd)
        self._sum.zero_()
        return torch.from_numpy(noisy)


class _PrivateRun:
    def __init__(
        self,
        model: nn.Module,
        data: ImageSet,
        config: TrainingConfig,
        sample_rate: float,
        private_sum: PrivateSum,
        device: torch.device,
        observer: GradientObserver | None,
        learning_rates: Callable[[int], float] | None,
    ) -> None:
        self.model, self.config, self.device, self.observer = model.to(device), config, device, observer
        images, labels = tensors_of(data)
        if isinstance(model, ImageClassifier):
            check_fit(images, labels, model.spec.image_shape, model.spec.num_classes)
        self.images, self.labels = images.to(device), labels.to(device)
        self.sample_rate, self.private_sum = sample_rate, private_sum
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.descent = descent_for(model, self.parameters, config, learning_rates)
        randomness = Randomness()
        self.sampling, self.augmenting = randomness.stream("sampling"), randomness.stream("sampling")
        D = sum(parameter.numel() for parameter in self.parameters)
        self.chunk = max(1, _GRADIENT_VALUES // D)

    def steps(
        self,
        num_steps: int,
        on_step: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> tuple[int, bool]:
        """Take up to ``num_steps``; how many were taken, and whether somebody stopped it."""
        wrapper = _per_example(self.model)
        per_epoch = math.ceil(num_steps / self.config.epochs)
        self.model.train()
        try:
            for step in range(num_steps):
                if should_stop is not None and should_stop():
                    return step, True
                self.descent.begin_step(step, per_epoch)
                self._take_step(wrapper)
                if on_step is not None:
                    on_step(step + 1, num_steps)
            return num_steps, False
        finally:
            self.descent.end(interrupted=False)
            wrapper.remove_hooks()
            for parameter in self.parameters:
                parameter.grad = None
                for name in ("grad_sample", "summed_grad"):
                    if hasattr(parameter, name):
                        delattr(parameter, name)
            self.model.eval()

    def _take_step(self, wrapper: nn.Module) -> None:
        sampled = np.flatnonzero(self.sampling.uniforms(len(self.images)) < self.sample_rate)
        for first in range(0, len(sampled), self.chunk):
            self._add_gradients(wrapper, torch.from_numpy(sampled[first : first + self.chunk]))
        extra = self.observer.extra_gradients() if self.observer is not None else None
        if extra is not None and len(extra):
            self.private_sum.add([extra])
        noisy = self.private_sum.release()
        if self.observer is not None:
            self.observer.see(noisy)
        self._update(noisy / (self.sample_rate * len(self.images)))

    def _add_gradients(self, wrapper: nn.Module, chosen: torch.Tensor) -> None:
        images, labels = self.images[chosen.to(self.device)], self.labels[chosen.to(self.device)]
        images = to_unit_range(images)
        if self.config.augment:
            generator = torch.Generator().manual_seed(int(self.augmenting.words(1)[0] >> np.uint64(1)))
            images = augment_batch(images, generator=generator)
        for parameter in self.parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
        scores = _scores(wrapper, images)
        mean = soft_cross_entropy(scores, labels, label_smoothing=self.config.label_smoothing)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook")  # inputs need no gradient
            (mean * len(images)).backward()  # type: ignore[no-untyped-call]
        # Clipped and noised as gradients of the run with weight decay, whatever scale the weights have now.
        scales = self.descent.gradient_scales()
        samples = [parameter.grad_sample for parameter in self.parameters]  # type: ignore[attr-defined]
        self.private_sum.add(
            [sample if s == 1 else sample * s for sample, s in zip(samples, scales, strict=True)]
        )

    def _update(self, gradient: torch.Tensor) -> None:
        place = 0
        for parameter, scale in zip(self.parameters, self.descent.gradient_scales(), strict=True):
            part = gradient[place : place + parameter.numel()].view(parameter.shape) / scale
            parameter.grad = part.to(dtype=parameter.dtype, device=parameter.device)
            place += parameter.numel()
        self.descent.step()


def _scores(wrapper: nn.Module, images: torch.Tensor) -> torch.Tensor:
    try:
        return torch.as_tensor(wrapper(images)).float()
    except RuntimeError as error:
        if "modified inplace" not in str(error):
            raise
        raise InvalidInputError(
            "the model changes values in place, so no image's own gradient can be taken (resnet18 does)",
            hint="use small-cnn, mlp or resnet32",
        ) from error


def _per_example(model: nn.Module) -> Any:
    """The model with Opacus' hooks, which leave each image's own gradient in ``grad_sample``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of opacus' own imports
        return require("opacus").GradSampleModule(model, loss_reduction="sum")


def _check(
    model: nn.Module,
    data: ImageSet,
    config: TrainingConfig,
    sample_rate: float,
    target_delta: float,
    target_epsilon: float | None,
    noise_multiplier: float | None,
    max_grad_norm: float,
) -> int:
    """Refuse what allows no guarantee; the number of steps otherwise."""
    if not isinstance(data, ImageSet):
        raise InvalidInputError(
            "private training needs plain labelled images: one private image is in several encodings",
            hint='encode with mode "dp" instead; what is trained on those encodings keeps their guarantee',
        )
    check_delta(target_delta)
    if (target_epsilon is None) == (noise_multiplier is None):
        raise InvalidInputError("give target_epsilon or noise_multiplier", hint="one of the two")
    for name, value in (("noise_multiplier", noise_multiplier), ("max_grad_norm", max_grad_norm)):
        if value is not None and not 0 < value < math.inf:
            raise InvalidInputError(f"{name} is {value}", hint="use a number above 0")
    if not 0 < sample_rate <= 1:
        raise InvalidInputError(f"sample_rate is {sample_rate}", hint="use a share in (0, 1]")
    if config.proximal_mu:
        raise InvalidInputError("private training has no FedProx term", hint="set proximal_mu to 0")
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise InvalidInputError(
            "BatchNorm mixes the images of a batch, so no image has a gradient of its own",
            hint='build the model with normalization="group"',
        )
    return math.ceil(config.epochs / sample_rate - 1e-9)
