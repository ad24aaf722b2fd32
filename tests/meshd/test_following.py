"""What is told of the interfaces, and what is read of them again, in the order in which it was true."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv6Address
from typing import cast

import trio
from trio.testing import MockClock

from meshd.following import RETRY_INTERVAL, follow_links
from meshd.kernel import Link, Links

DOWN = Link(index=2, name="wlan0", mac=bytes(6), mtu=1500, is_up=False, link_local=None)
UP = replace(DOWN, is_up=True, link_local=IPv6Address("fe80::1"))


class SlowLinks:
    """Looking at all interfaces takes a second, and finds what was true at its beginning."""

    def __init__(self) -> None:
        self.now = {DOWN.name: DOWN}
        self.tell, self._told = trio.open_memory_channel[Link](10)

    async def all(self) -> dict[str, Link]:
        found = dict(self.now)
        await trio.sleep(1)
        return found

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Link]]:
        yield self._told


async def taken(changes: dict[float, Link], *, until: float) -> list[Link]:
    links, seen = SlowLinks(), list[Link]()

    async def take(link: Link) -> None:
        seen.append(link)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: follow_links(cast(Links, links), take, missing=lambda: {DOWN.name}))
        for at, link in changes.items():
            await trio.sleep_until(at)
            links.now[link.name] = link
            await links.tell.send(link)
        await trio.sleep_until(until)
        nursery.cancel_scope.cancel()
    return seen


def run(changes: dict[float, Link], *, until: float) -> list[Link]:
    async def scenario() -> list[Link]:
        return await taken(
            {trio.current_time() + at: link for at, link in changes.items()}, until=trio.current_time() + until
        )

    return trio.run(scenario, clock=MockClock(autojump_threshold=0))


def test_what_is_missing_is_looked_for_again() -> None:
    assert run({}, until=RETRY_INTERVAL * 2.9) == [DOWN, DOWN]


def test_a_look_that_a_change_has_outdated_is_not_taken() -> None:
    assert run({RETRY_INTERVAL + 0.5: UP}, until=RETRY_INTERVAL + 2) == [UP]
