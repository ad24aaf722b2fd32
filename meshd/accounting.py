"""Reads the kernel's counters and turns them into what each peer owes us and we may owe it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

import trio

from meshd.billing import Billing, LinkKey
from meshd.kernel import Direction, FlowCount, Kernel, NetlinkError, NftError
from meshd.logs import Logger
from meshd.recovery import Unbilled, flow_name, is_priced
from payments.events import MeteredTraffic
from payments.records import Reading

log = Logger("meshd.accounting")
# Under load, the settlement at W/2 is noticed this late; it adds to the exposure (design section 8).
BUSY_INTERVAL = 0.1
IDLE_INTERVAL = 0.5
UNPAID_INTERVAL = 5.0  # where the readings are only for show
FRESH = 0.02
MAX_LOAD = 0.25  # of the time, for readings that messages ask for: whoever sends many must not keep us busy with them
BUSY_BYTES = 2_000
RESOLVE_INTERVAL = 1.0
# Whoever sends chooses its MAC address, and under security "none" may choose a new one for every packet.
MAX_TOTALS = 1024  # links whose totals are kept apart; neighbours can come under ever new addresses
MAX_STRANGERS = 4096  # MAC addresses without a payment session whose debts are kept
MAX_STRANGER_GATES = 1024
RECOVERY_TIMEOUT = 60.0  # after a crash, neighbours and their prices are usually known again within a second
MAX_UNPLACED = 1024  # flows to a MAC address of which it is not known yet whose it is

Port = tuple[str, bytes]  # (interface, the neighbour's MAC address): what the kernel counts by


@dataclass(slots=True)
class LinkTotals:
    """Layer-3 bytes since the start: what we sent to this neighbour, what it sent to us, how much of that we carried
    on for it, and how much we dropped because it was suspended."""

    sent: int = 0
    received: int = 0
    carried: int = 0
    refused: int = 0

    def add(self, other: LinkTotals) -> None:
        self.sent += other.sent
        self.received += other.received
        self.carried += other.carried
        self.refused += other.refused


@dataclass(slots=True)
class _Debt:
    """`readings`: how far the counters had come that these sums are of, by `flow_name`, and the prices."""

    earned_units: int = 0
    owed_limit_units: int = 0
    readings: dict[bytes, Reading] = field(default_factory=dict)

    def add(self, other: _Debt) -> None:
        self.earned_units += other.earned_units
        self.owed_limit_units += other.owed_limit_units
        self.readings |= other.readings


@dataclass(slots=True)
class Neighbours:
    """Who is behind which MAC address: a link-local address by the kernel, a public key by the session on the link.

    One MAC address may have several link-local addresses, as when a neighbour came back under a new one and its old
    one has not timed out; then the newest with a session counts.
    """

    port_by_link: dict[LinkKey, Port] = field(default_factory=dict)
    links_by_port: dict[Port, list[LinkKey]] = field(default_factory=dict)  # the oldest first
    peer_by_link: dict[LinkKey, bytes] = field(default_factory=dict)

    def learn_port(self, link: LinkKey, mac: bytes) -> None:
        port = (link[0], mac)
        if self.port_by_link.get(link) != port:
            self._forget_port(link)
            self.port_by_link[link] = port
            self.links_by_port.setdefault(port, []).append(link)

    def forget(self, link: LinkKey) -> None:
        self._forget_port(link)
        self.peer_by_link.pop(link, None)

    def _forget_port(self, link: LinkKey) -> None:
        port = self.port_by_link.pop(link, None)
        if port is not None:
            self.links_by_port[port].remove(link)
            if not self.links_by_port[port]:
                del self.links_by_port[port]

    def ports_of(self, peer: bytes) -> list[Port]:
        """Of all links on which it is the one that counts."""
        ports = (self.port_by_link.get(link) for link, known in self.peer_by_link.items() if known == peer)
        return [port for port in ports if port is not None and self.peer_of(port) == peer]

    def link_of(self, port: Port) -> LinkKey | None:
        links = self.links_by_port.get(port, ())
        newest = links[-1] if links else None
        return next((link for link in reversed(links) if link in self.peer_by_link), newest)

    def peer_of(self, port: Port) -> bytes | None:
        link = self.link_of(port)
        return None if link is None else self.peer_by_link.get(link)


class Accounting:
    """`report` takes what was metered, for the payment engine, and the readings that it is of; None: there are no
    payments, all is carried for nothing. `recovered`: what was counted while no daemon ran, after a crash.
    `strangers_window_msat`: how much a neighbour without a payment session may have carried before its gate is shut: it
    cannot pay, and could otherwise travel for nothing.
    """

    def __init__(
        self,
        kernel: Kernel,
        billing: Billing,
        *,
        report: Callable[[MeteredTraffic, Mapping[bytes, Reading]], Awaitable[None]] | None,
        recovered: Sequence[Unbilled] = (),
        strangers_window_msat: int,
    ) -> None:
        self.neighbours = Neighbours()
        self.totals: dict[LinkKey, LinkTotals] = {}
        self.failures = 0  # readings and gates that the kernel refused; they are tried again
        self._others = LinkTotals()
        self._kernel = kernel
        self._billing = billing
        self._report = report
        self._strangers_window_units = strangers_window_msat * 10**9
        self._pending: dict[Port, _Debt] = {}
        self._unreported: dict[bytes, _Debt] = {}
        self._unplaced: deque[FlowCount] = deque(maxlen=MAX_UNPLACED)
        self._present: dict[LinkKey, trio.CancelScope] = {}
        self._connected: set[LinkKey] = set()
        self._nursery: trio.Nursery | None = None
        self._closed: dict[Port, None] = {}  # the oldest first
        self._suspended_peers: set[bytes] = set()
        self._reading_lock = trio.Lock()
        self._gate_lock = trio.Lock()
        self._read_at = -math.inf
        self._reading_took = 0.0
        self._recovered = list(recovered)
        self._recover_until = trio.current_time() + RECOVERY_TIMEOUT

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. `read` once more then, so that nothing metered is forgotten."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                busy = await self.read()
                await self._apply_gates()  # what the kernel refused before
                idle_interval = IDLE_INTERVAL if self._report is not None else UNPAID_INTERVAL
                await trio.sleep(BUSY_INTERVAL if busy else idle_interval)

    async def refresh(self) -> None:
        """Make sure that the last reading is not older than `FRESH`, or as fresh as is affordable."""
        if trio.current_time() - self._read_at > max(FRESH, self._reading_took / MAX_LOAD):
            await self.read()

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
            for entry in self._take_recovered(now=now):
                self._count(entry.flow, entry, now=now)
            for flow in flows:
                self._count(flow, now=now)
            await self._settle_pending()
            self._read_at = now  # only now does the engine know
        return sum(flow.bytes for flow in flows) >= BUSY_BYTES

    def _take_recovered(self, *, now: float) -> list[Unbilled]:
        """What can be billed by now: it is known whose it is, and at which price. In the end, all."""

        def is_ready(entry: Unbilled) -> bool:
            link = self.neighbours.link_of((entry.flow.interface, entry.flow.mac))
            if link is None or link not in self.neighbours.peer_by_link:
                return False
            return is_priced(entry, link, self._billing, now=now)

        is_over = now >= self._recover_until
        taken: list[Unbilled] = []
        left: list[Unbilled] = []
        for entry in self._recovered:
            (taken if is_over or is_ready(entry) else left).append(entry)
        self._recovered = left
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
            if flow.direction is Direction.FORWARD_IN:
                totals.carried += flow.bytes
            elif flow.direction is Direction.REFUSED:
                totals.refused += flow.bytes
        if self._report is not None:
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
        if price:
            debt = _Debt(readings={flow_name(flow): Reading(flow.total_bytes, price)})
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
            elif debt.earned_units > self._strangers_window_units and port not in self._closed:
                await self._shut_stranger(port)
        for peer, debt in list(self._unreported.items()):
            if self._report is not None:
                traffic = MeteredTraffic(peer, debt.earned_units, debt.owed_limit_units)
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
            self._place()
            await self._apply_gates()
        return True

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
            self.neighbours.forget(link)

    async def peer_connected(self, peer: bytes, link: LinkKey) -> None:
        """A session says who is at the other end of the link."""
        self.neighbours.peer_by_link[link] = peer
        self._connected.add(link)
        if link in self.neighbours.port_by_link:
            await self._learn_port(link)  # it may have come back with another network card
        await self._apply_gates()

    def peer_disconnected(self, link: LinkKey) -> None:
        """What a neighbour still sends is its own; but a link that routing does not know ends with its session."""
        self._connected.discard(link)
        if link not in self._present and self._nursery is not None:
            self._nursery.start_soon(self._forget, link)

    async def set_carrying(self, peer: bytes, carrying: bool) -> None:
        """Open or shut the gate for what this peer hands us to carry on, on all its links, now and later."""
        (self._suspended_peers.discard if carrying else self._suspended_peers.add)(peer)
        await self._apply_gates()

    def is_suspended(self, link: LinkKey) -> bool:
        return self.neighbours.port_by_link.get(link) in self._closed

    async def _apply_gates(self) -> None:
        """Brings the gates of all whom we know in line with what the engine said of them."""
        async with self._gate_lock:  # one after the other: each computes what is wanted when it is its turn
            shut = {port for peer in self._suspended_peers for port in self.neighbours.ports_of(peer)}
            strangers = {port for port in self._closed if self.neighbours.peer_of(port) is None}
            for port in self._closed.keys() - shut - strangers:
                await self._set_gate(port, open_=True)
            for port in shut - self._closed.keys():
                await self._set_gate(port, open_=False)

    async def _shut_stranger(self, port: Port) -> None:
        async with self._gate_lock:
            if self.neighbours.peer_of(port) is not None:
                return
            log.warning("a neighbour without a payment session is not carried", interface=port[0], mac=port[1])
            await self._set_gate(port, open_=False)
            strangers = [old for old in self._closed if self.neighbours.peer_of(old) is None]
            for old in strangers[: max(0, len(strangers) - MAX_STRANGER_GATES)]:
                self._pending.pop(old, None)
                await self._set_gate(old, open_=True)

    async def _set_gate(self, port: Port, *, open_: bool) -> None:
        try:
            if open_:
                await self._kernel.gate.resume(*port)
                self._closed.pop(port, None)
            else:
                await self._kernel.gate.suspend(*port)
                self._closed[port] = None
        except (NetlinkError, NftError) as error:
            self.failures += 1
            log.error("gate not set", interface=port[0], mac=port[1], reason=error)

    def sum(self) -> LinkTotals:
        """Over all links, those that are gone included."""
        total = LinkTotals()
        for totals in (self._others, *self.totals.values()):
            total.add(totals)
        return total
