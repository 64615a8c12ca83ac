"""The server may do anything. What it cannot do: open one site, or tell two stories unnoticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from federation.secure_aggregation import (
    Advert,
    ContradictionError,
    PackageError,
    Report,
    ReportRequest,
    ServerSession,
    SessionRequest,
    SiteIdentity,
    SiteSession,
    shamir,
)
from federation.secure_aggregation.key_agreement import Position, advert_statement, expand, pairwise_seed
from federation.secure_aggregation.pairwise_masks import VECTOR_STREAM, add_masks, from_wire
from federation.secure_aggregation.survivors import SurvivorStatement
from instahide.errors import InstaHideError, IntegrityError, InvalidInputError, RefusedError

from .malice import Shares, learn_from_answer, learn_from_colluder, unmask_request
from .parties import Parties, parties, sent, session_of


def reported(group: Parties, server_round: int = 1) -> dict[str, Report]:
    request = group.server.start_round(server_round)
    return {name: group.report(name, request) for name in group.roster.from_bits(request.participants)}


def rebuilt(group: Parties, known: Shares, dealer: str, about: str) -> bytes | None:
    """The seed, if the server holds a threshold of its shares."""
    shares = known.get((dealer, about), {})
    threshold = group.roster.parameters.threshold
    if len(shares) < threshold:
        return None
    names = sorted(shares)[:threshold]
    points = [group.roster.index(name) for name in names]
    return shamir.interpolate(np.stack([shares[name] for name in names]), points).tobytes()


def opened(group: Parties, known: Shares, target: str, reports: dict[str, Report], helpers: set[str]) -> bool:
    """The attack: take every mask off ``target``'s report with what is known; is it the clear vector?"""
    others = [name for name in group.names if name != target]
    seeds: dict[str, bytes | None] = {target: rebuilt(group, known, target, target)}
    for name in others:
        seeds[name] = rebuilt(group, known, target, name) or rebuilt(group, known, name, target)
        if name in helpers:  # a colluding site knows the seed anyway
            cohort = group.sites[name]._cohort
            assert cohort is not None
            position = group.server._current().position
            seeds[name] = pairwise_seed(cohort.keys[target], position)
    vector = from_wire(reports[target].vector, group.roster.parameters.ring_bits).copy()
    masks = [
        (expand(seed).stream_key, -1 if name >= target else 1)
        for name, seed in seeds.items()
        if seed is not None
    ]
    add_masks(vector, masks, stream=VECTOR_STREAM)
    return bool(np.array_equal(vector, group.vectors[target]))


def two_stories(
    group: Parties, num_colluding: int, target: str
) -> tuple[Shares, dict[str, Report], set[str]]:
    """The best a server can do: one set with the target to some honest sites, one without to the others.

    The first group is as small as suffices for a threshold together with the colluders (and the
    target, which answers only for sets that hold it); all remaining honest sites go to the second.
    """
    reports = reported(group)
    honest = [name for name in group.names if name != target][: len(group.names) - 1 - num_colluding]
    helpers = {name for name in group.names if name != target} - set(honest)
    known: Shares = {}
    for name in helpers:
        learn_from_colluder(group, name, reports, known)
    with_target = [target, *honest]
    needed = max(0, group.roster.parameters.threshold - num_colluding)
    first, second = with_target[:needed], with_target[needed:]
    without = [name for name in group.names if name != target]
    for name in first:
        answer = group.answer(name, unmask_request(group, name, group.names, reports))
        learn_from_answer(group, answer, group.names, known)
    for name in second:
        answer = group.answer(name, unmask_request(group, name, without, reports))
        learn_from_answer(group, answer, group.names, known)
    return known, reports, helpers


@pytest.mark.parametrize(("num_sites", "threshold"), [(3, 3), (4, 3), (5, 4), (5, 3), (6, 5), (7, 5)])
def test_contradictory_survivor_sets_open_no_site_within_the_bound(num_sites: int, threshold: int) -> None:
    group = parties(num_sites, threshold=threshold)
    colluding = group.roster.parameters.max_colluding_sites
    known, reports, helpers = two_stories(group, colluding, "site-000")
    assert not opened(group, known, "site-000", reports, helpers)


