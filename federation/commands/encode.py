"""``instahide encode``: private images in, an encoded folder out, the exposure charged."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from .console import NO_LABELS, OutputFormat, StoppedError, print_json, progress_bar
from .inspect import law_in_words, manifest_in_numbers

if TYPE_CHECKING:
    from instahide.encode_job import EncodeResult
    from instahide.encoder_config import EncoderConfig
    from instahide.encoding_guarantee import Guarantee
    from instahide.images import ImageSet

WORTH = (
    "InstaHide is broken: with enough encodings the images can be rebuilt (Carlini et al. 2020). "
    "Treat this folder as sensitive; `instahide demo` shows a first leak figure."
)


def encode(
    private: Annotated[
        Path, typer.Argument(help="Images to encode: folder, .npz, idx, CIFAR batches, DICOM folder, CSV.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New or empty folder for the encodings.", metavar="DIR")],
    public: Annotated[
        Path | None, typer.Option(help="Public images to mix in; without it all sources are private.")
    ] = None,
    num_mixed: Annotated[
        int, typer.Option(min=1, max=16, metavar="K", help="k, images in one encoding.")
    ] = 4,
    num_private: Annotated[
        int, typer.Option(min=1, max=16, metavar="N", help="Private ones among them (with --public).")
    ] = 2,
    epochs: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Encodings of each image; above 1 raise --max-releases too."),
    ] = 1,
    mode: Annotated[
        str,
        typer.Option(
            help="hardened, compat (published law, for research), mixup (no sign mask) or dp (noise)."
        ),
    ] = "hardened",
    coefficient_law: Annotated[
        str | None,
        typer.Option(
            help="folded-normal, dirichlet or, without a mask, equal.",
            show_default="folded-normal; equal in mode dp",
        ),
    ] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="Mode dp: noise for this epsilon of one image, over all --epochs.")
    ] = None,
    target_delta: Annotated[float | None, typer.Option(help="Mode dp: delta.", show_default="1e-5")] = None,
    noise_law: Annotated[
        str | None, typer.Option(help="Mode dp: gaussian or laplace.", show_default="gaussian")
    ] = None,
    quantization_bits: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=16,
            metavar="BITS",
            help="Bits of each stored value.",
            show_default="8 in modes hardened and dp",
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="Exposure ledger to charge.",
            show_default="$INSTAHIDE_LEDGER, else instahide/exposure.sqlite3 in the user's state folder",
        ),
    ] = None,
    max_releases: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Encodings of any one image that may ever be released.",
            show_default="1 in modes hardened and dp, else no limit",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, test or val: the part to encode.",
            show_default="train, or all where there are no parts",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Resize to this many pixels a side.", show_default="as stored"),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(metavar="C", help="1 makes all grey, 3 all colour.", show_default="as stored"),
    ] = None,
    max_bad_fraction: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="F", help="Share of unusable files to go on without."),
    ] = 0.01,
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Rows in a file.", show_default="up to 8192, or 64 MiB of float32"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish an interrupted run of this command.")
    ] = False,
    format: Annotated[OutputFormat, typer.Option(help="Lines for people, or one JSON object.")] = (
        OutputFormat.text
    ),
) -> None:
    """Encode private images into a folder of safetensors shards and a manifest.

    PRIVATE is a folder with one sub-folder a class, an .npz or .npy file, idx
    or CIFAR files, a DICOM folder, or a CSV manifest.

    Each image is charged to the exposure ledger before anything is written: by
    default one encoding of an image may ever leave, and a second run over the
    same images is refused. The ledger knows images by their pixels, wherever
    the files lie. Encodings are not encrypted and not anonymous.

    Mode dp alone has a privacy guarantee, which is printed; it needs much noise
    and so many images. It is for one image and this folder: other releases of
    the same images add to it.

    An interrupted run leaves no data set behind; the same command with --resume
    finishes it without a second charge for the images.

    Exit codes: 0 written · 2 wrong input · 3 over the release budget ·
    4 damaged file · 130 interrupted.

    Examples:

        instahide encode scans/ --out encoded/

        instahide encode scans/ --out encoded/ --public pool.npz --num-mixed 6

        instahide encode scans/ --out encoded/ --mode dp --target-epsilon 8
    """
    from instahide.encode_job import JOB_FILE, encode_to_folder
    from instahide.encoder_config import EncoderConfig
    from instahide.exposure import ExposureLedger, default_ledger_path

    law: dict[str, Any] = {
        "num_mixed": num_mixed,
        "num_private": min(num_private, num_mixed) if public is None else num_private,
        "quantization_bits": quantization_bits,
    }
    if coefficient_law is not None:
        law["coefficient_law"] = coefficient_law
    noise = _checked_noise(mode, target_epsilon, target_delta, noise_law)
    config = None if mode == "dp" else EncoderConfig(mode=mode, **law)
    with _warnings_in_plain_words():
        with progress_bar("reading images"):
            how = {"image_size": image_size, "channels": channels, "max_bad_fraction": max_bad_fraction}
            images = _load(private, split, how)
            pool = None if public is None else _load_public(public, images)
        if config is None:
            config = _law_with_noise(images, epochs, public is not None, noise, law)
        charged = ExposureLedger(ledger or default_ledger_path())
        try:
            with progress_bar("encoding") as on_progress:
                result = encode_to_folder(
                    config,
                    out,
                    private=images,
                    public=pool,
                    ledger=charged,
                    epochs=epochs,
                    max_releases="default" if max_releases is None else max_releases,
                    shard_size=shard_size,
                    resume=resume,
                    on_progress=on_progress,
                )
        except KeyboardInterrupt as error:
            if not (out / JOB_FILE).exists():
                raise  # before anything was charged or written
            raise StoppedError(
                f"interrupted: {out} is unfinished, and no data set yet",
                hint="run the same command with --resume to finish it without a second charge",
            ) from error
    _report(result, charged.path, format, _guarantee(result, noise["target_delta"]))


def _load(path: Path, split: str | None, how: dict[str, Any]) -> ImageSet:
    from instahide.errors import InvalidInputError
    from instahide.readers import load_images

    if split not in (None, "train", "test", "val"):
        raise InvalidInputError(f"--split is {split!r}", hint="use train, test or val")
    part = cast(Literal["train", "test", "val"] | None, split)
    images = load_images(path, split=part, **how)
    if images.labels is None:
        raise InvalidInputError(f"{path} has no labels", hint=NO_LABELS)
    return images


def _load_public(path: Path, private: ImageSet) -> ImageSet:
    """The pool in the private images' size and colour; its labels, if any, play no part."""
    from instahide.images import ImageSet
    from instahide.readers import load_images

    channels, height, width = private.image_shape
    pool = load_images(path, image_size=height if height == width else None, channels=channels)
    return ImageSet(pool.images)


