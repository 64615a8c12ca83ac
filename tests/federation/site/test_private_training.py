"""Differential privacy at a site: what is charged, when, what a cap refuses, and what never leaves."""

from __future__ import annotations

import math
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.accounting import PrivacyCap, PrivacyEvent, epsilon_of
from federation.messages import SiteReply
from federation.privacy_ledger import LEDGER_NAME, PrivacyLedger
from federation.site import privacy_budget, round_task
from federation.site.policy import load_policy
from federation.site.refusals import CancelledTaskError
from instahide.dp_training import train_with_dp

from .site_examples import UNASKED, request, write_site
from .test_round_task import WEIGHTS, Site, why
from .test_worker import Worker

OPEN = "encoding-required = false\n"
PRIVATE: dict[str, Any] = {
    "differential_privacy": "example",
    "encoding": "none",
    "noise_multiplier": 2.0,
    "evaluate": False,
}
STEPS = math.ceil(120 / 32)


def ask(site: Site, server_round: int = 1, kind: str = "train", **settings: Any) -> SiteReply:
    return site.ask(server_round, kind, **(PRIVATE | settings))


def events(site: Site) -> tuple[PrivacyEvent, ...]:
    return PrivacyLedger(site.folder / LEDGER_NAME).events()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, OPEN)


def test_a_private_round_trains_and_is_charged_with_its_own_rate_and_steps(site: Site) -> None:
    reply = ask(site)
    assert reply.refusal is None
    assert any(not np.array_equal(reply.arrays[name], WEIGHTS[name]) for name in WEIGHTS)
    num_weights = sum(array.size for array in WEIGHTS.values())
    assert events(site) == (
        PrivacyEvent(
            run_name="run",
            server_round=1,
            mechanism="dp-sgd",
            noise_multiplier=2.0,
            sample_rate=32 / 120,
            num_steps=STEPS,
            num_draws=STEPS * num_weights,
        ),
    )
    assert site.uses() == ({0}, {0})


