"""The server's side: what it takes, what it refuses, and whom it names when shares are wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from federation.secure_aggregation import (
    Report,
    ReportRequest,
    RoundAbortedError,
    SeedError,
    ServerSession,
    SiteSession,
    UnmaskAnswer,
)
from federation.secure_aggregation.survivors import SurvivorStatement
from instahide.errors import InstaHideError, InvalidInputError, RefusedError

from .parties import Parties, assert_exact, parties, sent


def begun(group: Parties) -> tuple[ReportRequest, dict[str, Report]]:
    request = group.server.start_round(1)
    return request, {name: group.report(name, request) for name in group.names}


def spoiled(answer: UnmaskAnswer, row: int) -> UnmaskAnswer:
    shares = bytearray(answer.shares)
    shares[32 * row] ^= 1
    return replace(answer, shares=bytes(shares))


def test_reports_that_do_not_fit_change_nothing() -> None:
    group = parties(5)
    _, reports = begun(group)
    good = reports["site-000"]
    cases: list[Report] = [
        replace(good, session_id=bytes(16)),
        replace(good, site="mallory"),
        replace(good, server_round=2),
        replace(good, attempt=2),
        replace(good, participants=group.roster.to_bits(group.names[:4])),
        replace(good, vector=bytes(good.vector)[:-4]),
        replace(good, channels=bytes(good.channels)[:-8]),
        replace(good, packages=good.packages[:-1]),
        replace(good, packages=(good.packages[0][:-1], *good.packages[1:])),
        replace(good, check_values=good.check_values[:-32]),
    ]
    for case in cases:
        with pytest.raises(InvalidInputError):
            group.server.add_report(case)
    for report in reports.values():
        group.server.add_report(report)
        with pytest.raises(InvalidInputError, match="came twice"):
            group.server.add_report(report)
    for name, asked in group.close().items():
        group.server.add_answer(group.answer(name, asked))
    assert_exact(group, group.server.finish())


def test_late_reports_are_refused_and_the_survivors_stay_fixed() -> None:
    group = parties(5)
    _, reports = begun(group)
    for name in group.names[:4]:
        group.server.add_report(reports[name])
    requests = group.close()
    with pytest.raises(InvalidInputError, match="is late"):
        group.server.add_report(reports["site-004"])
    with pytest.raises(RefusedError, match="are fixed"):
        group.server.close_reports()
    for name, asked in requests.items():
        group.server.add_answer(group.answer(name, asked))
    assert_exact(group, group.server.finish())


def test_answers_that_do_not_fit_or_are_signed_wrongly_change_nothing() -> None:
    group = parties(5)
    _, reports = begun(group)
    for name in group.names[:4]:
        group.server.add_report(reports[name])
    answers = {name: group.answer(name, asked) for name, asked in group.close().items()}
    good = answers["site-000"]
    for case in (
        replace(good, session_id=bytes(16)),
        replace(good, site="site-004"),
        replace(good, server_round=3),
        replace(good, survivors=group.roster.to_bits(group.names)),
        replace(good, shares=good.shares[:-32]),
        replace(good, signature=bytes(64)),
        replace(good, signature=answers["site-001"].signature),
    ):
        with pytest.raises(InstaHideError):
            group.server.add_answer(case)
    for answer in answers.values():
        group.server.add_answer(answer)
    with pytest.raises(InvalidInputError, match="came twice"):
        group.server.add_answer(good)
    assert_exact(group, group.server.finish())


def test_steps_out_of_order_are_refused() -> None:
    group = parties(3)
    later = (group.server.confirm_request, group.server.unmask_requests, group.server.finish)
    for step in (group.server.close_reports, *later):
        with pytest.raises(RefusedError, match="no round is under way"):
            step()
    group.server.start_round(2)
    for step in later:
        with pytest.raises(RefusedError, match="close_reports comes first"):
            step()
    with pytest.raises(RefusedError, match="is not later than"):
        group.server.start_round(1)


def test_adverts_come_once_and_before_the_first_round() -> None:
    group = parties(4, joining=["site-000", "site-001", "site-002"])
    with pytest.raises(InvalidInputError, match="second advert"):
        group.server.add_advert(group.sites["site-000"].advert())
    with pytest.raises(InvalidInputError, match="sent no advert"):
        group.server.start_round(1, participants=group.names)
    group.server.start_round(1)
    late = SiteSession(group.roster, group.identities["site-003"], sent(group.server.request()))
    with pytest.raises(InvalidInputError, match="after the first round began"):
        group.server.add_advert(late.advert())


def test_adverts_are_sent_until_every_participant_has_reported_once() -> None:
    group = parties(5)
    assert group.server.start_round(1).adverts
    group.round(2, lost_before_report=["site-004"])
    assert not group.server.start_round(3, participants=group.names[:4]).adverts
    assert group.server.start_round(4).adverts
    group.round(5)
    assert not group.server.start_round(6).adverts


def test_a_wrong_share_is_passed_over_and_the_pair_is_named() -> None:
    """Five answers, four needed: site-001 lies about its share of site-003's self-mask seed."""
    group = parties(5)
    _, reports = begun(group)
    for report in reports.values():
        group.server.add_report(report)
    for name, asked in group.close().items():
        answer = group.answer(name, asked)
        group.server.add_answer(spoiled(answer, 3) if name == "site-001" else answer)
    result = group.server.finish()
    assert_exact(group, result)
    assert [(each.dealer, each.answerer) for each in result.disputes] == [("site-003", "site-001")]


