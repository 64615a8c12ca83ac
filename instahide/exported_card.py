"""The card of an exported model: one dictionary for programs, and the same as a page of Markdown.

It says what the model is, on what and how it was trained, what the privacy settings give and **what they do
not give**, what attacks recovered, how accurate the model is in each way of asking it, and what was not
measured. Nothing is filled in: a section without facts says that there are none. An epsilon stands here only
where differential privacy ran, with its unit, delta and accountant; InstaHide alone has none.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .models import ImageClassifier, count_parameters

FORMAT = "instahide-fl model card 2"
NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"

INSTAHIDE_GIVES = "hides images from a casual look; training sees mixtures with flipped signs, not images"
INSTAHIDE_LACKS = (
    "it is not encryption and is broken: Carlini et al. (2020) recovered images from released encodings",
    "no privacy guarantee in numbers: no differential-privacy parameter can be stated for it",
    "it does not hide what the finished model remembers of its training images",
)
PLAIN_GIVES = "nothing: training saw the images as they are"
PLAIN_LACKS = ("no privacy guarantee in numbers comes from training on plain images",)
LIMITS = (
    "Membership of a patient's image in the training data can be inferred from a model itself, and from its "
    "answers; treat these files as data derived from patients.",
    "Accuracies speak of images from the same sources as the test images, not of another hospital.",
    "Images must be made as those for training: same shape, channels, and grey window. The files scale "
    "pixels, they do not crop, resize or window.",
    "Not validated for clinical use.",
)


def encoding_section(law: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    """What was trained on, and what that gives; ``law`` are the encoding's settings, None for plain images.

    ``more`` is shown beside them.
    """
    if law is None:
        return {"name": "none", "gives": PLAIN_GIVES, "does-not-give": list(PLAIN_LACKS)}
    lacks = list(INSTAHIDE_LACKS)
    gives = INSTAHIDE_GIVES
    if law.get("mode") == "mixup":
        gives = "mixes images, without a sign mask: single images often show through"
    if law.get("mode") == "dp":
        gives = "mixes images and adds noise; what the noise guarantees is under differential privacy"
        lacks = [*lacks[:1], lacks[2]]
    return {"name": "InstaHide", "law": {**law, **more}, "gives": gives, "does-not-give": lacks}


def audit_section(folder: Path | None) -> dict[str, Any]:
    """What attacks found: every ``result.json`` below ``folder``; none means not measured.

    Raises IntegrityError for a damaged result.
    """
    from .attacks.result_files import RESULT_FILE, read_results

    if folder is None or not folder.is_dir() or not any(folder.rglob(RESULT_FILE)):
        return {"verdict": NOT_MEASURED, "attacks": []}
    attacks = [
        {
            "attack": result.values.get("attack") or result.values["name"],
            "leaked": result.values["leaked"],
            "verdict": result.values["verdict"],
            "metrics": result.values["metrics"],
            "intervals": result.values.get("intervals", {}),
        }
        for result in read_results(folder)
    ]
    found = [attack["leaked"] for attack in attacks]
    verdict = "leaks" if any(found) else "undecided" if None in found else "nothing found by what was run"
    return {"verdict": verdict, "attacks": attacks}


def model_section(model: ImageClassifier, class_names: Sequence[str], names_recorded: bool) -> dict[str, Any]:
    """The network and its classes."""
    return {
        **model.spec.to_dict(),
        "class_names": list(class_names),
        "class_names_recorded": names_recorded,
        "num_parameters": count_parameters(model),
    }


def versions() -> dict[str, str]:
    """Of what made the export."""
    import torch

    return {"instahide-fl": __version__, "torch": torch.__version__, "python": platform.python_version()}


def render(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    model = card["model"]
    shape = " × ".join(str(size) for size in model["image_shape"])
    text = [
        f"# {_cell(card['name'])}",
        f"`{model['name']}` ({model['num_parameters']:,} parameters), {_cell(card['origin'])}.",
        "## How to use it",
        _usage(card, shape),
        "## Classes",
        _classes(model),
        "## Trained on",
        _data(card["data"]),
        "## Accuracy",
        _accuracy(card["accuracy"]),
        "## Privacy: what the settings give and do not give",
        _encoding(card["encoding"]),
        "### Differential privacy",
        _privacy(card["differential-privacy"]),
        *(["### Updates", card["updates"]] if card["updates"] else []),
        "## What attacks recovered",
        _audit(card["audit"]),
        "## Training",
        f"Plan hash: {card['plan-sha256'] or NOT_RECORDED}.\n\nSchedule: {_cell(card['schedule'])}.",
        _table(("setting", "value"), card["settings"].items()),
        "## Versions",
        _table(("program", "version"), card["versions"].items()),
        "## Limits",
        "\n".join(f"* {limit}" for limit in card["limits"]),
    ]
    return "\n\n".join(text) + "\n"


_GRAPHS = """\
Input of the ONNX and torch.export files: `images`, uint8 pixels 0..255 of shape (N, {shape}), N free.
Outputs: `scores` (N, K) before the softmax, and `probabilities` (N, K). Pixels are scaled inside.

