"""One WireGuard tunnel for each neighbour that beacons find or that the operator names (design section 5).

A tunnel's name, its address and its keys follow from the two identities and the interface under it, so both ends, the
ledger and the next start of the daemon know it by the same key. `discovery` says who is there, `tunnel` keeps each.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import trio

from meshd import beacon
from meshd.babel_socket import IPV6_MULTICAST_ALL
from meshd.config import DiscoveryConfig, InterfaceConfig, PeerConfig
from meshd.discovery import NEVER, Discovery, Output, PeerFound, PeerLost, SendBeacon
from meshd.following import follow_links
from meshd.identity import Identity, tunnel_address, x25519_public_key
from meshd.kernel import Kernel, Link, NftError
from meshd.kernel.wireguard import Endpoint, WireGuardError, require
from meshd.logs import Logger
from meshd.tunnel import Keeper, Tunnel, interface_name
from routing.events import LinkKind

log = Logger("meshd.tunnels")
BUFFER = 2048
_GROUP = str(beacon.GROUP)
SILENCE = 5.0  # at least; else it follows from the interval of Hellos
# Of the packets of tunnels to peers across the Internet: the mesh never carries them, or a tunnel could be sent into
# itself. Any that nobody else uses here: "mesh".
MARK = 0x6D657368
MAX_INCARNATION = 2**63  # milliseconds since 1970, and it has to fit a beacon


class Tunnels:
    """`peers`: those that beacons do not find. `silence`, `on_up` and `on_down`: see `tunnel.Keeper`."""

    def __init__(
        self,
        identity: Identity,
        kernel: Kernel,
        interfaces: Iterable[InterfaceConfig],
        config: DiscoveryConfig,
        *,
        peers: Iterable[PeerConfig] = (),
        chain: str,
        incarnation: int,
        silence: float = SILENCE,
        on_up: Callable[[Tunnel], Awaitable[None]],
        on_down: Callable[[Tunnel], Awaitable[None]],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.discovery = Discovery(
            identity,
            network=beacon.network_tag(chain),
            incarnation=incarnation,
            interval=config.beacon_interval,
            max_peers=config.max_neighbours,
        )
        self._identity = identity
        self._kernel = kernel
        self._peers = tuple(peers)
        self._configured = {interface.name: interface for interface in interfaces}
        self._secured = frozenset(self._configured)  # where there are beacons
        self._configured |= {peer.name: _link_of(peer) for peer in self._peers}
        self._port = config.port
        self._links: dict[str, Link] = {}
        self._links_lock = trio.Lock()
        self._guarded: dict[str, int] = {}  # index by name
        self._tunnels: dict[tuple[str, bytes], Tunnel] = {}
        self._keeper = Keeper(
            identity,
            kernel,
            self.counters,
            mark=MARK,
            silence=silence,
            mtu_under=self._mtu_under,
            on_port=self._port_known,
            on_heard=self._heard,
            on_up=on_up,
            on_down=on_down,
        )
        self._wake, self._wakes_at = trio.Event(), NEVER
        self._nursery: trio.Nursery | None = None
        self._socket = BeaconSocket()

    def address_on(self, interface: str) -> IPv6Address | None:
        """Ours on the interface under the tunnels; None: it is not usable."""
        link = self._links.get(interface)
        return None if link is None else link.link_local

    def on(self, interface: str) -> Tunnel | None:
        """The tunnel whose interface it is."""
        return next((tunnel for tunnel in self._tunnels.values() if tunnel.name == interface), None)

    def all(self) -> list[Tunnel]:
        return list(self._tunnels.values())

    def names(self) -> dict[str, list[str]]:
        """Of the tunnels' interfaces, by the interface under them, or the peer that the operator named."""
        return {
            under: [t.name for (name, _), t in self._tunnels.items() if name == under] for under in self._configured
        }

    def set_cost(self, interface: str, cost: int) -> list[str]:
        """Of the tunnels over it from now on; the interfaces of those that are there. Raises KeyError."""
        self._configured[interface] = under = replace(self._configured[interface], cost=cost)
        tunnels = [tunnel for (name, _), tunnel in self._tunnels.items() if name == interface]
        for tunnel in tunnels:
            tunnel.under = under
        return [tunnel.name for tunnel in tunnels]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; the tunnels' interfaces are gone then. Raises WireGuardError where none can be made."""
        try:
            await require(self._kernel.links)
            await self._bind()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._follow_links)
                nursery.start_soon(self._receive_beacons)
                nursery.start_soon(self._keep_time)
                if self._peers:
                    await self._kernel.keep_out_of_mesh(MARK)
                for peer in self._peers:
                    self._start_static(peer)
                task_status.started()
        finally:
            self._socket.close()

    async def _bind(self) -> None:
        try:
            await self._socket.bind(("::", self._port))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on UDP port {self._port}: {error.strerror}") from error

    async def _follow_links(self) -> None:
        await follow_links(self._kernel.links, self._take_link, missing=lambda: self._secured - self._links.keys())

    async def _take_link(self, link: Link) -> None:
        if link.name in self._secured:
            async with self._links_lock:
                await self._link_changed(link)

    async def _link_changed(self, link: Link) -> None:
        before = self._links.get(link.name)
        is_usable = link.is_up and link.link_local is not None
        if before is not None and (not is_usable or link.index != before.index):
            del self._links[link.name]
            self._leave(before.index)
            await self._execute(self.discovery.interface_down(link.name))
        # Guarded from the first, also while it has no IPv6 address to have tunnels with: it may have an IPv4 address.
        if not await self._guard(link) or link.link_local is None or not is_usable:
            return
        if link.name not in self._links:
            try:
                self._membership(socket.IPV6_JOIN_GROUP, link.index)
            except OSError as error:
                log.warning("interface not usable", interface=link.name, reason=error)
                return
        self._links[link.name] = link
        if before is not None and link.mtu != before.mtu:
            for tunnel in self._tunnels.values():
                if tunnel.under.name == link.name:
                    tunnel.changed.set()
        await self._execute(self.discovery.interface_up(link.name, link.link_local, now=trio.current_time()))

    async def _guard(self, link: Link) -> bool:
        if self._guarded.get(link.name) != link.index:
            try:
                await self._kernel.guard(link.name, link.index)
            except NftError as error:
                log.warning("interface not guarded", interface=link.name, reason=error)
                return False
            self._guarded[link.name] = link.index
        return True

    def _leave(self, index: int) -> None:
        # The kernel does not do it when the interface goes down, and to join again would then be an error.
        try:
            self._membership(socket.IPV6_LEAVE_GROUP, index)
        except OSError as error:
            log.debug("group not left", index=index, reason=error)

    def _membership(self, option: int, index: int) -> None:
        self._socket.setsockopt(socket.IPPROTO_IPV6, option, beacon.GROUP.packed + struct.pack("@I", index))

    async def _receive_beacons(self) -> None:
        while True:
            data, sender = await self._socket.recvfrom(BUFFER)
            host, port, _, index = sender
            name = next((name for name, link in self._links.items() if link.index == index), None)
            if name is None or port != self._port:
                continue
            source = IPv6Address(host.partition("%")[0])
            await self._execute(self.discovery.receive(name, source, data, now=trio.current_time()))

    async def _keep_time(self) -> None:
        while True:
            self._wake, self._wakes_at = trio.Event(), self.discovery.next_deadline()
            with trio.move_on_at(self._wakes_at):
                await self._wake.wait()
            await self._execute(self.discovery.expire(now=trio.current_time()))

    async def _execute(self, outputs: Sequence[Output]) -> None:
        # All of these before the first pause: who has his turn then must find here whom `discovery` knows.
        for output in outputs:
            match output:
                case PeerFound():
                    self._found(output)
                case PeerLost():
                    self._lost(output)
                case SendBeacon():
                    pass
        if self.discovery.next_deadline() < self._wakes_at:
            self._wake.set()
        for output in outputs:
            if isinstance(output, SendBeacon):
                await self._send(output.interface, output.data)

    def _found(self, found: PeerFound) -> None:
        tunnel = self._tunnels.get((found.interface, found.peer))
        if tunnel is None:
            self._start(found)
        elif tunnel.scope.cancel_called:
            tunnel.successor = found
        else:
            tunnel.found = found
            tunnel.look_for(self._endpoint(found))

    def _endpoint(self, found: PeerFound) -> Endpoint | None:
        """None: it does not say on which port it listens for us."""
        return None if found.port is None else Endpoint(found.address, found.port, self._links[found.interface].index)

    def _lost(self, lost: PeerLost) -> None:
        tunnel = self._tunnels.get((lost.interface, lost.peer))
        if tunnel is not None:
            log.info("peer lost", interface=lost.interface, peer=lost.peer)
            tunnel.successor = None
            tunnel.scope.cancel()

    async def _send(self, interface: str, data: bytes) -> None:
        link = self._links.get(interface)
        if link is None:
            return
        try:
            await self._socket.sendto(data, (_GROUP, self._port, 0, link.index))
            self.counters["beacons_sent"] += 1
        except OSError as error:
            self.counters["beacons_not_sent"] += 1
            log.debug("beacon not sent", interface=interface, reason=error)

    def _start(self, found: PeerFound) -> None:
        under = self._configured[found.interface]
        try:
            x25519_public_key(found.peer)
        except ValueError:
            self.counters["beacon_key"] += 1  # it signs, but nothing can be agreed on with it
            return
        name = interface_name(self._identity.public_key, found.peer, found.interface)
        tunnel = Tunnel(name, found.peer, under, tunnel_address(found.peer), found=found)
        tunnel.look_for(self._endpoint(found))
        log.info("peer found", interface=found.interface, peer=found.peer, tunnel=name)
        self._run(tunnel)

    def _start_static(self, peer: PeerConfig) -> None:
        if peer.identity == self._identity.public_key:
            log.error("peer is this node itself", peer=peer.name)
            return
        name = interface_name(self._identity.public_key, peer.identity, peer.name)
        self._run(Tunnel(name, peer.identity, self._configured[peer.name], tunnel_address(peer.identity), static=peer))

    def _run(self, tunnel: Tunnel) -> None:
        self._tunnels[tunnel.key] = tunnel
        if self._nursery is not None:
            self._nursery.start_soon(self._run_tunnel, tunnel)

    async def _run_tunnel(self, tunnel: Tunnel) -> None:
        """Until the peer is lost."""
        try:
            await self._keeper.run(tunnel)
        finally:
            del self._tunnels[tunnel.key]
        if tunnel.successor is not None:
            self._start(tunnel.successor)

    def _mtu_under(self, tunnel: Tunnel) -> int:
        link = self._links.get(tunnel.under.name)
        if link is None:
            raise WireGuardError(f"{tunnel.under.name} is down")
        return link.mtu

    def _port_known(self, tunnel: Tunnel, port: int) -> None:
        if tunnel.static is None:
            self.discovery.listening(*tunnel.key, port, now=trio.current_time())
            self._wake.set()

    def _heard(self, tunnel: Tunnel) -> None:
        if tunnel.static is None:
            self.discovery.heard(*tunnel.key, now=trio.current_time())


