"""From a view to images: which attack fits the network, and whether to believe what comes out.

Axes: n images, K classes, C H W.

The order of attempts (``method="auto"``):

1. a first dense layer: exact and in milliseconds (``analytic.py``);
2. if that leaves an affine plane: L-BFGS within the plane;
3. a smooth network: L-BFGS on pixels (``deep_leakage.py``);
4. anything else: cosine distance and total variation (``cosine.py``).

``method="traps"`` reads an update of weights that the server crafted (``trap_weights.py``).

**Believing it without the truth.** Images of route 1 carry their own proof. For the others two things are
asked. (a) The *unexplained share* of the update must be clearly below what the same attack reaches on an
update of pure noise with the same tensor norms, which no image explains. (b) Restarts from independent
noise must end in the same images: where the update does not determine an image, they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ...errors import InvalidInputError
from ...mixing import to_unit_range
from ...training_device import at_most_threads
from .analytic import AffinePlane, FirstLayerRecovery, first_dense_layer, recover_from_first_layer
from .attempt import Attempt, Budget, agreement
from .cosine import cosine_inversion
from .deep_leakage import deep_leakage
from .labels import infer_hard_labels, labels_from_images
from .local_update import Simulator
from .objective import Objective, running_statistics
from .sparse_batch import MAX_ROUNDS
from .trap_weights import read_traps
from .view import BatchStatistics, UpdateView

METHODS = ("auto", "analytic", "traps", "lbfgs", "cosine")
STATISTICS = ("none", "running", "exact")
SMOOTH = (nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU)
MAX_UNROLLED_STEPS = 12
SMALL_MODEL = 1_000_000
SOLVED = 1e-6  # unexplained share below which nothing is left to doubt
NULL_MARGIN = 0.05  # of the update's squared length
AGREEING = 0.7  # correlation between restarts


@dataclass(frozen=True, kw_only=True)
class InversionSettings:
    """The attacker's choices.

    Args:
        method: ``"auto"``, ``"analytic"``, ``"traps"``, ``"lbfgs"`` or ``"cosine"``.
        restarts: from independent noise; two or more, or agreement cannot be judged.
        iterations: of L-BFGS in each restart.
        steps: of Adam in each restart.
        total_variation: α of the cosine attack.
        statistics: which batch statistics the regulariser uses: ``"none"``, ``"running"`` (inside the weights
            the server sent) or ``"exact"`` (given in the view).
        batch_norm: β of that regulariser.
        unroll: follow local steps one by one if there are few; else treat the update as one mean gradient.
        sparse_rounds: effort of the search for a batch in the first layer.
        seed: of starts and draws.
    """

    method: str = "auto"
    restarts: int = 2
    iterations: int = 400
    steps: int = 1000
    total_variation: float = 0.01
    statistics: str = "none"
    batch_norm: float = 0.01
    unroll: bool = True
    sparse_rounds: int = MAX_ROUNDS
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("statistics", STATISTICS)):
            if getattr(self, name) not in allowed:
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)!r}", hint=f"choose from {', '.join(allowed)}"
                )
        for name in ("restarts", "iterations", "steps"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}", hint="at least 1")


@dataclass(frozen=True, eq=False)
class Inversion:
    """What came out of one update.

    Args:
        images: (m, C, H, W) float32 in [−1, 1], m ≤ n; |x| where ``absolute``.
        labels: (m, K) soft labels that go with them, or ``None``.
        verified: (m,) images the attacker can be sure of without the truth.
        route: the attack that gave them.
        num_images: n.
        unexplained: share of the update the images leave unexplained; NaN where not computed.
        null_unexplained: the same for an update of noise; NaN where not needed.
        agreement: correlation between the two best restarts; NaN with one start or a proof.
        absolute: whether the network sees |x| only.
        ran_out: whether the time budget ended the search early.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    verified: torch.Tensor
    route: str
    num_images: int
    unexplained: float = float("nan")
    null_unexplained: float = float("nan")
    agreement: float = float("nan")
    absolute: bool = False
    ran_out: bool = False

    @property
    def believed(self) -> bool | None:
        """True: these are images of the site. False: nothing was found. ``None``: it cannot be told."""
        if bool(self.verified.any()):
            return True
        if self.route.startswith("first layer"):
            return False if len(self.images) == 0 else None
        if not self.unexplained < self.null_unexplained - NULL_MARGIN:
            return False if self.null_unexplained == self.null_unexplained else None
        return True if self.agreement >= AGREEING else None


def invert(
    view: UpdateView,
    settings: InversionSettings | None = None,
    *,
    max_seconds: float | None = None,
    progress: Callable[..., None] | None = None,
) -> Inversion:
    """The images and labels behind one update.

    Args:
        max_seconds: wall time of the whole attack, null level included; it stops in order.
        progress: called as ``progress(done, total, text)``.

    Raises:
        InvalidInputError: a method the network does not allow, or statistics that were not given.
    """
    settings = settings or InversionSettings()
    size = sum(parameter.numel() for parameter in view.model.parameters())
    # Small tensors on several threads wait for each other: measured five times slower on two.
    with at_most_threads(1 if size < SMALL_MODEL else torch.get_num_threads()):
        return _invert(view, settings, max_seconds, progress)


