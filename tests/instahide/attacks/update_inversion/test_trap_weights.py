"""Crafted first layers: which inputs one update of them gives away, counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from instahide.attacks.update_inversion import (
    InversionSettings,
    LocalTraining,
    UpdateView,
    build_network,
    invert,
    observe,
    read_traps,
    securely_aggregated,
    set_traps,
)
from instahide.attacks.update_inversion.inversion import noise_like
from instahide.attacks.update_inversion.trap_weights import alone_in_theory
from instahide.errors import InvalidInputError

from .inversion_examples import K, batch, case

STAND_INS = batch(600, seed=900)[0]
EXACT = 1e-6


def trapped(count: int, *, kind: str = "units", **settings: Any) -> nn.Module:
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    return set_traps(model, STAND_INS, num_images=count, kind=kind, **settings)


def update_of(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **plan: Any) -> UpdateView:
    training = LocalTraining(num_images=len(images), **plan)
    return observe(model, images, labels, training, kind="update" if plan else "gradient")


def came_out(found: torch.Tensor, truth: torch.Tensor) -> set[int]:
    """Which of the true images are among those found, by mean square error."""
    distance = (truth.double()[:, None] - found.double()[None]).square().flatten(2).mean(-1)
    return set(np.flatnonzero((distance < EXACT).any(1).numpy()).tolist()) if len(found) else set()


def alone_somewhere(model: nn.Module, images: torch.Tensor) -> set[int]:
    """The oracle: images that are the only one to make some unit of the first layer fire."""
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        fires = (images.flatten(1) @ first.weight.T + first.bias) > 0  # (n, H)
    alone = fires[:, fires.sum(0) == 1]
    return set(np.flatnonzero(alone.any(1).numpy()).tolist())


def alone_in_a_bin(model: nn.Module, images: torch.Tensor) -> set[int]:
    """The oracle for bins: sort the values of v·x and the thresholds into one list."""
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    values = (images.flatten(1).double() @ first.weight[0].double()).tolist()
    thresholds = sorted((-first.bias.double()).tolist())
    bins = [sum(threshold < value for threshold in thresholds) for value in values]
    inner = range(1, len(thresholds))  # beyond the last threshold there is no neighbour to take away
    return {i for i, place in enumerate(bins) if bins.count(place) == 1 and place in inner}


@pytest.mark.parametrize("count", [8, 40])
def test_every_image_that_fires_a_unit_alone_comes_out_exactly(count: int) -> None:
    images, labels = batch(count, seed=3)
    model = trapped(count)
    view = update_of(model, images, labels)
    found = read_traps(view)
    expected = alone_somewhere(model, images)
    assert len(expected) > count / 2
    assert came_out(found.images, images) == expected
    assert came_out(found.images[found.verified], images) == expected


@pytest.mark.parametrize("count", [8, 40])
def test_every_image_alone_in_its_bin_comes_out(count: int) -> None:
    images, labels = batch(count, seed=3)
    model = trapped(count, kind="bins")
    found = read_traps(update_of(model, images, labels))
    expected = alone_in_a_bin(model, images)
    assert len(expected) > count / 2
    assert expected <= came_out(found.images, images)


def test_an_honest_layer_gives_no_image_of_such_a_batch_by_the_same_reading() -> None:
    view, images, _ = case("mlp", 40)
    found = read_traps(view)
    assert came_out(found.images, images) == set()
    assert not found.verified.any()


def test_traps_are_found_by_the_inversion_and_nothing_is_in_noise() -> None:
    images, labels = batch(20, seed=3)
    view = update_of(trapped(20), images, labels)
    settings = InversionSettings(method="traps")
    found = invert(view, settings)
    assert found.route == "first layer, traps"
    assert found.believed
    assert len(found.images) <= 20
    assert not invert(noise_like(view, 7), settings).believed


def test_units_hold_their_image_through_local_epochs_with_momentum_decay_and_clipping() -> None:
    images, labels = batch(24, seed=3)
    model = trapped(24)
    plan = {"batch_size": 8, "epochs": 2, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    view = update_of(model, images, labels, max_gradient_norm=5.0, **plan)
    found = read_traps(view)
    assert len(came_out(found.images, images)) > 12


def test_a_mean_over_five_sites_gives_their_images_as_one_site_would() -> None:
    images, labels = batch(40, seed=3)
    model = trapped(40)
    parts = [update_of(model, images[i : i + 8], labels[i : i + 8]) for i in range(0, 40, 8)]
    mean = read_traps(securely_aggregated(parts))
    assert came_out(mean.images, images) == alone_somewhere(model, images)


def test_more_images_than_planned_for_hide_each_other() -> None:
    """Traps for one of 8 fire for five of 40: almost no unit is left to a single image."""
    images, labels = batch(40, seed=3)
    few = came_out(read_traps(update_of(trapped(8), images, labels)).images, images)
    assert len(few) < len(came_out(read_traps(update_of(trapped(40), images, labels)).images, images)) / 2


def test_a_step_of_adam_leaves_no_grey_values() -> None:
    images, labels = batch(8, seed=3)
    view = observe(trapped(8), images, labels, LocalTraining(num_images=8), kind="update")
    adam = UpdateView(
        view.model,
        {name: -0.05 * value.sign() for name, value in view.observed.items()},
        "update",
        LocalTraining(num_images=8, optimizer="adamw"),
        view.image_shape,
        K,
    )
    found = read_traps(adam)
    assert not found.verified.any()
    assert came_out(found.images, images) == set()


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["units", "bins"])
def test_the_expected_number_is_that_of_drawing_at_random(kind: str) -> None:
    """Simulated with N = 30, H = 64, 4,000 times; the count has a standard deviation below 3, so the mean
    one below 0.05, and 0.25 is five of them: a false alarm in two million."""
    rng = np.random.default_rng()
    N, H, total = 30, 64, 0
    for _ in range(4000):
        if kind == "bins":
            total += int((np.bincount(rng.integers(H, size=N), minlength=H) == 1).sum())
        else:
            fires = rng.random((N, H)) < 1 / N
            total += int(fires[:, fires.sum(0) == 1].any(1).sum())
    assert abs(total / 4000 - alone_in_theory(N, H, kind)) < 0.25


@pytest.mark.parametrize("name", ["small-cnn", "dense-sigmoid"])
def test_networks_that_hold_no_such_trap_are_named(name: str) -> None:
    model = build_network(name, image_shape=(1, 12, 12), num_classes=K)
    with pytest.raises(InvalidInputError, match="begins with a dense layer and ReLU"):
        set_traps(model, STAND_INS, num_images=8)


def test_wrong_wishes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no traps of kind"):
        trapped(8, kind="mines")
    with pytest.raises(InvalidInputError, match="stand-ins"):
        set_traps(trapped(8), STAND_INS[:1], num_images=8)
    with pytest.raises(InvalidInputError, match="begin with a dense layer"):
        read_traps(case("small-cnn", 2)[0])
