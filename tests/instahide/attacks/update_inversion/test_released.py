"""An update of encodings is a release of encodings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instahide.attacks.membership import membership_scores
from instahide.attacks.update_inversion import (
    LocalTraining,
    build_network,
    invert,
    observe,
    view_of_recovered,
)
from instahide.attacks.view import AttackerView
from instahide.encoder import Encoder
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError

from .inversion_examples import K, blotches, errors

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("mode", ["hardened", "compat", "mixup"])
def test_encodings_and_soft_labels_come_out_of_updates_exactly(mode: str) -> None:
    private = blotches(8, seed=1)
    encoded = Encoder(EncoderConfig(num_mixed=4, mode=mode), private=private).encode_epoch()
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    view = observe(
        model, encoded.images[:4], encoded.labels[:4], LocalTraining(num_images=4), sign_masked=True
    )
    found = invert(view)
    # Secrets are fresh every time; in about one of sixty encodings a single image stays without proof.
    assert found.verified.sum() >= 3
    sure = found.images[found.verified]
    distances = (sure[:, None] - encoded.images[None, :4]).square().flatten(2).mean(-1)
    assert distances.min(1).values.max() < 1e-9
    if not found.verified.all():
        return
    assert errors(found.images, encoded.images[:4]).max() < 1e-9
    assert found.labels is not None
    order = (found.images[:, None] - encoded.images[None, :4]).square().flatten(2).sum(-1).argmin(1)
    torch.testing.assert_close(found.labels, encoded.labels[:4][order], atol=2e-3, rtol=0)


def test_an_attack_on_the_recovered_encodings_is_the_attack_on_the_release() -> None:
    """Four updates of four encodings each: membership scores must be those on the released encodings."""
    law = EncoderConfig(num_mixed=2)
    private, public = blotches(16, seed=1), blotches(400, seed=3)
    encoded = Encoder(law, private=private).encode_epoch()
    model = build_network("mlp", image_shape=(1, 12, 12), num_classes=K)
    found = [
        invert(
            observe(model, encoded.images[i : i + 4], encoded.labels[i : i + 4], LocalTraining(num_images=4))
        )
        for i in range(0, 16, 4)
    ]
    recovered = view_of_recovered(found, law, public)
    assert len(recovered.encodings) == 16
    direct = AttackerView.of(encoded, public)
    candidates = blotches(30, seed=1)
    scores = [membership_scores(view, candidates) for view in (recovered, direct)]
    # Both simulate the null law from fresh encodings, so they differ by that much and no more.
    assert np.corrcoef(*scores)[0, 1] > 0.9


def test_without_any_encoding_there_is_nothing_to_attack() -> None:
    with pytest.raises(InvalidInputError, match="no encoding was recovered"):
        view_of_recovered([], EncoderConfig(), blotches(10, seed=1))
