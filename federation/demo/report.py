"""``index.html`` of the demonstration: the same facts as ``demo.json``, to look at."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instahide.atomic import atomic_write_text
from instahide.html_page import heading, line_chart, page, paragraph, picture_grid, pictures, table
from instahide.images import ImageSet

from .data import DemoData
from .settings import DemoSettings

MODE_NAMES = {
    "plain": "plain queries",
    "one-view": "one encoded view",
    "ten-views": "average of ten encoded views",
}
NUM_PICTURES = 8


def write_page(settings: DemoSettings, data: DemoData, results: dict[str, Any]) -> None:
    """Write ``index.html`` and the picture it shows."""
    original, encoded = encoding_pictures(settings, data)
    document = page(
        "InstaHide FL: three hospitals, one model, and what leaks",
        paragraph(
            "InstaHide is broken (Carlini et al. 2020). An encoding is a transformation, not "
            "encryption. This page "
            "shows what training on encodings costs, and how much an outsider can still tell from them.",
            kind="warning",
        ),
        *_data_section(settings, results),
        *_accuracy_section(results),
        *_accident_section(results),
        *_picture_section(original, encoded),
        *_membership_section(settings, results),
        *_limits_section(settings),
    )
    atomic_write_text(settings.out / "index.html", document)


def _data_section(settings: DemoSettings, results: dict[str, Any]) -> list[str]:
    facts = results["data"]
    names = facts["class-names"]
    rows = [[name, sum(counts), *counts] for name, counts in facts["hospitals"].items()]
    return [
        heading("The hospitals"),
        paragraph(
            f"{facts['source']}, spread unevenly (Dirichlet, concentration {settings.concentration:g}); "
            f"{facts['test-images']:,} test images; {facts['public-images']:,} public images for mixing."
        ),
        table(["hospital", "images", *(f"class {name}" for name in names)], rows),
    ]


def _accuracy_section(results: dict[str, Any]) -> list[str]:
    alone = results["alone"]
    rows: list[list[str | float | int | None]] = [
        [f"{name} alone, plain images", *(values[mode] for mode in MODE_NAMES)]
        for name, values in alone.items()
    ]
    for key, label in (
        ("federated-plain", "federated, plain images"),
        ("federated-encoded", "federated, encodings"),
    ):
        rows.append([label, *(results[key]["final"][mode] for mode in MODE_NAMES)])
    curves = {
        f"{label}, {MODE_NAMES[mode]}": [
            (float(row["round"]), float(row[f"evaluate-accuracy-{mode}"]))
            for row in results[key]["rounds"]
            if row.get(f"evaluate-accuracy-{mode}") is not None
        ]
        for key, label, modes in (
            ("federated-plain", "plain images", ("plain",)),
            ("federated-encoded", "encodings", tuple(MODE_NAMES)),
        )
        for mode in modes
    }
    return [
        heading("Accuracy"),
        paragraph(
            "Three ways to ask the model are reported apart. A plain query is not protected at all; "
            "one encoded view "
            "protects it as an encoding does; the average of ten views is more accurate, and ten "
            "views of one image "
            "are also what a recovery attack wants."
        ),
        table(["trained", *MODE_NAMES.values()], rows),
        line_chart(
            curves,
            x_label="rounds",
            y_label="accuracy",
            caption="Accuracy on the hospitals' test images after each round.",
            y_range=(0.0, 1.0),
        ),
    ]


def _accident_section(results: dict[str, Any]) -> list[str]:
    accident = results["federated-encoded"]["accident"]
    without = ", ".join(map(str, accident["rounds-without-it"])) or "none"
    return [
        heading("One hospital killed, run survived"),
        paragraph(
            f"{accident['hospital']} was killed (SIGKILL) in the middle of round "
            f"{accident['killed-in-round']} of the "
            f"run on encodings. Rounds finished without it: {without}. The run went on with the "
            f"others and completed."
        ),
    ]


def encoding_pictures(settings: DemoSettings, data: DemoData) -> tuple[bytes, bytes]:
    """PNG strips: some private images, and one encoding of each (grey is zero)."""
    from instahide.encoder import Encoder, FewPixelsWarning
    from instahide.encoder_config import EncoderConfig

    train = data.hospitals[0].train
    config = EncoderConfig(num_mixed=settings.num_mixed, num_private=settings.num_private)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)
        encoded = Encoder(config, private=train, public=data.public).encode_epoch()
    signed = _as_pixels(encoded.images[:NUM_PICTURES].numpy())
    absolute = _as_pixels(2 * np.abs(encoded.images[:NUM_PICTURES].numpy()) - 1)
    scale = max(1, 48 // train.image_shape[1])
    first: ImageSet = train.subset(np.arange(min(NUM_PICTURES, len(train))))
    both = np.concatenate([signed, absolute])
    return (
        picture_grid(first.images, columns=NUM_PICTURES, scale=scale),
        picture_grid(both, columns=NUM_PICTURES, scale=scale),
    )


def _as_pixels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.clip(np.round((values + 1) * 127.5), 0, 255).astype(np.uint8)
    return pixels


def _picture_section(original: bytes, encoded: bytes) -> list[str]:
    return [
        heading("What an encoding looks like"),
        pictures(
            [
                (original, "Private images of one hospital."),
                (
                    encoded,
                    "One encoding of each; below, its absolute value. The sign mask hides nothing else: "
                    "anybody can take the absolute value.",
                ),
            ]
        ),
    ]


def _membership_section(settings: DemoSettings, results: dict[str, Any]) -> list[str]:
    measured = results["membership"]
    rows: list[list[str | float | int | None]] = []
    for key in ("k=1", f"k={settings.num_mixed}"):
        attack = measured[key]
        low, high = attack["intervals"]["auc"]
        metrics = attack["metrics"]
        label = "sign mask only, nothing mixed (k = 1)" if key == "k=1" else f"InstaHide, hardened ({key})"
        rows.append([label, metrics["auc"], f"{low:.3f} to {high:.3f}", metrics["tpr_at_1_percent_fpr"]])
    rows.append(["guessing", 0.5, "", 0.01])
    assumptions = "; ".join(measured[f"k={settings.num_mixed}"]["assumptions"])
    return [
        heading("First leak figure: is this image among the encodings?"),
        paragraph(
            f"Each image of {measured['hospital']} was encoded once. An outsider who holds a "
            f"candidate image asks whether "
            "it was used. An area under the curve of 0.5 is guessing, 1 is certainty."
        ),
        table(
            ["release", "area under ROC curve", "95 % interval", "members found at 1 % false alarms"], rows
        ),
        paragraph(f"The outsider's means: {assumptions}.", kind="soft"),
        paragraph(
            "This is membership, not recovery of a picture; recovery needs more releases of one "
            "image, which is why "
            "the exposure ledger refuses them. It is a lower bound: a better attack may find more."
        ),
    ]


def _limits_section(settings: DemoSettings) -> list[str]:
    return [
        heading("What this did not show"),
        paragraph(
            "The encodings stayed in the hospitals; what left were model updates. In the run on encodings "
            "the coordinator saw their sums only (secure aggregation), in the run on plain images each one "
            "in the clear: from a first dense layer such an update gives its input back exactly, and a sum "
            "over three hospitals hides that less than it seems. Every encoding an update was computed on "
            "is counted: here "
            f"the hospitals allowed up to {settings.max_update_exposures} per image, the default "
            f"policy allows 1."
        ),
        paragraph(
            "The images are public and small. Accuracy and leak on your images will differ: measure them."
        ),
    ]
