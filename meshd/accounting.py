"""Reads the kernel's counters and turns them into what each peer owes us and we may owe it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

import trio

from meshd.billing import Billing, LinkKey
from meshd.enforcement import Enforcement
from meshd.kernel import Direction, FlowCount, Kernel, NetlinkError, NftError, Port
from meshd.logs import Logger
from meshd.recovery import Unbilled, flow_name, is_priced
from meshd.ticks import tick_after
from payments.counts import NO_TRAFFIC, Traffic
from payments.events import MeteredTraffic
from payments.records import Reading

log = Logger("meshd.accounting")
# Under load, the settlement at W/2 is noticed this late; it adds to the exposure (design section 8).
BUSY_INTERVAL = 0.1
IDLE_INTERVAL = 0.5  # between two looks whether a reading is worth while
QUIET_INTERVAL = 5.0  # between two readings, where it never is
UNPAID_INTERVAL = 5.0  # where the readings are only for show
FRESH = 0.02
MAX_LOAD = 0.25  # of the time, for readings that messages ask for: whoever sends many must not keep us busy with them
BUSY_BYTES = 2_000
FLOWS_AT_ONCE = 256
RESOLVE_INTERVAL = 1.0
# Whoever sends chooses its MAC address, and under security "none" may choose a new one for every packet.
MAX_TOTALS = 1024  # links whose totals are kept apart; neighbours can come under ever new addresses
MAX_STRANGERS = 4096  # MAC addresses without a payment session whose debts are kept
RECOVERY_TIMEOUT = 60.0  # after a crash, neighbours and their prices are usually known again within a second
MAX_UNPLACED = 1024  # flows to a MAC address of which it is not known yet whose it is


@dataclass(slots=True)
class LinkTotals:
    """Layer-3 bytes since the start: what we sent to this neighbour, what it sent to us, how much of that we carried
    on for it (free or not), how much of this was free, and how much we dropped because it had not paid."""

    sent: int = 0
    received: int = 0
    carried: int = 0
    free: int = 0
    refused: int = 0

    def add(self, other: LinkTotals) -> None:
        self.sent += other.sent
        self.received += other.received
        self.carried += other.carried
        self.free += other.free
        self.refused += other.refused


@dataclass(slots=True)
class _Debt:
    """`readings`: how far the counters had come that these sums are of, by `flow_name`, and the prices."""

    earned_units: int = 0
    owed_limit_units: int = 0
    traffic: Traffic = NO_TRAFFIC
    readings: dict[bytes, Reading] = field(default_factory=dict)

    def add(self, other: _Debt) -> None:
        self.earned_units += other.earned_units
        self.owed_limit_units += other.owed_limit_units
        self.traffic += other.traffic
        self.readings |= other.readings


def _traffic(flow: FlowCount) -> Traffic:
    if flow.direction is Direction.OUT:
        return Traffic(sent=flow.bytes)
    is_carried, is_refused = flow.direction is Direction.FORWARD_IN, flow.direction is Direction.REFUSED
    return Traffic(
        received=flow.bytes, carried=flow.bytes if is_carried else 0, refused=flow.bytes if is_refused else 0
    )


class Accounting:
    """`report` takes what was metered, for the payment engine, and the readings that it is of; None: there are no
    payments, all is carried for nothing. `recovered`: what was counted while no daemon ran, after a crash.
    `strangers_window_msat`: how much a neighbour without a payment session may have carried before it falls to the free
    tier: it cannot pay, and could otherwise travel for nothing.
    """

    def __init__(
        self,
        kernel: Kernel,
        billing: Billing,
        enforcement: Enforcement,
        *,
        report: Callable[[MeteredTraffic, Mapping[bytes, Reading]], Awaitable[None]] | None,
        recovered: Sequence[Unbilled] = (),
        strangers_window_msat: int,
    ) -> None:
        self.neighbours = enforcement.neighbours
        self.totals: dict[LinkKey, LinkTotals] = {}
        self.failures = 0  # readings that the kernel refused; they are tried again
        self._others = LinkTotals()
        self._kernel = kernel
        self._billing = billing
        self._enforcement = enforcement
        self._report = report
        self._strangers_window_units = strangers_window_msat * 10**9
        self._pending: dict[Port, _Debt] = {}
        self._unreported: dict[bytes, _Debt] = {}
        self._unplaced: deque[FlowCount] = deque(maxlen=MAX_UNPLACED)
        self._present: dict[LinkKey, trio.CancelScope] = {}
        self._connected: set[LinkKey] = set()
        self._nursery: trio.Nursery | None = None
        self._reading_lock = trio.Lock()
        self._unrest = trio.Event()
        self._read_at = -math.inf
        self._reading_took = 0.0
        self._recovered: dict[Port, list[Unbilled]] = {}
        for entry in recovered:
            self._recovered.setdefault((entry.flow.interface, entry.flow.mac), []).append(entry)
        self._recover_until = trio.current_time() + RECOVERY_TIMEOUT

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. `read` once more then, so that nothing metered is forgotten."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                self._unrest = trio.Event()
                busy = await self.read()
                await self._enforcement.apply()  # what the kernel refused before
                if busy:
                    await trio.sleep(BUSY_INTERVAL)
                elif self._report is None:
                    await trio.sleep(UNPAID_INTERVAL)
                else:
                    await self._rest()

    async def _rest(self) -> None:
        """While next to nothing is carried, and nobody turns up whom something was counted for."""
        until = trio.current_time() + QUIET_INTERVAL
        while trio.current_time() < until:
            with trio.move_on_at(tick_after(trio.current_time(), IDLE_INTERVAL)):
                await self._unrest.wait()
            if self._recovered or self._unrest.is_set() or await self._is_worth_reading():
                return
            await self._enforcement.apply()

    async def _is_worth_reading(self) -> bool:
        try:
            return await self._kernel.meter.is_worth_reading()
        except NetlinkError as error:
            log.error("not known whether the meter is to be read", reason=error)
            return True

    async def refresh(self) -> None:
        """Make sure that the last reading is not older than `FRESH`, or as fresh as is affordable."""
        if trio.current_time() - self._read_at > max(FRESH, self._reading_took / MAX_LOAD):
            await self.read()

    async def look(self) -> None:
        """For who wants to see figures: none is older than `IDLE_INTERVAL` when it returns, and the engine has them."""
        if trio.current_time() - self._read_at > IDLE_INTERVAL:
            await self.read()
            await trio.lowlevel.checkpoint()

    async def read(self) -> bool:
        """One reading. True when there was traffic worth looking at again soon.

        What the kernel refuses to tell now it tells the next time; what is cancelled here is reported the next time.
        """
        async with self._reading_lock:
            began = trio.current_time()
            try:
                flows = await self._kernel.meter.read()
            except (NetlinkError, NftError) as error:
                self.failures += 1
                log.error("meter not read", reason=error)
                flows = []
            now = trio.current_time()
            self._reading_took = now - began
            self._billing.forget_withdrawn(now=now)
            recovered = [(entry.flow, entry) for entry in self._take_recovered(now=now)]
            for number, (flow, entry) in enumerate([*recovered, *((flow, None) for flow in flows)]):
                self._count(flow, entry, now=now)
                if number % FLOWS_AT_ONCE == FLOWS_AT_ONCE - 1:
                    await trio.lowlevel.cancel_shielded_checkpoint()  # ten thousand would hold up everybody else
            await self._settle_pending()
            self._read_at = now  # only now does the engine know
        return sum(flow.bytes for flow in flows) >= BUSY_BYTES

    def _take_recovered(self, *, now: float) -> list[Unbilled]:
        """What can be billed by now: it is known whose it is, and at which price. In the end, all."""
        is_over = now >= self._recover_until
        taken: list[Unbilled] = []
        for port in list(self._recovered):
            link = self.neighbours.link_of(port)
            if link not in self.neighbours.peer_by_link:
                link = None
            if link is None and not is_over:
                continue  # all of a neighbour that stays away at once: it may be very many
            left: list[Unbilled] = []
            for entry in self._recovered.pop(port):
                is_ready = is_over or (link is not None and is_priced(entry, link, self._billing, now=now))
                (taken if is_ready else left).append(entry)
            if left:
                self._recovered[port] = left
        if taken:
            size = sum(entry.flow.bytes for entry in taken)
            log.info("metered while no daemon ran", flows=len(taken), bytes=size)
        return taken

    def _count(self, flow: FlowCount, recovered: Unbilled | None = None, *, now: float) -> None:
        link = self.neighbours.link_of((flow.interface, flow.mac))
        totals = self._totals_of(link)
        if flow.direction is Direction.OUT:
            totals.sent += flow.bytes
        else:
            totals.received += flow.bytes
            if flow.direction in (Direction.FORWARD_IN, Direction.FREE):
                totals.carried += flow.bytes
            if flow.direction is Direction.FREE:
                totals.free += flow.bytes
            elif flow.direction is Direction.REFUSED:
                totals.refused += flow.bytes
        if self._report is not None:
            if recovered is None:  # what an earlier run counted is billed, and in no signed count of this one
                self._debt_of((flow.interface, flow.mac)).traffic += _traffic(flow)
            self._bill(flow, link, recovered, now=now)

    def _bill(self, flow: FlowCount, link: LinkKey | None, recovered: Unbilled | None = None, *, now: float) -> None:
        if flow.direction is Direction.OUT and link is None:
            self._unplaced.append(flow)  # which prices applied is known when it is known whose address that is
            return
        if flow.direction is Direction.FORWARD_IN:
            price = self._billing.price_asked(flow.destination, source=flow.source, now=now)
        elif flow.direction is Direction.OUT and link is not None:
            price = self._billing.highest_price_heard(link, flow.destination, source=flow.source, now=now)
        else:
            return
        if recovered is not None:
            price = recovered.price(price)
        if price or recovered is not None:  # what is recovered for nothing is done with as well
            debt = _Debt(readings={flow_name(flow): Reading(flow.total_bytes, price, flow.counter)})
            if flow.direction is Direction.OUT:
                debt.owed_limit_units = flow.bytes * price
            else:
                debt.earned_units = flow.bytes * price
            self._debt_of((flow.interface, flow.mac)).add(debt)

    def _debt_of(self, port: Port) -> _Debt:
        if port not in self._pending and len(self._pending) >= MAX_STRANGERS:
            oldest = next((old for old in self._pending if self.neighbours.peer_of(old) is None), None)
            if oldest is not None:
                del self._pending[oldest]
        return self._pending.setdefault(port, _Debt())

    def _totals_of(self, link: LinkKey | None) -> LinkTotals:
        if link is None:
            return self._others
        if link not in self.totals and len(self.totals) >= MAX_TOTALS:
            gone = next((old for old in self.totals if old not in self.neighbours.port_by_link), None)
            if gone is None:
                return self._others
            self._others.add(self.totals.pop(gone))
        return self.totals.setdefault(link, LinkTotals())

    async def _settle_pending(self) -> None:
        for port, debt in list(self._pending.items()):
            peer = self.neighbours.peer_of(port)
            if peer is not None:
                del self._pending[port]
                self._unreported.setdefault(peer, _Debt()).add(debt)
            elif debt.earned_units > self._strangers_window_units:
                for gone in await self._enforcement.hold_stranger(port):
                    self._pending.pop(gone, None)
        for peer, debt in list(self._unreported.items()):
            if self._report is not None:
                traffic = MeteredTraffic(peer, debt.earned_units, debt.owed_limit_units, debt.traffic)
                await self._report(traffic, debt.readings)
            del self._unreported[peer]  # not before: cancelled there, it is reported by the next reading

    def neighbour_up(self, interface: str, address: IPv6Address) -> None:
        """Find out the neighbour's MAC address; its packets have been counted all the while."""
        link = (interface, address)
        if link in self._present:
            return
        if self._nursery is None:
            raise RuntimeError("the accounting is not running")
        self._present[link] = trio.CancelScope()
        self._nursery.start_soon(self._resolve, link, self._present[link])

    def neighbour_down(self, interface: str, address: IPv6Address) -> None:
        """Counts what it sent up to now, then forgets it and its prices, unless it has come back meanwhile.

        A gate that was shut stays shut.
        """
        link = (interface, address)
        scope = self._present.pop(link, None)
        if scope is None:
            return
        scope.cancel()
        if self._nursery is not None:
            self._nursery.start_soon(self._forget, link)

    async def _resolve(self, link: LinkKey, scope: trio.CancelScope) -> None:
        """Until it is known: a neighbour without MAC address could neither pay nor be paid."""
        with scope:
            while not await self._learn_port(link):
                await trio.sleep(RESOLVE_INTERVAL)

    async def _learn_port(self, link: LinkKey) -> bool:
        try:
            mac = await self._kernel.links.resolve_mac(*link)
        except NetlinkError as error:  # the interface has gone, and the neighbour will be said to have gone too
            log.debug("MAC address not asked for", interface=link[0], address=link[1], reason=error)
            return False
        if mac is None:
            log.debug("no MAC address for neighbour", interface=link[0], address=link[1])
            return False
        if link in self._present:
            self.neighbours.learn_port(link, mac)
            self._unrest.set()
            await self._expect(link[0], mac)
            self._place()
            await self._enforcement.apply()
        return True

    async def _expect(self, interface: str, mac: bytes) -> None:
        try:
            await self._kernel.meter.expect(interface, mac)
        except NftError as error:  # it is counted all the same, but for what comes faster than the kernel finds memory
            self.failures += 1
            log.error("no place for a neighbour in the meter", interface=interface, mac=mac, reason=error)

    def _place(self) -> None:
        """Bill what was sent to neighbours before it was known whose address that is."""
        flows, now = list(self._unplaced), trio.current_time()
        self._unplaced.clear()
        for flow in flows:
            self._bill(flow, self.neighbours.link_of((flow.interface, flow.mac)), now=now)

    async def _forget(self, link: LinkKey) -> None:
        await self.read()
        if link not in self._present and link not in self._connected:
            self._billing.neighbour_gone(link)
            port = self.neighbours.port_by_link.get(link)
            self.neighbours.forget(link)
            if port is not None and port not in self.neighbours.links_by_port:
                self._kernel.meter.unexpect(*port)

    async def peer_connected(self, peer: bytes, link: LinkKey) -> None:
        """A session says who is at the other end of the link."""
        self.neighbours.peer_by_link[link] = peer
        self._connected.add(link)
        self._unrest.set()
        if link in self.neighbours.port_by_link:
            await self._learn_port(link)  # it may have come back with another network card
        await self._enforcement.apply()

    def peer_disconnected(self, link: LinkKey) -> None:
        """What a neighbour still sends is its own; but a link that routing does not know ends with its session."""
        self._connected.discard(link)
        if link not in self._present and self._nursery is not None:
            self._nursery.start_soon(self._forget, link)

    def sum(self) -> LinkTotals:
        """Over all links, those that are gone included."""
        total = LinkTotals()
        for totals in (self._others, *self.totals.values()):
            total.add(totals)
        return total
