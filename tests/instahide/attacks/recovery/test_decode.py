from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide.attacks.recovery.decode import DecodedImages, DecodeView, decode_images
from instahide.attacks.recovery.sign_recovery import train_sign_network
from instahide.attacks.replica import Replica, make_replica
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet
from instahide.mixing import to_unit_range

from .recovery_examples import CONFIG, SIDE, blotches, small_network

n = 20
PRIVATE, PUBLIC = blotches(n, seed=1), blotches(1200, seed=2)


def replica(config: EncoderConfig = CONFIG, *, releases: int, inside: bool = False) -> Replica:
    return make_replica(PRIVATE, public=None if inside else PUBLIC, config=config, releases=releases)


def view_of(made: Replica, *, pool: ImageSet | None = None) -> DecodeView:
    encoded, truth = made.encoded, made.truth
    return DecodeView(
        encoded.images,
        truth.private_rows,
        truth.private_coefficients,
        n,
        blotches(1500, seed=100),
        encoded.config,
        encoded.scheme,
        pool,
    )


def correlation(decoded: DecodedImages) -> float:
    """Mean over images, about the mean of all of them, which needs no attack."""
    truth = to_unit_range(PRIVATE.images)
    centre = truth.mean(0)
    pairs = ((decoded.images - centre).flatten(1), (truth - centre).flatten(1))
    return float(torch.nn.functional.cosine_similarity(*pairs).mean())


@pytest.mark.statistical
def test_images_released_ten_times_are_recovered_upright() -> None:
    """Power. Guessing correlates 0 ± 0.05 (20 images of about 20 independent spots); the decoder 0.95."""
    decoded = decode_images(view_of(replica(releases=10)), network=small_network())
    assert decoded.images.shape == (n, 1, SIDE, SIDE)
    assert float(decoded.images.abs().max()) <= 1
    assert correlation(decoded) > 0.8
    assert decoded.recovered


@pytest.mark.statistical
def test_noise_gives_nothing() -> None:
    """Null: the right shapes, law and size, but no images inside. Evidence is N(0, 1)."""
    made = view_of(replica(releases=10))
    noise = 0.3 * torch.from_numpy(np.random.default_rng(0).normal(size=made.encodings.shape)).float()
    decoded = decode_images(replace(made, encodings=noise.clamp(-1, 1)), network=small_network(), rounds=1)
    assert not decoded.recovered
    assert abs(correlation(decoded)) < 0.3


@pytest.mark.statistical
def test_a_wrong_pairing_gives_nothing() -> None:
    made = view_of(replica(releases=10))
    rows = np.random.default_rng(1).permutation(len(made.encodings))
    shuffled = replace(
        made, private_rows=made.private_rows[rows], private_coefficients=made.private_coefficients[rows]
    )
    assert not decode_images(shuffled, network=small_network(), rounds=1).recovered


@pytest.mark.statistical
def test_the_pool_makes_few_releases_enough_and_a_wrong_pool_does_no_harm() -> None:
    made = replica(releases=3)
    without = decode_images(view_of(made), network=small_network())
    known = decode_images(view_of(made, pool=PUBLIC), network=small_network())
    wrong = decode_images(view_of(made, pool=blotches(1200, seed=3)), network=small_network())
    assert correlation(known) > correlation(without) - 0.02
    assert correlation(wrong) > correlation(without) - 0.1
    inside = made.truth.public_rows
    found = known.public_rows >= 0
    right = (known.public_rows[:, :, None] == inside[:, None, :]).any(2)
    assert found.mean() > 0.2
    assert right[found].mean() > 0.8


@pytest.mark.parametrize(
    ("config", "inside"),
    [
        (EncoderConfig(num_mixed=4, num_private=2), False),  # 8 bits, grid
        (EncoderConfig(num_mixed=2, mode="compat"), True),
        (EncoderConfig(num_mixed=4, mode="mixup", num_private=2), False),
    ],
    ids=["hardened", "inside k=2", "mixup"],
)
@pytest.mark.statistical
def test_other_laws_fall_too(config: EncoderConfig, inside: bool) -> None:
    network = small_network() if config.has_sign_mask else None
    decoded = decode_images(view_of(replica(config, releases=8, inside=inside)), network=network)
    assert correlation(decoded) > 0.7
    assert decoded.recovered


def test_a_spent_budget_stops_after_the_first_round() -> None:
    calls: list[int] = []
    decoded = decode_images(
        view_of(replica(releases=2)),
        network=small_network(),
        max_seconds=0.0,
        progress=lambda done, total=None, text="": calls.append(done),
    )
    assert decoded.diagnostics["rounds"] == 1
    assert calls == [1]


def test_views_that_make_no_sense_are_refused() -> None:
    good = view_of(replica(releases=1))
    with pytest.raises(InvalidInputError, match="shape"):
        replace(good, encodings=good.encodings[0])
    with pytest.raises(InvalidInputError, match="finite"):
        replace(good, encodings=good.encodings * float("nan"))
    with pytest.raises(InvalidInputError, match="private_rows"):
        replace(good, private_rows=good.private_rows[:-1])
    with pytest.raises(InvalidInputError, match="outside"):
        replace(good, num_images=3)
    with pytest.raises(InvalidInputError, match="pool"):
        replace(good, public_pool=blotches(50, seed=4, side=8))


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("num_mixed", "releases"), [(4, 5), (6, 10)])
def test_digits_are_read(num_mixed: int, releases: int) -> None:
    """8×8 digits, 64 values each. About the mean digit a guess correlates 0 ± 0.02 over 100 images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels, labels = (digits.images * 15.9).astype(np.uint8), digits.target.astype(np.int64)
    rows = np.random.default_rng(2).permutation(len(pixels))
    private = ImageSet(pixels[rows[:100]], labels[rows[:100]])
    public = ImageSet(pixels[rows[100:]])
    config = EncoderConfig(num_mixed=num_mixed, num_private=2, mode="compat")
    made = make_replica(private, public=public, config=config, releases=releases)
    view = DecodeView(
        made.encoded.images,
        made.truth.private_rows,
        made.truth.private_coefficients,
        100,
        public,
        made.encoded.config,
        made.encoded.scheme,
    )
    network = train_sign_network(public, config, cpu_seconds=20.0)
    decoded = decode_images(view, network=network)
    truth = to_unit_range(private.images)
    centre = to_unit_range(public.images).mean(0)
    pairs = ((decoded.images - centre).flatten(1), (truth - centre).flatten(1))
    similarity = float(torch.nn.functional.cosine_similarity(*pairs).mean())
    print(f"k={num_mixed} T={releases}: correlation {similarity:.3f}, evidence {decoded.evidence:.1f}")
    assert decoded.recovered
    assert similarity > 0.6
