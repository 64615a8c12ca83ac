"""The encoder's door: configuration checked, bad data refused with the reason, large data streamed."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import instahide.encoder as encoder_module
from instahide import EncodedDataset, Encoder, EncoderConfig, ImageSet
from instahide.encoder import FewPixelsWarning
from instahide.errors import InvalidInputError, RefusedError
from instahide.randomness import Randomness, TestOnlyRandomness

from ..contracts import image_set, recorded_recipes

SOURCE = Path(encoder_module.__file__).resolve().parents[1]


def seeded(encoder: Encoder, seed: int = 1) -> Encoder:
    encoder._randomness = TestOnlyRandomness(seed)
    return encoder


# --- the configuration -------------------------------------------------------------------------


def test_the_default_is_hardened_and_quantised() -> None:
    config = EncoderConfig()
    assert (config.mode, config.num_mixed, config.num_private, config.quantization_bits) == (
        "hardened",
        4,
        2,
        8,
    )
    assert EncoderConfig(mode="compat").quantization_bits is None


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mode": "secure"}, "mode is 'secure'"),
        ({"mode": "dp"}, "noise_law is 'none'"),
        ({"coefficient_law": "uniform"}, "coefficient_law is 'uniform'"),
        ({"num_mixed": 0}, "num_mixed is 0"),
        ({"num_mixed": 17}, "num_mixed is 17"),
        ({"num_mixed": 4.0}, "num_mixed is 4.0"),
        ({"num_mixed": True}, "num_mixed is True"),
        ({"num_private": 5}, "num_private is 5 but only num_mixed = 4"),
        ({"num_private": 0}, "num_private is 0"),
        ({"max_coefficient": 0.2}, "max_coefficient 0.2 cannot hold"),
        ({"max_coefficient": float("nan")}, "max_coefficient is nan"),
        ({"max_coefficient": 1.5}, "max_coefficient is 1.5"),
        ({"min_private_sum": float("inf")}, "min_private_sum is inf"),
        ({"min_private_sum": 0.9, "num_private": 1}, "min_private_sum 0.9 cannot be reached"),
        ({"quantization_bits": 1}, "quantization_bits is 1"),
        ({"quantization_bits": 32}, "quantization_bits is 32"),
    ],
)
def test_a_wrong_value_is_named_and_explained(values: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named.replace(".", r"\.")) as refusal:
        EncoderConfig(**values)  # type: ignore[arg-type]
    assert refusal.value.hint


def test_a_seed_has_no_place_in_a_configuration() -> None:
    with pytest.raises(TypeError):
        EncoderConfig(seed=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Encoder(EncoderConfig(), private=image_set(9), seed=1)  # type: ignore[call-arg]


def test_a_configuration_survives_its_dictionary() -> None:
    config = EncoderConfig(num_mixed=6, mode="compat", quantization_bits=7)
    assert EncoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("change", [{"seed": 1}, {"mode": None}])
def test_a_dictionary_with_other_names_or_values_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        EncoderConfig.from_dict(EncoderConfig().to_dict() | change)


def test_a_dictionary_with_a_missing_name_is_refused() -> None:
    values = EncoderConfig().to_dict()
    del values["mode"]
    with pytest.raises(InvalidInputError, match="not an encoder configuration"):
        EncoderConfig.from_dict(values)


# --- data that cannot be encoded ---------------------------------------------------------------


def test_fewer_images_than_are_mixed_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="4 different private images are mixed but there are only 3"):
        Encoder(EncoderConfig(), private=image_set(3))


def test_a_pool_smaller_than_a_row_needs_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="but a row needs 2 different ones"):
        Encoder(EncoderConfig(), private=image_set(9), public=image_set(1))


def test_a_pool_without_a_place_in_the_row_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no place for the public pool"):
        Encoder(EncoderConfig(num_private=4), private=image_set(9), public=image_set(9))


def test_constant_private_images_are_refused_by_number() -> None:
    images = image_set(9).images.copy()
    images[6] = np.array([3, 100, 7], dtype=np.uint8)[:, None, None]
    with pytest.raises(InvalidInputError, match="private image 6 is constant"):
        Encoder(EncoderConfig(), private=ImageSet(images, np.zeros(9, dtype=int)))


def test_public_images_of_another_shape_are_refused() -> None:
    with pytest.raises(
        InvalidInputError, match=r"public images are \(1, 8, 8\), the private images \(3, 8, 8\)"
    ):
        Encoder(EncoderConfig(), private=image_set(9), public=image_set(9, shape=(1, 8, 8)))


def test_queries_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="queries"):
        Encoder(EncoderConfig(), private=image_set(9)).encode_views(image_set(9, shape=(3, 8, 9)), 1)


def test_private_images_without_labels_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no labels"):
        Encoder(EncoderConfig(), private=image_set(9, labelled=False))


def test_bounds_that_practically_no_draw_meets_are_refused_at_once() -> None:
    config = EncoderConfig(num_mixed=16, num_private=2, min_private_sum=0.99)
    with pytest.raises(RefusedError, match=r"min_private_sum=0\.99"):
        Encoder(config, private=image_set(20), public=image_set(20))


def test_few_pixels_are_warned_about_but_not_without_a_sign_mask() -> None:
    tiny = image_set(9, shape=(1, 8, 8))
    with pytest.warns(FewPixelsWarning, match="64 values.*2\\^64 guesses"):
        Encoder(EncoderConfig(), private=tiny)
    Encoder(EncoderConfig(mode="mixup"), private=tiny)


@pytest.mark.parametrize(
    ("method", "arguments"), [("encode_batches", (0,)), ("encode_views", (image_set(2), 0))]
)
def test_counts_must_be_positive(method: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises(InvalidInputError, match="is 0"):
        getattr(Encoder(EncoderConfig(), private=image_set(9)), method)(*arguments)


def test_a_start_beyond_the_data_is_refused_at_the_call() -> None:
    with pytest.raises(InvalidInputError, match="start is 10"):
        Encoder(EncoderConfig(), private=image_set(9)).encode_batches(4, start=10)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="device"):
        Encoder(EncoderConfig(), private=image_set(9), device="xpu")


# --- secrets -----------------------------------------------------------------------------------


def test_an_encoder_cannot_be_copied_or_stored_with_its_secrets() -> None:
    encoder = Encoder(EncoderConfig(), private=image_set(9))
    for leak in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="secrets"):
            leak(encoder)


def test_two_encoders_share_no_secret() -> None:
    first, second = (Encoder(EncoderConfig(), private=image_set(9)) for _ in range(2))
    assert first._randomness._root != second._randomness._root


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_workers_encode_differently() -> None:
    """A real fork, in a process of its own: parent and child print the hash of their next epoch."""
    script = """