```python
scores, probabilities = onnxruntime.InferenceSession("model.onnx").run(None, {{"images": images}})
scores, probabilities = torch.export.load("model.pt2").module()(torch.from_numpy(images))
```

A `.pt2` file is code for torch: load it only if its SHA-256 is the one below."""

_WEIGHTS = """\
The safetensors file holds weights only, under the names of the network below. Scale pixels first:
`{preprocessing}`.

```text
{network}
```"""


def _usage(card: Mapping[str, Any], shape: str) -> str:
    names = {file["name"] for file in card["files"]}
    parts = []
    if names - {"model.safetensors"}:
        parts.append(_GRAPHS.format(shape=shape))
    if "model.safetensors" in names:
        parts.append(_WEIGHTS.format(preprocessing=card["preprocessing"], network=card["network"]))
    rows = [
        (f"`{file['name']}`", file["sha256"], file["checked-with"], _or(file["largest-difference"], ""))
        for file in card["files"]
    ]
    return "\n\n".join([*parts, _table(("file", "SHA-256", "checked with", "largest difference"), rows)])


def _classes(model: Mapping[str, Any]) -> str:
    note = "" if model["class_names_recorded"] else "Their names were not recorded in training.\n\n"
    return note + _table(("output", "class"), enumerate(model["class_names"]))


def _data(data: Mapping[str, Any]) -> str:
    rows = [
        (site["name"], _or(site["training-images"], "not told"), _or(site["rounds"], ""))
        for site in data["sites"]
    ]
    note = f"{data['note']}\n\n" if data.get("note") else ""
    return note + _table(("where", "training images", "rounds"), rows)


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    rows = []
    for name, mode in accuracy["modes"].items():
        if mode is None:
            rows.append((name, NOT_MEASURED, "", ""))
            continue
        low, high = mode.get("interval") or (None, None)
        interval = "" if low is None else f"{low:.4f} to {high:.4f}"
        rows.append((name, f"{mode['accuracy']:.4f}", interval, _or(mode.get("num-images"), "")))
    head = ("asked with", "accuracy", "95 % interval", "test images")
    return f"{accuracy['note']}\n\n" + _table(head, rows)


def _encoding(encoding: Mapping[str, Any]) -> str:
    law = encoding.get("law")
    shown = "" if not law else "\n\n" + _table(("encoding", "value"), law.items())
    lacks = "\n".join(f"* {text}" for text in encoding["does-not-give"])
    return (
        f"Encoding: {encoding['name']}. It gives: {encoding['gives']}.\n\nIt does not give:\n\n{lacks}{shown}"
    )


def _privacy(privacy: Mapping[str, Any] | None) -> str:
    if privacy is None:
        return "None ran, and no epsilon is stated."
    facts = [(name, _or(value, "")) for name, value in privacy.items() if name not in ("note", "sites")]
    sites = privacy.get("sites")
    spent = "" if not sites else "\n\n" + _table(("hospital", "epsilon"), sites.items())
    return f"{privacy['note']}\n\n" + _table(("", "value"), facts) + spent


def _audit(audit: Mapping[str, Any]) -> str:
    if not audit["attacks"]:
        return "Not measured: no attack was run on this model or its encodings."
    rows = [
        (
            attack["attack"],
            {True: "leaks", False: "nothing found", None: "undecided"}[attack["leaked"]],
            attack["verdict"],
            ", ".join(f"{name} {_number(value)}" for name, value in attack["metrics"].items()),
        )
        for attack in audit["attacks"]
    ]
    note = "Each figure is what one attack reached, a lower bound on what leaks."
    return f"{audit['verdict'].capitalize()}. {note}\n\n" + _table(
        ("attack", "finding", "verdict", "figures"), rows
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)])


def _cell(value: Any) -> str:
    """``value`` on one line of a table: no character that Markdown or HTML would take for its own."""
    text = " ".join(str(value).split())
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "/")):
        text = text.replace(sign, safe)
    return text


def _or(value: Any, otherwise: str) -> str:
    return otherwise if value is None else f"{value:,}" if isinstance(value, int) else _number(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
