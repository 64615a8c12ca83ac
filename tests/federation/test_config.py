"""A run's settings: every key checked, every mistake named, nothing lost on the way through Flower."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.config import PER_EXAMPLE_MODELS, RunConfig, TrainingSettings, describe_settings
from federation.setting_rules import rule_of, to_kebab
from instahide.errors import InvalidInputError

DEFAULTS = RunConfig().to_mapping()


def settings_with_rules():
    return [item for item in dataclasses.fields(RunConfig) if "rule" in item.metadata]


def test_the_defaults_are_valid_and_survive_the_round_trip():
    assert RunConfig.from_mapping(DEFAULTS) == RunConfig()
    assert RunConfig.from_mapping({}) == RunConfig()


def test_flowers_run_configuration_carries_everything_without_lists():
    config = RunConfig(class_names=("a, b", 'c "d"', "é"), image_shape=(3, 32, 32), strategy="median")
    flat = config.to_run_config()
    assert {type(value) for value in flat.values()} <= {str, int, float, bool}
    assert RunConfig.from_run_config(flat) == config


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learing-rate", "learning-rate"),
        ("learning_rate", "learning-rate"),
        ("num-rounds", "num-server-rounds"),
        ("min-sites", "minimum-sites"),
        ("Batch-Size", "batch-size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(wrong, right):
    with pytest.raises(InvalidInputError) as refusal:
        RunConfig.from_mapping({wrong: 1})
    assert repr(wrong) in refusal.value.message
    assert right in refusal.value.hint


@given(st.text().filter(lambda key: key not in DEFAULTS))
def test_no_unknown_key_gets_through(key):
    with pytest.raises(InvalidInputError, match="unknown setting"):
        RunConfig.from_mapping({key: 1})


numbers = [item for item in settings_with_rules() if rule_of(item).kind in (int, float)]


@pytest.mark.parametrize("item", numbers, ids=lambda item: item.name)
def test_every_number_is_refused_just_outside_its_range_and_in_the_wrong_type(item):
    rule, key = rule_of(item), to_kebab(item.name)
    step = 1 if rule.kind is int else 1e-9
    wrong = ["1", True, None, [1], float("nan"), float("inf")]
    wrong += [] if rule.minimum is None else [rule.kind(rule.minimum - step), -float("inf")]
    wrong += [] if rule.maximum is None else [rule.kind(rule.maximum * (1 + 1e-9) + step)]
    wrong += [] if rule.below is None else [rule.below]
    for value in wrong:
        with pytest.raises(InvalidInputError) as refusal:
            RunConfig.from_mapping({key: value})
        assert key in str(refusal.value)


@pytest.mark.parametrize("item", settings_with_rules(), ids=lambda item: item.name)
def test_every_setting_is_described(item):
    rows = {key: (default, allowed, meaning) for key, default, allowed, meaning in describe_settings()}
    default, allowed, meaning = rows[to_kebab(item.name)]
    assert allowed
    assert meaning
    assert default


def test_a_whole_number_will_do_for_a_number_but_not_the_other_way_round():
    config = RunConfig.from_mapping({"learning-rate": 1})
    assert (config.learning_rate, type(config.learning_rate)) == (1.0, float)
    with pytest.raises(InvalidInputError):
        RunConfig.from_mapping({"local-epochs": 1.0})


@pytest.mark.parametrize(
    "settings",
    [
        {"num-private": 5},
        {"strategy": "fedprox"},
        {"proximal-mu": 0.1},
        {"strategy": "trimmed-mean"},
        {"strategy": "krum"},
        {"run-directory": "here"},
        {"run-name": "../up"},
        {"run-name": ""},
        {"model": "a b"},
        {"class-names": "benign"},
        {"class-names": '["a", "a"]'},
        {"class-names": "[" * 100_000},
        {"class-names": [1]},
        {"image-shape": [3, 32]},
        {"image-shape": [3, 0, 32]},
        {"image-shape": [True, 2, 2]},
        {"encoding-mode": "encrypt"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_makes_no_sense_is_refused_with_a_hint(settings):
    with pytest.raises(InvalidInputError) as refusal:
        RunConfig.from_mapping(settings)
    assert refusal.value.hint
    assert len(str(refusal.value)) < 500


def test_the_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().learning_rate = 1.0  # type: ignore[misc]


def test_the_hash_changes_with_what_decides_the_weights_and_with_nothing_else():
    base = RunConfig().config_hash()
    assert RunConfig(run_directory="/tmp", round_deadline=5.0, resume=True).config_hash() == base
    assert RunConfig(num_server_rounds=50).config_hash() == base
    for changed in (
        {"learning_rate": 0.2},
        {"strategy": "median"},
        {"num_mixed": 6},
        {"max_update_norm": 1.0},
    ):
        assert RunConfig(**changed).config_hash() != base
    # a schedule over the rounds depends on how many there are
    cosine = RunConfig(lr_schedule="cosine")
    assert dataclasses.replace(cosine, num_server_rounds=50).config_hash() != cosine.config_hash()


def test_what_sites_are_told_holds_no_coordinator_setting():
    told = {to_kebab(item.name) for item in dataclasses.fields(TrainingSettings)}
    assert told.isdisjoint({"run-directory", "audit-folder", "round-deadline", "strategy", "over-norm"})


def test_the_flower_app_table_of_the_project_file_holds_known_keys_with_our_defaults():
    project = Path(__file__).parents[2] / "pyproject.toml"
    table = tomllib.loads(project.read_text())["tool"]["flwr"]["app"]["config"]
    flat = RunConfig().to_run_config()
    assert table.items() <= flat.items()


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean"])
def test_hiding_single_updates_and_judging_them_exclude_each_other_and_the_hint_says_what_to_choose(
    strategy: str,
) -> None:
    with pytest.raises(InvalidInputError, match="hides single updates") as caught:
        RunConfig(strategy=strategy, secure_aggregation=True, minimum_sites=3)
    assert "fedavg" in caught.value.hint
    assert "secure-aggregation false" in caught.value.hint
    RunConfig(strategy="fedadam", secure_aggregation=True)
    RunConfig(strategy=strategy, minimum_sites=3)


def test_the_mode_with_a_guarantee_is_for_files_and_the_error_names_what_serves_here():
    with pytest.raises(InvalidInputError) as caught:
        RunConfig(encoding_mode="dp")
    assert "instahide encode" in caught.value.hint
    assert "differential-privacy" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"encoding": "instahide"}, "one image is in several encodings"),
        ({"encoding": "none", "model": "resnet18"}, "resnet18"),
        ({"encoding": "none", "strategy": "fedprox", "proximal_mu": 0.1}, "FedProx"),
    ],
)
def test_example_level_privacy_is_refused_where_it_would_not_hold(settings, said):
    with pytest.raises(InvalidInputError, match=said) as caught:
        RunConfig(differential_privacy="example", **settings)
    assert caught.value.hint


@pytest.mark.parametrize("unit", ["none", "client"])
def test_a_target_epsilon_that_nobody_would_keep_is_refused(unit):
    clip = {"max_update_norm": 1.0, "over_norm": "clip"}
    with pytest.raises(InvalidInputError, match="target-epsilon"):
        RunConfig(differential_privacy=unit, target_epsilon=3.0, **clip)


@pytest.mark.slow
def test_the_models_named_for_example_level_privacy_are_those_that_can_be_trained():
    """Opacus is asked: one step on two images of every model there is."""
    from instahide.dp_training import train_with_dp
    from instahide.images import ImageSet
    from instahide.models import MODEL_NAMES, build_model
    from instahide.training_config import TrainingConfig

    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (2, 8, 8), dtype=np.uint8), np.array([0, 1]))
    config = TrainingConfig(epochs=1, batch_size=2, device="cpu", num_threads=1)
    trained = set()
    for name in MODEL_NAMES:
        model = build_model(name, image_shape=(1, 8, 8), num_classes=2)
        try:
            train_with_dp(model, images, config, target_delta=1e-5, noise_multiplier=1.0)
            trained.add(name)
        except InvalidInputError:
            pass
    assert trained == set(PER_EXAMPLE_MODELS)
