"""What hospitals approve: numbers that protect, and a hash over all of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.secure_aggregation import AggregationParameters, Roster, SiteIdentity
from federation.secure_aggregation.parameters import default_threshold
from instahide.errors import IntegrityError, InvalidInputError

SIZES = {"vector_length": 10, "num_channels": 2}


def roster_of(num_sites: int, **changes: object) -> Roster:
    keys = {f"site-{place}": bytes([place + 1] * 32) for place in range(num_sites)}
    values: dict[str, object] = {
        "run_name": "run",
        "parameters": AggregationParameters.for_sites(num_sites, **SIZES),
        "identities": keys,
        "settings_sha256": bytes(32),
    }
    return Roster(**(values | changes))  # type: ignore[arg-type]


def test_default_thresholds_and_collusion_bounds_are_those_of_the_protocol_page() -> None:
    bounds = {3: 1, 4: 1, 5: 2, 6: 3, 10: 3, 50: 17, 2: 0}
    for num_sites, colluding in bounds.items():
        assert AggregationParameters.for_sites(num_sites, **SIZES).max_colluding_sites == colluding
    assert [default_threshold(n) for n in (2, 3, 4, 5, 6, 10, 50, 255)] == [2, 3, 3, 4, 5, 7, 34, 171]


@pytest.mark.parametrize("num_sites", range(2, 9))
def test_within_the_bound_no_split_of_answers_opens_two_sets_and_one_beyond_it_some_does(
    num_sites: int,
) -> None:
    """Every way to divide the honest sites between two stories, counted out."""
    for threshold in range(num_sites // 2 + 1, num_sites + 1):
        parameters = AggregationParameters.for_sites(num_sites, threshold=threshold, **SIZES)
        for colluding in range(num_sites + 1):
            honest = num_sites - colluding
            opens_two = any(
                first + colluding >= threshold and second + colluding >= threshold
                for first, second in itertools.product(range(honest + 1), repeat=2)
                if first + second <= honest
            )
            assert opens_two == (colluding > 2 * threshold - num_sites - 1)
            if colluding <= parameters.max_colluding_sites and colluding:
                assert not opens_two
                assert threshold - colluding >= 2  # two honest survivors at least


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"threshold": 2}, "no majority"),
        ({"threshold": 6}, "threshold"),
        ({"minimum_sites": 3}, "minimum-sites"),
        ({"minimum_sites": 6}, "minimum-sites"),
        ({"ring_bits": 24}, "ring-bits"),
        ({"ring_bits": True}, "ring-bits"),
        ({"vector_length": 0}, "vector length"),
        ({"num_channels": -1}, "channels"),
        ({"num_sites": 256}, "number of sites"),
        ({"num_sites": 1}, "number of sites"),
    ],
)
def test_numbers_that_do_not_protect_or_do_not_fit_are_refused(changes: dict[str, int], word: str) -> None:
    values = {"num_sites": 5, "threshold": 4, "minimum_sites": 4, "ring_bits": 32, **SIZES} | changes
    with pytest.raises(InvalidInputError, match=word):
        AggregationParameters(**values)


def test_nothing_in_a_roster_can_change_without_its_hash() -> None:
    parameters = AggregationParameters.for_sites(4, **SIZES)
    keys = dict(roster_of(4).identities)
    swapped = keys | {"site-0": keys["site-1"], "site-1": keys["site-0"]}
    renamed = {("other" if name == "site-0" else name): key for name, key in keys.items()}
    changed = [
        roster_of(4),
        roster_of(4, run_name="other"),
        roster_of(4, settings_sha256=bytes([1] * 32)),
        roster_of(4, identities=swapped),
        roster_of(4, identities=renamed),
        roster_of(4, parameters=replace(parameters, minimum_sites=4)),
        roster_of(4, parameters=replace(parameters, vector_length=11)),
        roster_of(4, parameters=replace(parameters, num_channels=3)),
        roster_of(4, parameters=replace(parameters, ring_bits=16)),
        roster_of(4, parameters=replace(parameters, threshold=4, minimum_sites=4)),
    ]
    assert len({roster.digest for roster in changed}) == len(changed)


def test_the_order_in_which_sites_are_listed_does_not_matter() -> None:
    keys = roster_of(4).identities
    assert roster_of(4, identities=dict(reversed(keys.items()))).digest == roster_of(4).digest


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_sets_of_sites_survive_as_bits(data: st.DataObject) -> None:
    num_sites = data.draw(st.integers(2, 40))
    roster = roster_of(num_sites)
    chosen = data.draw(st.sets(st.sampled_from(roster.names)))
    bits = roster.to_bits(data.draw(st.permutations(sorted(chosen))))
    assert roster.from_bits(bits) == roster.sort(chosen)
    assert len(bits) == roster.set_bytes


@pytest.mark.parametrize("bits", [b"", b"\0\0", b"\x20"])
def test_bits_of_another_length_or_of_no_site_are_refused(bits: bytes) -> None:
    with pytest.raises(InvalidInputError, match="set of sites"):
        roster_of(5).from_bits(bits)


def test_rosters_with_wrong_names_keys_or_numbers_are_refused() -> None:
    keys = dict(roster_of(3).identities)
    for changes in (
        {"identities": keys | {"site-0": bytes(31)}},
        {"identities": keys | {"site-0": keys["site-1"]}},
        {"identities": {"a b": bytes(32), **{name: keys[name] for name in list(keys)[1:]}}},
        {"identities": {name: keys[name] for name in list(keys)[1:]}},
        {"settings_sha256": b"short"},
        {"run_name": ""},
    ):
        with pytest.raises(InvalidInputError):
            roster_of(3, **changes)
    with pytest.raises(InvalidInputError, match="twice"):
        roster_of(3).sort(["site-1", "site-1"])
    with pytest.raises(InvalidInputError, match="not in the roster"):
        roster_of(3).index("mallory")


def test_a_signature_of_another_site_or_on_other_words_is_refused() -> None:
    identities = [SiteIdentity.generate(f"site-{place}") for place in range(3)]
    roster = roster_of(3, identities={each.name: each.public_key for each in identities})
    signature = identities[0].signing_key.sign(b"words")
    roster.verify("site-0", signature, b"words")
    for name, signed, given_signature in (
        ("site-1", b"words", signature),
        ("site-0", b"other", signature),
        ("site-0", b"words", b"short"),
    ):
        with pytest.raises(IntegrityError, match="said to be from"):
            roster.verify(name, given_signature, signed)


def test_a_site_whose_key_the_roster_does_not_list_is_told() -> None:
    with pytest.raises(InvalidInputError, match="another identity key"):
        SiteIdentity.generate("site-1").check_listed(roster_of(3))
    assert "Ed25519PrivateKey" not in repr(SiteIdentity.generate("site-1"))
