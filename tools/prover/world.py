"""Speakers on simulated segments in virtual time: loss, duplicates, reordering, cuts, restarts.

A segment joins two or more interfaces: one veth pair, or a radio cell. After every change of a next hop the forwarding
graph of that prefix is searched for a loop through the node that changed; no other loop can have come about by it.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from routing import codec
from routing.config import Mode
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
    SendPacket,
    SetFee,
    SetPolicy,
    TimerExpired,
    WithdrawRoute,
)
from routing.filters import Policy, Rule
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import RouteKey, route_key

MTU = 1500
HOLD_INTERVALS = 3.5  # of updates: so long a neighbour keeps a route that it hears no more of
SPEAK_MAX = 5.0  # seconds that a packet may be under way, and more


def address_of(node: int, segment: int) -> IPv6Address:
    return IPv6Address(0xFE80 << 112 | (segment + 1) << 16 | (node + 1))


def address4_of(node: int, segment: int) -> IPv4Address:
    return IPv4Address(10 << 24 | (segment + 1) << 8 | (node + 1))


@dataclass
class Segment:
    """`cost` by member; `delay` by member, from it to all others: each direction has its own."""

    number: int
    kind: LinkKind
    cost: dict[int, int]
    delay: dict[int, float]
    has_ipv4: bool = False
    loss: float = 0.0
    duplicate: float = 0.0
    jitter: float = 0.0  # seconds, at random on each packet: more than the distance of two packets reorders them
    is_cut: bool = False
    deaf: set[tuple[int, int]] = field(default_factory=set)  # (sender, receiver) who does not hear it
    import_added: dict[int, int] = field(default_factory=dict)  # by filters of that member, to each metric
    export_added: dict[int, int] = field(default_factory=dict)

    def name(self) -> str:
        return f"s{self.number}"


@dataclass(frozen=True, slots=True)
class Loop:
    """`kind`: "single" is a violation. The two others are allowed (docs/proof.md):

    "shared": of a prefix that has, or had, several origins (RFC 8966 section 1.1: may come, and passes);
    "restart": through a node that forgot its feasibility distances no longer ago than a neighbour may rely on them.
    """

    kind: str
    at: float
    key: RouteKey
    nodes: tuple[int, ...]


@dataclass
class World:
    config: SpeakerConfig
    seed: str
    wire: bool = False  # packets go through the codec, to octets and back
    now: float = 0.0
    speakers: dict[int, Speaker] = field(default_factory=dict)  # those that are switched on
    segments: list[Segment] = field(default_factory=list)
    fees: dict[int, int] = field(default_factory=dict)
    leaves: frozenset[int] = frozenset()  # they carry for nobody
    origins: dict[RouteKey, dict[int, int]] = field(default_factory=dict)  # metric by node
    next_hops: dict[RouteKey, dict[int, int]] = field(default_factory=dict)
    changes: int = 0  # of next hops to another node, each checked
    removals: int = 0
    packets: int = 0
    loops: list[Loop] = field(default_factory=list)
    open_loops: dict[RouteKey, list[Loop]] = field(default_factory=dict)
    longest_loop: float = 0.0  # of those that are allowed

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}/world")
        self._queue: list[tuple[float, int, int, ReceivedPacket | None]] = []  # None: look at the timers
        self._serial = 0
        self._wakes: dict[int, float] = {}
        self._node_at: dict[IPv4Address | IPv6Address, int] = {}
        self._restarted_at: dict[int, float] = {}
        self._router_ids: dict[int, bytes] = {}
        self._routers_of: dict[RouteKey, set[bytes]] = {}
        self._starts = 0

    # What happens to nodes

    def switch_on(self, node: int, *, is_fresh: bool = True, seqno: int = 0) -> None:
        """Its prefixes are in `origins`. Not `is_fresh`: with its former router-id."""
        self._starts += 1
        if is_fresh or node not in self._router_ids:
            self._router_ids[node] = (node + 1 << 32 | self._starts).to_bytes(8, "big")
        config = replace(
            self.config,
            router_id=self._router_ids[node],
            initial_seqno=seqno & 0xFFFF,
            fee_msat_per_gb=self.fees[node],
            mode=Mode.LEAF if node in self.leaves else Mode.ROUTER,
            policy=self._policy(node),
        )
        self.speakers[node] = Speaker(config, rng=random.Random(f"{self.seed}/{node}/{self._starts}"), now=self.now)
        for key, metric_by_node in self.origins.items():
            if node in metric_by_node:
                self.originate(node, key, metric_by_node[node])
        for segment in self.segments:
            if node in segment.cost and not segment.is_cut:
                self.raise_interface(node, segment)

    def switch_off(self, node: int) -> int:
        """Without a word. Returns its seqno. Packets under way to it wait for nobody, unless it is back before them."""
        seqno = self.speakers.pop(node).seqno
        self._wakes.pop(node, None)
        self._restarted_at[node] = self.now
        for key in self.next_hops:
            self._clear_next_hop(node, key)
        return seqno

    def set_fee(self, node: int, fee: int) -> None:
        self.fees[node] = fee
        self.feed(node, SetFee(fee))

    def originate(self, node: int, key: RouteKey, metric: int) -> None:
        self.origins.setdefault(key, {})[node] = metric
        self._routers_of.setdefault(key, set()).add(self._router_ids[node])
        prefix, source_prefix = key if isinstance(key, tuple) else (key, None)
        self.feed(node, OriginateRoute(prefix, metric, source_prefix))

    def withdraw(self, node: int, key: RouteKey) -> None:
        del self.origins[key][node]
        prefix, source_prefix = key if isinstance(key, tuple) else (key, None)
        self.feed(node, WithdrawRoute(prefix, source_prefix))

    def set_filters(self, node: int, segment: Segment, import_added: int, export_added: int) -> None:
        """What this node adds to the metrics that it hears there, and to those that it announces there."""
        segment.import_added[node], segment.export_added[node] = import_added, export_added
        self.feed(node, SetPolicy(self._policy(node)))

    def _policy(self, node: int) -> Policy:
        imports = [Rule(s.import_added[node], interface=s.name()) for s in self.segments if s.import_added.get(node)]
        exports = [Rule(s.export_added[node], interface=s.name()) for s in self.segments if s.export_added.get(node)]
        return Policy(tuple(imports), tuple(exports))

    # What happens to segments

    def raise_interface(self, node: int, segment: Segment) -> None:
        address = address_of(node, segment.number)
        self._node_at[address] = node
        address4 = address4_of(node, segment.number) if segment.has_ipv4 else None
        if address4 is not None:
            self._node_at[address4] = node
        event = InterfaceUp(
            segment.name(), address, kind=segment.kind, mtu=MTU, cost=segment.cost[node], address4=address4
        )
        self.feed(node, event)

    def lower_interface(self, node: int, segment: Segment) -> None:
        self.feed(node, InterfaceDown(segment.name()))

    # Time

    def feed(self, node: int, event: Input) -> None:
        speaker = self.speakers.get(node)
        if speaker is None:
            return
        for output in speaker.handle(event, now=self.now):
            self.obey(node, output)
        deadline = speaker.next_deadline()
        if deadline is not None and self._wakes.get(node) != deadline:
            at = deadline if deadline > self.now else self.now
            self._wakes[node] = at
            self._push(at, node, None)

    def obey(self, node: int, output: Output) -> None:
        if isinstance(output, SendPacket):
            self._carry(node, output)
        elif isinstance(output, InstallRoute):
            self._set_next_hop(node, output)
        elif isinstance(output, RemoveRoute | BlockRoute):
            self._clear_next_hop(node, route_key(output.prefix, output.source_prefix))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        queue = self._queue
        while queue and queue[0][0] <= end:
            at, _, node, event = heapq.heappop(queue)
            self.now = at
            if event is not None:
                self.feed(node, event)
            elif self._wakes.get(node) == at:
                del self._wakes[node]
                self.feed(node, TimerExpired())
        self.now = end

    def _push(self, at: float, node: int, event: ReceivedPacket | None) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (at, self._serial, node, event))

    # Packets

    def _carry(self, sender: int, packet: SendPacket) -> None:
        segment = self.segments[int(packet.interface[1:])]
        self.packets += 1
        if segment.is_cut:
            return
        source = address_of(sender, segment.number)
        is_multicast = packet.destination is None
        if self.wire:
            octets = codec.pack(packet.tlvs, mtu=MTU, source=source)
            portions = [codec.decode(portion, source=source) for portion in octets]
        else:
            portions = [packet.tlvs]
        receivers = segment.cost if packet.destination is None else (self._node_at[packet.destination],)
        for tlvs in portions:
            received = ReceivedPacket(packet.interface, source, tlvs, is_multicast)
            for receiver in receivers:
                if receiver != sender:
                    self._deliver(segment, sender, receiver, received)

    def _deliver(self, segment: Segment, sender: int, receiver: int, packet: ReceivedPacket) -> None:
        random_number = self.rng.random
        if (segment.loss and random_number() < segment.loss) or (sender, receiver) in segment.deaf:
            return
        copies = 2 if segment.duplicate and random_number() < segment.duplicate else 1
        for _ in range(copies):
            delay = segment.delay[sender]
            if segment.jitter:
                delay += segment.jitter * random_number()
            self._push(self.now + delay, receiver, packet)

    # Loops

    def _set_next_hop(self, node: int, route: InstallRoute) -> None:
        key = route_key(route.prefix, route.source_prefix)
        peer = self._node_at[route.next_hop]
        hops = self.next_hops.setdefault(key, {})
        if hops.get(node) == peer:
            return
        hops[node] = peer
        self.changes += 1
        if self.open_loops:
            self._close_loops(key)
        path = [node]
        hop: int | None = peer
        while hop is not None and hop != node and len(path) <= len(hops):
            path.append(hop)
            hop = hops.get(hop)
        if hop == node:
            self._note_loop(key, tuple(path))

    def _clear_next_hop(self, node: int, key: RouteKey) -> None:
        if self.next_hops.get(key, {}).pop(node, None) is None:
            return
        self.removals += 1
        if self.open_loops:
            self._close_loops(key)

    def _note_loop(self, key: RouteKey, nodes: tuple[int, ...]) -> None:
        kind = "single"
        since = self.now - HOLD_INTERVALS * self.config.update_interval - SPEAK_MAX
        if len(self._routers_of[key]) > 1:
            kind = "shared"
        elif any(self._restarted_at.get(node, -1.0) >= max(0.0, since) for node in nodes):
            kind = "restart"
        loop = Loop(kind, self.now, key, nodes)
        self.loops.append(loop)
        self.open_loops.setdefault(key, []).append(loop)

    def _close_loops(self, key: RouteKey) -> None:
        """Those of which a node has turned away."""
        hops = self.next_hops[key]
        standing = []
        for loop in self.open_loops.pop(key, ()):
            after = (*loop.nodes[1:], loop.nodes[0])
            if all(hops.get(a) == b for a, b in zip(loop.nodes, after, strict=True)):
                standing.append(loop)
            else:
                self.longest_loop = max(self.longest_loop, self.now - loop.at)
        if standing:
            self.open_loops[key] = standing
