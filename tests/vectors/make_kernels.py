"""Known answers for the kernels, by neural-tangents (an independent program): writes kernels.json beside
itself.

Runs in an environment of its own, since neural-tangents 0.6.5, its last release, needs jax 0.5.3 or older:

    uv venv nt && uv pip install --python nt neural-tangents==0.6.5 jax==0.5.3 && nt/bin/python
    make_kernels.py

The file holds kernels in our normalisation. A Dense layer there gives <x, z>/d + b², so inputs are scaled by
√d. A convolution with W_std² = 2 gives 2/(9 C) times the sum over window and channels, a ReLU halves it: 1/C
of ours. Flatten takes the mean over places where ours takes the sum.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

from neural_tangents import stax  # noqa: E402


def fully_connected(x, z, depth, bias):
    layers = [stax.Dense(1, W_std=1.0, b_std=bias or None)]
    for _ in range(depth - 1):
        layers += [stax.Relu(), stax.Dense(1, W_std=1.0, b_std=bias or None)]
    kernel = stax.serial(*layers)[2]
    size = x.shape[1]
    both = kernel(x * np.sqrt(size), z * np.sqrt(size), ("ntk", "nngp"))
    return {"ntk": np.asarray(both.ntk).tolist(), "nngp": np.asarray(both.nngp).tolist()}


def convolutional(x, z, num_relus, pooling):
    layers = []
    for _ in range(num_relus):
        layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=np.sqrt(2.0)), stax.Relu()]
    layers += [stax.Flatten() if pooling == "none" else stax.GlobalAvgPool(), stax.Dense(1, W_std=1.0)]
    kernel = stax.serial(*layers)[2]
    channels, height, width = x.shape[1:]
    both = kernel(x.transpose(0, 2, 3, 1), z.transpose(0, 2, 3, 1), ("ntk", "nngp"))
    ours = channels * (height * width if pooling == "none" else 1)
    return {"ntk": (ours * np.asarray(both.ntk)).tolist(), "nngp": (ours * np.asarray(both.nngp)).tolist()}


def main() -> None:
    generator = np.random.default_rng(20)
    x, z = generator.normal(size=(4, 5)), generator.normal(size=(3, 5))
    images, others = generator.normal(size=(3, 2, 4, 5)), generator.normal(size=(2, 2, 4, 5))
    answers = {
        "made by": "neural-tangents 0.6.5, jax 0.5.3, float64",
        "x": x.tolist(), "z": z.tolist(), "images": images.tolist(), "others": others.tolist(),
        "fully connected": [
            {"depth": depth, "bias": bias, **fully_connected(x, z, depth, bias)}
            for depth, bias in ((1, 0.0), (2, 0.0), (3, 0.0), (5, 0.0), (10, 0.0), (3, 0.3), (5, 1.0))
        ],
        "convolutional": [
            {"depth": relus + 1, "pooling": pooling, **convolutional(images, others, relus, pooling)}
            for relus in (1, 2, 5) for pooling in ("none", "global")
        ],
    }  # fmt: skip
    Path(__file__).with_name("kernels.json").write_text(
        json.dumps(answers, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
