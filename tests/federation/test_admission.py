"""Which keys may be asked with: every case of the table in ``federation/admission.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from federation.admission import admitted_before, check_keys, replaced_keys
from federation.coordinator.revocations import REPLACED, Revocation
from federation.identity import create_identity, identity_fingerprint
from federation.joining import JoinRequest
from federation.provisioning import create_node_key
from instahide.errors import RefusedError


@dataclass(frozen=True)
class Keys:
    """The public halves of one hospital's keys."""

    node: str
    identity: str


@dataclass(frozen=True)
class Site:
    """A hospital that is in."""

    node_id: int
    name: str
    fingerprint: str
    identity_key: str


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Keys]:
    root = tmp_path_factory.mktemp("keys")

    def make(folder: Path) -> Keys:
        node = create_node_key(folder).public.read_text().strip()
        return Keys(node, create_identity(folder / "identity.key").public_line)

    return [make(root / str(number)) for number in range(3)]


def asks(
    keys: Keys, name: str = "st-mary", *, node: Keys | None = None, identity: Keys | None = None
) -> JoinRequest:
    """A request with ``keys`` that replaces the node key of ``node`` and the identity key of ``identity``."""
    values: dict[str, Any] = {"num_examples": 1, "evaluate_num_examples": 1, "image_shape": (1, 8, 8)}
    return JoinRequest(
        name=name,
        public_key=keys.node,
        identity_key=keys.identity,
        class_names=("a",),
        replaced_public_key=node.node if node else "",
        replaced_identity_key=identity.identity if identity else "",
        **values,
    )


def site(keys: Keys, name: str = "st-mary", node_id: int = 7) -> Site:
    return Site(node_id, name, asks(keys).fingerprint, keys.identity)


def revoked(keys: Keys, why: str = "revoked") -> Revocation:
    request = asks(keys)
    return Revocation(
        node_id=7,
        name="st-mary",
        node_key=request.fingerprint,
        identity_key=request.identity if why == "revoked" else "",
        time="2026-05-04T10:00:00.000000Z",
        why=why,
    )


def test_a_new_hospital_the_same_keys_again_and_keys_that_the_old_ones_signed_are_fine(
    keys: list[Keys],
) -> None:
    first, second, third = keys
    check_keys(asks(first), [], [])
    check_keys(asks(second, "north"), [site(first)], [])
    check_keys(asks(first), [site(first)], [])
    check_keys(asks(first, "renamed"), [site(first)], [])
    new_node = Keys(second.node, first.identity)
    check_keys(asks(new_node, node=first), [site(first)], [])
    check_keys(asks(second, node=first, identity=first), [site(first), site(third, "north", 8)], [])


def test_another_key_under_a_name_that_is_taken_is_refused_with_both_ways_out(keys: list[Keys]) -> None:
    first, second, third = keys
    for request in (asks(second), asks(second, node=third), asks(second, node=third, identity=third)):
        with pytest.raises(RefusedError, match="already admitted with another key") as refusal:
            check_keys(request, [site(first)], [])
        assert "node rotate" in refusal.value.hint
        assert "coordinator revoke STUDY st-mary" in refusal.value.hint


def test_an_identity_key_changes_only_where_the_one_before_has_signed(keys: list[Keys]) -> None:
    """Whoever has stolen a node key alone gets nowhere with it."""
    first, second, _ = keys
    thief = Keys(first.node, second.identity)
    for request in (asks(thief), asks(Keys(second.node, second.identity), node=first)):
        with pytest.raises(RefusedError, match="another identity key than before"):
            check_keys(request, [site(first)], [])
    check_keys(asks(thief, node=first, identity=first), [site(first)], [])


def test_two_hospitals_do_not_share_an_identity_key(keys: list[Keys]) -> None:
    first, second, _ = keys
    with pytest.raises(RefusedError, match="north has the identity key of st-mary"):
        check_keys(asks(Keys(second.node, first.identity), "north"), [site(first)], [])


def test_a_revoked_key_is_refused_whatever_goes_with_it(keys: list[Keys]) -> None:
    first, second, _ = keys
    entry = revoked(first)
    by_node = [asks(first), asks(first, "north"), asks(Keys(first.node, second.identity))]
    by_identity = [
        asks(Keys(second.node, first.identity)),
        asks(Keys(second.node, first.identity), node=first),
    ]
    for request in (*by_node, *by_identity):
        with pytest.raises(RefusedError, match=r"key of \S+ was revoked on 2026-05-04") as refusal:
            check_keys(request, [], [entry])
        assert "node rotate NODE --new-identity" in refusal.value.hint
    check_keys(asks(second), [], [entry])
    check_keys(asks(second, node=first, identity=first), [], [entry])  # comes back with new keys


def test_a_node_key_that_was_replaced_is_refused_while_its_identity_goes_on(keys: list[Keys]) -> None:
    first, second, _ = keys
    entry, now = revoked(first, REPLACED), Keys(second.node, first.identity)
    with pytest.raises(RefusedError, match="the node key of st-mary was replaced"):
        check_keys(asks(first), [site(now)], [entry])
    check_keys(asks(now), [site(now)], [entry])
    check_keys(asks(now, node=first), [site(now)], [entry])  # the same request once more


def test_what_a_request_puts_out_of_use_is_what_it_has_signed_with(keys: list[Keys]) -> None:
    first, second, _ = keys
    old = asks(first)
    assert replaced_keys(old, [site(first)], time="t") is None
    rotated = asks(Keys(second.node, first.identity), node=first)
    entry = replaced_keys(rotated, [site(first)], time="t")
    assert entry == Revocation(
        node_id=7, name="st-mary", node_key=old.fingerprint, identity_key="", time="t", why=REPLACED
    )
    both = replaced_keys(asks(second, node=first, identity=first), [site(first)], time="t")
    assert both is not None
    assert both.identity_key == identity_fingerprint(first.identity)
    again = replaced_keys(rotated, [site(Keys(second.node, first.identity), node_id=9)], time="t")
    assert again is not None
    assert again.node_id == 0  # the new node must not be refused with the old key


def test_who_asks_is_known_by_the_key_in_use_or_the_one_it_replaces(keys: list[Keys]) -> None:
    first, second, third = keys
    sites = [site(first), site(second, "north", 8)]
    assert admitted_before(asks(first), sites) == sites[0]
    assert admitted_before(asks(third, node=second), sites) == sites[1]
    assert admitted_before(asks(third), sites) is None
