"""How fast the exact kernels are, beside neural-tangents and beside plain torch, in one run on one core.

    python tests/benchmarks/kernels.py [--peer PYTHON] [--cases fully-connected vanilla-32 ...] [--repeats 5]
    python tests/benchmarks/kernels.py --scale cifar10_5k.npz     5,000 images, 1 and 2 threads

PYTHON is an interpreter that has neural-tangents (its last release, 0.6.5, needs an environment of its own):

    uv venv nt && uv pip install --python nt neural-tangents==0.6.5 jax==0.5.3

Every figure is pairs per second of processor time, all threads of the process counted, so a busy neighbour
changes it less than the clock on the wall; medians over the repeats. The peer is given its best of both types
and of several batch sizes. The floor is arithmetic: 17 multiply-adds an entry and layer (norms 2, u 1, the
two polynomials 10, the rest 4; the seven additions of the two boxes go to other ports) at the rate at which
this core does them in a matrix product of torch, measured in the same run. The square root is not counted; it
takes the room of two more on the core of the figures in theory_modules/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from theory_modules import convolutional_ntk_job, ntk
from theory_modules.convolutional_ntk import convolutional_ntk
from theory_modules.convolutional_ntk_job import Settings, places_per_pair, recursion_of
from theory_modules.kernel_loops import active_path
from theory_modules.ntk import fully_connected_ntk

MULTIPLY_ADDS = 17


@dataclass(frozen=True)
class Case:
    """``shape`` (d) or (C, H, W); numbers of inputs on either side; the peer's to try, for either type."""

    shape: tuple[int, ...]
    num_relus: int
    pooling: str | None
    ours: tuple[int, int]
    torch: tuple[int, int]
    peer: tuple[list[int], list[int]]


CASES = {
    "fully-connected": Case((64,), 5, None, (5000, 5000), (5000, 5000), ([1000, 2500], [1000, 2500])),
    "vanilla-8": Case((1, 8, 8), 5, "none", (2000, 1600), (256, 256), ([100, 300], [100, 300])),
    "vanilla-32": Case((3, 32, 32), 10, "none", (400, 320), (48, 48), ([20, 40, 80], [20, 40, 80])),
    "global-8": Case((1, 8, 8), 5, "global", (256, 128), (32, 32), ([8, 16, 32], [8, 16, 32])),
    "global-32": Case((3, 32, 32), 10, "global", (4, 16), (2, 2), ([2], [3, 5])),
}  # fmt: skip

PEER = """
import sys, json, time, statistics, numpy as np, jax
shape, relus, pooling, dtype, sizes, repeats = json.loads(sys.argv[1])
jax.config.update("jax_enable_x64", dtype == "float64")
from neural_tangents import stax
layers = []
for _ in range(relus):
    if pooling is None:
        layers += [stax.Dense(1, W_std=1.0), stax.Relu()]
    else:
        layers += [stax.Conv(1, (3, 3), padding="SAME", W_std=2 ** 0.5), stax.Relu()]
if pooling is not None:
    layers.append(stax.Flatten() if pooling == "none" else stax.GlobalAvgPool())
kernel = jax.jit(stax.serial(*layers, stax.Dense(1))[2], static_argnums=2)
best = 0.0
for size in sizes:
    rng = np.random.default_rng(0)
    x, z = (rng.normal(size=(size, *shape)).astype(dtype) for _ in range(2))
    if pooling is not None:
        x, z = x.transpose(0, 2, 3, 1), z.transpose(0, 2, 3, 1)
    kernel(x, z, "ntk").block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        kernel(x, z, "ntk").block_until_ready()
        seconds.append(time.process_time() - start)
    best = max(best, size * size / statistics.median(seconds))
print(json.dumps(best))
"""


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def multiply_adds_per_second(repeats: int) -> float:
    a = torch.rand(1024, 1024)
    return 1024**3 / median_seconds(lambda: a @ a, 2 * repeats)


