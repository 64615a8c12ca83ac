"""The fully connected kernel against a plain recursion, neural-tangents, finite networks, and itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory_modules import kernel_oracles as oracle
from theory_modules import kernel_loops, ntk, ntk_scalar_function
from theory_modules.kernel_input import KernelInputError
from theory_modules.ntk import fully_connected_nngp, fully_connected_ntk, fully_connected_ntk_table

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/kernels.json").read_text(encoding="utf-8"))
TOLERANCE = {"float32": 5e-7, "float64": 1e-12}  # relative to the largest entry


def rows(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size))


def worst(kernel: Any, expected: Any) -> float:
    return float(np.abs(kernel - expected).max() / np.abs(expected).max())


@pytest.fixture(params=["c", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(ntk, "has_loops", lambda: False)
    elif not kernel_loops.has_loops():
        pytest.skip("the loops in C were not built")
    return str(request.param)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("depth", "fixed", "bias"),
    [
        (1, 0, 0),
        (2, 0, 0),
        (2, 1, 0),
        (5, 0, 0),
        (5, 2, 0),
        (5, 4, 0),
        (20, 3, 0),
        (60, 0, 0),
        (3, 0, 0.3),
        (5, 2, 1),
    ],
)
def test_it_is_the_recursion_of_the_paper(path: str, depth: int, fixed: int, bias: float, dtype: str) -> None:
    x, z = rows(150, 7), rows(140, 7, seed=1)
    expected = oracle.fully_connected(x, z, depth, fixed, bias)
    kernel = fully_connected_ntk(x, z, depth=depth, num_fixed_layers=fixed, bias=bias, dtype=dtype)
    assert kernel.dtype == dtype
    assert worst(kernel, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "case", VECTORS["fully connected"], ids=lambda c: f"depth {c['depth']}, bias {c['bias']}"
)
def test_it_agrees_with_neural_tangents(case: dict[str, Any]) -> None:
    x, z = np.array(VECTORS["x"]), np.array(VECTORS["z"])
    kernel = fully_connected_ntk(x, z, depth=case["depth"], bias=case["bias"])
    np.testing.assert_allclose(kernel, case["ntk"], rtol=1e-12, atol=1e-13)
    gaussian = fully_connected_nngp(x, z, depth=case["depth"], bias=case["bias"])
    np.testing.assert_allclose(gaussian, case["nngp"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_a_second_argument_the_kernel_is_symmetric_to_the_last_bit(
    path: str, dtype: str, bias: float
) -> None:
    x = rows(300, 6)
    kernel = fully_connected_ntk(x, depth=4, bias=bias, dtype=dtype)
    assert np.array_equal(kernel, kernel.T)
    assert worst(kernel, fully_connected_ntk(x, x.copy(), depth=4, bias=bias, dtype=dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("threads", [1, 3])
def test_many_tiles_and_threads_give_the_same_numbers(threads: int) -> None:
    x, z = rows(300, 5), rows(2100, 5, seed=1)
    kernel = fully_connected_ntk(x, z, depth=3, num_threads=threads)
    assert worst(kernel, oracle.fully_connected(x, z, 3)) < 1e-12
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_inputs_and_antipodes_are_exact_in_both_types(path: str, dtype: str) -> None:
    """c = 1: K = |x|² L / 2^(L−1). c = −1: only the first layer sees it."""
    x = rows(40, 30).astype(np.float32).astype(np.float64)
    square = (x**2).sum(1)
    kernel = fully_connected_ntk(x, np.concatenate([x, 3 * x, -x]), depth=5, dtype=dtype)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(np.diag(kernel[:, :40]), square * 5 / 16, rtol=4 * eps)
    np.testing.assert_allclose(np.diag(kernel[:, 40:80]), 3 * square * 5 / 16, rtol=4 * eps)
    first = fully_connected_ntk(x, -x, depth=2, dtype=dtype)
    np.testing.assert_allclose(np.diag(first), 0, atol=4 * eps * square.max())


def test_nearly_equal_inputs_keep_their_difference_in_float32(path: str) -> None:
    x = rows(20, 10)
    z = x * (1 + 1e-6 * rows(20, 10, seed=5))
    single = np.diag(fully_connected_ntk(x, z, depth=5, dtype="float32"))
    double = np.diag(fully_connected_ntk(x, z, depth=5, dtype="float64"))
    np.testing.assert_allclose(single, double, rtol=3e-7)
    naive = np.abs(np.diag(oracle.fully_connected(np.float32(x), np.float32(z), 5)) / double - 1)
    assert naive.max() > 0  # the comparison above compares different numbers


def test_a_data_set_of_copies_only_is_the_slow_road_and_right(path: str) -> None:
    x = np.repeat(rows(1, 4), 90, axis=0)
    kernel = fully_connected_ntk(x, depth=3)
    np.testing.assert_allclose(kernel, float((x[0] ** 2).sum()) * 3 / 4, rtol=1e-14)


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_a_zero_input_gives_what_the_bias_gives(path: str, bias: float) -> None:
    x = rows(6, 4)
    x[2] = 0
    kernel = fully_connected_ntk(x, depth=3, bias=bias)
    assert np.isfinite(kernel).all()
    assert (
        worst(kernel, oracle.fully_connected(x, x, 3, bias=bias)) < 1e-7
    )  # arccos near 1 is the oracle's limit
    if bias == 0:
        assert not kernel[2].any()


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_huge_and_tiny_inputs_do_not_overflow_on_the_way(scale: float) -> None:
    x = rows(5, 4)
    kernel = fully_connected_ntk(x * scale, depth=3) / scale / scale
    np.testing.assert_allclose(kernel, fully_connected_ntk(x, depth=3), rtol=1e-12)


def test_the_table_holds_every_depth_and_every_number_of_fixed_layers() -> None:
    x, z = rows(30, 4), rows(20, 4, seed=1)
    z[3] = x[7]
    table = fully_connected_ntk_table(x, z, max_depth=5)
    assert sorted(table) == [(depth, fixed) for depth in range(1, 6) for fixed in range(depth)]
    for (depth, fixed), kernel in table.items():
        alone = fully_connected_ntk(x, z, depth=depth, num_fixed_layers=fixed)
        np.testing.assert_allclose(kernel, alone, rtol=0, atol=1e-12 * np.abs(alone).max())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.integers(0, 2**31),
)
def test_every_kernel_is_positive_semidefinite(
    count: int, size: int, depth: int, bias: float, seed: int
) -> None:
    kernel = fully_connected_ntk(rows(count, size, seed), depth=depth, bias=bias)
    assert np.linalg.eigvalsh(kernel).min() > -1e-12 * np.trace(kernel)


def empirical_kernel(x: torch.Tensor, width: int, depth: int, generator: torch.Generator) -> np.ndarray:
    """⟨∂f(x), ∂f(z)⟩ of a finite network in NTK parameterisation, by autodiff."""
    sizes = [x.shape[1], *[width] * (depth - 1), 1]
    weights = [
        torch.randn(b, a, generator=generator, dtype=torch.float64, requires_grad=True)
        for a, b in itertools.pairwise(sizes)
    ]
    gradients = []
    for row in x:
        value = weights[0] @ row
        for weight in weights[1:]:
            value = weight @ value.relu() / len(value) ** 0.5
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), weights)]))
    stacked = torch.stack(gradients)
    return (stacked @ stacked.T).numpy()


@pytest.mark.statistical
def test_finite_networks_converge_to_it_as_one_over_the_square_root_of_the_width() -> None:
    """Mean square error over 40 networks at widths 32 and 512: its ratio is 16 in expectation.

    Over 20 seeds it was 17 in the geometric mean with an sd of 0.21 in the logarithm, so 5 and 50 are more
    than 5 sd away (ln 17/5 = 1.22, ln 50/17 = 1.08).
    """
    x = torch.tensor(rows(5, 6), dtype=torch.float64)
    limit = fully_connected_ntk(x.numpy(), depth=3)
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))

    def mean_square_error(width: int) -> float:
        errors = [empirical_kernel(x, width, 3, generator) - limit for _ in range(40)]
        return float(np.mean(np.square(errors)))

    narrow, wide = mean_square_error(32), mean_square_error(512)
    assert 5 < narrow / wide < 50
    assert wide**0.5 < 0.1 * np.abs(limit).max()


def test_it_works_in_inference_mode_and_on_parameters_and_over_threads() -> None:
    x = torch.tensor(rows(300, 4), requires_grad=True)
    with torch.inference_mode():
        inside = fully_connected_ntk(torch.tensor(rows(300, 4)), depth=3, num_threads=2)
    assert torch.equal(inside, fully_connected_ntk(x, depth=3, num_threads=2))
    assert not fully_connected_ntk(x, depth=40, bias=0.1).requires_grad


def test_tensors_give_tensors_and_whole_numbers_give_float64() -> None:
    x = torch.tensor([[1, 2], [3, 4]])
    kernel = fully_connected_ntk(x, depth=1)
    torch.testing.assert_close(kernel, (x @ x.T).double())
    assert fully_connected_ntk(x.float(), depth=2).dtype == torch.float32


def test_the_scalar_function_is_given_up_where_rounding_would_grow() -> None:
    assert ntk_scalar_function.scalar_function(5, 0, torch.float32) is not None
    assert ntk_scalar_function.scalar_function(200, 0, torch.float32) is None


@pytest.mark.parametrize("depth", [2, 6, 11])
def test_the_pieces_of_the_scalar_function_are_the_function(depth: int) -> None:
    function = ntk_scalar_function.scalar_function(depth, 0, torch.float32)
    assert function is not None
    assert function.pieces is not None
    w = torch.cat([torch.linspace(-15, -0.51, 400), torch.linspace(0.51, 15, 400)]).double()
    cosines = (1 - (w / 15) ** 2) * w.sign()
    whole = w.round()
    x = w - whole
    powers = x[:, None] ** torch.arange(5, dtype=torch.float64)
    values = (powers * function.pieces.double().T[whole.long() % 32]).sum(1)
    angles = torch.stack([torch.cos(torch.arccos(cosines)), torch.sin(torch.arccos(cosines))], 1).numpy()
    expected = oracle.fully_connected(angles, np.array([[1.0, 0.0]]), depth)[:, 0]
    np.testing.assert_allclose(values, expected, atol=1e-7 * expected.max())


def test_very_deep_networks_do_without_pieces_and_are_as_good() -> None:
    function = ntk_scalar_function.scalar_function(21, 0, torch.float32)
    assert function is not None
    assert function.pieces is None
    x, z = rows(40, 6), rows(50, 6, seed=1)
    expected = oracle.fully_connected(x, z, 21)
    assert worst(fully_connected_ntk(x, z, depth=21, dtype="float32"), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (13, 17, 3), (97, 515, 256), (30, 33, 257)])
def test_no_shape_is_awkward(n: int, m: int, width: int, dtype: str) -> None:
    x, z = rows(n, width), rows(m, width, seed=1)
    kernel = fully_connected_ntk(x, z, depth=4, dtype=dtype)
    assert worst(kernel, oracle.fully_connected(x, z, 4)) < TOLERANCE[dtype]
    symmetric = fully_connected_ntk(x, depth=4, dtype=dtype)
    apart = ~np.eye(n, dtype=bool)  # the oracle's arccos of 1 is good to 4e-10 only
    np.testing.assert_allclose(
        symmetric[apart], oracle.fully_connected(x, x, 4)[apart], atol=TOLERANCE[dtype] * symmetric.max()
    )
    np.testing.assert_allclose(np.diag(symmetric), (x**2).sum(1) * 4 / 8, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("machine", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_machine_s_version_of_the_loops_gives_the_same(
    machine: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel_loops.has_loops() or kernel_loops._machine() < machine:
        pytest.skip("this machine cannot run that version")
    monkeypatch.setattr(kernel_loops, "_machine", lambda: machine)
    x, z = rows(37, 5), rows(45, 5, seed=1)
    z[4] = x[3]
    kernel = fully_connected_ntk(x, z, depth=3, dtype=dtype)
    double = fully_connected_ntk(x, z, depth=3, dtype="float64")
    assert worst(kernel, double) < TOLERANCE[dtype]
    assert kernel[3, 4] == pytest.approx((x[3] ** 2).sum() * 3 / 4, rel=1e-6)


ntk_of = fully_connected_ntk
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "shapes that differ": (lambda: ntk_of(rows(3, 4), rows(3, 5), depth=2), "x1 has shape (3, 4) and x2"),
    "a vector": (lambda: ntk_of(rows(3, 4)[0], depth=2), "x1 has shape (4,); give (N, d)"),
    "no rows": (lambda: ntk_of(np.empty((0, 4)), depth=2), "nothing to compare"),
    "NaN": (lambda: ntk_of(np.array([[1.0, 2], [np.nan, 0]]), depth=2), "x1[1] holds a NaN or infinity"),
    "infinity in x2": (
        lambda: ntk_of(rows(2, 2), np.array([[1.0, np.inf]]), depth=2), "x2[0] holds a NaN or infinity"
    ),
    "text": (lambda: ntk_of(np.array([["a"]]), depth=2), "x1 does not hold numbers"),
    "complex numbers": (lambda: ntk_of(np.ones((2, 2), complex), depth=2), "give real numbers"),
    "depth 0": (lambda: ntk_of(rows(2, 2), depth=0), "depth is 0; give a whole number of at least 1"),
    "half a depth": (lambda: ntk_of(rows(2, 2), depth=2.5), "depth is 2.5"),
    "every layer fixed": (
        lambda: ntk_of(rows(2, 2), depth=3, num_fixed_layers=3), "num_fixed_layers is 3; give at most 2"
    ),
    "a negative bias": (lambda: ntk_of(rows(2, 2), depth=3, bias=-1), "bias is -1"),
    "half precision": (lambda: ntk_of(rows(2, 2), depth=3, dtype="float16"), "dtype is 'float16'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_with_the_value_named(what: str) -> None:
    call, words = BAD[what]
    with pytest.raises(KernelInputError) as caught:
        call()
    assert words in str(caught.value)


def test_a_kernel_larger_than_memory_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("theory_modules.kernel_memory._SHARE_OF_FREE_MEMORY", 1e-12)
    with pytest.raises(
        KernelInputError, match=r"a kernel of 40 x 40 in float64 takes .* GB of memory are free"
    ):
        fully_connected_ntk(rows(40, 3), depth=2)
