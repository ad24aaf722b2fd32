"""Who is on each segment, by their beacons: a sans-IO table that says whom to have a tunnel with, and until when.

*input + now -> ordered outputs*, as the engines do. The driver (`meshd.tunnels`) owns sockets and devices.

Where there are more than there may be, the best stay: those between whom and us the most money has moved, then those
whose tunnels work, the longest known first, then those who have yet to prove that they are there, the newest first. Who
comes takes the place of the last of these, if that one is behind it: a stranger only that of somebody unproven. So
whoever makes up identities by the thousand drives out nobody whose tunnel works.
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
# Between beacons of who has nobody there, and so takes nobody's air: who comes into range is known in under a second.
LONELY_INTERVAL = 0.5
TOGETHER = 0.1  # of its interval: so much earlier a beacon goes with one that is due on another interface
ANSWER_TIMEOUT = 0.02  # news waits so long for more of it, and no beacon follows another sooner than...
BEACON_SPACING = 0.1
MAX_REMEMBERED = 4096  # keys of which the newest beacon is known, so that no older one counts again
# Signatures, each 0.1 ms: of all strangers on one interface, of all who have paid but have no tunnel, and of each one
# that has a tunnel. Whoever forges a peer's beacons can use up no other's.
CHECKS_PER_SECOND = 200
PEER_CHECKS_PER_SECOND, PEER_CHECKS = 4, 8
LIFETIME_MAX = 210.0  # of those with the longest interval
PROOF_TIMEOUT = 5.0  # what was paid counts so long for one whose tunnel does not work: it may be a replay
# Tunnels with those who were not there before, each of them perhaps a process; at first, as many as there may be.
NEWCOMERS_PER_SECOND = 4
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
class _Budget:
    """Full at first."""

    rate: float
    size: float
    left: float
    at: float

    def take(self, *, now: float) -> bool:
        self.left = min(self.size, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class _Peer:
    found: PeerFound
    age: tuple[int, int]  # of its newest beacon
    lifetime: float
    expires_at: float
    since: float
    checks: _Budget
    port: int | None = None  # where we listen for it
    is_proven: bool = False  # its tunnel has shaken hands: nobody but the key's owner can do that


@dataclass(slots=True)
class _Interface:
    address: IPv6Address
    beacon_at: float
    strangers_checks: _Budget
    payers_checks: _Budget
    newcomers: _Budget
    beacons_sent: int = 0
    last_sent_at: float = -NEVER
    peers: dict[bytes, _Peer] = field(default_factory=dict)


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
        self._worth: dict[bytes, int] = {}
        self._newest: OrderedDict[tuple[str, bytes], tuple[int, int]] = OrderedDict()

    def interface_up(self, name: str, address: IPv6Address, *, now: float) -> list[Output]:
        """Said again with another address, everybody hears of that at once; the peers stay."""
        known = self._interfaces.get(name)
        if known is None:
            strangers, payers = (_Budget(CHECKS_PER_SECOND, CHECKS_PER_SECOND, CHECKS_PER_SECOND, now) for _ in "ab")
            newcomers = _Budget(NEWCOMERS_PER_SECOND, self._max_peers, self._max_peers, now)
            self._interfaces[name] = _Interface(address, now, strangers, payers, newcomers)
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

    def heard(self, interface: str, peer: bytes, *, now: float) -> None:
        """Its tunnel has brought something, which nobody but the key's owner can send: it is there, and no replay.

        As good as a beacon: those may be lost on a busy radio, or drowned by somebody who forges them.
        """
        entry = self._peer(interface, peer)
        if entry is not None:
            entry.is_proven = True
            entry.expires_at = max(entry.expires_at, now + entry.lifetime)

    def set_worth(self, worth_by_peer: Mapping[bytes, int]) -> None:
        """How much money has moved between us and each, either way. Whoever is not in it has paid nothing."""
        self._worth = dict(worth_by_peer)

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
            if not interface.peers:
                interface.beacon_at = min(interface.beacon_at, now + LONELY_INTERVAL)
        if any(interface.beacon_at <= now for interface in self._interfaces.values()):
            for name, interface in self._interfaces.items():
                if interface.beacon_at <= now + TOGETHER * (interface.beacon_at - interface.last_sent_at):
                    outputs.append(SendBeacon(name, self._beacon(interface, now=now)))
        return outputs

    def receive(self, interface: str, source: IPv6Address, data: bytes, *, now: float) -> list[Output]:
        """A datagram that came to the group."""
        known = self._interfaces.get(interface)
        if known is None:
            return []
        try:
            heard = wire.parse(data, source=source, network=self._network)
            self._check(interface, known, heard, data, now=now)
        except BeaconError as error:
            self.counters[error.counter] += 1
            return []
        return self._take(interface, known, heard, now=now)

    def _check(self, name: str, interface: _Interface, heard: Beacon, data: bytes, *, now: float) -> None:
        """Worth to be taken, and no forgery. Raises BeaconError."""
        if heard.public_key == self._identity.public_key:
            raise BeaconError("beacon_own")  # looped back, or somebody has our key
        peer = interface.peers.get(heard.public_key)
        place = (name, heard.public_key)
        newest = self._newest.get(place) if peer is None else peer.age
        if newest is not None and heard.age <= newest:
            raise BeaconError("beacon_stale")
        if peer is not None:
            checks = peer.checks
        else:
            checks = interface.payers_checks if heard.public_key in self._worth else interface.strangers_checks
        if not checks.take(now=now):
            raise BeaconError("beacon_rate")
        wire.verify(data, heard.public_key)
        self._newest[place] = heard.age
        self._newest.move_to_end(place)
        if len(self._newest) > MAX_REMEMBERED:
            self._newest.popitem(last=False)

    def _take(self, name: str, interface: _Interface, heard: Beacon, *, now: float) -> list[Output]:
        key = heard.public_key
        port = heard.port_by_tag.get(wire.peer_tag(self._identity.public_key)) or None
        found = PeerFound(name, key, heard.address, port)
        peer = interface.peers.get(key)
        outputs: list[Output] = []
        if peer is None:
            is_full = len(interface.peers) >= self._max_peers
            last = self._last(interface, before=(self._worth.get(key, 0), False, now), now=now) if is_full else None
            is_payer = key in self._worth
            if (is_full and last is None) or not (is_payer or interface.newcomers.take(now=now)):
                self.counters["beacon_limit"] += 1  # it will say it again
                return []
            if last is not None:
                del interface.peers[last]
                outputs.append(PeerLost(name, last))
            checks = _Budget(PEER_CHECKS_PER_SECOND, PEER_CHECKS, PEER_CHECKS, now)
            peer = interface.peers[key] = _Peer(found, heard.age, 0.0, NEVER, since=now, checks=checks)
            outputs.append(found)
            self._hasten(interface, now=now)  # it is to know of us as soon
        elif found != peer.found:
            # Somebody who has just come does not say our port; the old one is as good as none.
            peer.found = found
            outputs.append(found)
            if port is None:
                self._hasten(interface, now=now)  # it has been started anew, and knows nothing of us
        peer.age = heard.age
        peer.lifetime = min(heard.lifetime, LIFETIME_MAX)
        peer.expires_at = now + peer.lifetime
        return outputs

    def _last(self, interface: _Interface, *, before: tuple[int, bool, float], now: float) -> bytes | None:
        """Who has to give way to one who ranks so; None: nobody."""
        rank, key = min((self._rank(key, peer, now=now), key) for key, peer in interface.peers.items())
        return key if rank < before else None

    def _rank(self, key: bytes, peer: _Peer, *, now: float) -> tuple[int, bool, float]:
        """The greater is the better, see above. Of the unproven, the oldest had the most time to prove itself."""
        is_credible = peer.is_proven or now - peer.since < PROOF_TIMEOUT
        worth = self._worth.get(key, 0) if is_credible else 0
        return worth, peer.is_proven, -peer.since if peer.is_proven else peer.since

    @staticmethod
    def _hasten(interface: _Interface, *, now: float) -> None:
        at = max(now + ANSWER_TIMEOUT, interface.last_sent_at + BEACON_SPACING)
        interface.beacon_at = min(interface.beacon_at, at)

    def _beacon(self, interface: _Interface, *, now: float) -> bytes:
        self._number += 1
        sent = interface.beacons_sent
        usual = self._interval if interface.peers else min(LONELY_INTERVAL, self._interval)
        interval = EARLY_INTERVALS[sent] if sent < len(EARLY_INTERVALS) else usual
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
