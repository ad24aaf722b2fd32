"""Drives the Babel speaker: one loop that receives, feeds the engine, and carries out what it says, in order.

A route is in the kernel before the update that announces it leaves; packets that follow our announcement find it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import assert_never

import trio

from meshd.babel_socket import BABEL_GROUP, BabelSocket, Datagram
from meshd.billing import Billing
from meshd.config import InterfaceConfig
from meshd.following import follow, follow_links
from meshd.kernel import Blocked, Kernel, Link, NetlinkError, NftError, Route
from meshd.logs import Logger
from routing import codec, events
from routing.authentication import Authenticator, MacKey
from routing.speaker import Speaker
from routing.tlv import Ack, AckRequest, Hello, Ihu, RouteKey, route_key

log = Logger("meshd.routing")
QUEUE = 4096
MAX_ROUND = 256
FAREWELL_TIMEOUT = 1.0
REPORT_INTERVAL = 60.0
SAFE_KEY_LENGTH = 16  # octets
SEND_TIMEOUT = 0.1  # one congested interface must not hold up what the others have to hear
_BRIEF = (Hello, Ihu, AckRequest, Ack)  # of which little follows, as a rule


@dataclass(frozen=True, slots=True)
class Attached:
    """An interface that the speaker uses."""

    index: int
    address: IPv6Address
    mtu: int
    address4: IPv4Address | None
    far_end: IPv6Address | None = None  # the only neighbour that there can be (a tunnel)
    authenticator: Authenticator | None = None


class Router:
    """`on_neighbour(interface, link_local, is_up)` and `on_interface(name, index, address or None)` tell the others."""

    def __init__(
        self,
        speaker: Speaker,
        kernel: Kernel,
        billing: Billing,
        interfaces: Iterable[InterfaceConfig],
        *,
        port: int,
        on_neighbour: Callable[[str, IPv6Address, bool], None],
        on_interface: Callable[[str, int, IPv6Address | None], None],
    ) -> None:
        self.speaker = speaker
        self.counters: Counter[str] = Counter()
        self.attached: dict[str, Attached] = {}
        self._kernel = kernel
        self._billing = billing
        self._configured = {interface.name: interface for interface in interfaces}
        self._socket = BabelSocket(port)
        self._on_neighbour = on_neighbour
        self._on_interface = on_interface
        self._send, self._receive = trio.open_memory_channel[events.Input](QUEUE)
        self._turn = trio.Lock()  # of who has the speaker do something, until all of it is done
        self._rest = trio.CancelScope()  # until the speaker's next deadline
        self._links_lock = trio.Lock()
        self._far_ends: dict[str, IPv6Address] = {}
        self._refused: dict[str, str] = {}  # interface name -> why the kernel does not meter it
        self._managed: dict[str, int] = {}  # interface name -> index under which the kernel meters it

    async def put(self, event: events.Input) -> None:
        try:
            self._send.send_nowait(event)  # mostly there is room
        except trio.WouldBlock:
            await self._send.send(event)

    async def add_interface(self, interface: InterfaceConfig, far_end: IPv6Address) -> None:
        """A tunnel, whose neighbour can have no other address than `far_end`."""
        async with self._links_lock:
            self._configured[interface.name] = interface
            self._far_ends[interface.name] = far_end
            link = (await self._kernel.links.all()).get(interface.name)
            if link is not None:
                await self._link_changed(link)

    async def remove_interface(self, name: str) -> None:
        """No error if it is not there."""
        async with self._links_lock:
            self._configured.pop(name, None)
            self._far_ends.pop(name, None)
            self._managed.pop(name, None)
            attached = self.attached.get(name)
            if attached is not None:
                await self._detach(name, attached)

    async def originate(self, prefix: events.Prefix, source_prefix: events.Prefix | None = None) -> None:
        await self.put(events.OriginateRoute(prefix, source_prefix=source_prefix))

    async def set_cost(self, name: str, cost: int) -> None:
        """Neighbours hear of it at once; none is lost by it. Raises KeyError for an interface not configured."""
        if self._configured[name].cost == cost:
            return
        async with self._links_lock:
            self._configured[name] = replace(self._configured[name], cost=cost)
            attached = self.attached.get(name)
            if attached is not None:
                await self._tell_speaker(name, attached)

    async def set_keys(self, name: str, keys: tuple[MacKey, ...], *, verify: bool) -> None:
        """Raises KeyError for an interface not configured."""
        async with self._links_lock:
            self._configured[name] = replace(self._configured[name], mac_keys=keys, mac_verify=verify)
            attached = self.attached.get(name)
            if attached is None:
                return
            if attached.authenticator is not None and keys:
                attached.authenticator.set_keys(keys)
            else:
                self.attached[name] = replace(attached, authenticator=self._authenticator(name, attached.address))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then says good-bye: retractions reach the neighbours before the kernel is cleaned."""
        try:
            await self._socket.bind()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive_packets)
                nursery.start_soon(self._follow_links)
                nursery.start_soon(follow, "neighbours", self._kernel.links.watch_unreachable, self._take_unreachable)
                nursery.start_soon(self._watch_budgets)
                task_status.started()
                try:
                    while True:
                        await self._round()
                except trio.Cancelled:
                    with trio.move_on_after(FAREWELL_TIMEOUT) as farewell:
                        farewell.shield = True
                        await self._say_goodbye()
                    raise
        finally:
            self._socket.close()

    async def _round(self) -> None:
        inputs: list[events.Input] = []
        with trio.CancelScope(deadline=self._next_deadline()) as self._rest:
            inputs.append(await self._receive.receive())
        while len(inputs) < MAX_ROUND:
            try:
                inputs.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                break
        await self._handle(inputs)

    def _next_deadline(self) -> float:
        deadline = self.speaker.next_deadline()
        return float("inf") if deadline is None else deadline

    async def _handle(self, inputs: Sequence[events.Input]) -> None:
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            now = trio.current_time()
            outputs: list[events.Output] = []
            for event in inputs:
                if isinstance(event, events.OriginateRoute | events.WithdrawRoute):
                    await self._keep_default(event)
                outputs += self.speaker.handle(event, now=now)
            if now >= self._next_deadline():
                outputs += self.speaker.handle(events.TimerExpired(), now=now)
            await self._execute(outputs)
        finally:
            self._turn.release()

    async def _handle_received(self, packet: events.ReceivedPacket) -> None:
        """At once where nothing else is to be done: to wake up another task for a Hello costs as much as to handle it.
        All else in its turn: what follows from many goes into the kernel together, and packets are read meanwhile."""
        is_idle = self._receive.statistics().tasks_waiting_receive > 0 and trio.current_time() < self._next_deadline()
        if not is_idle or not all(isinstance(tlv, _BRIEF) for tlv in packet.tlvs):
            await self.put(packet)
            return
        await self._handle([packet])
        self._rest.deadline = self._next_deadline()

    async def _execute(self, outputs: Sequence[events.Output]) -> None:
        routes: dict[RouteKey, events.RouteChange] = {}
        for output in outputs:
            match output:
                case events.InstallRoute() | events.BlockRoute() | events.RemoveRoute():
                    # Many at a time, the last word on each pair only; but always before what follows them leaves.
                    routes[route_key(output.prefix, output.source_prefix)] = output
                case events.SendPacket():
                    await self._apply(routes)
                    await self._transmit(output)
                case events.NeighbourUp():
                    log.info("neighbour up", interface=output.interface, address=output.address)
                    self._on_neighbour(output.interface, output.address, True)
                case events.NeighbourDown():
                    log.info("neighbour down", interface=output.interface, address=output.address)
                    self._on_neighbour(output.interface, output.address, False)
                case events.LearnedPrice():
                    link = (output.interface, output.address)
                    price, source = output.price_msat_per_gb, output.source_prefix
                    self._billing.learned(link, output.prefix, price, source_prefix=source, now=trio.current_time())
                case events.AnnouncedPrice():
                    price, source = output.price_msat_per_gb, output.source_prefix
                    self._billing.announced(output.prefix, price, source_prefix=source, now=trio.current_time())
                case _:
                    assert_never(output)
        await self._apply(routes)

    async def _keep_default(self, event: events.OriginateRoute | events.WithdrawRoute) -> None:
        source_prefix = event.source_prefix
        if source_prefix is None or event.prefix.prefixlen > 0:
            return
        try:
            is_ours = isinstance(event, events.OriginateRoute)
            await self._kernel.routes.keep_default(source_prefix, is_ours=is_ours)
        except NetlinkError as error:
            log.warning("own default route not kept apart", source_prefix=source_prefix, reason=error)

    async def _apply(self, routes: dict[RouteKey, events.RouteChange]) -> None:
        install, block = [], []
        for route in routes.values():
            match route:
                case events.InstallRoute(prefix, interface, next_hop, metric, _, source):
                    install.append(Route(prefix, interface, next_hop, source))
                    log.debug("route", prefix=prefix, source=source, via=next_hop, dev=interface, metric=metric)
                case events.BlockRoute(prefix, source):
                    block.append(Blocked(prefix, source))
                    log.debug("route lost", prefix=prefix, source=source)
                case events.RemoveRoute(prefix, source):
                    log.debug("route removed", prefix=prefix, source=source)
                    await self._remove(prefix, source)
        routes.clear()
        if block:
            await self._block(block)
        if install:
            await self._install(install)

    async def _install(self, routes: Sequence[Route]) -> None:
        try:
            failed = await self._kernel.routes.install_many(routes)
        except NetlinkError as error:
            failed = dict.fromkeys((route.prefix for route in routes), error)
        for prefix, reason in failed.items():
            # The interface may go down between the decision and the kernel; its event follows and repairs it.
            log.warning("route not installed", prefix=prefix, reason=reason)

    async def _block(self, blocked: Sequence[Blocked]) -> None:
        try:
            failed = await self._kernel.routes.block_many(blocked)
        except NetlinkError as error:
            failed = dict.fromkeys((entry.prefix for entry in blocked), error)
        for prefix, reason in failed.items():
            log.warning("route not blocked", prefix=prefix, reason=reason)

    async def _remove(self, prefix: events.Prefix, source_prefix: events.Prefix | None) -> None:
        try:
            await self._kernel.routes.remove(prefix, source_prefix)
        except NetlinkError as error:
            log.warning("route not removed", prefix=prefix, reason=error)

    async def _transmit(self, packet: events.SendPacket) -> None:
        attached = self.attached.get(packet.interface)
        if attached is None:
            return
        authenticator = attached.authenticator
        reserve = 0 if authenticator is None else authenticator.overhead
        for number, data in enumerate(codec.pack(packet.tlvs, mtu=attached.mtu, reserve=reserve)):
            if number:
                await trio.lowlevel.checkpoint()  # a long one: others have their turn
            if authenticator is not None:
                protected = authenticator.protect(data, destination=packet.destination or BABEL_GROUP)
            else:
                protected = data
            await self._send_datagram(packet.interface, attached, packet.destination, protected)

    async def _send_datagram(self, interface: str, attached: Attached, to: IPv6Address | None, data: bytes) -> None:
        try:
            with trio.fail_after(SEND_TIMEOUT):
                await self._socket.send(attached.index, data, source=attached.address, destination=to)
            self.counters["packets sent"] += 1
            self.counters["bytes sent"] += len(data)
        except (OSError, trio.TooSlowError) as error:
            self.counters["packets not sent"] += 1
            log.debug("packet not sent", interface=interface, reason=error)

    async def _receive_packets(self) -> None:
        while True:
            datagram = await self._socket.receive()
            interface = self._interface(datagram.interface_index)
            if interface is None:
                continue
            self.counters["packets received"] += 1
            far_end = self.attached[interface].far_end
            if far_end is not None and datagram.source != far_end:
                self.counters["packets of a wrong neighbour"] += 1
                continue
            if not await self._is_welcome(datagram, interface):
                continue
            try:
                tlvs = codec.decode(datagram.data, source=datagram.source)
            except codec.DecodeError as error:
                self.counters["packets malformed"] += 1
                log.debug("malformed packet dropped", interface=interface, source=datagram.source, reason=error)
                continue
            is_multicast = datagram.destination.is_multicast
            await self._handle_received(events.ReceivedPacket(interface, datagram.source, tlvs, is_multicast))

    async def _is_welcome(self, datagram: Datagram, interface: str) -> bool:
        """Where there are keys: authenticated, or taken all the same by the operator's wish."""
        attached = self.attached[interface]
        if attached.authenticator is None:
            return True
        source, destination = datagram.source, datagram.destination
        verdict = attached.authenticator.check(
            datagram.data, source=source, destination=destination, now=trio.current_time()
        )
        for reply in verdict.replies:
            self.counters["challenges and replies sent"] += 1
            await self._send_datagram(interface, attached, source, reply)
        if verdict.drop is None:
            return True
        if not self._configured[interface].mac_verify:
            self.counters["packets taken unauthenticated"] += 1
            return True
        self.counters[verdict.drop.value] += 1
        log.debug("packet dropped", interface=interface, source=source, reason=verdict.drop.value)
        return False

    async def _follow_links(self) -> None:
        await follow_links(
            self._kernel.links, self._take_link, missing=lambda: self._configured.keys() - self.attached.keys()
        )

    async def _take_link(self, link: Link) -> None:
        if link.name in self._configured:
            async with self._links_lock:
                if link.name in self._configured:  # a tunnel may have been taken away meanwhile
                    await self._link_changed(link)

    async def _take_unreachable(self, neighbour: tuple[int, IPv6Address]) -> None:
        index, address = neighbour
        interface = self._interface(index)
        if interface is not None:
            await self.put(events.NeighbourUnreachable(interface, address))

    def _interface(self, index: int) -> str | None:
        return next((name for name, attached in self.attached.items() if attached.index == index), None)

    async def _watch_budgets(self) -> None:
        """Once in a while, not for each packet: who says more than we listen to."""
        told: dict[tuple[str, IPv6Address], int] = {}
        while True:
            await trio.sleep(REPORT_INTERVAL)
            refused = {(n.interface, n.address): n.refused_count for n in self.speaker.neighbours()}
            for (interface, address), count in refused.items():
                more = count - told.get((interface, address), 0)
                if more > 0:
                    self.counters["floods reported"] += 1
                    log.warning("neighbour floods us", interface=interface, address=address, ignored_tlvs=more)
            told = refused

    async def _link_changed(self, link: Link) -> None:
        address = link.link_local if link.is_up else None
        before = self.attached.get(link.name)
        if before is not None and address == before.address and link.index == before.index:
            after = replace(before, mtu=link.mtu, address4=link.ipv4)
            if after != before:
                self.attached[link.name] = after
                await self._tell_speaker(link.name, after)
            return
        if before is not None:
            await self._detach(link.name, before)
        # Long before it has a carrier, if possible: preparing takes longer than meeting a neighbour.
        if await self._prepare(link) and address is not None:
            await self._attach(link, address)

    async def _prepare(self, link: Link) -> bool:
        """Let the kernel meter it; once for each time that it is made."""
        if self._managed.get(link.name) == link.index:
            return True
        try:
            await self._kernel.manage(link.name)
        except (OSError, NetlinkError, NftError) as error:
            if self._refused.get(link.name) != str(error):  # it is tried again and again
                log.warning("interface not usable", interface=link.name, reason=error)
            self._refused[link.name] = str(error)
            return False
        self._refused.pop(link.name, None)
        self._managed[link.name] = link.index
        return True

    async def _attach(self, link: Link, address: IPv6Address) -> None:
        try:
            self._socket.join(link.index)
        except OSError as error:
            log.warning("interface not usable", interface=link.name, reason=error)
            return
        self.attached[link.name] = attached = Attached(
            link.index,
            address,
            link.mtu,
            link.ipv4,
            far_end=self._far_ends.get(link.name),
            authenticator=self._authenticator(link.name, address),
        )
        log.info("interface up", interface=link.name, address=address)
        self._on_interface(link.name, link.index, address)
        await self._tell_speaker(link.name, attached)

    def _authenticator(self, name: str, address: IPv6Address) -> Authenticator | None:
        keys = self._configured[name].mac_keys
        if not keys:
            return None
        if any(len(key.secret) < SAFE_KEY_LENGTH for key in keys):
            log.warning("short MAC key: it can be found by trying", interface=name)
        return Authenticator(keys, address=address, port=self._socket.port, octets=secrets.token_bytes)

    async def _tell_speaker(self, name: str, attached: Attached) -> None:
        config = self._configured[name]
        address4 = attached.address4 if config.ipv4_next_hop else None
        is_timed = config.rtt == "on" or (config.rtt == "auto" and config.kind is events.LinkKind.TUNNEL)
        rtt = events.RttCost(config.rtt_min, config.rtt_max, config.rtt_penalty) if is_timed else None
        up = events.InterfaceUp(name, attached.address, config.kind, attached.mtu, config.cost, address4, rtt)
        await self.put(up)

    async def _detach(self, name: str, attached: Attached) -> None:
        log.info("interface down", interface=name)
        self._socket.leave(attached.index)
        del self.attached[name]
        self._on_interface(name, attached.index, None)
        await self.put(events.InterfaceDown(name))

    async def _say_goodbye(self) -> None:
        """Neighbours turn away at once and need no Hello to be missed. The kernel keeps its routes until they have."""
        outputs = self.speaker.handle(events.Shutdown(), now=trio.current_time())
        await self._execute([output for output in outputs if isinstance(output, events.SendPacket)])
