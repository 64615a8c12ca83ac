"""The attack as a whole: power, null, and what may be believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from instahide.attacks.update_inversion import (
    Defence,
    Inversion,
    InversionSettings,
    LocalTraining,
    attack_update,
    build_network,
    defend,
    invert,
    observe,
    securely_aggregated,
)
from instahide.attacks.update_inversion.attack import null_check, planted_canary, power_check
from instahide.attacks.update_inversion.attempt import agreement
from instahide.attacks.update_inversion.cosine import cosine_inversion
from instahide.attacks.update_inversion.deep_leakage import deep_leakage
from instahide.attacks.update_inversion.inversion import noise_like
from instahide.attacks.update_inversion.local_update import Simulator
from instahide.attacks.update_inversion.objective import Objective, batch_statistics
from instahide.errors import InvalidInputError

from .inversion_examples import K, batch, case, errors

FAST = InversionSettings(restarts=2, iterations=150, steps=150)


def test_a_planted_raw_image_is_recovered() -> None:
    assert planted_canary() < 1e-10


def test_dense_updates_are_found_and_noise_is_not() -> None:
    view, _, _ = case("mlp", 3)
    assert power_check(view, FAST).startswith("found 3 planted images")
    assert null_check(view, FAST) == "nothing found in noise"


def test_deep_leakage_finds_the_image_and_its_label() -> None:
    """Zhu et al. 2019: both are free; the label must come out as the true class."""
    view, images, labels = case("lenet-sigmoid", 1, side=8)
    best = deep_leakage(Simulator(view, torch.float64), labels=None, restarts=3, iterations=200)[0]
    assert errors(best.images, images).max() < 1e-4
    assert int(best.labels.argmax()) == int(labels.argmax())


def test_deep_leakage_in_the_plane_of_a_dense_layer_is_exact_for_a_batch() -> None:
    view, images, _ = case("dense-sigmoid", 3)
    found = invert(view, FAST)
    assert found.route == "L-BFGS in the first layer's plane"
    assert errors(found.images, images).max() < 1e-8
    assert found.believed is True


def test_the_cosine_attack_finds_an_image_behind_a_relu_convolution_and_says_so() -> None:
    view, images, _ = case("small-cnn", 1)
    found = invert(view, FAST)
    assert found.route == "cosine and total variation"
    # A grey image scores 0.25 here.
    assert errors(found.images, images).max() < 0.08
    assert found.believed is True
    assert found.unexplained < 0.3 < found.null_unexplained


def test_pure_noise_is_not_believed_by_the_optimising_attacks() -> None:
    for name in ("lenet-sigmoid", "small-cnn"):
        view, _, _ = case(name, 1, side=8)
        assert not invert(noise_like(view, 7), replace(FAST, iterations=60, steps=60)).believed


def test_several_local_steps_are_followed_one_by_one() -> None:
    view, images, labels = case("lenet-sigmoid", 2, kind="update", batch_size=1, side=8, learning_rate=0.1)
    objective = Objective(Simulator(view))
    assert objective.unexplained(images, labels) < 1e-6
    attempt = cosine_inversion(objective, labels=labels, restarts=1, steps=300)[0]
    assert errors(attempt.images, images).mean() < 0.12  # grey: 0.25


def test_batch_statistics_help_where_they_are_given() -> None:
    images, labels = batch(4)
    model = build_network("batchnorm-cnn", image_shape=(1, 12, 12), num_classes=K)
    statistics = batch_statistics(model, images)
    view = observe(model, images, labels, LocalTraining(num_images=4), batch_statistics=statistics)
    view = replace(view, labels=labels)
    settings = replace(FAST, restarts=1, batch_norm=0.1)
    exact = invert(view, replace(settings, statistics="exact"))
    running = invert(view, replace(settings, statistics="running"))
    assert errors(exact.images, images).mean() < errors(running.images, images).mean()


def test_secure_aggregation_of_small_sites_behind_a_dense_layer_hides_nothing() -> None:
    view, images, labels = case("mlp", 6)
    parts = [
        observe(view.model, images[i : i + 2], labels[i : i + 2], LocalTraining(num_images=2))
        for i in (0, 2, 4)
    ]
    found = invert(securely_aggregated(parts))
    assert found.verified.all()
    assert errors(found.images, images).max() < 1e-9


def test_the_result_says_what_was_seen_assumed_and_scored() -> None:
    view, images, labels = case("mlp", 2)
    defended = defend(view, Defence(clip=100.0))
    result, found = attack_update(defended, FAST, true_images=images, true_labels=labels)
    assert result.leaked is True
    assert result.verdict.startswith("2 of the 2 images behind this update were recovered")
    assert result.metrics["exact_share"] == 1.0
    assert result.metrics["label_accuracy"] == 1.0
    assert result.metrics["label_error"] < 1e-4
    assert result.baselines["mean_ssim"] < 0.5 < result.metrics["mean_ssim"]
    assert result.checks["null"] == "nothing found in noise"
    assert any("clipping bound 100" in line for line in result.assumptions)
    assert any("labels are not given" in line for line in result.assumptions)
    assert set(result.pictures) == {"input of the site", "recovered"}
    assert found.labels is not None


def test_a_budget_ends_the_search_in_order_and_says_so() -> None:
    view, _, _ = case("small-cnn", 1, side=8)
    seen: list[str] = []
    result, found = attack_update(
        view,
        InversionSettings(steps=100_000),
        rehearse=False,
        max_seconds=0.5,
        progress=lambda done, total, text: seen.append(text),
    )
    assert found.ran_out
    assert "time budget" in result.verdict
    assert seen


@pytest.mark.parametrize(
    ("verified", "unexplained", "null", "agreed", "believed"),
    [
        (True, 0.0, float("nan"), float("nan"), True),
        (False, 0.1, 0.9, 0.95, True),
        (False, 0.1, 0.9, 0.2, None),
        (False, 0.89, 0.9, 0.95, False),
        (False, 0.1, 0.9, float("nan"), None),
        (False, 0.1, float("nan"), 0.9, None),
    ],
)
def test_what_is_believed(
    verified: bool, unexplained: float, null: float, agreed: float, believed: bool | None
) -> None:
    images = torch.zeros(1, 1, 4, 4)
    found = Inversion(images, None, torch.tensor([verified]), "L-BFGS", 1, unexplained, null, agreed)
    assert found.believed is believed


def test_agreement_ignores_order_and_is_low_between_strangers() -> None:
    images, _ = batch(4)
    assert agreement(images, images.flip(0)) == pytest.approx(1.0)
    assert agreement(images, batch(4, seed=99)[0]) < 0.6


def test_impossible_wishes_are_refused() -> None:
    view, _, _ = case("small-cnn", 1)
    with pytest.raises(InvalidInputError, match="does not begin with a dense layer"):
        invert(view, InversionSettings(method="analytic"))
    with pytest.raises(InvalidInputError, match="no batch statistics"):
        invert(view, InversionSettings(statistics="exact"))
    with pytest.raises(InvalidInputError, match="zero everywhere"):
        invert(replace(view, observed={n: v * 0 for n, v in view.observed.items()}))
    with pytest.raises(InvalidInputError, match="method is 'magic'"):
        InversionSettings(method="magic")
    with pytest.raises(InvalidInputError, match="no model 'vgg'"):
        build_network("vgg", image_shape=(1, 8, 8), num_classes=2)
