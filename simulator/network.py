"""Many speakers in virtual time: one heap of events, keyed (time, sequence), so that a seed gives one history."""

from __future__ import annotations

import hashlib
import heapq
import random
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import IPv6Address, IPv6Network
from types import MappingProxyType
from typing import cast

import networkx as nx

from routing import codec
from routing.config import Mode
from routing.events import (
    AnnouncedPrice,
    BlockRoute,
    Input,
    InstallRoute,
    InterfaceDown,
    InterfaceUp,
    LearnedPrice,
    LinkKind,
    OriginateRoute,
    Output,
    Prefix,
    ReceivedPacket,
    RemoveRoute,
    SendPacket,
    TimerExpired,
)
from routing.recording import RecordedSpeaker, Write
from routing.rules import METRIC_INFINITY
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import Tlv, identity
from simulator.exact.pipe import UNLIMITED, Pipe
from simulator.exact.processors import Processors, Work
from simulator.hops import NextHops
from simulator.prefixes import HashedNetwork
from simulator.scenario import INTERNET
from simulator.trace import NO_ROUTE, RouteTrace

MTU = 1500
SHARED = "mesh"
HEADERS = 48  # IPv6 and UDP, in front of every packet
_LINK_LOCAL = int(IPv6Address("fe80::1"))
_OVERLAY = int(IPv6Address("fd00::"))
_EVERYWHERE = HashedNetwork("::/0")
_HEARD = struct.Struct("<dIII")  # when, sender, receiver, how many TLVs
_INSTALLED = struct.Struct("<dIIII")  # when, node, next hop, metric, price
_REMOVED = struct.Struct("<dIq")  # when, node, destination
_NOTES = 1000  # of the trace, that are digested together


@cache
def address_of(node: int) -> IPv6Address:
    """Link-local, the same on all of a node's links."""
    return IPv6Address(_LINK_LOCAL + node)


@cache
def prefix_of(node: int) -> IPv6Network:
    """Always the same object."""
    return _EVERYWHERE if node == INTERNET else HashedNetwork((_OVERLAY + node, 128))


@cache
def interface_to(peer: int) -> str:
    return f"to{peer}"


def node_at(address: IPv6Address) -> int:
    return int(address) - _LINK_LOCAL


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


@dataclass(frozen=True, slots=True)
class _Ready:
    """A packet that has had its time of a processor."""

    packet: _Packet


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], None]


_Event = _Start | _Packet | _Ready | _Call | None  # None: look at the node's timers
Tamper = Callable[[SendPacket], SendPacket]


@dataclass(slots=True)
class _Node:
    speaker: Speaker
    config: SpeakerConfig
    timer_at: float = float("inf")  # of the earliest entry in the heap
    is_up: bool = True
    incarnation: int = 0
    lowered: set[int] = field(default_factory=set)  # peers on whose side there is no carrier


@dataclass(frozen=True, slots=True)
class Options:
    """`latency` in seconds, one way, of every link whose edge does not say; nodes are switched on at random within
    `start_spread` seconds."""

    seed: int = 0
    latency: float = 0.001
    start_spread: float = 0.1
    wire: bool = False  # every packet through the codec, to bytes and back
    config: SpeakerConfig = field(default_factory=lambda: SpeakerConfig(router_id=b"\xff" * 7 + b"\0"))
    is_shared: bool = False  # a node has one interface, such as a radio, with all neighbours; else one for each link
    work: Work | None = None  # None: nodes take no time to think
    traces_routes: bool = True  # False: nobody asks for `Network.routes`


