"""Follows what the kernel tells of, for as long as the daemon runs: what cannot be read now is read again later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio

from meshd.kernel import Link, Links, NetlinkError
from meshd.logs import Logger
from meshd.ticks import tick_after

log = Logger("meshd.following")
RETRY_INTERVAL = 5.0
T = TypeVar("T")


async def follow(
    what: str,
    watch: Callable[[], AbstractAsyncContextManager[AsyncIterator[T]]],
    take: Callable[[T], Awaitable[None]],
    *,
    retry: float = RETRY_INTERVAL,
) -> None:
    """Gives `take` each change, until cancelled."""
    while True:
        try:
            async with watch() as changes:
                async for change in changes:
                    await take(change)
        except NetlinkError as error:
            log.warning(f"{what} not read", reason=error)
            await trio.sleep(retry)


async def follow_links(
    links: Links, take: Callable[[Link], Awaitable[None]], *, missing: Callable[[], Collection[str]]
) -> None:
    """Gives `take` each interface as it changes; and those that are `missing` again, every few seconds, for what could
    not be used will not be told of again as long as it stays as it is."""
    told: set[str] = set()

    async def take_change(link: Link) -> None:
        told.add(link.name)
        await take(link)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, "interfaces", links.watch, take_change)
        while True:
            await trio.sleep_until(tick_after(trio.current_time(), RETRY_INTERVAL))
            wanted = missing()
            if not wanted:
                continue
            told.clear()
            try:
                known = await links.all()
            except NetlinkError as error:
                log.warning("interfaces not read", reason=error)
                continue
            for name in wanted:
                # What was told of while we looked is newer than the look.
                if name in known and name not in told:
                    await take(known[name])
