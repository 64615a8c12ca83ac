from __future__ import annotations

import pytest
import torch
from scipy.stats import mannwhitneyu

from instahide.attacks.recovery.pairing_evidence import Gain, held_out_gain, rank_score
from instahide.attacks.recovery.pairing_features import Features, ImagePrior
from instahide.encoder_config import EncoderConfig


def test_the_rank_score_is_that_of_mann_and_whitney() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = torch.randn(40, generator=rng) + 0.7, torch.randn(55, generator=rng)
    theirs = mannwhitneyu(first, second, use_continuity=False, method="asymptotic", alternative="greater")
    ours = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(-rank_score(first, second)))
    assert abs(float(ours) - theirs.pvalue) < 1e-6


def test_gains_of_a_few_hundred_nats_do_not_hide_that_most_encodings_gain() -> None:
    real = torch.cat(
        [torch.linspace(5, 60, 36), torch.tensor([400.0, 500.0, 900.0]), torch.linspace(-60, -40, 6)]
    )
    null = torch.linspace(-90, -5, 45)
    gain, of_null = Gain.of(real), Gain.of(null)
    assert gain.mean < 5 * gain.standard_error
    assert gain.exceeds(of_null)
    assert not of_null.exceeds(Gain.of(null - 100)), "better than the null, but no gain"
    assert not Gain.of(null).exceeds(Gain.of(null + 1))


@pytest.mark.parametrize("labelled", [False, True])
def test_one_encoding_of_each_image_is_judged_and_noise_gains_nothing(labelled: bool) -> None:
    """Some images, and with them the only pair of a class, are in no encoding but those put aside."""
    n, r = 24, 30
    draw = torch.Generator().manual_seed(2)
    prior = ImagePrior(torch.empty(0), torch.empty(0), torch.empty(0), 1)
    features = Features(torch.randn(n, r, generator=draw), torch.ones(r), 0.9 * torch.ones(r), prior, False)
    labels = torch.zeros(n, 10)
    rows = torch.arange(n)
    labels[rows, rows % 10] += 0.6
    labels[rows, (rows * 3) % 10] += 0.4
    gain = held_out_gain(features, labels if labelled else None, EncoderConfig(), "cross", n)
    assert gain.gains is not None
    assert torch.isfinite(gain.gains).all()
    assert not gain.exceeds(None)
