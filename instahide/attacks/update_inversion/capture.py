r"""Captured updates as files.

**One file**, ``.npz`` or ``.safetensors``, of arrays::

    before/NAME       the weights as sent to the site, by state-dict name (buffers included, if any)
    gradient/NAME     the gradient received           } one of the three
    update/NAME       weights after minus before      }
    after/NAME        the weights received            }
    labels            (n, K) soft labels, only if the attacker is to have them
    statistics/LAYER.mean, statistics/LAYER.variance
                      what a batch normalisation layer saw, only if the attacker is to have it; found
                      out without it if after/ carries the running statistics of one local step
    settings          JSON text (a text array in .npz, metadata in .safetensors):
                      {"model": {"name": "mlp", "image_shape": [1, 28, 28], "num_classes": 10,
                                 "absolute_input": false, "normalization": "group"},
                       "training": {"num_images": 4, ...},        fields of LocalTraining
                       "defence": {"prune": 0.9, ...},            fields of Defence, optional
                       "sign_masked": true}                        optional

Truth for scoring, if there is any, is a file of its own: ``images`` (n, C, H, W), float in [−1, 1] or uint8,
and ``labels`` (n,) or (n, K).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...atomic import atomic_path
from ...errors import IntegrityError, InvalidInputError
from ...images import ImageSet
from ...mixing import to_unit_range
from .networks import build_network
from .objective import statistics_of_one_step
from .view import BatchStatistics, Defence, LocalTraining, UpdateView

MAX_BYTES = 2_000_000_000
LAYOUT_HINT = "the layout is described in instahide/attacks/update_inversion/capture.py"
MODEL_KEYS = ("name", "image_shape", "num_classes", "absolute_input", "normalization")
Arrays = dict[str, NDArray[Any]]


def read_update(path: Path, *, public_images: ImageSet | None = None, model: str | None = None) -> UpdateView:
    """The view in a captured file.

    Args:
        model: name of the network, if the file's settings do not say it.

    Raises:
        InvalidInputError: not such a file; IntegrityError: damaged.
    """
    arrays, text = _read_arrays(path)
    settings = _json(text, path)
    before = under(arrays, "before")
    described = dict(settings.get("model", {}))
    if model is not None:
        described["name"] = model
    network = described_network(described, before, path)
    kind, observed = _observed(arrays, before, path)
    labels = None if "labels" not in arrays else torch.from_numpy(arrays["labels"].astype(np.float32))
    plan = LocalTraining.from_dict(settings.get("training", {}))
    return UpdateView(
        network,
        {name: observed[name] for name, _ in network.named_parameters() if name in observed},
        kind,
        plan,
        tuple(described["image_shape"]),
        int(described["num_classes"]),
        labels=labels,
        batch_statistics=_statistics(arrays, network, plan, tuple(described["image_shape"])),
        defence=_defence(settings.get("defence", {})),
        sign_masked=bool(settings.get("sign_masked", False)),
        public_images=public_images,
    )


def write_update(view: UpdateView, path: Path, model: Mapping[str, Any]) -> None:
    """Write ``view`` as a file that :func:`read_update` reads.

    Args:
        model: name, image_shape, num_classes and, where they differ from the default, absolute_input and
            normalization of the network.
    """
    arrays: Arrays = {f"before/{name}": value.numpy() for name, value in view.model.state_dict().items()}
    arrays |= {f"{view.kind}/{name}": value.numpy() for name, value in view.observed.items()}
    if view.labels is not None:
        arrays["labels"] = view.labels.numpy()
    text = json.dumps(
        {
            "model": dict(model),
            "training": view.training.to_dict(),
            "defence": view.defence.to_dict(),
            "sign_masked": view.sign_masked,
        }
    )
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save  # save_file's error for a full disk is no OSError

            contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}
            temporary.write_bytes(save(contiguous, {"settings": text}))
        else:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, settings=np.array(text), **arrays)


def read_truth(path: Path, num_classes: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(images (n, C, H, W) in [−1, 1], labels (n, K) or ``None``) for scoring."""
    arrays, _ = _read_arrays(path)
    if "images" not in arrays:
        raise InvalidInputError(f"{path} holds no images", hint="an .npz with images and labels")
    given = arrays["images"]
    images = to_unit_range(given) if given.dtype == np.uint8 else torch.from_numpy(given.astype(np.float32))
    if images.ndim == 3:
        images = images[:, None]
    if "labels" not in arrays:
        return images, None
    labels = torch.from_numpy(arrays["labels"])
    if labels.ndim == 1:
        labels = torch.eye(num_classes)[labels.long()]
    return images, labels.float()