def next_incarnation(path: Path) -> int:
    """Greater than at any start before, also where the clock starts at 1970. Raises OSError."""
    last = 0
    try:
        last = int(path.read_text())
    except FileNotFoundError:
        pass
    except ValueError:
        log.warning("file damaged, a new one is begun", file=path)
    if not 0 <= last < MAX_INCARNATION:
        # Peers that have heard so great a number from us take no smaller one, until they are started anew.
        log.warning("file holds no incarnation, a new one is begun", file=path, number=last)
        last = 0
    new = max(last + 1, min(time.time_ns() // 1_000_000, MAX_INCARNATION))
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w") as file:
        file.write(f"{new}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return new


def _link_of(peer: PeerConfig) -> InterfaceConfig:
    """What holds for the tunnel to it."""
    return InterfaceConfig(name=peer.name, kind=LinkKind.TUNNEL, cost=peer.cost)


class BeaconSocket:
    """Mostly a beacon can be sent at once, and none has come yet: a turn of trio's loop for each would cost more."""

    def __init__(self) -> None:
        self._raw = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket = trio.socket.from_stdlib_socket(self._raw)
        for option, value in (
            (socket.IPV6_V6ONLY, 1),
            (socket.IPV6_MULTICAST_LOOP, 0),
            (IPV6_MULTICAST_ALL, 0),
            (socket.IPV6_MULTICAST_HOPS, 1),
        ):
            self._raw.setsockopt(socket.IPPROTO_IPV6, option, value)

    async def bind(self, address: tuple[str, int]) -> None:
        await self._socket.bind(address)

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        self._raw.setsockopt(level, option, value)

    async def sendto(self, data: bytes, address: tuple[str, int, int, int]) -> None:
        """Raises OSError."""
        try:
            self._raw.sendto(data, address)
        except BlockingIOError:
            await self._socket.sendto(data, address)

    async def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int, int, int]]:
        """Raises OSError."""
        while True:
            await trio.lowlevel.wait_readable(self._raw)
            try:
                return self._raw.recvfrom(size)
            except BlockingIOError:
                continue

    def close(self) -> None:
        self._socket.close()
