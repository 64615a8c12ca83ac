from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from instahide.attacks.update_inversion.local_update import (
    Simulator,
    averaged_gradient,
    observe,
    sgd_response,
)
from instahide.attacks.update_inversion.networks import build_network
from instahide.attacks.update_inversion.view import LocalTraining
from instahide.encoded_dataset import EncodedDataset
from instahide.encoder_config import EncoderConfig
from instahide.light_optimizers import spare_the_compiler, take_step
from instahide.training import soft_cross_entropy, train
from instahide.training_config import TrainingConfig

from .inversion_examples import K, batch, case


def test_a_gradient_is_what_autograd_gives() -> None:
    view, images, labels = case("mlp", 3)
    model = view.model
    soft_cross_entropy(model(images), labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(view.observed[name], parameter.grad)


@pytest.mark.parametrize(
    "plan",
    [
        {"epochs": 3},
        {"epochs": 2, "momentum": 0.9, "weight_decay": 0.01},
        {"epochs": 3, "momentum": 0.5, "proximal_mu": 0.3, "max_gradient_norm": 0.5},
    ],
)
def test_unrolled_steps_are_the_training_loops_own(plan: dict[str, Any]) -> None:
    """The oracle is the loop that sites train with; whole batches, so that the order does not matter."""
    images, labels = batch(4)
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    view = observe(
        model, images, labels, LocalTraining(num_images=4, learning_rate=0.1, **plan), kind="update"
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    data = EncodedDataset(images, labels, tuple("abcde"), EncoderConfig(), "inside")
    settings = {"max_gradient_norm": None, "momentum": 0.0, "weight_decay": 0.0, **plan}
    train(
        model,
        data,
        TrainingConfig(batch_size=4, learning_rate=0.1, lr_schedule="constant", device="cpu", **settings),
    )
    for name, value in model.named_parameters():
        torch.testing.assert_close(view.observed[name], value.detach() - before[name], atol=1e-6, rtol=1e-4)


def test_an_update_is_the_weighted_mean_of_its_gradients() -> None:
    """One step with momentum and weight decay: Ḡ is that step's gradient exactly."""
    images, labels = batch(2)
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    plan = LocalTraining(num_images=2, learning_rate=0.1, momentum=0.9, weight_decay=0.1)
    gradient = observe(model, images, labels, plan).observed
    mean = averaged_gradient(observe(model, images, labels, plan, kind="update"))
    for name, value in gradient.items():
        torch.testing.assert_close(mean[name], value, atol=2e-7, rtol=1e-4)


def test_the_response_of_sgd_is_that_of_torch() -> None:
    """A one-parameter problem with a constant gradient of 1, run by torch.optim.SGD."""
    plan = LocalTraining(
        num_images=6, batch_size=2, epochs=3, learning_rate=0.05, momentum=0.8, weight_decay=0.2
    )
    decay, response = sgd_response(plan)
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    spare_the_compiler()
    optimizer = torch.optim.SGD([weight], lr=0.05, momentum=0.8, weight_decay=0.2)
    for _ in range(plan.num_steps):
        weight.grad = torch.ones_like(weight)
        take_step(optimizer)
    assert decay * 2.0 - response == pytest.approx(float(weight.detach()), abs=1e-12)


def test_the_simulated_update_is_differentiable_in_the_images() -> None:
    """Central differences in float64 against autograd, through three steps with momentum."""
    view, images, labels = case(
        "dense-sigmoid", 2, kind="update", batch_size=1, epochs=2, momentum=0.9, side=6
    )
    simulator = Simulator(view, torch.float64)

    def value(x: torch.Tensor) -> torch.Tensor:
        sent = simulator.simulate(x, labels.double())
        return torch.stack([one.square().sum() for one in sent]).sum()

    point = images.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(point), [point])
    step = torch.zeros_like(images, dtype=torch.float64)
    for place in ((0, 0, 2, 3), (1, 0, 5, 5)):
        step.zero_()
        step[place] = 1e-4
        change = value(images.double() + step) - value(images.double() - step)
        slope = float(change.detach()) / 2e-4
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-5)


def test_steps_are_cut_as_the_training_loop_cuts_them() -> None:
    plan = LocalTraining(num_images=7, batch_size=3, epochs=2)
    assert plan.batches() == [(0, 3), (3, 7)]  # the last single image joins the batch before
    assert plan.num_steps == 4
