"""The comparison of defences: the split, the training under each, the questions, the table and its page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.frontier import model_leaks
from instahide.attacks.frontier.data import FrontierData, split_for_frontier
from instahide.attacks.frontier.defences import DEFENCES, Defence
from instahide.attacks.frontier.leaks import Leak, exposure, membership_of_encodings
from instahide.attacks.frontier.model_leaks import membership_of_model, update_inversion
from instahide.attacks.frontier.page import render
from instahide.attacks.frontier.table import FrontierRow, run_frontier
from instahide.attacks.frontier.training import train_under
from instahide.errors import IntegrityError, InvalidInputError
from instahide.images import ImageSet
from instahide.training_config import TrainingConfig

# Secrets are fresh in every run: a test here may be repeated, and fails if it fails three times.
pytestmark = pytest.mark.statistical

CONFIG = TrainingConfig(epochs=3, deterministic=True, num_threads=1)
ROW = {item.name: item for item in DEFENCES}


def blotches(count: int, *, seed: int, side: int = 12) -> ImageSet:
    """Smooth random pictures; the class is which half is brighter."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, side + 4, side + 4))
    smooth = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    labels = np.arange(count) % 2
    smooth[:, : side // 2] += np.where(labels, 0.2, -0.2)[:, None, None]
    return ImageSet((128 + 200 * smooth).clip(0, 255).astype(np.uint8), labels)


@pytest.fixture(scope="module")
def data() -> FrontierData:
    return split_for_frontier(blotches(300, seed=0), ImageSet(blotches(200, seed=9).images))


def test_the_parts_do_not_overlap(data: FrontierData) -> None:
    parts = [data.members, data.others, data.similar, data.test]
    seen = [image.tobytes() for part in parts for image in part.images]
    assert [len(part) for part in parts] == [120, 60, 60, 60]
    assert len(set(seen)) == 300


def test_too_few_images_and_a_pool_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="100 images are too few"):
        split_for_frontier(blotches(100, seed=0), ImageSet(blotches(60, seed=1).images))
    with pytest.raises(InvalidInputError, match="the pool is"):
        split_for_frontier(blotches(200, seed=0), ImageSet(blotches(60, seed=1, side=8).images))
    with pytest.raises(InvalidInputError, match="labels of two classes"):
        split_for_frontier(ImageSet(blotches(200, seed=0).images), ImageSet(blotches(60, seed=1).images))


def test_names_are_unique_and_only_noise_has_an_epsilon(data: FrontierData) -> None:
    assert len(ROW) == len(DEFENCES)
    names = ("plain", "InstaHide inside k=4", "DP-SGD, noise 1", "DP-InstaHide, noise 4")
    plain, encoded, private, noisy = (
        train_under(ROW[name], data, replace(CONFIG, epochs=1)) for name in names
    )
    assert plain.epsilon is None
    assert encoded.epsilon is None
    assert private.epsilon is not None
    assert noisy.epsilon is not None
    assert 0 < private.epsilon < math.inf
    assert plain.report.encoded_once is None
    assert encoded.report.encoded_average is not None


@pytest.mark.parametrize("name", ["plain", "update pruning 90%"])
def test_every_way_of_training_learns(name: str, data: FrontierData) -> None:
    trained = train_under(ROW[name], data, replace(CONFIG, epochs=12))
    # 60 test images: 0.5 by guessing, standard deviation 0.065; 0.75 is nearly four of them.
    assert trained.report.plain.accuracy > 0.75


def test_encodings_are_asked_about_only_where_they_leave(data: FrontierData) -> None:
    hidden = ROW["hardened k=4, secure aggregation"]
    assert membership_of_encodings(hidden, train_under(hidden, data, CONFIG), data) is None
    bare = Defence(
        name="k=1", words="", encoding=replace(ROW["mixup k=4"].encoding, num_mixed=1, num_private=1)
    )  # type: ignore[type-var]
    leak = membership_of_encodings(bare, train_under(bare, data, CONFIG), data)
    assert leak is not None
    assert leak.value > 0.95


def test_one_update_gives_a_plain_image_back_and_dp_noise_prevents_it(
    data: FrontierData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_leaks, "NUM_UPDATES", 2)
    plain, private = ROW["plain"], ROW["DP-SGD, noise 1"]
    clear = update_inversion(plain, train_under(plain, data, CONFIG), data)
    noisy = update_inversion(private, train_under(private, data, CONFIG), data)
    assert clear.value > 0.99
    assert noisy.value < 0.3


def test_model_membership_is_measured_with_shadow_models_or_a_threshold(
    data: FrontierData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_leaks, "NUM_SHADOWS", 4)
    plain, pruned = ROW["plain"], ROW["update pruning 99%"]
    assert "threshold" not in membership_of_model(plain, train_under(plain, data, CONFIG), data).attack
    assert "threshold" in membership_of_model(pruned, train_under(pruned, data, CONFIG), data).attack


def row(name: str, value: float) -> FrontierRow:
    leak = Leak("AUC", value, (value - 0.1, value + 0.1), 0.5, "x", 1.0)
    accuracy = {"plain": 0.9, "one_view": None, "ten_views": None}
    return FrontierRow(name, "words", accuracy, (0.8, 1.0), None, {"model": leak, "update": None})


def test_exposures_are_counted_from_chance() -> None:
    assert exposure(None) == 0
    assert exposure(Leak("AUC", 0.75, None, 0.5, "", 0.0)) == pytest.approx(0.5)
    assert exposure(Leak("AUC", 0.4, None, 0.5, "", 0.0)) == 0
    assert row("a", 0.8).worst == pytest.approx(0.6)


def test_measured_rows_are_kept_and_not_measured_again(
    tmp_path: Path, data: FrontierData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measured(defence: Defence, *_: object) -> FrontierRow:
        asked.append(defence.name)
        if defence.name == "secure aggregation":
            raise KeyboardInterrupt
        return row(defence.name, 0.7)

    monkeypatch.setattr("instahide.attacks.frontier.table.measure", measured)
    chosen = [ROW["plain"], ROW["secure aggregation"]]
    with pytest.raises(KeyboardInterrupt):
        run_frontier(data, chosen, CONFIG, tmp_path / "f.json", fingerprint={"seed": 0})
    assert json.loads((tmp_path / "f.json").read_text())["rows"][0]["name"] == "plain"
    rows = run_frontier(data, chosen[:1], CONFIG, tmp_path / "f.json", fingerprint={"seed": 0})
    assert asked == ["plain", "secure aggregation"]
    assert rows == [row("plain", 0.7)]
    with pytest.raises(InvalidInputError, match="other data or settings"):
        run_frontier(data, chosen, CONFIG, tmp_path / "f.json", fingerprint={"seed": 1})
    (tmp_path / "f.json").write_text("{}")
    with pytest.raises(IntegrityError, match="is not a frontier"):
        run_frontier(data, chosen, CONFIG, tmp_path / "f.json", fingerprint={"seed": 0})


def test_the_page_says_what_does_not_leave_and_gives_no_epsilon_to_instahide() -> None:
    page = render([row("plain", 0.8), row("InstaHide inside k=4", 0.6)], "made up")
    assert "0.80 (0.70 to 0.90), chance 0.50" in page
    assert page.count(">none<") == 2
    assert "lower bound" in page
    assert "<svg" in page
