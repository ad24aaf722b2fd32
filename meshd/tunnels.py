"""One WireGuard tunnel for each neighbour that beacons find (design section 5): drives `discovery` and the devices.

A tunnel's name, its address and its keys follow from the two identities and the interface under it, so both ends, the
ledger and the next start of the daemon know it by the same key. What breaks is made anew: a device that is gone, a
`wireguard-go` that does not answer.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path

import trio

from meshd import beacon
from meshd.babel_socket import IPV6_MULTICAST_ALL
from meshd.config import DiscoveryConfig, InterfaceConfig
from meshd.discovery import NEVER, Discovery, Output, PeerFound, PeerLost, SendBeacon
from meshd.identity import Identity, tunnel_address, x25519_public_key
from meshd.kernel import Kernel, Link, NetlinkError, NftError
from meshd.kernel.wireguard import Device, Endpoint, WireGuardError, make, require
from meshd.logs import Logger

log = Logger("meshd.tunnels")
OVERHEAD = 80  # IPv6 40, UDP 8, WireGuard 32
MTU_MIN = 1280  # RFC 8200 section 5
KEEPALIVE = 25  # seconds; so that a path through a NAT stays open
STATUS_INTERVAL = 1.0
HANDSHAKE_TIMEOUT = 15.0  # then the operator is told: it takes some milliseconds, or 5 s where a packet is lost
RETRY_INITIAL, RETRY_MAX = 0.5, 30.0
LINK_RETRY_INTERVAL = 5.0
MAX_STARTING = 8  # at a time: each may be a process
CLEANUP_TIMEOUT = 5.0
BUFFER = 2048


@dataclass(slots=True)
class Tunnel:
    """`name`: of its interface. `far_end`: the peer's address in it, which only the holder of its key can use."""

    name: str
    peer: bytes
    under: InterfaceConfig
    found: PeerFound
    far_end: IPv6Address
    is_up: bool = False  # it has shaken hands
    successor: PeerFound | None = None  # the peer was lost, and found again before all of this one was gone
    changed: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Tunnels:
    """`on_up` and `on_down` are told of each tunnel's interface; it is there from the one to the end of the other."""

    def __init__(
        self,
        identity: Identity,
        kernel: Kernel,
        interfaces: Iterable[InterfaceConfig],
        config: DiscoveryConfig,
        *,
        chain: str,
        incarnation: int,
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
        self._configured = {interface.name: interface for interface in interfaces}
        self._port = config.port
        self._on_up = on_up
        self._on_down = on_down
        self._links: dict[str, Link] = {}
        self._links_lock = trio.Lock()
        self._guarded: dict[str, int] = {}  # index by name
        self._tunnels: dict[tuple[str, bytes], Tunnel] = {}
        self._starting = trio.CapacityLimiter(MAX_STARTING)
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._socket = _beacon_socket()

    def address_on(self, interface: str) -> IPv6Address | None:
        """Ours on the interface under the tunnels; None: it is not usable."""
        link = self._links.get(interface)
        return None if link is None else link.link_local

    def on(self, interface: str) -> Tunnel | None:
        """The tunnel whose interface it is."""
        return next((tunnel for tunnel in self._tunnels.values() if tunnel.name == interface), None)

    def names(self) -> dict[str, list[str]]:
        """Of the tunnels' interfaces, by the interface under them."""
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
                nursery.start_soon(self._watch_links)
                nursery.start_soon(self._try_again)
                nursery.start_soon(self._receive_beacons)
                nursery.start_soon(self._keep_time)
                task_status.started()
        finally:
            self._socket.close()

    async def _bind(self) -> None:
        try:
            await self._socket.bind(("::", self._port))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on UDP port {self._port}: {error.strerror}") from error

    async def _watch_links(self) -> None:
        while True:
            try:
                async with self._kernel.links.watch() as changes:
                    async for link in changes:
                        if link.name in self._configured:
                            async with self._links_lock:
                                await self._link_changed(link)
            except NetlinkError as error:
                log.warning("interfaces not read", reason=error)
                await trio.sleep(LINK_RETRY_INTERVAL)

    async def _try_again(self) -> None:
        """What could not be used will not be told of again as long as it stays as it is."""
        while True:
            await trio.sleep(LINK_RETRY_INTERVAL)
            if self._links.keys() == self._configured.keys():
                continue
            async with self._links_lock:
                try:
                    links = await self._kernel.links.all()
                except NetlinkError as error:
                    log.warning("interfaces not read", reason=error)
                    continue
                for name in self._configured.keys() - self._links.keys():
                    if name in links:
                        await self._link_changed(links[name])

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
            self._wake = trio.Event()
            with trio.move_on_at(self.discovery.next_deadline()):
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
            tunnel.changed.set()

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
            await self._socket.sendto(data, (str(beacon.GROUP), self._port, 0, link.index))
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
        tunnel = Tunnel(name, found.peer, under, found, tunnel_address(found.peer))
        log.info("peer found", interface=found.interface, peer=found.peer, tunnel=name)
        self._tunnels[found.interface, found.peer] = tunnel
        if self._nursery is not None:
            self._nursery.start_soon(self._run_tunnel, tunnel)

    async def _run_tunnel(self, tunnel: Tunnel) -> None:
        """Until the peer is lost; made anew as often as it breaks."""
        retry = RETRY_INITIAL
        try:
            with tunnel.scope:
                while True:
                    began = trio.current_time()
                    try:
                        await self._serve(tunnel)
                    except (WireGuardError, NetlinkError, NftError, OSError) as error:
                        self.counters["tunnels_broken"] += 1
                        log.warning("tunnel broken", interface=tunnel.name, peer=tunnel.peer, reason=error)
                    retry = RETRY_INITIAL if trio.current_time() - began > RETRY_MAX else min(2 * retry, RETRY_MAX)
                    await trio.sleep(retry)
        finally:
            del self._tunnels[tunnel.found.interface, tunnel.peer]
        if tunnel.successor is not None:
            self._start(tunnel.successor)

    async def _serve(self, tunnel: Tunnel) -> None:
        device: Device | None = None
        try:
            self._kernel.record_device(tunnel.name)
            async with self._starting:
                await self._kernel.links.delete(tunnel.name)
                device = await make(tunnel.name, self._kernel.links)
                await device.configure(self._identity.x25519_private, x25519_public_key(tunnel.peer))
            # Not a packet before the other end is known: a handshake that cannot be sent is tried again after 5 s.
            _write_sysctl(tunnel.name, "disable_ipv6", "1")
            _write_sysctl(tunnel.name, "addr_gen_mode", "1")  # no link-local address but the one that we give it
            mtu = max(MTU_MIN, self._link(tunnel.found.interface).mtu - OVERHEAD)
            await self._kernel.links.set_up(tunnel.name, mtu=mtu)
            port = (await device.status()).port
            self.discovery.listening(tunnel.found.interface, tunnel.peer, port, now=trio.current_time())
            self._wake.set()
            await self._follow(tunnel, device)
        finally:
            tunnel.is_up = False
            with trio.CancelScope(deadline=trio.current_time() + CLEANUP_TIMEOUT, shield=True):
                try:
                    await self._on_down(tunnel)
                    await self._kernel.delete_device(tunnel.name)
                finally:
                    if device is not None:
                        await device.close()

    def _link(self, interface: str) -> Link:
        """Raises WireGuardError where it went away while the tunnel over it was waiting for something else."""
        link = self._links.get(interface)
        if link is None:
            raise WireGuardError(f"{interface} is down")
        return link

    async def _follow(self, tunnel: Tunnel, device: Device) -> None:
        key = x25519_public_key(tunnel.peer)
        told: PeerFound | None = None
        doubt_at = NEVER
        while True:
            tunnel.changed = trio.Event()
            found = tunnel.found
            if found.port is not None and found != told:
                link = self._link(found.interface)
                await device.set_endpoint(key, Endpoint(found.address, found.port, link.index), keepalive=KEEPALIVE)
                if told is None:
                    _write_sysctl(tunnel.name, "disable_ipv6", "0")
                    address = tunnel_address(self._identity.public_key)
                    await self._kernel.links.add_link_local(tunnel.name, address)
                    await self._on_up(tunnel)
                    doubt_at = trio.current_time() + HANDSHAKE_TIMEOUT
                told = found
            with trio.move_on_after(STATUS_INTERVAL):
                await tunnel.changed.wait()
            if (await device.status()).handshake_at:
                if not tunnel.is_up:
                    log.info("tunnel up", interface=tunnel.name, peer=tunnel.peer)
                tunnel.is_up = True
                self.discovery.proven(found.interface, tunnel.peer)
            elif trio.current_time() >= doubt_at:
                doubt_at = NEVER
                self.counters["tunnels_without_handshake"] += 1
                reason = f"no handshake in {HANDSHAKE_TIMEOUT:g} s: is UDP to port {found.port} let through?"
                log.info("tunnel not up", interface=tunnel.name, peer=tunnel.peer, reason=reason)


def interface_name(ours: bytes, theirs: bytes, under: str) -> str:
    """At most 15 characters. Of this node too: wireguard-go's sockets are shared by all network namespaces."""
    digest = hashlib.blake2b(under.encode() + b"\0" + ours + theirs, digest_size=6, person=b"meshd wg name")
    return f"mw{digest.hexdigest()}"


def next_incarnation(path: Path) -> int:
    """Greater than at any start before, also where the clock starts at 1970. Raises OSError."""
    try:
        last = int(path.read_text())
    except (FileNotFoundError, ValueError):
        last = 0
    new = max(last + 1, time.time_ns() // 1_000_000)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w") as file:
        file.write(f"{new}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return new


def _write_sysctl(interface: str, name: str, value: str) -> None:
    (Path("/proc/sys/net/ipv6/conf") / interface / name).write_text(value)


def _beacon_socket() -> trio.socket.SocketType:
    made = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for option, value in (
        (socket.IPV6_V6ONLY, 1),
        (socket.IPV6_MULTICAST_LOOP, 0),
        (IPV6_MULTICAST_ALL, 0),
        (socket.IPV6_MULTICAST_HOPS, 1),
    ):
        made.setsockopt(socket.IPPROTO_IPV6, option, value)
    return made
