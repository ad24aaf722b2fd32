"""One tunnel: its device is made, told where the far end is, watched, and made anew when it breaks.

The same for all, whether beacons found the peer or the operator named it. Its keys and its addresses follow from the
two identities, so that whatever goes through it is one peer's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path

import trio

from meshd.config import InterfaceConfig, PeerConfig
from meshd.discovery import NEVER, PeerFound
from meshd.identity import Identity, tunnel_address, x25519_public_key
from meshd.kernel import Kernel, NetlinkError, NftError
from meshd.kernel.interface_bytes import BytesByInterface
from meshd.kernel.wireguard import Device, Endpoint, Status, WireGuardError, make
from meshd.logs import Logger
from meshd.ticks import tick_after
from meshd.whereabouts import look_up, path_mtu

log = Logger("meshd.tunnels")
OVERHEAD = 80  # IPv6 40, UDP 8, WireGuard 32
MTU_MIN = 1280  # RFC 8200 section 5
MTU_UNKNOWN = 1500  # of the path to whom we wait for
KEEPALIVE = 25  # seconds; so that a path through a NAT stays open
STATUS_INTERVAL = 1.0
STATUS_INTERVAL_UP = 3.0  # of one that works: less than any silence that counts
STATUS_PATIENCE = 4.5  # of one that beacons found: as between two Hellos; after two looks in vain WireGuard is asked
STATUS_INTERVAL_MAX = 30.0  # of one that something comes from, by its count; where its peer is now is known so soon
HANDSHAKE_TIMEOUT = 15.0  # then the operator is told: it takes some milliseconds, or 5 s where a packet is lost
RETRY_INITIAL, RETRY_MAX = 0.5, 30.0
DEAD_TIMEOUT = 180.0  # WireGuard's own: a session that is older is used no more
MAX_STARTING = 8  # at a time: each may be a process
CLEANUP_TIMEOUT = 5.0
REMOVAL_TIMEOUT = 25.0  # nft may take 20 s where many tunnels end at once
LOOK_UP_INITIAL, LOOK_UP_MAX = 1.0, 60.0  # between questions for a name that has no answer
SILENCE_MAX = 300.0  # between questions where a silent peer was, with an answer each time


@dataclass(slots=True)
class Tunnel:
    """`name`: of its interface. `far_end`: the peer's address in it, which only the holder of its key can use.

    `under`: the interface that beacons found the peer on; of a static peer, what holds for the tunnel, with the peer's
    name. One of `found` and `static` is there.
    """

    name: str
    peer: bytes
    under: InterfaceConfig
    far_end: IPv6Address
    found: PeerFound | None = None
    static: PeerConfig | None = None
    wanted: Endpoint | None = None  # where to look for the far end; None: wait for it
    is_up: bool = False  # it has shaken hands
    status: Status | None = None  # as it was last seen
    seen_at: float = -NEVER  # when that was
    received: int = 0  # by its interface, as last seen
    heard_at: float = -NEVER  # when something of the peer was last seen to have come
    mtu: int = 0
    successor: PeerFound | None = None  # the peer was lost, and found again before all of this one was gone
    changed: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def key(self) -> tuple[str, bytes]:
        return self.under.name, self.peer

    def state(self, *, now: float) -> str:
        """In a word, for people."""
        if self.is_up:
            return "up" if now - self.heard_at < DEAD_TIMEOUT else "silent"
        if self.wanted is not None:
            return "trying"
        return "looking up" if self.static is not None and self.static.endpoint is not None else "waiting"

    def look_for(self, endpoint: Endpoint | None) -> None:
        """Tells it again also where it has been told the same: the device follows the peer by itself meanwhile."""
        self.wanted = endpoint
        self.changed.set()


class Keeper:
    """`mtu_under(tunnel)`: of the interface under a discovered one. Raises WireGuardError where it went away.

    `on_up` and `on_down` are told of each tunnel's interface; it is there from the one to the end of the other.
    `on_port(tunnel, port)`: it listens there. `on_heard(tunnel)`: its peer, and nobody else, has sent something.
    `silence`: seconds without a packet after which a static peer is looked for anew.
    """

    def __init__(
        self,
        identity: Identity,
        kernel: Kernel,
        counters: Counter[str],
        *,
        mark: int,
        silence: float,
        mtu_under: Callable[[Tunnel], int],
        on_port: Callable[[Tunnel, int], None],
        on_heard: Callable[[Tunnel], None],
        on_up: Callable[[Tunnel], Awaitable[None]],
        on_down: Callable[[Tunnel], Awaitable[None]],
    ) -> None:
        self._identity = identity
        self._kernel = kernel
        self._counters = counters
        self._mark = mark
        self._silence = silence
        self._mtu_under = mtu_under
        self._on_port = on_port
        self._on_heard = on_heard
        self._on_up = on_up
        self._on_down = on_down
        self._starting = trio.CapacityLimiter(MAX_STARTING)
        self._bytes: BytesByInterface = {}
        self._bytes_at = -NEVER

    async def run(self, tunnel: Tunnel) -> None:
        """Until its scope is cancelled; made anew as often as it breaks."""
        retry = RETRY_INITIAL
        with tunnel.scope:
            while True:
                began = trio.current_time()
                try:
                    await self._serve(tunnel)
                except (WireGuardError, NetlinkError, NftError, OSError) as error:
                    self._counters["tunnels_broken"] += 1
                    log.warning("tunnel broken", interface=tunnel.name, peer=tunnel.peer, reason=error)
                retry = RETRY_INITIAL if trio.current_time() - began > RETRY_MAX else min(2 * retry, RETRY_MAX)
                await trio.sleep(retry)

    async def _serve(self, tunnel: Tunnel) -> None:
        device: Device | None = None
        static = tunnel.static
        try:
            self._kernel.record_device(tunnel.name)
            async with self._starting:
                await self._kernel.links.delete(tunnel.name)
                device = await make(tunnel.name, self._kernel.links)
                await self._configure(tunnel, device)
            # Not a packet before the other end is known: a handshake that cannot be sent is tried again after 5 s.
            write_sysctl(tunnel.name, "disable_ipv6", "1")
            write_sysctl(tunnel.name, "addr_gen_mode", "1")  # no link-local address but the one that we give it
            tunnel.mtu = 0
            await self._fit(tunnel)
            status = await device.status()
            if static is not None and static.listen_port not in (0, status.port):
                raise WireGuardError(f"cannot listen on UDP port {static.listen_port}: is it taken?")
            self._on_port(tunnel, status.port)
            if static is None or static.endpoint is None:
                await self._follow(tunnel, device)
            else:
                await self._follow_name(tunnel, device, static.endpoint)
        finally:
            tunnel.is_up, tunnel.status, tunnel.heard_at, tunnel.received = False, None, -NEVER, 0
            with trio.CancelScope(deadline=trio.current_time() + CLEANUP_TIMEOUT, shield=True):
                try:
                    await self._on_down(tunnel)
                finally:
                    await self._remove(tunnel, device)

    async def _remove(self, tunnel: Tunnel, device: Device | None) -> None:
        with trio.CancelScope(deadline=trio.current_time() + REMOVAL_TIMEOUT, shield=True):
            try:
                await self._kernel.delete_device(tunnel.name)
            finally:
                if device is not None:
                    await device.close()

    async def _configure(self, tunnel: Tunnel, device: Device) -> None:
        port, mark = (0, 0) if tunnel.static is None else (tunnel.static.listen_port, self._mark)
        key = x25519_public_key(tunnel.peer)
        await device.configure(self._identity.x25519_private, key, port=port, mark=mark)

    async def _follow_name(self, tunnel: Tunnel, device: Device, endpoint: tuple[str, int]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_for, tunnel, *endpoint)
                await self._follow(tunnel, device)
        except BaseExceptionGroup as group:
            # One of them at most fails: the other one raises nothing but Cancelled.
            failed, _ = group.split((WireGuardError, NetlinkError, NftError, OSError))
            if failed is None:
                raise
            raise failed.exceptions[0] from None

    async def _look_for(self, tunnel: Tunnel, host: str, port: int) -> None:
        """Asks where it is, and again when nothing comes from it: it may have moved, or have several addresses."""
        tried, retry, patience = 0, LOOK_UP_INITIAL, self._silence
        while True:
            try:
                found = await look_up(host, port)
            except OSError as error:
                self._counters["names_not_resolved"] += 1
                log.warning("peer's address not found", peer=tunnel.under.name, host=host, reason=error)
                await trio.sleep(retry)
                retry = min(2 * retry, LOOK_UP_MAX)
                continue
            retry = LOOK_UP_INITIAL
            tunnel.look_for(found[tried % len(found)])
            tried += 1
            if await self._until_silent(tunnel, patience):
                tried, patience = 0, self._silence
            else:
                patience = min(2 * patience, SILENCE_MAX)

    async def _until_silent(self, tunnel: Tunnel, patience: float) -> bool:
        """Whether it was heard at all from now on. `patience`: how long its first packet may take."""
        began = trio.current_time()
        while True:
            was_heard = tunnel.heard_at > began
            silent_at = tunnel.heard_at + self._silence if was_heard else began + patience
            if silent_at <= trio.current_time():
                return was_heard
            await trio.sleep_until(silent_at)

    async def _follow(self, tunnel: Tunnel, device: Device) -> None:
        key = x25519_public_key(tunnel.peer)
        keepalive = KEEPALIVE if tunnel.static is None else tunnel.static.keepalive
        is_known, doubt_at = False, NEVER
        told: Endpoint | None = None
        while True:
            is_news, tunnel.changed = tunnel.changed.is_set(), trio.Event()
            wanted = tunnel.wanted
            if wanted is not None and (is_news or wanted != told):
                if told is not None and tunnel.static is not None:
                    # It was silent. One that has been started anew knows our session no more, and WireGuard takes 15 s
                    # to find that out; forgotten here too, there is a handshake at once.
                    await self._configure(tunnel, device)
                await device.set_endpoint(key, wanted, keepalive=keepalive)
                doubt_at = doubt_at if is_known else trio.current_time() + HANDSHAKE_TIMEOUT
                told = wanted
            if not is_known and (told is not None or tunnel.is_up):
                write_sysctl(tunnel.name, "disable_ipv6", "0")
                address = tunnel_address(self._identity.public_key)
                await self._kernel.links.add_link_local(tunnel.name, address)
                await self._on_up(tunnel)
                is_known = True
            with trio.move_on_at(_next_look(tunnel, now=trio.current_time())):
                await tunnel.changed.wait()
            await self._look_at(tunnel, device)
            await self._fit(tunnel)
            if not tunnel.is_up and trio.current_time() >= doubt_at:
                doubt_at = NEVER
                self._counters["tunnels_without_handshake"] += 1
                reason = f"no handshake in {HANDSHAKE_TIMEOUT:g} s: is UDP to {told} let through?"
                log.info("tunnel not up", interface=tunnel.name, peer=tunnel.peer, reason=reason)

    async def _look_at(self, tunnel: Tunnel, device: Device) -> None:
        """What has come out of the tunnel is as good a sign of its peer as what WireGuard says, and costs less."""
        now, before = trio.current_time(), tunnel.received
        tunnel.received = self._received_on(tunnel.name, now=now)
        has_brought_something = tunnel.is_up and tunnel.received > before
        if has_brought_something:
            tunnel.heard_at = now
            self._on_heard(tunnel)
        patience = STATUS_PATIENCE if tunnel.is_up and tunnel.static is None else 0.0
        is_silent = not has_brought_something and now >= tunnel.heard_at + patience
        if is_silent or now >= tunnel.seen_at + STATUS_INTERVAL_MAX:
            self._take_status(tunnel, await device.status())

    def _received_on(self, interface: str, *, now: float) -> int:
        """All tunnels look at the same time, so one look serves all. 0: not known."""
        if now >= self._bytes_at + STATUS_INTERVAL:
            try:
                self._bytes, self._bytes_at = self._kernel.links.byte_counts(), now
            except OSError as error:
                log.debug("bytes of the interfaces not read", reason=error)
                return 0
        return self._bytes.get(interface, (0, 0))[0]

    def _take_status(self, tunnel: Tunnel, status: Status) -> None:
        before, tunnel.status = tunnel.status, status
        tunnel.seen_at = trio.current_time()
        is_first = bool(status.handshake_at) and not tunnel.is_up
        if is_first:
            log.info("tunnel up", interface=tunnel.name, peer=tunnel.peer)
            tunnel.is_up = True
        if is_first or (tunnel.is_up and before is not None and status.received > before.received):
            tunnel.heard_at = trio.current_time()
            self._on_heard(tunnel)

    async def _fit(self, tunnel: Tunnel) -> None:
        """Gives it the MTU of the path under it, which may change, less what the tunnel adds."""
        if tunnel.static is None:
            under: int | None = self._mtu_under(tunnel)
        else:
            endpoint = tunnel.wanted if tunnel.status is None else tunnel.status.endpoint
            under = MTU_UNKNOWN if endpoint is None else path_mtu(endpoint, mark=self._mark)
        mtu = tunnel.mtu if under is None else max(MTU_MIN, under - OVERHEAD)
        if mtu != tunnel.mtu:
            await self._kernel.links.set_up(tunnel.name, mtu=mtu)
            tunnel.mtu = mtu


def _next_look(tunnel: Tunnel, *, now: float) -> float:
    """Where it works, at the same time as all the others."""
    if not tunnel.is_up:
        return now + STATUS_INTERVAL
    return tick_after(now, STATUS_INTERVAL_UP)


def interface_name(ours: bytes, theirs: bytes, under: str) -> str:
    """At most 15 characters. Of this node too: wireguard-go's sockets are shared by all network namespaces."""
    digest = hashlib.blake2b(under.encode() + b"\0" + ours + theirs, digest_size=6, person=b"meshd wg name")
    return f"mw{digest.hexdigest()}"


def write_sysctl(interface: str, name: str, value: str) -> None:
    (Path("/proc/sys/net/ipv6/conf") / interface / name).write_text(value)