def _invert(
    view: UpdateView,
    settings: InversionSettings,
    max_seconds: float | None,
    progress: Callable[..., None] | None,
) -> Inversion:
    method, plane = settings.method, None
    smooth = any(isinstance(module, SMOOTH) for module in view.model.modules())
    if all(not value.any() for value in view.observed.values()):
        raise InvalidInputError("the update is zero everywhere", hint="nothing was trained, or not captured")
    if method == "traps":
        return _from_recovery(view, read_traps(view))
    if method in ("auto", "analytic") and (method == "analytic" or first_dense_layer(view) is not None):
        budget = Budget(max_seconds)
        recovery = recover_from_first_layer(
            view, seed=settings.seed, max_rounds=settings.sparse_rounds, should_stop=budget.spent
        )
        found = replace(_from_recovery(view, recovery), ran_out=budget.ran_out)
        if method == "analytic" or bool(found.verified.any()):
            return found
        if recovery.rank == 0 and (view.defence.prune or view.defence.noise):
            return _optimised(view, settings, "cosine", None, max_seconds, progress)
        plane = recovery.plane
        # Several steps in an unknown order move the weights: the plane holds, the rest only nearly.
        followed = smooth or view.kind == "gradient" or view.site_plan.num_steps == 1
        if plane is None or recovery.rank < view.num_images or not followed:
            return found
    if method == "auto":
        method = "lbfgs" if plane is not None or smooth else "cosine"
    return _optimised(view, settings, method, plane, max_seconds, progress)


def _from_recovery(view: UpdateView, recovery: FirstLayerRecovery) -> Inversion:
    images = recovery.images.float()
    complete = len(images) == view.num_images and view.defence.prune == 0
    labels = labels_from_images(view, images) if complete else None
    return Inversion(
        images,
        None if labels is None else labels.float(),
        recovery.verified,
        f"first layer, {recovery.route}",
        view.num_images,
        unexplained=recovery.residual,
        absolute=recovery.absolute,
    )


def _optimised(
    view: UpdateView,
    settings: InversionSettings,
    method: str,
    plane: AffinePlane | None,
    max_seconds: float | None,
    progress: Callable[..., None] | None,
) -> Inversion:
    labels = view.labels if view.labels is not None else _guess_labels(view, settings.seed)
    share = None if max_seconds is None else 0.75 * max_seconds
    budget = Budget(share, progress)
    attempts = _search(view, settings, method, plane, labels, budget)
    best = attempts[0]
    solved = best.unexplained < SOLVED
    masked = view.sign_masked
    agreed = (
        agreement(best.images, attempts[1].images, absolute=masked) if len(attempts) > 1 else float("nan")
    )
    null = float("nan")
    if not solved:
        noise = noise_like(view, settings.seed)
        rest = Budget(None if max_seconds is None else 0.25 * max_seconds, progress)
        null = _search(noise, replace(settings, restarts=1), method, plane, labels, rest)[0].unexplained
        budget.ran_out |= rest.ran_out
    return Inversion(
        best.images.float(),
        best.labels.float(),
        torch.full((len(best.images),), solved),
        {"lbfgs": "L-BFGS", "cosine": "cosine and total variation"}[method]
        + (" in the first layer's plane" if plane is not None else ""),
        view.num_images,
        best.unexplained,
        null,
        agreed,
        absolute=False,
        ran_out=budget.ran_out,
    )


def _search(
    view: UpdateView,
    settings: InversionSettings,
    method: str,
    plane: AffinePlane | None,
    labels: torch.Tensor | None,
    budget: Budget,
) -> list[Attempt]:
    averaged = not (
        settings.unroll
        and view.training.optimizer == "sgd"
        and view.site_plan.num_steps <= MAX_UNROLLED_STEPS
    )
    if method == "lbfgs":
        simulator = Simulator(view, torch.float64, averaged=averaged)
        return deep_leakage(
            simulator,
            labels=labels,
            plane=plane,
            restarts=settings.restarts if plane is None else 4 * settings.restarts,
            iterations=settings.iterations,
            seed=settings.seed,
            budget=budget,
        )
    objective = Objective(
        Simulator(view, averaged=averaged),
        total_variation=settings.total_variation,
        batch_norm=settings.batch_norm,
        statistics=_statistics(view, settings.statistics),
    )
    return cosine_inversion(
        objective,
        labels=labels,
        restarts=settings.restarts,
        steps=settings.steps,
        seed=settings.seed,
        budget=budget,
    )


def _statistics(view: UpdateView, which: str) -> BatchStatistics | None:
    if which == "exact":
        if view.batch_statistics is None:
            raise InvalidInputError(
                "the view holds no batch statistics", hint="use statistics='running', which every server has"
            )
        return view.batch_statistics
    return running_statistics(view.model) if which == "running" else None


def _guess_labels(view: UpdateView, seed: int) -> torch.Tensor | None:
    """Hard labels by the last layer; ``None`` (search them) for encodings, whose labels are mixtures."""
    if view.sign_masked:
        return None
    if view.public_images is not None:
        stand_ins = to_unit_range(view.public_images.images[:200])
    else:
        generator = torch.Generator().manual_seed(seed)
        stand_ins = (0.5 * torch.randn(64, *view.image_shape, generator=generator)).clamp(-1, 1)
    return infer_hard_labels(view, stand_ins)


def noise_like(view: UpdateView, seed: int) -> UpdateView:
    """``view`` with noise of the same norm in every tensor (and the same zeros, if pruned): the null."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    observed = {}
    for name, value in view.observed.items():
        noise = torch.randn(value.shape, generator=generator)
        if view.defence.prune:
            noise *= value != 0
        observed[name] = noise * (value.norm() / noise.norm().clamp_min(1e-30))
    return replace(view, observed=observed)
