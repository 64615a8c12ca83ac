"""Arms as they are typed, and what a study refuses before any work."""

from __future__ import annotations

from typing import Any

import pytest

from federation.simulation.arms import BASE, build_arms
from instahide.errors import InvalidInputError


def test_without_arms_there_is_one_run_with_the_settings_of_a_study() -> None:
    [arm] = build_arms({"learning-rate": 0.2}, [], [], num_hospitals=10)
    told = arm.config.to_mapping()
    assert arm.name == told["run-name"] == "run"
    assert told["learning-rate"] == 0.2
    assert {key: told[key] for key in BASE} == dict(BASE)


def test_every_arm_is_tried_with_every_value() -> None:
    arms = build_arms(
        {},
        ["plain:encoding=none", "hidden:encoding=instahide,num-mixed=3"],
        ["secure-aggregation=true,false", "local-epochs=1,2"],
        {"file": {"batch-size": 8}},
        num_hospitals=10,
    )
    assert [arm.name for arm in arms[:4]] == [
        "file-secure-aggregation-local-epochs-1",
        "file-secure-aggregation-local-epochs-2",
        "file-no-secure-aggregation-local-epochs-1",
        "file-no-secure-aggregation-local-epochs-2",
    ]
    assert len(arms) == 12
    last = arms[-1].config
    assert (last.encoding, last.num_mixed, last.secure_aggregation, last.local_epochs) == (
        "instahide",
        3,
        False,
        2,
    )


@pytest.mark.parametrize(
    ("settings", "arms", "varied", "hospitals", "message"),
    [
        ({"roster": []}, [], [], 10, "roster cannot be set"),
        ({"learning-rat": 0.1}, [], [], 10, "arm run: unknown setting"),
        ({}, ["a:encoding=none", "a:encoding=instahide"], [], 10, "one name"),
        ({}, ["encoding=none"], [], 10, "not NAME:KEY"),
        ({}, ["a:encoding"], [], 10, "not KEY=VALUE"),
        ({}, [], ["strategy"], 10, "not KEY=VALUE,VALUE"),
        ({}, ["a b:encoding=none"], [], 10, "no name of an arm"),
        ({"secure-aggregation": True}, [], [], 256, "one hidden sum takes 2 to 255"),
        ({"minimum-sites": 11}, [], [], 10, "minimum-sites is 11 of 10"),
        ({}, [], [f"initialization-seed={','.join(map(str, range(65)))}"], 10, "65 arms"),
    ],
)
def test_mistakes_are_told_before_any_work(
    settings: dict[str, Any], arms: list[str], varied: list[str], hospitals: int, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build_arms(settings, arms, varied, num_hospitals=hospitals)
