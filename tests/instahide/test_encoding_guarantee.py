"""The guarantee of mode dp: sensitivities by brute force, composition by accountants, no other epsilon."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.encoding_guarantee import (
    dp_config_for,
    epsilon_of,
    guarantee_of_encodings,
    largest_label_share,
    row_sensitivity,
)
from instahide.errors import InvalidInputError, RefusedError
from instahide.images import ImageSet
from instahide.privacy_curves import gaussian_epsilon

from ..contracts import recorded_recipes

SHAPE = (1, 8, 8)
DATA: dict[str, Any] = {"image_shape": SHAPE, "num_classes": 3, "scheme": "inside"}


def law(**changes: Any) -> EncoderConfig:
    values: dict[str, Any] = {
        "mode": "dp",
        "noise_law": "gaussian",
        "noise_scale": 5.0,
        "label_noise_scale": 0.5,
        "coefficient_law": "equal",
    }
    return EncoderConfig(**{**values, **changes})


# --- no epsilon where there is none --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hardened", "compat", "mixup"])
def test_no_epsilon_is_given_for_a_mode_without_noise(mode: str) -> None:
    with pytest.raises(RefusedError, match="no privacy guarantee"):
        epsilon_of(EncoderConfig(mode=mode), **DATA)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"adjacency": "any"}, "adjacency"),
        ({"releases": 0}, "releases"),
        ({"partner_uses": -1}, "partner_uses"),
        ({"images_per_person": 0}, "images_per_person"),
        ({"target_delta": 0.0}, "target_delta"),
        ({"scheme": "both"}, "scheme"),
    ],
)
def test_arguments_out_of_range_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        guarantee_of_encodings(law(), **{**DATA, **change})


# --- sensitivity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_law", ["gaussian", "laplace"])
@pytest.mark.parametrize("max_norm", [None, 3.0])
@pytest.mark.parametrize("coefficient_law", ["equal", "folded-normal"])
def test_no_pair_of_images_moves_a_row_further(
    noise_law: str, max_norm: float | None, coefficient_law: str
) -> None:
    """The worst pair, black against white, through the real mixing pass, 60 rows: reached, never passed."""
    config = law(noise_law=noise_law, max_norm=max_norm, coefficient_law=coefficient_law, num_mixed=3)
    images = np.random.default_rng(0).integers(0, 256, (60, *SHAPE), dtype=np.uint8)
    images[0] = 0
    encoder = Encoder(config, private=ImageSet(images, np.arange(60) % 3))
    other = images.copy()
    other[0] = 255
    changed = Encoder(config, private=ImageSet(other, np.arange(60) % 3))
    norm = 1 if noise_law == "laplace" else 2
    moves = []
    for _ in range(4):
        with pytest.MonkeyPatch.context() as patch:
            recipes = recorded_recipes(patch)
            encoder.encode_epoch()
        (recipe,) = recipes
        rows, coefficients = recipe.sources[0].indices, recipe.weights.astype(np.float64)
        if max_norm is not None:
            assert encoder._norm_factors is not None
            assert changed._norm_factors is not None
            coefficients = coefficients / encoder._norm_factors[rows]
        for row in np.flatnonzero((rows == 0).any(axis=1)):
            mixed = []
            for version, factors in ((images, encoder._norm_factors), (other, changed._norm_factors)):
                weights = coefficients[row] * (1 if factors is None else factors[rows[row]])
                x = version[rows[row]].reshape(3, -1).astype(np.float64) / 127.5 - 1
                mixed.append(weights @ x)
            moves.append(np.linalg.norm(mixed[0] - mixed[1], ord=norm))
    bound = row_sensitivity(encoder.config, 64).image
    assert max(moves) <= bound
    if coefficient_law == "equal":  # every use has the largest coefficient, so the bound is met
        assert max(moves) == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize("scheme", ["inside", "cross"])
@pytest.mark.parametrize("coefficient_law", ["equal", "folded-normal", "dirichlet"])
def test_no_source_has_more_of_a_label_than_the_share(scheme: str, coefficient_law: str) -> None:
    config = law(coefficient_law=coefficient_law, num_mixed=4, num_private=2, label_noise_scale=1e-3)
    private = ImageSet(np.zeros((40, *SHAPE), dtype=np.uint8), np.arange(40))  # each of its own class
    pool = ImageSet(np.full((9, *SHAPE), 128, dtype=np.uint8)) if scheme == "cross" else None
    encoder = Encoder(config, private=private, public=pool)
    largest = max(float(encoder.encode_epoch().labels.max()) for _ in range(5))
    # label noise of 0.001, and the projection moves an entry by less than the largest of 40 of them
    assert largest <= largest_label_share(encoder.config) + 0.01


def test_zero_out_moves_half_as_far() -> None:
    replaced, removed = (row_sensitivity(law(), 64, kind) for kind in ("replace-one", "zero-out"))
    assert removed.image == pytest.approx(replaced.image / 2, rel=0.01)
    assert removed.label == pytest.approx(replaced.label / math.sqrt(2), rel=0.01)


# --- composition ---------------------------------------------------------------------------------


def test_a_plain_gaussian_release_has_the_textbook_epsilon() -> None:
    """k = 1, one release: sensitivity 2·√64 = 16 and √2, standard deviations 16 and √2: μ = √2."""
    config = law(num_mixed=1, num_private=1, noise_scale=16.0, label_noise_scale=math.sqrt(2))
    guarantee = guarantee_of_encodings(config, **DATA)
    assert guarantee.noise_multiplier == pytest.approx(1 / math.sqrt(2), rel=2e-3)
    assert guarantee.epsilon == pytest.approx(gaussian_epsilon(1e-5, math.sqrt(2)), rel=2e-3)
    assert guarantee.epsilon > gaussian_epsilon(1e-5, math.sqrt(2))  # the grid's step is paid for


def test_partner_roles_and_releases_are_all_counted() -> None:
    four = guarantee_of_encodings(law(num_mixed=4), **DATA)
    assert (four.own_uses, four.partner_uses) == (1, 3)
    nine = guarantee_of_encodings(law(num_mixed=4), **DATA, releases=9)
    assert (nine.own_uses, nine.partner_uses) == (9, 27)
    assert four.noise_multiplier is not None
    assert nine.noise_multiplier == pytest.approx(four.noise_multiplier / 3)
    cross = guarantee_of_encodings(law(num_mixed=4, num_private=2), **{**DATA, "scheme": "cross"})
    assert cross.partner_uses == 1
    assert guarantee_of_encodings(law(), **DATA, partner_uses=100).epsilon > four.epsilon


def test_equal_coefficients_cost_a_release_over_k() -> None:
    """U = k rows at c = 1/k: μ² = k·(1/k)² = 1/k of one unmixed release, images and labels alike."""
    one = guarantee_of_encodings(law(num_mixed=1, num_private=1), **DATA)
    four = guarantee_of_encodings(law(num_mixed=4), **DATA)
    assert one.noise_multiplier is not None
    assert four.noise_multiplier == pytest.approx(2 * one.noise_multiplier, rel=0.01)


def test_a_person_with_two_images_counts_double() -> None:
    one, two = (guarantee_of_encodings(law(), **DATA, images_per_person=g) for g in (1, 2))
    assert one.noise_multiplier is not None
    assert two.noise_multiplier == pytest.approx(one.noise_multiplier / 2)


def test_the_gaussian_figure_is_dp_accountings() -> None:
    accounting = pytest.importorskip("dp_accounting")
    guarantee = guarantee_of_encodings(law(), **DATA, releases=2)
    moves = row_sensitivity(replace(law(), num_private=4), 64)
    pld = accounting.pld.PLDAccountant()
    pld.compose(accounting.GaussianDpEvent(5.0 / moves.image), 8)
    pld.compose(accounting.GaussianDpEvent(0.5 / moves.label), 8)
    assert pld.get_epsilon(1e-5) == pytest.approx(guarantee.epsilon, rel=1e-3)


def test_laplace_takes_the_smallest_of_its_bounds() -> None:
    pytest.importorskip("dp_accounting")
    strong = law(noise_law="laplace", noise_scale=2000.0, label_noise_scale=20.0)
    # 4 rows of 64 values, each moved by 2/4, and 2 label entries by 1/4: 4·(32/2000 + 0.5/20) = 0.164
    guarantee = guarantee_of_encodings(strong, **DATA)
    assert guarantee.bounds["composition"] == pytest.approx(0.164, rel=0.01)
    assert guarantee.epsilon == min(guarantee.bounds.values())
    weak = guarantee_of_encodings(replace(strong, noise_scale=20.0), **DATA)
    assert weak.method == "pld"
    assert weak.epsilon < weak.bounds["composition"]


def test_too_little_noise_promises_nothing() -> None:
    guarantee = guarantee_of_encodings(law(noise_scale=0.05), **DATA)
    assert math.isinf(guarantee.epsilon)
    assert "no useful guarantee" in guarantee.in_words()
    assert guarantee.to_dict()["epsilon"] is None


@pytest.mark.parametrize("noise_law", ["gaussian", "laplace"])
def test_noise_for_an_epsilon_keeps_it_and_wastes_little(noise_law: str) -> None:
    pytest.importorskip("dp_accounting")
    config = dp_config_for(
        target_epsilon=3.0, target_delta=1e-5, noise_law=noise_law, num_mixed=4, releases=2, **DATA
    )
    assert 2.99 < epsilon_of(config, releases=2, target_delta=1e-5, **DATA) <= 3.0
    assert config.coefficient_law == "equal"


def test_the_words_hold_all_the_numbers_depend_on() -> None:
    text = guarantee_of_encodings(law(noise_scale=50.0, label_noise_scale=5.0), **DATA, images_per_person=3)
    for part in ("epsilon", "delta 1e-05", "person's 3 images", "replace-one", "1 own and 3 partner"):
        assert part in text.in_words()