def test_one_colluder_beyond_the_bound_does_open_it_so_the_test_above_can_fail() -> None:
    """n = 5, t = 3: the bound is 2t - n - 1 = 0. One colluder, and two honest sites for each story."""
    group = parties(5, threshold=3)
    assert group.roster.parameters.max_colluding_sites == 0
    known, reports, helpers = two_stories(group, 1, "site-000")
    assert opened(group, known, "site-000", reports, helpers)


def test_fewer_than_the_threshold_of_shares_give_a_seed_that_is_wrong() -> None:
    group = parties(5)
    reports = reported(group)
    known: Shares = {}
    for name in group.names[:3]:
        answer = group.answer(name, unmask_request(group, name, group.names, reports))
        learn_from_answer(group, answer, group.names, known)
    check = reports["site-004"].check_values[4 * 32 :]
    shares = known["site-004", "site-004"]
    points = [group.roster.index(name) for name in shares]
    guess = shamir.interpolate(np.stack(list(shares.values())), points).tobytes()
    assert expand(guess).check_value != check
    fourth = group.answer("site-003", unmask_request(group, "site-003", group.names, reports))
    learn_from_answer(group, fourth, group.names, known)
    seed = rebuilt(group, known, "site-004", "site-004")
    assert seed is not None
    assert expand(seed).check_value == check


def test_no_site_ever_gives_both_kinds_of_secret_of_one_site() -> None:
    group = parties(5)
    reports = reported(group)
    for name in group.names[1:]:
        known: Shares = {}
        answer = group.answer(name, unmask_request(group, name, group.names[1:], reports))
        learn_from_answer(group, answer, group.names, known)
        assert set(known) == {(i, about) for i in group.names[1:] for about in (i, group.names[0])}


def test_a_second_request_is_refused_the_same_or_another() -> None:
    group = parties(5)
    reports = reported(group)
    group.answer("site-001", unmask_request(group, "site-001", group.names, reports))
    for survivors in (group.names, group.names[1:]):
        with pytest.raises(RefusedError, match="shares are given once a round"):
            group.answer("site-001", unmask_request(group, "site-001", survivors, reports))


def test_within_a_round_a_second_sum_never_reaches_the_threshold() -> None:
    """Attempt 1 with the fewest answers that open it; those sites refuse attempt 2, the rest are too few."""
    group = parties(5)
    group.round(1, 1, lost_before_answer=["site-004"])
    request = group.server.start_round(1, 2)
    for name in group.names[:4]:
        with pytest.raises(RefusedError, match="round 1 is over for this site"):
            group.report(name, request)
    group.report("site-004", request)


@pytest.mark.parametrize("survivors", [(0, 1, 2), (1, 2, 3, 4)])
def test_too_few_survivors_or_a_set_without_the_site_get_nothing(survivors: tuple[int, ...]) -> None:
    group = parties(5)
    reports = reported(group)
    listed = [group.names[place] for place in survivors]
    with pytest.raises(RefusedError):
        group.answer("site-000", unmask_request(group, "site-000", listed, reports))
    group.answer("site-000", unmask_request(group, "site-000", group.names, reports))


def test_a_survivor_who_was_not_asked_gets_nothing() -> None:
    group = parties(5)
    request = group.server.start_round(1, participants=group.names[:4])
    reports = {name: group.report(name, request) for name in group.names[:4]}
    asked = unmask_request(group, "site-000", group.names[:4], reports)
    with pytest.raises(RefusedError, match="one that was not asked"):
        group.answer(
            "site-000",
            replace(asked, survivors=group.roster.to_bits(group.names), packages=(*asked.packages, b"")),
        )


def test_tampered_swapped_or_replayed_packages_do_not_open_and_no_share_leaves() -> None:
    group = parties(5)
    old = reported(group, 1)
    reports = reported(group, 2)
    good = unmask_request(group, "site-000", group.names, reports)
    stale = unmask_request(group, "site-000", group.names, old)
    broken = bytes([good.packages[0][0] ^ 1]) + good.packages[0][1:]
    for packages in (
        (broken, *good.packages[1:]),
        (good.packages[1], good.packages[0], *good.packages[2:]),
        (stale.packages[0], *good.packages[1:]),
        (unmask_request(group, "site-002", group.names, reports).packages[1], *good.packages[1:]),
        (b"", *good.packages[1:]),
    ):
        with pytest.raises(PackageError, match="no share was given out"):
            group.answer("site-000", replace(good, packages=packages))
    with pytest.raises(InvalidInputError, match="one package for each"):
        group.answer("site-000", replace(good, packages=good.packages[:3]))
    group.answer("site-000", good)


