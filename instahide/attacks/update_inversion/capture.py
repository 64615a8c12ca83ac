r"""Captured updates as files, and round checkpoints of a coordinator as updates.

**One file**, ``.npz`` or ``.safetensors``, of arrays::

    before/NAME       the weights as sent to the site, by state-dict name (buffers included, if any)
    gradient/NAME     the gradient received           } one of the three
    update/NAME       weights after minus before      }
    after/NAME        the weights received            }
    labels            (n, K) soft labels, only if the attacker is to have them
    settings          JSON text (a text array in .npz, metadata in .safetensors):
                      {"model": {"name": "mlp", "image_shape": [1, 28, 28], "num_classes": 10,
                                 "absolute_input": false, "normalization": "group"},
                       "training": {"num_images": 4, ...},        fields of LocalTraining
                       "defence": {"prune": 0.9, ...},            fields of Defence, optional
                       "sign_masked": true}                        optional

Truth for scoring, if there is any, is a file of its own: ``images`` (n, C, H, W), float in [−1, 1] or uint8,
and ``labels`` (n,) or (n, K).

**Round checkpoints.** A coordinator of this toolkit keeps ``checkpoints/round-NNNN.safetensors`` with
``weights/NAME`` and its settings as metadata, and ``initial.safetensors`` beside them. Under federated
averaging the difference of two consecutive ones is the mean of the sites' updates weighted by images: with
one site its very update, with m sites what secure aggregation would leave.
"""

from __future__ import annotations

import json
import re
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
from ...training_config import TrainingConfig
from .networks import build_network
from .view import Defence, LocalTraining, UpdateView

