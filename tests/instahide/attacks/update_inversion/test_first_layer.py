from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from instahide.attacks.update_inversion import Defence, LocalTraining, build_network, defend, observe
from instahide.attacks.update_inversion.analytic import (
    affine_plane,
    first_dense_layer,
    recover_from_first_layer,
    signal_rank,
    single_rows,
)
from instahide.attacks.update_inversion.completion import complete_low_rank, spare_entries
from instahide.attacks.update_inversion.inversion import noise_like
from instahide.attacks.update_inversion.sparse_batch import on_lattice
from instahide.errors import InvalidInputError

from .inversion_examples import K, batch, case, errors


@pytest.mark.parametrize("name", ["mlp", "dense-sigmoid"])
def test_one_image_comes_out_exactly_whatever_the_activation(name: str) -> None:
    view, images, _ = case(name, 1)
    found = recover_from_first_layer(view)
    assert found.route == "rank one"
    assert found.verified.all()
    assert errors(found.images, images).max() < 1e-10


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_batch_behind_a_relu_layer_comes_out_exactly_and_proves_it(count: int) -> None:
    view, images, _ = case("mlp", count)
    found = recover_from_first_layer(view)
    assert found.rank == count
    assert found.verified.all()
    assert errors(found.images, images).max() < 1e-9


def test_local_epochs_with_momentum_decay_and_clipping_hide_nothing() -> None:
    """Four steps in batches of two: each image is behind the update with some weight, unchanged."""
    plan = {"batch_size": 2, "epochs": 2, "momentum": 0.9, "weight_decay": 5e-4, "max_gradient_norm": 5.0}
    view, images, _ = case("mlp", 4, kind="update", learning_rate=0.02, **plan)
    found = recover_from_first_layer(view)
    assert found.rank == 4
    assert errors(found.images, images).max() < 1e-6
    assert found.verified.all()


def test_the_lattice_tells_pixels_from_mixtures() -> None:
    images, _ = batch(3)
    rows = images.flatten(1).double()
    mixture = 0.37 * rows[0] + 0.63 * rows[1]
    encoding = (127 * rows[2]).round() / 127
    verdicts = on_lattice(torch.stack([rows[0], mixture, encoding, torch.zeros_like(mixture)]))
    assert verdicts.tolist() == [True, False, True, False]


def test_all_images_lie_on_the_affine_plane_of_the_first_layer() -> None:
    view, images, _ = case("dense-sigmoid", 3)
    plane = affine_plane(view)
    assert plane is not None
    rows = images.flatten(1).double() - plane.offset
    axes = torch.linalg.qr(plane.directions.T).Q.T
    outside = rows - (rows @ axes.T) @ axes
    assert float(outside.norm() / rows.norm()) < 1e-4


def test_rows_agree_only_where_one_image_is_alone() -> None:
    """Brute force: units 0-3 see image 0 alone, the rest see all three with random weights."""
    rng = torch.Generator().manual_seed(5)
    X = torch.randn(3, 40, generator=rng, dtype=torch.float64)
    delta = torch.randn(60, 3, generator=rng, dtype=torch.float64)
    delta[:4, 1:] = 0
    found = single_rows(delta @ X, delta.sum(1), dimensions=2)
    assert len(found) == 1
    torch.testing.assert_close(found[0], X[0])


def test_two_rows_on_a_line_may_agree_by_chance_and_are_not_believed() -> None:
    """Two images behind a sigmoid layer: 256 mixtures on one line crowd, yet none is an image."""
    for seed in range(3):
        view, _, _ = case("dense-sigmoid", 2, seed=seed)
        assert not recover_from_first_layer(view).verified.any()


@pytest.mark.parametrize(("share", "worst"), [(0.9, 0.02), (0.99, 0.2)])
def test_pruned_gradients_are_completed(share: float, worst: float) -> None:
    view, images, _ = case("mlp", 1, side=20)
    found = recover_from_first_layer(defend(view, Defence(prune=share)))
    assert found.verified.all()
    assert errors(found.images, images).max() < worst


def test_a_pruned_batch_is_completed_and_unmixed() -> None:
    view, images, _ = case("mlp", 3, side=20)
    found = recover_from_first_layer(defend(view, Defence(prune=0.8)))
    assert found.route == "completion, sparse batch"
    assert errors(found.images, images).max() < 0.02


