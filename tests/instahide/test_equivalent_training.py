"""``exponential-equivalent`` through the real training loop: the same run without weight decay."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from instahide.checkpoints import load_checkpoint, load_model, save_checkpoint
from instahide.dp_training import train_with_dp
from instahide.errors import InvalidInputError
from instahide.images import ImageSet
from instahide.models import ImageClassifier, build_model
from instahide.training import TrainingResult, TrainingState, train
from instahide.training_config import TrainingConfig
from instahide.training_job import train_in_folder
from theory_modules.exponential_lr import exponential_lr_equivalent

CONFIG = TrainingConfig(
    epochs=8,
    batch_size=10,
    learning_rate=0.1,
    weight_decay=0.02,
    lr_schedule="exponential-equivalent",
    max_gradient_norm=0.5,
    device="cpu",
    num_threads=1,
)
START = TrainingState(seed=11)  # the order of the images in every run here


@dataclass
class Rows:
    """Images (N, C, H, W) and soft labels (N, K) in float64, which no reader of ours gives."""

    images: torch.Tensor
    labels: torch.Tensor


def rows() -> Rows:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(60, 1, 8, 8, dtype=torch.float64, generator=generator)
    return Rows(images, torch.softmax(5 * images.mean(dim=(1, 3))[:, :3], dim=1))


def model(normalization: str = "group", *, dtype: torch.dtype = torch.float64) -> ImageClassifier:
    built = build_model("small-cnn", image_shape=(1, 8, 8), num_classes=3, normalization=normalization)
    return built.to(dtype)


def original(config: TrainingConfig) -> TrainingConfig:
    return replace(config, lr_schedule=config.equivalent_to)


def run(config: TrainingConfig, normalization: str = "group") -> tuple[ImageClassifier, list[float]]:
    trained, losses = model(normalization), []
    train(trained, rows(), config, resume=START, on_step=lambda step, steps, loss: losses.append(loss))
    return trained, losses


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Over everything a model holds, relative to the largest entry of each tensor."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-300)) for a, b in pairs)


@pytest.mark.parametrize(
    ("normalization", "changes"),
    [
        ("group", {}),
        ("batch", {"equivalent_to": "cosine"}),
        ("group", {"equivalent_to": "constant", "momentum": 0.0}),
        ("batch", {"equivalent_to": "exponential", "max_gradient_norm": None}),
        ("group", {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.5}),
    ],
    ids=["step", "cosine, batch norm", "no momentum", "exponential, no clipping", "adamw"],
)
def test_losses_and_final_model_are_those_of_the_run_with_weight_decay(normalization, changes):
    config = replace(CONFIG, **changes)
    ours, losses = run(config, normalization)
    theirs, expected = run(original(config), normalization)
    assert len(losses) == 48
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-10
    assert largest_difference(ours, theirs) < 1e-10
    assert [m.eps for m in ours.modules() if hasattr(m, "eps")] == [1e-5] * 2
    without = run(replace(original(config), weight_decay=0.0), normalization)[1]
    assert max(abs(a - b) for a, b in zip(without, expected, strict=True)) > 1e-4  # decay matters here


def test_the_rates_grow_as_the_theorem_says():
    result = train(model(), rows(), CONFIG, resume=START)
    expected = exponential_lr_equivalent(0.1, 0.9, 0.02, {24: 0.1, 36: 0.1}).learning_rates(48)
    assert [record.learning_rate for record in result.history] == pytest.approx(expected[5::6], rel=1e-12)
    assert result.history[3].learning_rate > 1.2 * result.history[0].learning_rate


def stopped_after(steps: int, config: TrainingConfig, trained: ImageClassifier) -> TrainingResult:
    calls = itertools.count()
    return train(trained, rows(), config, resume=START, should_stop=lambda: next(calls) == steps)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("steps", [0, 15, 30])
def test_an_interrupted_run_goes_on_bit_for_bit(steps: int, optimizer: str):
    config = replace(CONFIG, optimizer=optimizer)
    whole, _ = run(config, "batch")
    parts = model("batch")
    result = stopped_after(steps, config, parts)
    assert result.interrupted
    train(parts, rows(), config, resume=result.state)
    assert largest_difference(parts, whole) == 0.0


def test_a_checkpoint_of_the_last_epoch_ends_at_the_original_scale(tmp_path: Path):
    kept = []
    trained = model("batch")
    train(
        trained,
        rows(),
        CONFIG,
        on_epoch=lambda record, state: kept.append(
            save_checkpoint(tmp_path / "c", trained, CONFIG, state) if record.epoch == 7 else None
        ),
    )
    checkpoint = load_checkpoint(tmp_path / "c")
    resumed = model("batch")
    resumed.load_state_dict({name: value.double() for name, value in checkpoint.model.state_dict().items()})
    assert largest_difference(resumed, trained) > 1e-3
    train(resumed, rows(), CONFIG, resume=checkpoint.state)
    assert largest_difference(resumed, trained) < 1e-6  # a built model reads a checkpoint in float32


def test_a_run_in_a_folder_leaves_a_model_like_any_other(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(40) % 3)
    batch = replace(CONFIG, batch_size=40)  # all in one, so that their order is nothing
    for name, config in (("ours", batch), ("theirs", original(batch))):
        train_in_folder(tmp_path / name, model().spec, images, config)
    ours, theirs = (load_model(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert largest_difference(ours, theirs) < 1e-2  # float32
    with torch.no_grad():
        scores = [m(torch.as_tensor(images.images) / 255.0) for m in (ours, theirs)]
    assert torch.allclose(*scores, atol=1e-3)


def test_another_schedule_is_refused_on_resuming():
    parts = model()
    result = stopped_after(30, CONFIG, parts)
    with pytest.raises(InvalidInputError, match="another schedule") as caught:
        train(parts, rows(), replace(CONFIG, epochs=20), resume=result.state)
    assert "epochs" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": 0.0}, "weight_decay is 0"),
        ({"proximal_mu": 0.1}, "FedProx"),
        ({"equivalent_to": "exponential-equivalent"}, "equivalent_to"),
    ],
)
def test_settings_without_an_equivalent_are_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        replace(CONFIG, **changes)


def test_a_network_without_normalisation_is_refused_with_a_hint():
    plain = build_model("mlp", image_shape=(1, 8, 8), num_classes=3)
    with pytest.raises(InvalidInputError, match="no trained tensor may be rescaled") as caught:
        train(plain.double(), rows(), CONFIG)
    assert "normalization" in caught.value.hint or "normalisation" in caught.value.hint


def test_decay_that_no_growing_rate_is_equivalent_to_is_refused():
    with pytest.raises(InvalidInputError, match="complex roots") as caught:
        train(model(), rows(), replace(CONFIG, weight_decay=0.5))
    assert "0.00263" in caught.value.hint
    # At first 0.002, in the last epoch 0.002 · 1.1^7, which is too much.
    growing = replace(CONFIG, equivalent_to="exponential", learning_rate_decay=1.1)
    with pytest.raises(InvalidInputError, match="complex roots"):
        train(model(), rows(), growing)


def test_a_model_of_somebody_elses_is_refused():
    with pytest.raises(InvalidInputError, match="build_model"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), rows(), CONFIG)


class FixedStream:
    """A randomness that two runs share: every call gives the next numbers of one seeded generator."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(5)

    def uniforms(self, count: int) -> np.ndarray:
        return self.generator.random(count)


def test_private_training_clips_and_noises_as_the_run_with_weight_decay(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("opacus")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(30) % 3)
    results, models = [], []
    for config in (CONFIG, original(CONFIG)):
        noise = np.random.default_rng(7)
        monkeypatch.setattr(
            "instahide.dp_training.add_noise",
            lambda stream, values, law, scale, noise=noise: (
                values + scale * noise.standard_normal(len(values))
            ),
        )
        monkeypatch.setattr("instahide.dp_training.Randomness.stream", lambda self, name: FixedStream())
        private = model(dtype=torch.float32)
        results.append(
            train_with_dp(private, images, config, target_delta=1e-3, noise_multiplier=1.0, sample_rate=0.5)
        )
        models.append(private)
    assert results[0].epsilon == results[1].epsilon
    assert results[0].num_steps == 16
    assert largest_difference(*models) < 1e-4  # float32 gradients
    with torch.no_grad():
        scores = [m(torch.as_tensor(images.images) / 255.0) for m in models]
    assert torch.allclose(*scores, atol=1e-4)