def test_messages_of_another_round_attempt_or_session_are_refused() -> None:
    group = parties(5)
    reports = reported(group, 3)
    good = unmask_request(group, "site-000", group.names, reports)
    for changes in ({"server_round": 2}, {"server_round": 4}, {"attempt": 2}):
        with pytest.raises(RefusedError, match="no open report"):
            group.answer("site-000", replace(good, **changes))
    with pytest.raises(InvalidInputError, match="another session"):
        group.answer("site-000", replace(good, session_id=bytes(16)))


def test_a_site_masks_one_vector_for_one_attempt_and_never_goes_back() -> None:
    group = parties(5)
    request = group.server.start_round(5, 2)
    group.report("site-000", request)
    for server_round, attempt in ((5, 2), (5, 1), (4, 9), (1, 1)):
        with pytest.raises(RefusedError, match="is not later than"):
            group.report("site-000", replace(request, server_round=server_round, attempt=attempt))


def test_a_round_answered_in_one_session_is_not_served_in_the_next() -> None:
    group = parties(3)
    group.round(7)
    server = ServerSession(group.roster, bytes(32))
    sites = {
        name: SiteSession(
            group.roster,
            group.identities[name],
            server.request(),
            last_round=group.sites[name].spent_round,
        )
        for name in group.names
    }
    for session in sites.values():
        server.add_advert(session.advert())
    with pytest.raises(RefusedError, match="round 7 is over for this site"):
        sites["site-000"].accept(server.start_round(7))
    sites["site-000"].accept(server.start_round(8))


def test_different_participants_told_to_different_sites_share_no_seed() -> None:
    """Sites under another view of the round cannot open the package, so no share of it leaves."""
    group = parties(5)
    request = group.server.start_round(1)
    fewer = replace(request, participants=group.roster.to_bits(group.names[:4]))
    reports = {name: group.report(name, fewer if name == "site-000" else request) for name in group.names[:4]}
    answer = unmask_request(group, "site-001", group.names[1:4], {**reports, "site-004": reports["site-003"]})
    told = replace(
        answer,
        survivors=group.roster.to_bits(group.names[:4]),
        packages=(reports["site-000"].packages[0], *answer.packages),
    )
    with pytest.raises(PackageError):
        group.answer("site-001", told)


def altered(request: ReportRequest, place: int, entry: bytes) -> ReportRequest:
    adverts = request.adverts[: 96 * place] + entry + request.adverts[96 * (place + 1) :]
    return replace(request, adverts=adverts)


def test_a_server_in_the_middle_has_no_identity_key() -> None:
    """Its own X25519 key under its own signature, under no signature, and under another site's."""
    group = parties(5)
    request = group.server.start_round(1)
    intruder = SiteIdentity.generate("site-001")
    session = SiteSession(
        replace(group.roster, identities={**group.roster.identities, "site-001": intruder.public_key}),
        intruder,
        SessionRequest(
            session_id=request.session_id,
            roster_sha256=replace(
                group.roster, identities={**group.roster.identities, "site-001": intruder.public_key}
            ).digest,
            test_vector_sha256=bytes(32),
        ),
    )
    forged = session.advert()
    honest = request.adverts[96:192]
    for entry in (
        forged.public_key + forged.signature,
        forged.public_key + honest[32:],
        forged.public_key + bytes(64),
        request.adverts[192:288],
    ):
        with pytest.raises(IntegrityError, match="said to be from site-001"):
            group.sites["site-000"].accept(altered(request, 1, entry))
    with pytest.raises(IntegrityError, match="said to be from site-001"):
        group.server.__class__(group.roster, bytes(32), session_id=request.session_id).add_advert(forged)


def test_an_advert_of_another_session_or_run_is_not_taken_for_one_of_this() -> None:
    group = parties(5)
    request = group.server.start_round(1)
    other = session_of(group.identities, group.roster)
    replayed = other.server.start_round(1).adverts[96:192]
    with pytest.raises(IntegrityError, match="said to be from site-001"):
        group.sites["site-000"].accept(altered(request, 1, replayed))
    run = replace(group.roster, run_name="another")
    key = request.adverts[96:128]
    signed = advert_statement(run, request.session_id, "site-001", key)
    entry = key + group.identities["site-001"].signing_key.sign(signed)
    with pytest.raises(IntegrityError, match="said to be from site-001"):
        group.sites["site-000"].accept(altered(request, 1, entry))


