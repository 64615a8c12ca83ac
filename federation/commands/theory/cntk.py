"""``instahide theory cntk``: convolutional tangent kernels on few images, beside a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..console import OutputFormat, progress_bar
from .shared import check_picture, finish, mistakes_in_our_form

if TYPE_CHECKING:
    from instahide.images import ImageSet
    from theory_modules.convolutional_ntk_experiment import Point

ALL_METHODS = "vanilla,global,local,patches,network"


def cntk(
    data: Annotated[
        Path,
        typer.Option(
            help="Labelled images with a test split, in any form `instahide train` reads.", metavar="PATH"
        ),
    ],
    test: Annotated[
        Path | None, typer.Option(help="Test images, where PATH has no test split.", metavar="PATH")
    ] = None,
    methods: Annotated[str, typer.Option(help=f"Some of {ALL_METHODS}.", metavar="NAMES")] = ALL_METHODS,
    sizes: Annotated[
        str, typer.Option(help="Numbers of training images.", metavar="NUMBERS")
    ] = "100,200,400",
    num_test: Annotated[int, typer.Option(min=1, help="Test images, at most.")] = 500,
    image_size: Annotated[int, typer.Option(min=4, help="Pixels a side; CIFAR's own are 32.")] = 12,
    num_relus: Annotated[
        int, typer.Option(min=1, help="Convolutions with a ReLU each; published: up to 20.")
    ] = 5,
    pooling_radius: Annotated[int, typer.Option(min=0, help="Of local pooling, windows of 2r + 1.")] = 2,
    num_patches: Annotated[int, typer.Option(min=1, help="Patches of the front end.")] = 64,
    network_epochs: Annotated[int, typer.Option(min=1, help="Passes of the network over its images.")] = 40,
    num_threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of images, patches and weights.")] = 0,
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
    """Accuracy of exact convolutional kernels against the number of images.

    Infinitely wide networks, trained to the end, without training one:
    without pooling, with global pooling, with local pooling and flips, and the
    same after random-patch features; beside them a finite network of the same
    depth, trained. A kernel has no rate, schedule or seed to choose.

    Global pooling costs pixels squared for a pair of images (16 times more at
    twice the side): the defaults take a minute or two. Published, on 50,000
    CIFAR-10 images of 32 pixels: about 66 % without pooling, 77 % global,
    82 % local with flips, 89 % with patches, 83 % a finite network.

    Exit codes: 0 done · 2 wrong input · 130 interrupted.

    Example:

        instahide theory cntk --data cifar10.npz --sizes 100,400 --out curves.png
    """
    from instahide.errors import InvalidInputError
    from instahide.readers import load_images

    check_picture(out)
    wanted = _words(methods, ALL_METHODS.split(","))
    numbers = _numbers(sizes)
    with progress_bar("reading images"):
        how: dict[str, Any] = {"image_size": image_size}
        train = load_images(data, **how)
        how["class_names"] = train.class_names
        held = load_images(test, **how) if test is not None else load_images(data, split="test", **how)
    if train.labels is None or held.labels is None:
        raise InvalidInputError(
            f"{data if train.labels is None else test} has no labels", hint="labels are what is learnt"
        )
    with (
        mistakes_in_our_form("`instahide theory cntk --help` shows the options"),
        progress_bar("kernels") as progress,
    ):
        from theory_modules.convolutional_ntk_experiment import Experiment, accuracy_curves, draw
        from theory_modules.kernel_loops import active_path

        experiment = Experiment(
            sizes=numbers,
            num_relus=num_relus,
            pooling_radius=pooling_radius,
            num_patches=num_patches,
            network_epochs=network_epochs,
            seed=seed,
        )
        points = list(
            accuracy_curves(
                *_arrays(train, None, seed), *_arrays(held, num_test, seed), wanted, experiment,
                num_threads=num_threads, progress=lambda name, done, total: progress(done, total, name),
            )
        )  # fmt: skip
    asked = min(len(held), num_test)
    shape = f"{asked} test images of {train.image_shape[1]} x {train.image_shape[2]}"
    values = {
        "test images": asked,
        "kernel path": active_path(), "image size": image_size, "ReLUs": num_relus,
        "points": [vars(point) for point in points],
    }  # fmt: skip
    lines = [*_lines(points, numbers, shape), f"kernels by: {active_path()}"]
    finish(format, lines, values, out=out, draw=lambda path: draw(points, path))


def _arrays(images: ImageSet, most: int | None, seed: int) -> tuple[Any, Any]:
    import numpy as np

    assert images.labels is not None
    rows = np.arange(len(images))
    if most is not None and most < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return images.images[rows].astype(np.float32) / 255, images.labels[rows]


def _words(given: str, known: list[str]) -> tuple[str, ...]:
    from instahide.errors import InvalidInputError

    names = tuple(dict.fromkeys(word.strip() for word in given.split(",")))
    for name in names:
        if name not in known:
            raise InvalidInputError(
                f"there is no method {name!r}", hint=f"--methods takes some of {', '.join(known)}"
            )
    return names


def _numbers(given: str) -> tuple[int, ...]:
    from instahide.errors import InvalidInputError

    try:
        numbers = tuple(sorted({int(word) for word in given.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 2:
        raise InvalidInputError(
            f"--sizes is {given!r}", hint="give numbers of training images, such as 100,400"
        )
    return numbers


def _lines(points: list[Point], sizes: tuple[int, ...], shape: str) -> list[str]:
    lines = [f"accuracy on {shape}, %", f"{'training images':<18}" + "".join(f"{size:>9}" for size in sizes)]
    for method in dict.fromkeys(point.method for point in points):
        own = {point.num_train: point for point in points if point.method == method}
        spent = sum(point.cpu_seconds for point in own.values())
        row = "".join(f"{100 * own[size].accuracy:9.1f}" for size in sizes)
        lines.append(f"{method:<18}{row}   {spent:6.1f} s of processor time")
    return lines
