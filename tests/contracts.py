"""What every encoder promises, whatever its mode, scheme, law or number of sources.

A new kind of encoder is added to ``ENCODERS`` and must pass every ``check_*`` below. The checks
look at results only, except where draws must be known: there the recipes handed to the mixing pass
are recorded (:func:`recorded_recipes`) and the results are computed again in float64 by brute force.

Axes: N images, K classes, k sources of a row, d = C·H·W values.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

import instahide.encoder as encoder_module
from instahide import EncodedDataset, Encoder, EncoderConfig, ImageSet
from instahide.mixing_kernel import Recipe

NUM_PRIVATE_IMAGES = 40
NUM_PUBLIC_IMAGES = 60
IMAGE_SHAPE = (3, 8, 8)
NUM_CLASSES = 3

MakeEncoder = Callable[[], Encoder]


def image_set(count: int, *, labelled: bool = True, shape: tuple[int, int, int] = IMAGE_SHAPE) -> ImageSet:
    """Textured images that differ from each other; the contents do not matter."""
    rng = np.random.default_rng(count)
    labels = np.arange(count) % NUM_CLASSES if labelled else None
    return ImageSet(rng.integers(0, 256, (count, *shape), dtype=np.uint8), labels)


def _maker(scheme: str, **values: object) -> MakeEncoder:
    config = EncoderConfig(**values)  # type: ignore[arg-type]
    private = image_set(NUM_PRIVATE_IMAGES)
    public = image_set(NUM_PUBLIC_IMAGES, labelled=False) if scheme == "cross" else None
    return lambda: Encoder(config, private=private, public=public)


ENCODERS: dict[str, MakeEncoder] = {
    f"{mode}-{scheme}-{law}": _maker(scheme, mode=mode, coefficient_law=law)
    for mode in ("hardened", "compat", "mixup")
    for scheme in ("inside", "cross")
    for law in ("folded-normal", "dirichlet")
} | {
    "one-image": _maker("inside", num_mixed=1, num_private=1),
    "two-images": _maker("inside", num_mixed=2),
    "sixteen-images": _maker("inside", num_mixed=16),
    "sixteen-images-cross": _maker("cross", num_mixed=16, num_private=7),
    "one-private": _maker("cross", num_mixed=3, num_private=1),
    "compat-four-bits": _maker("cross", mode="compat", quantization_bits=4),
    "dp-gaussian": _maker(
        "inside", mode="dp", noise_law="gaussian", noise_scale=0.3, label_noise_scale=0.2, output_range=3.0
    ),
    "dp-laplace-equal": _maker(
        "cross",
        mode="dp",
        noise_law="laplace",
        noise_scale=0.2,
        label_noise_scale=0.2,
        coefficient_law="equal",
        output_range=5.0,
    ),
}


def recorded_recipes(patch: pytest.MonkeyPatch) -> list[Recipe]:
    """A list that grows by every recipe the encoder mixes from now on."""
    recipes: list[Recipe] = []
    mix = encoder_module.mix_records

    def recording(recipe: Recipe, out: torch.Tensor, **options: object) -> None:
        recipes.append(recipe)
        mix(recipe, out, **options)  # type: ignore[arg-type]

    patch.setattr(encoder_module, "mix_records", recording)
    return recipes


def check_shapes_types_and_range(make: MakeEncoder) -> None:
    epoch = make().encode_epoch()
    assert epoch.images.shape == (NUM_PRIVATE_IMAGES, *IMAGE_SHAPE)
    assert epoch.labels.shape == (NUM_PRIVATE_IMAGES, NUM_CLASSES)
    assert epoch.images.dtype == epoch.labels.dtype == torch.float32
    assert epoch.images.abs().max() <= 1.0
    assert epoch.images.isfinite().all()
    negative_zeros = (epoch.images == 0) & torch.signbit(epoch.images)
    assert not negative_zeros.any()


def check_quantised_values_lie_on_the_grid(make: MakeEncoder) -> None:
    encoder = make()
    levels = encoder.config.quantization_levels
    images = encoder.encode_epoch().images
    if levels is None:
        assert len(images.unique()) > 256
    else:
        assert torch.equal(images, (images * levels).round() / levels)


def check_rows_of_labels(make: MakeEncoder) -> None:
    encoder = make()
    labels = encoder.encode_epoch().labels
    sums = labels.sum(dim=1)
    assert (labels >= 0).all()
    if encoder.config.coefficient_grid is not None:
        assert torch.equal(sums, torch.ones_like(sums))
        assert torch.equal(labels * 64, (labels * 64).round())
    elif encoder.config.renormalizes_labels or encoder.scheme == "inside":
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-6, rtol=0)
    else:
        assert (sums >= encoder.config.min_private_sum - 1e-6).all()
        assert (sums < 1).all()


def check_secrets_are_fresh_every_epoch(make: MakeEncoder) -> None:
    encoder = make()
    first, second = encoder.encode_epoch().images, encoder.encode_epoch().images
    # Two encodings of one image agree in a pixel's sign with probability about 1/2 under a sign mask,
    # and without one differ because sources and coefficients do.
    differing = (first != second).flatten(1).any(dim=1)
    assert differing.all()
    if encoder.config.has_sign_mask:
        agreement = (torch.signbit(first) == torch.signbit(second)).float().mean().item()
        # 7,680 fair bits: standard deviation 0.0057; six of them, and the few zeros, are below 0.05.
        assert abs(agreement - 0.5) < 0.05


def check_each_image_is_own_once_and_partner_equally_often(make: MakeEncoder) -> None:
    encoder = make()
    with pytest.MonkeyPatch.context() as patch:
        recipes = recorded_recipes(patch)
        encoder.encode_epoch()
    rows = np.concatenate([recipe.sources[0].indices for recipe in recipes])
    assert rows.shape == (NUM_PRIVATE_IMAGES, encoder.config.num_private)
    assert rows[:, 0].tolist() == list(range(NUM_PRIVATE_IMAGES))
    uses = np.bincount(rows[:, 1:].ravel(), minlength=NUM_PRIVATE_IMAGES)
    assert uses.tolist() == [encoder.partner_uses_per_epoch] * NUM_PRIVATE_IMAGES
    assert all(len(set(row)) == len(row) for row in rows.tolist())


def check_public_sources_are_distinct_in_a_row(make: MakeEncoder) -> None:
    encoder = make()
    with pytest.MonkeyPatch.context() as patch:
        recipes = recorded_recipes(patch)
        encoder.encode_epoch()
    if encoder.scheme == "inside":
        assert all(len(recipe.sources) == 1 for recipe in recipes)
        return
    rows = np.concatenate([recipe.sources[1].indices for recipe in recipes])
    assert rows.shape[1] == encoder.config.num_mixed - encoder.config.num_private
    assert all(len(set(row)) == len(row) for row in rows.tolist())


def check_coefficients_are_within_bounds(make: MakeEncoder) -> None:
    encoder = make()
    config = encoder.config
    with pytest.MonkeyPatch.context() as patch:
        recipes = recorded_recipes(patch)
        encoder.encode_epoch()
    weights = np.concatenate([recipe.weights * (255.0 / recipe.total) for recipe in recipes])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    assert (weights[:, 0] > 0).all()
    if config.num_mixed > 1:
        assert weights.max() <= config.max_coefficient + 1e-6
    if encoder.scheme == "cross":
        assert weights[:, : config.num_private].sum(axis=1).min() >= config.min_private_sum - 1e-6


def check_encodings_equal_the_law_in_float64(make: MakeEncoder) -> None:
    """The independent oracle: every pixel again from the draws, by plain loops over records and sources."""
    encoder = make()
    with pytest.MonkeyPatch.context() as patch:
        recipes = recorded_recipes(patch)
        encoded = encoder.encode_epoch().images.flatten(1).double().numpy()
    expected = np.concatenate([brute_force_encodings(recipe) for recipe in recipes])
    if encoder.config.has_noise:
        noise_must_lie_on_the_mixed_image(encoder.config, encoded - expected / encoder.config.output_range)
        return
    if encoder.config.quantization_levels is None:
        # float32: k roundings of sums up to 255, each 2^-24 relative, and a division: far below 3e-6.
        np.testing.assert_allclose(encoded, expected, atol=3e-6, rtol=0)
        return
    # A value within float error of a rounding boundary may fall one level to either side; that is rare.
    off = np.abs(encoded - expected) * encoder.config.quantization_levels
    assert off.max() < 1.0 + 1e-6
    assert (off > 1e-4).mean() < 1e-3


def noise_must_lie_on_the_mixed_image(config: EncoderConfig, residual: np.ndarray) -> None:
    """Mean 0 and the law's standard deviation: 7,680 values, so within 6 of their own standard deviations
    (0.011 of sd; for the sd itself 0.8 % under Gaussian, 1.3 % under Laplace noise)."""
    sd = config.noise_scale * (2**0.5 if config.noise_law == "laplace" else 1.0) / config.output_range
    assert abs(residual.mean()) < 6 * sd / residual.size**0.5
    assert abs(residual.std() / sd - 1) < 0.08


def brute_force_encodings(recipe: Recipe) -> np.ndarray:
    """(B, d) float64, from the definition: mix, round with the dither, flip."""
    rows = []
    for record in range(len(recipe.weights)):
        images = [part.images[i].reshape(-1) for part in recipe.sources for i in part.indices[record]]
        coefficients = recipe.weights[record].astype(np.float64) * 255.0 / recipe.total
        mixed = sum(c * (p.astype(np.float64) / 127.5 - 1) for c, p in zip(coefficients, images, strict=True))
        if recipe.levels is not None:
            assert recipe.dither is not None
            offsets = (recipe.dither[record, : len(mixed)].astype(np.float64) + 0.5) / 256
            mixed = np.sign(mixed) * np.floor(np.abs(mixed) * recipe.levels + offsets) / recipe.levels
        if recipe.sign_bits is not None:
            byte = recipe.sign_bits[record]
            signs = [-1.0 if byte[i // 8] >> (i % 8) & 1 else 1.0 for i in range(len(mixed))]
            mixed = mixed * np.array(signs)
        rows.append(mixed)
    return np.stack(rows)


def check_no_framework_generator_is_touched(make: MakeEncoder) -> None:
    """Every way torch, numpy and ``random`` offer to draw or seed raises, and encoding goes on."""
    with pytest.MonkeyPatch.context() as patch:
        forbid_framework_generators(patch)
        with pytest.raises(AssertionError, match="generator"):
            torch.rand(1)
        encoder = make()
        encoder.encode_epoch()
        list(encoder.encode_batches(7))
        encoder.encode_views(encoder._private, 2)


def forbid_framework_generators(patch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a framework generator was touched")

    functions = "rand randn randint randperm bernoulli multinomial normal poisson rand_like randn_like "
    functions += "randint_like manual_seed seed initial_seed get_rng_state set_rng_state Generator"
    for name in functions.split():
        patch.setattr(torch, name, forbidden)
    for name in ("random_", "uniform_", "normal_", "bernoulli_", "exponential_", "geometric_", "cauchy_"):
        patch.setattr(torch.Tensor, name, forbidden)
    for name in dir(np.random):
        if name != "test" and not name.startswith("_") and callable(getattr(np.random, name)):
            patch.setattr(np.random, name, forbidden)
    for name in dir(random):
        if not name.startswith("_") and callable(getattr(random, name)):
            patch.setattr(random, name, forbidden)


def check_nothing_secret_in_results(make: MakeEncoder) -> None:
    encoder = make()
    epoch = encoder.encode_epoch()
    assert {field.name for field in fields(epoch)} == {"images", "labels", "class_names", "config", "scheme"}
    assert not hasattr(epoch, "__dict__")
    assert (
        epoch.images.untyped_storage().nbytes() == epoch.images.numel() * 4
    )  # nothing hides behind the view
    root = encoder._randomness._root
    for text in (repr(encoder), repr(epoch), repr(encoder._randomness)):
        assert root.hex() not in text
        assert repr(root) not in text


def check_batches_are_one_epoch(make: MakeEncoder) -> None:
    encoder = make()
    with pytest.MonkeyPatch.context() as patch:
        recipes = recorded_recipes(patch)
        batches = list(encoder.encode_batches(7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 7, 5]
    assert all(isinstance(batch, EncodedDataset) for batch in batches)
    rows = np.concatenate([recipe.sources[0].indices for recipe in recipes])
    assert rows[:, 0].tolist() == list(range(NUM_PRIVATE_IMAGES))
    uses = np.bincount(rows[:, 1:].ravel(), minlength=NUM_PRIVATE_IMAGES)
    assert set(uses.tolist()) == {encoder.partner_uses_per_epoch}


def check_batches_can_start_later(make: MakeEncoder) -> None:
    with pytest.MonkeyPatch.context() as patch:
        recipes = recorded_recipes(patch)
        batches = list(make().encode_batches(30, start=33))
    assert [len(batch) for batch in batches] == [7]
    assert recipes[0].sources[0].indices[:, 0].tolist() == list(range(33, 40))


def check_views_of_queries(make: MakeEncoder) -> None:
    encoder, queries = make(), image_set(5, labelled=False)
    with pytest.MonkeyPatch.context() as patch:
        recipes = recorded_recipes(patch)
        views = encoder.encode_views(queries, 3)
    assert views.shape == (3, 5, *IMAGE_SHAPE)
    assert views.dtype == torch.float32
    assert views.abs().max() <= 1
    for recipe in recipes:
        assert recipe.sources[0].images is queries.images
        assert recipe.sources[0].indices.tolist() == [[0], [1], [2], [3], [4]]
        assert (recipe.weights[:, :1] >= recipe.weights).all()
    if encoder.config.num_mixed > 1 or encoder.config.has_sign_mask:
        assert not torch.equal(views[0], views[1])


def check_input_is_untouched(make: MakeEncoder) -> None:
    encoder = make()
    before = encoder._private.images.copy()
    encoder.encode_epoch()
    assert np.array_equal(before, encoder._private.images)


CHECKS = {name: value for name, value in list(globals().items()) if name.startswith("check_")}
