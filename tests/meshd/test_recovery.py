"""What the kernel carried while no daemon ran is billed: once, at the price of then, however many crashes there are."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest
import trio

from meshd.accounting import FLOWS_AT_ONCE
from meshd.kernel import Direction, FlowCount
from meshd.recovery import Unbilled, flow_name, flow_of, keep_leftover, unbilled
from meshd.recovery import recovered as from_store
from payments.adapters.store import Store
from payments.records import Reading
from tests.meshd.fakes import flow, run, turns_of_others
from tests.meshd.test_accounting import ASKED, HEARD, LINK, MAC, NET, PEER, THERE, Books


def recovered(direction: Direction, size: int, *, price: int | None) -> list[Unbilled]:
    """Of a counter that stood 5 bytes lower when it was last billed, at `price`, or was never billed before."""
    counter = flow(direction, MAC, size if price is None else size + 5, to=THERE)  # type: ignore[arg-type]
    readings = {} if price is None else {flow_name(counter): Reading(5, price)}
    return unbilled([counter], readings)


def test_what_was_carried_while_no_daemon_ran_costs_what_it_cost_before() -> None:
    """Those who sent it had heard no other price."""

    async def scenario() -> None:
        books = Books(recovered=recovered(Direction.FORWARD_IN, 100, price=40))
        async with books.running() as accounts:
            await books.meet()
            await accounts.read()
            assert books.earned[PEER] == 100 * 40
            await trio.sleep(100)
            assert books.earned[PEER] == 100 * 40

    run(scenario)


def test_many_flows_that_a_dead_daemon_has_left_hold_up_nobody() -> None:
    """The tables of the kernel hold a hundred thousand, and what is kept of several crashes many times that."""

    async def scenario() -> None:
        flows = [flow(Direction.FORWARD_IN, MAC, 5, to=IPv6Address(int(THERE) + n)) for n in range(1000)]
        books = Books(recovered=unbilled(flows, {flow_name(each): Reading(4, 40) for each in flows}))
        accounts = books.under_test
        await accounts.read()
        accounts.neighbours.learn_port(LINK, MAC)
        accounts.neighbours.peer_by_link[LINK] = PEER
        turns = await turns_of_others(accounts.read)
        assert books.earned[PEER] == 1000 * 40
        assert turns >= 1000 // FLOWS_AT_ONCE

    run(scenario)


def test_a_flow_that_began_while_no_daemon_ran_is_not_billed_at_the_price_of_a_detour() -> None:
    """The first route of a node that has lost its state may lead back through a neighbour."""

    async def scenario() -> None:
        books = Books(recovered=recovered(Direction.FORWARD_IN, 100, price=None), is_known=False)
        async with books.running() as accounts:
            await books.meet()
            books.billing.announced(NET, 7 * ASKED, now=trio.current_time())
            await accounts.read()
            await trio.sleep(1)
            books.billing.announced(NET, ASKED, now=trio.current_time())
            await accounts.read()
            assert not books.earned
            await trio.sleep(10)
            assert books.earned[PEER] == 100 * ASKED

    run(scenario)


@pytest.mark.parametrize(("before", "now", "limit"), [(None, HEARD, HEARD), (40, HEARD, HEARD), (400, HEARD, 400)])
def test_the_limit_covers_what_a_seller_may_ask_for_the_time_without_a_daemon(
    before: int | None, now: int, limit: int
) -> None:
    async def scenario() -> None:
        books = Books(recovered=recovered(Direction.OUT, 100, price=before), is_known=False)
        async with books.running() as accounts:
            await books.meet()
            await trio.sleep(1)
            assert not books.owed  # the neighbour has not said its price yet
            books.billing.learned(LINK, NET, now, now=trio.current_time())
            await accounts.read()
            await trio.sleep(10)
            assert books.owed[PEER] == 100 * limit

    run(scenario)


def test_what_cannot_be_priced_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        books = Books(recovered=recovered(Direction.OUT, 100, price=40), is_known=False)
        async with books.running():
            await books.meet()
            await trio.sleep(100)
            assert books.owed[PEER] == 100 * 40

    run(scenario)


def test_a_second_crash_before_it_is_billed_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """The kernel's counters are gone after the first; the store has what they said until the sums are written."""
    carried = flow(Direction.FORWARD_IN, MAC, 105, to=THERE)  # type: ignore[arg-type]
    free = flow(Direction.FORWARD_IN, MAC, 30, to=ip_address("2001:db8::1"))  # type: ignore[arg-type]
    path = tmp_path / "payments.sqlite"

    async def life(leftover: Sequence[FlowCount], *, bills: bool) -> int:
        store = Store.open(path)
        await keep_leftover(store, leftover)
        books = Books(recovered=from_store(store))
        async with books.running() as accounts:
            if bills:
                await books.meet()
                await accounts.read()
                await trio.sleep(100)
                store.apply([], books.readings)
                assert not store.leftover()
        store.close()
        return books.earned[PEER]

    async def scenario() -> None:
        store = Store.open(path)
        store.apply([], {flow_name(carried): Reading(5, 40)})
        store.close()
        assert await life([carried, free], bills=False) == 0
        assert await life([], bills=False) == 0
        assert await life([], bills=True) == 100 * 40
        assert await life([], bills=True) == 0
        assert await life([carried], bills=True) == 0  # killed before it was removed from the kernel

    run(scenario)


def test_a_flow_is_found_again_by_its_name() -> None:
    for source, mac in ((None, b""), (ip_address("10.0.0.1"), MAC)):
        known = FlowCount(Direction.OUT, "a|b", mac, source, source, bytes=9, packets=0, total_bytes=9, counter=2**62)
        assert flow_of(flow_name(known), 9) == known
    for name in (b"", b"out|e0|0|0", b"up|e0|00|||1", b"out|e0|00|||x", b"\xff"):
        with pytest.raises(ValueError):
            flow_of(name, 1)


def test_a_counter_below_its_reading_has_begun_anew() -> None:
    counter = flow(Direction.FORWARD_IN, MAC, 7, to=THERE)  # type: ignore[arg-type]
    (entry,) = unbilled([counter], {flow_name(counter): Reading(1000, 40)})
    assert (entry.flow.bytes, entry.price_msat_per_gb) == (7, 40)
    assert not unbilled([counter], {flow_name(counter): Reading(7, 40)})
