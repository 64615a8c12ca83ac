"""Planted images must be found and noise must be silent, or "nothing found" means nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from instahide.attacks import membership_checks
from instahide.attacks.membership import MembershipAttacker, known_image_membership, nearest_encoding_scores
from instahide.attacks.membership_checks import noise_auc, planted_canaries_auc
from instahide.attacks.view import AttackerView
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError
from instahide.images import ImageSet

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


def blotches(count: int, *, seed: int) -> ImageSet:
    noise = np.random.default_rng(seed).normal(size=(count, 20, 20))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    return ImageSet((128 + 260 * smooth).clip(0, 255).astype(np.uint8), np.arange(count) % 3)


MEMBERS, STRANGERS, SIMILAR = blotches(60, seed=1), blotches(300, seed=2), blotches(1000, seed=3)
CANDIDATES = ImageSet(np.concatenate([MEMBERS.images, STRANGERS.images]))
IS_MEMBER = np.arange(360) < 60


def view_of(config: EncoderConfig) -> AttackerView:
    encoded = Encoder(config, private=MEMBERS).encode_epoch()
    return AttackerView.of(encoded, SIMILAR, show_labels=False)


@pytest.mark.parametrize("mode", ["hardened", "compat", "mixup"])
def test_planted_images_are_found_in_every_mode(mode: str) -> None:
    attacker = MembershipAttacker(view_of(EncoderConfig(num_mixed=6, mode=mode)))
    auc, at_least, count = planted_canaries_auc(
        attacker, STRANGERS, num_mixed=1, rng=np.random.default_rng(0)
    )
    assert count == 20
    assert auc > at_least > 0.8


def test_noise_gives_the_verdict_nothing_found() -> None:
    view = view_of(EncoderConfig(num_mixed=4))
    noise = torch.rand(view.encodings.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = known_image_membership(replace(view, encodings=noise), CANDIDATES, IS_MEMBER)
    assert result.leaked is False
    assert result.verdict.startswith("Nothing found")
    assert set(result.checks) == {"power", "null"}


def test_members_that_look_different_are_not_recognised_in_noise() -> None:
    attacker = MembershipAttacker(view_of(EncoderConfig(num_mixed=4)))
    brighter = ImageSet(np.concatenate([MEMBERS.images // 2 + 100, STRANGERS.images]))
    auc, is_quiet = noise_auc(attacker, brighter, IS_MEMBER, rng=np.random.default_rng(0))
    assert is_quiet == (auc < 0.62)


def test_an_attack_without_power_leaves_the_question_open(monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(EncoderConfig(num_mixed=4))
    noise = torch.rand(view.encodings.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(membership_checks, "planted_canaries_auc", lambda *_, **__: (0.55, 0.4, 20))
    result = known_image_membership(replace(view, encodings=noise), CANDIDATES, IS_MEMBER)
    assert result.leaked is None
    assert result.verdict.startswith("Undecided")
    assert result.checks["power"].startswith("FAILED")


def test_the_trivial_attacker_finds_a_bare_mask_and_little_else() -> None:
    alone = view_of(EncoderConfig(num_mixed=1, num_private=1))
    scores = nearest_encoding_scores(alone, CANDIDATES)
    assert scores[IS_MEMBER].min() > 0.97  # |e| of an image alone is |x|; the mean pictures differ a little
    mixed = known_image_membership(view_of(EncoderConfig(num_mixed=4)), CANDIDATES, IS_MEMBER, uses=4)
    assert mixed.leaked
    assert mixed.baselines["auc"] < mixed.metrics["auc"]


def test_unknown_roles_and_impossible_uses_are_refused() -> None:
    view = view_of(EncoderConfig(num_mixed=4))
    with pytest.raises(InvalidInputError, match="role"):
        MembershipAttacker(view, "inference")
    with pytest.raises(InvalidInputError, match="uses"):
        known_image_membership(view, CANDIDATES, IS_MEMBER, uses=61, check=False)


def test_an_encoded_query_is_recognised() -> None:
    encoder = Encoder(EncoderConfig(num_mixed=4), private=STRANGERS.subset(np.arange(50)), public=SIMILAR)
    encodings = encoder.encode_views(MEMBERS, 1)[0]
    view = AttackerView(encodings, None, encoder.config, "cross", SIMILAR, None)
    result = known_image_membership(view, CANDIDATES, IS_MEMBER, role="query", search=False, check=False)
    # 0.5 + 5 standard deviations of the AUC without a signal, as in test_membership.py.
    assert result.metrics["auc"] > 0.705
    assert any("queries" in line for line in result.assumptions)
