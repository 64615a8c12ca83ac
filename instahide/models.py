"""Image classifiers small enough for a hospital's own machine.

Axes: N images, C channels, H rows, W columns, K classes.

==========  ============================================================================
name        what it is
==========  ============================================================================
small-cnn   3×3 convolutions, halved until at most 4×4 remain, then one linear layer
mlp         two hidden layers of 256
resnet18    torchvision's, with a 3×3 stride-1 stem and no pooling before the blocks
resnet32    the CIFAR network of He et al. 2016 (6n + 2 layers, n = 5, shortcuts without weights)
==========  ============================================================================

**Group or batch normalisation.** GroupNorm is the default: it has no running statistics, so an
update of it says nothing about a hospital's batch means, an average of hospitals with different
data is well defined, and single-image gradients exist. ``normalization="batch"`` is there to
compare with published figures.

**|x| first.** InstaHide multiplies every pixel by a random sign, so an encoding e carries exactly
what |e| carries: the sign mask's only effect is to remove the sign. ``absolute_input=True`` makes
|x| the network's first operation, which spares it from learning that. The same |x| is then taken
of a plain query at inference. Measured (small-cnn, k = 4 inside, 10 epochs of fresh encodings, one
run each; ``tests/benchmarks/training.py absolute``), accuracy signed → |x|: 5,000 Fashion images of
28×28: plain queries 0.57 → 0.81, one encoded view 0.50 → 0.59, ten views 0.76 → 0.82; 8×8 digits:
0.55 → 0.68, 0.49 → 0.52, 0.76 → 0.79.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from .errors import InvalidInputError

MODEL_NAMES = ("small-cnn", "mlp", "resnet18", "resnet32")
NORMALIZATIONS = ("group", "batch")


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build the same network again; travels with saved weights."""

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    absolute_input: bool = False
    normalization: str = "group"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(int(size) for size in self.image_shape))
        if self.name not in MODEL_NAMES:
            raise InvalidInputError(f"no model {self.name!r}", hint=f"choose from {', '.join(MODEL_NAMES)}")
        if self.normalization not in NORMALIZATIONS:
            raise InvalidInputError(
                f"no normalization {self.normalization!r}", hint=f"choose from {', '.join(NORMALIZATIONS)}"
            )
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise InvalidInputError(
                f"image_shape {self.image_shape} is not (C, H, W)", hint="use images.image_shape"
            )
        if self.num_classes < 2:
            raise InvalidInputError(
                f"{self.num_classes} classes: a classifier needs at least 2",
                hint="check that the data has labels of more than one class",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "image_shape": list(self.image_shape)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """The spec that ``to_dict`` wrote; raises InvalidInputError on missing or unknown keys."""
        try:
            return cls(**{**values, "image_shape": tuple(values["image_shape"])})
        except (TypeError, KeyError) as error:
            raise InvalidInputError(
                f"not a model description: {error}", hint="write it with to_dict"
            ) from error


class ImageClassifier(nn.Module):
    """A network and its ``spec``; takes |x| first when the spec says so. Maps (N, C, H, W) to (N, K)."""

    def __init__(self, spec: ModelSpec, body: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores before the softmax, (N, K)."""
        return cast(torch.Tensor, self.body(images.abs() if self.spec.absolute_input else images))


def build_model(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    absolute_input: bool = False,
    normalization: str = "group",
    initialization_seed: int = 0,
) -> ImageClassifier:
    """A freshly initialised network.

    The initial weights are public (every party of a federation starts from them), so a seed is
    fitting here: one seed gives the same weights everywhere. The global generator is left as it was.

    Raises:
        InvalidInputError: unknown name or normalization, impossible shape, fewer than 2 classes.
    """
    return build_from_spec(
        ModelSpec(name, image_shape, num_classes, absolute_input, normalization), initialization_seed
    )


def build_from_spec(spec: ModelSpec, initialization_seed: int = 0) -> ImageClassifier:
    """``build_model`` for a spec read from a file or a message."""
    builders = {"small-cnn": _small_cnn, "mlp": _mlp, "resnet18": _resnet18, "resnet32": _resnet32}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(initialization_seed)
        return ImageClassifier(spec, builders[spec.name](spec))


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in ``model``."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _norm(spec: ModelSpec) -> Callable[[int], nn.Module]:
    if spec.normalization == "batch":
        return nn.BatchNorm2d
    return lambda channels: nn.GroupNorm(min(8, channels), channels)


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _small_cnn(spec: ModelSpec) -> nn.Module:
    channels, height, width = spec.image_shape
    norm = _norm(spec)
    layers: list[nn.Module] = []
    outputs = 32
    for stage in range(16):
        stride = 2 if max(height, width) > (16 if stage == 0 else 4) else 1
        layers += [_conv3(channels, outputs, stride), norm(outputs), nn.ReLU()]
        height, width = -(-height // stride), -(-width // stride)
        channels, outputs = outputs, 64
        if stage > 0 and max(height, width) <= 4:
            break
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, spec.num_classes))


def _mlp(spec: ModelSpec) -> nn.Module:
    channels, height, width = spec.image_shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, spec.num_classes),
    )


def _resnet18(spec: ModelSpec) -> nn.Module:
    from torchvision.models import resnet18

    model = resnet18(num_classes=spec.num_classes, norm_layer=_norm(spec))
    model.conv1 = _conv3(spec.image_shape[0], 64)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return cast(nn.Module, model)


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions around a weightless shortcut (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.extra_channels = outputs - inputs
        self.conv1, self.norm1 = _conv3(inputs, outputs, self.stride), norm(outputs)
        self.conv2, self.norm2 = _conv3(outputs, outputs), norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if self.extra_channels:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra_channels))
        return functional.relu(inner + x)


class _GlobalMean(nn.Module):
    """(N, C, H, W) → (N, C); a plain mean, whose gradient is deterministic on every device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def _resnet32(spec: ModelSpec) -> nn.Module:
    norm = _norm(spec)
    widths = [16] * 5 + [32] * 5 + [64] * 5
    blocks = [_BasicBlock(before, after, norm) for before, after in zip([16, *widths], widths, strict=False)]
    stem = [_conv3(spec.image_shape[0], 16), norm(16), nn.ReLU()]
    model = nn.Sequential(*stem, *blocks, _GlobalMean(), nn.Linear(64, spec.num_classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
