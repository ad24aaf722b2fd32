"""What the meter keeps is bounded, whatever names its counters have; the kernel is played."""

from __future__ import annotations

import errno
import struct
from typing import cast

import pytest
import trio
import trio.testing

from meshd.kernel import meter as meter_module
from meshd.kernel.lane import Lane
from meshd.kernel.meter import Meter
from meshd.kernel.netlink import NetlinkError, NetlinkSocket, attribute
from meshd.kernel.nft import LINK_SETS, CounterSet, Direction, Nft

OUT = next(s for s in LINK_SETS if s.direction is Direction.OUT and not s.address_size)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int, int]]:
    """The elements of one set; the others are empty."""
    elements: list[tuple[bytes, int, int]] = []

    async def dump(meter: Meter, counter_set: CounterSet, generation: int, *, is_whole: bool = False) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        is_there = counter_set is OUT and generation == meter._nft.generation
        return [message(elements[at : at + 300]) for at in range(0, len(elements), 300)] if is_there else []

    monkeypatch.setattr(Meter, "_dump", dump)
    return elements


class NoNft(Nft):
    """Whose sets are made only here."""

    def __init__(self, elements: list[tuple[bytes, int, int]]) -> None:
        super().__init__()
        self.switches = 0
        self.deleted: list[tuple[float, int]] = []
        self._elements = elements

    async def switch_generation(self) -> None:
        await trio.lowlevel.checkpoint()
        self.switches += 1
        self.generation += 1
        self._elements.clear()

    async def delete(self, generation: int) -> None:
        await trio.lowlevel.checkpoint()
        self.deleted.append((trio.current_time(), generation))


def made(nft: Nft | None = None) -> Meter:
    nft = nft or Nft()
    nft._had_links = True
    return Meter(cast("NetlinkSocket", None), nft)


def message(elements: list[tuple[bytes, int, int]]) -> bytes:
    return bytes(4) + attribute(3, b"".join(attribute(1, kernel_element(*fields)) for fields in elements))


def kernel_element(key: bytes, size: int, packets: int) -> bytes:
    """As Linux 6.18 writes it, inside of its NFTA_LIST_ELEM."""
    values = attribute(1, struct.pack(">Q", size)) + attribute(2, struct.pack(">Q", packets))
    expression = attribute(1, b"counter\0") + attribute(2, values)
    return attribute(1, attribute(1, key)) + attribute(7, expression)


def element(index: int, mac: int, packets: int) -> tuple[bytes, int, int]:
    return struct.pack("=I", index) + mac.to_bytes(6, "big") + b"\0\0", 100 * packets, packets


def test_what_was_counted_on_an_interface_that_went_is_read_once_more(
    counted: list[tuple[bytes, int, int]],
) -> None:
    async def scenario() -> None:
        meter = made()
        for index in (7, 8):
            meter.name_interface(index, f"mw{index}")
            counted.append(element(index, 2, 5))
        meter.interface_gone(7)
        assert [(flow.interface, flow.packets) for flow in await meter.read()] == [("mw7", 5), ("mw8", 5)]
        counted[:] = [element(7, 2, 6), element(8, 2, 6)]
        assert [(flow.interface, flow.packets) for flow in await meter.read()] == [("mw8", 1)]

    trio.run(scenario)


