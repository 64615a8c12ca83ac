"""Checks run at once, end in time, and have an outcome whatever happens."""

from __future__ import annotations

import threading

import pytest

from federation.doctor.checks import Check, Outcome, State, failed, ok, run_checks, skipped, warning
from instahide.errors import RefusedError


def raises(error: Exception) -> Check:
    def look() -> Outcome:
        raise error

    return Check("one", look)


def test_the_report_has_every_check_in_its_order() -> None:
    report = run_checks(
        [
            Check("a", lambda: ok("seen")),
            Check("b", lambda: failed("broken", fix="mend it")),
            Check("c", lambda: warning("old", fix="renew it")),
            Check("d", lambda: skipped("not there", fix="start it")),
        ]
    )
    assert report.to_list() == [
        {"name": "a", "state": "ok", "seen": "seen"},
        {"name": "b", "state": "failed", "seen": "broken", "fix": "mend it"},
        {"name": "c", "state": "warning", "seen": "old", "fix": "renew it"},
        {"name": "d", "state": "skipped", "seen": "not there", "fix": "start it"},
    ]
    assert report.names(State.failed) == ("b",)


def test_checks_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    def look() -> Outcome:
        meeting.wait(timeout=60)  # raises unless all three are here at once
        return ok("met")

    report = run_checks([Check(name, look) for name in "abc"], within=60)
    assert report.names(State.ok) == ("a", "b", "c")


def test_a_check_that_hangs_does_not_hang_the_report() -> None:
    release = threading.Event()

    def hang() -> Outcome:
        release.wait()
        return ok("too late")

    late = skipped("still reading", fix="wait longer")
    checks = [Check("quick", lambda: ok("seen")), Check("hangs", hang), Check("slow", hang, late=late)]
    try:
        rows = dict(run_checks(checks, within=0.2).rows)
    finally:
        release.set()
    assert rows["hangs"] == failed("no answer within 0.2 s", fix="try again with a longer --wait")
    assert rows["slow"] == late
    assert rows["quick"].state is State.ok


def test_an_error_is_an_outcome_with_a_fix() -> None:
    for error, seen in (
        (RefusedError("refused it", hint="allow it"), "refused it"),
        (RefusedError("refused it"), "refused it"),
        (PermissionError(13, "Permission denied", "a/b"), "Permission denied: a/b"),
        (ConnectionResetError("reset"), "reset"),
    ):
        [(_, outcome)] = run_checks([raises(error)]).rows
        assert (outcome.state, outcome.seen) == (State.failed, seen)
        assert outcome.fix


def test_the_words_of_an_unforeseen_error_are_not_shown() -> None:
    [(_, outcome)] = run_checks([raises(ValueError("PRIVATE KEY abc"))]).rows
    assert outcome.state is State.failed
    assert outcome.seen == "unexpected ValueError"
    assert "PRIVATE" not in outcome.fix


@pytest.mark.parametrize("values", [(State.failed, "seen", ""), (State.ok, "seen", "do"), (State.ok, "", "")])
def test_only_what_is_not_ok_has_a_fix(values: tuple[State, str, str]) -> None:
    with pytest.raises(AssertionError):
        Outcome(*values)
