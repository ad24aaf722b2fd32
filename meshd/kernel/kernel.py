"""The one door to the kernel for the rest of the daemon."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import MappingProxyType
from typing import Self, TypeVar

import trio

from meshd.kernel import foreign
from meshd.kernel.changes import Changes
from meshd.kernel.gate import Port, Tier
from meshd.kernel.lane import Lane
from meshd.kernel.links import ARPHRD_ETHER, ARPHRD_NONE, Links
from meshd.kernel.meter import FlowCount, Meter, lane_counts
from meshd.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkError, NetlinkSocket
from meshd.kernel.nft import Gate, Nft
from meshd.kernel.route_watch import RouteWatch
from meshd.kernel.routes import RouteTable

AnyKernel = TypeVar("AnyKernel", bound="Kernel")

_CLEANUP_TIMEOUT = 10.0
_LOCK = "\0meshd"


class KernelInUseError(Exception):
    """Another meshd runs in this network namespace; each would remove what the other has in the kernel."""


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What tells our state in the kernel from everybody else's.

    `record_path` is a file in the daemon's state or run directory: what was there before what we changed, so that it
    can be put back after a crash. `table`: number of the routing table. `protocol`: rtnetlink protocol of our routes
    and rules (babeld and FRR use 42). `rule_priority`: the first of those that our rules take (see
    `layout`); it must be less than 32000. `free_rate`: bits per second that are carried for each neighbour that has not
    paid; 0: nothing. `has_fast_lane`: paid flows take it where the kernel has BPF.
    """

    record_path: Path
    table: int = 6696
    protocol: int = 66
    rule_priority: int = 1000
    free_rate: int = 0
    has_fast_lane: bool = True