@pytest.mark.parametrize("rank", [1, 3])
def test_completion_is_exact_where_enough_entries_are_kept(rank: int) -> None:
    """Independent factors, entries kept at random: the whole matrix must come back."""
    rng = torch.Generator().manual_seed(1)
    left = torch.randn(40, rank, generator=rng, dtype=torch.float64)
    right = torch.randn(30, rank, generator=rng, dtype=torch.float64)
    whole = left @ right.T
    kept = torch.rand(40, 30, generator=rng) < 0.5
    completed, residual = complete_low_rank(whole * kept, rank)
    torch.testing.assert_close(completed, whole, atol=1e-5, rtol=0)
    assert residual < 1e-12
    assert spare_entries(whole * kept, rank) > 1.5


def test_noise_on_one_image_is_averaged_over_the_units() -> None:
    """Noise as long as the gradient itself: every row alone is drowned, the singular vector is not."""
    view, images, _ = case("mlp", 1)
    size = sum(value.numel() for value in view.observed.values())
    noisy = defend(view, Defence(clip=1.0, noise_multiplier=size**-0.5))
    assert errors(recover_from_first_layer(noisy).images, images).max() < 0.1


@pytest.mark.statistical
@pytest.mark.parametrize("share", [0.0, 0.99])
def test_noise_alone_gives_nothing(share: float) -> None:
    """Noise has a largest singular value of (√H + √d)σ = 28.0σ, with fluctuations of about 1σ (Tracy-Widom);
    Gavish & Donoho's threshold is 2.2 times the median, about 33σ. To pass, ∇b must also lie along the
    leading direction by five standard deviations: chance below 1e-6 each time. A completion would have to
    explain 99 % of entries that outnumber its unknowns."""
    view, _, _ = case("mlp", 1)
    for seed in range(5):
        noise = defend(noise_like(view, seed), Defence(prune=share))
        assert not recover_from_first_layer(noise).verified.any()


def test_one_step_of_adamw_gives_the_sign_of_every_pixel_and_no_more() -> None:
    """The update is −η·sign(∇), by hand; nothing of it may be called certain."""
    view, images, _ = case("mlp", 1)
    signs = {name: -0.01 * value.sign() for name, value in view.observed.items()}
    plan = LocalTraining(num_images=1, learning_rate=0.01, optimizer="adamw")
    found = recover_from_first_layer(replace(view, observed=signs, kind="update", training=plan))
    assert not found.verified.any()
    assert torch.equal(found.images[0].sign().float(), images[0].sign())


def test_the_rank_of_noise_is_nought_and_that_of_a_signal_is_its_own() -> None:
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=(100, 200)))
    signal = 10 * torch.from_numpy(rng.normal(size=(100, 3)) @ rng.normal(size=(3, 200)))
    assert signal_rank(torch.linalg.svdvals(noise), noise.shape) == 0
    assert signal_rank(torch.linalg.svdvals(noise + signal), noise.shape) == 3
    assert signal_rank(torch.linalg.svdvals(signal), noise.shape) == 3


def test_a_network_that_takes_absolute_values_gives_those() -> None:
    images, labels = batch(2)
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K, absolute_input=True)
    found = recover_from_first_layer(observe(model, images, labels, LocalTraining(num_images=2)))
    assert found.absolute
    assert errors(found.images, images.abs()).max() < 1e-9


def test_a_convolution_a_missing_bias_or_a_norm_before_is_no_dense_first_layer() -> None:
    view, _, _ = case("lenet-sigmoid", 1)
    assert first_dense_layer(view) is None
    with pytest.raises(InvalidInputError, match="dense layer with bias"):
        recover_from_first_layer(view)
    images, labels = batch(2)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(144, 8, bias=False), nn.ReLU(), nn.Linear(8, K))
    normed = nn.Sequential(nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, K))
    for model in (flat, normed):
        assert first_dense_layer(observe(model, images, labels, LocalTraining(num_images=2))) is None


def test_more_images_than_the_rank_can_show_are_not_claimed() -> None:
    """200 images behind a layer that can show 145: nothing to separate, and nothing is said to be certain."""
    view, _, _ = case("mlp", 200)
    assert not recover_from_first_layer(view, max_rounds=1).verified.any()


def test_without_the_known_number_of_images_matching_nothing_is_unmixed() -> None:
    view, _, _ = case("mlp", 4)
    fewer = replace(view, training=LocalTraining(num_images=3))
    assert recover_from_first_layer(fewer).route in ("none", "single rows")
