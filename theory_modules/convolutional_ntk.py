r"""The exact neural tangent kernel of a convolutional ReLU network: 3×3 filters, zero padding, any depth.

Arora, Du, Hu, Li, Salakhutdinov and Wang, *On exact computation with an infinitely wide neural net*, NeurIPS
2019. With p, p' places of two images, n norms, c = S/(n n'), box = sum over the 3×3 window that moves p and
p' together:

    S_1(p, p') = box(Σ_channels x(p) z(p'))                 T_1 = S_1
    A = n_h(x, p) n_h(z, p') k1(c) / 9,   B = T_h k0(c) / 9 + A
    S_{h+1} = box(A),  T_{h+1} = box(B)                     no box after the last ReLU

Depth d counts the d − 1 convolutions, each followed by a ReLU, and the last, fully connected layer. What
comes before that layer decides the cost, because a displacement δ = p' − p never meets another one before the
last sum:

    pooling="none"      K = Σ_p B(p, p)                                       δ = 0 only: P places a pair
    pooling="global"    K = mean over p, p' of B(p, p')                       every δ: P² places a pair
    pooling="local"     K = (2r+1)⁻⁴ Σ_y Σ_{a,b} B(y + a, y + b)              |δ| ≤ 2r on each axis

with y over the places of the image and a, b over the (2r+1)×(2r+1) window, zeros outside (Li et al.,
*Enhanced convolutional neural tangent kernels*, 2019); r = 0 is "none". ``flip`` averages over the mirror
image of one side, which is regression on the data set with all its mirror images at the size of the original
one.

Equal images have c = 1 at displacement 0 whatever rounding says, and get that part from the closed form.

    python -m theory_modules.convolutional_ntk       digits: accuracy against the number of training images
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .convolutional_ntk_job import ConvolutionalKernel, Settings
from .kernel_file import KernelFile, fingerprint_of
from .kernel_input import (
    KernelInputError,
    checked_dtype,
    checked_pair,
    checked_whole,
    like,
    without_gradients,
)
from .kernel_memory import allocate
from .kernel_tiles import Progress

POOLINGS = ("none", "global", "local")
KINDS = ("ntk", "nngp")
FIXED_LAYERS = ("none", "first-and-last")


@without_gradients
def convolutional_ntk(
    x1: Any,
    x2: Any = None,
    *,
    depth: int,
    pooling: str = "none",
    pooling_radius: int | None = None,
    flip: bool = False,
    kind: str = "ntk",
    fixed_layers: str = "none",
    dtype: str | torch.dtype = "float32",
    num_threads: int | None = None,
    max_memory: int = 512 << 20,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """The kernel between images ``x1`` (N1, C, H, W) and ``x2`` (N2, C, H, W), by default ``x1`` itself.

    Args:
        depth: convolutional layers + 1, at least 2.
        pooling: ``"none"``, ``"global"`` or ``"local"``; the last with ``pooling_radius`` r ≥ 0 (windows of
            2r + 1).
        flip: average over the horizontal mirror image.
        kind: ``"ntk"``, or ``"nngp"`` for the Gaussian process.
        fixed_layers: ``"first-and-last"`` for the published kernel with global pooling, which trains the
            rest.
        dtype: of the recursion and of the result; sums over places are in float64.
        num_threads: by default torch's own number of threads.
        max_memory: bytes for everything but the result.
        out: a ``.npy`` file to stream the kernel to; an interrupted one is resumed by the same call.
        progress: called with the pairs done and the pairs in all.

    Returns:
        (N1, N2): a tensor for a tensor, a NumPy array otherwise; a read-only memory map with ``out``.

    Raises:
        KernelInputError: shapes that do not fit, NaN or infinity, impossible settings, too little memory or
            disk.
    """
    first, second = checked_pair(x1, x2, "N C H W")
    kind = _one_of("kind", kind, KINDS)
    settings = Settings(
        num_relus=checked_whole("depth", depth, 2) - 1,
        pooling_radius=_radius(pooling, pooling_radius),
        pooling=pooling,
        flip=bool(flip),
        tangent=kind == "ntk",
        ends_fixed=_one_of("fixed_layers", fixed_layers, FIXED_LAYERS) == "first-and-last",
    )
    wanted = checked_dtype(dtype)
    threads = checked_whole("num_threads", num_threads or torch.get_num_threads(), 1)
    kernel = ConvolutionalKernel(first, second, settings, wanted, threads, max_memory)
    if out is not None:
        return _to_file(kernel, Path(out), progress)
    result = allocate(kernel.shape, wanted)
    kernel.fill(result.numpy(), progress=progress)
    return like(result.to(first.device), x1)


def convolutional_nngp(x1: Any, x2: Any = None, *, depth: int, **options: Any) -> Any:
    """The Gaussian-process kernel of the same network."""
    return convolutional_ntk(x1, x2, depth=depth, kind="nngp", **options)


def _to_file(kernel: ConvolutionalKernel, path: Path, progress: Progress | None) -> NDArray[Any]:
    if path.suffix != ".npy":
        raise KernelInputError(f"out is {str(path)!r}; give a name that ends in .npy")
    file = KernelFile(path, kernel.shape, kernel.dtype, fingerprint_of(kernel.inputs(), kernel.description()))
    try:
        kernel.fill(file.matrix, file=file, progress=progress)
    except BaseException:
        file.checkpoint()  # what is done stays done, Ctrl-C included
        raise
    return file.complete()


def _radius(pooling: str, radius: int | None) -> int:
    _one_of("pooling", pooling, POOLINGS)
    if pooling == "local":
        if radius is None:
            raise KernelInputError(
                "pooling is 'local' and pooling_radius is missing; give r, windows are 2r + 1 wide"
            )
        return checked_whole("pooling_radius", radius, 0)
    if radius is not None:
        raise KernelInputError(
            f"pooling_radius is {radius!r} and pooling is {pooling!r}; it goes with 'local' only"
        )
    return 0


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise KernelInputError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    return str(value)


def main() -> None:
    """Accuracy on scikit-learn's digits against the number of training images, five ReLUs."""
    from sklearn.datasets import load_digits

    from .ntk_digits import print_learning_curve

    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype(np.float32)
    for pooling in ("none", "global"):
        kernel = convolutional_ntk(images, depth=6, pooling=pooling)
        print_learning_curve(f"convolutional NTK, 5 ReLUs, pooling {pooling}", kernel, digits.target)


if __name__ == "__main__":
    main()
