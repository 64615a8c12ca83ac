"""``instahide train``: one machine, plain images or encodings, three inference modes at the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import NO_LABELS, OutputFormat, StoppedError, print_json, progress_bar

if TYPE_CHECKING:
    from instahide.encoded_dataset import EncodedDataset
    from instahide.encoder import Encoder
    from instahide.encoder_config import EncoderConfig
    from instahide.evaluation import EvaluationReport
    from instahide.images import ImageSet
    from instahide.manifest import Manifest
    from instahide.training import EpochRecord
    from instahide.training_job import FolderRun


ENCODING_OPTIONS = ("num_mixed", "num_private", "mode")


def train(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="An encoded folder, or images in any form `encode` reads.")],
    out: Annotated[Path, typer.Option(help="Folder for the model and its records.")],
    test: Annotated[
        Path | None,
        typer.Option(help="Labelled plain images, resized like those of PATH; by default its test split."),
    ] = None,
    model: Annotated[str, typer.Option(help="small-cnn, mlp, resnet18 or resnet32.")] = "small-cnn",
    normalization: Annotated[str, typer.Option(help="group or batch.")] = "group",
    absolute_input: Annotated[
        bool | None,
        typer.Option(
            "--absolute-input/--signed-input",
            help="Whether the model takes |x| first.",
            show_default="|x| on sign-masked data",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="At the first step.")] = 0.05,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw (try a learning rate of 0.001).")] = "sgd",
    lr_schedule: Annotated[
        str, typer.Option(help="constant, step, cosine, exponential or exponential-equivalent.")
    ] = "cosine",
    equivalent_to: Annotated[
        str,
        typer.Option(help="Schedule with weight decay whose functions exponential-equivalent computes."),
    ] = "step",
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 5e-4,
    augment: Annotated[bool, typer.Option("--augment", help="Random crops and flips.")] = False,
    encode: Annotated[
        bool, typer.Option("--encode", help="Encode the plain images afresh every epoch.")
    ] = False,
    num_mixed: Annotated[int, typer.Option(help="With --encode: images in one encoding.")] = 4,
    num_private: Annotated[
        int, typer.Option(help="With --encode and --public: private ones among them.")
    ] = 2,
    mode: Annotated[str, typer.Option(help="With --encode: hardened, compat or mixup.")] = "hardened",
    public: Annotated[
        Path | None, typer.Option(help="Public images to mix into encodings, of queries too.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Resize plain images to this many pixels a side.", show_default="as stored"),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help="Make plain images grey (1) or colour (3).", show_default="as stored"),
    ] = None,
    max_bad_fraction: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of unusable files to go on without.")
    ] = 0.01,
    num_views: Annotated[int, typer.Option(min=1, help="Encodings of a query in the averaged mode.")] = 10,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --out.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same data and options, same weights.")
    ] = False,
    num_threads: Annotated[
        int | None, typer.Option(help="CPU threads.", show_default="few if the model is small")
    ] = None,
    output: Annotated[
        OutputFormat, typer.Option("--format", help="How to print the result.")
    ] = OutputFormat.text,
) -> None:
    """Train a classifier on this machine, and measure it in three inference modes.

    A plain query shows the image to whoever runs the model; one encoded view
    hides as much as InstaHide hides; an average of ten views regains accuracy
    and exposes the image ten times.

    --lr-schedule exponential-equivalent trains without weight decay at a
    growing rate and computes the same functions as --equivalent-to with it
    (Li and Arora 2020); the model needs normalization, so not mlp.

    Exit codes: 0 trained · 1 the loss diverged · 2 wrong input · 4 damaged
    file · 130 interrupted (a checkpoint is kept: run the same command with
    --resume).

    Examples:

        instahide train encoded/ --test test_images/ --out run/

        instahide train images.npz --encode --num-mixed 4 --epochs 30 --out run/
    """
    from instahide.encoder_config import EncoderConfig
    from instahide.models import ModelSpec
    from instahide.training_config import TrainingConfig
    from instahide.training_job import train_in_folder, write_report

    config = TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        equivalent_to=equivalent_to,
        weight_decay=weight_decay,
        augment=augment,
        device=device,
        deterministic=deterministic,
        num_threads=num_threads,
    )
    if not encode:
        _refuse_idle_options(context)
    # Without a pool all sources are private, as in `instahide encode`.
    private = num_private if public is not None else min(num_private, num_mixed)
    law = EncoderConfig(num_mixed=num_mixed, num_private=private, mode=mode) if encode else None
    with progress_bar("reading images"):
        how = {"image_size": image_size, "channels": channels, "max_bad_fraction": max_bad_fraction}
        source = _Source(path, test, public, law, how)
    masked = source.law is not None and source.law.has_sign_mask
    absolute = masked if absolute_input is None else absolute_input
    spec = ModelSpec(model, source.data.image_shape, source.data.num_classes, absolute, normalization)
    with _progress(epochs) as (on_step, on_epoch), _stop_on_interrupt() as stopped:
        run = train_in_folder(
            out,
            spec,
            source.training_data,
            config,
            resume=resume,
            notes=source.notes(),
            on_step=on_step,
            on_epoch=on_epoch,
            should_stop=stopped.is_set,
        )
    if run.interrupted:
        raise StoppedError(
            f"interrupted: a checkpoint is kept in {out}", hint="run the same command with --resume"
        )
    with progress_bar("measuring accuracy"):
        evaluation = source.evaluate(run.model, num_views)
    report = write_report(out, run, evaluation)
    if output is OutputFormat.json:
        print_json({"out": str(out), "trained_on": source.kind, **report})
    else:
        _print_result(out, source, run, evaluation)


class _Source:
    """What to train on, what to test on, and the encoder that makes encoded queries."""

    def __init__(
        self,
        path: Path,
        test: Path | None,
        public: Path | None,
        law: EncoderConfig | None,
        how: dict[str, Any],
    ) -> None:
        from instahide.errors import InvalidInputError
        from instahide.storage import EncodedFolder, load_encoded

        is_encoded = (path / "manifest.json").is_file()
        if is_encoded and law is not None:
            raise InvalidInputError(f"{path} is encoded already", hint="leave out --encode")
        if public is not None and law is None and not is_encoded:
            raise InvalidInputError("--public does nothing on plain images", hint="add --encode")
        self.law: EncoderConfig | None
        self.data: EncodedDataset | ImageSet
        self.manifest: Manifest | None = None
        if is_encoded:
            self.data = encoded = load_encoded(path)
            self.kind, self.law = "encodings", encoded.config
            self.manifest = EncodedFolder(path).manifest
        else:
            self.data = plain = _load(path, None, how)
            self.kind, self.law = "plain images", law
        self.public = None if public is None else _load_public(public, self.data.image_shape)
        self.how = how | _presentation_of(self.data.image_shape)  # test images come like the others
        self.test = self._find_test(path, test, is_encoded)
        self.training_data: Any = self.data
        self.encoder: Encoder | None = None
        if law is not None:
            self.kind, self.encoder = "fresh encodings each epoch", self._encoder(plain)
            self.training_data = self.encoder.encode_epoch
        elif is_encoded and self.test is not None:
            self.encoder = self._encoder(self.test)

    def notes(self) -> dict[str, Any]:
        """What is kept with the model: class names, and what it was trained on."""
        facts: dict[str, Any] = {
            "kind": self.kind,
            "num_images": len(self.data),
            "law": None if self.law is None else self.law.to_dict(),
            "scheme": None if self.law is None else "inside" if self.public is None else "cross",
            "epochs_released": None,
        }
        if self.manifest is not None:
            facts |= {"scheme": self.manifest.scheme, "epochs_released": self.manifest.epochs}
        return {"class_names": list(self.data.class_names or ()), "data": facts}

    def evaluate(self, model: Any, num_views: int) -> EvaluationReport | None:
        """The inference modes that can be measured; None without test images."""
        from instahide.evaluation import evaluate

        if self.test is None:
            return None
        return evaluate(model, self.test, encoder=self.encoder, num_views=num_views)

    def _encoder(self, private: ImageSet) -> Encoder:
        """Queries are mixed with the public pool if given, else with the other images of ``private``."""
        from instahide.encoder import Encoder

        assert self.law is not None
        return Encoder(self.law, private=private, public=self.public)

    def _find_test(self, path: Path, test: Path | None, is_encoded: bool) -> ImageSet | None:
        names, how = self.data.class_names, self.how
        if test is not None:
            # A file with splits gives its test split; anything else is test data as a whole.
            return _test_split(test, names, how) or _load(test, names, how)
        return None if is_encoded else _test_split(path, names, how)


def _refuse_idle_options(context: typer.Context) -> None:
    """Options that only --encode gives a meaning are not ignored in silence."""
    from instahide.errors import InvalidInputError

    for name in ENCODING_OPTIONS:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InvalidInputError(
                f"--{name.replace('_', '-')} does nothing without --encode",
                hint="add --encode, or leave it out",
            )


def _presentation_of(image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """How to read images so that they come out in this (C, H, W); other than square they must have it."""
    channels, height, width = image_shape
    return {"image_size": height if height == width else None, "channels": channels}


def _load(path: Path, names: tuple[str, ...] | None, how: dict[str, Any]) -> ImageSet:
    from instahide.errors import InvalidInputError
    from instahide.readers import load_images

    images = load_images(path, class_names=names, **how)
    if images.labels is None:
        raise InvalidInputError(f"{path} has no labels", hint=NO_LABELS)
    return images


def _test_split(path: Path, names: tuple[str, ...] | None, how: dict[str, Any]) -> ImageSet | None:
    """The test split of ``path``, or None if it has no such split."""
    from instahide.errors import InvalidInputError
    from instahide.readers import load_images

    try:
        return load_images(path, split="test", class_names=names, **how)
    except InvalidInputError as error:
        if error.message.startswith("there is no test split"):
            return None
        raise


def _load_public(path: Path, image_shape: tuple[int, int, int]) -> ImageSet:
    """The pool in the private images' size; its labels, if any, play no part."""
    from instahide.images import ImageSet
    from instahide.readers import load_images

    return ImageSet(load_images(path, **_presentation_of(image_shape)).images)


