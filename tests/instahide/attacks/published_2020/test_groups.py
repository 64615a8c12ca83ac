"""Groups, prototypes and assignment, on similarities whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from instahide.attacks.published_2020.assignment import assign, draw_prototypes
from instahide.attacks.published_2020.cliques import GroupSizes, find_groups, grow_groups, keep_distinct
from instahide.errors import InvalidInputError

N_IMAGES, RELEASES = 12, 30
N = N_IMAGES * RELEASES


def sources(seed: int) -> NDArray[np.int64]:
    """(N, 2) private rows: every image in slot 0 thirty times, and in slot 1 as often."""
    rng = np.random.default_rng(seed)
    first = np.tile(np.arange(N_IMAGES), RELEASES)
    second = np.concatenate(
        [(np.arange(N_IMAGES) + rng.integers(1, N_IMAGES)) % N_IMAGES for _ in range(RELEASES)]
    )
    return np.stack([first, second], axis=1)


def similarity(rows: NDArray[np.int64], strength: float, seed: int) -> NDArray[np.float32]:
    """Unit noise, plus ``strength`` where a pair shares an image."""
    rng = np.random.default_rng(seed)
    noise = np.triu(rng.normal(size=(N, N)), 1)
    shared = (rows[:, None, :, None] == rows[None, :, None, :]).any(axis=(2, 3))
    table = (noise + noise.T + strength * shared).astype(np.float32)
    np.fill_diagonal(table, -np.inf)
    return table


def grown_by_hand(table: NDArray[np.float32], seed: int, second: int, size: int) -> list[int]:
    members = [seed, second]
    while len(members) < size:
        rest = [x for x in range(len(table)) if x not in members]
        members.append(max(rest, key=lambda x: sum(float(table[m, x]) for m in members)))
    return members


def test_groups_grow_by_the_largest_summed_similarity() -> None:
    """Against the rule written out member by member."""
    table = np.random.default_rng(1).normal(size=(40, 40)).astype(np.float32)
    table += table.T
    np.fill_diagonal(table, -np.inf)
    groups = grow_groups(table, np.arange(40), 9, rng=np.random.default_rng(2))
    for group in groups:
        assert group.tolist() == grown_by_hand(table, int(group[0]), int(group[1]), 9)


def test_the_first_to_join_is_one_of_the_eleven_nearest_at_random() -> None:
    table = similarity(sources(0), 1.0, 3)
    seeds = np.zeros(400, dtype=np.int64)
    second = grow_groups(table, seeds, 2, rng=np.random.default_rng(4))[:, 1]
    assert set(second) == set(np.argsort(-table[0])[:11])


def test_kept_groups_are_distinct_and_agreed_on_by_several_seeds() -> None:
    agreed, lonely = list(range(8)), list(range(8, 16))
    near_copy = [*agreed[:6], 20, 21]
    groups = np.array([agreed, agreed[::-1], agreed, near_copy, lonely])
    sizes = GroupSizes(core=4, fallback=2, grown=8)
    # First pass: rows 0 to 3 contain the cores of rows 0, 2 and 3, row 0 is kept and excludes the others;
    # row 4 has no company and comes in with the second pass.
    assert keep_distinct(groups, 5, sizes).tolist() == [0, 4]
    assert keep_distinct(groups, 1, sizes).tolist() == [0]


def test_sizes_are_the_published_ones_at_fifty_releases() -> None:
    assert GroupSizes.of(50) == GroupSizes(core=50, fallback=25, grown=101)


def test_from_a_noisy_graph_to_sources_and_coefficients() -> None:
    """Pairs overlap a lot here (AUC 0.86 = Φ(1.5/√2)); groups of sixty average that away."""
    rows = sources(5)
    table = similarity(rows, 1.5, 6)
    groups = find_groups(table, N_IMAGES, seed=0)
    assert len(groups) == N_IMAGES
    core = groups[:, :RELEASES]
    owner = np.array([np.bincount(rows[members].ravel(), minlength=N_IMAGES).argmax() for members in core])
    assert sorted(owner) == list(range(N_IMAGES))
    rng = np.random.default_rng(7)
    weights = rng.uniform(0.1, 0.4, (N, 2))
    classes = np.arange(N_IMAGES) % 5
    labels = np.zeros((N, 5))
    np.add.at(labels, (np.arange(N)[:, None], classes[rows]), weights)
    prototypes = draw_prototypes(table, groups, RELEASES, num_prototypes=3, rng=rng)
    assert prototypes.shape == (10, N_IMAGES, 3)
    finite = np.where(np.isfinite(table), table, 0)
    scores = np.stack([finite[sets].sum(axis=1) for sets in prototypes]).sum(axis=0)
    found = assign(scores, labels, RELEASES)
    assert found.classes.tolist() == classes[owner].tolist()
    taken = found.private_rows >= 0
    right = (owner[found.private_rows][:, :, None] == rows[:, None, :]).any(axis=2)
    # 80 of the 100 places are taken at most (1.6·T of 2·T); a wrong one has to look nearer than 40 % of the
    # right ones.
    assert taken.mean() > 0.7
    assert right[taken].mean() > 0.95
    # A coefficient is exact where the two classes differ and both owners are right.
    apart = (classes[rows[:, 0]] != classes[rows[:, 1]]) & (right & taken).all(axis=1)
    swapped = owner[found.private_rows[:, 0]] != rows[:, 0]
    expected = np.where(swapped[:, None], weights[:, ::-1], weights)
    np.testing.assert_allclose(found.coefficients[apart], expected[apart])


def test_equal_classes_share_the_weight_in_halves() -> None:
    labels = np.array([[0.5, 0.0], [0.3, 0.2]])
    scores = np.array([[2.0, 1.0], [1.0, 2.0]], dtype=np.float32)
    found = assign(scores, labels, 50)
    assert found.coefficients[0].tolist() == [0.25, 0.25]


def test_no_encoding_has_three_owners_or_an_owner_of_a_class_it_lacks() -> None:
    rng = np.random.default_rng(8)
    labels = np.zeros((60, 4))
    for row, pair in zip(labels, itertools.cycle(itertools.combinations(range(4), 2)), strict=False):
        row[list(pair)] = 0.2, 0.3
    found = assign(rng.normal(size=(9, 60)).astype(np.float32), labels, 20)
    for encoding, owners in enumerate(found.private_rows):
        for owner, weight in zip(owners, found.coefficients[encoding], strict=True):
            assert (owner == -1) == (weight == 0)
            assert owner == -1 or labels[encoding, found.classes[owner]] > 0


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        grow_groups(np.zeros((4, 5), np.float32), np.arange(2), 2, rng=np.random.default_rng(0))
    with pytest.raises(InvalidInputError):
        assign(np.zeros((2, 5), np.float32), np.zeros((4, 3)), 50)
