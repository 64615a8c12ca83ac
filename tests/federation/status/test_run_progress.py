"""Events folded into where a run stands: counts, curves, refusals, resumes, and lines that are broken."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.coordinator.events import EVENTS
from federation.status.run_progress import FAILED, FINISHED, LAST_TROUBLES, RUNNING, RunProgress

from .study_files import HOSTILE, SITES, events_of_a_run


def after(*events: dict[str, Any]) -> RunProgress:
    run = RunProgress(name="trial-1")
    for event in events:
        run.take(event)
    return run


def test_rounds_answers_and_curves_of_a_run_under_way() -> None:
    run = after(*events_of_a_run(3))
    assert (run.state, run.last_round, run.planned_rounds, run.rounds_finished) == (RUNNING, 3, 10, 3)
    assert run.answers["st-mary", "replied"] == 3
    assert (run.answers["eastern", "replied"], run.answers["eastern", "refused"]) == (2, 1)
    assert run.refusals == {("eastern", "policy"): 1}
    # What arrives with round r was measured on the model after r - 1 rounds.
    assert [number for number, _ in run.curve("plain query")] == [0, 1, 2]
    assert abs(run.curve("plain query")[2][1] - (1 - 0.6**3)) < 1e-12
    assert (run.last_seconds, run.seconds_of_rounds, run.train_loss) == (2.5, 7.5, 1 / 3)
    assert run.sites_of_last_round == SITES


def test_the_last_evaluation_measures_the_last_model() -> None:
    last = {"event": "evaluation-finished", "round": 3, "metrics": {"evaluate-accuracy-plain": 0.9}}
    run = after(*events_of_a_run(3), last, {"event": "run-finished", "rounds": 3})
    assert run.curve("plain query")[-1] == (3, 0.9)
    assert run.state == FINISHED


def test_a_refusal_keeps_its_reason_and_the_newest_are_kept() -> None:
    refusal = {"event": "site-refused", "round": 1, "site": "eastern", "kind": "budget", "reason": "spent"}
    run = after(*[refusal] * (LAST_TROUBLES + 5), {**refusal, "reason": "the last"})
    assert len(run.troubles) == LAST_TROUBLES
    assert (run.troubles[-1].reason, run.troubles[-1].kind) == ("the last", "budget")
    assert run.answers["eastern", "refused"] == LAST_TROUBLES + 6


def test_a_run_that_waits_says_for_whom_until_it_goes_on() -> None:
    waiting = {"event": "waiting-for-sites", "present": ["st-mary"], "absent": ["eastern"]}
    asking = {"event": "waiting-for-approval", "round": 1, "sites": ["northside"], "seconds-left": 300.0}
    assert after(waiting).waiting_for == "sites to come online: eastern"
    assert after(waiting, asking).waiting_for == "approval of the plan at northside"
    assert after(waiting, {"event": "round-finished", "round": 1}).waiting_for == ""
    assert after(waiting, {"event": "run-failed", "reason": "nobody came"}).waiting_for == ""


def test_after_a_resume_the_rounds_after_the_checkpoint_are_measured_anew() -> None:
    events = events_of_a_run(5)
    resumed = [events[0], {"event": "run-resumed", "after-round": 2}]
    run = after(*events, {"event": "run-failed", "reason": "killed"}, *resumed)
    assert (run.state, run.last_round, run.end_reason) == (RUNNING, 2, "")
    assert [number for number, _ in run.curve("one view")] == [0, 1, 2]
    assert run.rounds_finished == 5  # a counter does not go back


def test_a_failed_run_says_why_and_what_to_do() -> None:
    run = after({"event": "run-failed", "reason": "no quorum", "hint": "wait for a site"})
    assert (run.state, run.end_reason, run.end_hint) == (FAILED, "no quorum", "wait for a site")


def test_words_from_outside_become_one_printable_line() -> None:
    run = after({"event": "site-rejected", "round": 1, "site": HOSTILE, "reason": HOSTILE + "x" * 5000})
    [trouble] = run.troubles
    assert trouble.site.isprintable()
    assert trouble.reason.isprintable()
    assert len(trouble.reason) <= 1000
    assert "<script>" in trouble.reason  # escaping is the page's, which knows what it is for


def test_what_is_no_event_is_counted_and_passed_over() -> None:
    run = RunProgress(name="t")
    for line in (b"{", b"[]", b"\xff", b'{"event": 3}', b"null", b"[" * 100_000):
        assert run.take_line(line) is None
    assert run.unreadable_lines == 6
    assert run.take_line(b'{"event": "run-started"}') is not None


SCRAPS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
FIELDS = ("time", "round", "site", "sites", "metrics", "incoming", "reason", "kind", "settings", "absent")


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.sampled_from(sorted(EVENTS)), st.dictionaries(st.sampled_from(FIELDS), SCRAPS)),
        max_size=6,
    )
)
def test_no_event_however_odd_its_fields_makes_a_status_fail(
    events: list[tuple[str, dict[str, Any]]],
) -> None:
    run = RunProgress(name="t")
    for event, fields in events:
        run.take({"event": event, **fields})
    assert run.unreadable_lines == 0
    json.dumps([vars(trouble) for trouble in run.troubles], allow_nan=False)