def test_when_most_flows_have_ended_counting_begins_anew_in_empty_sets(counted: list[tuple[bytes, int, int]]) -> None:
    async def scenario() -> None:
        nft = NoNft(counted)
        meter = made(nft)
        meter.name_interface(7, "eth0")
        counted.extend(element(7, 2 * mac, 1) for mac in range(1, 2000))
        assert len(await meter.read()) == 1999
        for _ in range(3):  # all are idle now, but not for long
            assert await meter.read() == []
        assert nft.switches == 0
        await trio.sleep(meter_module._IDLE_TIMEOUT)
        assert await meter.read() == []  # up to here, all had something new
        await trio.sleep(meter_module._IDLE_TIMEOUT)
        assert await meter.read() == []
        assert nft.switches == 1
        counted.append(element(7, 2, 1))
        assert [flow.packets for flow in await meter.read()] == [1]
        assert sum(map(len, meter._counters.values())) == 1

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_generation_is_known_as_long_as_its_sets_are_there(counted: list[tuple[bytes, int, int]]) -> None:
    """Readings of others are forgotten: without its own, a crash would bill it all again."""
    seen: list[tuple[int, set[int]]] = []

    class Watching(NoNft):
        async def switch_generation(self) -> None:
            old = self.generation
            await super().switch_generation()
            seen.append((old, meter.generations()))  # the meter does not know yet that it is done

        async def delete(self, generation: int) -> None:
            seen.append((generation, meter.generations()))
            await super().delete(generation)

    nft = Watching(counted)
    meter = made(nft)

    async def scenario() -> None:
        meter.name_interface(7, "eth0")
        counted.extend(element(7, 2 * mac, 1) for mac in range(1, 2000))
        while not nft.deleted:
            await meter.read()
            await trio.sleep(1)
        assert [generation in known for generation, known in seen] == [True, True]
        assert meter.generations() == {nft.generation}

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_live_flows_are_not_counted_anew_all_the_time_where_there_are_many(
    counted: list[tuple[bytes, int, int]],
) -> None:
    async def scenario() -> None:
        nft = NoNft(counted)
        meter = made(nft)
        meter.name_interface(7, "eth0")
        for packets in range(1, 16):
            counted[:] = [element(7, 2 * mac, packets) for mac in range(1, 2_001)]
            assert sum(flow.packets for flow in await meter.read()) == 2_000
            await trio.sleep(15)
        assert nft.switches == 0

    assert meter_module._MANY_ELEMENTS > 10_000
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_set_that_is_nearly_full_is_left_for_an_empty_one_but_not_at_each_reading(
    counted: list[tuple[bytes, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module, "_MANY_ELEMENTS", 10)

    async def scenario() -> None:
        nft = NoNft(counted)
        meter = made(nft)
        meter.name_interface(7, "eth0")
        while trio.current_time() < 1.5 * meter_module._ROTATION_INTERVAL:
            counted[:] = [element(7, 2 * mac, 1) for mac in range(1, 20)]
            await meter.read()
            await trio.sleep(0.1)
        assert nft.switches == 1 + 1  # the first at once

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_reading_is_worth_while_once_an_interface_has_carried_more_than_a_little(
    counted: list[tuple[bytes, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = {"eth0": (10_000, 0), "mw7": (0, 0), "lo": (0, 0)}
    monkeypatch.setattr(meter_module, "read_interface_bytes", lambda: dict(carried))

    async def scenario() -> None:
        meter = made()
        meter.name_interface(2, "eth0")
        assert [await meter.is_worth_reading() for _ in range(2)] == [True, False]
        meter.name_interface(7, "mw7")
        carried["lo"] = (0, 10**9)  # is not ours
        carried["mw7"] = (800, 800)
        assert not await meter.is_worth_reading()
        carried["mw7"] = (1200, 800)  # what came a little at a time is added up
        assert [await meter.is_worth_reading() for _ in range(2)] == [True, False]
        carried["eth0"] = (0, 0)  # it was made anew
        assert [await meter.is_worth_reading() for _ in range(2)] == [True, False]
        del carried["mw7"]
        assert [await meter.is_worth_reading() for _ in range(2)] == [True, True]
        meter.interface_gone(7)
        await meter.read()
        assert not await meter.is_worth_reading()

    trio.run(scenario)


def test_after_a_reading_that_failed_another_one_is_worth_while(
    counted: list[tuple[bytes, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module, "read_interface_bytes", lambda: {"eth0": (0, 0)})

    async def scenario() -> None:
        meter = made()
        meter.name_interface(2, "eth0")
        assert [await meter.is_worth_reading() for _ in range(2)] == [True, False]
        with monkeypatch.context() as patch:
            patch.setattr(Meter, "_dump", refuse)
            with pytest.raises(NetlinkError):
                await meter.read()
        assert await meter.is_worth_reading()

    trio.run(scenario)


def test_news_of_rules_that_comes_while_the_sets_are_read_is_not_lost(
    counted: list[tuple[bytes, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have deleted ours: what is carried is neither counted nor held until that is noticed."""
    monkeypatch.setattr(meter_module, "read_interface_bytes", lambda: {"eth0": (0, 0)})
    news = [False, False, True]

    class Rules:
        async def make_way(self) -> bool:
            return bool(news) and news.pop(0)

        def parts(self) -> list[object]:
            return []

    async def scenario() -> None:
        meter = made()
        meter._lane = cast("Lane", Rules())
        meter.name_interface(2, "eth0")
        assert [await meter.is_worth_reading() for _ in range(2)] == [True, False]
        await meter.read()
        assert [await meter.is_worth_reading() for _ in range(2)] == [True, False]

    trio.run(scenario)


async def refuse(meter: Meter, counter_set: CounterSet, generation: int, *, is_whole: bool = False) -> list[bytes]:
    raise NetlinkError(errno.EBUSY)
