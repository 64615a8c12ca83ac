"""The DP audit: honest mechanisms pass, planted faults are found, and the scores are the best there are."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import instahide.dp_training as dp_training
from instahide.attacks.dp_audit import CanaryScores, Claim, judge, null_check
from instahide.attacks.dp_audit_encodings import (
    _log_probability,
    audit_encodings,
    audit_encodings_in_one_run,
    claim_of_encodings,
    power_check,
    run_trials,
)
from instahide.attacks.dp_audit_training import (
    audit_training,
    power_check_training,
    run_with_canaries,
)
from instahide.encoder_config import EncoderConfig
from instahide.errors import InvalidInputError, RefusedError
from instahide.images import ImageSet
from instahide.training_config import TrainingConfig

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

SHAPE = (1, 8, 8)


def law(noise_law: str = "gaussian", **changes: Any) -> EncoderConfig:
    """About ε = 8 at δ = 1e-5 for one release with k = 2."""
    scales = {"gaussian": (9.6, 0.85), "laplace": (30.0, 0.7)}[noise_law]
    values: dict[str, Any] = {
        "mode": "dp",
        "num_mixed": 2,
        "coefficient_law": "equal",
        "noise_law": noise_law,
        "noise_scale": scales[0],
        "label_noise_scale": scales[1],
        "output_range": 5 * scales[0],
    }
    return EncoderConfig(**{**values, **changes})


# --- encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_law", ["gaussian", "laplace"])
def test_the_honest_encoder_is_not_contradicted(noise_law: str) -> None:
    result = audit_encodings(law(noise_law), trials=400)
    assert result.leaked is False
    assert 0.2 < result.metrics["epsilon_lower_bound"] < result.metrics["epsilon_claimed"]
    assert "claim not contradicted" in result.checks["null"]
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("noise_law", ["gaussian", pytest.param("laplace", marks=pytest.mark.slow)])
def test_planted_faults_are_found(noise_law: str) -> None:
    for fault, finding in power_check(law(noise_law), trials=400).items():
        assert finding.contradicted, fault


def test_one_run_finds_a_claim_for_a_tenth_of_the_noise() -> None:
    config = law(noise_scale=50.0, label_noise_scale=2.5, output_range=250.0)
    honest = audit_encodings_in_one_run(config, num_canaries=600)
    assert honest.leaked is False
    assert honest.metrics["epsilon_lower_bound"] < honest.metrics["epsilon_claimed"]
    claim = claim_of_encodings(config, image_shape=(1, 16, 16))
    weak = replace(config, noise_scale=5.0, label_noise_scale=0.25, output_range=25.0)
    assert audit_encodings_in_one_run(weak, num_canaries=600, claim=claim).leaked is True


@pytest.mark.statistical
def test_scores_are_the_log_likelihood_ratios_of_the_claimed_gaussian() -> None:
    """Labels drowned in noise: the score is N(±μ²/2, μ²) with the claim's μ, 800 trials.

    Their mean has standard deviation μ/√400 in either world: μ²'s estimate is within 6·√2·μ/20; rounding to
    8 bits and the clip at 5 standard deviations lose less than 1 %.
    """
    config = law(label_noise_scale=1e5)
    mu = claim_of_encodings(config, image_shape=SHAPE).mu
    assert mu is not None
    found = run_trials(config, SHAPE, 1, 800, seed=3)
    apart = found.scores[found.coins].mean() - found.scores[~found.coins].mean()
    assert apart == pytest.approx(mu**2, abs=6 * math.sqrt(2) * mu / 20)
    assert found.scores[found.coins].std() == pytest.approx(mu, rel=0.25)


@pytest.mark.parametrize("noise_law", ["gaussian", "laplace"])
@pytest.mark.parametrize("output_range", [0.7, 4.0])
def test_probabilities_of_released_values_sum_to_one_and_are_those_drawn(
    noise_law: str, output_range: float
) -> None:
    config = law(noise_law, noise_scale=0.5, output_range=output_range, quantization_bits=4)
    released = np.arange(-7, 8)[None, :] / 7
    mass = np.exp(_log_probability(released, np.full((1, 15), 0.3), config))[0]
    assert mass.sum() == pytest.approx(1.0, abs=1e-12)
    rng = np.random.default_rng(0)
    noise = rng.laplace(size=200_000) if noise_law == "laplace" else rng.normal(size=200_000)
    drawn = np.rint(np.clip((0.3 + 0.5 * noise) / output_range, -1, 1) * 7).astype(int)
    shares = np.bincount(drawn + 7, minlength=15) / len(drawn)
    # a share of 200,000 has standard deviation below 0.0012; six of them
    assert np.abs(shares - mass).max() < 0.007


def test_a_shorter_canary_is_told_apart_as_far_as_its_norm_allows() -> None:
    config = law(max_norm=2.0, noise_scale=2.4, output_range=12.0)
    assert audit_encodings(config, trials=400).leaked is False


def test_modes_without_noise_have_no_claim_to_audit() -> None:
    with pytest.raises(RefusedError, match="no privacy guarantee"):
        audit_encodings(EncoderConfig(), trials=100)


def test_too_few_trials_are_refused_and_time_is_kept() -> None:
    with pytest.raises(InvalidInputError, match="trials"):
        audit_encodings(law(), trials=10)
    result = audit_encodings(law(), trials=100_000, max_seconds=0.05)
    assert result.settings["stopped_early"] is True
    assert 0 < result.settings["trials"] < 100_000


def test_a_claim_of_nothing_is_not_contradicted() -> None:
    result = audit_encodings(law(noise_scale=0.05, output_range=2.0), trials=100)
    assert result.leaked is False
    assert "No useful privacy is claimed" in result.verdict
    json.dumps(result.to_dict(), allow_nan=False)


# --- training ------------------------------------------------------------------------------------


def images() -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (60, 1, 16, 16), dtype=np.uint8), np.arange(60) % 4)


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))


def config(epochs: int = 5) -> TrainingConfig:
    return TrainingConfig(
        epochs=epochs, learning_rate=0.01, weight_decay=0.0, lr_schedule="constant", device="cpu"
    )


def test_honest_training_is_not_contradicted() -> None:
    for one_run in (False, True):
        result = audit_training(
            model(),
            images(),
            config(),
            noise_multiplier=1.0,
            sample_rate=0.5,
            num_canaries=800,
            one_run=one_run,
        )
        assert result.leaked is False
        assert 0.5 < result.metrics["epsilon_lower_bound"] < result.metrics["epsilon_claimed"]
        assert result.settings["num_steps"] == 10


def test_faults_planted_in_training_are_found() -> None:
    """A fault is found in most runs, not in all (6 of 6 measured): the better of two counts."""
    found: set[str] = set()
    for _ in range(2):
        findings = power_check_training(
            model, images(), config(), noise_multiplier=1.5, sample_rate=0.5, num_canaries=1000
        )
        found |= {fault for fault, finding in findings.items() if finding.contradicted}
        if found == set(findings):
            break
    assert found == {"noise halved", "composition forgotten"}


def test_a_missing_clip_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unclipped(dp_training.PrivateSum):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.clip_norm = math.inf

    monkeypatch.setattr(dp_training, "PrivateSum", Unclipped)
    result = audit_training(
        model(), images(), config(1), noise_multiplier=4.0, sample_rate=0.5, num_canaries=400
    )
    assert result.leaked is True


@pytest.mark.statistical
def test_without_sampling_scores_are_those_of_a_gaussian_mechanism() -> None:
    """q = 1, T = 4 steps, z = 2: μ = √4/2 = 1, score N(±1/2, 1); 900 canaries, so the means' difference has
    standard deviation 1/15. The images' own gradients blur it by little."""
    found, num_steps = run_with_canaries(
        model(),
        images(),
        config(4),
        noise_multiplier=2.0,
        max_grad_norm=1.0,
        sample_rate=1.0,
        num_canaries=900,
        one_run=False,
        seed=5,
    )
    assert num_steps == 4
    apart = found.scores[found.coins].mean() - found.scores[~found.coins].mean()
    assert apart == pytest.approx(1.0, abs=6 / 15)


def test_more_canaries_than_weights_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="canaries"):
        audit_training(model(), images(), config(), noise_multiplier=1.0, num_canaries=2000)


# --- the judgement -------------------------------------------------------------------------------


def test_noise_bounds_nothing_and_certainty_refutes_everything() -> None:
    claim = Claim(1e-5, lambda _delta: 2.0)
    for kind in ("runs", "one-run"):
        null = null_check(claim, 1000, kind=kind)
        assert null.epsilon == 0
        assert not null.contradicted
        coins = np.arange(1000) % 2 == 0
        assert judge(CanaryScores(np.where(coins, 1.0, -1.0), coins, kind), claim).contradicted


def test_the_claims_curve_is_asked_at_every_delta() -> None:
    asked = []

    def curve(delta: float) -> float:
        asked.append(delta)
        return 1.0

    null_check(Claim(1e-5, curve), 100, kind="runs")
    assert {1e-5, 0.01, 0.1, 0.3} <= set(asked)
