"""Networks that updates are inverted on: the toolkit's own, and the smooth ones of the literature.

==============  =======================================================================================
name            what it is
==============  =======================================================================================
small-cnn, …    every name of :mod:`instahide.models`
dense-sigmoid   one hidden layer of 256 sigmoid units: the classical case for L-BFGS
lenet-sigmoid   three 5×5 convolutions of 12 channels, strides 2 2 1, sigmoid, then one linear layer:
                the network of Zhu et al. 2019, weights uniform in ±1/2 as in their experiments
batchnorm-cnn   two 3×3 convolutions of 16 and 32 channels, each with batch normalisation and ReLU
==============  =======================================================================================

L-BFGS needs second derivatives; those of a ReLU network vanish almost everywhere, which is why the
published experiments with it replaced ReLU by the sigmoid (Zhu et al. 2019, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ...errors import InvalidInputError
from ...models import MODEL_NAMES, build_model

HIDDEN = 256


def build_network(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    absolute_input: bool = False,
    normalization: str = "group",
    initialization_seed: int = 0,
) -> nn.Module:
    """The named network with public initial weights; raises InvalidInputError for an unknown name."""
    if name in MODEL_NAMES:
        return build_model(
            name,
            image_shape=image_shape,
            num_classes=num_classes,
            absolute_input=absolute_input,
            normalization=normalization,
            initialization_seed=initialization_seed,
        )
    if name not in _BUILDERS:
        raise InvalidInputError(f"no model {name!r}", hint=f"choose from {', '.join(NETWORK_NAMES)}")
    if absolute_input:
        raise InvalidInputError(f"{name} has no absolute_input", hint=f"choose from {', '.join(MODEL_NAMES)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(initialization_seed)
        return _BUILDERS[name](image_shape, num_classes)


def _dense_sigmoid(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    C, H, W = image_shape
    return nn.Sequential(
        nn.Flatten(), nn.Linear(C * H * W, HIDDEN), nn.Sigmoid(), nn.Linear(HIDDEN, num_classes)
    )


def _lenet_sigmoid(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    C, H, W = image_shape
    layers: list[nn.Module] = []
    channels = C
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(channels, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
        channels, H, W = 12, -(-H // stride), -(-W // stride)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * H * W, num_classes))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def _batchnorm_cnn(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    C, H, W = image_shape
    H, W = -(-H // 4), -(-W // 4)
    return nn.Sequential(
        nn.Conv2d(C, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * H * W, num_classes),
    )


_BUILDERS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "dense-sigmoid": _dense_sigmoid,
    "lenet-sigmoid": _lenet_sigmoid,
    "batchnorm-cnn": _batchnorm_cnn,
}
NETWORK_NAMES = (*MODEL_NAMES, *_BUILDERS)
