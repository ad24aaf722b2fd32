"""Many speakers in virtual time: one heap of events, keyed (time, sequence), so that a seed gives one history."""

from __future__ import annotations

import hashlib
import heapq
import random
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from types import MappingProxyType

import networkx as nx

from routing import codec
from routing.events import (
    BlockRoute,
    InstallRoute,
    InterfaceUp,
    OriginateRoute,
    Output,
    Prefix,
    ReceivedPacket,
    RemoveRoute,
    SendPacket,
    TimerExpired,
)
from routing.recording import RecordedSpeaker, Write
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import Tlv

MTU = 1500
HEADERS = 48  # IPv6 and UDP, in front of every packet
_LINK_LOCAL = int(IPv6Address("fe80::1"))
_OVERLAY = int(IPv6Address("fd00::"))


def address_of(node: int) -> IPv6Address:
    """Link-local, the same on all of a node's links."""
    return IPv6Address(_LINK_LOCAL + node)


def prefix_of(node: int) -> IPv6Network:
    return IPv6Network((_OVERLAY + node, 128))


@dataclass(slots=True)
class Traffic:
    packets: int = 0
    tlvs: int = 0
    bytes: int = 0  # IPv6 and UDP headers included; only counted with `wire`


@dataclass(frozen=True, slots=True)
class RouteChange:
    at: float
    node: int
    destination: int
    next_hop: int | None  # None: removed


@dataclass(frozen=True, slots=True)
class _Start:
    """The node is switched on."""


@dataclass(frozen=True, slots=True)
class _Packet:
    sender: int
    is_multicast: bool
    tlvs: tuple[Tlv, ...]


_Event = _Start | _Packet | None  # None: look at the node's timers


@dataclass(slots=True)
class _Node:
    speaker: Speaker
    timer_at: float = float("inf")  # of the earliest entry in the heap


@dataclass(frozen=True, slots=True)
class Options:
    """`latency` in seconds, one way, of every link; nodes are switched on at random within `start_spread` seconds."""

    seed: int = 0
    latency: float = 0.001
    start_spread: float = 0.1
    wire: bool = False  # every packet through the codec, to bytes and back
    config: SpeakerConfig = field(default_factory=lambda: SpeakerConfig(router_id=b"\xff" * 7 + b"\0"))


