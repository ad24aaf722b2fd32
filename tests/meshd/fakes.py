"""The kernel as the daemon's glue sees it, without one: what was asked of it is written down, and it can refuse."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, cast

import trio
from trio.testing import MockClock

from meshd.kernel import Blocked, Direction, FlowCount, Kernel, Link, NetlinkError, NftError, Route
from routing.events import Prefix


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """In virtual time, that passes when nobody has anything to do."""
    trio.run(scenario, clock=MockClock(autojump_threshold=0))


def flow(
    direction: Direction, mac: bytes, size: int, *, interface: str = "eth0", to: IPv6Address | None = None
) -> FlowCount:
    return FlowCount(direction, interface, mac, None, to, size, 1, size, 0)


@dataclass
class FakeMeter:
    waiting: list[FlowCount] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    readings: int = 0
    is_unknown: bool = False
    takes: float = 0.0
    expected: set[tuple[str, bytes]] = field(default_factory=set)

    async def expect(self, interface: str, mac: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.expected.add((interface, mac))

    def unexpect(self, interface: str, mac: bytes) -> None:
        self.expected.discard((interface, mac))

    async def is_worth_reading(self) -> bool:
        await trio.lowlevel.checkpoint()
        if self.is_unknown:
            raise NetlinkError(errno.EBUSY)
        return bool(self.waiting)

    async def read(self) -> list[FlowCount]:
        self.readings += 1
        await trio.sleep(self.takes)
        if self.failures:
            raise self.failures.pop(0)
        flows, self.waiting = self.waiting, []
        return flows


@dataclass
class FakeGate:
    shut: set[tuple[str, bytes]] = field(default_factory=set)
    shared: set[tuple[str, bytes]] = field(default_factory=set)  # of these, those in the shared tier
    failures: int = 0
    takes: float = 0.0

    async def suspend(self, interface: str, mac: bytes, *, is_shared: bool = False) -> None:
        await self._work()
        self.shut.add((interface, mac))
        (self.shared.add if is_shared else self.shared.discard)((interface, mac))

    async def resume(self, interface: str, mac: bytes) -> None:
        await self._work()
        self.shut.discard((interface, mac))
        self.shared.discard((interface, mac))

    async def _work(self) -> None:
        await trio.sleep(self.takes)
        if self.failures:
            self.failures -= 1
            raise NftError("no")


class FakeLinks:
    def __init__(self, journal: list[Any]) -> None:
        self.mac_by_link: dict[tuple[str, IPv6Address], bytes] = {}
        self.link_by_name: dict[str, Link] = {}
        self.resolve_takes = 0.0
        self.journal = journal
        self.failures = 0
        self.received: dict[str, int] = {}
        self.send, self._changes = trio.open_memory_channel[Link](100)
        self.fail, self._failures = trio.open_memory_channel[tuple[int, IPv6Address]](100)

    async def resolve_mac(self, interface: str, address: IPv6Address) -> bytes | None:
        await trio.sleep(self.resolve_takes)
        return self.mac_by_link.get((interface, address))

    async def all(self) -> dict[str, Link]:
        if self.failures:
            self.failures -= 1
            raise NetlinkError(errno.EBUSY)
        return dict(self.link_by_name)

    def byte_counts(self) -> dict[str, tuple[int, int]]:
        return {name: (received, 0) for name, received in self.received.items()}

    def change(self, link: Link) -> None:
        self.link_by_name[link.name] = link
        self.send.send_nowait(link)

    async def delete(self, interface: str) -> None:
        await trio.lowlevel.checkpoint()
        self.journal.append(("delete", interface))

    async def set_up(self, interface: str, *, mtu: int) -> None:
        await trio.lowlevel.checkpoint()
        self.journal.append(("up", interface, mtu))

    async def add_link_local(self, interface: str, address: IPv6Address) -> None:
        await trio.lowlevel.checkpoint()
        self.journal.append(("address", interface, address))

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Link]]:
        if self.failures:
            self.failures -= 1
            raise NetlinkError(errno.EBUSY)
        yield self._changes

    @asynccontextmanager
    async def watch_unreachable(self) -> AsyncIterator[AsyncIterator[tuple[int, IPv6Address]]]:
        yield self._failures


class FakeRoutes:
    def __init__(self, journal: list[Any]) -> None:
        self.journal = journal
        self.refusing = False
        self.install_failures = 0

    async def cleanup(self) -> None:
        await trio.lowlevel.checkpoint()
        self.journal.append(("cleanup",))

    async def install_many(self, routes: Iterable[Route]) -> dict[Prefix, NetlinkError]:
        await trio.lowlevel.checkpoint()
        if self.install_failures:
            self.install_failures -= 1
            raise NetlinkError(errno.EEXIST)
        if self.refusing:
            return {route.prefix: NetlinkError(errno.ENODEV) for route in routes}
        self.journal += [("install", *_pair(route)) for route in routes]
        return {}

    async def block_many(self, blocked: Sequence[Blocked]) -> dict[Prefix, NetlinkError]:
        await trio.lowlevel.checkpoint()
        if self.refusing:
            return {entry.prefix: NetlinkError(errno.EBUSY) for entry in blocked}
        self.journal += [("block", *_pair(entry)) for entry in blocked]
        return {}

    async def remove(self, prefix: Prefix, source_prefix: Prefix | None = None) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusing:
            raise NetlinkError(errno.EBUSY)
        self.journal.append(("remove", *_pair(Blocked(prefix, source_prefix))))

    async def keep_default(self, source_prefix: Prefix, *, is_ours: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusing:
            raise NetlinkError(errno.EBUSY)
        self.journal.append(("keep default" if is_ours else "leave default", source_prefix))


def _pair(route: Route | Blocked) -> tuple[Prefix, ...]:
    return (route.prefix,) if route.source_prefix is None else (route.prefix, route.source_prefix)


class FakeKernel:
    def __init__(self) -> None:
        self.journal: list[Any] = []
        self.meter = FakeMeter()
        self.gate = FakeGate()
        self.links = FakeLinks(self.journal)
        self.routes = FakeRoutes(self.journal)
        self.managed: list[str] = []
        self.manage_failures = 0
        self.guarded: dict[str, int] = {}
        self.guard_failures = 0
        self.devices: list[str] = []
        self.delete_takes = 0.0
        self.kept_out = 0

    async def guard(self, interface: str, index: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.guard_failures:
            self.guard_failures -= 1
            raise NftError("busy")
        self.guarded[interface] = index

    async def keep_out_of_mesh(self, mark: int) -> None:
        await trio.lowlevel.checkpoint()
        self.kept_out = mark

    def record_device(self, name: str) -> None:
        if name not in self.devices:
            self.devices.append(name)

    async def delete_device(self, name: str) -> None:
        await trio.sleep(self.delete_takes)
        self.journal.append(("delete device", name))
        self.devices.remove(name)

    async def manage(self, interface: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.manage_failures:
            self.manage_failures -= 1
            raise NftError("busy")
        self.managed.append(interface)

    def as_kernel(self) -> Kernel:
        return cast("Kernel", self)


async def turns_of_others(work: Callable[[], Awaitable[object]]) -> int:
    """How often another task had its turn until the work was done."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await work()
        nursery.cancel_scope.cancel()
    return turns
