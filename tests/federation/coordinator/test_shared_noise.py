"""Client-level privacy with a coordinator that sees sums only: real sessions, and noise of the sites' own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.coordinator.rounds import RunResult
from federation.hidden_sum import EQUAL_WEIGHT, HiddenSum, hidden_sum, to_vector
from federation.privacy_ledger import LEDGER_NAME, PrivacyLedger
from federation.secure_aggregation.distributed_noise import rounded_norm_bound
from federation.site import masked_rounds
from instahide.errors import InvalidInputError

from .test_masked_collection import SITES, Hospitals, a_run, change_of, prepare_weights

PRIVATE: dict[str, Any] = {
    "differential_privacy": "client",
    "noise_multiplier": 2.0,
    "max_update_norm": 0.5,
    "over_norm": "clip",
    "clipping_range": 1.0,
    "evaluate": False,
}


@pytest.fixture
def hospitals() -> Hospitals:
    return Hospitals()


def private_run(folder: Path, hospitals: Hospitals, **settings: Any) -> RunResult:
    return a_run(folder, hospitals, **(PRIVATE | settings))


def clipped(node: int, server_round: int) -> np.ndarray:
    change = change_of(node, server_round).astype(np.float64)
    return np.asarray(change * min(1.0, 0.5 / np.linalg.norm(change)))


def agreed_on(hospitals: Hospitals, **settings: Any) -> HiddenSum:
    from federation.config import RunConfig

    secure = {"secure_aggregation": True, "roster": hospitals.roster, "max_site_examples": 1000}
    thresholds = {"minimum_sites": 3, "reconstruction_threshold": 3}
    return hidden_sum(RunConfig(**(secure | thresholds | PRIVATE | settings)), 16)


@pytest.mark.statistical
def test_the_model_moves_by_the_plain_mean_of_clipped_changes_and_noise_of_the_size_accounted(
    tmp_path: Path, hospitals: Hospitals
) -> None:
    """Five runs of two rounds, 16 weights, 160 errors: each within six sd (false alarm 3e-7), and the sd
    within five standard errors, 5/√320 = 28 % (6e-7)."""
    agreed = agreed_on(hospitals)
    assert agreed.noise is not None
    sd = agreed.noise.scale(agreed.plan) * agreed.plan.step * math.sqrt(5) / 5
    errors = []
    for number in range(5):
        result = private_run(tmp_path / str(number), hospitals, num_server_rounds=1)
        wanted = to_vector(prepare_weights()) + np.mean([clipped(node, 1) for node in SITES], axis=0)
        errors.append(to_vector(result.weights) - wanted)
    deviations = np.concatenate(errors)
    assert np.abs(deviations).max() < 6 * sd
    assert np.sqrt(np.mean(deviations**2)) == pytest.approx(sd, rel=0.4)


def test_without_noise_the_same_sum_is_the_plain_mean_whatever_size_a_site_claims(
    tmp_path: Path, hospitals: Hospitals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        masked_rounds,
        "encode_private_update",
        lambda plan, noise, update, values: masked_rounds.encode_update(plan, update, values),
    )
    result = private_run(tmp_path / "run", hospitals, num_server_rounds=1)
    wanted = to_vector(prepare_weights()) + np.mean([clipped(node, 1) for node in SITES], axis=0)
    assert np.allclose(to_vector(result.weights), wanted, atol=2e-6)


def test_the_noise_of_colluding_and_of_missing_sites_is_not_counted_on(hospitals: Hospitals) -> None:
    """Five sites, sums from four on, two of which may collude with the server: two are sure."""
    agreed = agreed_on(hospitals, minimum_sites=4, reconstruction_threshold=4)
    assert agreed.noise is not None
    parameters = agreed.roster.parameters
    assert (parameters.minimum_sites, parameters.max_colluding_sites) == (4, 2)
    assert agreed.noise.fewest_honest_sites == 2
    least = 2 * agreed.noise.scale(agreed.plan) ** 2
    assert least == pytest.approx((2.0 * rounded_norm_bound(agreed.plan)) ** 2)


def test_both_ends_reserve_the_same_room_for_noise_and_tell_nobody_the_weight(hospitals: Hospitals) -> None:
    agreed = agreed_on(hospitals)
    assert agreed.plan.noise_levels > 0
    assert agreed.plan.counts[0] == EQUAL_WEIGHT
    assert EQUAL_WEIGHT not in agreed.metrics
    assert "num-examples" in agreed.metrics
    other = agreed_on(hospitals, noise_multiplier=3.0)
    assert other.roster.digest != agreed.roster.digest


def test_the_card_names_epsilon_and_that_the_coordinator_need_not_be_trusted(
    tmp_path: Path, hospitals: Hospitals
) -> None:
    private_run(tmp_path / "run", hospitals)
    agreed = agreed_on(hospitals)
    assert agreed.noise is not None
    epsilon = agreed.noise.epsilon(agreed.plan, 2, 1e-5)
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert f"Epsilon {epsilon:.3g} at delta 1e-05" in card
    assert "protects from the coordinator" in " ".join(card.split())
    assert "is trusted" not in card
    assert len(PrivacyLedger(tmp_path / "run" / LEDGER_NAME).events()) == 2


def test_noise_that_does_not_fit_the_ring_is_refused_before_the_run(
    tmp_path: Path, hospitals: Hospitals
) -> None:
    with pytest.raises(InvalidInputError, match="bits"):
        private_run(tmp_path / "run", hospitals, ring_bits=16, noise_multiplier=500.0)
    assert hospitals.asked == []
