"""The report of a study: a table of the arms, a picture of their accuracies, and what was not simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from instahide.html_page import heading, line_chart, page, paragraph, table

Cell = str | float | int | None
MIB: Final = 2**20
COLUMNS: Final = (
    "arm",
    "accuracy",
    "loss",
    "sites a round",
    "lost",
    "epsilon",
    "uses of an image",
    "MiB up",
    "CPU s",
)


def arm_rows(results: Mapping[str, Any]) -> list[list[Cell]]:
    """One row an arm, under :data:`COLUMNS`: of its last global model, where it has one.

    Uses of an image are an upper bound, the most as the own image and the most as a partner; MiB that a site
    sends and processor seconds, the coordinator's share included, are those of one site in one round.
    """
    return [_row(arm) for arm in results["arms"]]


def _row(arm: Mapping[str, Any]) -> list[Cell]:
    rounds = arm["rounds"]
    trained = [row["sites"] for row in rounds if row["sites"]]
    name = arm["name"] + (" (failed)" if "failed" in arm else "")
    if "failed" in arm or not trained:
        return [name, *[None] * 3, arm.get("dropped"), *[None] * 4]
    last, privacy, exposures = rounds[-1], arm["epsilon"], arm["exposures"]
    return [
        name,
        last["accuracy"],
        last["loss"],
        sum(trained) / len(trained),
        arm["dropped"],
        _epsilon(privacy),
        exposures["most-own"] + exposures["most-partner"] if exposures else None,
        arm["bytes-received"] / sum(trained) / MIB,
        arm["processor-seconds-per-site-round"],
    ]


def _epsilon(privacy: Mapping[str, Any] | None) -> Cell:
    if privacy is None:
        return "none"
    if privacy["epsilon"] is None:
        return "above 30"
    return f"{privacy['epsilon']:.2f} at delta {privacy['delta']:g}, for {privacy['protects']}"


def study_page(results: Mapping[str, Any]) -> str:
    """The whole report as one HTML document without outside parts."""
    facts, law = results["hospitals"], results["heterogeneity"]
    told = (
        f"{facts['hospitals']:,} hospitals with {facts['images']:,} training images "
        f"({facts['smallest']:,} to {facts['largest']:,} each), classes by Dirichlet({law['alpha']:g}), "
        f"{facts['mean-classes']:.1f} classes at a hospital on average; {facts['distinct-images']:,} images "
        f"are distinct, and one is held by up to {facts['most-holders']:,} hospitals. One is lost in a "
        f"round with probability {results['dropout']:g}. Accuracy on {facts['test-images']:,} images that no "
        "hospital trains on."
    )
    curves = {
        arm["name"]: [(float(row["round"]), float(row["accuracy"])) for row in arm["rounds"]]
        for arm in results["arms"]
    }
    failures = [
        paragraph(f"Arm {arm['name']} failed: {arm['failed']}. {arm['hint']}.", kind="warning")
        for arm in results["arms"]
        if "failed" in arm
    ]
    return page(
        "A what-if study",
        paragraph(
            "A simulation on one computer: its seconds and bytes are no measurement of a real federation.",
            kind="warning",
        ),
        paragraph(told),
        heading("The arms"),
        table(COLUMNS, arm_rows(results)),
        paragraph(
            "Uses of an image: at most so many encodings trained on have it in them. MiB up and CPU seconds "
            "are a site's in a round, the coordinator's share of the seconds included.",
            kind="soft",
        ),
        *failures,
        heading("Accuracy after each round"),
        line_chart(curves, x_label="round", y_label="accuracy", caption="global model, plain test images"),
        heading("What differs"),
        table(
            ["arm", "settings"],
            [
                [
                    arm["name"],
                    ", ".join(f"{key} = {value}" for key, value in arm["changed"].items()) or "none",
                ]
                for arm in results["arms"]
            ],
        ),
        heading("What was not simulated"),
        *(paragraph(line) for line in results["not-simulated"]),
        heading("Cost on this computer"),
        table(
            ["arm", "seconds", "CPU seconds", "requests answered", "MiB sent", "MiB received"],
            [
                [
                    arm["name"],
                    arm["seconds"],
                    arm["processor-seconds"],
                    arm.get("requests-answered"),
                    _mib(arm, "bytes-sent"),
                    _mib(arm, "bytes-received"),
                ]
                for arm in results["arms"]
            ],
        ),
    )


def _mib(arm: Mapping[str, Any], key: str) -> float | None:
    return arm[key] / MIB if key in arm else None
