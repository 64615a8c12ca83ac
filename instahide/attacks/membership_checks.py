"""Does the membership attack find what was planted, and nothing in noise?

*Power.* Some strangers are encoded, alone (k = 1, a bare sign mask) and in pairs (k = 2), hidden among
the release and looked for among the other strangers. Canaries with k = 1 that
are not found mean that the attack does not work here (an unsuitable public set, say), so that
"nothing found" means nothing. They carry no noise, whatever the law: they test the attack, not the defence.

*Null.* Each encoding has its values put into a random order of its own: the histogram stays, the
picture goes. An attack that still tells members from others has learnt something else about them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..encoder import Encoder, FewPixelsWarning
from ..encoder_config import EncoderConfig
from ..images import ImageSet
from .membership import MembershipAttacker
from .membership_outcome import membership_outcome
from .membership_search import found_first, searched_scores
from .metrics import roc_auc, roc_auc_interval

NUM_CANARIES, NUM_STRANGERS = 20, 200
MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class MembershipChecks:
    """``words`` for the report; ``has_power`` and ``is_quiet`` say whether each check passed."""

    words: dict[str, str]
    has_power: bool
    is_quiet: bool


def membership_checks(
    attacker: MembershipAttacker,
    candidates: ImageSet,
    is_member: NDArray[np.bool_],
    *,
    search: bool = False,
    seed: int = 0,
) -> MembershipChecks:
    """Both checks, with the attacker's law, whitening and encodings; with ``search`` as the attack had it."""
    rng = np.random.default_rng(seed)
    strangers = candidates.subset(~is_member)
    found = {k: planted_canaries_auc(attacker, strangers, num_mixed=k, rng=rng) for k in (1, 2)}
    _, at_least, count = found[1]
    has_power = at_least > 0.5 or not count
    auc, is_quiet = noise_auc(attacker, candidates, is_member, search=search, rng=rng)
    return MembershipChecks(
        {"power": _power_words(found, has_power), "null": _null_words(auc, is_quiet)}, has_power, is_quiet
    )


def _power_words(found: dict[int, tuple[float, float, int]], has_power: bool) -> str:
    if not found[1][2]:
        return "not run: too few strangers to plant some"
    figures = ", ".join(f"AUC {auc:.2f} of {count} with k = {k}" for k, (auc, _, count) in found.items())
    return f"{'passed' if has_power else 'FAILED'}: planted images against strangers: {figures}"


def _null_words(auc: float, is_quiet: bool) -> str:
    if is_quiet:
        return f"passed: nothing found in noise (AUC {auc:.2f})"
    return f"FAILED: AUC {auc:.2f} on noise; members and others differ by more than membership"


def planted_canaries_auc(
    attacker: MembershipAttacker, strangers: ImageSet, *, num_mixed: int, rng: np.random.Generator
) -> tuple[float, float, int]:
    """AUC of planted canaries against strangers, its lower limit, and how many were planted.

    Args:
        strangers: images known not to be inside; some are planted, the others stay strangers.
    """
    images = strangers.images
    varied = np.flatnonzero((images != images[:, :, :1, :1]).any(axis=(1, 2, 3)))
    chosen = rng.permutation(varied)[: NUM_CANARIES + NUM_STRANGERS]
    number = min(NUM_CANARIES, len(chosen) // 4)
    if number < 2:
        return 0.5, 0.0, 0
    canaries = ImageSet(images[chosen[:number]])
    release = torch.cat([attacker.view.encodings, _encoded(attacker.view.config, canaries, num_mixed)])
    scores = attacker.scores(release, None, ImageSet(images[chosen]))
    planted, others = scores[:number], scores[number:]
    return roc_auc(planted, others), roc_auc_interval(planted, others)[0], number


def noise_auc(
    attacker: MembershipAttacker,
    candidates: ImageSet,
    is_member: NDArray[np.bool_],
    *,
    search: bool = False,
    rng: np.random.Generator,
) -> tuple[float, bool]:
    """AUC of the attack on encodings without a picture, and whether its verdict is "nothing found"."""
    encodings = attacker.view.encodings.flatten(1).numpy()
    noise = torch.from_numpy(rng.permuted(encodings, axis=1)).view_as(attacker.view.encodings)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(group))[: MAX_CANDIDATES // 2] for group in (is_member, ~is_member)]
    )
    chosen, members = ImageSet(candidates.images[rows]), is_member[rows]
    scores = attacker.scores(noise, None, chosen)
    if search:
        scores = found_first(searched_scores(replace(attacker.view, encodings=noise), chosen), scores)
    outcome = membership_outcome(scores[members], scores[~members])
    return outcome.metrics["auc"], not outcome.leaked


def _encoded(law: EncoderConfig, canaries: ImageSet, num_mixed: int) -> torch.Tensor:
    """One encoding of each canary, mixed with another canary if k = 2, under the release's mode but noise."""
    config = EncoderConfig(
        num_mixed=num_mixed, num_private=num_mixed, mode=law.mode if law.mode != "dp" else "mixup"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewPixelsWarning)
        encoder = Encoder(config, private=replace(canaries, labels=np.zeros(len(canaries), dtype=np.int64)))
        return encoder.encode_epoch().images / law.output_range
