from __future__ import annotations

import trio
import trio.testing

from meshd.mailbox import Mailbox


def test_what_waits_is_taken_oldest_first_and_no_more_than_asked_for() -> None:
    async def scenario() -> None:
        box = Mailbox[int](4)
        assert box.take(9) == []
        assert [box.put_nowait(number) for number in range(5)] == [True, True, True, True, False]
        await box.wait()
        assert box.take(3) == [0, 1, 2]
        await box.wait()  # there is one left
        assert box.take(9) == [3]

    trio.run(scenario)


def test_who_puts_waits_for_room_and_who_takes_for_something() -> None:
    async def scenario() -> None:
        box, taken = Mailbox[int](2), list[int]()

        async def put(first: int) -> None:
            for number in range(first, first + 5):
                await box.put(number)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, 0)
                nursery.start_soon(put, 10)
                await trio.testing.wait_all_tasks_blocked()
                taken += box.take(1)
                assert box.put_nowait(20) and not box.put_nowait(21)
                while len(taken) < 11:
                    await box.wait()
                    taken += box.take(9)
        assert [number for number in taken if number < 10] == [0, 1, 2, 3, 4]
        assert [number for number in taken if number >= 10 and number != 20] == [10, 11, 12, 13, 14]
        with trio.move_on_after(0.01) as nothing:
            await box.wait()
        assert nothing.cancelled_caught and box.take(9) == []

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
