"""DP-SGD: the step is the paper's, the sensitivity is the clipping norm, and nothing else draws."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

import instahide.integer_noise as integer_noise
from instahide.dp_training import (
    PrivateSum,
    epsilon_by_method,
    noise_multiplier_for,
    train_with_dp,
    training_epsilon,
)
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet
from instahide.mixing import to_unit_range
from instahide.models import build_model
from instahide.training import train
from instahide.training_config import TrainingConfig

from ..contracts import forbid_framework_generators

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

SHAPE = (1, 6, 6)


def images(count: int = 12) -> ImageSet:
    """Two classes: bright above, bright below."""
    rng, labels = np.random.default_rng(count), np.arange(count) % 2
    pixels = rng.integers(0, 90, (count, *SHAPE))
    pixels[labels == 0, :, :3] += 150
    pixels[labels == 1, :, 3:] += 150
    return ImageSet(pixels.astype(np.uint8), labels)


def config(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 12,
        "learning_rate": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "lr_schedule": "constant",
        "device": "cpu",
    }
    return TrainingConfig(**{**values, **changes})


def model(name: str = "small-cnn") -> torch.nn.Module:
    return build_model(name, image_shape=SHAPE, num_classes=2)


def flat(parameters: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters]).double()


# --- the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small-cnn", "mlp"])
def test_one_step_is_the_papers_by_a_loop_over_single_images(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No noise, q = 1, rate 1: the weights move by −(1/N)·Σ g_i·min(1, C'/‖g_i‖), g_i by plain autograd."""
    monkeypatch.setattr(
        integer_noise, "draw_noise", lambda _stream, count, _law: np.zeros(count, dtype=np.int64)
    )
    data, net = images(), model(name)
    assert data.labels is not None
    expected, clipped = torch.zeros_like(flat(net.parameters())), 0
    C = PrivateSum(len(expected), 0.7, 1.0).clip_norm
    for image, label in zip(to_unit_range(data.images), data.labels, strict=True):
        loss = torch.nn.functional.cross_entropy(net(image[None]), torch.tensor([label]))
        gradient = flat(torch.autograd.grad(loss, list(net.parameters())))
        factor = min(1.0, C / float(gradient.norm()))
        clipped += factor < 1
        expected -= gradient * factor / len(data)
    assert clipped > 0
    before = flat(net.parameters())
    result = train_with_dp(
        net, data, config(), target_delta=1e-5, noise_multiplier=1.0, max_grad_norm=0.7, sample_rate=1.0
    )
    assert result.num_steps == 1
    # float32 weights of size 1 round at 6e-8, the sum at half a grid step, 0.7/2^15/12 = 1.8e-6
    torch.testing.assert_close(flat(net.parameters()) - before, expected, atol=2.5e-6, rtol=1e-4)


def test_no_example_moves_the_sum_further_than_the_clipping_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounded sum with and without one example, of norms from far below to far above the limit."""
    monkeypatch.setattr(
        integer_noise, "draw_noise", lambda _stream, count, _law: np.zeros(count, dtype=np.int64)
    )
    rng, release = np.random.default_rng(0), PrivateSum(5000, 1.5, 2.0)
    furthest = 0.0
    for norm in (0.01, 1.0, 1.4999, 1.5, 3.0, 1e6, 1e30):
        others = torch.from_numpy(rng.normal(size=(5, 5000)).astype(np.float32))
        one = torch.from_numpy(rng.normal(size=(1, 5000)).astype(np.float32))
        one *= norm / one.norm()
        release.add([others])
        without = release.release()
        release.add([torch.cat([others, one])])
        furthest = max(furthest, float((release.release() - without).norm()))
    assert 1.45 < furthest <= 1.5


def test_a_gradient_that_is_no_number_counts_as_nothing() -> None:
    release = PrivateSum(3, 1.0, 1e-2)
    release.add([torch.tensor([[math.nan, 1.0, 0.0], [math.inf, 0.0, 0.0], [0.0, 0.0, 0.5]])])
    # noise of 0.01: six standard deviations are 0.06
    torch.testing.assert_close(release.release(), torch.tensor([0.0, 0.0, 0.5]).double(), atol=0.06, rtol=0)


@pytest.mark.statistical
def test_noise_has_the_multiplier_times_the_clipping_norm() -> None:
    noise = PrivateSum(100_000, 0.5, 3.0).release()
    # the standard deviation's own is 1.5/√200,000 = 0.0034; six of them
    assert float(noise.std()) == pytest.approx(1.5, abs=0.021)
    assert float(noise.mean()) == pytest.approx(0.0, abs=6 * 1.5 / math.sqrt(1e5))


def test_too_many_weights_for_the_grid_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="too many"):
        PrivateSum(300_000_000, 1.0, 1.0)


@pytest.mark.statistical
def test_images_are_sampled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 steps of 12 images at q = 0.25: 1,800 ± 36.7 chosen, the number in a step of variance 2.25."""
    sizes: list[int] = []

    def count(_self: PrivateSum, gradients: list[torch.Tensor]) -> None:
        sizes.append(len(gradients[0]))

    monkeypatch.setattr(PrivateSum, "add", count)
    monkeypatch.setattr("instahide.dp_training.training_epsilon", lambda *_args, **_named: 1.0)
    train_with_dp(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2)),
        images(),
        config(epochs=150, learning_rate=1e-9),
        target_delta=1e-5,
        noise_multiplier=1.0,
        sample_rate=0.25,
    )
    drawn = np.array(sizes + [0] * (600 - len(sizes)))  # empty batches are not added
    assert abs(drawn.sum() - 1800) < 6 * 36.7
    assert 1.5 < drawn.var() < 3.2


