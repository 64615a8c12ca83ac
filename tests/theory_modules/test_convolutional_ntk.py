"""The convolutional kernel against the full P × P recursion, neural-tangents, finite networks, and itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from tests.theory_modules import kernel_oracles as oracle
from theory_modules import convolutional_ntk_job, kernel_loops
from theory_modules.convolutional_ntk import convolutional_nngp, convolutional_ntk
from theory_modules.kernel_input import KernelInputError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/kernels.json").read_text(encoding="utf-8"))
TOLERANCE = {"float32": 1e-6, "float64": 5e-9}  # relative; the oracle's arccos of nearly 1 is good to 2e-9
KINDS: dict[str, dict[str, Any]] = {
    "none": {"pooling": "none"},
    "global": {"pooling": "global"},
    "local": {"pooling": "local", "pooling_radius": 1},
}


def pictures(count: int, seed: int = 0, shape: tuple[int, int, int] = (2, 4, 5)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *shape))


def oracle_of(
    x: Any, z: Any, num_relus: int, *, pooling: str, pooling_radius: int = 0, **options: Any
) -> Any:
    return oracle.convolutional_matrix(x, z, num_relus, pooling=pooling, radius=pooling_radius, **options)


def worst(kernel: Any, expected: Any) -> float:
    return float(np.abs(kernel / expected - 1).max())


@pytest.fixture(params=["c", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(convolutional_ntk_job, "has_loops", lambda: False)
    elif not kernel_loops.has_loops():
        pytest.skip("the loops in C were not built")
    return str(request.param)


@pytest.fixture(params=KINDS)
def pooling(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_relus", [1, 3])
def test_it_is_the_recursion_over_all_pairs_of_places(
    path: str, pooling: dict[str, Any], num_relus: int, dtype: str
) -> None:
    x, z = pictures(3), pictures(4, seed=1)
    kernel = convolutional_ntk(x, z, depth=num_relus + 1, dtype=dtype, **pooling)
    assert kernel.dtype == dtype
    assert worst(kernel, oracle_of(x, z, num_relus, **pooling)) < TOLERANCE[dtype]


@pytest.mark.parametrize("fixed", [False, True])
def test_the_gaussian_process_and_the_fixed_ends_too(path: str, pooling: dict[str, Any], fixed: bool) -> None:
    x, z = pictures(3), pictures(2, seed=1)
    if fixed:
        kernel = convolutional_ntk(x, z, depth=4, fixed_layers="first-and-last", dtype="float64", **pooling)
        assert worst(kernel, oracle_of(x, z, 3, fixed=True, **pooling)) < 5e-9
    else:
        kernel = convolutional_nngp(x, z, depth=4, dtype="float64", **pooling)
        assert worst(kernel, oracle_of(x, z, 3, nngp=True, **pooling)) < 5e-9


@pytest.mark.parametrize(
    "case", VECTORS["convolutional"], ids=lambda c: f"depth {c['depth']}, pooling {c['pooling']}"
)
def test_it_agrees_with_neural_tangents(case: dict[str, Any]) -> None:
    x, z = np.array(VECTORS["images"]), np.array(VECTORS["others"])
    for kind in ("ntk", "nngp"):
        kernel = convolutional_ntk(
            x, z, depth=case["depth"], pooling=case["pooling"], kind=kind, dtype="float64"
        )
        np.testing.assert_allclose(kernel, case[kind], rtol=1e-13)


@pytest.mark.parametrize("machine", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_machine_s_version_of_the_loops_gives_the_same(
    machine: int, dtype: str, pooling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_loops.has_loops() or kernel_loops._machine() < machine:
        pytest.skip("this machine cannot run that version")
    x, z = pictures(3), pictures(19, seed=1)
    best = convolutional_ntk(x, z, depth=4, dtype=dtype, **pooling)
    monkeypatch.setattr(kernel_loops, "_machine", lambda: machine)
    assert worst(convolutional_ntk(x, z, depth=4, dtype=dtype, **pooling), best) < {"float32": 1e-6}.get(
        dtype, 1e-12
    )


@pytest.mark.parametrize("depth", [17, 18, 35])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deep_networks_have_every_layer_s_ninth(
    depth: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_loops.has_loops():
        pytest.skip("the loops in C were not built")
    x, z = pictures(2), pictures(3, seed=1)
    for kind in ("ntk", "nngp"):
        kernel = convolutional_ntk(x, z, depth=depth, pooling="global", kind=kind, dtype=dtype)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(convolutional_ntk_job, "has_loops", lambda: False)
            expected = convolutional_ntk(x, z, depth=depth, pooling="global", kind=kind, dtype="float64")
        assert worst(kernel, expected) < {"float32": 3e-6, "float64": 1e-12}[dtype]


@pytest.mark.parametrize("scale", [1e-17, 1e17])
def test_huge_and_tiny_pictures_do_not_leave_the_type_on_the_way(path: str, scale: float) -> None:
    x, z = pictures(2), pictures(3, seed=1)
    z[1] = x[0]
    expected = convolutional_ntk(x, z, depth=12, dtype="float64", pooling="global")
    kernel = convolutional_ntk(x * scale, z * scale, depth=12, dtype="float32", pooling="global")
    assert worst(kernel / scale**2, expected) < 2e-6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("tight", [True, False])
def test_the_symmetric_kernel_is_the_same_in_any_number_of_pieces_and_threads(
    pooling: dict[str, Any], threads: int, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = 300_000 if kernel_loops.has_loops() else 8_000_000  # the torch path works on larger blocks
    max_memory = little if tight else 512 << 20
    monkeypatch.setattr(convolutional_ntk_job, "_PLACES_PER_PIECE", 3 * 16 * 20 * 2)
    x = pictures(70)
    whole = convolutional_ntk(x, x.copy(), depth=3, num_threads=1, **pooling)
    kernel = convolutional_ntk(x, depth=3, num_threads=threads, max_memory=max_memory, **pooling)
    assert np.array_equal(kernel, kernel.T)
    assert worst(kernel, whole) < 1e-6


def test_flip_is_the_mean_over_the_mirror_image(path: str, pooling: dict[str, Any]) -> None:
    x, z = pictures(3), pictures(2, seed=1)
    z[0] = x[1, ..., ::-1]  # equal after the flip only
    kernel = convolutional_ntk(x, z, depth=3, flip=True, dtype="float64", **pooling)
    plain, mirrored = (oracle_of(a, z, 2, **pooling) for a in (x, x[..., ::-1]))
    assert worst(kernel, (plain + mirrored) / 2) < 5e-9


def test_regression_with_the_flip_kernel_is_regression_on_the_doubled_data_set(
    pooling: dict[str, Any],
) -> None:
    x, z, y = pictures(6), pictures(3, seed=1), np.random.default_rng(2).normal(size=6)
    both = np.concatenate([x, x[..., ::-1]])
    doubled = convolutional_ntk(z, both, depth=3, dtype="float64", **pooling) @ np.linalg.solve(
        convolutional_ntk(both, depth=3, dtype="float64", **pooling) + 1e-3 * np.eye(12), np.tile(y, 2)
    )
    flipped = convolutional_ntk(z, x, depth=3, flip=True, dtype="float64", **pooling) @ np.linalg.solve(
        convolutional_ntk(x, depth=3, flip=True, dtype="float64", **pooling) + 1e-3 / 2 * np.eye(6), y
    )
    np.testing.assert_allclose(flipped, doubled, rtol=1e-9)


def test_local_pooling_of_radius_zero_is_no_pooling(path: str) -> None:
    x = pictures(4)
    local = convolutional_ntk(x, depth=3, pooling="local", pooling_radius=0, dtype="float64")
    np.testing.assert_allclose(local, convolutional_ntk(x, depth=3, dtype="float64"), rtol=1e-13)


def test_windows_larger_than_the_image_pool_globally_up_to_a_constant(path: str) -> None:
    """Every centre sees every place: P/(2r+1)⁴ · P² times the mean over all pairs."""
    x, z = pictures(3), pictures(2, seed=1)
    radius, places = 5, 20
    local = convolutional_ntk(x, z, depth=3, pooling="local", pooling_radius=radius, dtype="float64")
    pooled = convolutional_ntk(x, z, depth=3, pooling="global", dtype="float64")
    np.testing.assert_allclose(local, pooled * places**3 / (2 * radius + 1) ** 4, rtol=1e-12)


def test_global_pooling_does_not_see_which_way_a_picture_faces(path: str) -> None:
    x, z = pictures(3), pictures(2, seed=1)
    kernel = convolutional_ntk(x, z, depth=3, pooling="global", dtype="float64")
    mirrored = convolutional_ntk(x[..., ::-1], z[..., ::-1], depth=3, pooling="global", dtype="float64")
    np.testing.assert_allclose(kernel, mirrored, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_images_have_the_closed_form_s_value(path: str, pooling: dict[str, Any], dtype: str) -> None:
    x = pictures(5).astype(np.float32).astype(np.float64)
    x[4] = x[1]
    kernel = convolutional_ntk(x, depth=4, dtype=dtype, **pooling)
    np.testing.assert_allclose(kernel[[1, 4], [4, 4]], kernel[1, 1], rtol=2 * np.finfo(dtype).eps)
    # one layer of one image, by hand: S_1 and T_1 are equal, so B = 2 S_1/9 at every place
    if pooling["pooling"] == "none":
        single = convolutional_ntk(x[:1], depth=2, dtype=dtype)[0, 0]
        squares = np.pad((x[0] ** 2).sum(0), 1)
        boxes = sum(squares[dy : dy + 4, dx : dx + 5] for dy in range(3) for dx in range(3))
        assert single == pytest.approx(2 * boxes.sum() / 9, rel=2 * float(np.finfo(dtype).eps))
    double = np.diag(convolutional_ntk(x, depth=4, dtype="float64", **pooling))
    np.testing.assert_allclose(np.diag(kernel), double, rtol=5e-7)


def test_black_windows_and_black_pictures_contribute_nothing(path: str, pooling: dict[str, Any]) -> None:
    x, z = pictures(3, shape=(1, 7, 6)), pictures(2, seed=1, shape=(1, 7, 6))
    x[0] = 0
    x[1, :, :5] = 0
    kernel = convolutional_ntk(x, z, depth=2, dtype="float64", **pooling)
    assert np.isfinite(kernel).all()
    assert not kernel[0].any()
    expected = oracle_of(x[1:], z, 1, **pooling)
    assert worst(kernel[1:], expected) < 5e-9


def test_the_kernel_is_positive_semidefinite(pooling: dict[str, Any]) -> None:
    kernel = convolutional_ntk(pictures(12), depth=5, dtype="float64", **pooling)
    assert np.linalg.eigvalsh(kernel).min() > 0


def empirical_kernel(x: torch.Tensor, pooling: str, width: int, generator: torch.Generator) -> np.ndarray:
    """⟨∂f(x), ∂f(z)⟩ of one finite network with two convolutions, in the paper's parameterisation."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    size = x.shape[2] * x.shape[3]
    first, second = draw(width, x.shape[1], 3, 3), draw(width, width, 3, 3)
    last = draw(width * size) if pooling == "none" else draw(width)
    gradients = []
    for image in x:
        hidden = (2 / 9 / width) ** 0.5 * conv2d(image[None], first, padding=1).relu()
        hidden = (2 / 9 / width) ** 0.5 * conv2d(hidden, second, padding=1).relu()
        pooled = hidden.flatten() if pooling == "none" else hidden.mean((2, 3)).flatten()
        parts = torch.autograd.grad((last * pooled).sum(), (first, second, last))
        gradients.append(torch.cat([part.flatten() for part in parts]))
    stacked = torch.stack(gradients)
    return (stacked @ stacked.T).numpy()


