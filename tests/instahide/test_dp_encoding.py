"""Mode dp: images shortened, noise on images and labels, everything after it post-processing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from instahide.dp_encoding import clipped_weights, nearest_on_simplex, norm_factors
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet
from instahide.storage import load_encoded, save_encoded

from ..contracts import image_set


def law(**changes: Any) -> EncoderConfig:
    values: dict[str, Any] = {
        "mode": "dp",
        "noise_law": "gaussian",
        "noise_scale": 0.5,
        "label_noise_scale": 0.1,
    }
    return EncoderConfig(**{**values, **changes})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"noise_law": "uniform"}, "noise_law"),
        ({"noise_scale": 0.0}, "noise_scale"),
        ({"label_noise_scale": 0.0}, "label_noise_scale"),
        ({"noise_scale": float("nan")}, "noise_scale"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"output_range": -1.0}, "output_range"),
    ],
)
def test_a_noise_that_makes_no_sense_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        law(**values)


def test_noise_belongs_to_mode_dp_and_equal_coefficients_to_modes_without_mask() -> None:
    with pytest.raises(InvalidInputError, match="noise_scale"):
        EncoderConfig(noise_scale=0.3)
    with pytest.raises(InvalidInputError, match="equal"):
        EncoderConfig(coefficient_law="equal")


def test_dictionaries_of_other_modes_hold_no_noise_and_those_of_dp_hold_all() -> None:
    assert "noise_law" not in EncoderConfig().to_dict()
    config = law(max_norm=4.0)
    assert EncoderConfig.from_dict(config.to_dict()) == config
    values = config.to_dict()
    del values["max_norm"]
    with pytest.raises(InvalidInputError, match="not an encoder configuration"):
        EncoderConfig.from_dict(values)
    with pytest.raises(InvalidInputError, match="not an encoder configuration"):
        EncoderConfig.from_dict(EncoderConfig().to_dict() | {"noise_law": "none"})


@pytest.mark.parametrize(("noise_law", "order"), [("gaussian", 2), ("laplace", 1)])
def test_images_are_shortened_to_the_norm_of_the_noise(noise_law: str, order: int) -> None:
    images = image_set(20).images
    norms = np.linalg.norm((images.astype(np.float64) / 127.5 - 1).reshape(20, -1), ord=order, axis=1)
    limit = float(np.median(norms))
    factors = norm_factors(images, law(noise_law=noise_law, max_norm=limit))
    assert factors is not None
    np.testing.assert_allclose(factors, np.minimum(1, limit / norms), rtol=1e-12)
    assert norm_factors(images, law()) is None


def test_only_private_columns_are_shortened() -> None:
    weights = clipped_weights(np.full((2, 3), 1 / 3), np.array([0.5, 1.0]), np.array([[0], [1]]))
    np.testing.assert_allclose(weights, [[1 / 6, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]])


def test_a_shortened_image_is_released_around_its_shortened_self() -> None:
    """k = 1, 400 copies of a white image of norm 8 shortened to 2: values 0.25, not 1."""
    images = ImageSet(np.full((400, 1, 8, 8), 255, dtype=np.uint8), np.arange(400) % 2)
    config = law(num_mixed=1, num_private=1, max_norm=2.0, output_range=4.0)
    encoded = Encoder(config, private=images).encode_epoch().images * 4.0
    # 25,600 values of standard deviation 0.5: the mean's is 0.0031, six of them 0.019
    assert float(encoded.mean()) == pytest.approx(0.25, abs=0.019)


def test_projection_is_the_nearest_point_of_the_simplex() -> None:
    """Karush, Kuhn and Tucker: all kept entries moved by one number, none dropped lay above it."""
    rows = np.random.default_rng(1).normal(size=(200, 6))
    nearest = nearest_on_simplex(rows)
    np.testing.assert_allclose(nearest.sum(axis=1), 1.0, atol=1e-12)
    assert (nearest >= 0).all()
    moved = rows - nearest
    for row, shift in zip(nearest, moved, strict=True):
        kept = row > 0
        assert np.ptp(shift[kept]) < 1e-12
        assert (shift[~kept] <= shift[kept].max() + 1e-12).all()


def test_noise_is_fresh_in_every_row_and_epoch() -> None:
    images = ImageSet(np.full((30, 1, 8, 8), 77, dtype=np.uint8), np.arange(30) % 3)
    encoder = Encoder(law(output_range=4.0), private=images)
    rows = torch.cat([encoder.encode_epoch().images for _ in range(2)]).flatten(1)
    correlation = torch.corrcoef(rows)
    correlation.fill_diagonal_(0)
    # 60 equal images: what is left is noise; 1,770 correlations of 64 values, sd 1/8, six of them 0.75
    assert correlation.abs().max() < 0.75


@pytest.mark.parametrize("scheme", ["inside", "cross"])
def test_dp_encodings_can_be_stored(scheme: str, tmp_path: Any) -> None:
    public = image_set(30, labelled=False) if scheme == "cross" else None
    epoch = Encoder(law(noise_law="laplace"), private=image_set(20), public=public).encode_epoch()
    save_encoded(epoch, tmp_path / "encoded")
    again = load_encoded(tmp_path / "encoded")
    assert torch.equal(again.images, epoch.images)
    assert torch.equal(again.labels, epoch.labels)
    assert again.config == epoch.config


def test_views_of_queries_leave_private_images_alone() -> None:
    """Inside scheme: private images white, queries black; a view is black with noise."""
    private = ImageSet(np.full((9, 1, 16, 16), 255, dtype=np.uint8), np.arange(9) % 2)
    queries = ImageSet(np.zeros((2, 1, 16, 16), dtype=np.uint8))
    views = Encoder(law(output_range=4.0), private=private).encode_views(queries, 2) * 4.0
    # 1,024 values of standard deviation 0.5 around −1
    assert float(views.mean()) == pytest.approx(-1.0, abs=0.1)
