"""The site's rules: what each of them lets through and what it refuses, and that none can be lost."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from federation.config import RunConfig
from federation.messages import ALLOWED_METRICS, RoundRequest
from federation.setting_rules import to_kebab
from federation.site.policy import Policy, SiteFacts, default_policy_text, load_policy, write_default_policy
from instahide.errors import InvalidInputError, RefusedError

FACTS = SiteFacts(num_examples=1000)


def request(server_round: int = 1, kind: str = "train", **settings: Any) -> RoundRequest:
    run = RunConfig.from_mapping({"num-server-rounds": 50, **settings})
    return RoundRequest.for_round(run, server_round, {}, kind)


def refused(policy: Policy, asked: RoundRequest, facts: SiteFacts = FACTS) -> str:
    with pytest.raises(RefusedError) as caught:
        policy.check(asked, facts)
    assert caught.value.hint
    return caught.value.message


def test_the_default_policy_serves_the_default_run() -> None:
    Policy().check(request(), FACTS)


def test_images_that_are_not_encoded_need_a_policy_that_says_so() -> None:
    assert "encoded images only" in refused(Policy(), request(encoding="none"))
    Policy(encoding_required=False).check(request(encoding="none"), FACTS)


@pytest.mark.parametrize("mode", ["compat", "mixup"])
def test_a_weaker_encoding_mode_is_refused_until_allowed(mode: str) -> None:
    asked = request(**{"encoding-mode": mode})
    assert mode in refused(Policy(), asked)
    Policy(allowed_encoding_modes=("hardened", mode)).check(asked, FACTS)


def test_fewer_mixed_images_than_the_minimum_are_refused() -> None:
    assert "num-mixed 3" in refused(Policy(), request(**{"num-mixed": 3}))
    Policy().check(request(**{"num-mixed": 4}), FACTS)


def test_fewer_private_images_than_the_minimum_are_refused() -> None:
    assert "num-private 1" in refused(Policy(), request(**{"num-private": 1}))


def test_too_small_a_site_sends_no_update_but_may_measure() -> None:
    facts = SiteFacts(num_examples=49)
    assert "too few" in refused(Policy(), request(), facts)
    Policy().check(request(kind="evaluate"), facts)


def test_rounds_of_a_run_are_counted_and_end() -> None:
    policy = Policy(max_rounds=5)
    policy.check(request(5), replace(FACTS, rounds_served=4, last_round=4))
    assert "at most 5 rounds" in refused(policy, request(5), replace(FACTS, rounds_served=5, last_round=4))
    assert "at most 5 rounds" in refused(policy, request(6))


def test_evaluations_are_counted_apart_from_rounds() -> None:
    policy = Policy(max_rounds=5)
    policy.check(request(5, kind="evaluate"), replace(FACTS, rounds_served=5, last_round=5))
    facts = replace(FACTS, evaluations_served=5)
    assert "at most 5 evaluations" in refused(policy, request(5, kind="evaluate"), facts)


def test_a_resuming_coordinator_may_repeat_a_round_but_not_for_ever() -> None:
    policy = Policy(max_repeated_rounds=2)
    policy.check(request(7), replace(FACTS, rounds_served=8, last_round=7, repeats=1))
    facts = replace(FACTS, rounds_served=9, last_round=7, repeats=2)
    assert "round 7 after round 7" in refused(policy, request(7), facts)
    policy.check(request(8), facts)


def test_new_run_names_do_not_buy_new_rounds_for_ever() -> None:
    policy = Policy(max_runs=3)
    assert "3 runs" in refused(policy, request(), replace(FACTS, other_runs=3))
    policy.check(request(2), replace(FACTS, other_runs=3, rounds_served=1, last_round=1))


def test_a_cohort_below_the_minimum_is_refused() -> None:
    policy = Policy(minimum_cohort_size=3)
    assert "2 sites" in refused(policy, request(**{"minimum-sites": 2}))
    policy.check(request(**{"minimum-sites": 3}), FACTS)
    assert "1 sites" in refused(Policy(), request(**{"minimum-sites": 1}))


def test_where_secure_aggregation_is_required_a_run_without_it_is_refused() -> None:
    policy = Policy(secure_aggregation_required=True)
    assert "secure aggregation" in refused(policy, request())
    policy.check(request(**{"secure-aggregation": True}), FACTS)
    Policy().check(request(), FACTS)


def test_only_allowed_figures_leave() -> None:
    policy = Policy(allowed_metrics=("num-examples", "train-loss"))
    assert policy.allowed_part({"num-examples": 3, "train-loss": 0.5, "train-seconds": 1.0}) == {
        "num-examples": 3,
        "train-loss": 0.5,
    }


def test_by_default_the_protocols_figures_leave_and_no_others() -> None:
    assert set(Policy().allowed_metrics) == ALLOWED_METRICS - {"epsilon-spent"}  # the site decides


def test_a_policy_without_the_count_a_mean_needs_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="num-examples"):
        Policy(allowed_metrics=("train-loss",))


def test_without_a_policy_file_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="refuses everything"):
        load_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("minimum-num-mixed = ", "not TOML"),
        ("\xff", "refuses everything"),
        ("minimum-num-mixed = 17", "minimum-num-mixed is 17"),
        ("minimum-num-mixed = 4.0", "minimum-num-mixed is 4.0"),
        ("minimum-num-mixed = true", "minimum-num-mixed is True"),
        ("encoding-required = 0", "encoding-required is 0"),
        ('encoding-required = "yes"', "encoding-required is 'yes'"),
        ('allowed-encoding-modes = "hardened"', "allowed-encoding-modes"),
        ('allowed-encoding-modes = ["encrypted"]', "encrypted"),
        ("allowed-encoding-modes = []", "empty"),
        ('allowed-metrics = ["gradient"]', "gradient"),
        ("max-update-exposures = 0", "max-update-exposures is 0"),
        ("max-rounds = -1", "max-rounds is -1"),
        ("max-seconds = 0", "max-seconds is 0"),
        ("max-memory-gib = nan", "max-memory-gib is nan"),
        ("minimum-cohort-size = 0", "minimum-cohort-size is 0"),
        ('plan-approval = "no"', "plan-approval is 'no'"),
        ("allowed-bundle-sha256 = []", "unknown key"),
    ],
)
def test_a_policy_file_with_a_fault_refuses_everything(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RefusedError, match="refuses everything") as caught:
        load_policy(path)
    assert said in caught.value.message
    assert str(tmp_path) not in str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("minimum_num_mixd = 4\n")
    with pytest.raises(RefusedError) as caught:
        load_policy(path)
    assert caught.value.hint == "did you mean 'minimum-num-mixed'?"


def test_the_written_default_policy_is_the_default_policy_and_explains_every_key(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    write_default_policy(path)
    assert load_policy(path) == Policy()
    assert path.stat().st_mode & 0o777 == 0o600
    for item in fields(Policy):
        assert f"{to_kebab(item.name)} = " in default_policy_text()


def test_a_policy_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("max-rounds = 1\n")
    with pytest.raises(RefusedError, match="already"):
        write_default_policy(path)
    assert path.read_text() == "max-rounds = 1\n"
