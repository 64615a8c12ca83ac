"""Membership when the attacker holds only a copy: shifted, cropped, brightened, compressed, noisy.

Axes: M candidates, C channels, H rows, W columns.

A radiograph found elsewhere is rarely the very array that was encoded: it was windowed, cropped or
saved as JPEG. The same attack is run with changed candidates, all of them, and the AUC is drawn
against how much they were changed. Two attackers:

*as it is* uses the copy unchanged; *registering* tries the copy shifted by every offset up to a few
pixels and adds up the likelihoods (each offset equally likely beforehand), which undoes shifts and crops.
Both use the likelihood ratio of :mod:`.membership`; the search for exact images is for exact images.

==============  =========================================================================
change          strength
==============  =========================================================================
``shift``       pixels to the right and down, the edge repeated
``crop``        share of each side that is cut off, the rest enlarged again (bilinear)
``brightness``  factor − 1, about black
``noise``       standard deviation of Gaussian noise, in grey levels of 255
``jpeg``        100 − quality
==============  =========================================================================
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..errors import InvalidInputError
from ..images import ImageSet
from .cost import Cost
from .membership import MembershipAttacker, Progress, Scores
from .membership_outcome import CHANCE, MembershipOutcome, membership_outcome
from .view import AttackerView, AttackResult

MOVED = ("shift", "crop")
"""Changes that registering can undo."""
Pixels = NDArray[np.uint8]
STRENGTHS: dict[str, tuple[float, ...]] = {
    "shift": (0, 1, 2, 3),
    "crop": (0, 0.03, 0.0625, 0.125),
    "brightness": (0, 0.05, 0.1, 0.2, 0.4),
    "noise": (0, 5, 10, 20, 40),
    "jpeg": (0, 25, 50, 75, 90),
}


def perturbed(images: ImageSet, change: str, strength: float, *, seed: int = 0) -> ImageSet:
    """``images`` changed as the table above says; labels are kept.

    Raises:
        InvalidInputError: an unknown change, or a strength without meaning.
    """
    makers: dict[str, Callable[[Pixels, float], Pixels]] = {
        "shift": lambda pixels, amount: shifted(pixels, round(amount), round(amount)),
        "crop": _cropped,
        "brightness": lambda pixels, amount: _to_bytes(pixels * (1.0 + amount)),
        "noise": lambda pixels, amount: _to_bytes(
            pixels + np.random.default_rng(seed).normal(0, amount, pixels.shape)
        ),
        "jpeg": _compressed,
    }
    if change not in makers:
        raise InvalidInputError(f"no change {change!r}", hint=f"use one of {', '.join(makers)}")
    if strength < 0 or (change == "crop" and strength >= 0.5) or (change == "jpeg" and strength >= 100):
        raise InvalidInputError(f"{change} has strength {strength}", hint="0 is the image itself")
    pixels = images.images if strength == 0 else makers[change](images.images, strength)
    return ImageSet(pixels, images.labels, images.class_names)


def membership_by_copy(
    view: AttackerView,
    candidates: ImageSet,
    is_member: NDArray[np.bool_],
    *,
    changes: Mapping[str, Sequence[float]] = STRENGTHS,
    register: int = 0,
    uses: int = 1,
    role: str = "training",
    seed: int = 0,
    progress: Progress | None = None,
) -> AttackResult:
    """AUC with changed candidates: one curve per change, one more of a registering attacker if asked for.

    Args:
        candidates: M exact images; the attacker gets changed ones only.
        is_member: (M,) the truth.
        changes: strengths by change.
        register: largest offset in pixels that is tried on shifted and cropped copies, (2r + 1)² in all.
        uses, role: as in :func:`.membership.known_image_membership`.

    Returns:
        metrics ``auc`` (of the exact images) and ``auc_<change>_<strength>``, with intervals.
    """
    truth = np.asarray(is_member, dtype=bool)
    outcomes: dict[str, MembershipOutcome] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    steps = [(change, strength) for change, line in changes.items() for strength in line]
    with Cost() as cost:
        attacker = MembershipAttacker(view, role)
        for done, (change, strength) in enumerate(steps):
            copies = perturbed(candidates, change, strength, seed=seed)
            for tried in sorted({0, register if change in MOVED else 0}):
                scores = registered_scores(attacker, copies, max_offset=tried, uses=uses)
                outcome = membership_outcome(scores[truth], scores[~truth])
                label = f"{change}, registering" if tried else change
                curves.setdefault(label, []).append((strength, outcome.metrics["auc"]))
                name = "auc" if not strength and not tried else f"auc_{label.replace(', ', '_')}_{strength:g}"
                outcomes.setdefault(name, outcome)
            if progress is not None:
                progress(done + 1, len(steps), "changes tried:")
    exact = outcomes.get("auc")
    return AttackResult(
        name="known-image membership by a changed copy",
        metrics={name: outcome.metrics["auc"] for name, outcome in outcomes.items()},
        intervals={name: outcome.intervals["auc"] for name, outcome in outcomes.items()},
        **cost.figures(),
        assumptions=(
            "the attacker holds a changed copy of each candidate, all changed in the same way",
            f"the attacker has {len(view.public_images)} other images of the same kind",
            *([f"the registering attacker tries offsets up to {register} pixels"] if register else []),
            "members and non-members are drawn from the same source",
        ),
        settings={"changes": {name: list(line) for name, line in changes.items()}, "register": register},
        verdict=_verdict(curves),
        leaked=None if exact is None else exact.leaked,
        baselines={"auc": CHANCE["auc"]},
        seed=seed,
        curves=curves,
        curve_axes=("strength of the change", "AUC"),
    )


def registered_scores(
    attacker: MembershipAttacker, candidates: ImageSet, *, max_offset: int, uses: int = 1
) -> Scores:
    """(M,) log of the mean likelihood ratio over offsets of up to ``max_offset`` pixels both ways."""
    offsets = range(-max_offset, max_offset + 1)
    view, scores = attacker.view, []
    for down in offsets:
        for right in offsets:
            moved = ImageSet(
                shifted(candidates.images, down, right), candidates.labels, candidates.class_names
            )
            scores.append(attacker.scores(view.encodings, view.labels, moved, uses=uses))
    stacked = np.stack(scores)
    return np.asarray(np.logaddexp.reduce(stacked, axis=0) - np.log(len(stacked)), dtype=np.float64)


def shifted(pixels: Pixels, down: int, right: int) -> Pixels:
    """Every image (N, C, H, W) moved by whole pixels, its edge repeated."""
    H, W = pixels.shape[2:]
    rows = np.clip(np.arange(H) - down, 0, H - 1)
    columns = np.clip(np.arange(W) - right, 0, W - 1)
    return np.ascontiguousarray(pixels[:, :, rows][:, :, :, columns])


def _cropped(pixels: Pixels, share: float) -> Pixels:
    H, W = pixels.shape[2:]
    cut = max(1, round(share * H)), max(1, round(share * W))
    inner = torch.from_numpy(pixels[:, :, cut[0] : H - cut[0], cut[1] : W - cut[1]].astype(np.float32))
    return _to_bytes(functional.interpolate(inner, size=(H, W), mode="bilinear", align_corners=False).numpy())


def _compressed(pixels: Pixels, strength: float) -> Pixels:
    from PIL import Image

    out = np.empty_like(pixels)
    for index, image in enumerate(pixels):
        grey = len(image) == 1
        picture = Image.fromarray(image[0] if grey else np.ascontiguousarray(image.transpose(1, 2, 0)))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=max(1, round(100 - strength)))
        decoded = np.asarray(Image.open(buffer))
        out[index] = decoded[None] if grey else decoded.transpose(2, 0, 1)
    return out


def _to_bytes(values: NDArray[np.floating]) -> Pixels:
    return np.asarray(np.rint(values).clip(0, 255), dtype=np.uint8)


def _verdict(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    parts = [f"{name}: {line[0][1]:.2f} to {line[-1][1]:.2f}" for name, line in curves.items()]
    return f"AUC from the exact image to the most changed copy: {'; '.join(parts)}."