def test_a_sites_own_advert_must_be_there_unaltered() -> None:
    group = parties(5)
    request = group.server.start_round(1)
    older = session_of(group.identities, group.roster).sites["site-000"]
    key = older.advert().public_key
    signed = advert_statement(group.roster, request.session_id, "site-000", key)
    entry = key + group.identities["site-000"].signing_key.sign(signed)
    with pytest.raises(IntegrityError, match="own advert is absent or altered"):
        group.sites["site-000"].accept(altered(request, 0, entry))
    without = replace(request, cohort=group.roster.to_bits(group.names[1:]), adverts=request.adverts[96:])
    with pytest.raises(IntegrityError, match="own advert is absent or altered"):
        group.sites["site-000"].accept(without)


def test_cohorts_that_are_too_small_malformed_or_change_are_refused() -> None:
    group = parties(5)
    request = group.server.start_round(1)
    site = group.sites["site-000"]
    with pytest.raises(RefusedError, match="cohort has 3 sites"):
        site.accept(
            replace(request, cohort=group.roster.to_bits(group.names[:3]), adverts=request.adverts[:288])
        )
    with pytest.raises(InvalidInputError, match="one advert for each"):
        site.accept(replace(request, adverts=request.adverts[:-1]))
    with pytest.raises(RefusedError, match="not seen the session's adverts"):
        site.accept(replace(request, cohort=b"", adverts=b""))
    site.accept(request)
    with pytest.raises(IntegrityError, match="differ from those"):
        site.accept(
            replace(request, cohort=group.roster.to_bits(group.names[:4]), adverts=request.adverts[:384])
        )
    with pytest.raises(RefusedError, match="the round has 3 sites"):
        site.accept(replace(request, participants=group.roster.to_bits(group.names[:3])))
    with pytest.raises(RefusedError, match="not among the participants"):
        site.accept(replace(request, participants=group.roster.to_bits(group.names[1:])))


def test_sites_that_saw_different_adverts_share_no_key() -> None:
    """A site restarts within a session id; the server shows its old key to one peer, the new to another."""
    group = parties(5)
    first = group.server.start_round(1)
    twin = SiteSession(group.roster, group.identities["site-004"], sent(group.server.request()))
    advert = twin.advert()
    second = altered(first, 4, advert.public_key + advert.signature)
    a, b = group.sites["site-000"], group.sites["site-001"]
    a.accept(first)
    b.accept(second)
    assert a._cohort is not None
    assert b._cohort is not None
    assert a._cohort.keys["site-001"] != b._cohort.keys["site-000"]


def test_another_roster_at_the_server_is_noticed_before_anything_is_sent() -> None:
    group = parties(5)
    other = parties(5, threshold=3)
    with pytest.raises(IntegrityError, match="not the one this site approved"):
        SiteSession(group.roster, group.identities["site-000"], other.server.request())


def told(group: Parties, name: str, survivors: tuple[str, ...], server_round: int = 1) -> bytes:
    """A valid statement of ``name``, as a server would have got it for that set."""
    position = Position(server_round, 1, group.roster.to_bits(group.names))
    statement = SurvivorStatement.sign(
        group.identities[name], group.server._transcript, position, group.roster.to_bits(survivors)
    )
    return statement.to_bytes(group.roster)


def test_a_site_that_sees_two_stories_leaves_the_session() -> None:
    group = parties(5)
    group.round(1)
    request = group.server.start_round(2)
    contradicting = replace(request, statements=(told(group, "site-003", group.names[1:]),))
    with pytest.raises(ContradictionError, match="told site-000 and site-003"):
        group.sites["site-000"].accept(contradicting)
    for call in (
        lambda: group.sites["site-000"].accept(request),
        lambda: group.report("site-000", request),
    ):
        with pytest.raises(ContradictionError):
            call()