@pytest.mark.parametrize(("recipient", "disputes"), [(0, [("site-002", "site-000")]), (4, [])])
def test_a_dealer_who_sealed_a_wrong_share_is_in_the_pair_too(
    recipient: int, disputes: list[tuple[str, str]]
) -> None:
    """The first four answers are used first: a wrong share at the fifth site is never needed."""
    group = parties(5)
    request = group.server.start_round(1)
    session = group.sites["site-002"]
    genuine = session._share

    def share_wrongly(*arguments: Any) -> Any:
        shares = genuine(*arguments)
        shares[recipient, 2, 0] ^= 1  # of its own self-mask seed
        return shares

    session._share = share_wrongly  # type: ignore[method-assign]
    for name in group.names:
        group.server.add_report(group.report(name, request))
    for name, asked in group.close().items():
        group.server.add_answer(group.answer(name, asked))
    result = group.server.finish()
    assert_exact(group, result)
    assert [(each.dealer, each.answerer) for each in result.disputes] == disputes


def test_with_no_answer_to_spare_a_wrong_share_ends_the_round_without_a_sum() -> None:
    group = parties(5)
    _, reports = begun(group)
    for name in group.names[:4]:
        group.server.add_report(reports[name])
    for name, asked in group.close().items():
        answer = group.answer(name, asked)
        group.server.add_answer(spoiled(answer, 0) if name == "site-003" else answer)
    with pytest.raises(SeedError, match="seeds of site-000 cannot be rebuilt") as caught:
        group.server.finish()
    assert caught.value.dealer == "site-000"
    assert_exact(group, group.round(2))


def test_a_wrong_share_of_a_missing_sites_pairwise_seed_is_noticed_too() -> None:
    group = parties(6)
    request = group.server.start_round(1)
    for name in group.names[:5]:
        group.server.add_report(group.report(name, request))
    for name, asked in group.close().items():
        answer = group.answer(name, asked)
        group.server.add_answer(spoiled(answer, 1) if name == "site-000" else answer)
    with pytest.raises(SeedError, match="site-000"):
        group.server.finish()


def test_two_sites_that_disagree_on_their_seed_are_named_and_nothing_is_asked() -> None:
    group = parties(5)
    _, reports = begun(group)
    checks = bytearray(reports["site-001"].check_values)
    checks[32 * 3] ^= 1
    reports["site-001"] = replace(reports["site-001"], check_values=bytes(checks))
    for report in reports.values():
        group.server.add_report(report)
    with pytest.raises(RoundAbortedError, match="do not agree on the seed") as caught:
        group.server.close_reports()
    assert caught.value.sites == ("site-001", "site-003")
    assert_exact(group, group.round(2))


def test_the_missing_are_named_when_a_round_ends() -> None:
    group = parties(5)
    with pytest.raises(RoundAbortedError, match="3 of 4 needed") as caught:
        group.round(1, lost_before_report=["site-001", "site-002"])
    assert caught.value.sites == ("site-001", "site-002")
    with pytest.raises(RoundAbortedError, match="3 answers of 4 needed") as caught:
        group.round(2, lost_before_answer=["site-000", "site-003"])
    assert caught.value.sites == ("site-000", "site-003")


def test_statements_of_a_round_that_failed_are_handed_on() -> None:
    group = parties(5)
    with pytest.raises(RoundAbortedError):
        group.round(1, lost_before_answer=["site-000", "site-003"])
    statements = group.server.start_round(2).statements
    assert [SurvivorStatement.from_bytes(group.roster, each).site for each in statements] == [
        "site-001",
        "site-002",
        "site-004",
    ]


def test_vectors_of_a_wrong_kind_are_refused_at_the_site_and_use_up_no_attempt() -> None:
    group = parties(3)
    request = group.server.start_round(1)
    good, channels = np.zeros(37, np.uint32), np.zeros(3, np.uint64)
    site = group.sites["site-000"]
    for vector, beside in (
        (good.astype(np.int32), channels),
        (good[:-1], channels),
        (good.astype(np.float32), channels),
        (good.reshape(1, -1), channels),
        (good, channels[:2]),
        (good, channels.astype(np.uint32)),
    ):
        with pytest.raises(InvalidInputError, match="as the roster's parameters say"):
            site.report(request, vector, beside)
    site.report(request, good, channels)
    assert not good.any()  # the caller's vector stays as it was


def test_session_ids_are_fresh() -> None:
    group = parties(3)
    ids = {ServerSession(group.roster, bytes(32)).request().session_id for _ in range(20)}
    assert len(ids) == 20


def test_an_advert_of_another_session_is_refused() -> None:
    group = parties(3)
    with pytest.raises(InvalidInputError, match="another session"):
        ServerSession(group.roster, bytes(32)).add_advert(group.sites["site-000"].advert())
