from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.implementation_audits import audit, audit_release, summary
from instahide.attacks.implementation_audits.planted import Faults, plant, smooth_pictures
from instahide.attacks.implementation_audits.planted_checks import CHECKS, sound_release
from instahide.attacks.implementation_audits.runner import with_check
from instahide.attacks.implementation_audits.seed_laws import SEED_LAWS
from instahide.encoder_config import EncoderConfig

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("name", CHECKS)
def test_every_audit_finds_what_is_planted_and_passes_the_default_mode(name: str) -> None:
    outcomes = CHECKS[name].outcomes()
    assert outcomes["power"].startswith("found")
    assert outcomes["null"].startswith("nothing")


def test_the_default_mode_passes_all_audits(tmp_path: Path) -> None:
    results = audit(sound_release(epochs=2), [tmp_path], seed_bits=8, with_checks=False)
    assert {result.name for result in results} == set(CHECKS)
    assert [result.name for result in results if result.leaked] == []
    whole = summary(results)
    assert whole.leaked is False
    assert "None of 10 audits" in whole.verdict


def test_a_careless_implementation_fails_nearly_all(tmp_path: Path) -> None:
    faults = Faults(
        coefficients_from=(SEED_LAWS[0], 200), mask_seed=3, mixes_with_itself=True, same_partners=True,
        double_precision=True,
    )  # fmt: skip
    config = EncoderConfig(num_mixed=2, num_private=2, mode="compat")
    made = plant(smooth_pictures(60, seed=1, border=5), config, faults, epochs=2)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(random.Random(1).getstate()))
    release = made.release
    results = audit_release(
        release.encodings, release.labels, config, [tmp_path], scheme="inside", epochs=2, seed_bits=8,
        with_checks=False,
    )  # fmt: skip
    leaking = {result.name for result in results if result.leaked}
    alone = (made.truth.private_rows[:, 0] == made.truth.private_rows[:, 1]).any()
    assert leaking >= {
        "small seeds", "mask generator", "lattice decoding", "label leakage", "fixed pairs", "artefacts",
    }  # fmt: skip
    assert ("self-mixing" in leaking) == alone
    assert "small seeds" in summary(results).verdict


@pytest.mark.statistical
def test_noise_passes_all_audits() -> None:
    # Each audit has a false-alarm rate of at most 0.001: nine of them 0.009, at a fixed seed of the noise.
    rng = np.random.default_rng(1)
    noise = rng.uniform(-1, 1, (100, 1, 16, 16)).astype(np.float32)
    pool = smooth_pictures(200, seed=2).images
    labels = np.zeros((100, 10), dtype=np.float32)
    for row in labels:
        row[rng.choice(10, 2, replace=False)] = rng.dirichlet(np.ones(2))
    config = EncoderConfig(num_mixed=4, num_private=2)
    results = audit_release(noise, labels, config, epochs=2, public_pool=pool, seed_bits=8, with_checks=False)
    assert [result.name for result in results if result.leaked] == []


def test_a_result_carries_its_checks() -> None:
    (result,) = [
        r for r in audit(sound_release(), seed_bits=4, with_checks=False) if r.name == "label leakage"
    ]
    assert set(with_check(result).checks) == {"power", "null"}
    assert "found the weakness" in summary([with_check(result)]).checks["power"]
