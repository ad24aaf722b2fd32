"""Where the kernel has nothing for the fast lane, that is said, and nothing else happens; the kernel is played."""

from __future__ import annotations

import errno
import platform
import struct
from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock

import pytest
import trio
import trio.testing

from meshd.kernel.bpf import syscalls
from meshd.kernel.foreign import foreign_hook
from meshd.kernel.lane import Lane
from meshd.kernel.netlink import Message, NetlinkError, NetlinkSocket, Request, attribute
from meshd.kernel.traffic_control import Filter, TrafficControl


class Played:
    """Gives `answer` to every question, or refuses it with `code`; takes orders, each after a moment."""

    def __init__(self, code: int = 0, answer: bytes = b"") -> None:
        self.code = code
        self.answer = answer
        self.orders: list[int] = []

    async def dump(self, request: Request) -> list[Message]:
        await trio.lowlevel.checkpoint()
        if self.code:
            raise NetlinkError(self.code)
        return [Message(0, self.answer)]

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


def test_a_chain_may_have_any_name() -> None:
    hook = attribute(4, attribute(1, struct.pack(">I", 2)))  # forward
    chain = bytes([1, 0, 0, 0]) + attribute(1, b"\xff\0") + attribute(3, b"theirs\0") + hook
    played = Played(answer=chain + attribute(6, struct.pack(">I", 1)))
    assert trio.run(foreign_hook, cast(NetlinkSocket, played)) == "inet \ufffd theirs"


def test_what_a_daemon_with_more_rights_has_left_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def filters(control: TrafficControl, index: int) -> list[Filter]:
        return [Filter(program=index)]

    def program_by_id(number: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(TrafficControl, "filters", filters)
    monkeypatch.setattr(syscalls, "program_by_id", program_by_id)
    netlink = cast(NetlinkSocket, Played())
    links = SimpleNamespace(all=AsyncMock(return_value={"e0": SimpleNamespace(index=7)}))
    with pytest.raises(NetlinkError, match="meshd clean"):
        trio.run(Lane(netlink, netlink).leftover, links)


def test_a_program_of_32_bits_does_not_use_the_numbers_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Raspberry Pi with a kernel of 64 bits and a system of 32."""
    real = struct.calcsize
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(struct, "calcsize", lambda layout: 4 if layout == "P" else real(layout))
    monkeypatch.setattr(syscalls, "_libc", None)  # it is not asked
    with pytest.raises(OSError, match="not implemented"):
        syscalls.create_array("x", value_size=8, entries=1)
