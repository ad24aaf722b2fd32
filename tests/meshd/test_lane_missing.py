"""Where the kernel has nothing for the fast lane, that is said, and nothing else happens; the kernel is played."""

from __future__ import annotations

import errno
import platform
import struct
from typing import cast

import pytest
import trio
import trio.testing

from meshd.kernel.bpf import syscalls
from meshd.kernel.netlink import Message, NetlinkError, NetlinkSocket, Request
from meshd.kernel.traffic_control import TrafficControl


class Played:
    """Refuses every question with `code`; takes orders, each after a moment."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.orders: list[int] = []

    async def dump(self, request: Request) -> list[Message]:
        await trio.lowlevel.checkpoint()
        raise NetlinkError(self.code)

    async def request(self, request: Request) -> None:
        await trio.sleep(1)
        self.orders.append(request.kind)


def control(played: Played) -> TrafficControl:
    return TrafficControl(cast(NetlinkSocket, played))


def test_a_kernel_without_traffic_control_has_no_filters() -> None:
    assert trio.run(control(Played(errno.EOPNOTSUPP)).filters, 1) == []


def test_that_the_filters_are_not_known_is_an_error() -> None:
    with pytest.raises(NetlinkError):
        trio.run(control(Played(errno.EPERM)).filters, 1)


def test_whoever_gives_up_attaching_leaves_no_qdisc_without_a_filter() -> None:
    played = Played(errno.EINVAL)

    async def give_up() -> None:
        with trio.move_on_after(0.5):
            await control(played).attach(1, 5)

    trio.run(give_up, clock=trio.testing.MockClock(autojump_threshold=0))
    assert played.orders == [36, 44]  # RTM_NEWQDISC, RTM_NEWTFILTER


def test_a_program_of_32_bits_does_not_use_the_numbers_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Raspberry Pi with a kernel of 64 bits and a system of 32."""
    real = struct.calcsize
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(struct, "calcsize", lambda layout: 4 if layout == "P" else real(layout))
    monkeypatch.setattr(syscalls, "_libc", None)  # it is not asked
    with pytest.raises(OSError, match="not implemented"):
        syscalls.create_array("x", value_size=8, entries=1)
