"""Whatever sets of survivors a server tells whom: one sum at most, over enough honest sites."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.secure_aggregation import (
    AggregationParameters,
    ConfirmRequest,
    ContradictionError,
    Report,
    RoundAbortedError,
    UnmaskRequest,
    shamir,
)
from federation.secure_aggregation.key_agreement import Position, expand
from federation.secure_aggregation.pairwise_masks import VECTOR_STREAM, add_masks, from_wire
from federation.secure_aggregation.survivors import SurvivorStatement
from instahide.errors import IntegrityError, InvalidInputError, RefusedError

from .malice import Shares, learn_from_answer, unmask_request
from .parties import Parties, assert_exact, parties

Told = tuple[frozenset[int] | None, ...]
"""For each honest site the set of survivors it answered for; None for a site that was not asked."""


def every_story(num_sites: int, minimum: int, honest: range) -> Iterator[Told]:
    """Every way to tell each honest site a set it would answer for, or none."""
    sites = range(num_sites)
    choices = []
    for site in honest:
        sets = (
            frozenset(left)
            for size in range(minimum, num_sites + 1)
            for left in itertools.combinations(sites, size)
        )
        choices.append([None, *(left for left in sets if site in left)])
    return itertools.product(*choices)


def openable(told: Told, honest: range, needed: int) -> list[tuple[int, ...]]:
    """Sets of honest sites whose sum can be unmasked: all their self masks, and every pairwise mask out of
    the set, have ``needed`` honest answers. Shares given for different sets are put together freely."""
    sets = [left for left in told if left is not None]

    def answers(inside: int, outside: int) -> int:
        return sum(inside in left and outside not in left for left in sets)

    self_mask = [sum(site in left for left in sets) >= needed for site in honest]
    pairwise = {
        (i, j): max(answers(i, j), answers(j, i)) >= needed for i, j in itertools.permutations(honest, 2)
    }
    chosen = [site for site in honest if self_mask[site]]
    return [
        group
        for size in range(1, len(chosen) + 1)
        for group in itertools.combinations(chosen, size)
        if all(pairwise[i, j] for i in group for j in honest if j not in group)
    ]


@pytest.mark.parametrize(
    ("num_sites", "threshold", "minimum", "colluding"),
    [
        (3, 3, 3, 0),
        (3, 3, 3, 1),
        (4, 3, 3, 0),
        (4, 3, 3, 1),
        (4, 3, 4, 0),
        (4, 4, 4, 2),
        (5, 4, 4, 0),
        (5, 4, 4, 1),
        (5, 4, 4, 2),
        (6, 5, 5, 3),
        (6, 4, 5, 1),
    ],
)
def test_every_story_a_server_can_tell_opens_one_sum_at_most_and_never_of_too_few(
    num_sites: int, threshold: int, minimum: int, colluding: int
) -> None:
    """Exhaustive for small runs: colluders hold shares of everything, each honest site answers once."""
    parameters = AggregationParameters.for_sites(
        num_sites, threshold=threshold, minimum_sites=minimum, vector_length=1, num_channels=0
    )
    assert colluding <= parameters.max_colluding_sites
    honest = range(num_sites - colluding)
    smallest = num_sites
    for told in every_story(num_sites, minimum, honest):
        sums = openable(told, honest, threshold - colluding)
        assert len(sums) <= 1
        smallest = min([smallest, *map(len, sums)])
    assert smallest >= parameters.fewest_honest_sites(colluding) >= 2


def test_beyond_the_bound_two_sums_come_out_so_the_test_above_can_fail() -> None:
    honest = range(3)
    assert AggregationParameters.for_sites(4, vector_length=1, num_channels=0).max_colluding_sites == 1
    stories = every_story(4, 3, range(2))
    assert any(len(openable(told, range(2), 3 - 2)) > 1 for told in stories)
    assert all(len(openable(told, honest, 3 - 1)) <= 1 for told in every_story(4, 3, honest))


def test_the_bounds_keep_two_honest_sites_in_every_sum_for_all_parameters() -> None:
    for num_sites in range(2, 60):
        for threshold in range(num_sites // 2 + 1, num_sites + 1):
            for minimum in {threshold, (threshold + num_sites) // 2, num_sites}:
                for confirm in (False, True):
                    parameters = AggregationParameters.for_sites(
                        num_sites,
                        threshold=threshold,
                        minimum_sites=minimum,
                        vector_length=1,
                        num_channels=0,
                        confirm_survivors=confirm,
                    )
                    bound = parameters.max_colluding_sites
                    fewest = [parameters.fewest_honest_sites(c) for c in range(bound + 1)]
                    assert all(2 <= few <= minimum - c for c, few in enumerate(fewest))
                    assert parameters.fewest_honest_sites(2 * threshold - num_sites) == 0


MIXED = {
    # Ten sites, threshold 7, at most three left out of a set. The first six are never all left out.
    **{place: {6, 7, 8, 9} - {6 + place % 4} for place in range(6)},
    **{place: {6, 7, 8, 9} - {place} for place in range(6, 10)},
}


def mixed_stories(group: Parties) -> dict[str, tuple[str, ...]]:
    names = group.names
    return {
        names[place]: tuple(name for other, name in enumerate(names) if other not in left_out)
        for place, left_out in MIXED.items()
    }


def test_without_confirmation_mixed_sets_open_one_sum_of_fewer_than_minimum_sites_as_the_page_says() -> None:
    """Shares given for different sets are put together: six sites instead of seven, and no fewer.

    This is the price of two message cycles, stated by ``fewest_honest_sites``.
    """
    group = parties(10)
    assert group.roster.parameters.minimum_sites == 7
    assert group.roster.parameters.fewest_honest_sites() == 6
    request = group.server.start_round(1)
    reports = {name: group.report(name, request) for name in group.names}
    known: Shares = {}
    for name, survivors in mixed_stories(group).items():
        assert len(survivors) == 7
        answer = group.answer(name, unmask_request(group, name, survivors, reports))
        learn_from_answer(group, answer, group.names, known)
    assert unmasked(group, known, reports, group.names[:6])
    assert not unmasked(group, known, reports, group.names[:5])
    assert not unmasked(group, known, reports, group.names[:7])


def unmasked(group: Parties, known: Shares, reports: dict[str, Report], chosen: tuple[str, ...]) -> bool:
    """Whether the sum over ``chosen`` comes out when all masks that can be rebuilt are taken off."""
    threshold = group.roster.parameters.threshold
    total = sum(
        (from_wire(reports[name].vector, 32) for name in chosen[1:]),
        from_wire(reports[chosen[0]].vector, 32).copy(),
    )
    for name in chosen:
        for about in (name, *(other for other in group.names if other not in chosen)):
            shares = known.get((name, about), {})
            if len(shares) < threshold:
                continue
            taken = sorted(shares)[:threshold]
            points = [group.roster.index(site) for site in taken]
            seed = shamir.interpolate(np.stack([shares[site] for site in taken]), points).tobytes()
            add_masks(total, [(expand(seed).stream_key, -1 if about >= name else 1)], stream=VECTOR_STREAM)
    return bool(np.array_equal(total, group.clear_sums(chosen)[0]))


def confirming(num_sites: int = 5) -> tuple[Parties, dict[str, Report]]:
    group = parties(num_sites, confirm_survivors=True)
    request = group.server.start_round(1)
    reports = {name: group.report(name, request) for name in group.names}
    for report in reports.values():
        group.server.add_report(report)
    group.server.close_reports()
    return group, reports


def confirmed(group: Parties, names: tuple[str, ...]) -> None:
    for name in names:
        group.server.add_confirmation(group.sites[name].confirm(group.server.confirm_request()))


def statement_of(group: Parties, name: str, survivors: tuple[str, ...], server_round: int = 1) -> bytes:
    position = Position(server_round, 1, group.roster.to_bits(group.names))
    bits = group.roster.to_bits(survivors)
    signed = SurvivorStatement.sign(group.identities[name], group.server._transcript, position, bits)
    return signed.to_bytes(group.roster)


def request_for(group: Parties, name: str, reports: dict[str, Report], *statements: bytes) -> UnmaskRequest:
    return replace(unmask_request(group, name, group.names, reports), confirmations=statements)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_with_confirmation_too_every_pattern_of_dropouts_gives_the_exact_sum_or_none(
    data: st.DataObject,
) -> None:
    num_sites = data.draw(st.integers(2, 6))
    group = parties(num_sites, confirm_survivors=True, vector_length=5)
    threshold = group.roster.parameters.threshold
    some = st.sets(st.sampled_from(group.names))
    silent, unsigned, mute = data.draw(some), data.draw(some), data.draw(some)
    reporting = set(group.names) - silent
    confirming = reporting - unsigned
    lost = {"lost_before_report": silent, "lost_before_confirmation": unsigned, "lost_before_answer": mute}
    if len(reporting) >= threshold and len(confirming - mute) >= threshold:
        result = group.round(1, **lost)
        assert set(result.survivors) == reporting
        assert_exact(group, result)
    else:
        with pytest.raises(RoundAbortedError):
            group.round(1, **lost)
        if len(confirming) < threshold:  # nobody was asked for shares
            assert all(group.sites[name].spent_round == 0 for name in group.names)
            assert_exact(group, group.round(1, 2))


def test_mixed_sets_get_nothing_from_sites_that_confirm() -> None:
    group = parties(10, confirm_survivors=True)
    request = group.server.start_round(1)
    reports = {name: group.report(name, request) for name in group.names}
    signed = {}
    for name, survivors in mixed_stories(group).items():
        told = ConfirmRequest(
            session_id=request.session_id,
            server_round=1,
            attempt=1,
            survivors=group.roster.to_bits(survivors),
        )
        confirmation = group.sites[name].confirm(told)
        signed[name] = SurvivorStatement(
            name, Position(1, 1, request.participants), confirmation.survivors, confirmation.signature
        ).to_bytes(group.roster)
    for name, survivors in mixed_stories(group).items():
        asked = unmask_request(group, name, survivors, reports)
        for statements in ((), (signed[name],)):
            with pytest.raises(RefusedError, match="sites confirmed the survivors"):
                group.answer(name, replace(asked, confirmations=statements))
        with pytest.raises(ContradictionError):
            group.answer(name, replace(asked, confirmations=tuple(signed.values())))


def test_no_shares_without_the_own_signature_and_those_of_a_threshold() -> None:
    group, reports = confirming()
    statements = [statement_of(group, name, group.names) for name in group.names]
    with pytest.raises(RefusedError, match="has not confirmed these survivors"):
        group.answer("site-000", request_for(group, "site-000", reports, *statements))
    confirmed(group, group.names)
    for too_few in ((), statements[:3], [statements[1]] * 5):
        with pytest.raises(RefusedError, match="sites confirmed the survivors"):
            group.answer("site-000", request_for(group, "site-000", reports, *too_few))
    older = [statement_of(group, name, group.names, server_round=2) for name in group.names]
    with pytest.raises(RefusedError, match="0 sites confirmed"):
        group.answer("site-000", request_for(group, "site-000", reports, *older))
    forged = statements[1][:-1] + bytes([statements[1][-1] ^ 1])
    with pytest.raises(IntegrityError, match="said to be from site-001"):
        group.answer("site-000", request_for(group, "site-000", reports, forged, *statements[2:]))
    group.answer("site-000", request_for(group, "site-000", reports, *statements[1:]))


def test_what_was_confirmed_is_what_is_unmasked() -> None:
    """All five sign the full set; the request for shares then leaves one of them out."""
    group, reports = confirming()
    confirmed(group, group.names)
    statements = tuple(statement_of(group, name, group.names) for name in group.names)
    fewer = unmask_request(group, "site-000", group.names[:4], reports)
    with pytest.raises(RefusedError, match="has not confirmed these survivors"):
        group.answer("site-000", replace(fewer, confirmations=statements))
    group.answer("site-000", request_for(group, "site-000", reports, *statements))


def test_a_site_signs_one_set_for_an_attempt_and_may_repeat_it() -> None:
    group, _ = confirming()
    request = group.server.confirm_request()
    first = group.sites["site-000"].confirm(request)
    assert group.sites["site-000"].confirm(request) == first
    other = replace(request, survivors=group.roster.to_bits(group.names[:4]))
    with pytest.raises(RefusedError, match="signed another set"):
        group.sites["site-000"].confirm(other)


def test_a_signature_on_another_set_ends_the_session_of_who_sees_it() -> None:
    group, reports = confirming()
    confirmed(group, group.names)
    statements = [statement_of(group, name, group.names) for name in group.names[:4]]
    contradicting = statement_of(group, "site-004", group.names[1:])
    with pytest.raises(ContradictionError, match="told site-000 and site-004"):
        group.answer("site-000", request_for(group, "site-000", reports, *statements, contradicting))
    with pytest.raises(ContradictionError):
        group.answer("site-000", request_for(group, "site-000", reports, *statements))


def test_too_few_confirmations_end_the_attempt_and_the_next_goes_on() -> None:
    group, _ = confirming()
    confirmed(group, group.names[:3])
    with pytest.raises(RoundAbortedError, match="3 confirmations of 4 needed") as caught:
        group.server.unmask_requests()
    assert caught.value.sites == group.names[3:]
    assert_exact(group, group.round(1, 2))


def test_confirmations_of_an_earlier_round_do_not_count_for_a_later_one() -> None:
    group = parties(5, confirm_survivors=True)
    assert_exact(group, group.round(1))
    with pytest.raises(RoundAbortedError, match="3 confirmations of 4 needed"):
        group.round(2, lost_before_confirmation=group.names[3:])


def test_confirmations_that_do_not_fit_change_nothing() -> None:
    group, _ = confirming()
    good = group.sites["site-000"].confirm(group.server.confirm_request())
    for changes, error in (
        ({"session_id": bytes(16)}, InvalidInputError),
        ({"attempt": 2}, InvalidInputError),
        ({"site": "mallory"}, InvalidInputError),
        ({"survivors": group.roster.to_bits(group.names[:4])}, InvalidInputError),
        ({"site": "site-001"}, IntegrityError),
        ({"signature": bytes(64)}, IntegrityError),
    ):
        with pytest.raises(error):
            group.server.add_confirmation(replace(good, **changes))
    assert not group.server._statements


def test_a_run_that_does_not_confirm_signs_nothing_early() -> None:
    group = parties(3)
    request = group.server.start_round(1)
    for name in group.names:
        group.server.add_report(group.report(name, request))
    group.server.close_reports()
    with pytest.raises(RefusedError, match="does not confirm"):
        group.sites["site-000"].confirm(group.server.confirm_request())
