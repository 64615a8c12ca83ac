"""The attack as the bench runs it: invert, check, score, say it in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..cost import Cost
from ..view import AttackResult
from .defences import defend
from .inversion import Inversion, InversionSettings, invert, noise_like
from .local_update import observe
from .networks import build_network
from .scoring import baselines, compare, score_inversion
from .view import Defence, LocalTraining, UpdateView

FOUND_SSIM = 0.7  # mean SSIM from which a rehearsal counts as a success
MAX_PICTURES = 16


def attack_update(
    view: UpdateView,
    settings: InversionSettings | None = None,
    *,
    true_images: torch.Tensor | None = None,
    true_labels: torch.Tensor | None = None,
    rehearse: bool = True,
    max_seconds: float | None = None,
    progress: Callable[..., None] | None = None,
) -> tuple[AttackResult, Inversion]:
    """Invert one update and say what that means.

    Args:
        true_images: (n, C, H, W) the site's inputs, for scoring only.
        true_labels: (n, K), for scoring only.
        rehearse: run the power and the null check under the same plan and defence; each costs another attack.
        max_seconds: of the attack, and again of each check.
    """
    settings = settings or InversionSettings()
    with Cost() as cost:
        inversion = invert(view, settings, max_seconds=max_seconds, progress=progress)
    checks = {}
    if rehearse:
        checks["power"] = power_check(view, settings, max_seconds=max_seconds, progress=progress)
        checks["null"] = null_check(view, settings, max_seconds=max_seconds, progress=progress)
    metrics = _what_the_attacker_sees(inversion)
    intervals: dict[str, tuple[float, float]] = {}
    without: dict[str, float] = {}
    pictures = {"recovered": as_pictures(inversion.images)} if len(inversion.images) else {}
    if true_images is not None:
        scored, intervals = score_inversion(inversion, true_images, true_labels)
        metrics |= scored
        shown = true_images.abs() if inversion.absolute else true_images
        without = baselines(shown, view.public_images, seed=settings.seed)
        pictures = {"input of the site": as_pictures(shown), **pictures}
    leaked = inversion.believed
    result = AttackResult(
        name=f"update inversion ({inversion.route})",
        metrics=metrics,
        intervals=intervals,
        **cost.figures(),
        assumptions=assumptions(view, settings),
        settings=_settings(view, settings),
        verdict=verdict(view, inversion),
        leaked=leaked,
        baselines=without,
        seed=settings.seed,
        checks=checks,
        pictures=pictures,
    )
    return result, inversion


def verdict(view: UpdateView, inversion: Inversion) -> str:
    """One sentence."""
    what = "encoding" if view.sign_masked else "image"
    if view.num_images == 1:
        return _verdict_on_one(what, inversion)
    what += "s"
    tail = f" {what} behind this update were recovered"
    if bool(inversion.verified.any()):
        count = int(inversion.verified.sum())
        absolute = " (their absolute values, which is all an encoding carries)" if inversion.absolute else ""
        exact = inversion.route.startswith("first layer")
        proof = "the attacker can tell so without the originals" if exact else "they explain all of it"
        text = f"{count} of the {view.num_images}{tail}{absolute}, and {proof}"
    elif inversion.believed:
        text = (
            f"The {view.num_images}{tail} approximately: they explain the update far better than noise can "
            "be explained, and independent starts agree on them"
        )
    elif inversion.believed is False:
        text = f"No {what} could be recovered from this update"
    else:
        text = f"It cannot be told whether {what} were recovered: the update is explained only in part"
    return text + (" (the time budget ended the search)" if inversion.ran_out else "") + "."


def _verdict_on_one(what: str, inversion: Inversion) -> str:
    if bool(inversion.verified.any()):
        value = " (its absolute value, which is all an encoding carries)" if inversion.absolute else ""
        text = f"The {what} behind this update was recovered{value}, and it explains the update"
    elif inversion.believed:
        text = (
            f"The {what} behind this update was recovered approximately: it explains the update far better "
            "than noise can be explained, and independent starts agree on it"
        )
    elif inversion.believed is False:
        text = f"No {what} could be recovered from this update"
    else:
        text = f"It cannot be told whether the {what} was recovered: the update is explained only in part"
    return text + (" (the time budget ended the search)" if inversion.ran_out else "") + "."


def assumptions(view: UpdateView, settings: InversionSettings) -> tuple[str, ...]:
    """Every one, as sentences."""
    plan, defence = view.training, view.defence
    lines = [
        "the attacker sees the weights before and the "
        + ("gradient" if view.kind == "gradient" else "weights after the site's training"),
        "the attacker chose the weights sent (trap weights) and follows the protocol otherwise"
        if settings.method == "traps"
        else "the attacker knows the architecture and follows the protocol (no malicious weights)",
        f"the attacker knows that {view.num_images} images are behind it",
        "the labels are given" if view.labels is not None else "the labels are not given",
    ]
    if view.kind == "update":
        lines.append(
            f"the attacker knows the plan: {plan.epochs} epochs in batches of {plan.batch_size}, "
            f"{plan.optimizer} at {plan.learning_rate:g}, momentum {plan.momentum:g}"
        )
    if settings.statistics == "exact":
        lines.append("the batch statistics of the site's own images are given")
    if settings.statistics == "running":
        lines.append("the model's running batch statistics are used, which travel with the weights")
    if view.sign_masked:
        lines.append("the attacker knows that the inputs are encodings with random signs")
    if defence.prune:
        lines.append(f"the attacker knows that {defence.prune:.0%} of every tensor was set to zero")
    if defence.clip is not None:
        lines.append(f"the attacker knows the clipping bound {defence.clip:g}")
    if defence.noise:
        lines.append(f"the attacker knows that noise of standard deviation {defence.noise:g} was added")
    if defence.num_sites > 1:
        lines.append(f"only the mean over {defence.num_sites} sites is seen (secure aggregation)")
    if view.public_images is not None:
        lines.append(f"the attacker has {len(view.public_images)} images of the same kind")
    return tuple(lines)


def power_check(
    view: UpdateView,
    settings: InversionSettings,
    *,
    max_seconds: float | None = None,
    progress: Callable[..., None] | None = None,
) -> str:
    """Plant known images under the same network, plan and defence and look for them."""
    images, labels = stand_ins(view, settings.seed)
    planted = rehearsal(view, images, labels)
    found = invert(planted, settings, max_seconds=max_seconds, progress=progress)
    truth = images.abs() if found.absolute else images
    ssim = compare(found.images, truth)[0]["mean_ssim"]
    said = {True: "and said so", False: "but did not believe it", None: "but could not tell"}[found.believed]
    word = "found" if ssim > FOUND_SSIM else "did not find"
    return (
        f"{word} {len(images)} planted images under the same plan and defence (mean SSIM {ssim:.2f}) {said}"
    )


def null_check(
    view: UpdateView,
    settings: InversionSettings,
    *,
    max_seconds: float | None = None,
    progress: Callable[..., None] | None = None,
) -> str:
    """The same attack on noise with the norms of this update."""
    found = invert(noise_like(view, settings.seed + 1), settings, max_seconds=max_seconds, progress=progress)
    return "nothing found in noise" if not found.believed else "FAILED: images were 'found' in pure noise"


def planted_canary(*, seed: int = 0) -> float:
    """Mean square error on one raw random image behind a dense network's gradient: the attack's own power."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 1, 12, 12, generator=generator) * 2 - 1
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=4)
    view = observe(model, image, torch.eye(4)[:1], LocalTraining(num_images=1))
    return float((invert(view).images - image).square().mean())


