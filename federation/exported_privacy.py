"""The differential privacy that an exported model's card may state: a figure, its unit, and who computed it.

None where none ran: InstaHide's encodings have no epsilon, and so none can be written down for them here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instahide.errors import IntegrityError
from instahide.models import ImageClassifier

from .config import RunConfig

ACCOUNTANT = "privacy loss distributions (dp-accounting), an upper bound"


def privacy_of_encodings(
    law: Mapping[str, Any] | None,
    data: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> dict[str, Any] | None:
    """What the noise of mode ``dp`` in a model's encodings guarantees; None for every other mode."""
    if law is None or law.get("mode") != "dp":
        return None
    from instahide.encoder_config import EncoderConfig
    from instahide.encoding_guarantee import guarantee_of_encodings

    guarantee = guarantee_of_encodings(
        EncoderConfig.from_dict(dict(law)),
        image_shape=image_shape,
        num_classes=num_classes,
        scheme=str(data["scheme"]),
        releases=int(data.get("epochs_released") or 1),
    )
    return {
        "note": "Noise in the encodings protects one image and its label, from whoever sees the encodings or "
        "this model. Other releases of the same images, and epochs that were resumed, add to it.",
        "unit": f"one image ({guarantee.adjacency})",
        "epsilon": _finite(guarantee.epsilon),
        "delta": guarantee.delta,
        "accountant": guarantee.method,
        "mechanism": f"{guarantee.noise_law} noise in each encoding",
        "own uses": guarantee.own_uses,
        "partner uses": guarantee.partner_uses,
    }


def privacy_of_run(
    config: RunConfig, folder: Path, rows: list[dict[str, Any]], model: ImageClassifier
) -> dict[str, Any] | None:
    """What the noise of a federated run guarantees; None for a run without.

    Raises:
        IntegrityError: the ledger of a run with client-level privacy is missing or damaged.
    """
    if config.differential_privacy == "example":
        return _of_examples(config, rows)
    if config.differential_privacy == "client":
        return _of_sites(config, folder, model)
    return None


def _of_examples(config: RunConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    spent: dict[str, float | str] = {}
    for row in rows:
        for name, metrics in row["by-site"].items():
            spent.setdefault(str(name), "not told")
            if "epsilon-spent" in metrics:
                spent[str(name)] = float(metrics["epsilon-spent"])
    return {
        "note": "DP-SGD at every hospital protects one training image, from whoever sees all updates or this "
        "model. Epsilon is each hospital's own, for this run alone; several images of one person need a "
        "larger one. Test images, and what was measured on them, are not covered.",
        "unit": "one training image (add or remove one)",
        "epsilon": "each hospital's own, below",
        "delta": config.target_delta,
        "accountant": ACCOUNTANT,
        "mechanism": f"DP-SGD, noise multiplier {config.noise_multiplier:g}, gradients clipped to "
        f"{config.max_grad_norm:g}"
        + (f"; noise found for epsilon {config.target_epsilon:g}" if config.target_epsilon else ""),
        "sites": spent,
    }


def _of_sites(config: RunConfig, folder: Path, model: ImageClassifier) -> dict[str, Any]:
    from .coordinator.client_privacy import NoisyMean
    from .coordinator.shared_noise import SharedNoise, with_noise
    from .coordinator.strategies import build_aggregator
    from .privacy_ledger import LEDGER_NAME
    from .site.weights import read_weights

    if not (folder / LEDGER_NAME).is_file():
        raise IntegrityError(
            f"the run's privacy ledger {LEDGER_NAME} is missing, so no epsilon can be stated",
            hint="restore the run's folder from a backup",
        )
    rule = with_noise(build_aggregator(config), config, folder, read_weights(model))
    assert isinstance(rule, NoisyMean | SharedNoise)
    guarantee = rule.guarantee(config.target_delta)
    who = (
        f"the hospitals, under secure aggregation; also protects from the coordinator if at least "
        f"{guarantee.fewest_honest_sites} of the hospitals in every sum keep their noise to themselves"
        if guarantee.fewest_honest_sites
        else "the coordinator, which saw the updates and is trusted"
    )
    return {
        "note": "Noise in the sum of clipped updates protects one whole hospital, from whoever gets this "
        "model or that of any round. Which hospitals took part, their numbers of images and the accuracies "
        "are not covered.",
        "unit": "one whole hospital (its update replaced by no change)",
        "epsilon": _finite(guarantee.epsilon),
        "delta": guarantee.delta,
        "accountant": ACCOUNTANT,
        "mechanism": f"noise multiplier {guarantee.noise_multiplier:g}, updates clipped to "
        f"{guarantee.clip_norm:g}, {guarantee.num_releases} releases",
        "noise added by": who,
    }


def _finite(epsilon: float) -> float | str:
    return epsilon if math.isfinite(epsilon) else "above 30, which promises nothing useful"
