"""A study folder: made once, hospitals that agree, runs that start from a written state."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from federation.coordinator.sites import SiteBook
from federation.identity import load_or_create_identity
from federation.joining import JoinRequest
from federation.provisioning import create_node_key
from federation.study import (
    Study,
    admit,
    check_admissible,
    create_study,
    load_run,
    load_study,
    prepare_run,
    run_config,
    run_is_served,
)
from instahide.errors import IntegrityError, InvalidInputError, RefusedError


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return create_study(tmp_path / "study", names=("fl.example.org", "10.0.0.5"), listen="0.0.0.0", port=9443)


def request_of(name: str, folder: Path, **changes: Any) -> JoinRequest:
    """A hospital's request with a key of its own, kept under its name in ``folder``."""
    public = folder / name / "node.pub"
    if not public.exists():
        create_node_key(folder / name)
    values: dict[str, Any] = {
        "name": name,
        "public_key": public.read_text().strip(),
        "identity_key": load_or_create_identity(folder / name / "identity.key").public_line,
        "num_examples": 100,
        "evaluate_num_examples": 20,
        "class_names": ("benign", "malignant"),
        "image_shape": (1, 8, 8),
    }
    return JoinRequest(**(values | changes))


@pytest.fixture
def admitted(study: Study, tmp_path: Path) -> Study:
    admit(study, request_of("st-mary", tmp_path), 11)
    admit(study, request_of("northside", tmp_path, num_examples=50), 22)
    return study


def test_a_study_is_read_back_and_its_secrets_are_private(study: Study) -> None:
    assert load_study(study.path) == study
    assert study.address == "fl.example.org:9443"
    assert study.path.stat().st_mode & 0o077 == 0
    for name in ("authority.key", "gateway.key", "superlink.key", "superexec.secret", "study.toml"):
        assert (study.path / name).stat().st_mode & 0o077 == 0, name


def test_an_address_with_colons_is_bracketed(tmp_path: Path) -> None:
    made = create_study(tmp_path / "study", names=("2001:db8::1",), listen="::", port=443)
    assert made.address == "[2001:db8::1]:443"


def test_a_second_init_is_refused_and_changes_nothing(study: Study) -> None:
    before = {path: path.read_bytes() for path in study.path.iterdir() if path.is_file()}
    with pytest.raises(RefusedError, match="already holds a study"):
        create_study(study.path, names=("other.example.org",), listen="0.0.0.0", port=1)
    assert {path: path.read_bytes() for path in study.path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("names", "port"),
    [((), 9443), (("https://fl",), 9443), (("ok", "a b"), 9443), (("ok",), 0), (("ok",), 70_000)],
)
def test_wrong_input_leaves_nothing_behind(tmp_path: Path, names: tuple[str, ...], port: int) -> None:
    with pytest.raises(InvalidInputError):
        create_study(tmp_path / "study", names=names, listen="0.0.0.0", port=port)
    assert not (tmp_path / "study").exists()
    create_study(tmp_path / "study", names=("ok",), listen="0.0.0.0", port=9443)


def test_another_folder_is_not_a_study(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not a study folder"):
        load_study(tmp_path)
    (tmp_path / "study.toml").write_text("names = 5")
    with pytest.raises(InvalidInputError, match=r"study\.toml"):
        load_study(tmp_path)


def test_a_hospital_is_written_down_and_answered(study: Study, tmp_path: Path) -> None:
    request = request_of("st-mary", tmp_path)
    answer = admit(study, request, 7)
    assert (answer.name, answer.coordinator, answer.fingerprint) == (
        "st-mary",
        "fl.example.org:9443",
        request.fingerprint,
    )
    assert answer.authority == (study.path / "authority.crt").read_text()
    [site] = study.sites()
    assert (site.node_id, site.name, site.class_names) == (7, "st-mary", ("benign", "malignant"))


def test_a_hospital_that_asks_again_replaces_its_own_line(admitted: Study, tmp_path: Path) -> None:
    admit(admitted, request_of("st-mary", tmp_path, num_examples=300), 11)
    assert {site.name: site.num_examples for site in admitted.sites()} == {"st-mary": 300, "northside": 50}


def test_a_run_with_secure_aggregation_takes_its_roster_from_the_admitted_sites(
    admitted: Study, tmp_path: Path
) -> None:
    config = run_config(admitted, {"run-name": "hidden", "secure-aggregation": True})
    assert [entry.split(" ")[:2] for entry in config.roster] == [
        ["st-mary", "ssh-ed25519"],
        ["northside", "ssh-ed25519"],
    ]
    assert config.roster[0].endswith(admitted.sites()[0].identity_key)
    assert config.max_site_examples == 100  # the larger of 100 and 50, rounded up
    admit(admitted, request_of("west", tmp_path, num_examples=213), 33)
    assert run_config(admitted, {"secure-aggregation": True}).max_site_examples == 500
    assert run_config(admitted, {}).roster == ()


def test_a_threshold_that_two_groups_could_reach_is_refused_before_the_run(
    admitted: Study, tmp_path: Path
) -> None:
    for node, name in ((33, "west"), (44, "east")):
        admit(admitted, request_of(name, tmp_path), node)
    with pytest.raises(InvalidInputError, match="no majority"):
        run_config(admitted, {"secure-aggregation": True, "reconstruction-threshold": 2})


def test_a_name_that_belongs_to_another_key_is_refused(admitted: Study, tmp_path: Path) -> None:
    impostor = request_of("st-mary", tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="already admitted with another key"):
        check_admissible(admitted, impostor)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class_names": ("malignant", "benign")}, "has classes"),
        ({"class_names": ("benign",)}, "has classes"),
        ({"image_shape": (3, 8, 8)}, "has images of"),
    ],
)
def test_sites_that_disagree_are_refused_by_name(
    admitted: Study, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RefusedError, match=f"riverside {reason}.*st-mary"):
        admit(admitted, request_of("riverside", tmp_path, **changes), 33)
    with pytest.raises(RefusedError, match=reason):  # nor may one that is in change its mind
        admit(admitted, request_of("northside", tmp_path, **changes), 22)
    assert [site.name for site in admitted.sites()] == ["st-mary", "northside"]


