"""The network of a simulation: who is lost, what is counted, what is watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from federation.config import RunConfig
from federation.messages import TRAIN, UNMASK, Arrays, RoundRequest, SiteReply
from federation.simulation.grid import LOST, Dropout, Order, SimulatedGrid

NUMBERS = list(range(1, 41))


class Echo:
    """Hospitals that send back what they got."""

    def answer(self, orders: Sequence[Order]) -> Iterator[tuple[int, SiteReply]]:
        for order in orders:
            yield order.number, SiteReply(site_name="a", arrays=order.request.arrays)


def request(server_round: int, kind: str = TRAIN, *, secure: bool = False) -> RoundRequest:
    config = RunConfig(
        class_names=("a", "b"), image_shape=(1, 2, 2), num_server_rounds=9, secure_aggregation=secure
    )
    arrays: Arrays = {} if kind == UNMASK else {"w": np.zeros(25, np.float32)}
    return RoundRequest.for_round(config, server_round, arrays, kind)


def push(grid: SimulatedGrid, order: RoundRequest) -> tuple[set[int], set[int]]:
    """Those that answered and those that were lost; each answer is handed out once."""
    ids = grid.push(dict.fromkeys(NUMBERS, order), lifetime=1.0)
    replies = grid.pull(list(ids.values()))
    assert grid.pull(list(ids.values())) == []
    by_message = {message: number for number, message in ids.items()}
    good = {by_message[each.message_id] for each in replies if each.reply}
    lost = {by_message[each.message_id] for each in replies if each.error == LOST}
    assert good | lost == set(NUMBERS)
    return good, lost


def test_everybody_answers_where_nobody_drops_out() -> None:
    grid = SimulatedGrid(Echo(), NUMBERS)
    assert push(grid, request(1)) == (set(NUMBERS), set())
    assert (grid.bytes_sent, grid.bytes_received, grid.num_dropped) == (4000, 4000, 0)


def test_who_is_lost_repeats_with_the_seed_and_changes_with_round_and_attempt() -> None:
    dropout = Dropout(probability=0.5, seed=3)
    first, second = (SimulatedGrid(Echo(), NUMBERS, dropout=dropout) for _ in range(2))
    seen = [push(first, request(number)) for number in (1, 1, 2)]
    assert seen == [push(second, request(number)) for number in (1, 1, 2)]
    assert len({frozenset(lost) for _, lost in seen}) == 3
    assert first.num_dropped == sum(len(lost) for _, lost in seen)


def test_the_share_of_the_lost_is_the_probability() -> None:
    """A fixed seed, so no chance is left; 40,000 tosses of 0.3 have a deviation of 0.0023."""
    dropout = Dropout(probability=0.3, seed=0)
    lost = [dropout.lost(NUMBERS, number, 0) for number in range(1000)]
    early, late = (sum(len(each[place]) for each in lost) / 40_000 for place in (0, 1))
    assert abs(early - 0.15) < 0.012
    assert abs(late - 0.15) < 0.012
    assert all(not first & second for first, second in lost)


def test_under_secure_aggregation_half_of_the_lost_have_reported_and_owe_their_shares() -> None:
    dropout = Dropout(probability=0.5, seed=1)
    early, late = dropout.lost(NUMBERS, 1, 0)
    assert early
    assert late
    grid = SimulatedGrid(Echo(), NUMBERS, dropout=dropout)
    assert push(grid, request(1, secure=True))[1] == early
    assert push(grid, request(1, UNMASK, secure=True))[1] == late


def test_each_global_model_is_shown_once_however_often_its_round_is_tried() -> None:
    shown: list[int] = []
    grid = SimulatedGrid(Echo(), NUMBERS, watch=lambda number, arrays: shown.append(number))
    for number in (1, 1, 2, 3, 3):
        push(grid, request(number))
    assert shown == [0, 1, 2]
