from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from instahide.attacks.update_inversion import (
    Defence,
    LocalTraining,
    build_network,
    defend,
    invert,
    observe,
    read_truth,
    read_update,
    write_update,
)
from instahide.attacks.update_inversion.objective import batch_statistics
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError

from .inversion_examples import K, batch, case, errors

MODEL = {"name": "mlp", "image_shape": [1, 12, 12], "num_classes": K}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("kind", ["gradient", "update"])
def test_a_written_update_is_read_back_and_inverted(tmp_path: Path, suffix: str, kind: str) -> None:
    view, images, _ = case("mlp", 2, kind=kind, learning_rate=0.1, momentum=0.5)
    path = tmp_path / f"captured.{suffix}"
    write_update(defend(view, Defence(clip=50.0)), path, MODEL)
    again = read_update(path)
    assert again.training == view.training
    assert again.defence == Defence(clip=50.0)
    assert again.kind == kind
    for name, value in view.observed.items():
        torch.testing.assert_close(again.observed[name], value)
    assert errors(invert(again).images, images).max() < 1e-6


def captured(tmp_path: Path, **changes: Any) -> Path:
    """A file of somebody else's, in the documented layout, with changes."""
    view, _, _ = case("mlp", 2)
    arrays = {f"before/{name}": value.numpy() for name, value in view.model.state_dict().items()}
    arrays |= {f"gradient/{name}": value.numpy() for name, value in view.observed.items()}
    arrays["settings"] = np.array(json.dumps({"model": MODEL, "training": {"num_images": 2}}))
    arrays |= changes
    path = tmp_path / "theirs.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def settings(**changes: Any) -> np.ndarray[Any, Any]:
    return np.array(json.dumps({"model": MODEL, "training": {"num_images": 2}} | changes))


def test_weights_after_are_an_update(tmp_path: Path) -> None:
    view, _, _ = case("mlp", 2)
    path = captured(tmp_path)
    arrays = dict(np.load(path))
    after = {
        name.replace("gradient/", "after/"): arrays.pop(name) for name in list(arrays) if "gradient/" in name
    }
    after = {name: value + arrays[name.replace("after/", "before/")] for name, value in after.items()}
    np.savez(path, **arrays, **after)
    read = read_update(path)
    assert read.kind == "update"
    name = next(iter(view.observed))
    torch.testing.assert_close(read.observed[name], view.observed[name], atol=1e-7, rtol=1e-3)


def test_running_statistics_that_come_back_give_the_batch_statistics(tmp_path: Path) -> None:
    """The running buffers after one step, in weights after, are all it takes."""
    images, labels = batch(4)
    model = build_network("batchnorm-cnn", image_shape=(1, 12, 12), num_classes=K)
    view = observe(model, images, labels, LocalTraining(num_images=4), kind="update")
    arrays = {f"before/{name}": value.numpy().copy() for name, value in model.state_dict().items()}
    exact = batch_statistics(model, images)
    model.train()(images)  # moves the buffers as the site's step did
    after = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    after |= {name: after[name] + view.observed[name] for name in view.observed}
    arrays |= {f"after/{name}": value.detach().numpy() for name, value in after.items()}
    described = {"name": "batchnorm-cnn", "image_shape": [1, 12, 12], "num_classes": K}
    text = json.dumps({"model": described, "training": {"num_images": 4}})
    np.savez(tmp_path / "bn.npz", settings=np.array(text), **arrays)
    read = read_update(tmp_path / "bn.npz").batch_statistics
    assert read is not None
    for name, (mean, variance) in exact.items():
        torch.testing.assert_close(read[name][0], mean, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(read[name][1], variance, atol=1e-4, rtol=1e-3)
    given = {f"statistics/{name}.mean": pair[0].numpy() for name, pair in exact.items()}
    np.savez(tmp_path / "half.npz", settings=np.array(text), **arrays, **given)
    with pytest.raises(InvalidInputError, match=r"statistics/1.variance is missing"):
        read_update(tmp_path / "half.npz")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": settings(training={})}, "num_images is missing"),
        ({"settings": settings(training={"num_images": 2, "speed": 3})}, "unknown training setting 'speed'"),
        ({"settings": settings(model={"name": "mlp"})}, "lacks 'image_shape'"),
        ({"settings": settings(model=MODEL | {"depth": 3})}, "unknown key 'depth'"),
        ({"settings": settings(model=MODEL | {"num_classes": 7})}, "the model's is"),
        ({"settings": settings(defence={"magic": 1})}, "defence"),
        ({"settings": np.array("{")}, "not JSON"),
        ({"settings": None}, "lacks 'name'"),
        ({"before/body.1.weight": None}, "before/body.1.weight is missing"),
        ({"gradient/body.1.weight": None}, "differ in 1 tensors"),
        ({"gradient/body.1.weight": np.zeros((2, 2), np.float32)}, "has shape"),
        ({"gradient/body.1.bias": np.full(256, np.nan, np.float32)}, "not finite"),
        ({"update/body.1.bias": np.zeros(256, np.float32)}, "gradient and update"),
        ({"labels": np.zeros((3, K))}, "labels have shape"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said.replace("(", r"\(")):
        read_update(captured(tmp_path, **changes))


def test_files_that_are_no_captures(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no file"):
        read_update(tmp_path / "none.npz")
    for name in ("cut.npz", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and so on")
        with pytest.raises(IntegrityError):
            read_update(tmp_path / name)
    np.savez(tmp_path / "pickled.npz", settings=np.array([{}], dtype=object))
    with pytest.raises(InstaHideError):
        read_update(tmp_path / "pickled.npz")
    save_file({"a": np.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(InvalidInputError, match="lacks 'name'"):
        read_update(tmp_path / "bare.safetensors")


def test_truth_is_read_as_pixels_or_as_values(tmp_path: Path) -> None:
    pixels = np.arange(2 * 9, dtype=np.uint8).reshape(2, 3, 3)
    np.savez(tmp_path / "pixels.npz", images=pixels, labels=np.array([1, 0]))
    images, labels = read_truth(tmp_path / "pixels.npz", 3)
    assert images.shape == (2, 1, 3, 3)
    assert labels is not None
    assert labels.tolist() == [[0, 1, 0], [1, 0, 0]]
    np.savez(tmp_path / "values.npz", images=np.zeros((1, 1, 3, 3)))
    assert read_truth(tmp_path / "values.npz", 3)[1] is None
    np.savez(tmp_path / "empty.npz", x=pixels)
    with pytest.raises(InvalidInputError, match="holds no images"):
        read_truth(tmp_path / "empty.npz", 3)
