"""``instahide inspect``: is this encoded folder what it says, and what does it say?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import OutputFormat, Progress, print_json, progress_bar

if TYPE_CHECKING:
    import torch

    from instahide.manifest import Manifest
    from instahide.storage import EncodedFolder


@dataclass
class LabelFacts:
    """What the soft labels show, summed over all rows."""

    mean_largest: float
    single_class_share: float
    class_shares: dict[str, float]


def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder written by `instahide encode`.", metavar="DIR")],
    picture: Annotated[
        Path | None, typer.Option(help="Write a PNG of some encodings, signed and as |x|.", dir_okay=False)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=256, help="Encodings in the picture.")] = 16,
    format: Annotated[OutputFormat, typer.Option(help="Lines for people, or one JSON object.")] = (
        OutputFormat.text
    ),
) -> None:
    """Verify an encoded folder and show its public facts.

    DIR is a folder that `instahide encode` wrote. Every shard is read and
    checked against its SHA-256, size, shape and value range. The hashes show
    damage and plain edits; they are no signature.

    Exit codes: 0 whole · 2 not such a folder · 4 corrupt, truncated, edited,
    missing or added file.

    Example:

        instahide inspect encoded/ --picture grid.png
    """
    from instahide.picture_grid import write_picture_grid
    from instahide.storage import EncodedFolder

    encoded = EncodedFolder(folder)
    with progress_bar("checking") as progress:
        facts, first = _read_through(encoded, samples, progress)
    if picture is not None:
        write_picture_grid(first.numpy(), picture)
    if format is OutputFormat.json:
        _print_json(encoded.manifest, facts, picture)
    else:
        _print_text(folder, encoded.manifest, facts, picture)


def law_in_words(law: dict[str, Any], scheme: str) -> str:
    """The public law on one line."""
    k, private = law["num_mixed"], law["num_private"]
    public = f" ({private} private, {k - private} public)" if scheme == "cross" else " (all private)"
    bits = law["quantization_bits"]
    values = f"{bits}-bit values" if bits else "float32 values"
    text = f"{law['mode']}, {k} images mixed{public}, {law['coefficient_law']} coefficients, {values}"
    if law["mode"] == "dp":
        text += (
            f", {law['noise_law']} noise of {law['noise_scale']:.3g} (labels {law['label_noise_scale']:.3g})"
        )
    return text


def manifest_in_numbers(manifest: Manifest) -> dict[str, Any]:
    """Counts for the JSON outputs."""
    return {
        "num_images": manifest.num_images,
        "epochs": manifest.epochs,
        "image_shape": list(manifest.image_shape),
        "class_names": list(manifest.class_names),
        "num_shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "scheme": manifest.scheme,
        "law": manifest.law,
        "label_policy": manifest.label_policy,
        "row_order": manifest.row_order,
        "values": manifest.values,
        "texture_filter_version": manifest.texture_filter_version,
        "created_by": manifest.created_by,
    }


def _read_through(
    encoded: EncodedFolder, samples: int, progress: Progress
) -> tuple[LabelFacts, torch.Tensor]:
    """Read and check every shard once; label facts of all rows and the first images."""
    import torch

    largest, single, done = 0.0, 0, 0
    mass = torch.zeros(len(encoded.manifest.class_names), dtype=torch.float64)
    first: list[torch.Tensor] = []
    for shard in encoded.shards():
        largest += float(shard.labels.amax(dim=1).double().sum())
        single += int(((shard.labels > 0).sum(dim=1) == 1).sum())
        mass += shard.labels.double().sum(dim=0)
        if (missing := samples - sum(map(len, first))) > 0:
            first.append(shard.images[:missing].clone())
        done += len(shard)
        progress(done, len(encoded))
    shares = (mass / mass.sum().clamp_min(1e-12)).tolist()
    facts = LabelFacts(
        mean_largest=largest / len(encoded),
        single_class_share=single / len(encoded),
        class_shares=dict(zip(encoded.manifest.class_names, shares, strict=True)),
    )
    return facts, torch.cat(first)


def _print_json(manifest: Manifest, facts: LabelFacts, picture: Path | None) -> None:
    drawn = None if picture is None else str(picture)
    print_json({"whole": True, **manifest_in_numbers(manifest), "labels": asdict(facts), "picture": drawn})


def _print_text(folder: Path, manifest: Manifest, facts: LabelFacts, picture: Path | None) -> None:
    channels, height, width = manifest.image_shape
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    lines = [
        ("whole", f"{len(manifest.shards)} shard(s), {megabytes:.1f} MB, hashes, sizes and shapes as listed"),
        ("encodings", f"{manifest.num_images:,} of {channels}x{height}x{width} ({manifest.epochs} epoch(s))"),
        ("law", law_in_words(manifest.law, manifest.scheme)),
        ("labels", f"{manifest.label_policy}; largest share {facts.mean_largest:.2f} on average, "
                   f"{facts.single_class_share:.0%} of rows show one class alone"),
        ("classes", ", ".join(f"{name} {share:.0%}" for name, share in list(facts.class_shares.items())[:12])
                    + (" ..." if len(facts.class_shares) > 12 else "")),
        ("row order", manifest.row_order),
        ("written by", manifest.created_by),
    ]  # fmt: skip
    if picture is not None:
        lines.append(("picture", f"{picture} (pairs: as encoded, and |x|, which the sign mask cannot hide)"))
    typer.secho(str(folder), bold=True)
    for name, text in lines:
        typer.echo(f"  {name:<12}{text}")
