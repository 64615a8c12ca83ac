"""A coordinator that asks for more than was agreed: what a site's policy and its approved plan refuse.

The sites' tasks are the real ones, with the strict policy and plan approval on. What no rule of a site
can refuse, weights crafted to give images away, is in ``test_crafted_weights.py``. The table for a
privacy officer is ``federation/MALICIOUS_COORDINATOR.md``; each line of it names a test here.
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import federation
from federation.config import TrainingSettings
from federation.messages import EVALUATE
from federation.setting_rules import to_kebab
from federation.site.policy import Policy

from .approving_hospital import OPEN, PLAIN, WEIGHTS, Hospital, refusal

PRIVATE: dict[str, Any] = {
    "differential_privacy": "example",
    "encoding": "none",
    "noise_multiplier": 2.0,
    "evaluate": False,
}
BRIEF: dict[str, Any] = {"evaluate": False}


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    """Strict policy; the default plan is approved."""
    hospital = Hospital(tmp_path)
    hospital.approve(**BRIEF)
    return hospital


def test_what_was_agreed_is_served_so_the_refusals_below_have_a_reason(hospital: Hospital) -> None:
    assert hospital.ask(**BRIEF).refusal is None


# Every setting of a request, each with another value that a coordinator might like better.
OTHERWISE: dict[str, Any] = {
    "run_name": "again",
    "num_server_rounds": 11,
    "model": "small-cnn",
    "initialization_seed": 1,
    "absolute_input": True,
    "class_names": [str(digit) for digit in reversed(range(10))],
    "image_shape": [1, 16, 16],
    "local_epochs": 2,
    "batch_size": 1,
    "learning_rate": 50.0,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "optimizer": "adamw",
    "lr_schedule": "step",
    "equivalent_to": "cosine",
    "proximal_mu": 1.0,
    "encoding": "none",
    "encoding_mode": "mixup",
    "num_mixed": 5,
    "num_private": 3,
    "differential_privacy": "client",
    "noise_multiplier": 0.5,
    "max_grad_norm": 100.0,
    "target_delta": 1e-3,
    "target_epsilon": 8.0,
    "minimum_sites": 3,
    "max_update_norm": 5.0,
    "max_site_examples": 1,
    "secure_aggregation": True,
    "roster": ["stranger ssh-ed25519 AAAA"],
    "reconstruction_threshold": 1,
    "confirm_survivors": True,
    "ring_bits": 64,
    "clipping_range": 100.0,
    "evaluate": True,
    "num_views": 3,
}


def test_the_list_of_changed_settings_has_every_setting_a_coordinator_can_change() -> None:
    assert set(OTHERWISE) == {item.name for item in fields(TrainingSettings) if "rule" in item.metadata}


@pytest.mark.parametrize("name", OTHERWISE)
def test_no_setting_can_be_changed_after_the_plan_was_approved(hospital: Hospital, name: str) -> None:
    raw = {name.replace("_", "-"): OTHERWISE[name]}
    refusal(hospital.ask(raw=raw, **BRIEF))
    assert hospital.ask(**BRIEF).refusal is None


def test_fewer_mixed_images_than_the_minimum_are_refused_even_if_somebody_approved_them(
    hospital: Hospital,
) -> None:
    hospital.approve(num_mixed=2, **BRIEF)
    assert refusal(hospital.ask(num_mixed=2, **BRIEF)) == (
        "policy",
        "num-mixed 2 is below this site's minimum",
    )


def test_fewer_mixed_images_than_were_agreed_wait_for_a_new_approval(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.approve(num_mixed=6, **BRIEF)
    assert refusal(hospital.ask(num_mixed=5, **BRIEF))[0] == "approval"


def test_training_on_images_that_are_not_encoded_is_refused(hospital: Hospital) -> None:
    hospital.approve(**PLAIN)
    kind, reason = refusal(hospital.ask(**PLAIN))
    assert kind == "policy"
    assert "encoded images only" in reason


def test_an_encoding_without_sign_mask_is_refused(hospital: Hospital) -> None:
    hospital.approve(encoding_mode="mixup", **BRIEF)
    assert refusal(hospital.ask(encoding_mode="mixup", **BRIEF))[0] == "policy"


def test_fresh_encodings_in_every_round_stop_at_the_exposures_that_policy_allows(tmp_path: Path) -> None:
    """Another law is another encoding of the same images: one exposure is spent on the first."""
    hospital = Hospital(tmp_path)
    for num_mixed in (4, 5):
        hospital.approve(num_mixed=num_mixed, **BRIEF)
    assert hospital.ask(num_mixed=4, **BRIEF).refusal is None
    assert refusal(hospital.ask(num_mixed=5, **BRIEF))[0] == "budget"


@pytest.fixture
def private_hospital(tmp_path: Path) -> Hospital:
    """Differential privacy for each image is required: noise from 1, epsilon to 8."""
    policy = "dp-required = true\nminimum-noise-multiplier = 1.0\nmax-epsilon = 8.0\n"
    hospital = Hospital(tmp_path, OPEN + policy)
    hospital.approve(**PRIVATE)
    return hospital


def test_a_run_without_the_differential_privacy_that_is_required_is_refused(
    private_hospital: Hospital,
) -> None:
    private_hospital.approve(**PLAIN)
    kind, reason = refusal(private_hospital.ask(**PLAIN))
    assert kind == "policy"
    assert "differential privacy" in reason


def test_less_noise_than_the_minimum_is_refused(private_hospital: Hospital) -> None:
    weaker = PRIVATE | {"noise_multiplier": 0.5}
    private_hospital.approve(**weaker)
    assert refusal(private_hospital.ask(**weaker))[0] == "policy"


def test_less_noise_than_was_agreed_waits_for_a_new_approval(private_hospital: Hospital) -> None:
    assert refusal(private_hospital.ask(**(PRIVATE | {"noise_multiplier": 1.5})))[0] == "approval"


def test_a_delta_under_which_one_image_could_be_published_is_refused(private_hospital: Hospital) -> None:
    looser = PRIVATE | {"target_delta": 0.1}
    private_hospital.approve(**looser)
    assert refusal(private_hospital.ask(**looser))[0] == "policy"


def test_a_run_that_would_exceed_the_epsilon_cap_is_refused_before_its_first_round(
    private_hospital: Hospital,
) -> None:
    longer = PRIVATE | {"num_server_rounds": 100, "local_epochs": 10}
    private_hospital.approve(**longer)
    assert refusal(private_hospital.ask(**longer))[0] == "budget"


def test_a_round_beyond_the_agreed_ones_is_refused(hospital: Hospital) -> None:
    kind, reason = refusal(hospital.ask(raw={"server-round": 11}, **BRIEF))
    assert kind == "error"
    assert "round 11 of a run of 10 rounds" in reason


def test_more_rounds_than_policy_allows_are_refused_even_if_approved(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, "max-rounds = 2\n")
    hospital.approve(**BRIEF)
    for server_round in (1, 2):
        assert hospital.ask(server_round, **BRIEF).refusal is None
    assert refusal(hospital.ask(3, **BRIEF))[0] == "policy"


def test_the_same_round_asked_again_and_again_is_refused(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, "max-repeated-rounds = 1\n")
    hospital.approve(**BRIEF)
    assert hospital.ask(2, **BRIEF).refusal is None
    assert hospital.ask(2, **BRIEF).refusal is None
    assert refusal(hospital.ask(2, **BRIEF))[0] == "policy"


def test_each_run_under_a_new_name_is_a_new_plan(hospital: Hospital) -> None:
    for name in ("second", "third"):
        assert refusal(hospital.ask(run_name=name, **BRIEF))[0] == "approval"


def test_runs_under_new_names_end_at_the_number_policy_allows_even_if_approved(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, "max-runs = 1\n")
    for name in ("first", "second"):
        hospital.approve(run_name=name, **BRIEF)
    assert hospital.ask(run_name="first", **BRIEF).refusal is None
    kind, reason = refusal(hospital.ask(run_name="second", **BRIEF))
    assert kind == "policy"
    assert "served its 1 runs" in reason


def test_evaluations_that_would_measure_many_models_are_counted(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, OPEN + "max-rounds = 1\n")
    plain = PLAIN | {"evaluate": True, "num_server_rounds": 1}
    hospital.approve(**plain)
    assert hospital.ask(1, EVALUATE, **plain).refusal is None
    assert refusal(hospital.ask(1, EVALUATE, **plain))[0] == "policy"


def test_a_round_of_one_site_is_refused(hospital: Hospital) -> None:
    hospital.approve(minimum_sites=1, **BRIEF)
    assert refusal(hospital.ask(minimum_sites=1, **BRIEF))[0] == "policy"


def test_a_run_in_the_clear_is_refused_where_secure_aggregation_is_required(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, "secure-aggregation-required = true\n")
    hospital.approve(**BRIEF)
    kind, reason = refusal(hospital.ask(**BRIEF))
    assert kind == "policy"
    assert "secure aggregation" in reason


def test_another_bundle_is_another_plan(hospital: Hospital) -> None:
    assert refusal(hospital.ask(bundle="cd" * 32, **BRIEF))[0] == "approval"


def test_a_plan_that_was_rejected_stays_rejected_and_others_wait_in_bounded_number(
    hospital: Hospital,
) -> None:
    """A coordinator that sends ever new plans wears nobody out and fills no disk."""
    for number in range(60):
        assert refusal(hospital.ask(run_name=f"run-{number}", **BRIEF))[0] == "approval"
    waiting = [entry for entry in hospital.plans.entries() if entry.status == "pending"]
    assert len(waiting) == 20
    hospital.plans.decide(waiting[0].plan, "rejected", by="privacy officer")
    assert refusal(hospital.ask(run_name=waiting[0].plan.run_name, **BRIEF))[0] == "policy"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch-size", 10**9),
        ("local-epochs", 10**9),
        ("learning-rate", 1e30),
        ("num-views", 10**9),
        ("num-mixed", 10**6),
        ("num-server-rounds", 10**12),
        ("image-shape", [1, 10**6, 10**6]),
        ("image-shape", [10**9] * 10_001),
        ("class-names", [str(number) for number in range(10_000)]),
        ("model", "x" * 10_000),
        ("model", "../../etc/passwd"),
        ("max-site-examples", 10**30),
        ("noise-multiplier", float("nan")),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(hospital: Hospital, name: str, value: Any) -> None:
    kind, _ = refusal(hospital.ask(raw={name: value}, **BRIEF))
    assert kind in ("error", "policy", "approval")
    assert hospital.tasks._models == {}


def test_weights_of_another_size_are_refused(hospital: Hospital) -> None:
    larger = {name: np.zeros((4096, *array.shape), np.float32) for name, array in WEIGHTS.items()}
    assert refusal(hospital.ask(arrays=larger, **BRIEF))[0] == "error"


def test_words_the_protocol_does_not_know_are_refused(hospital: Hospital) -> None:
    for word in ("pickle", "code", "loss-function", "layers"):
        kind, reason = refusal(hospital.ask(raw={word: "anything"}, **BRIEF))
        assert kind == "error"
        assert "unknown setting" in reason


def test_nothing_that_was_refused_has_touched_an_image(hospital: Hospital) -> None:
    """All of the above on one site: no encoding was made, no round counted."""
    for name, value in OTHERWISE.items():
        refusal(hospital.ask(raw={name.replace("_", "-"): value}, **BRIEF))
    assert not (hospital.folder / "runs.json").exists()
    assert not list((hospital.folder / "encodings").glob("*"))


def test_every_test_that_the_privacy_officers_page_names_exists() -> None:
    page = Path(federation.__file__).with_name("MALICIOUS_COORDINATOR.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    files = [Path(__file__), Path(__file__).with_name("test_crafted_weights.py")]
    there = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(named) >= 20
    assert named <= there


def test_every_policy_key_that_the_page_names_is_one() -> None:
    page = Path(federation.__file__).with_name("MALICIOUS_COORDINATOR.md").read_text(encoding="utf-8")
    keys = {to_kebab(item.name) for item in fields(Policy)}
    settings = {to_kebab(item.name) for item in fields(TrainingSettings)}
    words = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", page))
    assert {"dp-required", "check-initial-weights"} <= words <= keys | settings
