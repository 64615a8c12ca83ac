"""Every update is checked here before it can touch the model; a bad one counts as missing.

A mean over hospitals trusts whoever takes part: one NaN spreads to every weight, an array of
shape (1,) is broadcast over a layer, and a self-declared 10^15 examples outvote everybody. So an
update enters the aggregate only if

1. its names are the model's, every array has the model's shape (exactly) and is float32;
2. every value is finite and at most ``max-weight`` in size;
3. it lies within ``max-update-norm`` (L2) of the global model: further out it is refused, or
   pulled back on to the sphere with ``over-norm = clip`` (0 switches the bound off);
4. ``num-examples`` is a whole number from 1 to the site's registered size. A site without a
   registered size is held to what its first good update claimed, and that to
   ``max-site-examples``; the same goes for ``evaluate-num-examples`` (from 0);
5. its metrics are the protocol's, finite and in range.

What this cannot see is an honest-looking update from poisoned data: the robust rules of
``aggregation.py`` bound what such a site can do. It also needs each update in the clear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from instahide.errors import FederationError, InstaHideError

from ..config import RunConfig
from ..messages import INFERENCE_MODES, TRAIN, Arrays, SiteReply, check_array_record, check_metrics
from .sites import SiteBook


class RejectedUpdateError(FederationError):
    """This reply must not be used; ``message`` says why, without quoting long values."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """A reply that passed: weights, their claim to weight, and what the site measured.

    With secure aggregation it is the mean over ``members``, and nobody's own.
    """

    node_id: int
    site_name: str
    arrays: Arrays
    num_examples: int
    metrics: dict[str, int | float]
    norm: float = 0.0
    clipped: bool = False
    members: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The sites it is from."""
        return self.members or (self.site_name,)


class UpdateValidator:
    """The checks of one run. ``sizes`` holds what sites without a registered size first claimed."""

    def __init__(self, config: RunConfig, book: SiteBook, *, sizes: dict[str, int] | None = None) -> None:
        self._config = config
        self._book = book
        self.sizes = dict(sizes or {})

    def check(self, node_id: int, reply: SiteReply, reference: Arrays, kind: str) -> Update:
        """The reply as an :class:`Update`, or RejectedUpdateError with the reason.

        ``reference`` is the global model the site was sent: names, shapes, and the centre of
        the norm bound. Evaluation replies carry no arrays.
        """
        try:
            check_array_record(reply.arrays)
            check_metrics(reply.metrics)
        except InstaHideError as problem:
            raise RejectedUpdateError(problem.message) from problem
        self._check_measurements(reply)
        if kind != TRAIN:
            if reply.arrays:
                raise RejectedUpdateError("weights came back from an evaluation")
            return self._accepted(node_id, reply, num_examples=0)
        check_same_layout(reply.arrays, reference)
        self._check_values(reply.arrays)
        claimed = reply.metrics.get("num-examples")
        self._check_size(node_id, "num-examples", claimed, smallest=1)
        update = self._accepted(node_id, reply, num_examples=int(claimed or 0))
        return self._within_norm(update, reference)

    def _accepted(self, node_id: int, reply: SiteReply, *, num_examples: int) -> Update:
        return Update(
            node_id=node_id,
            site_name=self._book.name(node_id),
            arrays=reply.arrays,
            num_examples=num_examples,
            metrics=dict(reply.metrics),
        )

    def remember_sizes(self, update: Update) -> None:
        """Hold a site to what it claimed; call once the whole update has been accepted."""
        for metric in ("num-examples", "evaluate-num-examples"):
            if metric in update.metrics:
                self.sizes.setdefault(f"{update.node_id}:{metric}", int(update.metrics[metric]))

    def _check_size(self, node_id: int, metric: str, claimed: int | float | None, *, smallest: int) -> None:
        site = self._book.sites.get(node_id)
        largest = getattr(site, metric.replace("-", "_")) if site else None
        if largest is None:
            largest = self.sizes.get(f"{node_id}:{metric}", self._config.max_site_examples)
        if not isinstance(claimed, int) or not smallest <= claimed <= largest:
            raise RejectedUpdateError(
                f"{metric} is {claimed!r:.40}, not a whole number from {smallest} to {largest}"
            )

    def _check_measurements(self, reply: SiteReply) -> None:
        """Numbers of an evaluation come with the number of images they were measured on."""
        measured = [name for name in reply.metrics if name.startswith(("evaluate-accuracy", "evaluate-loss"))]
        if measured and "evaluate-num-examples" not in reply.metrics:
            raise RejectedUpdateError(f"{measured[0]} came without evaluate-num-examples")

    def _check_values(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            # One reduction finds NaN, infinities and giants: NaN fails every comparison.
            extreme = float(np.max(np.abs(array), initial=0.0))
            if not extreme <= self._config.max_weight:
                raise RejectedUpdateError(
                    f"{name} holds {extreme:.3g}; the bound is {self._config.max_weight:g}"
                )

    def _within_norm(self, update: Update, reference: Arrays) -> Update:
        norm = update_norm(update.arrays, reference)
        bound = self._config.max_update_norm
        if bound == 0.0 or norm <= bound:
            return replace(update, norm=norm)
        if self._config.over_norm == "reject":
            raise RejectedUpdateError(f"the update's norm is {norm:.6g}; max-update-norm is {bound:g}")
        shrink = bound / norm
        clipped = {
            name: np.asarray(
                array + shrink * (update.arrays[name].astype(np.float64) - array), dtype=np.float32
            )
            for name, array in reference.items()
        }
        return replace(update, arrays=clipped, norm=norm, clipped=True)


def check_same_layout(arrays: Arrays, reference: Arrays) -> None:
    """Exactly the reference's names and shapes, or RejectedUpdateError naming the first difference."""
    missing, extra = sorted(set(reference) - set(arrays)), sorted(set(arrays) - set(reference))
    if missing or extra:
        raise RejectedUpdateError(
            f"the array {missing[0]} is missing" if missing else f"unknown array {extra[0]}"
        )
    for name, array in arrays.items():
        if array.shape != reference[name].shape:
            raise RejectedUpdateError(f"{name} has shape {array.shape}, not {reference[name].shape}")


def update_norm(arrays: Arrays, reference: Arrays) -> float:
    """L2 norm over all weights of (update − reference), accumulated in float64."""
    total = 0.0
    for name, array in reference.items():
        difference = np.subtract(arrays[name], array, dtype=np.float64).ravel()
        total += float(np.dot(difference, difference))
    return math.sqrt(total)


def weighted_metrics(updates: list[Update]) -> dict[str, float]:
    """Accuracies and losses over all sites, weighted by the images each measured on.

    A mode only some sites report is weighted over those. ``train-loss`` goes by num-examples.
    """
    names = [f"evaluate-{measure}-{mode}" for measure in ("accuracy", "loss") for mode in INFERENCE_MODES]
    result: dict[str, float] = {}
    for name, weight in [(name, "evaluate-num-examples") for name in names] + [
        ("train-loss", "num-examples")
    ]:
        parts = [
            (update.metrics[weight], update.metrics[name]) for update in updates if name in update.metrics
        ]
        total = sum(count for count, _ in parts)
        if total:
            result[name] = math.fsum(count * value for count, value in parts) / total
    return result