def test_no_generator_of_torch_or_numpy_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    data, net = images(), model()
    train_with_dp(net, data, config(), target_delta=1e-5, noise_multiplier=1.0)  # imports are done now
    with pytest.MonkeyPatch.context() as patch:
        forbid_framework_generators(patch)
        train_with_dp(net, data, config(), target_delta=1e-5, noise_multiplier=1.0)


def test_two_runs_differ() -> None:
    first = model()
    second = copy.deepcopy(first)
    for net in (first, second):
        train_with_dp(net, images(), config(), target_delta=1e-5, noise_multiplier=1.0)
    assert not torch.equal(flat(first.parameters()), flat(second.parameters()))


def test_a_model_trained_privately_can_be_trained_on_as_usual() -> None:
    net = model()
    train_with_dp(net, images(), config(), target_delta=1e-5, noise_multiplier=1.0)
    assert not net.training
    assert not any(hasattr(parameter, "grad_sample") for parameter in net.parameters())
    train(net, images(), config(learning_rate=0.01))


def test_it_learns() -> None:
    """400 images, two easy classes: plain guessing is right half the time."""
    data, net = images(400), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
    result = train_with_dp(
        net,
        data,
        config(epochs=6, batch_size=80, learning_rate=0.3),
        target_delta=1e-4,
        noise_multiplier=2.0,
    )
    assert result.epsilon < 4
    right = net(to_unit_range(images(200).images)).argmax(dim=1).numpy() == images(200).labels
    assert right.mean() > 0.9


# --- the guarantee -------------------------------------------------------------------------------


def test_the_guarantee_is_that_of_the_steps_taken() -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    result = train_with_dp(
        model("mlp"),
        images(),
        config(epochs=20, batch_size=3),
        target_delta=1e-5,
        noise_multiplier=2.0,
        should_stop=stop,
    )
    assert (result.num_steps, result.interrupted) == (3, True)
    assert result.epsilon == pytest.approx(training_epsilon(2.0, 0.25, 3, 1e-5, num_weights=10), rel=1e-4)
    assert result.sample_rate == 0.25


def test_the_noise_for_an_epsilon_keeps_it() -> None:
    z = noise_multiplier_for(2.0, 1e-5, 1.0, 2, num_weights=1000)
    assert 1.95 < training_epsilon(z, 1.0, 2, 1e-5, num_weights=1000) <= 2.0


@pytest.mark.slow
def test_the_noise_for_an_epsilon_keeps_it_with_sampling() -> None:
    z = noise_multiplier_for(4.0, 1e-5, 0.1, 50, num_weights=1000)
    assert 3.9 < training_epsilon(z, 0.1, 50, 1e-5, num_weights=1000) <= 4.0


@pytest.mark.slow
def test_three_accountants_agree() -> None:
    figures = epsilon_by_method(1.2, 0.1, 60, 1e-5)
    assert figures["prv"] == pytest.approx(figures["pld"], rel=0.02)
    assert figures["pld"] <= figures["rdp"] <= 1.25 * figures["pld"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"noise_multiplier": None}, "target_epsilon or noise_multiplier"),
        ({"target_epsilon": 3.0}, "target_epsilon or noise_multiplier"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"target_delta": 0.0}, "target_delta"),
        ({"config": config(proximal_mu=0.1)}, "FedProx"),
    ],
)
def test_settings_without_a_guarantee_are_refused(changes: dict[str, Any], named: str) -> None:
    arguments: dict[str, Any] = {"target_delta": 1e-5, "noise_multiplier": 1.0, "config": config(), **changes}
    with pytest.raises(InvalidInputError, match=named):
        train_with_dp(model(), images(), **arguments)


def test_batch_normalisation_is_refused() -> None:
    net = build_model("small-cnn", image_shape=SHAPE, num_classes=2, normalization="batch")
    with pytest.raises(InvalidInputError, match="BatchNorm"):
        train_with_dp(net, images(), config(), target_delta=1e-5, noise_multiplier=1.0)


def test_a_model_that_works_in_place_is_refused() -> None:
    conv, relu = torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(inplace=True)
    net = torch.nn.Sequential(conv, relu, torch.nn.Flatten(), torch.nn.Linear(32, 2))
    with pytest.raises(InvalidInputError, match="in place"):
        train_with_dp(net, images(), config(), target_delta=1e-5, noise_multiplier=1.0)


def test_encodings_are_refused() -> None:
    law = EncoderConfig(mode="mixup")
    encoded = Encoder(law, private=images()).encode_epoch()
    with pytest.raises(InvalidInputError, match="several encodings"):
        train_with_dp(model(), encoded, config(), target_delta=1e-5, noise_multiplier=1.0)  # type: ignore[arg-type]
