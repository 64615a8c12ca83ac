"""Whoever is lost, whenever: the sum is the clear sum exactly, or nothing is opened at all."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.secure_aggregation import RoundAbortedError
from instahide.errors import RefusedError

from .malice import unmask_request
from .parties import assert_exact, parties, session_of


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_pattern_of_dropouts_gives_the_exact_sum_or_no_share_at_all(data: st.DataObject) -> None:
    num_sites = data.draw(st.integers(2, 7), label="sites")
    threshold = data.draw(st.integers(num_sites // 2 + 1, num_sites), label="threshold")
    minimum = data.draw(st.integers(threshold, num_sites), label="minimum")
    group = parties(
        num_sites,
        threshold=threshold,
        minimum_sites=minimum,
        vector_length=data.draw(st.integers(1, 40), label="length"),
        num_channels=data.draw(st.integers(0, 3), label="channels"),
        ring_bits=data.draw(st.sampled_from([16, 32, 64]), label="ring"),
    )
    never_joined = data.draw(st.sets(st.sampled_from(group.names)), label="no advert")
    group = session_of(
        group.identities, group.roster, joining=[name for name in group.names if name not in never_joined]
    )
    for server_round in (1, 2):
        cohort = group.server.cohort
        asked = cohort if not cohort else data.draw(st.sets(st.sampled_from(cohort)), label="participants")
        silent = data.draw(st.sets(st.sampled_from(group.names)), label="no report")
        mute = data.draw(st.sets(st.sampled_from(group.names)), label="no answer")
        reporting = {name for name in asked if name not in silent}
        answering = reporting - mute
        allowed = len(asked) >= minimum and len(reporting) >= minimum and len(answering) >= threshold
        if allowed:
            result = group.round(
                server_round, participants=asked, lost_before_report=silent, lost_before_answer=mute
            )
            assert set(result.survivors) == reporting
            assert_exact(group, result)
        else:
            with pytest.raises(RoundAbortedError):
                group.round(
                    server_round, participants=asked, lost_before_report=silent, lost_before_answer=mute
                )
            # Before the threshold of reports no site was asked for shares, so none gave any.
            if len(asked) >= minimum and len(reporting) < minimum:
                for name in reporting:
                    assert group.sites[name]._open is not None
                    assert group.sites[name].spent_round < server_round


def test_below_the_minimum_sites_themselves_refuse_whatever_the_server_says() -> None:
    """A server that skips its own check gets a refusal from every site."""
    group = parties(5)
    request = group.server.start_round(1)
    names = group.names[:3]
    reports = {name: group.report(name, request) for name in names}
    for name in names:
        forged = unmask_request(group, name, names, reports)
        with pytest.raises(RefusedError, match="has 3 sites"):
            group.sites[name].unmask(forged)


def test_a_session_begins_without_absent_sites_and_they_join_the_next() -> None:
    group = parties(5, joining=["site-000", "site-001", "site-002", "site-004"])
    assert_exact(group, group.round(1))
    full = session_of(group.identities, group.roster)
    result = full.round(2)
    assert_exact(full, result)
    assert result.survivors == full.names


def test_a_restarted_site_is_missing_until_the_next_session() -> None:
    group = parties(5)
    assert_exact(group, group.round(1))
    restarted = session_of(group.identities, group.roster).sites["site-002"]
    request = group.server.start_round(2)
    with pytest.raises(Exception, match="another session"):
        restarted.accept(request)
    assert_exact(group, group.round(3, lost_before_report=["site-002"]))


def test_an_attempt_that_failed_before_any_answer_can_be_tried_again() -> None:
    group = parties(4)
    with pytest.raises(RoundAbortedError, match="too few reports, 2 of 3 needed; missing"):
        group.round(1, 1, lost_before_report=["site-000", "site-001"])
    assert_exact(group, group.round(1, 2))


def test_after_answers_were_given_only_a_later_round_goes_on() -> None:
    group = parties(4)
    with pytest.raises(RoundAbortedError, match="2 answers of 3 needed"):
        group.round(1, 1, lost_before_answer=["site-000", "site-001"])
    with pytest.raises(RefusedError, match="round 1 is over for this site"):
        group.round(1, 2, participants=group.names[1:])
    assert_exact(group, group.round(2))


def test_many_rounds_run_on_one_session_with_other_sites_missing_each_time() -> None:
    group = parties(6)
    sums = []
    for server_round in range(1, 13):
        lost = [group.names[server_round % 6]] if server_round % 2 else []
        result = group.round(server_round, lost_before_report=lost)
        assert_exact(group, result)
        sums.append(result.vector.tobytes())
    assert len(set(sums)) == 12


def test_more_sites_than_fit_in_one_byte_of_a_set() -> None:
    group = parties(20, vector_length=3)
    assert_exact(
        group, group.round(1, lost_before_report=group.names[:3], lost_before_answer=group.names[17:])
    )