def _checked_noise(
    mode: str, epsilon: float | None, delta: float | None, noise_law: str | None
) -> dict[str, Any]:
    """The options of mode dp, which have no meaning in any other."""
    from instahide.errors import InvalidInputError

    given = {"target_epsilon": epsilon, "target_delta": delta, "noise_law": noise_law}
    if mode != "dp":
        for name, value in given.items():
            if value is not None:
                raise InvalidInputError(
                    f"--{name.replace('_', '-')} has no meaning in mode {mode}", hint="use --mode dp"
                )
    elif epsilon is None:
        raise InvalidInputError("mode dp needs --target-epsilon", hint="say --target-epsilon 8")
    return {"target_delta": 1e-5, **{name: value for name, value in given.items() if value is not None}}


def _law_with_noise(
    images: ImageSet, epochs: int, has_pool: bool, noise: dict[str, Any], law: dict[str, Any]
) -> EncoderConfig:
    from instahide.encoding_guarantee import dp_config_for

    return dp_config_for(
        image_shape=images.image_shape,
        num_classes=images.num_classes,
        scheme="cross" if has_pool else "inside",
        releases=epochs,
        **noise,
        **law,
    )


def _guarantee(result: EncodeResult, delta: float) -> Guarantee | None:
    """What the folder guarantees, by the uses that were charged; ``None`` for a mode without noise."""
    from instahide.encoder_config import EncoderConfig
    from instahide.encoding_guarantee import guarantee_of_encodings

    manifest = result.manifest
    config = EncoderConfig.from_dict(manifest.law)
    if not config.has_noise:
        return None
    return guarantee_of_encodings(
        config,
        image_shape=manifest.image_shape,
        num_classes=len(manifest.class_names),
        scheme=manifest.scheme,
        releases=result.own_uses,
        partner_uses=result.partner_uses,
        target_delta=delta,
    )


def _report(result: EncodeResult, ledger: Path, format: OutputFormat, guarantee: Guarantee | None) -> None:
    if format is OutputFormat.json:
        print_json(_in_numbers(result, ledger, guarantee))
        return
    manifest = result.manifest
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    lines = [
        f"encoded {manifest.images_per_epoch:,} images x {manifest.epochs} epoch(s) into {result.path} "
        f"({len(manifest.shards)} shard(s), {megabytes:.1f} MB)",
        f"  law       {law_in_words(manifest.law, manifest.scheme)}",
        f"  exposure  charged per image: {result.own_uses} own, {result.partner_uses} as partner; "
        f"ledger {ledger}",
    ]
    if result.rows_kept_from_before:
        lines.append(f"  resumed   {result.rows_kept_from_before:,} rows were already there")
    if result.copies_left_out:
        lines.append(
            f"  left out  {result.copies_left_out:,} exact copies of other images: the release budget has no "
            "room for a second encoding of one picture (--max-releases)"
        )
    worth = WORTH if guarantee is None else f"{guarantee.in_words()}; other releases add to it"
    typer.echo("\n".join([*lines, f"  worth     {worth}"]))


def _in_numbers(result: EncodeResult, ledger: Path, guarantee: Guarantee | None) -> dict[str, Any]:
    return {
        "path": str(result.path),
        **manifest_in_numbers(result.manifest),
        "copies_left_out": result.copies_left_out,
        "rows_kept_from_before": result.rows_kept_from_before,
        "own_uses_charged": result.own_uses,
        "partner_uses_charged": result.partner_uses,
        "ledger": str(ledger),
        "guarantee": None if guarantee is None else guarantee.to_dict(),
        "worth": WORTH if guarantee is None else guarantee.in_words(),
    }


@contextmanager
def _warnings_in_plain_words() -> Iterator[None]:
    """Show a warning as one line, without the place in the source it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield
