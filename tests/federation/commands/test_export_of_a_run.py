"""``instahide export`` of a federated run: what it is held against, and what its card says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.audit_log import AuditLog
from federation.config import RunConfig
from federation.exported_privacy import privacy_of_encodings, privacy_of_run
from federation.identity import load_or_create_identity
from federation.simulation import simulate
from federation.site.dataset import SiteData
from instahide.encoder_config import EncoderConfig
from instahide.images import ImageSet
from instahide.models import build_model

from .test_export import export, flip, stripes

pytest.importorskip("onnxruntime")


def site(count: int, seed: int) -> SiteData:
    pixels, labels = stripes(count, seed)
    images = ImageSet(pixels[:, :4, :4], labels, ("well", "ill"))
    return SiteData(images, images.subset(np.arange(6)))


RUN = RunConfig(
    run_name="trial", model="mlp", encoding="none", num_server_rounds=2, local_epochs=1, minimum_sites=2
)


def federated(folder: Path, config: RunConfig = RUN) -> Path:
    """A finished run where a study keeps its own: STUDY/runs/NAME."""
    simulate(config, {"north": site(20, 1), "south": site(40, 2)}, folder / "simulated")
    (folder / "study" / "runs").mkdir(parents=True)
    return (folder / "simulated" / "coordinator").rename(folder / "study" / "runs" / "trial")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federated(tmp_path_factory.mktemp("federated"))


def test_a_federated_model_and_what_the_hospitals_told(run: Path, tmp_path: Path) -> None:
    assert export(run, "--out", tmp_path / "model", "--to", "safetensors,torch-export") == 0
    card = json.loads((tmp_path / "model" / "model_card.json").read_text())
    assert card["data"]["sites"] == [
        {"name": "north", "training-images": 20, "rounds": 2},
        {"name": "south", "training-images": 40, "rounds": 2},
    ]
    assert card["model"]["class_names"] == ["well", "ill"]
    assert card["settings"]["learning-rate"] == 0.05
    assert card["settings"].keys() & {"run-directory", "audit-folder", "roster"} == set()
    assert "saw each hospital's update in the clear" in (tmp_path / "model" / "model_card.md").read_text()
    last = json.loads((run / "metrics.json").read_text())["rounds"][-1]
    plain = card["accuracy"]["modes"]["plain query"]
    assert plain["accuracy"] == last["evaluate-accuracy-plain"]
    assert plain["num-images"] == 12
    program = torch.export.load(tmp_path / "model" / "model.pt2").module()
    test = site(20, 1).test
    right = (program(torch.from_numpy(test.images))[1].argmax(1).numpy() == test.labels).mean()
    north = last["by-site"]["north"]["evaluate-accuracy-plain"]
    assert right == pytest.approx(north)


def test_a_model_edited_after_the_run_is_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(run.parents[1], tmp_path / "study") / "runs" / "trial"
    flip(copy / "model.safetensors")
    assert export(copy, "--out", tmp_path / "out", "--to", "safetensors") == 4
    assert "is not the model the run ended with" in capsys.readouterr().err


def test_the_audit_log_names_plan_and_model(run: Path, tmp_path: Path, capsys: Any) -> None:
    study = shutil.copytree(run.parents[1], tmp_path / "study")
    finished = json.loads((study / "runs/trial/events.jsonl").read_text().splitlines()[-1])
    log = AuditLog(
        study / "audit.jsonl", load_or_create_identity(study / "identity.key"), role="coordinator", name="c"
    )
    log.append("run-submitted", run="trial", plan_sha256="ab" * 32, bundle_sha256="cd" * 32)
    log.append("run-finished", run="trial", rounds=2, model_sha256=finished["model-sha256"])
    log.append("run-finished", run="another", rounds=2, model_sha256="00" * 32)
    assert export(study / "runs/trial", "--out", tmp_path / "a", "--to", "safetensors") == 0
    assert json.loads((tmp_path / "a/model_card.json").read_text())["plan-sha256"] == "ab" * 32
    log.append("run-finished", run="trial", rounds=2, model_sha256="00" * 32)
    assert export(study / "runs/trial", "--out", tmp_path / "b", "--to", "safetensors") == 4
    assert "audit log" in capsys.readouterr().err


def test_an_accuracy_made_better_by_hand_is_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    copy = shutil.copytree(run, tmp_path / "trial")
    table = json.loads((copy / "metrics.json").read_text())
    table["rounds"][-1]["evaluate-accuracy-plain"] = 0.999
    (copy / "metrics.json").write_text(json.dumps(table))
    assert export(copy, "--out", tmp_path / "out", "--to", "safetensors") == 4
    assert "metrics.json is damaged or was edited" in capsys.readouterr().err


@pytest.mark.parametrize("cut", ["unfinished", "not JSON"])
def test_a_run_without_a_whole_end_is_no_model(run: Path, tmp_path: Path, cut: str) -> None:
    copy = shutil.copytree(run, tmp_path / "trial")
    lines = (copy / "events.jsonl").read_text().splitlines(keepends=True)
    lines = lines[:-1] if cut == "unfinished" else [*lines, "{]\n"]
    (copy / "events.jsonl").write_text("".join(lines))
    assert export(copy, "--out", tmp_path / "out") == (2 if cut == "unfinished" else 4)


def test_privacy_of_whole_sites_is_that_of_an_independent_accountant(tmp_path: Path) -> None:
    values = {"differential-privacy": "client", "max-update-norm": 1.0, "over-norm": "clip"}
    config = RunConfig.from_mapping(RUN.to_mapping() | values | {"noise-multiplier": 3.0})
    folder = federated(tmp_path, config)
    assert export(folder, "--out", tmp_path / "model", "--to", "safetensors") == 0
    privacy = json.loads((tmp_path / "model" / "model_card.json").read_text())["differential-privacy"]
    # Two Gaussian releases at z = 3 are one at z = 3/√2 (sensitivities add in squares).
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = np.sqrt(2) / 3.0

    def delta(epsilon: float) -> float:  # Balle and Wang 2018, theorem 8
        return norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    exact = brentq(lambda epsilon: delta(epsilon) - 1e-5, 0, 20)
    assert exact <= privacy["epsilon"] <= exact * 1.02
    assert (privacy["delta"], privacy["unit"][:18]) == (1e-5, "one whole hospital")
    (folder / "privacy.sqlite3").unlink()
    assert export(folder, "--out", tmp_path / "again", "--to", "safetensors") == 4


def test_privacy_of_images_is_each_hospitals_own_and_silence_is_called_so(tmp_path: Path) -> None:
    config = RunConfig.from_mapping(RUN.to_mapping() | {"differential-privacy": "example"})
    rows = [{"round": 1, "by-site": {"north": {"epsilon-spent": 1.5}, "south": {}}}]
    model = build_model("mlp", image_shape=(1, 4, 4), num_classes=2)
    found = privacy_of_run(config, tmp_path, rows, model)
    assert found is not None
    assert found["sites"] == {"north": 1.5, "south": "not told"}
    assert privacy_of_run(RUN, tmp_path, rows, model) is None


def test_only_noise_in_encodings_has_an_epsilon() -> None:
    law = EncoderConfig(num_mixed=4, num_private=4, mode="hardened").to_dict()
    assert privacy_of_encodings(law, {"scheme": "inside"}, (1, 8, 8), 2) is None
    noisy = EncoderConfig(
        num_mixed=2,
        num_private=2,
        mode="dp",
        coefficient_law="equal",
        noise_law="gaussian",
        noise_scale=20.0,
        label_noise_scale=20.0,
    ).to_dict()
    once = privacy_of_encodings(noisy, {"scheme": "inside", "epochs_released": 1}, (1, 8, 8), 2)
    twice = privacy_of_encodings(noisy, {"scheme": "inside", "epochs_released": 2}, (1, 8, 8), 2)
    assert once is not None
    assert twice is not None
    assert 0 < once["epsilon"] < twice["epsilon"]


def test_numbers_behind_secure_aggregation_are_nobodys(run: Path) -> None:
    from federation.exported_run import _sites

    values = {"secure-aggregation": True, "roster": ["north a", "south b"]}
    config = RunConfig.from_mapping(RUN.to_mapping() | values)
    rows = [{"round": 1, "by-site": {"all sites": {"num-examples": 60}}}]
    found = _sites({"sites": ["north", "south"]}, rows, config)
    assert [(entry["name"], entry["training-images"]) for entry in found["sites"]] == [
        ("all sites", 60),
        ("north", None),
        ("south", None),
    ]
    assert "no hospital's own number" in found["note"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["metrics.json", "events.jsonl", "model.safetensors"]),
    place=st.integers(0, 10**6),
    piece=st.sampled_from(["", "0", '"', "-1e999", "null", "[", "NaN", "{}"]),
    length=st.integers(0, 12),
)
def test_records_edited_by_hand_are_used_or_refused_and_nothing_else(
    run: Path, tmp_path: Path, name: str, place: int, piece: str, length: int
) -> None:
    copy = tmp_path / "trial"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    shutil.copytree(run, copy)
    data = (copy / name).read_bytes()
    start = place % len(data)
    (copy / name).write_bytes(data[:start] + piece.encode() + data[start + length :])
    code = export(copy, "--out", tmp_path / "out", "--to", "safetensors")
    assert code in (0, 2, 4)
    assert (tmp_path / "out").exists() == (code == 0)