def described_network(described: dict[str, Any], before: Arrays, path: Path) -> torch.nn.Module:
    missing = [key for key in ("name", "image_shape", "num_classes") if key not in described]
    unknown = sorted(set(described) - set(MODEL_KEYS))
    if missing or unknown:
        raise InvalidInputError(
            f"the model's description in {path.name} "
            + (f"lacks {missing[0]!r}" if missing else f"has an unknown key {unknown[0]!r}"),
            hint=LAYOUT_HINT,
        )
    network = build_network(
        described["name"],
        image_shape=tuple(described["image_shape"]),
        num_classes=int(described["num_classes"]),
        absolute_input=bool(described.get("absolute_input", False)),
        normalization=described.get("normalization", "group"),
    )
    state = network.state_dict()
    for name, value in state.items():
        if name in before:
            if before[name].shape != tuple(value.shape):
                raise InvalidInputError(
                    f"before/{name} has shape {before[name].shape}, the model's is {tuple(value.shape)}",
                    hint="check name, image_shape and num_classes of the model",
                )
            state[name] = torch.from_numpy(np.array(before[name])).to(value.dtype)
        elif value.is_floating_point():
            raise InvalidInputError(f"before/{name} is missing in {path.name}", hint=LAYOUT_HINT)
    network.load_state_dict(state)
    return network


def _observed(arrays: Arrays, before: Arrays, path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    present = [kind for kind in ("gradient", "update", "after") if under(arrays, kind)]
    if len(present) != 1:
        raise InvalidInputError(
            f"{path.name} holds {' and '.join(present) or 'no gradient, update or weights after'}",
            hint="exactly one of gradient/..., update/... or after/...",
        )
    given = under(arrays, present[0])
    if present[0] != "after":
        return present[0], {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
    lost = sorted(set(given) - set(before))
    if lost:
        raise InvalidInputError(f"after/{lost[0]} has no before/{lost[0]}", hint=LAYOUT_HINT)
    return "update", {
        name: torch.from_numpy(value.astype(np.float64) - before[name]) for name, value in given.items()
    }


def _statistics(
    arrays: Arrays, network: torch.nn.Module, plan: LocalTraining, image_shape: tuple[int, int, int]
) -> BatchStatistics | None:
    """Given in the file, or read from running statistics that one local step has moved."""
    given = {name: torch.from_numpy(np.array(value)) for name, value in under(arrays, "statistics").items()}
    layers = sorted({name.rpartition(".")[0] for name in given})
    if layers:
        try:
            return {layer: (given[f"{layer}.mean"], given[f"{layer}.variance"]) for layer in layers}
        except KeyError as error:
            raise InvalidInputError(f"statistics/{error.args[0]} is missing", hint=LAYOUT_HINT) from error
    after = {name: torch.from_numpy(np.array(value)) for name, value in under(arrays, "after").items()}
    if plan.num_steps != 1:
        return None
    return statistics_of_one_step(network, after, num_images=plan.num_images, image_shape=image_shape)


def _defence(values: dict[str, Any]) -> Defence:
    try:
        return Defence(**values)
    except TypeError as error:
        raise InvalidInputError(f"defence {values}: {error}", hint=LAYOUT_HINT) from error


def under(arrays: Arrays, prefix: str) -> Arrays:
    start = len(prefix) + 1
    return {name[start:]: value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


def _read_arrays(path: Path) -> tuple[Arrays, str]:
    """(arrays, settings text) of an .npz or .safetensors file; nothing in it is executed."""
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}", hint="give a captured update")
    if path.stat().st_size > MAX_BYTES:
        raise InvalidInputError(
            f"{path} is larger than {MAX_BYTES:,} bytes", hint="capture one update a file"
        )
    if path.suffix == ".safetensors":
        arrays, metadata = read_safetensors(path)
        return arrays, metadata.get("settings", "{}")
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise InvalidInputError(f"{path} holds one bare array", hint=LAYOUT_HINT)
            arrays = {name: file[name] for name in file.files}
    except InvalidInputError:
        raise
    except Exception as error:  # zipfile, numpy and zlib raise half a dozen kinds
        raise IntegrityError(f"{path} cannot be read as .npz: {error}", hint=LAYOUT_HINT) from error
    text = arrays.pop("settings", np.array("{}"))
    return arrays, str(text)


def read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"{path.name} is not a whole safetensors file", hint="it was cut short or edited"
        ) from error


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"the settings in {path.name} are not JSON", hint=LAYOUT_HINT) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model", {}), dict):
        raise InvalidInputError(f"the settings in {path.name} are not a JSON object", hint=LAYOUT_HINT)
    return settings
