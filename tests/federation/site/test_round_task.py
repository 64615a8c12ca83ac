"""One request at a site: what is computed, what is refused, and what the ledger says afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.messages import ALLOWED_METRICS, Arrays, SiteReply
from federation.privacy_ledger import PrivacyLedger
from federation.site.dataset import SiteData
from federation.site.local_training import learning_rates
from federation.site.masked_rounds import MaskedRounds
from federation.site.plans import PlanBook
from federation.site.privacy_budget import SitePrivacy
from federation.site.refusals import CancelledTaskError
from federation.site.round_task import SiteTasks
from federation.site.run_history import RunHistory
from federation.site.weights import read_weights
from instahide.exposure import THROUGH_UPDATES, ExposureLedger
from instahide.images import ImageSet
from instahide.models import build_model

from .site_examples import UNASKED, digit_images, initial_weights, request, site_audit, site_data

LENIENT = "encoding-required = false\nminimum-num-mixed = 1\n"
WEIGHTS = initial_weights()


class Site:
    """A site's tasks over the digits, with its files in a folder."""

    def __init__(self, folder: Path, policy: str = "", data: SiteData | None = None) -> None:
        self.folder, self.data = folder, data or site_data()
        (folder / "policy.toml").write_text(UNASKED + policy)
        self.ledger = ExposureLedger(folder / "ledger.sqlite3")
        self.start()

    def start(self) -> None:
        self.tasks = SiteTasks(
            "north",
            self.data,
            ledger=self.ledger,
            history=RunHistory(self.folder),
            plans=PlanBook(self.folder),
            audit=site_audit(self.folder),
            masked_rounds=MaskedRounds("north", Ed25519PrivateKey.generate),
            privacy=SitePrivacy(PrivacyLedger(self.folder / "privacy.sqlite3")),
            policy_path=self.folder / "policy.toml",
            encodings_folder=self.folder / "encodings",
            device="cpu",
            threads=1,
        )

    def ask(
        self, server_round: int = 1, kind: str = "train", arrays: Arrays | None = None, **settings: Any
    ) -> SiteReply:
        mapping = request(server_round, **settings).to_mapping()
        return self.tasks.answer(kind, mapping, WEIGHTS if arrays is None else arrays)

    def uses(self) -> tuple[set[int], set[int]]:
        counts = self.ledger.counts(self.data.training, kind=THROUGH_UPDATES)
        return set(counts.own.tolist()), set(counts.partner.tolist())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def why(reply: SiteReply) -> tuple[str, str]:
    assert reply.refusal is not None
    assert not reply.arrays
    assert not reply.metrics
    return reply.refusal.kind, reply.refusal.reason


def test_training_returns_other_weights_of_the_same_names_and_all_figures(site: Site) -> None:
    reply = site.ask()
    assert reply.refusal is None
    assert reply.site_name == "north"
    assert list(reply.arrays) == list(WEIGHTS)
    assert all(reply.arrays[name].shape == WEIGHTS[name].shape for name in WEIGHTS)
    assert any(not np.array_equal(reply.arrays[name], WEIGHTS[name]) for name in WEIGHTS)
    assert set(reply.metrics) == ALLOWED_METRICS - {"epsilon-spent"}
    assert reply.metrics["num-examples"] == 120
    assert reply.metrics["evaluate-num-examples"] == 60


def test_the_incoming_model_is_measured_and_not_the_trained_one(site: Site) -> None:
    """Zero weights give every class the same score: the loss of a plain query is ln 10."""
    zeros = {name: np.zeros_like(array) for name, array in WEIGHTS.items()}
    assert site.ask(2, arrays=zeros).metrics["evaluate-loss-plain"] == pytest.approx(np.log(10), abs=1e-6)


def test_rounds_on_one_encoding_learn_the_training_images(site: Site) -> None:
    """Memorising 120 encodings in 8 rounds of 5 epochs: the loss must fall well below its start."""
    weights, losses = WEIGHTS, []
    for server_round in range(1, 9):
        reply = site.ask(server_round, arrays=weights, local_epochs=5, evaluate=False, num_views=1)
        weights = reply.arrays
        losses.append(reply.metrics["train-loss"])
    assert losses[-1] < 0.8 * losses[0]


