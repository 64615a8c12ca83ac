"""Plans: one hash for one agreement, the same at the coordinator and at a site."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from federation.config import RunConfig, TrainingSettings
from federation.messages import RoundRequest
from federation.plan import Plan, read_plan, write_plan
from federation.setting_rules import to_kebab
from instahide.errors import IntegrityError, InvalidInputError

BUNDLE = "ab" * 32
SHARED = [to_kebab(item.name) for item in fields(TrainingSettings) if "rule" in item.metadata]


def plan_of(**settings: Any) -> Plan:
    given = {key.replace("_", "-"): value for key, value in settings.items()}
    return Plan.of(RunConfig.from_mapping(given), bundle_sha256=BUNDLE)


def test_a_request_and_the_coordinators_settings_give_one_plan() -> None:
    config = RunConfig.from_mapping({"learning-rate": 1, "num-server-rounds": 4, "round-deadline": 7})
    expected = Plan.of(config, bundle_sha256=BUNDLE)
    for server_round, kind in ((1, "train"), (4, "train"), (4, "evaluate")):
        arrived = json.loads(json.dumps(RoundRequest.for_round(config, server_round, {}, kind).to_mapping()))
        request = RoundRequest.from_mapping(arrived, kind=kind)
        assert Plan.of(request, bundle_sha256=BUNDLE) == expected
        assert Plan.of(request, bundle_sha256=BUNDLE).sha256 == expected.sha256


def test_the_hash_is_of_the_sorted_json_without_spaces() -> None:
    plan = plan_of()
    text = json.dumps(plan.to_mapping(), sort_keys=True, separators=(",", ":"))
    assert plan.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert plan.sha256.startswith(plan.short)


@pytest.mark.parametrize("key", SHARED)
def test_every_setting_a_site_is_told_makes_another_plan(key: str) -> None:
    plan = plan_of()
    assert set(plan.settings) == set(SHARED)
    changed = Plan(bundle_sha256=BUNDLE, settings={**plan.settings, key: "another value"})
    assert plan.differences(changed) == [(key, plan.settings[key], "another value")]
    assert changed.sha256 != plan.sha256


def test_bundle_and_protocol_version_make_another_plan() -> None:
    plan = plan_of()
    others = [
        Plan(bundle_sha256="cd" * 32, settings=plan.settings),
        Plan(bundle_sha256=BUNDLE, settings=plan.settings, protocol_version=99),
    ]
    assert len({plan.sha256, *(other.sha256 for other in others)}) == 3


def test_what_only_the_coordinator_needs_is_not_in_it() -> None:
    assert plan_of(**{"round-deadline": 5.0, "strategy": "fedadam"}) == plan_of()


def test_a_plan_travels_in_a_file(tmp_path: Path) -> None:
    plan = plan_of(class_names=["gut", "bös"])
    assert read_plan(write_plan(plan, tmp_path / "plan.json")) == plan


def test_an_edited_file_is_found_and_another_is_refused(tmp_path: Path) -> None:
    path = write_plan(plan_of(), tmp_path / "plan.json")
    good = json.loads(path.read_text())
    edited = json.loads(path.read_text())
    edited["plan"]["settings"]["num-mixed"] = 2
    path.write_text(json.dumps(edited))
    with pytest.raises(IntegrityError, match="does not have the hash"):
        read_plan(path)
    for wrong in ("", "[]", "{}", '{"plan": {}, "sha256": ""}', "[" * 100_000, "x" * 200_000):
        path.write_text(wrong)
        with pytest.raises(InvalidInputError):
            read_plan(path)
    for key in good["plan"]:
        path.write_text(json.dumps({**good, "plan": {**good["plan"], key: None}}))
        with pytest.raises(InvalidInputError):
            read_plan(path)
    with pytest.raises(InvalidInputError):
        read_plan(tmp_path / "none")


def test_a_file_with_fewer_or_impossible_settings_is_refused_though_its_hash_is_right(tmp_path: Path) -> None:
    settings = dict(plan_of().settings)
    for changed in (
        {key: value for key, value in settings.items() if key != "momentum"},
        settings | {"num-mixed": 99},
        settings | {"seed": 1},
    ):
        write_plan(Plan(bundle_sha256=BUNDLE, settings=changed), tmp_path / "plan.json")
        with pytest.raises(InvalidInputError):
            read_plan(tmp_path / "plan.json")


def test_a_plan_too_large_to_be_read_is_none() -> None:
    with pytest.raises(InvalidInputError, match="a plan of"):
        plan_of(class_names=[f"class {number}" for number in range(9_000)])
