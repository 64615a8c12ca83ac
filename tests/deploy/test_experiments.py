"""Run settings on disk: taken by the coordinator, and by a site under just the policy they ask for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.commands.run_settings import not_ours, read_settings
from federation.config import RunConfig
from federation.identity import load_or_create_identity
from federation.messages import EVALUATE, TRAIN, RoundRequest
from federation.site.policy import Policy, SiteFacts
from federation.site.settings import parse
from federation.study import AdmittedSite, Study, run_config
from instahide.errors import RefusedError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "deploy" / "experiments"
FILES = sorted(EXPERIMENTS.glob("*.toml"))
SCENARIOS = {
    "plain": {"encoding": "none", "secure_aggregation": False, "differential_privacy": "none"},
    "encodings-hardened": {"encoding": "instahide", "encoding_mode": "hardened"},
    "encodings-compat": {"encoding": "instahide", "encoding_mode": "compat"},
    "secure-aggregation": {"secure_aggregation": True, "confirm_survivors": False},
    "secure-aggregation-confirmed": {"secure_aggregation": True, "confirm_survivors": True},
    "differential-privacy-example": {"differential_privacy": "example", "target_epsilon": 3.0},
    "differential-privacy-client": {"differential_privacy": "client", "secure_aggregation": True},
    "robust-trimmed-mean": {"strategy": "trimmed-mean"},
    "robust-multi-krum": {"strategy": "multi-krum"},
    "fedprox": {"strategy": "fedprox"},
    "fedadam": {"strategy": "fedadam"},
    "exponential-equivalent": {"lr_schedule": "exponential-equivalent"},
    "tables": {"model": "mlp", "encoding": "none"},
}


class StudyOfFive(Study):
    """A study whose five hospitals need no folder."""

    def sites(self) -> list[AdmittedSite]:
        keys = [load_or_create_identity(self.path / str(index) / "identity.key") for index in range(5)]
        return [
            AdmittedSite(
                node_id=index,
                name=f"site-{index}",
                fingerprint="",
                num_examples=400,
                evaluate_num_examples=80,
                class_names=("benign", "malignant"),
                image_shape=(1, 32, 32),
                identity_key=key.public_line,
            )
            for index, key in enumerate(keys)
        ]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return StudyOfFive(tmp_path_factory.mktemp("study"), ("localhost",), "127.0.0.1", 9443)


def planned(path: Path, study: Study) -> RunConfig:
    return run_config(study, not_ours(read_settings(path)) | {"run-name": path.stem})


def policy_asked_for(path: Path) -> dict[str, Any]:
    """The lines ``#   policy: KEY = VALUE`` of a file's head."""
    lines = re.findall(r"^#   policy: (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return tomllib.loads("\n".join(lines))


def is_served(config: RunConfig, policy: Policy) -> bool:
    """Whether a site serves first and last round, training and measuring."""
    weights = {"weight": np.zeros(1, np.float32)}
    facts = SiteFacts(num_examples=400)
    try:
        for number in (1, config.num_server_rounds):
            for kind in (TRAIN, EVALUATE):
                policy.check(RoundRequest.for_round(config, number, weights, kind), facts)
    except RefusedError:
        return False
    return True


def test_there_is_a_file_for_each_scenario_and_no_other() -> None:
    assert {path.stem for path in FILES} == set(SCENARIOS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_coordinator_accepts_the_file_and_it_is_the_scenario_of_its_name(
    path: Path, study: Study
) -> None:
    config = planned(path, study)
    for key, value in SCENARIOS[path.stem].items():
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_site_serves_it_under_the_policy_the_file_asks_for_and_not_without(
    path: Path, study: Study
) -> None:
    config, asked = planned(path, study), policy_asked_for(path)
    assert is_served(config, parse(Policy, asked, "policy file"))
    for key in asked:
        less = {other: value for other, value in asked.items() if other != key}
        assert not is_served(config, parse(Policy, less, "policy file")), f"{key} is not needed"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_says_in_words_what_it_is_for(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert len(head.split()) > 15
