"""Whole runs with secure aggregation over a network in one process, with real sessions at the sites."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from coordinator_fakes import FakeClock, FakeGrid, prepare, refuse
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.coordinator import rounds
from federation.coordinator.events import read_events
from federation.hidden_sum import roster_entry, to_vector
from federation.identity import Identity
from federation.messages import CONFIRM, EVALUATE, SESSION, TRAIN, UNMASK, SiteReply
from instahide.errors import FederationError, InvalidInputError

from .masked_sites import SITES, SIZES, Hospitals, change_of


def a_run(folder, hospitals, script=lambda grid: None, **settings):
    secure = {
        "secure_aggregation": True,
        "roster": hospitals.roster,
        "max_site_examples": 1000,
        "num_server_rounds": 2,
        "minimum_sites": 3,
        "reconstruction_threshold": 3,
        "retry_pause": 1.0,
    }
    config = prepare(folder, SITES, **(secure | settings))
    clock = FakeClock()
    grid = FakeGrid(clock, hospitals, online=dict.fromkeys(SITES, "first"), script=script)
    return rounds.run(config, grid, clock=clock)


def expected_mean(server_round, nodes):
    total = sum(SIZES[node] for node in nodes)
    return sum(SIZES[node] * change_of(node, server_round).astype(np.float64) for node in nodes) / total


def events_of(folder, name):
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == name]


@pytest.fixture
def hospitals():
    return Hospitals()


def test_the_model_moves_by_the_weighted_mean_of_changes_that_nobody_saw(tmp_path, hospitals):
    folder = tmp_path / "run"
    result = a_run(folder, hospitals)
    start = to_vector(prepare_weights())
    wanted = start + expected_mean(1, SITES) + expected_mean(2, SITES)
    # Steps of 8 / 4.3e8 a site, weighted by M / Σ n = 1/1.8; float32 of values below 4: 2.4e-7 a round.
    assert np.allclose(to_vector(result.weights), wanted, atol=2e-6)


def prepare_weights():
    from coordinator_fakes import initial_weights

    return initial_weights()


def test_tables_and_events_hold_totals_and_means_and_no_sites_own_figure(tmp_path, hospitals):
    folder = tmp_path / "run"
    result = a_run(folder, hospitals)
    [first, last] = [row for row in result.rounds if "train-loss" in row]
    total = sum(SIZES.values())
    assert first["num-examples"] == total
    assert first["sites"] == last["sites"] == 5
    assert first["train-loss"] == pytest.approx(sum(SIZES[n] * 0.1 * n for n in SITES) / total, abs=1e-5)
    accuracy = sum(node * node / 20 for node in SITES) / sum(SITES)
    assert last["evaluate-accuracy-plain"] == pytest.approx(accuracy, abs=1e-5)  # the final evaluation
    assert set(first["by-site"]) == {"all sites"}
    text = (folder / "events.jsonl").read_text()
    for event in events_of(folder, "site-replied"):
        assert event["metrics"] == {}
    assert "0.55" not in text  # site 11's own accuracy
    assert [event["kind"] for event in events_of(folder, "sum-opened")] == [TRAIN, TRAIN, EVALUATE]


def test_a_round_costs_two_message_cycles_and_a_run_one_session(tmp_path, hospitals):
    a_run(tmp_path / "run", hospitals)
    kinds = [kind for node, kind, _ in hospitals.asked if node == 11]
    assert kinds == [SESSION, TRAIN, UNMASK, TRAIN, UNMASK, EVALUATE, UNMASK]


def test_with_confirm_survivors_a_round_costs_a_third_cycle_and_gives_the_same(tmp_path, hospitals):
    result = a_run(tmp_path / "run", hospitals, num_server_rounds=1, evaluate=False, confirm_survivors=True)
    kinds = [kind for node, kind, _ in hospitals.asked if node == 11]
    assert kinds == [SESSION, TRAIN, CONFIRM, UNMASK]
    wanted = to_vector(prepare_weights()) + expected_mean(1, SITES)
    assert np.allclose(to_vector(result.weights), wanted, atol=2e-6)


def test_a_site_that_is_silent_in_a_round_is_left_out_of_its_sum_only(tmp_path, hospitals):
    def silent(node, request, reply):
        return None if node == 15 and request.kind == TRAIN and request.server_round == 1 else reply

    hospitals.misbehave = silent
    folder = tmp_path / "run"
    result = a_run(folder, hospitals)
    others = [node for node in SITES if node != 15]
    opened = events_of(folder, "sum-opened")
    assert opened[0]["missing"] == ["site-15"]
    wanted = to_vector(prepare_weights()) + expected_mean(1, others)
    second = others if opened[1]["missing"] else list(SITES)
    assert np.allclose(to_vector(result.weights), wanted + expected_mean(2, second), atol=2e-6)


def test_a_site_that_is_still_at_work_does_not_cost_a_session_each_round(tmp_path, hospitals):
    hospitals.misbehave = lambda node, request, reply: (
        None if node == 15 and request.kind == TRAIN and request.server_round == 1 else reply
    )
    folder = tmp_path / "run"
    a_run(folder, hospitals, num_server_rounds=4, evaluate=False, round_deadline=10.0)
    opened = [event["missing"] for event in events_of(folder, "sum-opened")]
    assert opened[:2] == [["site-15"], ["site-15"]]
    assert len(events_of(folder, "session-opened")) <= 2


def test_a_site_that_is_lost_after_its_report_still_counts(tmp_path, hospitals):
    hospitals.misbehave = lambda node, request, reply: (
        None if node in (11, 12) and request.kind == UNMASK and request.server_round == 1 else reply
    )
    folder = tmp_path / "run"
    a_run(folder, hospitals, num_server_rounds=1, evaluate=False)
    [opened] = events_of(folder, "sum-opened")
    assert opened["sites"] == [SITES[node] for node in SITES]


def test_too_few_reports_open_nothing_and_the_round_is_tried_in_a_new_session(tmp_path, hospitals):
    lost = iter([True] * 3)

    def flaky(node, request, reply):
        crashed = node in (11, 12, 13) and request.kind == TRAIN and next(lost, False)
        return "the client crashed" if crashed else reply

    hospitals.misbehave = flaky
    folder = tmp_path / "run"
    result = a_run(folder, hospitals, num_server_rounds=1, evaluate=False)
    assert len(events_of(folder, "round-failed")) == 1
    assert len(events_of(folder, "session-opened")) == 2
    [opened] = events_of(folder, "sum-opened")
    nodes = [node for node, name in SITES.items() if name in opened["sites"]]
    wanted = to_vector(prepare_weights()) + expected_mean(1, nodes)
    assert np.allclose(to_vector(result.weights), wanted, atol=2e-6)
    unmasked = [node for node, kind, _ in hospitals.asked if kind == UNMASK]
    assert sorted(unmasked) == sorted(nodes)  # in the attempt that failed nobody was asked for a share


def test_a_run_below_the_threshold_fails_and_names_the_sites(tmp_path, hospitals):
    hospitals.misbehave = lambda node, request, reply: (
        refuse("not today", kind="policy") if node in (11, 12, 13) else reply
    )
    folder = tmp_path / "run"
    with pytest.raises(FederationError, match="site-11: not today"):
        a_run(folder, hospitals, max_failed_rounds=0)
    assert events_of(folder, "sum-opened") == []


def test_a_worker_that_was_started_anew_is_back_with_the_next_session(tmp_path, hospitals):
    def restart(grid):
        if len(grid.asked(11)) == 1 and not restarted:
            restarted.append(True)
            hospitals.start(11)
            grid.online[11] = "second"

    restarted = []
    folder = tmp_path / "run"
    a_run(folder, hospitals, script=restart, num_server_rounds=3, evaluate=False)
    opened = events_of(folder, "sum-opened")
    assert restarted
    assert opened[-1]["missing"] == []
    assert len(events_of(folder, "session-opened")) == 2


@pytest.mark.parametrize("kind", [SESSION, TRAIN, UNMASK])
def test_a_site_that_sends_rubbish_is_rejected_and_the_round_goes_on(tmp_path, hospitals, kind):
    hospitals.misbehave = lambda node, request, reply: (
        replace(reply, aggregation_record=b"IHS1" + bytes(100))
        if node == 12 and request.kind == kind
        else reply
    )
    folder = tmp_path / "run"
    a_run(folder, hospitals, num_server_rounds=1, evaluate=False)
    assert {event["site"] for event in events_of(folder, "site-rejected")} == {"site-12"}
    assert len(events_of(folder, "sum-opened")) == 1


def test_a_site_that_answers_in_the_clear_is_rejected(tmp_path, hospitals):
    clear = SiteReply(site_name="site-12", metrics={"num-examples": 3, "train-loss": 0.5})
    hospitals.misbehave = lambda node, request, reply: (
        clear if node == 12 and request.kind == TRAIN else reply
    )
    folder = tmp_path / "run"
    a_run(folder, hospitals, num_server_rounds=1, evaluate=False)
    assert [event["site"] for event in events_of(folder, "site-rejected")] == ["site-12"]


def test_a_roster_that_is_not_the_registered_sites_is_refused(tmp_path, hospitals):
    with pytest.raises(InvalidInputError, match="roster"):
        a_run(tmp_path / "run", hospitals, roster=hospitals.roster[:4])


def test_a_coordinator_that_changes_the_roster_gets_no_session(tmp_path, hospitals):
    stranger = roster_entry("site-11", Identity(Ed25519PrivateKey.generate()).public_line)
    with pytest.raises(FederationError, match="identity key"):
        a_run(
            tmp_path / "run",
            hospitals,
            roster=(stranger, *hospitals.roster[1:]),
            minimum_sites=5,
            reconstruction_threshold=5,
            max_failed_rounds=0,
        )


def test_a_resumed_run_begins_a_new_session_and_comes_to_the_same_model(tmp_path, hospitals):
    whole = a_run(tmp_path / "whole", hospitals, num_server_rounds=2, evaluate=False)
    folder = tmp_path / "parts"
    a_run(folder, hospitals, num_server_rounds=1, evaluate=False)
    resumed = a_run(folder, hospitals, num_server_rounds=2, evaluate=False, resume=True)
    # Rounding is at random, so equal up to it and not to the bit.
    assert np.allclose(to_vector(resumed.weights), to_vector(whole.weights), atol=2e-6)


def test_the_settings_of_the_run_are_part_of_what_the_sites_agree_on(tmp_path, hospitals):
    told = json.dumps(
        prepare(tmp_path / "run", SITES, secure_aggregation=True, roster=hospitals.roster).to_mapping()
    )
    assert all(entry in told for entry in hospitals.roster)