def floor(case: Case, rate: float) -> float:
    """Pairs a second if nothing but the arithmetic took time."""
    if case.pooling is None:
        # the product, 225 (1 - |c|), a quartic and the two scales, whatever the depth
        return rate / (case.shape[0] + 1 + 4 + 2)
    settings = Settings(case.num_relus, case.pooling, 0, flip=False, tangent=True, ends_fixed=False)
    entries = places_per_pair(recursion_of(case.shape, settings, torch.float32))
    return rate / (MULTIPLY_ADDS * entries * case.num_relus)


def ours(case: Case, dtype: str, repeats: int, *, in_c: bool) -> float:
    n, m = case.ours if in_c else case.torch
    generator = np.random.default_rng(0)
    x, z = (generator.normal(size=(count, *case.shape)).astype(np.float32) for count in (n, m))
    with (
        mock.patch.object(ntk, "has_loops", return_value=in_c),
        mock.patch.object(convolutional_ntk_job, "has_loops", return_value=in_c),
    ):

        def call() -> object:
            if case.pooling is None:
                return fully_connected_ntk(x, z, depth=case.num_relus + 1, dtype=dtype, num_threads=1)
            depth = case.num_relus + 1
            return convolutional_ntk(x, z, depth=depth, pooling=case.pooling, dtype=dtype, num_threads=1)

        return n * m / median_seconds(call, repeats)


def peer(python: str, case: Case, dtype: str, repeats: int) -> float:
    order = json.dumps(
        [case.shape, case.num_relus, case.pooling, dtype, case.peer[dtype == "float64"], repeats]
    )
    run = subprocess.run([python, "-c", PEER, order], capture_output=True, text=True, check=True)
    return float(json.loads(run.stdout.splitlines()[-1]))


def compare(names: list[str], python: str | None, repeats: int) -> None:
    torch.set_num_threads(1)
    print(f"path: {active_path()}; pairs per second of processor time, medians of {repeats}")
    columns = ("float32", "float64", "plain torch", "peer f32", "peer f64")
    print(f"{'case':16} {' '.join(f'{column:>11}' for column in columns)} {'ratio':>6} {'of floor':>8}")
    for name in names:
        case = CASES[name]
        rate = multiply_adds_per_second(repeats)
        single, double = (ours(case, dtype, repeats, in_c=True) for dtype in ("float32", "float64"))
        plain = ours(case, "float32", max(1, repeats // 2), in_c=False)
        theirs = [peer(python, case, dtype, repeats) for dtype in ("float32", "float64")] if python else []
        rate = min(rate, multiply_adds_per_second(repeats))
        told = [
            f"{value:11,.3g}" if value < 100 else f"{value:11,.0f}"
            for value in (single, double, plain, *theirs)
        ]
        told += ["          -"] * (5 - len(told))
        ratio = f"{single / max(theirs):6.0f}" if theirs else "     -"
        print(f"{name:16} {' '.join(told)} {ratio} {single / floor(case, rate):8.0%}", flush=True)


def scale(path: Path, num_images: int) -> None:
    """Whole vanilla kernels, depth 11, of the file's first images, standardised by channel."""
    images = np.load(path)["x_train"][:num_images].astype(np.float32) / 255
    images = images[:, None] if images.ndim == 3 else images
    if images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    images = (images - images.mean((0, 2, 3), keepdims=True)) / images.std((0, 2, 3), keepdims=True)
    print(f"{path.name}: {images.shape}, vanilla, ten ReLUs, {active_path()}")
    for threads in (1, 2):
        wall, cpu = time.perf_counter(), time.process_time()
        convolutional_ntk(images, depth=11, num_threads=threads)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"  {threads} threads: {wall:.0f} s on the wall, {cpu:.0f} s of processor time", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="an interpreter that has neural-tangents")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=Path, help="an .npz with x_train: whole kernels instead")
    parser.add_argument("--num-images", type=int, default=5000)
    arguments = parser.parse_args()
    if arguments.scale:
        scale(arguments.scale, arguments.num_images)
    else:
        compare(arguments.cases, arguments.peer, arguments.repeats)


if __name__ == "__main__":
    main()
