"""Tips of a backend that does not tell them by itself: it is asked again and again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from payments.ports import ChainTip


async def poll_tips(ask: Callable[[], Awaitable[ChainTip]], interval: float) -> AsyncIterator[ChainTip]:
    """The tip, and each other one as it is seen, without end; `interval` seconds after an answer comes the next
    question. What `ask` raises ends it."""
    last = None
    while True:
        tip = await ask()
        if tip != last:
            last = tip
            yield tip
        await trio.sleep(interval)
