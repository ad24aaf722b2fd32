"""Where the kernel has nothing for the fast lane, that is said, and nothing else happens; the kernel is played."""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock

import pytest
import trio
import trio.testing

from meshd.kernel import foreign
from meshd.kernel import lane as lane_module
from meshd.kernel.bpf import syscalls
from meshd.kernel.bpf.places import Places
from meshd.kernel.foreign import foreign_hook, is_foreign_news, old_hook
from meshd.kernel.lane import Lane
from meshd.kernel.links import Link
from meshd.kernel.netlink import Message, NetlinkError, NetlinkSocket, Request, attribute
from meshd.kernel.traffic_control import Filter, TrafficControl


class Played:
    """Gives `answer` to every question, or refuses it with `code`; takes orders, each message after a moment."""

    def __init__(self, code: int = 0, answer: bytes = b"") -> None:
        self.code = code
        self.answer = answer
        self.orders: list[list[int]] = []
        self.refusals: dict[int, int] = {}  # by kind of request

    async def dump(self, request: Request, *, is_whole: bool = False) -> list[Message]:
        await trio.lowlevel.checkpoint()
        if self.code:
            raise NetlinkError(self.code)
        return [Message(0, self.answer)] if self.answer else []

    def waiting_events(self) -> list[Message]:
        return []

    async def batch(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        await trio.sleep(1)
        self.orders.append([request.kind for request in requests])
        return [NetlinkError(self.refusals[r.kind]) if r.kind in self.refusals else None for r in requests]


_NEW_QDISC, _DELETE_QDISC, _NEW_FILTER = 36, 37, 44


def control(played: Played) -> TrafficControl:
    return TrafficControl(cast(NetlinkSocket, played))


def test_a_kernel_without_traffic_control_has_no_filters() -> None:
    assert trio.run(control(Played(errno.EOPNOTSUPP)).filters, 1) == []


def test_that_the_filters_are_not_known_is_an_error() -> None:
    with pytest.raises(NetlinkError):
        trio.run(control(Played(errno.EPERM)).filters, 1)


def test_whoever_gives_up_attaching_leaves_no_qdisc_without_a_filter() -> None:
    played = Played()

    async def give_up() -> None:
        with trio.move_on_after(0.5):
            await control(played).attach(1, 5)

    trio.run(give_up, clock=trio.testing.MockClock(autojump_threshold=0))
    assert played.orders == [[_NEW_QDISC, _NEW_FILTER]]  # in one message: a kill leaves neither without the other


def test_a_qdisc_whose_filter_is_refused_is_taken_away_and_nobody_elses() -> None:
    async def attach(played: Played) -> None:
        with pytest.raises(NetlinkError):
            await control(played).attach(1, 5)

    clock = trio.testing.MockClock(autojump_threshold=0)
    played = Played()
    played.refusals = {_NEW_FILTER: errno.EINVAL}
    trio.run(attach, played, clock=clock)
    assert played.orders[1:] == [[_DELETE_QDISC]]
    played = Played()
    played.refusals = {_NEW_QDISC: errno.EEXIST}  # somebody was faster
    trio.run(attach, played, clock=trio.testing.MockClock(autojump_threshold=0))
    assert played.orders[1:] == []


def test_where_others_rules_cannot_be_seen_all_goes_the_long_way_and_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(lane_module.log, "warning", lambda text, **_: told.append(text))

    async def scenario() -> None:
        played = Played(errno.EAGAIN)
        lane = Lane(*[cast(NetlinkSocket, played)] * 3)
        lane._places = cast(Places, object())  # it is open
        for _ in range(3):
            await lane.make_way()
            assert "cannot be seen" in lane.problem and lane._is_blocked
            assert list(lane.parts()) == []
            await trio.sleep(2)
        played.code = 0
        await lane.make_way()
        assert not lane.problem and not lane._is_blocked

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(told) == 1


def test_each_interface_that_is_not_in_the_lane_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def attach(control: TrafficControl, index: int, program: int) -> str:
        if index == 1:
            raise NetlinkError(errno.EPERM)
        return "" if index in (2, 4) else "others have filters (tc) there"

    monkeypatch.setattr(TrafficControl, "attach", attach)

    async def scenario() -> None:
        played = cast(NetlinkSocket, Played())
        lane = Lane(played, played, played)
        lane._places, lane._programs = cast(Places, object()), {"from_link": 5}
        for index in (1, 2, 3):
            await lane.attach(Link(index, f"e{index}", bytes(6), 1500, True, None))
        await lane.make_way()  # has nothing to do with it
        assert set(lane.outside) == {"e1", "e3"}
        assert lane.outside["e1"].startswith("tc refuses it: EPERM")
        await lane.attach(Link(4, "e3", bytes(6), 1500, True, None))  # made anew
        assert set(lane.outside) == {"e1"}
        lane.leave(1)
        assert not lane.outside

    trio.run(scenario)


def test_a_chain_may_have_any_name() -> None:
    hook = attribute(4, attribute(1, struct.pack(">I", 2)))  # forward
    chain = bytes([1, 0, 0, 0]) + attribute(1, b"\xff\0") + attribute(3, b"theirs\0") + hook
    played = Played(answer=chain + attribute(6, struct.pack(">I", 1)))
    assert trio.run(foreign_hook, cast(NetlinkSocket, played)) == "inet \ufffd theirs"


def test_news_of_our_own_rules_is_none() -> None:
    def news(kind: int, content: bytes) -> Message:
        return Message((10 << 8) | kind, bytes([2, 0, 0, 0]) + content)

    ours = [news(0, attribute(1, b"meshd\0")), news(12, attribute(2, b"in_ip4_7\0") + attribute(1, b"meshd\0"))]
    end = news(15, attribute(1, b"\0\0\0\7"))
    assert not is_foreign_news([]) and not is_foreign_news([*ours, end])
    assert is_foreign_news([*ours, news(6, attribute(1, b"filter\0")), end])
    assert is_foreign_news([news(6, b"")])  # whose is not known
    assert is_foreign_news(None)


@pytest.mark.parametrize(("news", "expected"), [([], False), ([Message(0x0A02, bytes(4))], True), (None, True)])
def test_whoever_has_changed_rules_it_is_told_also_without_a_lane(news: list[Message] | None, expected: bool) -> None:
    class Rules:
        def waiting_events(self) -> list[Message] | None:
            return news

    netlink = cast(NetlinkSocket, Played())
    assert trio.run(Lane(netlink, netlink, cast(NetlinkSocket, Rules())).make_way) is expected


def test_what_a_daemon_with_more_rights_has_left_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def filters(control: TrafficControl, index: int) -> list[Filter]:
        return [Filter(program=index, header=b"")]

    def program_by_id(number: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(TrafficControl, "filters", filters)
    monkeypatch.setattr(syscalls, "program_by_id", program_by_id)
    netlink = cast(NetlinkSocket, Played())
    links = SimpleNamespace(all=AsyncMock(return_value={"e0": SimpleNamespace(index=7)}))
    with pytest.raises(NetlinkError, match="meshd clean"):
        trio.run(Lane(netlink, netlink, netlink).leftover, links)


def test_a_program_of_32_bits_does_not_use_the_numbers_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Raspberry Pi with a kernel of 64 bits and a system of 32."""
    real = struct.calcsize
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(struct, "calcsize", lambda layout: 4 if layout == "P" else real(layout))
    monkeypatch.setattr(syscalls, "_libc", None)  # it is not asked
    with pytest.raises(OSError, match="not implemented"):
        syscalls.create_array("x", value_size=8, entries=1)


def test_old_iptables_are_in_use_where_they_have_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "ip_tables_names", tmp_path / "ip6_tables_names"]
    monkeypatch.setattr(foreign, "_OLD_TABLES", files)
    assert old_hook() is None
    for file in files:
        file.write_text("\n")
    assert old_hook() is None
    files[1].write_text("filter\n")
    assert old_hook() == "iptables"
    files[1].unlink()
    files[1].mkdir()  # not to be read
    assert old_hook() == "iptables"
