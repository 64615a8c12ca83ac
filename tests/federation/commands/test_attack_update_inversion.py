"""``instahide attack run update-inversion``: captured files, and rounds of our own federation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save_file

from federation import cli
from federation.config import RunConfig
from federation.coordinator.rounds import run as run_rounds
from federation.messages import RoundRequest, SiteReply
from federation.privacy_ledger import PrivacyLedger
from federation.site.masked_rounds import MaskedRounds
from federation.site.plans import PlanBook
from federation.site.privacy_budget import SitePrivacy
from federation.site.round_task import SiteTasks
from federation.site.run_history import RunHistory
from instahide.attacks.update_inversion import (
    LocalTraining,
    build_network,
    observe,
    read_round_checkpoints,
    write_update,
)
from instahide.errors import InvalidInputError
from instahide.exposure import ExposureLedger
from instahide.mixing import to_unit_range

from ..coordinator.fakes import FakeClock, FakeGrid
from ..site.site_examples import CLASS_NAMES, UNASKED, digit_images, initial_weights, site_audit, site_data

SHAPE = (1, 8, 8)


def attack(*words: object) -> int:
    return cli.run(["attack", "run", "update-inversion", *map(str, words)])


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    digits = digit_images(0, 3)
    assert digits.labels is not None
    images, labels = to_unit_range(digits.images.copy()), torch.eye(10)[torch.from_numpy(digits.labels)]
    model = build_network("mlp", image_shape=SHAPE, num_classes=10)
    view = observe(model, images, labels, LocalTraining(num_images=3))
    write_update(view, tmp_path / "u.npz", {"name": "mlp", "image_shape": SHAPE, "num_classes": 10})
    np.savez(tmp_path / "truth.npz", images=digits.images, labels=digits.labels)
    return tmp_path


def test_a_captured_file_gives_its_images_back(captured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--update", captured / "u.npz", "--truth", captured / "truth.npz", "--out", captured / "out")
    assert attack(*words, "--format", "json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["leaked"] is True
    assert said["num_recovered"] == 3
    assert said["metrics"]["exact_share"] == 1.0
    assert said["checks"]["null"] == "nothing found in noise"
    with np.load(captured / "out/recovered.npz") as recovered:
        assert recovered["images"].shape == (3, *SHAPE)
        assert recovered["labels"].shape == (3, 10)
        assert recovered["verified"].all()
    assert (captured / "out/result.json").exists()


def test_a_leak_may_be_made_a_failure(captured: Path) -> None:
    assert attack("--update", captured / "u.npz", "--no-rehearse", "--fail-on-leak") == 3


def test_settings_make_encodings_and_one_gradient_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = digit_images(0, 90)
    np.savez(tmp_path / "digits.npz", x=digits.images, y=digits.labels)
    data = '[data]\nprivate = "digits.npz"\nnum-private-images = 30\n'
    (tmp_path / "law.toml").write_text(data)
    words = ("--settings", tmp_path / "law.toml", "--num-images", 2, "--no-rehearse", "--format", "json")
    assert attack(*words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["leaked"] is True
    assert said["metrics"]["exact_share"] == 1.0
    assert "absolute value" in said["verdict"]


def test_settings_with_trap_weights_measure_a_coordinator_that_crafts_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = digit_images(0, 400)
    np.savez(tmp_path / "digits.npz", x=digits.images, y=digits.labels)
    (tmp_path / "law.toml").write_text('[data]\nprivate = "digits.npz"\nnum-private-images = 40\n')
    words = ("--settings", tmp_path / "law.toml", "--num-images", 40, "--no-rehearse", "--format", "json")
    assert attack(*words, "--trap-weights", "units") == 0
    said = json.loads(capsys.readouterr().out)
    # 32 of 40 in theory (alone_in_theory); encodings of 64 values fire less evenly.
    assert said["metrics"]["exact_share"] > 0.2
    assert any("chose the weights sent" in line for line in said["assumptions"])


def test_trap_weights_are_for_settings_only(captured: Path) -> None:
    assert attack("--update", captured / "u.npz", "--trap-weights", "units") == 2


def test_wrong_words_are_refused(captured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attack() == 2
    assert attack("--update", captured / "u.npz", "--checkpoints", captured) == 2
    assert attack("--update", captured / "none.npz") == 2
    assert attack("--checkpoints", captured) == 2
    np.savez(captured / "other.npz", images=np.zeros((2, 8, 8), np.uint8))
    assert attack("--update", captured / "u.npz", "--truth", captured / "other.npz") == 2
    (captured / "cut.npz").write_bytes(b"PK\x03\x04")
    assert attack("--update", captured / "cut.npz") == 4
    assert "hint:" in capsys.readouterr().err


class Hospital:
    """The real site task behind the fake network; keeps the encodings it trained on, for scoring."""

    def __init__(self, folder: Path, first: int, count: int, policy: str) -> None:
        folder.mkdir()
        (folder / "policy.toml").write_text(UNASKED + policy)
        data = site_data(300, 60)
        self.data = type(data)(digit_images(first, first + count), data.test)
        self.tasks = SiteTasks(
            "north",
            self.data,
            ledger=ExposureLedger(folder / "ledger.sqlite3"),
            history=RunHistory(folder),
            plans=PlanBook(folder),
            audit=site_audit(folder),
            masked_rounds=MaskedRounds("north", Ed25519PrivateKey.generate),
            privacy=SitePrivacy(PrivacyLedger(folder / "privacy.sqlite3")),
            policy_path=folder / "policy.toml",
            encodings_folder=folder / "encodings",
            device="cpu",
            threads=1,
        )

    def answer(self, request: RoundRequest) -> SiteReply:
        return self.tasks.answer(request.kind, request.to_mapping(), request.arrays)


FEW = "minimum-examples = 1\nminimum-cohort-size = 1\n"  # the default of 50 is a defence of its own
LENIENT = FEW + "encoding-required = false\nminimum-num-mixed = 1\n"


def federate(folder: Path, hospitals: dict[int, Hospital], **settings: Any) -> None:
    """A whole run of the coordinator with the sites' own training, in this process."""
    folder.mkdir()
    save_file(initial_weights(), folder / "initial.safetensors")
    (folder / "sites.json").write_text(json.dumps({str(node): f"site {node}" for node in hospitals}))
    given: dict[str, Any] = {
        "model": "mlp",
        "class_names": tuple(CLASS_NAMES),
        "image_shape": SHAPE,
        "num_server_rounds": 2,
        "minimum_sites": len(hospitals),
        "settle_time": 0.0,
        "evaluate": False,
        "learning_rate": 0.02,
        "run_directory": str(folder),
        **settings,
    }
    clock = FakeClock()
    grid = FakeGrid(
        clock,
        behaviour=lambda node, request: hospitals[node].answer(request),
        online=dict.fromkeys(hospitals, "first"),
    )
    run_rounds(RunConfig(**given), grid, clock=clock)


