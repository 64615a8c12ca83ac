"""The comparison of defences: the split, the training under each, the questions, the table and its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from instahide.attacks.frontier import model_leaks
from instahide.attacks.frontier.client_level import ClientLevelPlan, CoordinatorNoise
from instahide.attacks.frontier.data import FrontierData, split_for_frontier
from instahide.attacks.frontier.defences import APPROACHES, DEFENCES, Defence
from instahide.attacks.frontier.leaks import Leak, exposure, membership_of_encodings
from instahide.attacks.frontier.model_leaks import membership_of_model, update_inversion
from instahide.attacks.frontier.page import render
from instahide.attacks.frontier.table import FrontierRow, run_frontier
from instahide.attacks.frontier.training import TARGET_DELTA, TrainedDefence, fitted, train_under
from instahide.encoding_guarantee import guarantee_of_encodings
from instahide.errors import IntegrityError, InvalidInputError
from instahide.images import ImageSet
from instahide.privacy_curves import gaussian_epsilon
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


@pytest.fixture(scope="module")
def private(data: FrontierData) -> TrainedDefence:
    # Every image in every step: the search for the noise has a closed form then, and takes no time.
    return train_under(ROW["DP-SGD, epsilon 8"], data, replace(CONFIG, epochs=1, batch_size=128))


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


def test_every_row_has_a_name_of_its_own_and_an_approach() -> None:
    assert len(ROW) == len(DEFENCES)
    assert {item.approach for item in DEFENCES} == set(APPROACHES)
    with pytest.raises(InvalidInputError, match="needs an epsilon"):
        Defence(name="x", words="", noise="examples")
    with pytest.raises(InvalidInputError, match="is no defence"):
        Defence(name="x", words="", approach="hope")


def test_only_noise_has_an_epsilon_and_it_keeps_its_target(
    data: FrontierData, private: TrainedDefence
) -> None:
    names = ("plain", "InstaHide inside k=4", "DP-InstaHide, epsilon 8")
    plain, encoded, noisy = (train_under(ROW[name], data, replace(CONFIG, epochs=1)) for name in names)
    assert plain.epsilon is None
    assert encoded.epsilon is None
    assert private.epsilon == pytest.approx(8, rel=0.02)
    assert private.epsilon <= 8
    assert private.site_noise > 0
    assert noisy.epsilon == pytest.approx(8, rel=0.02)
    assert noisy.epsilon <= 8
    assert plain.report.encoded_once is None
    assert encoded.report.encoded_average is not None


def test_noise_in_encodings_is_no_larger_than_its_target_needs(data: FrontierData) -> None:
    law = fitted(ROW["DP-InstaHide, epsilon 8"], data.members).encoding
    assert law is not None
    assert fitted(ROW["plain"], data.members) is ROW["plain"]
    less = replace(law, noise_scale=0.99 * law.noise_scale, label_noise_scale=0.99 * law.label_noise_scale)
    shape = {"image_shape": data.members.image_shape, "num_classes": 2, "scheme": "inside"}
    assert guarantee_of_encodings(less, target_delta=TARGET_DELTA, **shape).epsilon > 8  # type: ignore[arg-type]


def test_private_sites_whose_sum_is_hidden_share_one_noise_that_keeps_the_target(data: FrontierData) -> None:
    trained = train_under(ROW["DP-SGD + secure aggregation, epsilon 8"], data, replace(CONFIG, epochs=1))
    # 24 images a site and a batch of 64: every image in every step, so one step is one Gaussian release.
    closed_form = gaussian_epsilon(TARGET_DELTA, 1 / trained.site_noise)
    assert trained.epsilon == pytest.approx(closed_form, rel=1e-3)
    assert 7.9 < trained.epsilon <= 8


@pytest.mark.parametrize("noise", ["coordinator", "sites"])
def test_a_whole_site_is_behind_the_noise_of_the_mean(noise: str, data: FrontierData) -> None:
    defence = Defence(name="x", words="", noise=noise, target_epsilon=8.0, images_per_site=20)
    plans: list[ClientLevelPlan] = []

    def make(plan: ClientLevelPlan) -> CoordinatorNoise:
        plans.append(plan)
        return CoordinatorNoise(plan)

    trained = train_under(defence, data, replace(CONFIG, epochs=1), make)
    assert trained.epsilon is not None
    assert 7.9 < trained.epsilon <= 8
    assert [plan.num_sites for plan in plans] == ([] if noise == "coordinator" else [6])
    if noise == "sites":
        with pytest.raises(InvalidInputError, match="how sites share"):
            train_under(defence, data, CONFIG)


@pytest.mark.parametrize("name", ["plain", "update pruning 90%"])
def test_every_way_of_training_learns(name: str, data: FrontierData) -> None:
    trained = train_under(ROW[name], data, replace(CONFIG, epochs=12))
    # 60 test images: 0.5 by guessing, standard deviation 0.065; 0.75 is nearly four of them.
    assert trained.report.plain.accuracy > 0.75


def test_encodings_are_asked_about_only_where_they_leave(data: FrontierData) -> None:
    hidden = ROW["hardened + secure aggregation"]
    assert membership_of_encodings(hidden, train_under(hidden, data, CONFIG), data) is None
    bare = Defence(
        name="k=1", words="", encoding=replace(ROW["mixup k=4"].encoding, num_mixed=1, num_private=1)
    )  # type: ignore[type-var]
    leak = membership_of_encodings(bare, train_under(bare, data, CONFIG), data)
    assert leak is not None
    assert leak.value > 0.95


def test_one_update_gives_a_plain_image_back_and_dp_noise_prevents_it(
    data: FrontierData, private: TrainedDefence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_leaks, "NUM_UPDATES", 2)
    plain = ROW["plain"]
    clear = update_inversion(plain, train_under(plain, data, replace(CONFIG, epochs=1)), data)
    noisy = update_inversion(ROW["DP-SGD, epsilon 8"], private, data)
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

    def measured(alike: list[Defence], *_: object) -> list[FrontierRow]:
        asked.append(alike[0].name)
        if alike[0].name == "mixup k=4":
            raise KeyboardInterrupt
        return [row(item.name, 0.7) for item in alike]

    monkeypatch.setattr("instahide.attacks.frontier.table.measure", measured)
    chosen = [ROW["plain"], ROW["mixup k=4"]]
    with pytest.raises(KeyboardInterrupt):
        run_frontier(data, chosen, CONFIG, tmp_path / "f.json", fingerprint={"seed": 0})
    assert json.loads((tmp_path / "f.json").read_text())["rows"][0]["name"] == "plain"
    rows = run_frontier(data, chosen[:1], CONFIG, tmp_path / "f.json", fingerprint={"seed": 0})
    assert asked == ["plain", "mixup k=4"]
    assert rows == [row("plain", 0.7)]
    with pytest.raises(InvalidInputError, match="other data or settings"):
        run_frontier(data, chosen, CONFIG, tmp_path / "f.json", fingerprint={"seed": 1})
    (tmp_path / "f.json").write_text("{}")
    with pytest.raises(IntegrityError, match="is not a frontier"):
        run_frontier(data, chosen, CONFIG, tmp_path / "f.json", fingerprint={"seed": 0})


def test_hiding_single_updates_is_the_same_training_so_it_is_done_once(
    data: FrontierData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_leaks, "NUM_SHADOWS", 4)
    monkeypatch.setattr(model_leaks, "NUM_UPDATES", 2)
    trained: list[str] = []

    def counted(defence: Defence, *arguments: object) -> object:
        trained.append(defence.name)
        return train_under(defence, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("instahide.attacks.frontier.table.train_under", counted)
    chosen = [ROW["plain"], ROW["secure aggregation"]]
    seen, hidden = run_frontier(data, chosen, CONFIG, tmp_path / "f.json", fingerprint={})
    assert trained == ["plain"]
    assert hidden.approach == "secure computation"
    assert hidden.accuracy == seen.accuracy
    assert hidden.leaks["model"] == seen.leaks["model"]
    assert hidden.leaks["update"] != seen.leaks["update"]


def test_the_page_says_what_does_not_leave_and_gives_no_epsilon_to_instahide() -> None:
    scheme = replace(row("InstaHide inside k=4", 0.6), approach="InstaHide")
    private = replace(row("noise", 0.6), approach="differential privacy", epsilon=7.99, unit="site")
    page = render([row("plain", 0.8), scheme, private], "made up")
    assert "0.80 (0.70 to 0.90), chance 0.50" in page
    assert page.count(">none<") == 2
    assert "7.99, one site" in page
    assert "lower bound" in page
    assert "<svg" in page
    headings = [page.index(f"<h2>{name}") for name in ("Baselines", "Differential privacy", "InstaHide")]
    assert headings == sorted(headings)
    assert "<h2>Together" not in page