MAX_BYTES = 2_000_000_000
CHECKPOINT_FORMAT = "instahide-fl round checkpoint 1"
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
    before = _under(arrays, "before")
    described = dict(settings.get("model", {}))
    if model is not None:
        described["name"] = model
    network = _network(described, before, path)
    kind, observed = _observed(arrays, before, path)
    labels = None if "labels" not in arrays else torch.from_numpy(arrays["labels"].astype(np.float32))
    return UpdateView(
        network,
        {name: observed[name] for name, _ in network.named_parameters() if name in observed},
        kind,
        LocalTraining.from_dict(settings.get("training", {})),
        tuple(described["image_shape"]),
        int(described["num_classes"]),
        labels=labels,
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
            from safetensors.numpy import save_file

            contiguous = {name: np.array(value, order="C") for name, value in arrays.items()}
            save_file(contiguous, temporary, {"settings": text})
        else:
            with temporary.open("wb") as file:
                np.savez(file, settings=np.array(text), **arrays)


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


def read_round_checkpoints(
    folder: Path, *, server_round: int | None = None, public_images: ImageSet | None = None
) -> UpdateView:
    """The update of one round, from a run directory of a coordinator.

    Args:
        folder: the run directory, or its ``checkpoints`` folder.
        server_round: the round to look at; by default the last one with a checkpoint on either side.

    Raises:
        InvalidInputError: no two consecutive checkpoints, a server rule that is no weighted mean, or sites
            whose number of images is not in the checkpoint.
    """
    inner = folder / "checkpoints"
    checkpoints = inner if inner.is_dir() else folder
    found = {
        int(match[1]): path
        for path in checkpoints.glob("round-*.safetensors")
        if (match := re.fullmatch(r"round-(\d{4,6})\.safetensors", path.name))
    }
    initial = checkpoints.parent / "initial.safetensors"
    if initial.exists():
        found[0] = initial
    last = server_round if server_round is not None else max((r for r in found if r - 1 in found), default=-1)
    if last not in found or last - 1 not in found:
        raise InvalidInputError(
            f"{folder} holds no checkpoints of round {last - 1 if last > 0 else 0} and the next one",
            hint="keep-checkpoints of the run must be 2 or more; give the run directory",
        )
    arrays, metadata = _read_safetensors(found[last])
    if metadata.get("format") != CHECKPOINT_FORMAT:
        raise InvalidInputError(f"{found[last].name} is not a round checkpoint", hint="give a run directory")
    config, sizes = json.loads(metadata["config"]), json.loads(metadata["sizes"])
    before = _weights(_read_safetensors(found[last - 1])[0])
    return _view_of_round(config, sizes, last, before, _weights(arrays), public_images)


def _view_of_round(
    config: dict[str, Any],
    sizes: dict[str, int],
    server_round: int,
    before: Arrays,
    after: Arrays,
    public_images: ImageSet | None,
) -> UpdateView:
    if config["strategy"] not in ("fedavg", "fedprox"):
        raise InvalidInputError(
            f"the run's strategy is {config['strategy']}, not a weighted mean",
            hint="only fedavg and fedprox let an update be read from two checkpoints",
        )
    by_site = [
        count for name, count in sizes.items() if name.endswith(":num-examples") and "evaluate" not in name
    ]
    if not by_site or len(set(by_site)) != 1:
        raise InvalidInputError(
            f"the checkpoint names {len(by_site)} sites with {sorted(set(by_site))} images",
            hint="one site, or several with equally many images, can be modelled",
        )
    described = {
        "name": config["model"],
        "image_shape": config["image-shape"],
        "num_classes": len(config["class-names"]),
        "absolute_input": config["absolute-input"],
    }
    network = _network(described, before, Path("round checkpoint"))
    names = [name for name, _ in network.named_parameters()]
    plan = LocalTraining(
        num_images=sum(by_site),
        batch_size=config["batch-size"],
        epochs=config["local-epochs"],
        learning_rate=_learning_rate(config, server_round, by_site[0]),
        momentum=config["momentum"],
        weight_decay=config["weight-decay"],
        proximal_mu=config["proximal-mu"],
        max_gradient_norm=TrainingConfig().max_gradient_norm,
        optimizer=config["optimizer"],
    )
    encoded = config["encoding"] == "instahide" and config["encoding-mode"] != "mixup"
    return UpdateView(
        network,
        {name: torch.from_numpy(after[name].astype(np.float64) - before[name]) for name in names},
        "update",
        plan,
        tuple(config["image-shape"]),
        described["num_classes"],
        defence=Defence(num_sites=len(by_site)),
        sign_masked=encoded,
        public_images=public_images,
    )


def _learning_rate(config: dict[str, Any], server_round: int, num_images: int) -> float:
    """The rate at the first step of the round; the schedule runs over all rounds."""
    whole = TrainingConfig(
        epochs=config["local-epochs"] * config["num-server-rounds"],
        learning_rate=config["learning-rate"],
        lr_schedule=config["lr-schedule"],
    )
    steps = max(1, -(-num_images // config["batch-size"]))
    first = (server_round - 1) * config["local-epochs"] * steps
    return max(whole.learning_rate_at(first, steps_per_epoch=steps), 1e-12)


def _network(described: dict[str, Any], before: Arrays, path: Path) -> torch.nn.Module:
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
    present = [kind for kind in ("gradient", "update", "after") if _under(arrays, kind)]
    if len(present) != 1:
        raise InvalidInputError(
            f"{path.name} holds {' and '.join(present) or 'no gradient, update or weights after'}",
            hint="exactly one of gradient/..., update/... or after/...",
        )
    given = _under(arrays, present[0])
    if present[0] != "after":
        return present[0], {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
    lost = sorted(set(given) - set(before))
    if lost:
        raise InvalidInputError(f"after/{lost[0]} has no before/{lost[0]}", hint=LAYOUT_HINT)
    return "update", {
        name: torch.from_numpy(value.astype(np.float64) - before[name]) for name, value in given.items()
    }


def _defence(values: dict[str, Any]) -> Defence:
    try:
        return Defence(**values)
    except TypeError as error:
        raise InvalidInputError(f"defence {values}: {error}", hint=LAYOUT_HINT) from error


def _weights(arrays: Arrays) -> Arrays:
    """Weights of a checkpoint (``weights/NAME``) or of ``initial.safetensors`` (bare names)."""
    return _under(arrays, "weights") or {
        name: a for name, a in arrays.items() if not name.startswith("state/")
    }


def _under(arrays: Arrays, prefix: str) -> Arrays:
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
        arrays, metadata = _read_safetensors(path)
        return arrays, metadata.get("settings", "{}")
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise InvalidInputError(f"{path} holds one bare array", hint=LAYOUT_HINT)
            arrays = {name: file[name] for name in file.files}
    except InvalidInputError:
        raise
    except Exception as error:  # zipfile, numpy and zlib raise half a dozen kinds
        raise IntegrityError(f"{path} cannot be read as .npz: {error}", hint=LAYOUT_HINT) from error
    text = arrays.pop("settings", np.array("{}"))
    return arrays, str(text)


def _read_safetensors(path: Path) -> tuple[Arrays, dict[str, str]]:
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
