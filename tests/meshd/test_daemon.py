"""The order in which services end."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from meshd.daemon import _serving
from tests.meshd.fakes import run


class Service:
    """Takes `to_end` seconds to end."""

    def __init__(self, name: str, journal: list[str], *, to_end: float = 1.0, fails: bool = False) -> None:
        self.name, self.journal, self.to_end, self.fails = name, journal, to_end, fails

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        try:
            if self.fails:
                await trio.sleep(1)
                raise OSError(self.name)
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.to_end)
            self.journal.append(self.name)


async def in_order(journal: list[str], *services: Service) -> None:
    async with AsyncExitStack() as stack:
        for service in services:
            await stack.enter_async_context(_serving(service.run))
        try:
            await trio.sleep_forever()
        finally:
            journal.append("block")


def test_the_last_to_start_ends_first_each_when_the_one_before_has_ended() -> None:
    async def scenario() -> None:
        journal: list[str] = []
        with trio.move_on_after(5):
            await in_order(journal, Service("sessions", journal, to_end=0.0), Service("paymaster", journal))
        assert journal == ["block", "paymaster", "sessions"]

    run(scenario)


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_ends_all_in_the_same_order(failing: int) -> None:
    async def scenario() -> None:
        journal: list[str] = []
        services = [Service(name, journal, fails=n == failing) for n, name in enumerate(("first", "second"))]
        with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(20):
            await in_order(journal, *services)
        assert caught.group_contains(OSError)
        assert journal == (["first", "block", "second"] if failing == 0 else ["second", "block", "first"])

    run(scenario)


def test_a_cancel_during_the_start_is_no_deadlock() -> None:
    async def scenario() -> None:
        async def slow(task_status: trio.TaskStatus[None]) -> None:
            await trio.sleep(10)
            task_status.started()

        with trio.move_on_after(1) as scope:
            async with _serving(slow):
                pytest.fail("it has not started")
        assert scope.cancelled_caught and trio.current_time() < 10**9

    run(scenario)