def test_what_is_charged_is_what_the_training_says_it_spent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs: rounding up 2·120/32 once is not twice rounding up 120/32."""
    results = []

    def watched(*arguments: Any, **settings: Any) -> Any:
        results.append(train_with_dp(*arguments, **settings))
        return results[-1]

    monkeypatch.setattr(round_task, "train_with_dp", watched)
    assert ask(site, local_epochs=2).refusal is None
    event = events(site)[0]
    assert event.num_steps == results[0].num_steps
    assert event.sample_rate == results[0].sample_rate
    assert epsilon_of([event], 1e-5) == pytest.approx(results[0].epsilon, rel=1e-6)


def test_losses_on_training_images_and_views_with_training_images_in_them_stay_at_home(site: Site) -> None:
    metrics = ask(site, evaluate=True).metrics
    assert "train-loss" not in metrics
    assert {name for name in metrics if name.startswith("evaluate-accuracy")} == {"evaluate-accuracy-plain"}


def test_the_charge_is_on_the_disk_before_training_begins(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(*arguments: Any, **settings: Any) -> Any:
        seen.append(len(events(site)))
        return train_with_dp(*arguments, **settings)

    monkeypatch.setattr(round_task, "train_with_dp", watched)
    assert ask(site).refusal is None
    assert seen == [1]


def test_a_training_that_was_abandoned_has_been_paid_for(site: Site) -> None:
    answers = iter([False, False, False])
    mapping = request(1, **(PRIVATE | {"local_epochs": 50})).to_mapping()
    with pytest.raises(CancelledTaskError):
        site.tasks.answer("train", mapping, WEIGHTS, should_stop=lambda: next(answers, True))
    assert len(events(site)) == 1
    assert ask(site).refusal is None
    assert [event.num_steps for event in events(site)] == [math.ceil(50 * 120 / 32), STEPS]


def test_a_restarted_site_goes_on_counting(site: Site) -> None:
    assert ask(site, 1).refusal is None
    site.start()
    assert ask(site, 2).refusal is None
    assert [event.server_round for event in events(site)] == [1, 2]


def test_a_measurement_costs_nothing(site: Site) -> None:
    assert ask(site, kind="evaluate").refusal is None
    assert events(site) == ()


def test_a_run_without_differential_privacy_is_not_charged(site: Site) -> None:
    assert site.ask(encoding="none", evaluate=False).refusal is None
    assert events(site) == ()


# --- the cap ------------------------------------------------------------------------------------------


def capped(folder: Path, max_epsilon: float) -> Site:
    return Site(folder, f"{OPEN}max-epsilon = {max_epsilon}\n")


def cost(rounds: int) -> float:
    """What ``rounds`` rounds count against a cap of 8."""
    event = PrivacyEvent(
        run_name="run",
        server_round=1,
        mechanism="dp-sgd",
        noise_multiplier=2.0,
        sample_rate=32 / 120,
        num_steps=STEPS,
        num_draws=STEPS,
    )
    return PrivacyCap(max_epsilon=8.0, delta=1e-5).epsilon([event] * rounds)


def test_a_run_that_would_exceed_the_cap_is_refused_before_its_first_round_with_the_figures(
    tmp_path: Path,
) -> None:
    site = capped(tmp_path, 8.0)
    allowed = max(rounds for rounds in range(1, 200) if cost(rounds) <= 8.0)
    reply = ask(site, num_server_rounds=allowed + 1)
    kind, reason = why(reply)
    assert kind == "budget"
    assert f"a run of {allowed + 1} rounds" in reason
    assert f"{cost(allowed + 1):.2f}" in reason
    assert "its cap is 8" in reason
    assert reply.refusal is not None
    assert f"{allowed} such round(s) would fit" in reply.refusal.hint
    assert events(site) == ()
    assert ask(site, num_server_rounds=allowed).refusal is None


def test_a_second_run_is_held_against_what_the_first_one_spent(tmp_path: Path) -> None:
    site = capped(tmp_path, 8.0)
    allowed = max(rounds for rounds in range(1, 200) if cost(rounds) <= 8.0)
    assert ask(site, run_name="first", num_server_rounds=1).refusal is None
    assert why(ask(site, run_name="second", num_server_rounds=allowed))[0] == "budget"
    site.start()
    assert why(ask(site, run_name="second", num_server_rounds=allowed))[0] == "budget"
    assert ask(site, run_name="second", num_server_rounds=allowed - 1).refusal is None


def test_other_settings_in_the_second_run_are_counted_as_they_are(tmp_path: Path) -> None:
    """Less noise costs more: the same number of rounds no longer fits."""
    site = capped(tmp_path, 8.0)
    allowed = max(rounds for rounds in range(1, 200) if cost(rounds) <= 8.0)
    assert ask(site, run_name="first", num_server_rounds=1).refusal is None
    much = {"noise_multiplier": 0.7, "num_server_rounds": allowed - 1}
    kind, reason = why(ask(site, run_name="second", **much))
    assert kind == "budget"
    assert "8" in reason


def test_a_coordinator_that_names_few_rounds_and_asks_for_more_meets_the_cap_later(tmp_path: Path) -> None:
    site = capped(tmp_path, 3.0)
    refused_at = None
    for server_round in range(1, 60):
        reply = ask(site, server_round, num_server_rounds=server_round)
        if reply.refusal is not None:
            refused_at = server_round
            assert why(reply)[0] == "budget"
            break
    assert refused_at is not None
    charged = events(site)
    assert len(charged) == refused_at - 1
    assert PrivacyCap(max_epsilon=3.0, delta=1e-5).epsilon(charged) <= 3.0
    assert epsilon_of(charged, 1e-5) <= 3.0


@pytest.mark.slow  # finding it takes seconds of an accountant
def test_a_site_finds_the_noise_that_keeps_the_target_over_the_whole_run(site: Site) -> None:
    """Two rounds planned: twice what the first is charged comes to the target and hardly less."""
    asked: dict[str, Any] = {"target_epsilon": 3.0, "num_server_rounds": 2}
    assert ask(site, 1, **asked).refusal is None
    assert ask(site, 2, **asked).refusal is None
    first, second = events(site)
    assert first.noise_multiplier == second.noise_multiplier
    assert 2.9 < epsilon_of([first, second], 1e-5) <= 3.0


def test_noise_found_for_a_target_is_held_against_the_sites_minimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        privacy_budget, "noise_multiplier_for", lambda *_, **__: 1.0
    )  # finding it takes seconds
    site = Site(tmp_path, OPEN + "minimum-noise-multiplier = 5.0\n")
    asked: dict[str, Any] = {"noise_multiplier": 9.0, "target_epsilon": 8.0, "num_server_rounds": 1}
    kind, reason = why(ask(site, **asked))
    assert kind == "budget"
    assert "below this site's minimum" in reason
    assert events(site) == ()


# --- policy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "settings", "said"),
    [
        ("", {}, "encoded images only"),
        (OPEN + "dp-required = true\n", {"differential_privacy": "none"}, "differential privacy for each"),
        (OPEN + "dp-required = true\n", {"differential_privacy": "client"}, "differential privacy for each"),
        (OPEN + "minimum-noise-multiplier = 3.0\n", {}, "noise-multiplier 2 is below"),
        (OPEN, {"target_delta": 1e-3}, "target-delta 0.001 is above"),
        (OPEN + "max-delta = 0.1\n", {"target_delta": 0.05}, "not below one over"),
    ],
)
def test_what_policy_forbids_is_refused_and_not_charged(
    tmp_path: Path, policy: str, settings: dict[str, Any], said: str
) -> None:
    site = Site(tmp_path, policy)
    clip = {"max_update_norm": 1.0, "over_norm": "clip"}
    kind, reason = why(ask(site, **(clip | settings)))
    assert kind == "policy"
    assert said in reason
    assert events(site) == ()


def test_epsilon_leaves_the_site_only_where_policy_names_it(tmp_path: Path) -> None:
    assert "epsilon-spent" not in ask(Site(tmp_path, OPEN)).metrics
    (tmp_path / "told").mkdir()
    site = Site(tmp_path / "told", OPEN + 'allowed-metrics = ["num-examples", "epsilon-spent"]\n')
    ask(site, run_name="earlier")
    metrics = ask(site, run_name="now").metrics
    mine = [event for event in events(site) if event.run_name == "now"]
    assert metrics == {"num-examples": 120, "epsilon-spent": pytest.approx(epsilon_of(mine, 1e-5))}


def test_a_model_too_large_for_the_noise_is_refused_before_it_is_paid_for(site: Site) -> None:
    kind, reason = why(ask(site, noise_multiplier=100.0))
    assert kind == "error"
    assert "too many" in reason
    assert events(site) == ()


def test_a_ledger_damaged_while_the_site_runs_stops_training(site: Site) -> None:
    assert ask(site).refusal is None
    (site.folder / LEDGER_NAME).write_bytes(b"damaged" * 999)
    kind, reason = why(ask(site, 2))
    assert kind == "error"
    assert "privacy ledger" in reason


def test_the_policy_in_the_privacy_officers_page_is_one_that_a_site_reads(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "federation" / "DIFFERENTIAL_PRIVACY.md"
    [text] = re.findall(r"^```toml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "policy.toml").write_text(text)
    policy = load_policy(tmp_path / "policy.toml")
    assert policy.dp_required
    assert policy.max_epsilon == 8.0


# --- the worker itself ----------------------------------------------------------------------------------


@pytest.mark.slow  # two processes, each importing torch and Opacus
def test_a_worker_killed_after_a_private_round_knows_it_when_it_is_back(tmp_path: Path) -> None:
    """Through the real socket: one round, SIGKILL, a new worker, and a cap with room for one round only."""
    write_site(tmp_path, policy=UNASKED + OPEN + "max-epsilon = 3.0\n")
    worker = Worker(tmp_path)
    answer = worker.ask(1, **PRIVATE, num_server_rounds=1)
    assert answer.arrays
    assert worker.stop(signal.SIGKILL) != 0
    assert len(PrivacyLedger(tmp_path / "state" / LEDGER_NAME).events()) == 1
    again = Worker(tmp_path)
    refusal = again.ask(1, **PRIVATE, run_name="more", num_server_rounds=40).fields["refusal"]
    assert refusal["kind"] == "budget"
    assert "its cap is 3" in refusal["reason"]
    assert again.stop() == 0
    assert "epsilon" not in again.out.read_text().lower()
