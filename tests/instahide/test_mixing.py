"""The mixing pass: its value by hand, and C, torch and Triton in agreement bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import instahide.mixing_kernel as kernel
from instahide.mixing import mix_with_torch, to_unit_range
from instahide.mixing_kernel import Recipe, Sources, active_path, mix_records, release_pages

needs_c = pytest.mark.skipif(active_path() != "c", reason="the C code was not built")


def recipe_of(
    d: int,
    *,
    num_private: int = 2,
    num_public: int = 2,
    count: int = 5,
    levels: int | None,
    signed: bool,
    grid: bool,
) -> Recipe:
    rng = np.random.default_rng(d + 1000 * num_private + count)
    k = num_private + num_public
    private = rng.integers(0, 256, (9, 1, 1, d), dtype=np.uint8)
    public = rng.integers(0, 256, (11, 1, 1, d), dtype=np.uint8)
    if grid:
        weights = rng.multinomial(64, np.full(k, 1 / k), size=count).astype(np.float32)
    else:
        weights = rng.dirichlet(np.ones(k), size=count).astype(np.float32)
    return Recipe(
        [
            Sources(private, rng.integers(0, 9, (count, num_private))),
            Sources(public, rng.integers(0, 11, (count, num_public))),
        ],
        weights,
        255.0 * 64 if grid else 255.0,
        rng.integers(0, 256, (count, -(-d // 512) * 64), dtype=np.uint8) if signed else None,
        rng.integers(0, 256, (count, -(-d // 64) * 64), dtype=np.uint8) if levels else None,
        levels,
    )


def mixed_by_torch(recipe: Recipe) -> torch.Tensor:
    images = [
        part.images[part.indices].reshape(*part.indices.shape, part.images[0].size) for part in recipe.sources
    ]
    return mix_with_torch(
        np.concatenate(images, axis=1),
        recipe.weights,
        recipe.total,
        sign_bits=recipe.sign_bits,
        dither=recipe.dither,
        levels=recipe.levels,
    )


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.view(torch.int32), second.view(torch.int32))


def test_a_mixture_by_hand() -> None:
    """Pixels 0 and 255 with weights 16/64 and 48/64 mix to -1/4 + 3/4 = 1/2, which is 63.5 of 127 levels."""
    sources = np.array([[[0, 255, 255], [255, 0, 255]]], dtype=np.uint8)
    weights = np.array([[16, 48]], dtype=np.float32)
    plain = mix_with_torch(sources, weights, 64 * 255.0, sign_bits=None, dither=None, levels=None)
    assert plain.tolist() == [[0.5, -0.5, 1.0]]
    flips = np.array([[0b101]], dtype=np.uint8)
    dither = np.array([[127, 128, 255]], dtype=np.uint8)  # offsets just below and above one half
    coded = mix_with_torch(sources, weights, 64 * 255.0, sign_bits=flips, dither=dither, levels=127)
    assert (coded * 127).round().tolist() == [[-63.0, -64.0, -127.0]]


def test_both_ends_of_the_pixel_range_map_to_the_ends_of_the_unit_range() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    values = to_unit_range(pixels)
    np.testing.assert_allclose(values.numpy(), pixels / 127.5 - 1, atol=6e-8)
    assert values[0] == -1
    assert values[255] == 1
    assert torch.equal(values, -values.flip(0))


def test_zero_has_no_sign() -> None:
    """Pixels 127 and 128 in equal parts mix to exactly 0; a flipped 0 must not tell that it was flipped."""
    sources = np.array([[[127], [128]]], dtype=np.uint8)
    flips = np.array([[1]], dtype=np.uint8)
    value = mix_with_torch(
        sources, np.full((1, 2), 32, np.float32), 64 * 255.0, sign_bits=flips, dither=None, levels=None
    )
    assert value.item() == 0
    assert not torch.signbit(value).item()


@pytest.mark.statistical
def test_dither_makes_rounding_unbiased() -> None:
    """One pixel of 1/3·127 = 42.33 levels, all 256 dither bytes: the mean is exact up to 1/512 of a level."""
    sources = np.full((256, 1, 1), 170, dtype=np.uint8)  # 170/127.5 - 1 = 1/3
    dither = np.arange(256, dtype=np.uint8)[:, None]
    weights = np.full((256, 1), 64, np.float32)
    values = mix_with_torch(sources, weights, 64 * 255.0, sign_bits=None, dither=dither, levels=127)
    assert abs(values.double().mean().item() * 127 - 127 / 3) <= 1 / 512 + 1e-6


@needs_c
@given(
    d=st.sampled_from([1, 3, 31, 33, 512, 513, 3072]),
    num_private=st.integers(1, 9),
    num_public=st.integers(0, 7),
    count=st.integers(1, 40),
    levels=st.sampled_from([None, 1, 7, 127, 32767]),
    signed=st.booleans(),
    grid=st.booleans(),
    streaming=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_c_and_torch_agree_bit_for_bit(
    d: int,
    num_private: int,
    num_public: int,
    count: int,
    levels: int | None,
    signed: bool,
    grid: bool,
    streaming: bool,
) -> None:
    recipe = recipe_of(
        d,
        num_private=num_private,
        num_public=num_public,
        count=count,
        levels=levels,
        signed=signed,
        grid=grid,
    )
    out = torch.full((count, d), 7.0)
    mix_records(recipe, out, num_threads=2, streaming=streaming)
    assert same_bits(out, mixed_by_torch(recipe))


def test_the_torch_path_is_taken_when_the_c_code_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_library", lambda: None)
    assert active_path() == "torch"
    recipe = recipe_of(100, levels=127, signed=True, grid=True)
    out = torch.empty(5, 100)
    mix_records(recipe, out)
    assert same_bits(out, mixed_by_torch(recipe))


def test_the_environment_switches_the_c_code_off() -> None:
    script = "from instahide.mixing_kernel import active_path; print(active_path())"
    environment = {**os.environ, "INSTAHIDE_MIXING": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch"


def test_channels_last_images_are_gathered_in_their_own_order() -> None:
    recipe = recipe_of(1, levels=None, signed=False, grid=True)
    last = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    view = np.moveaxis(last, 3, 1)
    rows = np.array([[0, 8], [3, 3], [5, 1], [2, 7], [6, 6]])
    weights = np.full((5, 2), 32, np.float32)
    outs = [torch.empty(5, 60), torch.empty(5, 60)]
    for out, images in zip(outs, (view, np.ascontiguousarray(view)), strict=True):
        mix_records(Recipe([Sources(images, rows)], weights, recipe.total, None, None, None), out)
    assert same_bits(*outs)


@pytest.mark.parametrize("bad", [-1, 9])
def test_a_source_outside_its_images_is_refused_before_memory_is_read(bad: int) -> None:
    recipe = recipe_of(64, levels=None, signed=False, grid=True)
    recipe.sources[0].indices[0, 0] = bad
    with pytest.raises(IndexError, match="outside"):
        mix_records(recipe, torch.empty(5, 64))


@needs_c
def test_too_short_a_key_stream_is_refused_before_memory_is_read() -> None:
    recipe = recipe_of(64, levels=127, signed=True, grid=True)
    short = Recipe(recipe.sources, recipe.weights, recipe.total, recipe.sign_bits, recipe.dither[:, :60], 127)
    with pytest.raises(ValueError, match="key stream"):
        mix_records(short, torch.empty(5, 64))


def test_released_pages_of_a_map_read_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 32, 32), dtype=np.uint8)
    np.save(path, images)
    for mode in ("r", "r+", "c"):
        mapped = np.load(path, mmap_mode=mode)
        if mode == "c":
            mapped[0, 0, 0, 0] ^= 1  # a private change that giving pages back would undo
        before = mapped.copy()
        release_pages(mapped[:, ::-1])
        assert np.array_equal(mapped, before)


TRITON_SCRIPT = """
import sys; sys.path[:0] = {paths!r}
import numpy as np, torch
from instahide.mixing_kernel import Recipe, Sources, mix_records
from instahide.mixing_triton import GpuMixer
rng = np.random.default_rng(0)
cases = (1500, 2, 127, True, True), (77, 0, None, True, False), (64, 1, 7, False, True)
for d, num_public, levels, signed, grid in cases:
    private = rng.integers(0, 256, (9, 1, 1, d), dtype=np.uint8)
    public = rng.integers(0, 256, (9, 1, 1, d), dtype=np.uint8)
    k = 2 + num_public
    weights = rng.multinomial(64, np.full(k, 1 / k), size=3) if grid else rng.dirichlet(np.ones(k), size=3)
    sources = [Sources(private, rng.integers(0, 9, (3, 2)))]
    sources += [Sources(public, rng.integers(0, 9, (3, num_public)))] if num_public else []
    recipe = Recipe(
        sources, weights.astype(np.float32), 255.0 * (64 if grid else 1),
        rng.integers(0, 256, (3, 192), dtype=np.uint8) if signed else None,
        rng.integers(0, 256, (3, 1536), dtype=np.uint8) if levels else None, levels)
    outs = torch.empty(3, d), torch.empty(3, d)
    mix_records(recipe, outs[0])
    GpuMixer(torch.device("cpu"), [private, public]).mix(recipe, outs[1])
    assert torch.equal(outs[0].view(torch.int32), outs[1].view(torch.int32)), (d, outs)
print("agree")
"""


def test_triton_and_cpu_agree_bit_for_bit_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    root = str(Path(kernel.__file__).resolve().parents[1])
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    script = TRITON_SCRIPT.format(paths=[root])
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "agree", done.stderr[-3000:]
