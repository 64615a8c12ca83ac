from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet
from instahide.models import ImageClassifier, build_model
from instahide.training import DivergedError, soft_cross_entropy, train
from instahide.training_config import TrainingConfig

QUICK = TrainingConfig(epochs=3, batch_size=16, deterministic=True, num_threads=1, device="cpu")


def striped_images(count: int = 60, *, side: int = 12) -> ImageSet:
    """Two classes, horizontal and vertical stripes, in noise: easy, not trivial."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    waves = 80 * np.sin(np.arange(side)[None, :] + rng.uniform(0, 6, (count, 1)))
    images = np.where(labels[:, None, None] == 1, waves[:, :, None], waves[:, None, :])
    noisy = images + rng.normal(128, 20, (count, side, side))
    return ImageSet(noisy.clip(0, 255).astype(np.uint8), labels)


def fresh(**options: bool) -> ImageClassifier:
    return build_model("small-cnn", image_shape=(1, 12, 12), num_classes=2, **options)  # type: ignore[arg-type]


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_plain_images_are_learnt(optimizer: str) -> None:
    rate = {"sgd": 0.05, "adamw": 0.003}[optimizer]
    result = train(
        fresh(), striped_images(), replace(QUICK, epochs=8, optimizer=optimizer, learning_rate=rate)
    )
    assert result.history[-1].accuracy == 1.0
    assert result.history[-1].loss < result.history[0].loss / 4
    assert (result.num_steps, result.num_examples) == (8 * 4, 8 * 60)


def test_encodings_are_learnt_afresh_each_epoch() -> None:
    encoder = Encoder(EncoderConfig(num_mixed=2), private=striped_images(120))
    calls = []

    def epoch() -> object:
        calls.append(1)
        return encoder.encode_epoch()

    result = train(fresh(absolute_input=True), epoch, replace(QUICK, epochs=4))  # type: ignore[arg-type]
    assert len(calls) == 4
    assert result.history[-1].loss < result.history[0].loss


def test_rows_of_a_label_weigh_by_their_sum() -> None:
    scores, targets = torch.randn(5, 3), torch.rand(5, 3)
    by_hand = -(targets * scores.log_softmax(1)).sum(1).mean()
    assert soft_cross_entropy(scores, targets) == pytest.approx(float(by_hand), rel=1e-5)
    assert soft_cross_entropy(scores, 0.5 * targets) == pytest.approx(float(by_hand) / 2, rel=1e-5)


def test_smoothing_keeps_the_weight_of_a_row() -> None:
    scores, targets = torch.zeros(4, 3), torch.rand(4, 3)
    smooth = soft_cross_entropy(scores, targets, label_smoothing=0.3)
    assert smooth == pytest.approx(float(soft_cross_entropy(scores, targets)), rel=1e-5)


def test_hard_and_one_hot_labels_have_one_loss() -> None:
    scores, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    for smoothing in (0.0, 0.2):
        hard = soft_cross_entropy(scores, labels, label_smoothing=smoothing)
        soft = soft_cross_entropy(scores, torch.eye(4)[labels], label_smoothing=smoothing)
        assert float(hard) == pytest.approx(float(soft), rel=1e-5)


def test_a_deterministic_run_repeats_bit_for_bit_and_others_do_not() -> None:
    ends = []
    for deterministic in (True, True, False):
        model = fresh()
        train(model, striped_images(), replace(QUICK, augment=True, deterministic=deterministic))
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_stopped_inside_an_epoch_goes_on_bit_for_bit(optimizer: str) -> None:
    config = replace(QUICK, augment=True, optimizer=optimizer, learning_rate=0.003)
    whole, halved = fresh(), fresh()
    expected = train(whole, striped_images(), config)
    asked = iter([False] * 6 + [True])
    first = train(halved, striped_images(), config, should_stop=lambda: next(asked))
    assert first.interrupted
    assert (first.state.epoch, first.state.step) == (1, 2)
    second = train(halved, striped_images(), config, resume=first.state)
    assert torch.equal(weights(whole), weights(halved))
    joined = (*first.history, *second.history)
    assert [(r.loss, r.accuracy) for r in joined] == [(r.loss, r.accuracy) for r in expected.history]


def test_the_proximal_term_keeps_weights_near_their_start() -> None:
    moved = []
    for mu in (0.0, 10.0):
        model = fresh()
        start = weights(model)
        train(model, striped_images(), replace(QUICK, proximal_mu=mu, learning_rate=0.02, weight_decay=0.0))
        moved.append(float((weights(model) - start).norm()))
    assert moved[1] < moved[0] / 2


def test_a_loss_that_is_not_a_number_stops_the_run_before_the_weights() -> None:
    model = fresh()
    nn.utils.vector_to_parameters(weights(model) * float("nan"), model.parameters())
    with pytest.raises(DivergedError, match="nan in epoch 1, step 1"):
        train(model, striped_images(), QUICK)


def test_a_given_schedule_replaces_the_configured_one() -> None:
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return 0.01

    result = train(fresh(), striped_images(), QUICK, learning_rates=rate)
    assert asked == list(range(12))
    assert {record.learning_rate for record in result.history} == {0.01}


def test_schedules_follow_their_formulas() -> None:
    def rates(schedule: str) -> list[float]:
        config = TrainingConfig(epochs=4, learning_rate=1.0, lr_schedule=schedule, learning_rate_decay=0.5)
        return [config.learning_rate_at(2 * epoch, steps_per_epoch=2) for epoch in range(4)]

    assert rates("constant") == [1, 1, 1, 1]
    assert rates("step") == pytest.approx([1, 1, 0.1, 0.01])
    assert rates("exponential") == pytest.approx([1, 0.5, 0.25, 0.125])
    assert rates("cosine") == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_a_last_single_image_joins_the_batch_before() -> None:
    """BatchNorm cannot normalise one image; 33 images in batches of 16 are two steps."""
    result = train(
        build_model("small-cnn", image_shape=(1, 12, 12), num_classes=2, normalization="batch"),
        striped_images(33),
        replace(QUICK, epochs=1),
    )
    assert (result.num_steps, result.num_examples) == (2, 33)


def test_settings_of_torch_are_put_back() -> None:
    threads = torch.get_num_threads()
    train(fresh(), striped_images(), replace(QUICK, epochs=1))
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no labels"):
        train(fresh(), ImageSet(striped_images().images), QUICK)
    with pytest.raises(InvalidInputError, match="the model takes"):
        train(fresh(), striped_images(side=10), QUICK)
    with pytest.raises(InvalidInputError, match="3 classes"):
        train(fresh(), ImageSet(striped_images(6).images, np.arange(6) % 3), QUICK)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1.5),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("optimizer", "lion"),
        ("lr_schedule", "warmup"),
        ("label_smoothing", 1.0),
        ("max_gradient_norm", 0.0),
        ("num_threads", 0),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        TrainingConfig(**{name: value})  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused() -> None:
    for name in ("cuda:99", "abacus"):
        with pytest.raises(InvalidInputError, match=name):
            train(fresh(), striped_images(), replace(QUICK, device=name))


def test_settings_survive_their_dictionary_and_unknown_ones_are_refused() -> None:
    assert TrainingConfig.from_dict(QUICK.to_dict()) == QUICK
    with pytest.raises(InvalidInputError, match="colour"):
        TrainingConfig.from_dict({"colour": 1})
