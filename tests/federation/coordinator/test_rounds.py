"""Whole runs over a fake network: who is waited for, what is counted, how a run ends."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coordinator_fakes import NAMES, FakeClock, FakeGrid, honest, initial_weights, prepare, refuse, reply_with

from federation.coordinator import rounds
from federation.coordinator.events import EVENTS, read_events
from federation.coordinator.grid import GridReply
from federation.messages import EVALUATE, TRAIN
from instahide.errors import FederationError, IntegrityError, InvalidInputError, RefusedError

ANNA, BERN, CORK = NAMES


def run(config, **grid_options):
    clock = FakeClock()
    grid = FakeGrid(clock, **grid_options)
    return rounds.run(config, grid, clock=clock), grid, clock


def events(config, name=None):
    lines = read_events(Path(config.run_directory) / "events.jsonl")
    return [line for line in lines if name is None or line["event"] == name]


def same_bytes(first, second):
    return {name: array.tobytes() for name, array in first.items()} == {
        name: array.tobytes() for name, array in second.items()
    }


def only_when(node, wanted_round, answer):
    """Honest everywhere, except that ``node`` answers ``wanted_round`` with ``answer``."""

    def behave(asked, request):
        if asked == node and request.server_round == wanted_round and request.kind == TRAIN:
            return answer(asked, request) if callable(answer) else answer
        return honest(asked, request)

    return behave


# --- a run that goes well ---------------------------------------------------------------------------


def test_a_good_run_asks_every_site_once_a_round_and_once_for_the_last_measurement(tmp_path):
    config = prepare(tmp_path, num_server_rounds=3)
    result, grid, _ = run(config)
    assert [grid.asked(node) for node in NAMES] == [[1, 2, 3]] * 3
    assert [request.kind for _, _, request in grid.sent[-3:]] == [EVALUATE] * 3
    assert np.array_equal(grid.sent[-1][2].arrays["w"], result.weights["w"])
    assert events(config)[-1]["event"] == "run-finished"


def test_events_are_well_formed_and_in_order(tmp_path):
    config = prepare(tmp_path, num_server_rounds=2)
    run(config)
    lines = events(config)
    assert {line["event"] for line in lines} <= EVENTS
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    frame = [line["event"] for line in lines if "site" not in line["event"]]
    one_round = ["round-started", "checkpoint-saved", "round-finished"]
    assert frame == [
        "run-started",
        *one_round * 2,
        "evaluation-started",
        "evaluation-finished",
        "run-finished",
    ]
    assert {line["site"] for line in lines if line["event"] == "site-replied"} == set(NAMES.values())


def test_the_result_does_not_depend_on_the_order_of_arrival(tmp_path):
    first, *_ = run(prepare(tmp_path / "a"))
    second, *_ = run(prepare(tmp_path / "b"), reverse=True)
    slow_anna, *_ = run(
        prepare(tmp_path / "c"), behaviour=lambda n, r: (9.0 if n == ANNA else 0.1, honest(n, r))
    )
    assert same_bytes(first.weights, second.weights)
    assert same_bytes(first.weights, slow_anna.weights)


def test_sites_are_told_nothing_that_is_the_coordinators(tmp_path):
    _, grid, _ = run(prepare(tmp_path))
    told = grid.sent[0][2].to_mapping()
    assert "run-directory" not in told
    assert str(tmp_path) not in json.dumps(told)


# --- sites that do not answer -------------------------------------------------------------------------


def test_a_round_goes_on_with_the_survivors_at_the_deadline(tmp_path):
    config = prepare(tmp_path, num_server_rounds=2, round_deadline=60.0)
    _, _, clock = run(config, behaviour=only_when(CORK, 1, None))
    missing = events(config, "site-missing")
    assert (missing[0]["round"], missing[0]["site"]) == (1, "Cork")
    assert "60 s" in missing[0]["reason"]
    assert events(config, "round-finished")[0]["sites"] == ["Anna", "Bern"]
    assert 60.0 <= clock.now < 75.0


def test_nobody_waits_for_a_node_that_is_known_to_be_offline(tmp_path):
    def script(grid):
        if grid.clock.now > 3.0:
            grid.online.pop(CORK, None)

    config = prepare(tmp_path, num_server_rounds=1, round_deadline=600.0)
    behave = only_when(CORK, 1, None)
    _, _, clock = run(config, script=script, behaviour=behave)
    assert (
        events(config, "site-missing")[0] | {"site": "Cork", "reason": "went offline"}
        == events(config, "site-missing")[0]
    )
    assert clock.now < 6.0


def test_a_node_that_started_anew_has_lost_its_request_and_joins_the_next_round(tmp_path):
    def script(grid):
        if grid.clock.now > 3.0:
            grid.online[CORK] = "second"

    config = prepare(tmp_path, num_server_rounds=2, round_deadline=600.0)
    _, grid, clock = run(config, script=script, behaviour=only_when(CORK, 1, None))
    assert "started anew" in events(config, "site-missing")[0]["reason"]
    assert grid.asked(CORK) == [1, 2]
    assert clock.now < 8.0


def test_a_straggler_is_not_asked_again_before_it_has_answered_and_its_late_answer_is_not_used(tmp_path):
    def behave(node, request):
        if node == CORK and request.server_round == 1:
            return 65.0, honest(node, request)  # five seconds past the deadline
        return 3.0, honest(node, request)

    config = prepare(tmp_path, num_server_rounds=4, round_deadline=60.0)
    _, grid, _ = run(config, behaviour=behave)
    assert grid.asked(CORK) == [1, 4]  # still busy when 2 (60 s) and 3 (63 s) began
    late = events(config, "site-late")
    assert [(line["site"], line["round"]) for line in late] == [("Cork", 1)]
    assert late[0]["seconds"] == pytest.approx(65.0, abs=1.5)
    assert [len(line["sites"]) for line in events(config, "round-finished")] == [2, 2, 2, 3]


@pytest.mark.parametrize(
    ("answer", "event", "reason"),
    [
        ("Flower error 5: node unavailable", "site-failed", "node unavailable"),
        ("", "site-failed", "without a text"),
        (refuse("the budget is used up"), "site-refused", "the budget is used up"),
    ],
)
def test_errors_and_refusals_are_recorded_with_the_hospital_and_the_reason(tmp_path, answer, event, reason):
    config = prepare(tmp_path, num_server_rounds=1)
    run(config, behaviour=only_when(BERN, 1, answer))
    (line,) = events(config, event)
    assert (line["site"], line["round"]) == ("Bern", 1)
    assert reason in line["reason"]


# --- replies that must not count ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays | {"w": np.full_like(arrays["w"], np.nan)},
        lambda arrays: arrays | {"w": np.ones(1, np.float32)},  # would be broadcast
        lambda arrays: {name: array for name, array in arrays.items() if name != "bias"},
        lambda arrays: {},
    ],
)
def test_the_aggregate_is_byte_equal_to_the_one_without_the_bad_site(tmp_path, spoil):
    bad = prepare(tmp_path / "bad", num_server_rounds=1)
    without = prepare(tmp_path / "without", num_server_rounds=1)
    spoiled = lambda node, request: replace(honest(node, request), arrays=spoil(honest(node, request).arrays))  # noqa: E731
    with_bad, *_ = run(bad, behaviour=only_when(BERN, 1, spoiled))
    two, *_ = run(without, behaviour=only_when(BERN, 1, "gone"))
    assert same_bytes(with_bad.weights, two.weights)
    assert [line["site"] for line in events(bad, "site-rejected")] == ["Bern"]


def test_a_claim_of_ten_to_the_fifteen_examples_is_rejected_with_or_without_a_registered_size(tmp_path):
    greedy = only_when(CORK, 1, lambda n, r: reply_with(honest(n, r).arrays, n, r, num_examples=10**15))
    for folder, sites in [
        ("open", NAMES),
        ("registered", {**NAMES, CORK: {"name": "Cork", "num-examples": 300}}),
    ]:
        config = prepare(tmp_path / folder, sites, num_server_rounds=1)
        run(config, behaviour=greedy)
        (line,) = events(config, "site-rejected")
        assert "1000000000000000" in line["reason"]


def test_a_site_is_held_to_the_size_it_first_claimed(tmp_path):
    config = prepare(tmp_path, num_server_rounds=2)
    run(
        config,
        behaviour=only_when(CORK, 2, lambda n, r: reply_with(honest(n, r).arrays, n, r, num_examples=301)),
    )
    (line,) = events(config, "site-rejected")
    assert "from 1 to 300" in line["reason"]


def test_duplicates_strangers_and_answers_to_others_are_ignored(tmp_path):
    def script(grid):
        if grid.sent and not done:
            done.append(True)
            message_id, _, request = grid.sent[0]
            grid.extra = [
                GridReply(message_id="message-never", source=99, reply=honest(99, request)),
                # Cork answers what Anna was asked; Anna's own answer must still count
                GridReply(message_id=message_id, source=CORK, reply=honest(CORK, request)),
            ]

    done: list[bool] = []
    config = prepare(tmp_path / "a", num_server_rounds=1)
    result, *_ = run(config, script=script)
    clean, *_ = run(prepare(tmp_path / "b", num_server_rounds=1))
    assert same_bytes(result.weights, clean.weights)
    assert [line["site"] for line in events(config, "reply-ignored")] == ["node-99", "Cork"]


def test_a_second_answer_to_the_same_request_is_ignored(tmp_path):
    def script(grid):
        if 0.05 < grid.clock.now < 5.0 and grid.sent and not done:
            done.append(True)
            message_id, node, request = grid.sent[0]
            twice = GridReply(
                message_id=message_id, source=node, reply=reply_with(initial_weights(), node, request)
            )
            grid.extra = [twice]

    done: list[bool] = []
    slow_cork = lambda node, request: (4.0 if node == CORK else 0.01, honest(node, request))  # noqa: E731
    config = prepare(tmp_path, num_server_rounds=1)
    run(config, script=script, behaviour=slow_cork)
    assert [line["reason"] for line in events(config, "reply-ignored")] == ["a second answer"]


def test_a_node_that_was_not_registered_is_not_asked(tmp_path):
    config = prepare(tmp_path, {ANNA: "Anna", BERN: "Bern"}, num_server_rounds=1)
    _, grid, _ = run(config)
    assert {node for _, node, _ in grid.sent} == {ANNA, BERN}


# --- quorum ---------------------------------------------------------------------------------------------


def test_a_run_below_its_quorum_fails_and_names_who_and_why(tmp_path):
    config = prepare(tmp_path, minimum_sites=3, max_failed_rounds=1, num_server_rounds=2)
    with pytest.raises(FederationError, match=r"round 1 failed after 2 attempts.*Bern: the disk is full"):
        run(config, behaviour=only_when(BERN, 1, "the disk is full"))
    assert len(events(config, "round-failed")) == 2
    assert events(config)[-1]["event"] == "run-failed"
    assert not (tmp_path / "model.safetensors").exists()


def test_an_empty_round_is_never_counted_as_done(tmp_path):
    config = prepare(tmp_path, minimum_sites=1, max_failed_rounds=0)
    with pytest.raises(FederationError):
        run(config, behaviour=lambda node, request: "no")
    assert events(config, "round-finished") == []


def test_a_second_attempt_keeps_the_good_updates_and_asks_only_the_others(tmp_path):
    failures = iter(["out of memory"])

    def behave(node, request):
        return next(failures, None) or honest(node, request) if node == BERN else honest(node, request)

    config = prepare(tmp_path / "a", minimum_sites=3, num_server_rounds=1, retry_pause=5.0)
    result, grid, _ = run(config, behaviour=behave)
    clean, *_ = run(prepare(tmp_path / "b", minimum_sites=3, num_server_rounds=1))
    assert [grid.asked(node) for node in NAMES] == [[1], [1, 1], [1]]
    assert same_bytes(result.weights, clean.weights)


def test_the_start_waits_a_bounded_time_and_names_the_absent(tmp_path):
    config = prepare(tmp_path, minimum_sites=3, start_deadline=30.0)
    clock = FakeClock()
    grid = FakeGrid(clock, online={ANNA: "first"})
    with pytest.raises(FederationError, match="absent: Bern, Cork"):
        rounds.run(config, grid, clock=clock)
    assert 30.0 <= clock.now < 31.0
    assert grid.sent == []


def test_the_first_round_waits_a_little_for_registered_sites_beyond_the_quorum(tmp_path):
    def script(grid):
        if grid.clock.now > 1.0:
            grid.online[CORK] = "first"

    config = prepare(tmp_path, minimum_sites=2, settle_time=5.0, num_server_rounds=1)
    _, grid, clock = run(config, online={ANNA: "a", BERN: "b"}, script=script)
    assert grid.asked(CORK) == [1]
    assert clock.now < 3.0


# --- checkpoints and resume -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"strategy": "fedadam"}, {"strategy": "median"}])
def test_a_resumed_run_ends_with_the_same_bits_as_an_uninterrupted_one(tmp_path, settings):
    whole, *_ = run(prepare(tmp_path / "whole", num_server_rounds=5, **settings))
    config = prepare(tmp_path / "cut", num_server_rounds=5, **settings)

    def behave(node, request):
        if request.server_round == 4:
            raise KeyboardInterrupt  # the coordinator dies while it sends round 4
        return honest(node, request)

    with pytest.raises(KeyboardInterrupt):
        run(config, behaviour=behave)
    assert events(config)[-1] | {"reason": "interrupted"} == events(config)[-1]
    resumed, grid, _ = run(replace(config, resume=True))
    assert grid.asked(ANNA) == [4, 5]
    assert same_bytes(resumed.weights, whole.weights)
    metrics = [
        json.loads((tmp_path / name / "metrics.json").read_text())["rounds"] for name in ("whole", "cut")
    ]
    without_time = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in table] for table in metrics
    ]
    assert without_time[0] == without_time[1]


def test_a_resumed_site_is_still_held_to_its_size(tmp_path):
    config = prepare(tmp_path, num_server_rounds=1)
    run(config)
    more = replace(config, num_server_rounds=2, resume=True)
    run(
        more,
        behaviour=only_when(CORK, 2, lambda n, r: reply_with(honest(n, r).arrays, n, r, num_examples=301)),
    )
    assert [line["site"] for line in events(config, "site-rejected")] == ["Cork"]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    config = prepare(tmp_path, num_server_rounds=1)
    run(config)
    with pytest.raises(RefusedError, match="already holds a run"):
        run(config)


def test_resuming_under_other_settings_is_refused_naming_them(tmp_path):
    config = prepare(tmp_path, num_server_rounds=1)
    run(config)
    with pytest.raises(RefusedError, match="learning-rate"):
        run(replace(config, resume=True, learning_rate=0.2))


def test_a_corrupt_last_checkpoint_is_passed_over_with_a_warning(tmp_path):
    config = prepare(tmp_path, num_server_rounds=3)
    whole, *_ = run(config)
    last = tmp_path / "checkpoints" / "round-0003.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    resumed, grid, _ = run(replace(config, resume=True))
    assert events(config, "checkpoint-corrupt")[0]["round"] == 3
    assert grid.asked(ANNA) == [3]
    assert same_bytes(resumed.weights, whole.weights)


def test_a_coordinator_that_shares_the_folder_is_refused_with_the_holders_process_id(tmp_path):
    config = prepare(tmp_path, num_server_rounds=1)

    def behave(node, request):
        with pytest.raises(RefusedError, match=str(os.getpid())):
            run(config)
        return honest(node, request)

    run(config, behaviour=behave)


def test_weights_that_are_not_there_or_not_usable_are_named(tmp_path):
    config = prepare(tmp_path)
    (tmp_path / "initial.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(IntegrityError, match=r"initial\.safetensors"):
        run(config)
    (tmp_path / "initial.safetensors").unlink()
    with pytest.raises(InvalidInputError, match=r"initial\.safetensors"):
        run(config)


def test_no_evaluation_is_asked_for_when_it_is_switched_off(tmp_path):
    _, grid, _ = run(prepare(tmp_path, evaluate=False, num_server_rounds=1))
    assert {request.kind for _, _, request in grid.sent} == {TRAIN}


# --- a share of the sites a round ---------------------------------------------------------------------

TEN = {node: f"site-{node}" for node in range(11, 21)}


def asked_by_round(grid):
    trained = [(request.server_round, node) for _, node, request in grid.sent if request.kind == TRAIN]
    return [{node for number, node in trained if number == each} for each in sorted(dict(trained))]


def test_a_share_of_the_sites_trains_each_round_and_all_measure_the_last_model(tmp_path):
    """40 rounds of 3 in 10: a site that is never drawn would be one in 1,000,000 per site (0.7^40 = 6e-7)."""
    config = prepare(tmp_path, TEN, num_server_rounds=40, fraction_train=0.25, evaluate=True)
    _, grid, _ = run(config, online=dict.fromkeys(TEN, "first"))
    drawn = asked_by_round(grid)
    assert [len(sites) for sites in drawn] == [3] * 40
    assert set().union(*drawn) == set(TEN)
    assert len({frozenset(sites) for sites in drawn}) > 1
    assert {node for _, node, request in grid.sent if request.kind == EVALUATE} == set(TEN)
    assert [row["sites"] for row in events_rows(config)] == [3] * 40


def events_rows(config):
    rows = json.loads((Path(config.run_directory) / "metrics.json").read_text())["rounds"]
    return [row for row in rows if row["round"] > 0]


def test_a_sample_is_never_smaller_than_the_quorum(tmp_path):
    config = prepare(tmp_path, TEN, num_server_rounds=2, fraction_train=0.1, minimum_sites=4)
    _, grid, _ = run(config, online=dict.fromkeys(TEN, "first"))
    assert [len(sites) for sites in asked_by_round(grid)] == [4, 4]


def test_others_take_the_places_of_those_that_failed_when_a_round_is_tried_again(tmp_path):
    """Six of ten answer with errors: attempts go on until four good updates are there."""
    settings = {"fraction_train": 0.4, "minimum_sites": 4, "max_failed_rounds": 9, "num_server_rounds": 1}
    config = prepare(tmp_path, TEN, **settings)
    bad = set(list(TEN)[:6])
    _, grid, _ = run(
        config,
        online=dict.fromkeys(TEN, "first"),
        behaviour=lambda node, request: "no" if node in bad else honest(node, request),
    )
    trained = [node for _, node, request in grid.sent if request.kind == TRAIN]
    good = [node for node in trained if node not in bad]
    assert sorted(good) == sorted(set(TEN) - bad)
    assert [row["sites"] for row in events_rows(config)] == [4]


def test_a_share_of_a_hidden_sum_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="hidden sum"):
        prepare(tmp_path, fraction_train=0.5, secure_aggregation=True)
