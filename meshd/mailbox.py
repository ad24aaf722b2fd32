"""A bounded queue from several tasks to one, which takes all that waits at once.

trio's memory channels hand over one item at a time, and take longer for that than the session or the engine for what
they do with most of them.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """`capacity`: items; who puts more waits. What one task puts comes in its order."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._is_any, self._is_room = trio.Event(), trio.Event()

    def put_nowait(self, item: T) -> bool:
        """False: it is full."""
        if len(self._items) >= self._capacity:
            return False
        self._items.append(item)
        self._is_any.set()
        return True

    async def put(self, item: T) -> None:
        """No checkpoint while there is room."""
        while not self.put_nowait(item):
            await self._is_room.wait()

    async def wait(self) -> None:
        """Until there is something to take."""
        await self._is_any.wait()

    def take(self, limit: int) -> list[T]:
        """The oldest, without waiting; none, if there are none."""
        items = self._items
        taken = [items.popleft() for _ in range(min(limit, len(items)))]
        if taken and not items:
            self._is_any = trio.Event()
        if taken:
            self._is_room.set()
            self._is_room = trio.Event()
        return taken
