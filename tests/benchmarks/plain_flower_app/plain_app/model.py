"""The benchmark's model, data and step: what the site worker does, called the way a tutorial would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from instahide.images import ImageSet
from instahide.models import build_model
from instahide.training import train as train_model
from instahide.training_config import TrainingConfig


def build() -> nn.Module:
    return build_model("small-cnn", image_shape=(1, 8, 8), num_classes=10)


def train(model: nn.Module, data: Path) -> int:
    """One local epoch over the images in ``data``; how many there are."""
    with np.load(data) as arrays:
        images = ImageSet(arrays["x_train"], arrays["y_train"], tuple(map(str, range(10))))
    config = TrainingConfig(
        epochs=1, batch_size=32, learning_rate=0.05, lr_schedule="constant", device="cpu", num_threads=1
    )
    train_model(model, images, config)
    return len(images)