def test_damaged_sites_are_named(admitted: Study) -> None:
    (admitted.path / "sites.json").write_text('[{"name": "st-mary"}]')
    with pytest.raises(IntegrityError, match=r"sites\.json is damaged"):
        admitted.sites()


def test_a_run_starts_with_its_sites_its_weights_and_its_settings(admitted: Study) -> None:
    config = prepare_run(admitted, {"run-name": "trial-1", "num-server-rounds": 5, "model": "mlp"})
    folder = admitted.run_folder("trial-1")
    assert config.run_directory == str(folder)
    assert (config.class_names, config.image_shape) == (("benign", "malignant"), (1, 8, 8))
    book = SiteBook.read(folder / "sites.json")
    assert {node: (site.name, site.num_examples) for node, site in book.sites.items()} == {
        11: ("st-mary", 100),
        22: ("northside", 50),
    }
    weights = load_file(folder / "initial.safetensors")
    assert weights
    assert all(array.dtype == np.float32 for array in weights.values())
    assert load_run(admitted, "trial-1") == config


def test_the_initial_weights_follow_from_the_public_seed(admitted: Study) -> None:
    seeds = {"a": 1, "b": 1, "c": 2}
    for name, seed in seeds.items():
        prepare_run(admitted, {"run-name": name, "model": "mlp", "initialization-seed": seed})
    files = {name: (admitted.run_folder(name) / "initial.safetensors").read_bytes() for name in seeds}
    assert files["a"] == files["b"] != files["c"]


def test_a_run_that_exists_is_refused(admitted: Study) -> None:
    prepare_run(admitted, {"run-name": "trial-1", "model": "mlp"})
    with pytest.raises(RefusedError, match="there is a run called 'trial-1' already") as refusal:
        prepare_run(admitted, {"run-name": "trial-1", "model": "mlp"})
    assert "resume" in refusal.value.hint


@pytest.mark.parametrize(
    "settings",
    [{"model": "no-such-model"}, {"num-server-rounds": 0}, {"lerning-rate": 0.1}, {"run-name": "../outside"}],
)
def test_a_run_with_wrong_settings_does_not_take_the_name(admitted: Study, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        prepare_run(admitted, {"run-name": "trial-1"} | settings)
    assert admitted.run_names() == []
    assert not (admitted.path / "outside").exists()
    prepare_run(admitted, {"run-name": "trial-1", "model": "mlp"})


def test_a_run_needs_a_hospital(study: Study) -> None:
    with pytest.raises(InvalidInputError, match="no hospital is admitted yet"):
        prepare_run(study, {"run-name": "trial-1"})


def test_runs_are_listed_oldest_first_whatever_is_written_to_them_later(admitted: Study) -> None:
    for name in ("zebra", "ant"):
        prepare_run(admitted, {"run-name": name, "model": "mlp"})
        time.sleep(0.01)
    (admitted.run_folder("zebra") / "events.jsonl").write_text("{}\n")
    assert admitted.run_names() == ["zebra", "ant"]


def test_an_unknown_run_is_refused_with_those_there_are(admitted: Study) -> None:
    prepare_run(admitted, {"run-name": "trial-1", "model": "mlp"})
    for name in ("trial-2", "../trial-1", ""):
        with pytest.raises(InvalidInputError, match="there is no run called") as refusal:
            load_run(admitted, name)
        assert refusal.value.hint == "runs: trial-1"


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 5}'])
def test_a_damaged_run_is_named(admitted: Study, text: str) -> None:
    prepare_run(admitted, {"run-name": "trial-1", "model": "mlp"})
    (admitted.run_folder("trial-1") / "run.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"run\.json is damaged"):
        load_run(admitted, "trial-1")


def test_a_study_that_was_moved_still_knows_its_runs(admitted: Study, tmp_path: Path) -> None:
    prepare_run(admitted, {"run-name": "trial-1", "model": "mlp"})
    admitted.path.rename(tmp_path / "moved")
    config = load_run(load_study(tmp_path / "moved"), "trial-1")
    assert config.run_directory == str(tmp_path / "moved" / "runs" / "trial-1")


def test_a_run_is_served_while_the_process_in_its_lock_lives(tmp_path: Path) -> None:
    assert not run_is_served(tmp_path)
    (tmp_path / ".lock").write_text(str(os.getpid()))
    assert run_is_served(tmp_path)
    (tmp_path / ".lock").write_text(json.dumps("nobody"))
    assert not run_is_served(tmp_path)


def test_a_preparation_that_was_killed_leaves_the_name_free(admitted: Study) -> None:
    folder = admitted.run_folder("trial")
    folder.mkdir(parents=True)
    for name in ("initial.safetensors", ".run.json.x1y2.partial", ".tmpAbC123"):
        (folder / name).write_bytes(b"half")
    assert prepare_run(admitted, {"run-name": "trial", "model": "mlp"}).run_name == "trial"
    assert sorted(path.name for path in folder.iterdir()) == ["initial.safetensors", "run.json", "sites.json"]
    other = admitted.run_folder("notes")
    other.mkdir()
    (other / "thoughts.txt").write_text("not a run")
    with pytest.raises(RefusedError, match="there is a run called 'notes' already"):
        prepare_run(admitted, {"run-name": "notes", "model": "mlp"})
