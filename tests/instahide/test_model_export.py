"""Exported files answer as the model they came from: every architecture, in every format."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch

from instahide.errors import IntegrityError, InvalidInputError
from instahide.mixing import to_unit_range
from instahide.model_export import DeployedModel, check_formats, describe, export_model
from instahide.models import MODEL_NAMES, NORMALIZATIONS, ImageClassifier, build_model

SHAPE = (3, 8, 8)
NAMES = ("well", "ill", "not sure")


def model(name: str, normalization: str = "group", absolute_input: bool = False) -> ImageClassifier:
    """A network with running statistics of its own: evaluation mode is not training mode."""
    made = build_model(
        name, image_shape=SHAPE, num_classes=3, normalization=normalization, absolute_input=absolute_input
    )
    made.train()
    with torch.no_grad():
        made(torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1)))
    return made.eval()


def pixels(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def expected(of: ImageClassifier, images: np.ndarray) -> np.ndarray:
    """By the road that training and evaluation take."""
    with torch.inference_mode():
        return of(to_unit_range(images)).softmax(1).numpy()


def check_every_format(of: ImageClassifier) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    weights, onnx, program = export_model(of, NAMES, ("safetensors", "onnx", "torch-export"))
    from safetensors.torch import load

    for name, value in load(weights.data).items():
        assert torch.equal(value, of.state_dict()[name])
    session = onnxruntime.InferenceSession(onnx.data, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type, entry.shape) == ("images", "tensor(uint8)", ["batch", *SHAPE])
    assert [out.name for out in session.get_outputs()] == ["scores", "probabilities"]
    loaded = torch.export.load(io.BytesIO(program.data)).module()
    for count in (1, 2, 7):
        images = pixels(count)
        scores, probabilities = session.run(None, {"images": images})
        np.testing.assert_allclose(probabilities, expected(of, images), atol=1e-5)
        np.testing.assert_allclose(torch.from_numpy(scores).softmax(1), probabilities, atol=1e-5)
        with torch.no_grad():
            found = loaded(torch.from_numpy(images))[1].numpy()
        np.testing.assert_allclose(found, expected(of, images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_architecture_answers_alike_in_every_format(name: str, normalization: str) -> None:
    """One of them by default: tests/federation/commands/test_export.py."""
    check_every_format(model(name, normalization, absolute_input=normalization == "batch"))


@pytest.mark.parametrize("name", ["small-cnn", "mlp"])
def test_preprocessing_is_that_of_training(name: str) -> None:
    made = model(name, "batch", absolute_input=True)
    images = pixels(4)
    with torch.inference_mode():
        scores, probabilities = DeployedModel(made)(torch.from_numpy(images))
    np.testing.assert_array_equal(probabilities, expected(made, images))
    assert scores.shape == (4, 3)


@pytest.mark.slow
def test_files_say_what_they_are() -> None:
    made = model("mlp")
    (onnx,) = export_model(made, NAMES, ["onnx"])
    import onnx as library

    said = {entry.key: entry.value for entry in library.load_from_string(onnx.data).metadata_props}
    assert said == describe(made, NAMES)
    assert json.loads(said["class-names"]) == list(NAMES)
    assert "(2 * images - 255) / 255" in said["preprocessing"]


@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("mlp")
    monkeypatch.setattr("instahide.model_export.to_unit_range", lambda x: torch.from_numpy(x / 255.0).float())
    with pytest.raises(IntegrityError, match="torch-export file gives other answers"):
        export_model(made, NAMES, ["torch-export"])


def test_weights_that_diverged_are_not_exported() -> None:
    made = model("mlp")
    with torch.no_grad():
        next(made.parameters())[0, 0] = torch.nan
    with pytest.raises(IntegrityError, match="not finite"):
        export_model(made, NAMES, ["safetensors"])


def test_class_names_must_fit() -> None:
    with pytest.raises(InvalidInputError, match="2 class names for 3 classes"):
        export_model(model("mlp"), NAMES[:2], ["safetensors"])


def test_formats_are_checked_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_formats(["onnx", "safetensors", "onnx"]) == ("onnx", "safetensors")
    for wrong in ([], ["tflite"], ["onnx", "ONNX"]):
        with pytest.raises(InvalidInputError) as caught:
            check_formats(wrong)
        assert "safetensors, onnx, torch-export" in caught.value.hint
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InvalidInputError, match="onnxscript, which is not installed") as caught:
        check_formats(["safetensors", "onnx"])
    assert "instahide-fl[export]" in caught.value.hint
    assert check_formats(["safetensors", "torch-export"])


@pytest.mark.slow
def test_without_onnxruntime_the_file_says_it_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (onnx,) = export_model(model("mlp"), NAMES, ["onnx"])
    assert onnx.largest_difference is None
    assert "not installed" in onnx.checked_with