def test_different_participants_for_one_attempt_are_a_contradiction_too() -> None:
    group = parties(5)
    group.round(1, lost_before_report=["site-004"])
    request = group.server.start_round(2)
    survivors = group.roster.to_bits(group.names[:4])
    position = Position(1, 1, survivors)  # as if site-004 had not been asked
    other = SurvivorStatement.sign(
        group.identities["site-003"], group.server._transcript, position, survivors
    )
    with pytest.raises(ContradictionError, match="told site-000 and site-003"):
        group.sites["site-000"].accept(replace(request, statements=(other.to_bytes(group.roster),)))


def test_two_stories_among_others_are_seen_by_a_site_that_answered_neither() -> None:
    group = parties(5)
    group.round(1, lost_before_answer=["site-000"])
    request = group.server.start_round(2)
    two = (told(group, "site-002", group.names), told(group, "site-003", group.names[1:]))
    with pytest.raises(ContradictionError, match="told site-002 and site-003"):
        group.sites["site-000"].accept(replace(request, statements=two))


def test_a_contradiction_during_an_open_round_also_stops_the_shares() -> None:
    group = parties(5)
    group.round(1)
    reports = reported(group, 2)
    request = group.server.start_round(3)
    contradicting = replace(request, statements=(told(group, "site-003", group.names[1:]),))
    with pytest.raises(ContradictionError):
        group.sites["site-000"].accept(contradicting)
    with pytest.raises(ContradictionError):
        group.answer("site-000", unmask_request(group, "site-000", group.names, reports))


def test_honest_statements_come_back_and_agree() -> None:
    group = parties(5)
    group.round(1, lost_before_report=["site-001"])
    request = group.server.start_round(2)
    assert len(request.statements) == 4
    for name in group.names:
        group.sites[name].accept(request)


def test_a_forged_statement_accuses_nobody() -> None:
    group = parties(5)
    group.round(1)
    request = group.server.start_round(2)
    genuine = told(group, "site-003", group.names[1:])
    for statement in (genuine[:-1] + bytes([genuine[-1] ^ 1]), bytes([1]) + genuine[1:]):
        with pytest.raises(IntegrityError, match="said to be from") as caught:
            group.sites["site-000"].accept(replace(request, statements=(statement,)))
        assert not isinstance(caught.value, ContradictionError)
    for statement in (b"", genuine[:-1], b"\0" + genuine[1:], b"\x06" + genuine[1:]):
        with pytest.raises(InvalidInputError, match="signed survivor set"):
            group.sites["site-000"].accept(replace(request, statements=(statement,)))
    group.sites["site-000"].accept(request)


def test_no_error_of_the_sites_shows_a_key_a_seed_or_a_share() -> None:
    group = parties(5)
    reports = reported(group)
    good = unmask_request(group, "site-000", group.names, reports)
    session = group.sites["site-000"]
    assert session._cohort is not None
    assert session._open is not None
    secrets = [
        *(key for keys in session._cohort.keys.values() for key in (keys.masking, keys.sealing)),
        session._open.own_shares.tobytes(),
    ]
    shown = [repr(session), repr(session._cohort), repr(session._open), repr(reports["site-000"])]
    with pytest.raises(InstaHideError) as caught:
        group.answer("site-000", replace(good, packages=(b"", *good.packages[1:])))
    shown.append(str(caught.value))
    for secret in secrets:
        for text in shown:
            assert secret.hex() not in text
            assert repr(secret)[2:20] not in text


def test_what_travels_in_the_clear_holds_no_seed() -> None:
    """The pairwise seeds of a round, which the test can derive, stand nowhere in a report."""
    group = parties(5)
    reports = reported(group)
    position = group.server._current().position
    cohort = group.sites["site-000"]._cohort
    assert cohort is not None
    for keys in cohort.keys.values():
        seed = pairwise_seed(keys, position)
        for secret in (seed, expand(seed).stream_key, keys.masking, keys.sealing):
            assert secret not in reports["site-000"].to_bytes()


def test_an_advert_for_another_name_is_refused_by_the_server() -> None:
    group = parties(3)
    server = ServerSession(group.roster, bytes(32))
    advert = SiteSession(group.roster, group.identities["site-000"], server.request()).advert()
    mapping = advert.to_mapping() | {"site": "site-001"}
    with pytest.raises(IntegrityError, match="said to be from site-001"):
        server.add_advert(Advert.from_mapping(mapping))
