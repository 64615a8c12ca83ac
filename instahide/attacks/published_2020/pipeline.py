"""The published pipeline, end to end: pair graph, groups, second graph, assignment, objective, colour.

Axes: N encodings, n private images, T = N/n releases, m ≤ n groups, C channels, H rows, W columns.

    1  every pair of encodings gets a score                     pair_network.pair_scores
    2  groups of about 2T encodings around each private image   cliques.find_groups
    3  every encoding gets a score against every group          assignment.draw_prototypes, prototype_scores
    4  two owners an encoding, coefficients from the label      assignment.assign
    5  images that explain the magnitudes                       objective.published_objective
    6  colours                                                  colour.fit_colour_map

Departures from what was published, all of them: one small network trained for minutes on a processor stands
in for two WRN-28-6 trained for ten GPU-hours on other data (those can be chosen); numbers meant for
T = 50 scale with T; the colour map is fitted by the attacker instead of taken from the release.
Encodings hold two private images, as in the published attack. Labels and n are needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import InvalidInputError
from ..recovery.simulated_mixtures import simulate_coefficients
from ..view import AttackerView
from .assignment import NUM_OWNERS, Assignment, assign, draw_prototypes
from .cliques import find_groups
from .colour import fit_colour_map
from .objective import (
    ObjectiveSettings,
    mixing_matrix,
    published_objective,
    share_of_positive_mixtures,
    stretched,
)
from .own_release import OwnReleases
from .pair_architectures import UnmaskedPairs
from .pair_network import (
    PairNetwork,
    PairNetworkSettings,
    for_prototypes,
    pair_scores,
    prototype_scores,
)
from .pair_training import train_pair_network

NUM_PROTOTYPES = 3
TRAINING_SHARE = 0.3  # of a time budget, for each of the two networks
MIN_RELEASES = 4

Progress = Callable[..., None] | None


@dataclass(frozen=True)
class PipelineSettings:
    """Every stage's settings; ``colour=False`` leaves step 6 out."""

    pairs: PairNetworkSettings = field(default_factory=PairNetworkSettings)
    groups: PairNetworkSettings = field(
        default_factory=lambda: PairNetworkSettings(num_prototypes=NUM_PROTOTYPES)
    )
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    colour: bool = True


@dataclass(frozen=True, eq=False)
class Networks:
    """The pair network and the one that compares an encoding with a group's prototypes."""

    pairs: PairNetwork
    groups: PairNetwork


@dataclass(frozen=True, eq=False)
class PublishedRecovery:
    """What the pipeline found.

    Args:
        images: (n, C, H, W) float32 in [−1, 1]; an image without a group is grey.
        private_rows, coefficients: (N, 2) the assignment; −1 and 0 where there is none.
        num_groups: m.
        share_positive: of the mixtures' values; 0 or 1: no sign was found, only assumed.
        seconds: processor seconds of each stage, by name.
    """

    images: NDArray[np.float32]
    private_rows: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    num_groups: int
    share_positive: float
    seconds: dict[str, float]


def train_networks(
    view: AttackerView, settings: PipelineSettings | None = None, *, seed: int = 0, progress: Progress = None
) -> Networks:
    """Both networks, on releases the attacker makes of public images."""
    settings = settings or PipelineSettings()
    pairs = train_pair_network(view, settings.pairs, seed=seed, progress=progress)
    if isinstance(pairs, UnmaskedPairs) and settings.groups.architecture == settings.pairs.architecture:
        return Networks(pairs, for_prototypes(pairs, settings.groups.num_prototypes))
    return Networks(pairs, train_pair_network(view, settings.groups, seed=seed + 1, progress=progress))


def published_pipeline(
    view: AttackerView,
    num_private_images: int,
    *,
    settings: PipelineSettings | None = None,
    networks: Networks | None = None,
    similarity: NDArray[np.float32] | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    progress: Progress = None,
) -> PublishedRecovery:
    """Run steps 1 to 6.

    Args:
        view: encodings with labels, the law, and public images.
        num_private_images: n, which this attack has to know.
        networks: trained before by :func:`train_networks`; ``None``: train them now.
        similarity: (N, N) scores from elsewhere, instead of the networks (steps 1 and 3 then use it).
        seed: of the attacker's own choices.
        max_seconds: of wall time: shorter training and fewer steps of the objective.

    Raises:
        InvalidInputError: no labels, not two private images each, or too few encodings.
    """
    check_attackable(view, num_private_images)
    settings, clock = settings or PipelineSettings(), _Stages(max_seconds)
    if networks is None and similarity is None:
        settings = clock.shortened(settings)
        networks = train_networks(view, settings, seed=seed, progress=progress)
        clock.done("training")
    found = pair_up(
        view, num_private_images, networks=networks, similarity=similarity, seed=seed, clock=clock
    )
    images, share = reconstruct(
        view, found, num_private_images, settings, seed=seed, max_seconds=clock.remaining(), progress=progress
    )
    clock.done("objective")
    return PublishedRecovery(
        images, found.private_rows, found.coefficients, len(found.classes), share, clock.seconds
    )