class Network:
    """Links along the edges of `graph`; each node announces one prefix.

    An edge has `cost`, and may have `latency`, `loss`, `bandwidth`, `queue` (`simulator.exact.pipe`) and `kind`
    ("wired" or "wireless"). Gateways announce the default route too, whose destination is `INTERNET`; leaves carry
    for nobody. `write_by_node`: where to say what goes into and comes out of a node's speaker (routing.recording).
    `config_by_node`: of nodes that differ from `options.config`; the router-id and the fee are set here.
    """

    def __init__(
        self,
        graph: nx.Graph,
        fee_by_node: Mapping[int, int],
        options: Options,
        *,
        gateways: Iterable[int] = (),
        leaves: Iterable[int] = (),
        config_by_node: Mapping[int, SpeakerConfig] = MappingProxyType({}),
        write_by_node: Mapping[int, Write] = MappingProxyType({}),
    ) -> None:
        self.graph = graph
        self.options = options
        self.now = 0.0
        self.traffic = Traffic()
        self.event_count = 0
        self.loops: list[tuple[float, int, list[int]]] = []  # when, to which destination, through which nodes
        self.gateways = frozenset(gateways)
        destinations = [*graph, INTERNET] if self.gateways else list(graph)
        self.next_hops = NextHops(max(graph, default=-1) + 1, destinations)
        self.counters: Counter[str] = Counter()
        self.routes = RouteTrace()
        self.tampers: dict[int, Tamper] = {}  # by node: what becomes of a packet before it leaves
        self.on_price: Callable[[int, AnnouncedPrice | LearnedPrice], None] | None = None
        self._changes: list[RouteChange] = []
        self._processors = Processors(options.work) if options.work is not None else None
        self._heap: list[tuple[float, int, int, _Event]] = []
        self._arrivals: deque[tuple[float, int, int, _Event]] = deque()  # packets, in order
        self._sequence = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._notes: list[bytes] = []  # what goes into it next
        self._node_by_prefix: dict[Prefix, int] = {prefix_of(node): node for node in destinations}
        # Hashing a prefix takes long, and but for what went through the codec it is always the same object.
        self._node_by_prefix_id: dict[int, int] = {identity(prefix_of(node)): node for node in destinations}
        self._node_by_address_id: dict[int, int] = {id(address_of(node)): node for node in graph}
        self._nodes: dict[int, _Node] = {}
        self._pipes: dict[tuple[int, int], Pipe] = {}
        for a, b in sorted(graph.edges):
            self._lay(a, b)
        start = random.Random(f"{options.seed}/start")
        barred = frozenset(leaves)
        for node in sorted(graph):
            config = replace(config_by_node.get(node, options.config), fee_msat_per_gb=fee_by_node[node])
            if node in barred:
                config = replace(config, mode=Mode.LEAF)
            at = start.uniform(0.0, options.start_spread)
            config = replace(config, router_id=(node + 1).to_bytes(8, "big"))
            self._nodes[node] = _Node(self._speaker(node, config, write_by_node.get(node), at), config)
            self._push(at, node, _Start())

    def _lay(self, a: int, b: int) -> None:
        """Both directions of the link along an edge."""
        edge = self.graph.edges[a, b]
        for ends in ((a, b), (b, a)):
            self._pipes[ends] = Pipe(
                edge.get("latency", self.options.latency),
                random.Random(f"{self.options.seed}/pipe/{ends[0]}/{ends[1]}"),
                edge.get("loss", 0.0),
                edge.get("bandwidth", UNLIMITED),
                edge.get("queue", 64_000),
            )

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
        self._digest_notes()
        return self._digest.hexdigest()

    def note(self, data: bytes) -> None:
        """Something that goes into the trace."""
        self._notes.append(data)
        if len(self._notes) >= _NOTES:
            self._digest_notes()

    def _digest_notes(self) -> None:
        self._digest.update(b"".join(self._notes))
        self._notes.clear()

    def speaker(self, node: int) -> Speaker:
        return self._nodes[node].speaker

    def is_up(self, node: int) -> bool:
        return self._nodes[node].is_up

    def is_link_up(self, a: int, b: int) -> bool:
        """Packets from `a` reach `b`, as far as they are not lost."""
        return (a, b) in self._pipes and self._pipes[a, b].is_up and self._nodes[a].is_up and self._nodes[b].is_up

    def interface(self, peer: int) -> str:
        """Of any node, towards this one."""
        return SHARED if self.options.is_shared else interface_to(peer)

    def pipe(self, a: int, b: int) -> Pipe:
        return self._pipes[a, b]

    def free_processors(self) -> None:
        """From now on nodes take no time to think (`Options.work`)."""
        self._processors = None

    def next_at(self) -> float:
        """When the next event is due."""
        at = self._heap[0][0] if self._heap else float("inf")
        return min(at, self._arrivals[0][0]) if self._arrivals else at

    def call_at(self, at: float, function: Callable[[], None]) -> None:
        """Something from outside the protocol happens then."""
        self._push(max(at, self.now), NO_ROUTE, _Call(function))

    def step(self) -> list[RouteChange]:
        """Handles the next event. Returns the changes of routes that came of it."""
        self.now, _, number, event = self._pop()
        self.event_count += 1
        if isinstance(event, _Call):
            event.function()
            return self._take_changes()
        node = self._nodes[number]
        if event is None:
            if self.now != node.timer_at:
                return []  # an entry that a nearer one has replaced
            if self._processors is not None and self._processors.busy_until(number) > self.now:
                node.timer_at = self._processors.busy_until(number)
                self._push(node.timer_at, number, None)
                return []
            node.timer_at = float("inf")
            due = node.speaker.next_deadline() if node.is_up else None
            outputs = node.speaker.handle(TimerExpired(), now=self.now) if due is not None and due <= self.now else []
        elif isinstance(event, _Packet) and self._processors is not None:
            self._push(self._processors.take(number, now=self.now), number, _Ready(event))
            return []
        elif isinstance(event, _Packet | _Ready):
            heard = event.packet if isinstance(event, _Ready) else event
            sender = heard.sender
            if not node.is_up or sender in node.lowered:
                return []
            packet = ReceivedPacket(self.interface(sender), address_of(sender), heard.tlvs, heard.is_multicast)
            outputs = node.speaker.handle(packet, now=self.now)
            self.note(_HEARD.pack(self.now, sender, number, len(heard.tlvs)))
        else:
            outputs = self._switch_on(number, node.speaker)
        self._apply(number, outputs)
        self._arm(number, node)
        return self._take_changes()

    def give(self, number: int, event: Input) -> None:
        """An input from outside, such as `SetFee`. Nothing while the node is off."""
        node = self._nodes[number]
        if node.is_up:
            self._apply(number, node.speaker.handle(event, now=self.now))
            self._arm(number, node)

    def _take_changes(self) -> list[RouteChange]:
        changes, self._changes = self._changes, []
        return changes

    def _switch_on(self, number: int, speaker: Speaker) -> list[Output]:
        outputs = speaker.handle(OriginateRoute(prefix_of(number)), now=self.now)
        if number in self.gateways:
            outputs += speaker.handle(OriginateRoute(_EVERYWHERE), now=self.now)
        for peer in sorted(self.graph[number])[: 1 if self.options.is_shared else None]:
            if peer not in self._nodes[number].lowered:
                outputs += speaker.handle(self._interface(number, peer), now=self.now)
        return outputs

    def _interface(self, number: int, peer: int) -> InterfaceUp:
        edge = self.graph.edges[number, peer]
        kind = LinkKind(edge.get("kind", "wired"))
        return InterfaceUp(self.interface(peer), address_of(number), kind=kind, mtu=MTU, cost=edge["cost"])

    # --- what breaks, and is mended

    def fail_node(self, number: int, *, carrier_lost: bool = False) -> None:
        """Power off. Its packets that are under way still arrive."""
        node = self._nodes[number]
        if not node.is_up:
            return
        node.is_up = False
        for destination in self.next_hops.destinations:
            self._drop_route(number, destination)
        for peer in sorted(self.graph[number]) if carrier_lost else ():
            self._lower(peer, number)

    def restore_node(self, number: int) -> None:
        """Power on: a new speaker, which knows nothing, under a new router-id as in meshd."""
        node = self._nodes[number]
        if node.is_up:
            return
        node.is_up = True
        node.incarnation += 1
        router_id = node.incarnation.to_bytes(4, "big") + (number + 1).to_bytes(4, "big")
        node.config = replace(node.config, router_id=router_id)
        rng = random.Random(f"{self.options.seed}/{number}/{node.incarnation}")
        node.speaker = Speaker(node.config, rng=rng, now=self.now)
        for peer in sorted(self.graph[number]):
            self._raise(peer, number)
        self._apply(number, self._switch_on(number, node.speaker))
        self._arm(number, node)

    def fail_link(self, a: int, b: int, *, carrier_lost: bool = False) -> None:
        for here, there in ((a, b), (b, a)):
            self._pipes[here, there].is_up = False
            if carrier_lost:
                self._lower(here, there)

    def restore_link(self, a: int, b: int) -> None:
        for here, there in ((a, b), (b, a)):
            self._pipes[here, there].is_up = True
        for here, there in ((a, b), (b, a)):
            self._raise(here, there)

    def add_link(self, a: int, b: int, **attributes: object) -> None:
        """A new edge, such as one between nodes that came into each other's reach."""
        self.graph.add_edge(a, b, **attributes)
        self._lay(a, b)
        for here, there in ((a, b), (b, a)):
            self._nodes[here].lowered.discard(there)
            self.give(here, self._interface(here, there))

    def remove_link(self, a: int, b: int) -> None:
        """Nobody notices but by silence."""
        self.graph.remove_edge(a, b)
        for here, there in ((a, b), (b, a)):
            del self._pipes[here, there]

    def raise_end(self, number: int, peer: int) -> None:
        """One end of a link that failed with loss of carrier: packets can arrive at it again."""
        for ends in ((number, peer), (peer, number)):
            self._pipes[ends].is_up = True
        self._raise(number, peer)

    def set_cost(self, a: int, b: int, cost: int) -> None:
        for here, there in ((a, b), (b, a)):
            self.set_end_cost(here, there, cost)

    def set_end_cost(self, number: int, peer: int, cost: int) -> None:
        """Of one end of a link, which the other end's packets take."""
        self.graph.edges[number, peer]["cost"] = cost
        if peer not in self._nodes[number].lowered:
            self.give(number, self._interface(number, peer))

    def _lower(self, number: int, peer: int) -> None:
        node = self._nodes[number]
        if peer not in node.lowered:
            node.lowered.add(peer)
            self.give(number, InterfaceDown(self.interface(peer)))

    def _raise(self, number: int, peer: int) -> None:
        node = self._nodes[number]
        if peer in node.lowered:
            node.lowered.discard(peer)
            self.give(number, self._interface(number, peer))

    # --- outputs

    def _push(self, at: float, node: int, event: _Event) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, node, event))

    def _push_packet(self, at: float, node: int, packet: _Packet) -> None:
        """Where all latencies are the same, packets arrive in the order in which they are sent: that needs no heap."""
        if self._arrivals and at < self._arrivals[-1][0]:
            self._push(at, node, packet)
        else:
            self._sequence += 1
            self._arrivals.append((at, self._sequence, node, packet))

    def _pop(self) -> tuple[float, int, int, _Event]:
        if not self._arrivals or (self._heap and self._heap[0] < self._arrivals[0]):
            return heapq.heappop(self._heap)
        return self._arrivals.popleft()

    def _arm(self, number: int, node: _Node) -> None:
        """One entry in the heap counts for each node: that at `timer_at`. Others are passed over when they come up."""
        due = node.speaker.next_deadline() if node.is_up else None
        if due is not None and due < node.timer_at:
            node.timer_at = max(due, self.now)
            self._push(node.timer_at, number, None)

    def _apply(self, number: int, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, InstallRoute):  # by far the most frequent
                self._install(number, output)
            elif isinstance(output, SendPacket):
                self._send(number, output)
            elif isinstance(output, RemoveRoute | BlockRoute):
                destination = self._destination(output.prefix)
                self.note(_REMOVED.pack(self.now, number, destination))
                self._drop_route(number, destination)
            elif isinstance(output, LearnedPrice | AnnouncedPrice) and self.on_price is not None:
                self.on_price(number, output)

    def _destination(self, prefix: Prefix) -> int:
        found = self._node_by_prefix_id.get(identity(prefix))
        return self._node_by_prefix[prefix] if found is None else found

    def _drop_route(self, number: int, destination: int) -> None:
        if self.next_hops.remove(destination, number):
            self._changes.append(RouteChange(self.now, number, destination, None))
            self._note_route(destination, number, NO_ROUTE, METRIC_INFINITY, 0)

    def _install(self, node: int, route: InstallRoute) -> None:
        known = self._node_by_address_id.get(id(route.next_hop))
        via = node_at(cast(IPv6Address, route.next_hop)) if known is None else known
        metric, price = route.metric, route.price_msat_per_gb
        self.note(_INSTALLED.pack(self.now, node, via, metric, price))
        destination = self._destination(route.prefix)
        self._note_route(destination, node, via, metric, price)
        loop = self.next_hops.set(destination, node, via, metric)
        if loop is not None:
            self._changes.append(RouteChange(self.now, node, destination, via))
            if loop:
                self.loops.append((self.now, destination, loop))

    def _note_route(self, destination: int, node: int, next_hop: int, metric: int, price: int) -> None:
        if self.options.traces_routes:
            self.routes.add(destination, at=self.now, node=node, next_hop=next_hop, metric=metric, price=price)

    def inject(self, sender: int, packet: SendPacket) -> None:
        """A packet that the node's speaker did not ask for."""
        if self._nodes[sender].is_up:
            self._transmit(sender, packet)

    def _send(self, sender: int, packet: SendPacket) -> None:
        tamper = self.tampers.get(sender)
        self._transmit(sender, packet if tamper is None else tamper(packet))

    def _transmit(self, sender: int, packet: SendPacket) -> None:
        """Over a point-to-point link even a multicast has one receiver. What a shared medium carries to several is
        counted once for each."""
        if self.options.is_shared:
            everybody = packet.destination is None
            for peer in sorted(self.graph[sender]) if everybody else (node_at(cast(IPv6Address, packet.destination)),):
                self._deliver(sender, peer, packet)
        else:
            self._deliver(sender, int(packet.interface[2:]), packet)

    def _deliver(self, sender: int, receiver: int, packet: SendPacket) -> None:
        pipe = self._pipes.get((sender, receiver))
        if pipe is None:
            return  # the link has gone
        self.traffic.tlvs += len(packet.tlvs)
        is_multicast = packet.destination is None
        if not self.options.wire and pipe.bandwidth == UNLIMITED:
            self.traffic.packets += 1
            at = pipe.send(0, now=self.now)
            if at is not None:
                self._push_packet(at, receiver, _Packet(sender, is_multicast, packet.tlvs))
            return
        for data in codec.pack(packet.tlvs, mtu=MTU):
            self.traffic.packets += 1
            self.traffic.bytes += len(data) + HEADERS
            self.note(data)
            at = pipe.send(len(data) + HEADERS, now=self.now)
            if at is not None:
                heard = _Packet(sender, is_multicast, codec.decode(data, source=address_of(sender)))
                self._push_packet(at, receiver, heard)
