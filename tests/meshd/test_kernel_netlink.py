"""The netlink socket itself, and the bytes that it takes apart. Reading links needs no privilege."""

from __future__ import annotations

import errno
import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from trio.testing import MockClock

from meshd.kernel.elements import elements
from meshd.kernel.links import Links
from meshd.kernel.netlink import (
    NETLINK_ROUTE,
    NetlinkError,
    NetlinkSocket,
    Request,
    _error,
    _pack,
    _split,
    attribute,
    attributes,
    encode,
)

_RTM_GETLINK = 18
_RTM_NEWLINK = 16


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=10))
def test_attributes_come_out_as_they_went_in(wanted: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in wanted)
    assert [(kind, data[start:end]) for kind, start, end in attributes(data, 0, len(data))] == wanted


@given(st.binary(max_size=200))
def test_garbage_raises_only_netlink_error(data: bytes) -> None:
    for parse in (
        lambda: list(attributes(data, 0, len(data))),
        lambda: list(_split(data)),
        lambda: list(elements(data)),
    ):
        try:
            parse()
        except NetlinkError as error:
            assert error.code == errno.EBADMSG


def test_the_kernels_own_words_are_in_the_error() -> None:
    text = attribute(1, b"Device does not exist\0")
    payload = struct.pack("=i", -errno.ENODEV) + bytes(16) + text
    error = _error(payload, 0x200)
    assert error is not None
    assert error.code == errno.ENODEV
    assert str(error) == "ENODEV: Device does not exist"
    assert _error(struct.pack("=i", 0), 0) is None


class Interrupted(NetlinkSocket):
    """Its first answers are cut into: by the flag of a message of theirs, or of the end."""

    def __init__(self, times: int, *, at_end: bool = False) -> None:
        super().__init__(NETLINK_ROUTE)
        self.asked = 0
        self._times = times
        self._at_end = at_end

    async def _send(self, data: bytes) -> None:
        self.asked += 1

    async def _receive(self) -> bytes:
        flag = 0x10 if self.asked <= self._times else 0
        end = 2 | (flag if self._at_end else 0)
        part = _pack(_RTM_NEWLINK, 2 | (0 if self._at_end else flag), self._sequence, bytes([self.asked]))
        return part + _pack(3, end, self._sequence, bytes(4))


@pytest.mark.parametrize("at_end", [False, True])
def test_a_dump_that_was_interrupted_is_asked_for_again(
    at_end: bool,
) -> None:
    async def main() -> None:
        with Interrupted(3, at_end=at_end) as rtnetlink:
            answer = await rtnetlink.dump(Request(_RTM_GETLINK, b""), is_whole=True)
            assert [message.payload[:1] for message in answer] == [b"\x04"]  # nothing of those before it
            assert rtnetlink.asked == 4

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_one_that_is_always_interrupted_is_not_asked_for_for_ever() -> None:
    async def main() -> None:
        with Interrupted(1000) as rtnetlink:
            assert len(await rtnetlink.dump(Request(_RTM_GETLINK, b""))) == 1  # its last answer
            assert rtnetlink.asked < 10
            with pytest.raises(NetlinkError) as caught:
                await rtnetlink.dump(Request(_RTM_GETLINK, b""), is_whole=True)
            assert caught.value.code == errno.EAGAIN
            assert len(await rtnetlink.get(Request(_RTM_GETLINK, b""))) == 1

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_links_of_this_machine() -> None:
    async def main() -> None:
        with NetlinkSocket(NETLINK_ROUTE) as rtnetlink:
            lo = await Links(rtnetlink).get("lo")
            assert (lo.index, lo.mac) == (1, bytes(6))

    trio.run(main)


def test_a_refusal_carries_its_code() -> None:
    async def main() -> None:
        message = ifinfmsg()
        message["index"] = 2**31 - 1
        with NetlinkSocket(NETLINK_ROUTE) as rtnetlink, pytest.raises(NetlinkError) as caught:
            await rtnetlink.get(Request(_RTM_GETLINK, encode(message)))
        assert caught.value.code == errno.ENODEV

    trio.run(main)


def test_requests_of_several_tasks_take_turns() -> None:
    async def main() -> None:
        with NetlinkSocket(NETLINK_ROUTE) as rtnetlink:
            found: list[int] = []

            async def ask() -> None:
                found.append(len(await Links(rtnetlink).all()))

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask)
            assert len(set(found)) == 1

    trio.run(main)


def test_after_a_cancelled_request_the_next_one_gets_its_own_answer() -> None:
    async def main() -> None:
        with NetlinkSocket(NETLINK_ROUTE) as rtnetlink:
            for checkpoints in range(6):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(rtnetlink.dump, Request(_RTM_GETLINK, encode(ifinfmsg())))
                        for _ in range(checkpoints):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
                assert (await Links(rtnetlink).get("lo")).index == 1

    trio.run(main)
