"""The bench of update inversion: networks, batch sizes and defences, on images whose truth is known.

Axes: n images of a site, m sites, K classes, C H W.

A case is captured by the same code that simulates candidates, so defences are exactly what the attacker
assumes: the attack is adaptive. Images are drawn anew for each repetition; sign masks and coefficients are
fresh secrets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ...encoder import Encoder
from ...encoder_config import EncoderConfig
from ...errors import InvalidInputError
from ...images import ImageSet
from ...mixing import to_unit_range
from .defences import defend, securely_aggregated
from .inversion import Inversion, InversionSettings, invert
from .local_update import observe
from .networks import build_network
from .scoring import baselines, score_inversion
from .view import Defence, LocalTraining, UpdateView


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table.

    Args:
        network: a name of ``networks.py``.
        num_images: n of one site.
        defence: with ``num_sites`` m the images of m sites are behind what the server sees.
        encoding: the law of the site's encoder; ``None``: raw images.
        kind: ``"gradient"``, or ``"update"`` with the plan's fields below.
        plan: fields of :class:`LocalTraining` beside ``num_images``.
    """

    network: str
    num_images: int = 1
    defence: Defence = field(default_factory=Defence)
    encoding: EncoderConfig | None = None
    kind: str = "gradient"
    plan: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """In words."""
        parts = [self.network, f"{self.num_images} images"]
        if self.kind == "update":
            parts.append("update (" + ", ".join(f"{key} {value:g}" for key, value in self.plan) + ")")
        if self.encoding is not None:
            parts.append(f"{self.encoding.mode} k={self.encoding.num_mixed}")
        if self.defence.prune:
            parts.append(f"pruned {self.defence.prune:g}")
        if self.defence.clip is not None:
            parts.append(f"clip {self.defence.clip:g}")
        if self.defence.noise:
            parts.append(f"noise {self.defence.noise_multiplier:g}")
        if self.defence.num_sites > 1:
            parts.append(f"sum over {self.defence.num_sites} sites")
        return ", ".join(parts)


def capture_case(
    case: Case, images: ImageSet, *, public: ImageSet, seed: int
) -> tuple[UpdateView, torch.Tensor, torch.Tensor]:
    """(view, inputs, labels): what the server sees, and what the sites trained on.

    Args:
        images: labelled; n·m of them are drawn by ``seed``, and as partners of encodings the others too.
    """
    labels = images.labels
    if labels is None:
        raise InvalidInputError("the images have no labels", hint="training needs a label for every image")
    total = case.num_images * case.defence.num_sites
    chosen = np.random.default_rng(seed).permutation(len(images))[: max(total, 64)]
    drawn = images.subset(chosen)
    if case.encoding is None:
        assert drawn.labels is not None
        inputs = to_unit_range(drawn.images)[:total]
        targets = torch.eye(images.num_classes)[torch.from_numpy(drawn.labels)][:total]
    else:
        encoded = Encoder(case.encoding, private=drawn).encode_epoch()
        inputs, targets = encoded.images[:total], encoded.labels[:total]
    model = build_network(case.network, image_shape=images.image_shape, num_classes=images.num_classes)
    masked = case.encoding is not None and case.encoding.has_sign_mask
    plan = LocalTraining(num_images=case.num_images, **dict(case.plan))
    parts = [
        observe(
            model,
            inputs[first : first + case.num_images],
            targets[first : first + case.num_images],
            plan,
            kind=case.kind,
            public_images=public,
            sign_masked=masked,
        )
        for first in range(0, total, case.num_images)
    ]
    whole = securely_aggregated(parts) if len(parts) > 1 else parts[0]
    return defend(whole, replace(case.defence, num_sites=1)), inputs, targets


def measure_case(
    case: Case,
    images: ImageSet,
    *,
    public: ImageSet,
    repetitions: int = 3,
    seed: int = 0,
    settings: InversionSettings | None = None,
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """Means over repetitions, with the baseline of the mean public image and processor seconds.

    Args:
        max_seconds: of one attack.
    """
    rows, believed, routes, seconds = [], [], [], []
    for repetition in range(repetitions):
        view, inputs, labels = capture_case(case, images, public=public, seed=seed + repetition)
        started = time.process_time()
        found: Inversion = invert(view, settings, max_seconds=max_seconds)
        seconds.append(time.process_time() - started)
        scored, _ = score_inversion(found, inputs, labels)
        scored["verified_share"] = float(found.verified.sum()) / found.num_images
        without = baselines(inputs.abs() if found.absolute else inputs, public, seed=repetition)
        rows.append(scored | {"baseline_ssim": without["mean_ssim"]})
        believed.append(found.believed)
        routes.append(found.route)
    names = sorted(set().union(*rows))
    return {
        "case": case.name,
        **{name: float(np.mean([row.get(name, 0.0) for row in rows])) for name in names},
        "worst_ssim": min(row["mean_ssim"] for row in rows),
        "best_ssim": max(row["mean_ssim"] for row in rows),
        "believed": believed,
        "routes": sorted(set(routes)),
        "cpu_seconds": float(np.median(seconds)),
        "repetitions": repetitions,
    }


def default_cases(*, networks: Sequence[str] = ("mlp", "dense-sigmoid", "lenet-sigmoid")) -> list[Case]:
    """Batch 1 to 8 on each network; the defences on one and on four images of each."""
    hardened = EncoderConfig(num_mixed=4)
    defences = [
        Defence(prune=0.9),
        Defence(prune=0.99),
        Defence(clip=1.0, noise_multiplier=1e-3),
        Defence(clip=1.0, noise_multiplier=1e-2),
    ]
    cases = []
    for network in networks:
        cases += [Case(network=network, num_images=n) for n in (1, 2, 4, 8)]
        cases += [Case(network=network, num_images=n, encoding=hardened) for n in (1, 4)]
        cases += [Case(network=network, num_images=n, encoding=EncoderConfig(mode="mixup")) for n in (1, 4)]
        cases += [
            Case(network=network, num_images=n, defence=defence) for n in (1, 4) for defence in defences
        ]
        cases += [Case(network=network, num_images=1, defence=Defence(num_sites=m)) for m in (4, 16)]
        cases.append(Case(network=network, encoding=hardened, defence=Defence(prune=0.9)))
    return cases


def leak_table(
    cases: Sequence[Case],
    images: ImageSet,
    *,
    public: ImageSet,
    repetitions: int = 3,
    seed: int = 0,
    settings: InversionSettings | None = None,
    max_seconds: float | None = None,
    progress: Callable[..., None] | None = None,
) -> list[dict[str, Any]]:
    """One row for each case."""
    table = []
    for number, case in enumerate(cases):
        if progress is not None:
            progress(number, len(cases), case.name)
        table.append(
            measure_case(
                case,
                images,
                public=public,
                repetitions=repetitions,
                seed=seed,
                settings=settings,
                max_seconds=max_seconds,
            )
        )
    return table