class Kernel:
    """Routes, links, metering and enforcement of one network namespace. Use `Kernel.open`."""

    def __init__(
        self, config: KernelConfig, rtnetlink: NetlinkSocket, netfilter: NetlinkSocket, rules: NetlinkSocket
    ) -> None:
        self.config = config
        self.lane = Lane(rtnetlink, netfilter, rules)
        table = config.table, config.protocol, config.rule_priority
        self.routes = RouteTable(rtnetlink, *table, changed=self.lane.routes_changed)
        self.route_watch = RouteWatch(rtnetlink, config.table, config.protocol)
        self.links = Links(rtnetlink)
        self._nft = Nft(Tier(config.free_rate // 8))
        self.meter = Meter(netfilter, self._nft, self.lane)
        self.gate = Gate(self._nft, self.lane)
        self._changes = Changes(config.record_path, self.links)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        config: KernelConfig,
        held: Mapping[Port, bool] = MappingProxyType({}),
        *,
        keep: Callable[[Sequence[FlowCount]], Awaitable[None]] | None = None,
        guarded: Collection[str] = (),
    ) -> AsyncIterator[Self]:
        """Remove what a killed daemon left, set up rules, forwarding and metering; undo all of it at the end.

        `held`: who is held to the free tier from the first packet on, and whether in the shared one (`Gate.suspend`).
        `keep`: given what a killed daemon's counters hold, before they are removed; the kernel forwards and counts on.
        What is not durable when it returns is lost with the next kill.
        `guarded`: interfaces that are guarded as soon, if they are there (`guard`).

        The removal at the end is shielded from cancellation, and bounded by ten seconds.
        Raises KernelInUseError, NetlinkError, NftError or OSError.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(_exclusive())
            kernel = stack.enter_context(_made(cls, config))
            await kernel.routes.cleanup()  # first: what is carried after the look at the counters is in none
            leftover = lane_counts(await kernel.lane.leftover(kernel.links)) + await kernel.meter.leftover()
            if keep is not None:
                await keep(leftover)
            await kernel.lane.clear(kernel.links)
            kernel._nft.hold_before_load(held)
            kernel._nft.guard_before_load(guarded)
            for port in held:
                kernel.lane.shut(port)
            try:
                # Not the old rules: the new ones take their place at once, so that nobody slips through in between.
                await kernel._remove(kernel.routes.cleanup, kernel._changes.restore)
                await kernel._set_up()
                yield kernel
            finally:
                with trio.CancelScope(deadline=trio.current_time() + _CLEANUP_TIMEOUT, shield=True):
                    await kernel._remove_all()

    async def manage(self, interface: str) -> None:
        """Meter and police the traffic of this interface, and prepare it: offloads off. Again after it was made anew.

        Raises NetlinkError: ENODEV if there is none of that name, EPFNOSUPPORT if its packets cannot be told apart by
        neighbour: they need MAC addresses, or to be of one neighbour, as in a WireGuard or TUN interface.
        """
        link = await self.links.get(interface)
        if link.hardware not in (ARPHRD_ETHER, ARPHRD_NONE):
            raise NetlinkError(
                errno.EPFNOSUPPORT,
                f"{interface} is neither Ethernet nor radio (type {link.hardware}, as of PPP, GRE, IPIP), so that "
                'bytes cannot be billed there; have a tunnel over it: security = "wireguard", or a [[peer]]',
            )
        await self._changes.prepare_interface(interface)
        self.meter.name_interface(link.index, interface)
        await self._nft.add_interface(interface, link.index, is_tunnel=link.hardware == ARPHRD_NONE)
        await self.lane.attach(link)

    async def guard(self, interface: str, index: int) -> None:
        """Carry nothing that comes in there outside of the tunnels that go over it. Idempotent. Raises NftError."""
        await self._nft.guard_interface(interface, index)

    def record_device(self, name: str) -> None:
        """Before an interface of our own (a tunnel) is made: it is deleted in the end, and after a crash."""
        self._changes.record_device(name)

    async def delete_device(self, name: str) -> None:
        """What was counted there is in the next reading of the meter. No error if it is gone."""
        try:
            index = await self._nft.remove_interface(name)
            if index is not None:
                self.lane.leave(index)
                self.meter.interface_gone(index)
        finally:
            await self._changes.delete_device(name)

    async def add_address(self, interface: str, address: IPv4Address | IPv6Address) -> None:
        """Give `interface` (usually `lo`) the address, as /32 or /128.

        The first of each family is from then on the source address of what this node itself sends over mesh routes.
        """
        await self._changes.add_address(interface, address)
        self.routes.prefer_source(address)

    async def remove_address(self, interface: str, address: IPv4Address | IPv6Address) -> None:
        self.routes.forget_source(address)
        await self._changes.remove_address(interface, address)

    def counters(self) -> set[int]:
        """The numbers of all that there are (`FlowCount.counter`)."""
        return self.meter.generations() | self.lane.serials()

    async def keep_out_of_mesh(self, mark: int) -> None:
        """What carries this mark takes the operator's routes, and never ours. Raises NetlinkError."""
        await self.routes.keep_out(mark)

    async def _set_up(self) -> None:
        await self._nft.load()  # first: nothing is carried that is not counted and policed
        await self._changes.enable_forwarding()
        await self.routes.add_rules()
        if self.config.has_fast_lane:
            self.lane.open()
        else:
            self.lane.problem = "fast_lane is off"

    async def _remove_all(self) -> None:
        """Ours, whoever of our kind has made it. Every part is tried even if another fails."""
        await self._remove(self.routes.cleanup, self._close_lane, self._nft.unload, self._changes.restore)

    async def _close_lane(self) -> None:
        await self.lane.close()
        await self.lane.leftover(self.links)  # of one that was killed: it carries nothing more
        await self.lane.clear(self.links)

    @staticmethod
    async def _remove(*parts: Callable[[], Awaitable[None]]) -> None:
        errors: list[Exception] = []
        for part in parts:
            try:
                await part()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


@contextmanager
def _exclusive() -> Iterator[None]:
    """Names that begin with NUL belong to the network namespace, as our state does, and end with their process
    (unix(7), abstract addresses)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
        try:
            lock.bind(_LOCK)
        except OSError as error:
            raise KernelInUseError("another meshd is running in this network namespace") from error
        yield


@contextmanager
def _made(kind: type[AnyKernel], config: KernelConfig) -> Iterator[AnyKernel]:
    with (
        NetlinkSocket(NETLINK_ROUTE) as rtnetlink,
        NetlinkSocket(NETLINK_NETFILTER) as netfilter,
        NetlinkSocket(NETLINK_NETFILTER, foreign.EVENTS) as rules,
    ):
        yield kind(config, rtnetlink, netfilter, rules)


async def clean(config: KernelConfig) -> None:
    """Remove what a killed daemon left in this network namespace. Raises as `Kernel.open` does."""
    with _exclusive(), _made(Kernel, config) as kernel:
        await kernel._remove_all()
