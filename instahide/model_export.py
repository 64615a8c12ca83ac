"""A finished model in files that need nothing of this toolkit: safetensors, ONNX, ``torch.export``.

Axes: N images, C channels, H rows, W columns, K classes.

**What goes in and comes out.** The graph of the ONNX and the ``torch.export`` file begins with 8-bit pixels
and ends with probabilities, so that nobody has to know how images were scaled for training::

    images         (N, C, H, W) uint8, 0..255; N is free
    x              (2 · images − 255) / 255, float32 in [−1, 1]           the range of training
    scores         network(x), with |x| for x where the model says so      (N, K) before the softmax
    probabilities  softmax(scores)                                        (N, K)

Normalisation layers are in evaluation mode. The safetensors file holds weights only; its metadata states
the line for x, the classes and the shape.

Each graph is run once on random pixels, against the model it came from; a file that answers otherwise is not
written. ONNX needs the extra ``export``; onnx's own checker always runs, onnxruntime where it is installed.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .errors import IntegrityError, InvalidInputError
from .mixing import to_unit_range
from .models import ImageClassifier

PREPROCESSING = "x = (2 * images - 255) / 255 in float32, images uint8 0..255"
OUTPUTS = ("scores", "probabilities")
TOLERANCE = 1e-3
"""Largest difference of a probability that sums in another order may make; a wrong scale makes far more."""
NUM_CHECKED = 3


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export: its bytes, and the largest difference of a probability that was seen."""

    name: str
    data: bytes
    checked_with: str
    largest_difference: float | None


class DeployedModel(nn.Module):
    """``model`` behind its preprocessing: (N, C, H, W) uint8 to (scores, probabilities), both (N, K)."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.network = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.network((2.0 * images.to(torch.float32) - 255.0) / 255.0)
        return scores, scores.softmax(dim=1)


def check_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """``formats`` without repetitions.

    Raises:
        InvalidInputError: none, an unknown one, or ONNX where its packages are not installed.
    """
    wanted = tuple(dict.fromkeys(formats))
    unknown = [name for name in wanted if name not in EXPORTERS]
    if unknown or not wanted:
        problem = f"no format {unknown[0]!r}" if unknown else "no format is named"
        raise InvalidInputError(problem, hint=f"choose from {', '.join(EXPORTERS)}; commas between several")
    if "onnx" in wanted:
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InvalidInputError(
                f"ONNX export needs the package {error.name}, which is not installed",
                hint="pip install 'instahide-fl[export]', or leave onnx out of --to",
            ) from error
    return wanted


def export_model(
    model: ImageClassifier, class_names: Sequence[str], formats: Sequence[str]
) -> list[ExportedFile]:
    """The files of ``formats``, checked; nothing is written.

    Args:
        model: finished weights; it is left on the CPU in evaluation mode.
        class_names: K names in label order.

    Raises:
        InvalidInputError: as :func:`check_formats`, or names that do not fit the model.
        IntegrityError: weights that are not finite, or a file that gives other answers than the model.
    """
    wanted = check_formats(formats)
    if len(class_names) != model.spec.num_classes:
        raise InvalidInputError(
            f"{len(class_names)} class names for {model.spec.num_classes} classes", hint="give one a class"
        )
    unusable = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if unusable:
        raise IntegrityError(
            f"the model's weights are not finite, first {unusable[0]!r}", hint="it diverged: train it again"
        )
    model.cpu().eval()
    metadata = describe(model, class_names)
    return [EXPORTERS[name](model, metadata) for name in wanted]


def describe(model: ImageClassifier, class_names: Sequence[str]) -> dict[str, str]:
    """What every file says of itself, as text; the metadata of safetensors and ONNX."""
    return {
        "format": "instahide-fl exported model 1",
        "model": json.dumps(model.spec.to_dict(), sort_keys=True),
        "class-names": json.dumps(list(class_names), ensure_ascii=False),
        "image-shape": json.dumps(list(model.spec.image_shape)),
        "preprocessing": PREPROCESSING + ("; then x = |x|" if model.spec.absolute_input else ""),
    }


def _to_safetensors(model: ImageClassifier, metadata: Mapping[str, str]) -> ExportedFile:
    from safetensors.torch import load, save

    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    data = save(weights, metadata={**metadata, "network": repr(model.body)})
    back = load(data)
    if any(not torch.equal(back[name], value) for name, value in weights.items()):
        raise _gives_other_answers("safetensors")
    return ExportedFile("model.safetensors", data, "every weight compared", 0.0)


def _to_onnx(model: ImageClassifier, metadata: Mapping[str, str]) -> ExportedFile:
    import onnx

    # The exporters of torch warn about torch's own code, and print.
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _program(model), dynamo=True, input_names=["images"], output_names=list(OUTPUTS), verbose=False
        )
        assert program is not None
        proto = program.model_proto
    _name_the_batch(proto)
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()
    try:
        import onnxruntime
    except ImportError:
        return ExportedFile("model.onnx", data, "onnx.checker (onnxruntime is not installed)", None)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    difference = _largest_difference(
        model, "onnx", lambda images: session.run(["probabilities"], {"images": images})[0]
    )
    return ExportedFile("model.onnx", data, "onnx.checker and onnxruntime", difference)


def _to_torch_export(model: ImageClassifier, metadata: Mapping[str, str]) -> ExportedFile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.export.save(_program(model), buffer, extra_files={"model.json": json.dumps(dict(metadata))})
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    difference = _largest_difference(
        model, "torch-export", lambda images: loaded(torch.from_numpy(images))[1].detach().numpy()
    )
    return ExportedFile("model.pt2", buffer.getvalue(), "torch.export.load", difference)


EXPORTERS: dict[str, Callable[[ImageClassifier, Mapping[str, str]], ExportedFile]] = {
    "safetensors": _to_safetensors,
    "onnx": _to_onnx,
    "torch-export": _to_torch_export,
}


def _program(model: ImageClassifier) -> torch.export.ExportedProgram:
    """The graph with a free number of images."""
    example = torch.zeros(2, *model.spec.image_shape, dtype=torch.uint8)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        return torch.export.export(DeployedModel(model).eval(), (example,), dynamic_shapes=batch)


def _name_the_batch(proto: Any) -> None:
    """The exporter numbers its symbols; the free axis is called "batch" instead."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", axis.dim_param)


def _largest_difference(
    model: ImageClassifier, name: str, answers: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
) -> float:
    """Of a probability, over random pixels and the two extremes; IntegrityError above the tolerance."""
    shape = (NUM_CHECKED, *model.spec.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images[0], images[1] = 0, 255
    with torch.inference_mode():
        expected = cast(torch.Tensor, model(to_unit_range(images))).softmax(dim=1).numpy()
    # One image alone as well: a graph that fixed the number of images fails here.
    found = np.concatenate([answers(images[:1]), answers(images[1:])])
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise _gives_other_answers(name)
    return difference


def _gives_other_answers(name: str) -> IntegrityError:
    return IntegrityError(
        f"the {name} file gives other answers than the model, and was not written",
        hint="export to another format, and report the versions of torch and onnx",
    )