def test_an_evaluate_message_measures_and_trains_nothing(site: Site) -> None:
    reply = site.ask(10, kind="evaluate", evaluate=False)
    assert not reply.arrays
    assert "train-loss" not in reply.metrics
    assert {f"evaluate-accuracy-{mode}" for mode in ("plain", "one-view", "ten-views")} <= set(reply.metrics)
    assert site.uses() == ({0}, {0})


def test_plain_training_where_policy_allows_charges_no_encodings(tmp_path: Path) -> None:
    site = Site(tmp_path, LENIENT)
    reply = site.ask(encoding="none")
    assert reply.refusal is None
    assert reply.arrays
    assert site.uses() == ({0}, {0})


def test_one_encoding_serves_all_epochs_and_rounds_of_a_tight_budget(site: Site) -> None:
    """Inside scheme, k = 4: one own use, three partner uses, however many epochs follow."""
    for server_round in (1, 2, 3):
        assert site.ask(server_round, local_epochs=2, evaluate=False).refusal is None
    assert site.uses() == ({1}, {3})


def test_with_a_public_pool_only_the_private_share_of_the_images_are_partners(tmp_path: Path) -> None:
    """Cross scheme, 2 of k = 4 private: one own use and one partner use of each image."""
    plain = site_data()
    pool = ImageSet(digit_images(500, 900).images)
    site = Site(tmp_path, data=SiteData(plain.training, plain.test, pool))
    assert site.ask().refusal is None
    assert site.uses() == ({1}, {1})


def test_fresh_encodings_stop_at_the_budget(tmp_path: Path) -> None:
    site = Site(tmp_path, "max-update-exposures = 3\n")
    assert site.ask(local_epochs=5, evaluate=False).refusal is None
    assert site.uses() == ({3}, {9})


def test_another_law_is_refused_when_the_budget_is_spent(site: Site) -> None:
    assert site.ask().refusal is None
    kind, reason = why(site.ask(run_name="other", num_mixed=5))
    assert kind == "budget"
    assert "120 of 120 images" in reason
    assert site.uses() == ({1}, {3})


def test_a_restarted_site_goes_on_with_its_encoding_and_its_counts(site: Site) -> None:
    assert site.ask(1).refusal is None
    site.start()
    assert site.ask(2).refusal is None
    assert site.uses() == ({1}, {3})


def test_the_policy_is_read_anew_for_every_request(site: Site) -> None:
    assert site.ask().refusal is None
    (site.folder / "policy.toml").unlink()
    assert why(site.ask(2)) == (
        "policy",
        "this site refuses everything: the policy file cannot be read: No such file or directory",
    )


@pytest.mark.parametrize("settings", [{"num_mixed": 2}, {"encoding": "none"}, {"encoding_mode": "mixup"}])
def test_what_policy_forbids_is_refused_before_anything_is_counted(
    site: Site, settings: dict[str, Any]
) -> None:
    assert why(site.ask(**settings))[0] == "policy"
    assert site.uses() == ({0}, {0})
    assert site.tasks._history.facts(request(), num_examples=1).rounds_served == 0


def test_figures_that_policy_keeps_back_do_not_leave(tmp_path: Path) -> None:
    site = Site(tmp_path, 'allowed-metrics = ["num-examples", "evaluate-accuracy-plain"]\n')
    assert set(site.ask().metrics) == {"num-examples", "evaluate-accuracy-plain"}


def changed(**changes: Any) -> Arrays:
    return {name: array for name, array in (WEIGHTS | changes).items() if array is not None}


FIRST, LAST = next(iter(WEIGHTS)), list(WEIGHTS)[-1]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "differ in"),
        (changed(**{FIRST: None}), "differ in 1 arrays"),
        (changed(extra=np.zeros(1, np.float32)), "'extra'"),
        (changed(**{FIRST: np.zeros((1, 1), np.float32)}), "has shape"),
        (changed(**{FIRST: np.zeros((), np.float32)}), "has shape"),
        (changed(**{FIRST: np.full_like(WEIGHTS[FIRST], np.nan)}), "not finite"),
        (changed(**{FIRST: np.full_like(WEIGHTS[FIRST], np.inf)}), "not finite"),
        (changed(**{FIRST: WEIGHTS[FIRST].astype(np.float64)}), "float64"),
    ],
)
def test_weights_that_are_not_this_models_are_refused(site: Site, arrays: Arrays, said: str) -> None:
    kind, reason = why(site.ask(arrays=arrays))
    assert kind == "error"
    assert said in reason


