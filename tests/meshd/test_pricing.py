"""price = "auto": from the meter's counts to the fee that is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio
import trio.testing

from meshd.config import NOT_FOR_SALE, PriceConfig
from meshd.pricing import PriceFollower

CONFIG = PriceConfig(
    price="auto", fee_msat_per_gb=100_000, floor_msat_per_gb=50_000, ceiling_msat_per_gb=200_000, capacity_mbit=10
)


class Node:
    """`carry` tells how many bytes have been carried at a time."""

    def __init__(self, carry: Callable[[float], int] = lambda _: 0) -> None:
        self.fee = CONFIG.fee_msat_per_gb
        self.told: list[tuple[float, int]] = []
        self.follower = PriceFollower(
            CONFIG, carried=lambda: carry(trio.current_time()), fee=lambda: self.fee, set_fee=self._set_fee
        )

    async def _set_fee(self, fee: int) -> None:
        self.fee = fee
        self.told.append((trio.current_time(), fee))


def fees_after(carry: Callable[[float], int], seconds: float) -> Node:
    node: list[Node] = []

    async def main() -> None:
        begun = trio.current_time()
        node.append(Node(lambda at: carry(at - begun)))
        with trio.move_on_after(seconds):
            await node[0].follower.run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return node[0]


def test_under_load_the_fee_rises_to_the_ceiling_every_ten_seconds() -> None:
    node = fees_after(lambda at: int(at * 10e6 / 8), 400)  # all of the capacity
    fees = [fee for _, fee in node.told]
    assert fees == sorted(fees)
    assert fees[0] == round(100_000 * 2.718281828 ** ((1 / 0.7 - 1) / 16))
    assert fees[-1] == 200_000
    assert node.told[1][0] - node.told[0][0] == 10


def test_without_load_it_falls_to_the_floor_and_no_more_is_told() -> None:
    node = fees_after(lambda _: 0, 400)
    assert node.told[-1][1] == 50_000
    assert node.told[-1][0] - node.told[0][0] < 120


def test_at_the_wanted_load_nothing_is_told() -> None:
    assert fees_after(lambda at: int(at * 7e6 / 8), 400).told == []


def test_it_goes_on_from_what_the_operator_sets_and_leaves_not_for_sale_alone() -> None:
    node = Node()
    node.fee = NOT_FOR_SALE
    assert [node.follower.step(1e9) for _ in range(5)] == [None] * 5
    node.fee = 150_000
    wanted = node.follower.step(0.0)
    assert wanted is not None
    assert 150_000 < wanted < 160_000  # the average is still high
    node.fee = 10  # below the floor: the rule keeps to its bounds
    assert node.follower.step(0.0) == 50_000


def test_the_rule_can_be_switched_off_and_on() -> None:
    async def scenario() -> None:
        node = Node(carry=lambda now: int(now * 10**7))  # 80 Mbit/s on 10
        async with trio.open_nursery() as nursery:
            node.follower.set_rule(replace(CONFIG, price="fixed"))
            nursery.start_soon(node.follower.run)
            await trio.sleep(60)
            assert node.told == []
            node.follower.set_rule(CONFIG)
            await trio.sleep(60)
            assert node.fee > CONFIG.fee_msat_per_gb
            nursery.cancel_scope.cancel()

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
