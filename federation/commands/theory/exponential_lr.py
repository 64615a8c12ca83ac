"""``instahide theory exp-lr``: weight decay traded for a growing learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import OutputFormat, progress_bar
from .shared import check_picture, finish, mistakes_in_our_form

if TYPE_CHECKING:
    from theory_modules.exponential_lr_experiment import Images


def exponential_lr(
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images with a test split, in any form `instahide train` reads, such as CIFAR-10.",
            metavar="PATH",
            show_default="scikit-learn's 8x8 digits, in float64",
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Test images, where PATH has no test split.", metavar="PATH")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each schedule.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 12,
    num_images: Annotated[int, typer.Option(min=2, help="Training images used, at most.")] = 2000,
    image_size: Annotated[int, typer.Option(min=4, help="Pixels a side; CIFAR's own are 32.")] = 16,
    depth: Annotated[int, typer.Option(help="Of the network, 6n + 2; published: 32.")] = 8,
    width: Annotated[int, typer.Option(min=1, help="Channels of its first stage; published: 16.")] = 16,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step; published: 128.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Before the drops.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Published: 0.0005, over 300 epochs.")] = 5e-3,
    double: Annotated[
        bool, typer.Option("--double", help="float64: the equality holds to the last epoch.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the curves (.png), or a page with curves and numbers (.html), here.", metavar="FILE"
        ),
    ] = None,
    format: Annotated[OutputFormat, typer.Option(help="Lines for people, or one JSON object.")] = (
        OutputFormat.text
    ),
) -> None:
    """Compare step decay, its exponential equivalent and plain growth.

    On weights whose scale does not matter, SGD with weight decay and any
    schedule computes the same functions as SGD without decay at a growing
    rate (Li and Arora 2020). A pre-activation ResNet is trained four ways
    from the same weights on the same batches: a step schedule with weight
    decay; its exponential equivalent without; growth at one pace from first
    to last; and the first again from weights one rounding away, for rounding
    parts equal runs too. Printed: accuracies, their difference with a 95 %
    interval over the seeds, and how far the losses part.

    The defaults (2,000 images of 16x16, PreResNet-8, 12 epochs, 3 seeds of 4
    runs) end within minutes on two cores. The published size is
    --num-images 50000 --image-size 32 --depth 32 --batch-size 128
    --weight-decay 0.0005 --epochs 300.

    Exit codes: 0 done · 2 wrong input · 130 interrupted, nothing written.

    Example:

        instahide theory exp-lr --data cifar-10-batches-py/ --out curves.png
    """
    check_picture(out)
    with (
        mistakes_in_our_form("`instahide theory exp-lr --help` lists the options"),
        progress_bar("training") as progress,
    ):
        from theory_modules.exponential_lr_experiment import Settings, compare_schedules, digits, draw

        images = digits() if data is None else _load(data, test, num_images, image_size)
        settings = Settings(
            depth=depth,
            width=width,
            epochs=epochs,
            batch_size=batch_size,
            lr=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            double=double or data is None,
        )
        found = compare_schedules(
            images,
            settings,
            seeds=range(seeds),
            progress=lambda done, total: progress(done, total, "training, epochs of all runs:"),
        )
    finish(format, found.lines(), found.to_dict(), out=out, draw=lambda path: draw(found, path))


def _load(path: Path, test: Path | None, num_images: int, image_size: int) -> Images:
    """Training and test images as the experiment wants them; a random choice where there are too many."""
    import numpy as np

    from instahide.errors import InvalidInputError
    from instahide.readers import load_images
    from theory_modules.exponential_lr_experiment import Images

    training = load_images(path, image_size=image_size)
    if training.labels is None:
        raise InvalidInputError(f"{path} has no labels", hint="give images with labels, such as CIFAR-10")
    names = training.class_names
    if test is None:
        testing = load_images(path, split="test", image_size=image_size, class_names=names)
    else:
        testing = load_images(test, image_size=image_size, class_names=names)
    assert testing.labels is not None  # class_names were asked for
    chosen = np.random.default_rng(0).permutation(len(training))[:num_images]
    part = training.subset(chosen)
    assert part.labels is not None
    if part.image_shape[0] != testing.image_shape[0]:
        raise InvalidInputError(
            "training and test images differ in their channels", hint="give test images of the same kind"
        )
    return Images(part.images, part.labels, testing.images, testing.labels)
