from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from instahide.checkpoints import load_checkpoint, load_model, save_checkpoint, save_model
from instahide.errors import IntegrityError, InvalidInputError
from instahide.images import ImageSet
from instahide.models import build_model
from instahide.training import train
from instahide.training_config import TrainingConfig

CONFIG = TrainingConfig(epochs=3, batch_size=8, deterministic=True, num_threads=1, device="cpu", augment=True)


def noise_images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    return ImageSet(
        torch.randint(256, (24, 8, 8), generator=generator, dtype=torch.uint8),  # type: ignore[arg-type]
        torch.arange(24).numpy() % 2,
    )


def fresh(name: str = "mlp", **options: str) -> nn.Module:
    return build_model(name, image_shape=(1, 8, 8), num_classes=2, **options)  # type: ignore[arg-type]


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("normalization", ["group", "batch"])
def test_a_saved_model_comes_back_with_its_description(tmp_path: Path, normalization: str) -> None:
    model = fresh("small-cnn", normalization=normalization)
    train(model, noise_images(), CONFIG)
    save_model(tmp_path / "model.safetensors", model)  # type: ignore[arg-type]
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.spec == model.spec
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_resumed_from_a_file_ends_bit_for_bit_the_same(tmp_path: Path, optimizer: str) -> None:
    config = replace(CONFIG, optimizer=optimizer, learning_rate=0.01)
    whole, stopped = fresh(), fresh()
    train(whole, noise_images(), config)
    asked = iter([False] * 4 + [True])
    result = train(stopped, noise_images(), config, should_stop=lambda: next(asked))
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, stopped, config, result.state, result.history, place="here")  # type: ignore[arg-type]
    checkpoint = load_checkpoint(path)
    assert checkpoint.config == config
    assert checkpoint.history == result.history
    assert checkpoint.notes == {"place": "here"}
    train(checkpoint.model, noise_images(), checkpoint.config, resume=checkpoint.state)
    assert torch.equal(weights(checkpoint.model), weights(whole))


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, fresh())  # type: ignore[arg-type]
    content = path.read_bytes()
    for position in range(0, len(content), len(content) // 40):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            load_model(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_what_is_not_a_model_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not a whole model file"):
        load_model(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, fresh())  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError):
        load_model(path)


def test_weights_under_a_foreign_description_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = fresh()
    model.spec = replace(model.spec, num_classes=5)
    save_model(path, model)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError):
        load_model(path)


def test_a_finished_model_cannot_be_resumed_and_a_missing_file_is_named(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", fresh())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="finished model"):
        load_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(InvalidInputError, match="nowhere"):
        load_model(tmp_path / "nowhere.safetensors")


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", fresh())  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
