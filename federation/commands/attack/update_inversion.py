"""``instahide attack run update-inversion``: which inputs does one model update give back?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instahide.errors import InvalidInputError

from ..console import OutputFormat, progress_bar
from .shared import FailOnLeak, Format, MaxSeconds, Out, Public, Seed, Settings, finish, store_arrays

if TYPE_CHECKING:
    import torch

    from instahide.attacks.update_inversion import UpdateView


class Method(StrEnum):
    """Which attack."""

    auto = "auto"
    analytic = "analytic"
    traps = "traps"
    lbfgs = "lbfgs"
    cosine = "cosine"


class TrapKind(StrEnum):
    """How a crafted first layer isolates inputs."""

    units = "units"
    bins = "bins"


class Statistics(StrEnum):
    """Which batch statistics the regulariser uses."""

    none = "none"
    running = "running"
    exact = "exact"


def update_inversion(
    update: Annotated[
        Path | None,
        typer.Option(help="A captured gradient or update (.npz or .safetensors).", metavar="FILE"),
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Run directory of a coordinator instead.", metavar="DIR")
    ] = None,
    server_round: Annotated[
        int | None, typer.Option("--round", min=1, help="Round to look at.", show_default="the last")
    ] = None,
    settings: Settings = None,
    num_images: Annotated[
        int, typer.Option(min=1, help="With --settings: encodings behind the gradient.", metavar="N")
    ] = 4,
    model: Annotated[
        str | None,
        typer.Option(help="Network, if the file does not name it; with --settings: mlp.", metavar="NAME"),
    ] = None,
    trap_weights: Annotated[
        TrapKind | None,
        typer.Option(
            help="With --settings: the server sends crafted weights.", show_default="honest weights"
        ),
    ] = None,
    public: Public = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="The site's inputs (images, labels) as .npz, to score the attack.", metavar="FILE"),
    ] = None,
    method: Annotated[Method, typer.Option(help="auto picks by network.")] = Method.auto,
    restarts: Annotated[int, typer.Option(min=1, help="Starts; two or more show what is determined.")] = 2,
    iterations: Annotated[int, typer.Option(min=1, help="Of L-BFGS in each start.")] = 400,
    steps: Annotated[int, typer.Option(min=1, help="Of the cosine attack in each start.")] = 1000,
    total_variation: Annotated[
        float, typer.Option(min=0.0, help="Weight of smoothness in the cosine attack.")
    ] = 0.01,
    statistics: Annotated[
        Statistics, typer.Option(help="Batch statistics to match: the model's, or the site's own if known.")
    ] = Statistics.none,
    rehearse: Annotated[
        bool, typer.Option(help="Also attack planted images and noise under the same plan.")
    ] = True,
    seed: Seed = 0,
    max_seconds: MaxSeconds = None,
    out: Out = None,
    format: Format = OutputFormat.text,
    fail_on_leak: FailOnLeak = False,
) -> None:
    """Recover training inputs from one gradient or update.

    FILE holds before/NAME (the weights sent to the site), one of gradient/NAME,
    update/NAME or after/NAME, and settings as JSON text: {"model": {"name": "mlp",
    "image_shape": [1, 28, 28], "num_classes": 10}, "training": {"num_images": 4}}.
    With --checkpoints the update is the difference of two round checkpoints; with
    --settings it is one gradient, made here, of a new network on new encodings;
    --trap-weights makes that network one a malicious coordinator would send.
    DIR/recovered.npz gets images (m,C,H,W) in [-1,1], labels (m,K) and verified (m).

    Exit codes: 0 measured · 2 wrong input · 3 leaks, with --fail-on-leak ·
    4 damaged file.

    Example:

        instahide attack run update-inversion --update round7.npz --public pool.npz --out found/
    """
    from instahide.attacks.update_inversion import InversionSettings, attack_update, read_truth

    if [update, checkpoints, settings].count(None) != 2:
        raise InvalidInputError(
            "give one of --update, --checkpoints and --settings",
            hint="--update FILE, --checkpoints RUN-DIRECTORY, or --settings FILE",
        )
    if trap_weights is not None and settings is None:
        raise InvalidInputError(
            "--trap-weights crafts the network of --settings",
            hint="an update of weights that were crafted elsewhere is read with --method traps",
        )
    images: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    with progress_bar("reading"):
        if settings is not None:
            view, images, labels = _of_settings(settings, model or "mlp", num_images, trap_weights)
        else:
            view = _read(update, checkpoints, server_round, model, public)
        if truth is not None:
            images, labels = read_truth(truth, view.num_classes)
    if images is not None and tuple(images.shape) != (view.num_images, *view.image_shape):
        raise InvalidInputError(
            f"the true images have shape {tuple(images.shape)}",
            hint=f"{view.num_images} images of {view.image_shape} are behind this update",
        )
    plan = InversionSettings(
        method=Method.traps.value if trap_weights is not None else method.value,
        restarts=restarts,
        iterations=iterations,
        steps=steps,
        total_variation=total_variation,
        statistics=statistics.value,
        seed=seed,
    )
    with progress_bar("inverting") as progress:
        result, inversion = attack_update(
            view,
            plan,
            true_images=images,
            true_labels=labels,
            rehearse=rehearse,
            max_seconds=max_seconds,
            progress=progress,
        )
    found = {"images": inversion.images.numpy(), "verified": inversion.verified.numpy()}
    if inversion.labels is not None:
        found["labels"] = inversion.labels.numpy()
    store_arrays(out, "recovered.npz", **found)
    finish(result, out, format, fail_on_leak, num_recovered=len(inversion.images))


def _read(
    update: Path | None,
    checkpoints: Path | None,
    server_round: int | None,
    model: str | None,
    public: Path | None,
) -> UpdateView:
    from dataclasses import replace

    from instahide.attacks.encodings_file import read_public_images
    from instahide.attacks.update_inversion import read_round_checkpoints, read_update

    if checkpoints is not None:
        view = read_round_checkpoints(checkpoints, server_round=server_round)
    else:
        assert update is not None
        view = read_update(update, model=model)
    if public is None:
        return view
    return replace(view, public_images=read_public_images(public, view.image_shape))


def _of_settings(
    path: Path, model: str, num_images: int, traps: TrapKind | None
) -> tuple[UpdateView, torch.Tensor, torch.Tensor]:
    """(view, inputs, labels) of one gradient on the first encodings of a release as the file says."""
    from instahide.attacks.replica import make_replica
    from instahide.attacks.settings import read_settings, rehearse
    from instahide.attacks.update_inversion import LocalTraining, build_network, observe, set_traps
    from instahide.models import MODEL_NAMES

    made = rehearse(read_settings(path))
    encoded = made.replica.encoded
    masked = encoded.config.has_sign_mask
    network = build_network(
        model,
        image_shape=made.others.image_shape,
        num_classes=len(encoded.class_names),
        # As a site trains on encodings; the networks of the literature take no |x|.
        absolute_input=masked and model in MODEL_NAMES,
    )
    inputs, labels = encoded.images[:num_images].float(), encoded.labels[:num_images].float()
    if traps is not None:
        # Encodings of other images by the same law: what a server can make itself.
        others = make_replica(made.others, public=made.replica.public, config=encoded.config, releases=1)
        stand_ins = others.encoded.images.float()
        network = set_traps(network, stand_ins, num_images=len(inputs), kind=traps.value)
    plan = LocalTraining(num_images=len(inputs))
    similar = made.replica.public or made.others
    view = observe(network, inputs, labels, plan, sign_masked=masked, public_images=similar)
    return view, inputs, labels