@pytest.mark.parametrize(("name", "place"), [(FIRST, (0, 0)), (LAST, (-1,))])
def test_a_first_round_from_other_weights_than_the_seeded_ones_is_refused(
    site: Site, name: str, place: tuple[int, ...]
) -> None:
    other = WEIGHTS[name].copy()
    other[place] += 0.001
    assert why(site.ask(arrays=changed(**{name: other}))) == (
        "policy",
        f"the array {name} of round 1 is not the one drawn from initialization-seed",
    )
    assert site.uses() == ({0}, {0})
    assert site.ask(2, arrays=changed(**{name: other}), evaluate=False).refusal is None


def test_the_seed_of_the_request_decides_which_weights_are_the_first(site: Site) -> None:
    assert "initialization-seed" in why(site.ask(initialization_seed=7))[1]
    spec = {"image_shape": (1, 8, 8), "num_classes": 10}
    other = read_weights(build_model("mlp", initialization_seed=7, **spec))
    assert site.ask(arrays=other, initialization_seed=7, evaluate=False).refusal is None


def test_a_hair_of_rounding_between_two_machines_is_no_other_model(site: Site) -> None:
    nearly = {name: array * np.float32(1 + 1e-6) for name, array in WEIGHTS.items()}
    assert site.ask(arrays=nearly, evaluate=False).refusal is None


def test_a_policy_may_allow_a_study_that_starts_from_other_weights(tmp_path: Path) -> None:
    site = Site(tmp_path, "check-initial-weights = false\n")
    zeros = {name: np.zeros_like(array) for name, array in WEIGHTS.items()}
    assert site.ask(arrays=zeros, evaluate=False).refusal is None


def test_a_setting_the_protocol_does_not_know_is_refused(site: Site) -> None:
    mapping = request().to_mapping() | {"pickle": "x"}
    assert "unknown setting 'pickle'" in why(site.tasks.answer("train", mapping, WEIGHTS))[1]


def test_a_run_about_other_classes_is_refused(site: Site) -> None:
    assert "class names" in why(site.ask(class_names=["a", "b"]))[1]


def test_a_training_that_diverges_sends_no_weights(tmp_path: Path) -> None:
    site = Site(tmp_path, LENIENT)
    huge = {name: np.full_like(array, 1e30) for name, array in WEIGHTS.items()}
    assert why(site.ask(2, arrays=huge, encoding="none", evaluate=False))[0] == "error"


def test_a_fault_in_the_sites_images_is_told_at_home_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = digit_images(0, 60)
    pixels = images.images.copy()
    pixels[7] = 0
    blank = ImageSet(pixels, images.labels, images.class_names)
    site = Site(tmp_path, data=SiteData(blank, digit_images(60, 70)))
    kind, reason = why(site.ask())
    assert kind == "error"
    assert "image 7" not in reason
    assert "image 7" in caplog.text


def test_a_request_is_abandoned_when_asked_to_stop(site: Site) -> None:
    mapping = request(local_epochs=1000).to_mapping()
    questions = iter([False] * 5)
    with pytest.raises(CancelledTaskError):
        site.tasks.answer("train", mapping, WEIGHTS, should_stop=lambda: next(questions, True))
    assert site.ask(2).refusal is None


def test_the_schedule_runs_over_the_whole_run_and_not_anew_each_round() -> None:
    """Cosine over 10 rounds of 2 epochs at 32 of 120 images: 4 steps an epoch, 80 in all."""
    asked = [request(r, lr_schedule="cosine", local_epochs=2, learning_rate=0.1) for r in (1, 6, 10)]
    first, middle, last = (learning_rates(one, 120) for one in asked)
    assert first(0) == pytest.approx(0.1)
    assert middle(0) == pytest.approx(0.05)
    assert last(8) == pytest.approx(0.0)
    assert first(8) == pytest.approx(
        learning_rates(request(2, lr_schedule="cosine", local_epochs=2, learning_rate=0.1), 120)(0)
    )