def pair_up(
    view: AttackerView,
    num_images: int,
    *,
    networks: Networks | None = None,
    similarity: NDArray[np.float32] | None = None,
    seed: int = 0,
    clock: _Stages | None = None,
) -> Assignment:
    """Steps 1 to 4: who was mixed with whom."""
    clock = clock or _Stages(None)
    assert view.labels is not None  # checked by the caller
    magnitudes, releases = view.encodings.abs(), len(view.encodings) / num_images
    if similarity is None:
        if networks is None:
            raise InvalidInputError(
                "neither networks nor a similarity", hint="train_networks makes the first"
            )
        similarity = pair_scores(networks.pairs, magnitudes)
    clock.done("pair graph")
    groups = find_groups(similarity, num_images, seed=seed)
    clock.done("groups")
    rng = np.random.default_rng(seed)
    count = NUM_PROTOTYPES if networks is None else int(networks.groups.num_prototypes)
    prototypes = draw_prototypes(similarity, groups, releases, num_prototypes=count, rng=rng)
    if networks is None:
        table = np.where(np.isfinite(similarity), similarity, 0)
        scores = np.stack([table[sets].sum(axis=1) for sets in prototypes]).sum(axis=0)
    else:
        sets = torch.from_numpy(prototypes.reshape(-1, count))
        table = prototype_scores(networks.groups, magnitudes[sets], magnitudes)
        scores = table.reshape(len(prototypes), len(groups), -1).sum(axis=0)
    clock.done("second graph")
    found = assign(scores, view.labels.numpy(), releases, private_sum=_private_sum(view))
    clock.done("assignment")
    return found


def published_decode(
    view: AttackerView,
    private_rows: NDArray[np.int64],
    coefficients: NDArray[np.floating],
    *,
    num_images: int,
    settings: PipelineSettings | None = None,
    seed: int = 0,
    max_seconds: float | None = None,
    progress: Progress = None,
) -> NDArray[np.float32]:
    """Steps 5 and 6 with a pairing from elsewhere: (n, C, H, W) images in [−1, 1].

    This, with its colour step, is what a decoder should be compared with; labels are not needed.
    """
    given = Assignment(
        np.asarray(private_rows), np.asarray(coefficients, dtype=np.float64), np.arange(num_images)
    )
    settings = settings or PipelineSettings()
    return reconstruct(
        view, given, num_images, settings, seed=seed, max_seconds=max_seconds, progress=progress
    )[0]


def reconstruct(
    view: AttackerView,
    found: Assignment,
    num_images: int,
    settings: PipelineSettings,
    *,
    seed: int = 0,
    max_seconds: float | None = None,
    progress: Progress = None,
) -> tuple[NDArray[np.float32], float]:
    """Steps 5 and 6: (n, C, H, W) images, and the share of positive mixtures."""
    each = max_seconds / 2 if max_seconds is not None and settings.colour else max_seconds
    raw = published_objective(
        view.encodings,
        found.private_rows,
        found.coefficients,
        num_images=num_images,
        settings=settings.objective,
        stretch=False,
        shortcut=True,
        max_seconds=each,
        progress=progress,
    )
    share = share_of_positive_mixtures(raw, mixing_matrix(found.private_rows, found.coefficients, num_images))
    images = stretched(raw)
    if settings.colour:
        images = own_colours(view, num_images, settings.objective, seed=seed, max_seconds=each)(images)
    images[len(found.classes) :] = 0  # nobody was assigned to these
    return images, share


def own_colours(
    view: AttackerView,
    num_images: int,
    settings: ObjectiveSettings,
    *,
    seed: int,
    max_seconds: float | None = None,
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The colour map, fitted on an own release of as many images and encodings."""
    own = OwnReleases(view, seed=seed + 2).draw(num_images, max(1, round(len(view.encodings) / num_images)))
    answers = published_objective(
        own.magnitudes,
        own.private_rows,
        own.coefficients,
        num_images=num_images,
        settings=settings,
        shortcut=True,
        max_seconds=max_seconds,
    )
    return fit_colour_map(answers, own.images.numpy(), seed=seed)


def _private_sum(view: AttackerView) -> float:
    """What renormalised labels lack: the mean private weight; 1 where labels hold coefficients already."""
    if not view.config.renormalizes_labels:
        return 1.0
    rng = np.random.default_rng(0)
    drawn = simulate_coefficients(rng, 4000, view.config, scheme=view.scheme)
    return float(drawn[:, :NUM_OWNERS].sum(axis=1).mean())


def check_attackable(view: AttackerView, num_images: int) -> None:
    """InvalidInputError where this attack cannot start: no labels, not two private images, too few rows."""
    inside = view.config.num_private if view.scheme == "cross" else view.config.num_mixed
    if view.labels is None:
        raise InvalidInputError(
            "this attack reads coefficients off the labels",
            hint="give labels, or use recovery --tier no-labels",
        )
    if inside != NUM_OWNERS:
        raise InvalidInputError(
            f"{inside} private images in an encoding", hint="the published attack is for two private images"
        )
    if num_images < 2 or len(view.encodings) < MIN_RELEASES * num_images:
        raise InvalidInputError(
            f"{len(view.encodings)} encodings of {num_images} images",
            hint=f"this attack needs about 50 releases of each image, and at least {MIN_RELEASES}",
        )


class _Stages:
    """Processor seconds by stage, and what is left of a wall-time budget."""

    def __init__(self, max_seconds: float | None) -> None:
        self.seconds: dict[str, float] = {}
        self._max_seconds = max_seconds
        self._began, self._last = time.perf_counter(), time.process_time()

    def done(self, stage: str) -> None:
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def remaining(self) -> float | None:
        if self._max_seconds is None:
            return None
        return max(0.1, self._max_seconds - (time.perf_counter() - self._began))

    def shortened(self, settings: PipelineSettings) -> PipelineSettings:
        if self._max_seconds is None:
            return settings
        most = TRAINING_SHARE * self._max_seconds
        return replace(
            settings,
            pairs=replace(settings.pairs, seconds=min(settings.pairs.seconds, most)),
            groups=replace(settings.groups, seconds=min(settings.groups.seconds, most)),
        )