@pytest.mark.statistical
@pytest.mark.parametrize("pooling", ["none", "global"])
def test_wide_convolutional_networks_have_this_kernel(pooling: str) -> None:
    """The mean over 60 networks of width 128 within 5 standard errors of the limit, entry by entry.

    Ten entries at 5 standard errors (t with 59 degrees of freedom: 6e-6 each, two-sided) raise an alarm in
    6e-5 of the runs; the bias at finite width, of order 1/128 of a value, is allowed for with 2 %.
    """
    x = torch.tensor(pictures(4, shape=(2, 3, 3)))
    limit = convolutional_ntk(x.numpy(), depth=3, pooling=pooling, dtype="float64")
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    draws = np.stack([empirical_kernel(x, pooling, 128, generator) for _ in range(60)])
    error = draws.std(0, ddof=1) / len(draws) ** 0.5
    assert (np.abs(draws.mean(0) - limit) < 5 * error + 0.02 * np.abs(limit)).all()
    assert error.max() < 0.1 * np.abs(limit).max()  # or the bound would hold for anything


def test_progress_is_told_up_to_the_last_pair() -> None:
    told: list[tuple[int, int]] = []
    convolutional_ntk(pictures(40), depth=2, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] >= 40 * 41 // 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_tensors_give_tensors() -> None:
    x = torch.tensor(pictures(3))
    kernel = convolutional_ntk(x, depth=2)
    assert isinstance(kernel, torch.Tensor)
    assert kernel.dtype == torch.float32


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no channel axis": (lambda: convolutional_ntk(np.ones((3, 4, 4)), depth=2), "give (N, C, H, W)"),
    "sizes that differ": (
        lambda: convolutional_ntk(np.ones((3, 1, 4, 4)), np.ones((3, 1, 4, 5)), depth=2), "must be equal"
    ),
    "NaN": (lambda: convolutional_ntk(np.full((2, 1, 3, 3), np.nan), depth=2), "x1[0] holds a NaN"),
    "depth 1": (lambda: convolutional_ntk(pictures(2), depth=1), "depth is 1; give a whole number"),
    "an unknown pooling": (lambda: convolutional_ntk(pictures(2), depth=2, pooling="max"), "'max'"),
    "local without a radius": (
        lambda: convolutional_ntk(pictures(2), depth=2, pooling="local"), "pooling_radius is missing"
    ),
    "a radius without local": (
        lambda: convolutional_ntk(pictures(2), depth=2, pooling_radius=2), "goes with 'local' only"
    ),
    "a kind unheard of": (lambda: convolutional_ntk(pictures(2), depth=2, kind="nngk"), "kind is 'nngk'"),
    "no threads": (lambda: convolutional_ntk(pictures(2), depth=2, num_threads=-1), "num_threads is -1"),
    "too little memory": (
        lambda: convolutional_ntk(pictures(2), depth=2, max_memory=1000, num_threads=1),
        "MB are needed for a row and 1 thread; give more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_with_the_value_named(what: str) -> None:
    call, words = BAD[what]
    with pytest.raises(KernelInputError) as caught:
        call()
    assert words in str(caught.value)


INTERPRETED = """
import torch
from theory_modules import convolutional_ntk_reference as reference
from theory_modules.convolutional_ntk_job import Settings, recursion_of
from theory_modules.convolutional_ntk_triton import fits, kernel_block
generator = torch.Generator().manual_seed(0)
shape = (2, 3, 4)
x, z = (torch.randn(n, *shape, generator=generator) for n in (2, 3))
z[1, :, :2] = 0
xz = (x, z)
for pooling, radius, tangent, fixed in (
    ("none", 0, True, False), ("global", 0, True, True), ("local", 1, False, False)
):
    settings = Settings(2, pooling, radius, False, tangent, fixed)
    single, double = (
        block(*(reference.prepare(part, 2, number) for part in xz), recursion_of(shape, settings, number))
        for block, number in ((kernel_block, torch.float32), (reference.kernel_block, torch.float64))
    )
    assert fits(recursion_of(shape, settings, torch.float32), torch.float32)
    assert (single / double - 1).abs().max() < 1e-6, (pooling, tangent, fixed)
assert not fits(recursion_of((2, 65, 5), settings, torch.float32), torch.float32)
assert not fits(recursion_of(shape, settings, torch.float64), torch.float64)
print("agree")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (no CUDA build of torch)")
def test_the_gpu_s_kernel_run_by_its_interpreter_agrees_with_float64() -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "agree\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_kernel_of_the_cpu(pooling: dict[str, Any]) -> None:
    x = torch.tensor(pictures(40)).float()
    kernel = convolutional_ntk(x.cuda(), depth=4, **pooling)
    assert kernel.device.type == "cuda"
    double = convolutional_ntk(x, depth=4, dtype="float64", **pooling)
    assert worst(kernel.cpu().numpy(), double.numpy()) < 2e-6