import hashlib, os, sys
import numpy as np
from instahide import Encoder, EncoderConfig, ImageSet
images = np.arange(20 * 192, dtype=np.uint32).astype(np.uint8).reshape(20, 3, 8, 8)
encoder = Encoder(EncoderConfig(), private=ImageSet(images, np.arange(20) % 2))
child = os.fork()
if child:
    os.waitpid(child, 0)
print(hashlib.sha256(encoder.encode_epoch().images.numpy().tobytes()).hexdigest(), flush=True)
if child == 0:
    os._exit(0)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    digests = done.stdout.split()
    assert len(digests) == 2, done.stderr
    assert digests[0] != digests[1]


@pytest.mark.statistical
def test_the_sign_mask_leaves_no_correlation_with_the_image() -> None:
    """Own image against its own encoding, 40·3072 pixels of fair signs: correlation 0 ± 0.0029; six sigma."""
    private = image_set(40, shape=(3, 32, 32))
    encoded = Encoder(EncoderConfig(), private=private).encode_epoch().images.flatten().double().numpy()
    plain = private.images.ravel() / 127.5 - 1
    assert abs(np.corrcoef(plain, encoded)[0, 1]) < 0.018


# --- equal results by every path ---------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hardened", "compat", "mixup"])
def test_chunks_and_threads_do_not_change_the_numbers(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, laid out by one chunk per record or by all at once, mix to the same encodings."""
    encoder = Encoder(EncoderConfig(mode=mode), private=image_set(40), public=image_set(50))
    recipes = recorded_recipes(monkeypatch)
    whole = seeded(encoder).encode_epoch()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = seeded(encoder).encode_epoch()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole.images, again.images)
    assert torch.equal(whole.labels, again.labels)
    monkeypatch.setattr(encoder_module, "_CHUNK_VALUES", 5 * 192)
    recipes.clear()
    chunked = seeded(encoder).encode_epoch()
    assert len(recipes) == 8
    assert torch.equal(whole.labels, chunked.labels)


def test_channels_last_and_memory_mapped_images_encode_alike(tmp_path: Path) -> None:
    last = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", last)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.arange(20) % 3
    epochs = [
        seeded(Encoder(EncoderConfig(), private=ImageSet(images, labels))).encode_epoch()
        for images in (last, mapped, np.moveaxis(last, 3, 1).copy())
    ]
    assert torch.equal(epochs[0].images, epochs[1].images)
    assert torch.equal(epochs[0].images, epochs[2].images)


def test_a_memory_map_stays_a_map(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", image_set(20).images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    encoder = Encoder(EncoderConfig(), private=ImageSet(mapped, np.arange(20) % 2))
    assert np.shares_memory(encoder._private.images, mapped)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_a_large_map_keeps_resident_memory_small(tmp_path: Path) -> None:
    """190 MB of images, 760 MB of encodings: the process grows by less than 150 MB."""
    script = """
import sys
import numpy as np
from instahide import Encoder, EncoderConfig, ImageSet

def resident():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["VmRSS"].split()[0]) / 1024