class Network:
    """Point-to-point links along the edges of `graph`; each node announces one prefix.

    `write_by_node`: where to say what goes into and comes out of a node's speaker (routing.recording).
    """

    def __init__(
        self,
        graph: nx.Graph,
        fee_by_node: Mapping[int, int],
        options: Options,
        *,
        write_by_node: Mapping[int, Write] = MappingProxyType({}),
    ) -> None:
        self.graph = graph
        self.options = options
        self.now = 0.0
        self.traffic = Traffic()
        self.event_count = 0
        self.loops: list[tuple[float, int, list[int]]] = []  # when, to which destination, through which nodes
        self.next_hop: dict[int, dict[int, int]] = {node: {} for node in graph}  # by destination, then by node
        self.counters: Counter[str] = Counter()
        self._heap: list[tuple[float, int, int, _Event]] = []
        self._sequence = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._node_by_address: dict[IPv4Address | IPv6Address, int] = {address_of(node): node for node in graph}
        self._node_by_prefix: dict[Prefix, int] = {prefix_of(node): node for node in graph}
        self._nodes: dict[int, _Node] = {}
        start = random.Random(f"{options.seed}/start")
        for node in sorted(graph):
            config = replace(options.config, router_id=(node + 1).to_bytes(8, "big"), fee_msat_per_gb=fee_by_node[node])
            at = start.uniform(0.0, options.start_spread)
            self._nodes[node] = _Node(self._speaker(node, config, write_by_node.get(node), at))
            self._push(at, node, _Start())

    def _speaker(self, node: int, config: SpeakerConfig, write: Write | None, at: float) -> Speaker:
        seed = f"{self.options.seed}/{node}"
        if write is None:
            return Speaker(config, rng=random.Random(seed), now=at)
        origin = {"program": "meshsim", "node": str(node)}
        return RecordedSpeaker(config, seed=seed, now=at, write=write, origin=origin)

    @property
    def trace(self) -> str:
        """Of all that happened so far: of two runs it is the same only if they were. With `wire` every octet sent goes
        into it; without, the times, the ends and sizes of packets, and the changes of routes."""
        return self._digest.hexdigest()

    def speaker(self, node: int) -> Speaker:
        return self._nodes[node].speaker

    def next_at(self) -> float:
        """When the next event is due."""
        return self._heap[0][0] if self._heap else float("inf")

    def step(self) -> list[RouteChange]:
        """Handles the next event. Returns the changes of routes that came of it."""
        self.now, _, number, event = heapq.heappop(self._heap)
        self.event_count += 1
        node = self._nodes[number]
        match event:
            case None:
                node.timer_at = float("inf")
                due = node.speaker.next_deadline()
                outputs = (
                    node.speaker.handle(TimerExpired(), now=self.now) if due is not None and due <= self.now else []
                )
            case _Packet(sender, is_multicast, tlvs):
                packet = ReceivedPacket(f"to{sender}", address_of(sender), tlvs, is_multicast)
                outputs = node.speaker.handle(packet, now=self.now)
                self._digest.update(struct.pack("<dIII", self.now, sender, number, len(tlvs)))
            case _Start():
                outputs = self._switch_on(number, node.speaker)
        changes = self._apply(number, outputs)
        self._arm(number, node)
        return changes

    def _switch_on(self, number: int, speaker: Speaker) -> list[Output]:
        outputs = speaker.handle(OriginateRoute(prefix_of(number)), now=self.now)
        for peer in sorted(self.graph[number]):
            interface = InterfaceUp(
                f"to{peer}", address_of(number), mtu=MTU, cost=self.graph.edges[number, peer]["cost"]
            )
            outputs += speaker.handle(interface, now=self.now)
        return outputs

    def _push(self, at: float, node: int, event: _Event) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, node, event))

    def _arm(self, number: int, node: _Node) -> None:
        """One entry in the heap for each node's timers; a later deadline is found out when the entry comes up."""
        due = node.speaker.next_deadline()
        if due is not None and due < node.timer_at:
            node.timer_at = max(due, self.now)
            self._push(node.timer_at, number, None)

    def _apply(self, number: int, outputs: list[Output]) -> list[RouteChange]:
        changes = []
        for output in outputs:
            match output:
                case SendPacket():
                    self._send(number, output)
                case InstallRoute(prefix, _, next_hop, metric, price):
                    via = self._node_by_address[next_hop]
                    self._digest.update(struct.pack("<dIIII", self.now, number, via, metric, price))
                    if change := self._set_next_hop(number, self._node_by_prefix[prefix], via):
                        changes.append(change)
                case RemoveRoute(prefix) | BlockRoute(prefix):
                    destination = self._node_by_prefix[prefix]
                    self._digest.update(struct.pack("<dII", self.now, number, destination))
                    if self.next_hop[destination].pop(number, None) is not None:
                        changes.append(RouteChange(self.now, number, destination, None))
        return changes

    def _set_next_hop(self, node: int, destination: int, via: int) -> RouteChange | None:
        hops = self.next_hop[destination]
        if hops.get(node) == via:
            return None
        hops[node] = via
        # A loop that was not there before goes through the node that changed.
        path = [node]
        while (hop := hops.get(path[-1])) is not None:
            if hop == node:
                self.loops.append((self.now, destination, path))
                break
            path.append(hop)
            if len(path) > len(hops) + 1:
                break  # an older loop further on: counted when it formed
        return RouteChange(self.now, node, destination, via)

    def _send(self, sender: int, packet: SendPacket) -> None:
        """Over a point-to-point link even a multicast has one receiver."""
        receiver = int(packet.interface.removeprefix("to"))
        self.traffic.tlvs += len(packet.tlvs)
        at = self.now + self.options.latency
        is_multicast = packet.destination is None
        if not self.options.wire:
            self.traffic.packets += 1
            self._push(at, receiver, _Packet(sender, is_multicast, packet.tlvs))
            return
        for data in codec.pack(packet.tlvs, mtu=MTU):
            self.traffic.packets += 1
            self.traffic.bytes += len(data) + HEADERS
            self._digest.update(data)
            decoded = codec.decode(data, source=address_of(sender))
            self._push(at, receiver, _Packet(sender, is_multicast, decoded))
