"""The laws the membership attack rests on, against simulation and direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide.attacks import membership_law
from instahide.attacks.membership import _combined, _typical
from instahide.attacks.membership_law import coefficient_law, mean_of_others, null_law, visible
from instahide.attacks.view import AttackerView
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet
from instahide.mixing import to_unit_range

RNG = np.random.default_rng(0)
IMAGES = ImageSet(RNG.integers(0, 256, size=(400, 12, 12), dtype=np.uint8))
PRIVATE = ImageSet(RNG.integers(0, 256, size=(40, 12, 12), dtype=np.uint8), np.arange(40) % 3)


def view_of(config: EncoderConfig, *, labels: bool = True) -> AttackerView:
    encoded = Encoder(config, private=PRIVATE, public=IMAGES).encode_epoch()
    return AttackerView.of(encoded, IMAGES, public_pool=IMAGES, show_labels=labels)


@pytest.mark.statistical
def test_a_known_source_shifts_the_squares_as_equation_1_says() -> None:
    # λ = 0.4 of x, 0.6 of one other image: 40,000 others, e² in [0, 1], so a mean has a standard error
    # of at most 0.5/200 = 0.0025 and a difference of two 0.0035; six of them, over 144 pixels: chance 3e-7.
    rng, weight = np.random.default_rng(1), 0.4
    others = to_unit_range(rng.integers(0, 200, size=(40_000, 1, 12, 12), dtype=np.uint8))
    x, same_kind = others[0], others[20_000:]
    observed = ((weight * x + 0.6 * others) ** 2).mean(0) - (
        (weight * same_kind.roll(1, 0) + 0.6 * same_kind) ** 2
    ).mean(0)
    shift = x**2 - (others**2).mean(0)
    cross = others.mean(0) * (x - others.mean(0))
    predicted = weight**2 * shift + 2 * weight * 0.6 * cross
    assert torch.allclose(observed, predicted, atol=0.021)


@pytest.mark.statistical
def test_whitening_makes_encodings_of_unknown_images_white() -> None:
    view = view_of(EncoderConfig(num_mixed=4, mode="compat"))
    law = null_law(view, "training")
    fresh = Encoder(
        view.config, private=ImageSet(IMAGES.images, np.zeros(400, dtype=np.int64)), public=IMAGES
    )
    rows = torch.cat([law.whiten(visible(fresh.encode_epoch().images, view) - law.mean) for _ in range(10)])
    # Unit variance less the ridge, times the factor S/(S - d - 1) by which the inverse of a covariance of
    # d values estimated from S rows is too long (Hartlap et al. 2007, eq. 17). The mean of 144 variances of
    # 4,000 rows had a standard deviation of 0.006 in 30 runs: five of them, chance 6e-7.
    simulated, values = membership_law.MIN_SIMULATED, rows.shape[1]
    inflated = simulated / (simulated - values - 1)
    assert rows.var(0).mean() == pytest.approx(inflated / (1 + membership_law.RIDGE), abs=0.03)
    assert rows.mean(0).abs().max() < 0.12


@pytest.mark.statistical
def test_a_query_is_expected_with_the_largest_coefficient() -> None:
    config = EncoderConfig(num_mixed=4, mode="compat")
    training = coefficient_law(view_of(config, labels=False), "training")
    query = coefficient_law(view_of(config, labels=False), "query")
    # Folded normals, largest at most 0.65: the mean of the largest of four is 0.45 (measured in the
    # references of the project); 20,000 draws leave an error of about 0.001.
    assert float(query.grid @ query.log_prior.exp().double().numpy()) == pytest.approx(0.45, abs=0.01)
    assert query.grid.min() > training.grid.min()


def test_the_label_table_is_a_pair_of_probabilities() -> None:
    view = view_of(EncoderConfig(num_mixed=4, mode="hardened"))
    table = coefficient_law(view, "training").log_prior_with_label
    assert table is not None
    # An image that is inside is hardly ever in an encoding without its class (its weight would have to be
    # rounded to 0): bin 0 speaks against it.
    assert float(table[:, 0].exp().sum()) < 0.02
    assert float(table[:, 1:].max()) > 0


def test_queries_are_mixed_with_the_pool_only() -> None:
    dark = ImageSet(IMAGES.images // 4)
    encoded = Encoder(EncoderConfig(num_mixed=4), private=PRIVATE, public=IMAGES).encode_epoch()
    view = AttackerView.of(encoded, dark, public_pool=IMAGES)
    own, pool = to_unit_range(dark.images).mean(), to_unit_range(IMAGES.images).mean()
    assert float(mean_of_others(view, "query").mean()) == pytest.approx(float(pool), abs=1e-5)
    # Training, k = 4 with two private: of the three partners one is private, two are public.
    expected = float(own) / 3 + 2 * float(pool) / 3
    assert float(mean_of_others(view, "training").mean()) == pytest.approx(expected, abs=1e-5)


def test_several_uses_add_up_as_independent_chances() -> None:
    ratios = torch.tensor([[2.0], [0.5], [4.0]], dtype=torch.float64)
    chance = 2 / 3
    by_hand = np.prod([1 - chance + chance * r for r in (2.0, 0.5, 4.0)])
    assert float(_combined(ratios.log(), 2).exp()) == pytest.approx(by_hand)
    assert float(_combined(ratios.log(), 1).exp()) == pytest.approx(6.5 / 3)


def test_a_reference_that_is_inside_itself_does_not_count_as_typical() -> None:
    ordinary = torch.zeros(1, 200, dtype=torch.float64)
    ordinary[0, 17] = 80.0
    assert float(_typical(ordinary)) == pytest.approx(0.0)
