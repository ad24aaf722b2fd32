"""When next to nothing is carried, the meter rests; and no longer than that."""

from __future__ import annotations

import trio

from meshd import accounting
from tests.meshd.fakes import run
from tests.meshd.test_accounting import ASKED, LINK_OTHER, PEER, PEER_OTHER, Books


def test_where_nothing_is_carried_the_meter_is_seldom_read() -> None:
    async def scenario() -> None:
        books = Books()
        async with books.running() as accounts:
            await books.meet()
            await trio.sleep(1)
            before = books.kernel.meter.readings
            await trio.sleep(10 * accounting.QUIET_INTERVAL)
            assert books.kernel.meter.readings - before <= 11
            books.carry(100)
            await trio.sleep(accounting.IDLE_INTERVAL + 0.1)
            assert books.earned[PEER] == 100 * ASKED
            before = books.kernel.meter.readings
            await accounts.peer_connected(PEER_OTHER, LINK_OTHER)  # something may have been counted for it
            await trio.sleep(0.01)
            assert books.kernel.meter.readings == before + 1

    run(scenario)


def test_where_it_is_not_known_what_is_carried_the_meter_is_read() -> None:
    async def scenario() -> None:
        books = Books()
        books.kernel.meter.is_unknown = True
        async with books.running():
            await trio.sleep(10)
            assert books.kernel.meter.readings >= 10 / accounting.IDLE_INTERVAL - 2

    run(scenario)
