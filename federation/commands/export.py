"""``instahide export``: a finished model in files that need nothing of this toolkit, with its card."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import OutputFormat, print_json, progress_bar

if TYPE_CHECKING:
    from instahide.model_export import ExportedFile

    from ..exported_model import FinishedModel

CARD_JSON, CARD_TEXT = "model_card.json", "model_card.md"


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="The --out of `instahide train`, or a finished run: STUDY/runs/NAME.", metavar="DIR"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; it must not hold anything yet.")],
    to: Annotated[
        str, typer.Option(help="safetensors, onnx, torch-export; commas between several.")
    ] = "safetensors,onnx,torch-export",
    audit: Annotated[
        Path | None,
        typer.Option(help="Folder with results of `instahide attack run`, for the card.", show_default="DIR"),
    ] = None,
    output: Annotated[
        OutputFormat, typer.Option("--format", help="Lines for people, or the card as JSON.")
    ] = OutputFormat.text,
) -> None:
    """Write a finished model as safetensors, ONNX or torch.export files, with a model card.

    The ONNX and torch.export files take 8-bit pixels 0..255 of any number of
    images and give scores and probabilities: pixels are scaled inside. The
    safetensors file holds weights; its metadata say how to scale.

    The model is checked against the SHA-256 its training or its run recorded,
    and each file against the model. The card (Markdown and JSON) tells data,
    settings, accuracies, what the privacy settings give and do not give, and
    what attacks recovered; what was not measured is called so.

    Exit codes: 0 written · 2 no finished model, unknown format, or --out is in
    use · 4 the model or a record of it is damaged or was edited · 130
    interrupted. Where it is not 0, nothing is left behind.

    Examples:

        instahide export run/ --out model/

        instahide export study/runs/trial-1 --out model/ --to onnx --audit attacks/
    """
    from instahide.model_export import check_formats, export_model

    from ..exported_model import read_finished_model

    formats = check_formats([name.strip() for name in to.split(",") if name.strip()])
    _check_free(out)
    finished = read_finished_model(source)
    with progress_bar("exporting"):
        files = export_model(finished.model, finished.class_names, formats)
    card = _card(finished, files, _audit_folder(source, audit))
    _write(out, files, card)
    if output is OutputFormat.json:
        print_json({"out": str(out), **card})
    else:
        _print(out, files, card)


def _check_free(out: Path) -> None:
    from instahide.errors import InvalidInputError

    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InvalidInputError(f"{out} is in use", hint="choose an --out that is not there yet")
    if not out.absolute().parent.is_dir():
        raise InvalidInputError(f"there is no folder {out.absolute().parent}", hint="make it first")


def _audit_folder(source: Path, audit: Path | None) -> Path | None:
    """Where to look for results of attacks; a folder that was named must hold some."""
    from instahide.attacks.result_files import read_results

    if audit is None:
        return source
    read_results(audit)
    return audit


def _card(finished: FinishedModel, files: list[ExportedFile], audit: Path | None) -> dict[str, Any]:
    from instahide.exported_card import FORMAT, LIMITS, audit_section, model_section, versions
    from instahide.model_export import describe

    described = describe(finished.model, finished.class_names)
    return {
        "format": FORMAT,
        **finished.facts,
        "model": model_section(finished.model, finished.class_names, finished.names_recorded),
        "preprocessing": described["preprocessing"],
        "network": repr(finished.model.body),
        "files": [
            {
                "name": file.name,
                "sha256": hashlib.sha256(file.data).hexdigest(),
                "bytes": len(file.data),
                "checked-with": file.checked_with,
                "largest-difference": file.largest_difference,
            }
            for file in files
        ],
        "audit": audit_section(audit),
        "versions": versions(),
        "limits": list(LIMITS),
    }


def _write(out: Path, files: list[ExportedFile], card: dict[str, Any]) -> None:
    from instahide.atomic import atomic_folder, atomic_write_bytes, atomic_write_text
    from instahide.exported_card import render

    with atomic_folder(out.absolute()) as folder:
        for file in files:
            atomic_write_bytes(folder / file.name, file.data)
        atomic_write_text(folder / CARD_JSON, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        atomic_write_text(folder / CARD_TEXT, render(card))


def _print(out: Path, files: list[ExportedFile], card: dict[str, Any]) -> None:
    model = card["model"]
    shape = ", ".join(str(size) for size in model["image_shape"])
    typer.echo(f"{model['name']} with {len(model['class_names'])} classes written to {out}:")
    for file in files:
        seen = file.largest_difference
        same = "" if seen is None else f", probabilities within {seen:.0e}" if seen else ", same weights"
        typer.echo(f"  {file.name:<20}{len(file.data):>12,} bytes  checked with {file.checked_with}{same}")
    typer.echo(f"  {CARD_TEXT}, {CARD_JSON}")
    typer.echo(
        f"input: uint8 pixels 0..255, shape (N, {shape}); what attacks recovered: {card['audit']['verdict']}"
    )
