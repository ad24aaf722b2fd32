"""Who is on each segment, by their beacons: a sans-IO table that says whom to have a tunnel with, and until when.

*input + now -> ordered outputs*, as the engines do. The driver (`meshd.tunnels`) owns sockets and devices.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from meshd import beacon as wire
from meshd.beacon import Beacon, BeaconError
from meshd.identity import Identity

LIFETIME_INTERVALS = 3.5
EARLY_INTERVALS = (0.1, 0.3)  # a beacon that is lost while a node comes up is repeated soon
ANSWER_TIMEOUT = 0.02  # news waits so long for more of it, and no beacon follows another sooner than...
BEACON_SPACING = 0.1
MAX_REMEMBERED = 4096  # keys of which the newest beacon is known, so that no older one counts again
CHECKS_PER_SECOND = 200  # signatures of strangers on one interface: each costs 0.1 ms
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class PeerFound:
    """Have a tunnel with this peer, or move its far end. `port`: where it listens for us; None: it does not say yet."""

    interface: str
    peer: bytes
    address: IPv6Address
    port: int | None


@dataclass(frozen=True, slots=True)
class PeerLost:
    interface: str
    peer: bytes


@dataclass(frozen=True, slots=True)
class SendBeacon:
    """To the group, on this interface."""

    interface: str
    data: bytes


Output = PeerFound | PeerLost | SendBeacon


@dataclass(slots=True)
class _Peer:
    found: PeerFound
    expires_at: float
    since: float
    port: int | None = None  # where we listen for it
    is_proven: bool = False  # its tunnel has shaken hands: nobody but the key's owner can do that


@dataclass(slots=True)
class _Interface:
    address: IPv6Address
    beacon_at: float
    beacons_sent: int = 0
    last_sent_at: float = -NEVER
    peers: dict[bytes, _Peer] = field(default_factory=dict)
    checks: float = CHECKS_PER_SECOND
    checked_at: float = 0.0


class Discovery:
    """`incarnation` must grow from one start of the node to the next."""

    def __init__(
        self, identity: Identity, *, network: bytes, incarnation: int, interval: float, max_peers: int = wire.MAX_PEERS
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._identity = identity
        self._network = network
        self._incarnation = incarnation
        self._interval = interval
        self._max_peers = min(max_peers, wire.MAX_PEERS)
        self._number = 0
        self._interfaces: dict[str, _Interface] = {}
        self._newest: OrderedDict[tuple[str, bytes], tuple[int, int]] = OrderedDict()

    def interface_up(self, name: str, address: IPv6Address, *, now: float) -> list[Output]:
        """Said again with another address, everybody hears of that at once; the peers stay."""
        known = self._interfaces.get(name)
        if known is None:
            self._interfaces[name] = _Interface(address, beacon_at=now, checked_at=now)
        elif known.address != address:
            known.address, known.beacon_at = address, now
        return self.expire(now=now)

    def interface_down(self, name: str) -> list[Output]:
        gone = self._interfaces.pop(name, None)
        return [PeerLost(name, peer) for peer in gone.peers] if gone is not None else []

    def listening(self, interface: str, peer: bytes, port: int, *, now: float) -> None:
        """The tunnel for this peer is there: tell it the port."""
        entry = self._peer(interface, peer)
        if entry is not None and entry.port != port:
            entry.port = port
            self._hasten(self._interfaces[interface], now=now)

    def proven(self, interface: str, peer: bytes) -> None:
        """Its tunnel has shaken hands: it is no replay, and keeps its place before strangers."""
        entry = self._peer(interface, peer)
        if entry is not None:
            entry.is_proven = True

    def peers(self) -> Mapping[str, list[PeerFound]]:
        """By interface."""
        return {name: [peer.found for peer in known.peers.values()] for name, known in self._interfaces.items()}

    def next_deadline(self) -> float:
        times = [known.beacon_at for known in self._interfaces.values()]
        times += [peer.expires_at for known in self._interfaces.values() for peer in known.peers.values()]
        return min(times, default=NEVER)

    def expire(self, *, now: float) -> list[Output]:
        """What is due: beacons to send, peers that have fallen silent."""
        outputs: list[Output] = []
        for name, interface in self._interfaces.items():
            for key, peer in list(interface.peers.items()):
                if peer.expires_at <= now:
                    del interface.peers[key]
                    outputs.append(PeerLost(name, key))
            if interface.beacon_at <= now:
                outputs.append(SendBeacon(name, self._beacon(interface, now=now)))
        return outputs

    def receive(self, interface: str, source: IPv6Address, data: bytes, *, now: float) -> list[Output]:
        """A datagram that came to the group."""
        known = self._interfaces.get(interface)
        if known is None:
            return []
        if not self._may_check(known, now=now):
            self.counters["beacon_rate"] += 1
            return []
        try:
            heard = wire.decode(data, source=source, network=self._network)
        except BeaconError as error:
            self.counters[error.counter] += 1
            return []
        if heard.public_key == self._identity.public_key:
            self.counters["beacon_own"] += 1  # looped back, or somebody has our key
            return []
        if not self._is_newer(interface, heard):
            self.counters["beacon_stale"] += 1
            return []
        return self._take(interface, known, heard, now=now)

    def _take(self, name: str, interface: _Interface, heard: Beacon, *, now: float) -> list[Output]:
        key = heard.public_key
        port = heard.port_by_tag.get(wire.peer_tag(self._identity.public_key)) or None
        found = PeerFound(name, key, heard.address, port)
        peer = interface.peers.get(key)
        outputs: list[Output] = []
        if peer is None:
            if len(interface.peers) >= self._max_peers:
                worst = self._worst(interface)
                if worst is None:
                    self.counters["beacon_limit"] += 1
                    return []
                del interface.peers[worst]
                outputs.append(PeerLost(name, worst))
            peer = interface.peers[key] = _Peer(found, NEVER, since=now)
            outputs.append(found)
            self._hasten(interface, now=now)  # it is to know of us as soon
        elif found != peer.found:
            # Somebody who has just come does not say our port; the old one is as good as none.
            peer.found = found
            outputs.append(found)
        peer.expires_at = now + heard.lifetime
        return outputs

    @staticmethod
    def _worst(interface: _Interface) -> bytes | None:
        """The newest of those that never proved who they are; who has a working tunnel is never driven out."""
        unproven = [(peer.since, key) for key, peer in interface.peers.items() if not peer.is_proven]
        return max(unproven)[1] if unproven else None

    def _is_newer(self, interface: str, heard: Beacon) -> bool:
        place = (interface, heard.public_key)
        newest = self._newest.get(place)
        if newest is not None and heard.age <= newest:
            return False
        self._newest[place] = heard.age
        self._newest.move_to_end(place)
        if len(self._newest) > MAX_REMEMBERED:
            self._newest.popitem(last=False)
        return True

    @staticmethod
    def _may_check(interface: _Interface, *, now: float) -> bool:
        earned = (now - interface.checked_at) * CHECKS_PER_SECOND
        interface.checks = min(CHECKS_PER_SECOND, interface.checks + earned)
        interface.checked_at = now
        if interface.checks < 1:
            return False
        interface.checks -= 1
        return True

    @staticmethod
    def _hasten(interface: _Interface, *, now: float) -> None:
        at = max(now + ANSWER_TIMEOUT, interface.last_sent_at + BEACON_SPACING)
        interface.beacon_at = min(interface.beacon_at, at)

    def _beacon(self, interface: _Interface, *, now: float) -> bytes:
        self._number += 1
        sent = interface.beacons_sent
        interval = EARLY_INTERVALS[sent] if sent < len(EARLY_INTERVALS) else self._interval
        interface.beacons_sent += 1
        interface.last_sent_at = now
        interface.beacon_at = now + interval
        ports = {wire.peer_tag(key): peer.port for key, peer in interface.peers.items() if peer.port is not None}
        ours = Beacon(
            self._identity.public_key,
            self._incarnation,
            self._number,
            LIFETIME_INTERVALS * self._interval,
            interface.address,
            ports,
        )
        return wire.encode(ours, self._identity, network=self._network)

    def _peer(self, interface: str, peer: bytes) -> _Peer | None:
        known = self._interfaces.get(interface)
        return known.peers.get(peer) if known is not None else None