def stand_ins(view: UpdateView, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images, labels) to plant: public images with their labels, or smooth random pictures; sign-masked
    where the site's inputs are."""
    generator = torch.Generator().manual_seed(seed + 77)
    n, K, public = view.num_images, view.num_classes, view.public_images
    classes = torch.randint(K, (n,), generator=generator)
    if public is not None and len(public) >= n:
        from ...mixing import to_unit_range

        chosen = torch.randperm(len(public), generator=generator)[:n].numpy()
        images = to_unit_range(public.images[chosen])
        if public.labels is not None and int(public.labels.max()) < K:
            classes = torch.from_numpy(public.labels[chosen])
    else:
        noise = torch.randn(n, *view.image_shape, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
        images = (1.5 * smooth).clamp(-1, 1)
    if view.sign_masked:
        images = images * (2 * torch.randint(2, images.shape, generator=generator) - 1)
    return images, torch.eye(K)[classes]


def rehearsal(view: UpdateView, images: torch.Tensor, labels: torch.Tensor) -> UpdateView:
    """The view if ``images`` had been behind it: same weights, plan and defence."""
    blank = replace(view, labels=None if view.labels is None else labels, batch_statistics=None)
    if view.batch_statistics is not None:
        from .objective import batch_statistics

        blank = replace(blank, batch_statistics=batch_statistics(view.model, images))
    from .local_update import Simulator

    clean = replace(blank, defence=Defence(num_sites=view.defence.num_sites))
    with torch.enable_grad():
        sent = Simulator(clean).simulate(images.float(), labels.float())
    observed = {name: value.detach() for name, value in zip(view.observed, sent, strict=True)}
    return defend(replace(clean, observed=observed), view.defence)


def as_pictures(images: torch.Tensor) -> NDArray[np.uint8]:
    """(≤ 16, C, H, W) uint8."""
    grey = (images[:MAX_PICTURES].float().clamp(-1, 1) + 1) * 127.5
    return np.asarray(grey.round().numpy(), dtype=np.uint8)


def _what_the_attacker_sees(inversion: Inversion) -> dict[str, float]:
    seen = {
        "verified_share": float(inversion.verified.sum()) / inversion.num_images,
        "unexplained_share": inversion.unexplained,
        "unexplained_share_of_noise": inversion.null_unexplained,
        "restart_agreement": inversion.agreement,
    }
    return {name: value for name, value in seen.items() if not math.isnan(value)}


def _settings(view: UpdateView, settings: InversionSettings) -> dict[str, Any]:
    return {
        "kind": view.kind,
        "image_shape": list(view.image_shape),
        "num_classes": view.num_classes,
        "training": view.training.to_dict(),
        "defence": view.defence.to_dict(),
        "sign_masked": view.sign_masked,
        "labels_given": view.labels is not None,
        "attack": asdict(settings),
    }
