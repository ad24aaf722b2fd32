"""What the meter keeps is bounded, whatever names its counters have; the kernel is played."""

from __future__ import annotations

import struct
from typing import cast

import pytest
import trio

from meshd.kernel import meter as meter_module
from meshd.kernel.meter import Meter
from meshd.kernel.netlink import NetlinkSocket
from meshd.kernel.nft import LINK_SETS, CounterSet, Direction, Nft

OUT = next(s for s in LINK_SETS if s.direction is Direction.OUT and not s.address_size)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int, int]]:
    """The elements of one set; the others are empty."""
    elements: list[tuple[bytes, int, int]] = []

    async def dump(_: Meter, counter_set: CounterSet, generation: int) -> list[tuple[bytes, int, int]]:
        await trio.lowlevel.checkpoint()
        return list(elements) if counter_set is OUT else []

    monkeypatch.setattr(Meter, "_dump", dump)
    return elements


def made() -> Meter:
    return Meter(cast("NetlinkSocket", None), Nft())


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


def test_totals_are_not_kept_for_every_address_that_was_ever_seen(
    counted: list[tuple[bytes, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_module, "_MAX_TOTALS", 10)

    async def scenario() -> None:
        meter = made()
        meter.name_interface(7, "eth0")
        counted.extend(element(7, 2 * mac, 1) for mac in range(1, 100))
        assert len(await meter.read()) == 99
        assert len(meter.totals) == 10

    trio.run(scenario)
