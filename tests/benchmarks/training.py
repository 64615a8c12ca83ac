"""What training costs beside the arithmetic, and what taking |x| first is worth.

    python tests/benchmarks/training.py overhead      # one step of our loop against a bare one
    python tests/benchmarks/training.py absolute      # encodings learnt signed and unsigned
                                                      # (DATA.npz of images as a second argument)

``overhead`` interleaves both loops, several rounds, and prints medians: the machine's other work
falls on both alike. ``absolute`` trains the same network, weights and order of images twice.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from instahide.encoder import Encoder, FewPixelsWarning
from instahide.encoder_config import EncoderConfig
from instahide.evaluation import evaluate
from instahide.images import ImageSet
from instahide.mixing import to_unit_range
from instahide.models import build_model
from instahide.readers import load_images
from instahide.training import train
from instahide.training_config import TrainingConfig


def digits() -> tuple[ImageSet, ImageSet]:
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = (data.images * 15.9375).astype(np.uint8)
    return ImageSet(pixels[:1400], data.target[:1400]), ImageSet(pixels[1400:], data.target[1400:])


def bare_loop(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> None:
    """The least a step can be: slices in order, forward, backward, fused SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def overhead(rounds: int = 7) -> None:
    torch.set_num_threads(1)
    data, _ = digits()
    assert data.labels is not None
    images, labels = to_unit_range(data.images), torch.from_numpy(data.labels)
    config = TrainingConfig(epochs=1, num_threads=1, device="cpu", lr_schedule="constant", learning_rate=0.01)
    steps = -(-len(data) // config.batch_size)
    for name in ("mlp", "small-cnn"):
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            for kind, seconds in times.items():
                model = build_model(name, image_shape=data.image_shape, num_classes=10)
                started = time.process_time()
                if kind == "bare":
                    bare_loop(model, images, labels, config.batch_size)
                else:
                    train(model, data, config)
                seconds.append((time.process_time() - started) / steps * 1e3)
        bare, ours = statistics.median(times["bare"]), statistics.median(times["ours"])
        print(f"{name:<10} bare {bare:6.2f} ms a step, ours {ours:6.2f} ms: {ours - bare:+.2f} ms CPU")


def absolute(path: str | None, *, epochs: int = 10, limit: int = 5000) -> None:
    warnings.simplefilter("ignore", FewPixelsWarning)
    if path is None:
        images, test = digits()
    else:
        images, test = load_images(path), load_images(path, split="test")
        images = images.subset(np.arange(min(limit, len(images))))
    encoder = Encoder(EncoderConfig(), private=images)
    for flag in (False, True):
        model = build_model(
            "small-cnn", image_shape=images.image_shape, num_classes=images.num_classes, absolute_input=flag
        )
        config = TrainingConfig(epochs=epochs, deterministic=True, num_threads=1, device="cpu")
        loss = train(model, encoder.encode_epoch, config).history[-1].loss
        shown = evaluate(model, test, encoder=encoder).modes
        figures = ", ".join(f"{name} {mode.accuracy:.3f}" for name, mode in shown.items() if mode)
        print(f"{'|x| first' if flag else 'signed':<10} training loss {loss:.3f}; {figures}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["absolute"]:
        absolute(*sys.argv[2:3] or [None])
    else:
        overhead()
