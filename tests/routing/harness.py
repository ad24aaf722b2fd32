"""Speakers joined by simulated links in virtual time: delay, loss, cuts. No I/O, no real clock.

After every change of a next hop the forwarding graph of that prefix is searched for a loop.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network

from routing.events import (
    BlockRoute,
    Input,
    InstallRoute,
    InterfaceDown,
    InterfaceUp,
    LinkKind,
    OriginateRoute,
    Output,
    ReceivedPacket,
    RemoveRoute,
    RttCost,
    SendPacket,
    SetFee,
    TimerExpired,
)
from routing.rules import price_metric
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import Hello, RouteKey, route_key


def node_prefix(node: int) -> IPv6Network:
    return IPv6Network((0xFD << 120 | node + 1, 128))


def link_local(node: int, peer: int) -> IPv6Address:
    """Address of `node` on its link to `peer`; nodes are numbered below 2^16."""
    return IPv6Address(0xFE80 << 112 | (node + 1) << 16 | (peer + 1))


@dataclass
class Link:
    a: int
    b: int
    cost: int
    delay: float
    loss: float = 0.0
    is_cut: bool = False
    kind: LinkKind = LinkKind.WIRED
    rtt: RttCost | None = None

    def other(self, node: int) -> int:
        return self.b if node == self.a else self.a


@dataclass
class Network:
    """Nodes are small integers; every link is an interface of its own at both ends, named after the peer."""

    seed: int = 0
    config: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    speakers: dict[int, Speaker] = field(default_factory=dict)
    links: dict[tuple[int, int], Link] = field(default_factory=dict)
    next_hops: dict[RouteKey, dict[int, int]] = field(default_factory=dict)
    fees: dict[int, int] = field(default_factory=dict)
    changes: int = 0  # of next hops, each checked for loops
    packets: int = 0
    update_loss: float = 0.0  # of packets without a Hello: link costs stay as they are

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._queue: list[tuple[float, int, int, Input]] = []
        self._serial = 0
        self._wakes: dict[int, float] = {}

    def add_node(self, node: int, *, fee: int = 0, **config: object) -> None:
        settings = SpeakerConfig(router_id=(node + 1).to_bytes(8, "big"), fee_msat_per_gb=fee)
        for key, value in (self.config | config).items():
            object.__setattr__(settings, key, value)
        self.speakers[node] = Speaker(settings, rng=random.Random(self.rng.random()), now=self.now)
        self.fees[node] = fee
        self.feed(node, OriginateRoute(node_prefix(node)))

    def add_link(
        self,
        a: int,
        b: int,
        *,
        cost: int = 96,
        delay: float = 0.001,
        kind: LinkKind = LinkKind.WIRED,
        rtt: RttCost | None = None,
    ) -> Link:
        link = self.links[min(a, b), max(a, b)] = Link(a, b, cost, delay, kind=kind, rtt=rtt)
        self._raise(link)
        return link

    def _raise(self, link: Link) -> None:
        for node in (link.a, link.b):
            peer = link.other(node)
            address = link_local(node, peer)
            self.feed(node, InterfaceUp(f"to{peer}", address, kind=link.kind, cost=link.cost, rtt=link.rtt))

    def link(self, a: int, b: int) -> Link:
        return self.links[min(a, b), max(a, b)]

    def carrier_lost(self, a: int, b: int) -> None:
        """Both ends notice."""
        self.link(a, b).is_cut = True
        self.feed(a, InterfaceDown(f"to{b}"))
        self.feed(b, InterfaceDown(f"to{a}"))

    def carrier_found(self, a: int, b: int) -> None:
        link = self.link(a, b)
        link.is_cut = False
        self._raise(link)

    def set_fee(self, node: int, fee: int) -> None:
        self.fees[node] = fee
        self.feed(node, SetFee(fee))

    def feed(self, node: int, event: Input) -> None:
        for output in self.speakers[node].handle(event, now=self.now):
            self._obey(node, output)
        self._wake(node)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            at, _, node, event = heapq.heappop(self._queue)
            self.now = at
            if isinstance(event, TimerExpired):
                if self._wakes.get(node) != at:
                    continue  # superseded
                del self._wakes[node]
            elif isinstance(event, ReceivedPacket) and self.link(node, int(event.interface[2:])).is_cut:
                continue
            self.feed(node, event)
        self.now = end

    def path(self, source: int, destination: int) -> list[int] | None:
        """Nodes passed, or None: there is no complete path."""
        hops = self.next_hops.get(node_prefix(destination), {})
        path = [source]
        while path[-1] != destination:
            if path[-1] not in hops:
                return None
            path.append(hops[path[-1]])
        return path

    def path_cost(self, path: list[int], price_weight: float = 256.0) -> int:
        links = sum(self.link(a, b).cost for a, b in itertools.pairwise(path))
        return links + sum(price_metric(self.fees[node], price_weight) for node in path[1:-1])

    def _wake(self, node: int) -> None:
        deadline = self.speakers[node].next_deadline()
        if deadline is None or self._wakes.get(node) == deadline:
            return
        at = max(deadline, self.now)
        self._wakes[node] = at
        self._push(at, node, TimerExpired())

    def _push(self, at: float, node: int, event: Input) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (at, self._serial, node, event))

    def _obey(self, node: int, output: Output) -> None:
        match output:
            case SendPacket():
                self._carry(node, output)
            case InstallRoute():
                key = route_key(output.prefix, output.source_prefix)
                self._set_next_hop(node, key, int(output.interface[2:]))
            case BlockRoute() | RemoveRoute():
                self._set_next_hop(node, route_key(output.prefix, output.source_prefix), None)

    def _carry(self, node: int, packet: SendPacket) -> None:
        self.packets += 1
        peer = int(packet.interface[2:])
        link = self.link(node, peer)
        if link.is_cut or self.rng.random() < link.loss:
            return
        has_hello = any(isinstance(tlv, Hello) for tlv in packet.tlvs)
        if self.update_loss and not has_hello and self.rng.random() < self.update_loss:
            return
        received = ReceivedPacket(f"to{node}", link_local(node, peer), packet.tlvs, packet.destination is None)
        self._push(self.now + link.delay, peer, received)

    def _set_next_hop(self, node: int, prefix: RouteKey, peer: int | None) -> None:
        hops = self.next_hops.setdefault(prefix, {})
        if peer is None:
            hops.pop(node, None)  # it may have been blocked before
            return
        hops[node] = peer
        self.changes += 1
        seen = {node}
        while peer in hops:
            assert peer not in seen, f"t={self.now}: forwarding loop to {prefix} through {seen}"
            seen.add(peer)
            peer = hops[peer]
        assert peer != node, f"t={self.now}: forwarding loop to {prefix}: {seen}"