mapped = np.load(sys.argv[1], mmap_mode="r")
encoder = Encoder(EncoderConfig(), private=ImageSet(mapped, np.arange(len(mapped)) % 2))
before = resident()
peak = 0.0
for batch in encoder.encode_batches(500):
    peak = max(peak, resident())
print(peak - before)
"""
    path = tmp_path / "images.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (62_000, 3, 32, 32))
    for first in range(0, len(images), 1000):
        images[first : first + 1000] = np.random.default_rng(first).integers(0, 256, (1000, 3, 32, 32))
    images.flush()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 150


# --- the encoded data set ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "names", "scheme", "named"),
    [
        (torch.zeros(2, 1, 3, 3, dtype=torch.float64), torch.zeros(2, 2), ("a", "b"), "cross", "float64"),
        (torch.zeros(2, 9), torch.zeros(2, 2), ("a", "b"), "cross", "N, C, H, W"),
        (torch.zeros(2, 1, 3, 3), torch.zeros(3, 2), ("a", "b"), "cross", "3 rows of labels"),
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, 2), ("a",), "cross", "2 columns for 1"),
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, 2), ("a", "b"), "outside", "scheme is 'outside'"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...], scheme: str, named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        EncodedDataset(images, labels, names, EncoderConfig(), scheme)


def test_an_encoded_data_set_knows_its_sizes_and_takes_no_further_field() -> None:
    epoch = Encoder(EncoderConfig(), private=image_set(9)).encode_epoch()
    assert (len(epoch), epoch.num_classes, epoch.image_shape) == (9, 3, (3, 8, 8))
    with pytest.raises((AttributeError, TypeError)):
        epoch.sign_mask = torch.zeros(1)  # type: ignore[attr-defined]


def test_the_inside_scheme_counts_all_sources_as_private() -> None:
    encoder = Encoder(EncoderConfig(num_mixed=5), private=image_set(9))
    assert encoder.config.num_private == 5
    assert encoder.partner_uses_per_epoch == 4
    assert isinstance(encoder._randomness, Randomness)
