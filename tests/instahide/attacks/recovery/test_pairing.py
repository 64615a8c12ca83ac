from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from instahide.attacks.recovery.pairing import Pairing, find_pairing
from instahide.attacks.recovery.pairing_checks import mixtures_without_repetition
from instahide.attacks.recovery.pairing_evidence import held_out_gain, share_public, smoothness
from instahide.attacks.recovery.pairing_features import Features, mixture_features
from instahide.attacks.recovery.pairing_slots import label_slots
from instahide.attacks.replica import Replica, make_replica
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet
from instahide.mixing import to_unit_range

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def clouds(count: int, *, seed: int, side: int = 16) -> ImageSet:
    """Pictures with the spectrum of photographs: amplitude 1/f^1.3, three channels that mostly agree."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side
    amplitude = 1 / np.maximum(frequency, 1) ** 1.3
    grey, colour = rng.normal(size=(count, 1, side, side)), rng.normal(size=(count, 3, side, side))
    noise = grey + 0.3 * colour
    field = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(side, side))
    field /= field.std()
    return ImageSet((128 + 64 * field).clip(0, 255).astype(np.uint8), np.arange(count) % 3)


CONFIG = EncoderConfig(num_mixed=4, num_private=2, mode="compat")
n, T = 12, 20
PRIVATE, PUBLIC = clouds(n, seed=1), clouds(1200, seed=2)
SIMILAR = to_unit_range(PUBLIC.images)


@lru_cache(maxsize=4)
def release(mode: str = "compat", releases: int = T) -> tuple[Replica, Features]:
    config = EncoderConfig(num_mixed=CONFIG.num_mixed, num_private=2, mode=mode)
    made = make_replica(PRIVATE, public=PUBLIC, config=config, releases=releases)
    return made, mixture_features(made.encoded.images, SIMILAR, config, "cross", num_temperatures=40)


def share_right(pairing: Pairing, made: Replica) -> float:
    """Share of the private weight (λ²) whose image is named; numberings matched by rows in common."""
    from scipy.optimize import linear_sum_assignment

    truth = made.truth
    together = np.zeros((n, n))
    for a in range(2):
        for b in range(2):
            np.add.at(together, (pairing.private_rows[:, a], truth.private_rows[:, b]), 1)
    own, true = linear_sum_assignment(-together)
    name = np.empty(n, dtype=np.int64)
    name[own] = true
    named = (truth.private_rows[:, :, None] == name[pairing.private_rows][:, None, :]).any(axis=2)
    weight = truth.private_coefficients**2
    return float((named * weight).sum() / weight.sum())


@pytest.mark.parametrize("mode", ["compat", pytest.param("hardened", marks=pytest.mark.slow), "mixup"])
@pytest.mark.parametrize("labels", [True, False])
def test_most_of_the_weight_is_paired_with_the_right_image(mode: str, labels: bool) -> None:
    made, features = release(mode)
    pairing = find_pairing(
        features, made.encoded.labels if labels else None, made.encoded.config, "cross", n, restarts=1
    )
    # Guesses within the class name about 1 in 4 of the weight with labels (4 images a class), 1 in 6 without.
    assert share_right(pairing, made) > (0.55 if labels else 0.5)
    assert pairing.private_rows.shape == pairing.coefficients.shape == (n * T, 2)
    assert (pairing.private_rows[:, 0] != pairing.private_rows[:, 1]).all()


def test_coefficients_are_those_of_the_label_where_the_classes_differ() -> None:
    made, features = release()
    pairing = find_pairing(features, made.encoded.labels, CONFIG, "cross", n, restarts=1)
    two = (made.encoded.labels > 0).sum(1).numpy() == 2
    truth = np.sort(made.truth.private_coefficients, axis=1)
    np.testing.assert_allclose(np.sort(pairing.coefficients, axis=1)[two], truth[two], atol=1e-6)


def test_uses_are_nearly_equal() -> None:
    made, features = release()
    pairing = find_pairing(features, made.encoded.labels, CONFIG, "cross", n, restarts=1)
    uses = np.bincount(pairing.private_rows.ravel(), minlength=n)
    assert uses.sum() == 2 * n * T
    assert np.abs(uses - 2 * T).max() <= T


def test_images_explain_encodings_put_aside() -> None:
    made, features = release("mixup", releases=40)
    gain = held_out_gain(features, made.encoded.labels, made.encoded.config, "cross", n)
    assert gain.exceeds(None)


@pytest.mark.statistical
def test_mixtures_without_a_common_image_give_nothing() -> None:
    """Five standard errors above zero: a chance below 1e-6 if the mean gain is at most 0."""
    made, _ = release()
    encodings = mixtures_without_repetition(SIMILAR, n * T, CONFIG, "cross", seed=0)
    features = mixture_features(encodings, SIMILAR, CONFIG, "cross", num_temperatures=40)
    for labels in (made.encoded.labels, None):
        assert not held_out_gain(features, labels, CONFIG, "cross", n).exceeds(None)


def test_noise_is_not_smooth() -> None:
    made, _ = release()
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack(
        [x.flatten()[torch.randperm(x.numel(), generator=generator)].view_as(x) for x in made.encoded.images]
    )
    noise = torch.rand(made.encoded.images.shape, generator=generator) * 2 - 1
    expected = smoothness(mixtures_without_repetition(SIMILAR, 200, CONFIG, "cross", seed=1))
    assert smoothness(made.encoded.images) > 0.8 * expected
    assert smoothness(noise) < 0.1 * expected
    # Shuffling keeps how bright an encoding is as a whole, hence some agreement.
    assert smoothness(shuffled) < 0.5 * expected


def test_public_images_found_are_recognised() -> None:
    _, features = release()
    assert share_public(features, features.of_images(SIMILAR[:30]), SIMILAR) == 1.0
    assert share_public(features, features.of_images(to_unit_range(PRIVATE.images)), SIMILAR) < 0.5


def test_laws_that_cannot_be_paired_are_refused() -> None:
    _, features = release()
    with pytest.raises(InvalidInputError, match="two private images"):
        find_pairing(features, None, EncoderConfig(num_mixed=4), "inside", n)
    with pytest.raises(InvalidInputError, match="private images for"):
        find_pairing(features, None, CONFIG, "cross", n * T + 1)


def test_of_labels_with_noise_in_every_class_the_two_largest_count() -> None:
    labels = torch.tensor([[0.3, 0.2, 0.0, 0.0], [0.4, 0.0, 0.0, 0.0]])
    clean = label_slots(labels, CONFIG, "cross")
    noised = label_slots(
        labels + torch.tensor([[0.0, 0.0, 0.05, 0.02], [0.0, 0.1, 0.05, 0.01]]), CONFIG, "cross"
    )
    assert noised[0].classes[0].tolist() == clean[0].classes[0].tolist() == [0, 1]
    assert noised[0].classes[1].tolist() == [0, 1], "the noise makes a second class of what was one"


def test_a_seed_gives_the_same_answer_twice() -> None:
    made, features = release()
    first, second = (
        find_pairing(features, made.encoded.labels, CONFIG, "cross", n, seed=3, restarts=1) for _ in range(2)
    )
    np.testing.assert_array_equal(first.private_rows, second.private_rows)
