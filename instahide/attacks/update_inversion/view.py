"""What the server of a federation sees of one site in one round, and what it knows beside.

Axes: n images behind the update, B images a step, S local steps, K classes, C H W, D weights.

The server sent the weights w₀ and gets back either a gradient g(w₀) or new weights w_S, from which it
computes the update w_S − w₀. It wrote the training plan itself, so it knows the architecture, the
optimiser, the learning rate, the batch size and the number of epochs. It knows n, because a weighted mean
needs it. It does not know the images, their labels (unless a flag says so), nor their order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from ...errors import InvalidInputError
from ...images import ImageSet

KINDS = ("gradient", "update")
Tensors = dict[str, torch.Tensor]
BatchStatistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""BatchNorm module name → (mean, biased variance) of its input over the batch."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """How a site turned w₀ into what the server got; the server's own plan.

    Args:
        num_images: n.
        batch_size: B; a last single image joins the batch before it.
        epochs: passes over the n images. A gradient is one step on all of them.
        learning_rate, momentum, weight_decay: of SGD.
        proximal_mu: FedProx's pull to w₀.
        max_gradient_norm: a longer batch gradient is shortened to this before the step; ``None``: no limit.
        optimizer: ``"sgd"``, or ``"adamw"``, which only the averaged-gradient view can take.
    """

    num_images: int
    batch_size: int = 0
    epochs: int = 1
    learning_rate: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    max_gradient_norm: float | None = None
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        if self.batch_size == 0:
            object.__setattr__(self, "batch_size", self.num_images)
        for name in ("num_images", "batch_size", "epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{name} is {value!r}", hint=f"{name} is a whole number from 1")
        if self.optimizer not in ("sgd", "adamw"):
            raise InvalidInputError(f"optimizer is {self.optimizer!r}", hint="use sgd or adamw")
        if not (self.learning_rate > 0 and 0 <= self.momentum < 1):
            raise InvalidInputError(
                f"learning_rate {self.learning_rate} and momentum {self.momentum} are no SGD",
                hint="a learning rate above 0, a momentum in [0, 1)",
            )

    def batches(self) -> list[tuple[int, int]]:
        """(first, last) of each step of one epoch, as the toolkit's training loop cuts them."""
        n, size = self.num_images, self.batch_size
        starts = list(range(0, n, size))
        if len(starts) > 1 and n - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], n], strict=True))

    @property
    def num_steps(self) -> int:
        """S."""
        return self.epochs * len(self.batches())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LocalTraining:
        """The settings that ``to_dict`` wrote; unknown names are refused."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown or "num_images" not in values:
            raise InvalidInputError(
                f"unknown training setting {unknown[0]!r}" if unknown else "num_images is missing",
                hint=f"known are {', '.join(field.name for field in fields(cls))}",
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What the site did to the update before it left. The attacker knows it: attacks are adaptive.

    Args:
        prune: share p of every tensor set to zero, the smallest values first (Aji & Heafield 2017).
        clip: L2 bound C of the whole update.
        noise_multiplier: Gaussian noise of standard deviation this times C on every value.
        num_sites: secure aggregation: the server sees only the mean over this many sites of equal size,
            which is an update of ``num_sites`` times as many images.
    """

    prune: float = 0.0
    clip: float | None = None
    noise_multiplier: float = 0.0
    num_sites: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.prune < 1:
            raise InvalidInputError(f"prune is {self.prune}", hint="the share set to zero, in [0, 1)")
        if self.clip is not None and not self.clip > 0:
            raise InvalidInputError(f"clip is {self.clip}", hint="a bound above 0, or none")
        if self.noise_multiplier < 0 or (self.noise_multiplier > 0 and self.clip is None):
            raise InvalidInputError(
                f"noise_multiplier {self.noise_multiplier} with clip {self.clip}",
                hint="noise is measured in units of the clipping bound: give both",
            )
        if self.num_sites < 1:
            raise InvalidInputError(f"num_sites is {self.num_sites}", hint="1 is no aggregation")

    @property
    def noise(self) -> float:
        """Standard deviation of the noise on one value."""
        return self.noise_multiplier * (self.clip or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class UpdateView:
    """All an inversion attack may look at; there is no field for the images.

    Args:
        model: the architecture with the weights w₀ as sent to the site; copied.
        observed: parameter name → gradient, or weights after minus weights before, as received.
        kind: ``"gradient"`` or ``"update"``.
        training: the plan; ``num_images`` counts all images behind ``observed``, over all sites.
        image_shape: (C, H, W).
        num_classes: K.
        labels: (n, K) soft labels if the attacker is given them, else ``None``.
        batch_statistics: what the site's batch normalisation layers saw, if the attacker is given it.
        defence: what was done to the update.
        sign_masked: whether the inputs were encodings, whose signs are random.
        public_images: images of the same kind as the private ones, for baselines and rehearsals.

    Raises:
        InvalidInputError: names or shapes that are not the model's, values that are not numbers.
    """

    model: nn.Module
    observed: Tensors
    kind: str
    training: LocalTraining
    image_shape: tuple[int, int, int]
    num_classes: int
    labels: torch.Tensor | None = None
    batch_statistics: BatchStatistics | None = None
    defence: Defence = Defence()
    sign_masked: bool = False
    public_images: ImageSet | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInputError(f"kind is {self.kind!r}", hint="gradient or update")
        model = copy.deepcopy(self.model).cpu()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "observed", _checked(self.observed, model))
        if self.labels is not None and tuple(self.labels.shape) != (self.num_images, self.num_classes):
            raise InvalidInputError(
                f"labels have shape {tuple(self.labels.shape)}, not {(self.num_images, self.num_classes)}",
                hint="one row of K weights for each image",
            )
        if self.num_images % self.defence.num_sites:
            raise InvalidInputError(
                f"{self.num_images} images are not a multiple of {self.defence.num_sites} sites",
                hint="secure aggregation is modelled with sites of equal size",
            )
        if self.public_images is not None and self.public_images.image_shape != self.image_shape:
            raise InvalidInputError(
                f"public images are {self.public_images.image_shape}, the model takes {self.image_shape}",
                hint="resize the public images",
            )

    @property
    def num_images(self) -> int:
        """n, over all sites."""
        return self.training.num_images

    @property
    def site_plan(self) -> LocalTraining:
        """The plan of one site: its share of the n images."""
        sites = self.defence.num_sites
        if sites == 1:
            return self.training
        share = self.num_images // sites
        return replace(self.training, num_images=share, batch_size=min(share, self.training.batch_size))


def _checked(observed: Mapping[str, torch.Tensor], model: nn.Module) -> Tensors:
    """``observed`` in the model's order, float32 on the CPU."""
    expected = dict(model.named_parameters())
    wrong = sorted(set(expected) ^ set(observed))
    if wrong:
        raise InvalidInputError(
            f"the update and the model differ in {len(wrong)} tensors, first {wrong[0]!r}",
            hint="name the model and the image shape the update was computed with",
        )
    for name, parameter in expected.items():
        value = observed[name]
        if value.shape != parameter.shape:
            raise InvalidInputError(
                f"{name} has shape {tuple(value.shape)}, the model's is {tuple(parameter.shape)}",
                hint="check the model, the image shape and the number of classes",
            )
        if not torch.isfinite(value).all():
            raise InvalidInputError(f"{name} is not finite", hint="the site's training diverged")
    return {name: observed[name].detach().cpu().to(torch.float32) for name in expected}