def _print_result(out: Path, source: _Source, run: FolderRun, evaluation: EvaluationReport | None) -> None:
    from instahide.models import count_parameters

    spec, last = run.model.spec, run.history[-1]
    first_operation = ", |x| first" if spec.absolute_input else ""
    typer.echo(
        f"trained {spec.name} ({count_parameters(run.model):,} parameters{first_operation}) on "
        f"{last.num_examples:,} images ({source.kind}), {len(run.history)} epochs, final loss {last.loss:.3f}"
    )
    if evaluation is None:
        typer.echo("  accuracy not measured: there are no test images (--test)")
    else:
        for name, mode in evaluation.modes.items():
            if mode is None:
                typer.echo(f"  {name:<28}not measured (no encoder: trained on plain images)")
                continue
            low, high = mode.accuracy_interval
            auc = "" if mode.auc is None else f", AUC {mode.auc:.3f}"
            typer.echo(
                f"  {name:<28}accuracy {mode.accuracy:.3f} (95 % {low:.3f} to {high:.3f}), "
                f"balanced {mode.balanced_accuracy:.3f}{auc}"
            )
        if evaluation.encoded_once is not None:
            partners = "public images" if source.public is not None else "other images of the same owner"
            typer.echo(f"  encoded queries are mixed with {partners}")
    typer.echo(f"  written to {out}: model.safetensors, metrics.csv, metrics.json")


@contextmanager
def _progress(
    epochs: int,
) -> Iterator[tuple[Callable[[int, int, float], None], Callable[[EpochRecord], None]]]:
    """What to call after each step and after each epoch, to show how far training is."""
    done = 0
    with progress_bar("training") as progress:

        def on_step(step: int, steps: int, loss: float) -> None:
            words = f"epoch {done + 1} of {epochs}, loss {loss:.3f}, step"
            progress(done * steps + step, epochs * steps, words)

        def on_epoch(record: EpochRecord) -> None:
            nonlocal done
            done = record.epoch + 1

        yield on_step, on_epoch


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that a step is never cut in two; the second one interrupts."""
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