def test_a_round_of_one_site_gives_its_images_back_from_the_checkpoints_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six images, two local epochs in batches of three, momentum, weight decay, clipping: a site's plan."""
    hospital = Hospital(tmp_path / "north", 0, 6, LENIENT)
    federate(tmp_path / "run", {11: hospital}, encoding="none", batch_size=3, local_epochs=2)
    view = read_round_checkpoints(tmp_path / "run", server_round=1)
    assert view.num_images == 6
    assert view.training.num_steps == 4
    training = hospital.data.training
    np.savez(tmp_path / "truth.npz", images=training.images, labels=training.labels)
    words = ("--checkpoints", tmp_path / "run", "--round", 1, "--truth", tmp_path / "truth.npz")
    assert attack(*words, "--no-rehearse", "--format", "json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["leaked"] is True
    assert said["metrics"]["exact_share"] >= 5 / 6
    assert said["metrics"]["mean_ssim"] > 0.8


def test_two_sites_of_one_size_are_read_as_a_secure_aggregate(tmp_path: Path) -> None:
    hospitals = {node: Hospital(tmp_path / f"{node}", 10 * node, 4, LENIENT) for node in (11, 12)}
    federate(tmp_path / "run", hospitals, encoding="none", batch_size=4)
    view = read_round_checkpoints(tmp_path / "run")
    assert view.defence.num_sites == 2
    assert view.num_images == 8
    assert view.site_plan.num_images == 4


def test_what_cannot_be_read_from_checkpoints_is_said(tmp_path: Path) -> None:
    hospitals = {11: Hospital(tmp_path / "a", 0, 4, LENIENT), 12: Hospital(tmp_path / "b", 9, 6, LENIENT)}
    federate(tmp_path / "run", hospitals, encoding="none")
    with pytest.raises(InvalidInputError, match=r"2 sites with \[4, 6\] images"):
        read_round_checkpoints(tmp_path / "run")
    with pytest.raises(InvalidInputError, match="no checkpoints of round 6"):
        read_round_checkpoints(tmp_path / "run", server_round=7)
    one = {11: Hospital(tmp_path / "c", 0, 4, LENIENT)}
    federate(tmp_path / "adam", one, encoding="none", strategy="fedadam")
    with pytest.raises(InvalidInputError, match="strategy is fedadam"):
        read_round_checkpoints(tmp_path / "adam")


@pytest.mark.statistical
def test_encodings_come_out_of_a_round_of_a_site_that_encodes(tmp_path: Path) -> None:
    """InstaHide at the site: what the update gives back are the encodings.

    Most to rounding (mean square 1e-6, a fifth of what 8 bits round); with two passes over the images
    one may be less exact: at most 1.1e-3 in 17 runs.
    """
    from instahide.attacks.update_inversion import invert
    from instahide.storage import load_encoded

    hospital = Hospital(tmp_path / "north", 0, 6, FEW)
    federate(tmp_path / "run", {11: hospital}, batch_size=6, local_epochs=2)
    found = invert(read_round_checkpoints(tmp_path / "run", server_round=1))
    kept = next(path.parent for path in (tmp_path / "north/encodings").rglob("manifest.json"))
    encodings = load_encoded(kept).images
    assert found.verified.sum() >= 5
    recovered = found.images[found.verified]
    nearest = (recovered[:, None] - encodings[None]).square().flatten(2).mean(-1).amin(1)
    assert int((nearest < 1e-6).sum()) >= 4
    assert float(nearest.max()) < 0.01
