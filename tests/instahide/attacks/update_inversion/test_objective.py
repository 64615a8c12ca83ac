from __future__ import annotations

import pytest
import torch

from instahide.attacks.update_inversion import Defence, LocalTraining, build_network, defend, observe
from instahide.attacks.update_inversion.local_update import Simulator
from instahide.attacks.update_inversion.objective import (
    Objective,
    batch_statistics,
    running_statistics,
    statistics_from_running,
    total_variation,
)

from .inversion_examples import K, batch, case


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("sign_masked", [False, True])
def test_the_objectives_gradient_is_that_of_finite_differences(distance: str, sign_masked: bool) -> None:
    images, labels = batch(2, side=8)
    model = build_network("lenet-sigmoid", image_shape=(1, 8, 8), num_classes=K)
    view = observe(model, images, labels, LocalTraining(num_images=2), sign_masked=sign_masked)
    objective = Objective(Simulator(view, torch.float64), distance=distance, total_variation=0.1)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    point = start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(point, labels.double()), [point])
    step = 1e-6
    for place in ((0, 0, 1, 1), (1, 0, 6, 2)):
        shift = torch.zeros_like(start)
        shift[place] = step
        high = float(objective(start + shift, labels.double()).detach())
        low = float(objective(start - shift, labels.double()).detach())
        assert float(gradient[place]) == pytest.approx((high - low) / (2 * step), rel=1e-4, abs=1e-9)


def test_total_variation_by_hand() -> None:
    picture = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert float(total_variation(picture)) == pytest.approx((3 + 2) / 2 + (1 + 0) / 2)


@pytest.mark.parametrize(
    "defence", [Defence(), Defence(prune=0.9), Defence(clip=1e-3), Defence(clip=1e-3, prune=0.5)]
)
def test_the_true_images_explain_a_defended_update_wholly(defence: Defence) -> None:
    """Adaptive: the candidates' update is clipped and compared as the real one was."""
    view, images, labels = case("lenet-sigmoid", 2, side=8)
    objective = Objective(Simulator(defend(view, defence)), distance="euclidean")
    assert float(objective(images, labels).detach()) < 1e-6
    assert objective.unexplained(images, labels) < 1e-5
    assert objective.unexplained(batch(2, seed=50, side=8)[0], labels) > 1e-3


def test_batch_statistics_are_zero_distance_at_the_true_batch() -> None:
    images, labels = batch(4)
    model = build_network("batchnorm-cnn", image_shape=(1, 12, 12), num_classes=K)
    view = observe(model, images, labels, LocalTraining(num_images=4))
    exact = Objective(Simulator(view), batch_norm=1.0, statistics=batch_statistics(model, images))
    running = Objective(Simulator(view), batch_norm=1.0, statistics=running_statistics(model))
    assert float(exact(images, labels).detach()) < 1e-4
    assert float(running(images, labels).detach()) > 0.1


def test_running_statistics_give_the_batches_own_away() -> None:
    images, _ = batch(4)
    model = build_network("batchnorm-cnn", image_shape=(1, 12, 12), num_classes=K)
    before = running_statistics(model)
    model.train()(images)
    exact = batch_statistics(model, images)
    for count, name in ((4 * 36, "1"), (4 * 9, "4")):
        read = statistics_from_running(before, running_statistics(model), count=count)[name]
        torch.testing.assert_close(read[0], exact[name][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(read[1], exact[name][1], atol=1e-5, rtol=1e-4)
