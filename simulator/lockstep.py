"""Real speakers through the schedule of simulator.batch: one tick for each message, no timers, no losses.

Speakers say at once what they learn, are never sticky, and repeat nothing for minutes. At one time messages are heard
by receiver, then by sender, then in the order in which they were sent. Then the routes to each destination change as if
there were no others, and the trace is the batch engine's. Whatever leaves this part of the protocol (a timer that
sends again, a budget that refuses) is counted in `strays`: what comes after the first one cannot be compared.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import networkx as nx

from routing.events import (
    BlockRoute,
    InstallRoute,
    InterfaceDown,
    InterfaceUp,
    OriginateRoute,
    Output,
    Prefix,
    ReceivedPacket,
    RemoveRoute,
    SendPacket,
    SetFee,
    TimerExpired,
)
from routing.rules import METRIC_INFINITY
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import SeqnoRequest, Tlv, Update
from simulator.batch.engine import TICK, Step
from simulator.batch.kernel import STEP_TICKS
from simulator.network import address_of, prefix_of
from simulator.trace import NO_ROUTE, RouteTrace

MTU = 1 << 30  # one packet takes all
BEGIN_AT = 250.0  # links are up, earlier selves are forgotten (ADOPTION_TIMEOUT)
STEP_INTERVAL = 25.0  # in which requests without an answer are given up
STEPS_MAX = 12  # before the next Hello
KINDS = ("originate", "fee", "link_down", "cost")
FOREVER = 1 << 62
INTERVAL = 655.0  # of Hellos and updates: the longest


class LockstepError(Exception):
    """The network cannot be driven so; the message says why."""


class _Steady(random.Random):
    """Draws no numbers: the longest of any interval."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


@dataclass(slots=True)
class LockstepResult:
    """`metric` and `next_hop` by (destination, node); `changes`, by destination, are (tick, node, next hop, metric,
    price)."""

    metric: dict[tuple[int, int], int] = field(default_factory=dict)
    next_hop: dict[tuple[int, int], int] = field(default_factory=dict)
    changes: dict[int, list[tuple[int, int, int, int, int]]] = field(default_factory=dict)
    updates: int = 0
    requests: int = 0
    strays: int = 0
    comparable_ticks: int = FOREVER  # before the first of them
    trace: RouteTrace = field(default_factory=RouteTrace)


def simulate(
    graph: nx.Graph, fee_by_node: Mapping[int, int], steps: Sequence[Step], *, price_weight: float = 256.0
) -> LockstepResult:
    """Raises LockstepError."""
    if len(steps) > STEPS_MAX:
        raise LockstepError(f"{len(steps)} steps; at most {STEPS_MAX}")
    network = _Lockstep(graph, fee_by_node, price_weight)
    network.raise_links()
    for index, step in enumerate(steps):
        network.run_step(index, step)
    return network.finish()


class _Lockstep:
    def __init__(self, graph: nx.Graph, fee_by_node: Mapping[int, int], price_weight: float) -> None:
        self._graph = graph
        self._result = LockstepResult(changes={node: [] for node in graph})
        self._now = 0.0
        self._base = (0, 0.0)  # tick and time at which the step began
        self._is_counting = False
        self._heap: list[tuple[float, int, int, int, bool, tuple[Tlv, ...]]] = []
        self._sequence = 0
        self._refusals: dict[int, int] = {}
        self._node_by_address: dict[IPv4Address | IPv6Address, int] = {address_of(node): node for node in graph}
        self._node_by_prefix: dict[Prefix, int] = {prefix_of(node): node for node in graph}
        self._speakers = {
            node: Speaker(_config(node, fee_by_node[node], price_weight), rng=_Steady(0), now=0.0)
            for node in sorted(graph)
        }

    def raise_links(self) -> None:
        for node, speaker in self._speakers.items():
            for peer in sorted(self._graph[node]):
                cost = self._graph.edges[node, peer]["cost"]
                up = InterfaceUp(f"to{peer}", address_of(node), mtu=MTU, cost=cost)
                self._apply(node, speaker.handle(up, now=0.0))
        self._run(BEGIN_AT)
        for node, speaker in self._speakers.items():
            costs = {view.address: view.cost for view in speaker.neighbours()}
            wanted = {address_of(peer): self._graph.edges[node, peer]["cost"] for peer in self._graph[node]}
            if costs != wanted:
                raise LockstepError(f"the links of node {node} did not come up")
        self._is_counting = True

    def run_step(self, index: int, step: Step) -> None:
        at = BEGIN_AT + index * STEP_INTERVAL
        self._run(at)
        self._now = at
        self._base = (index * STEP_TICKS, at)
        for node, event in _events(step, self._speakers):
            self._apply(node, self._speakers[node].handle(event, now=at))
        self._run(at + STEP_INTERVAL)

    def finish(self) -> LockstepResult:
        result = self._result
        for node, speaker in self._speakers.items():
            for view in speaker.routes():
                if view.is_selected:
                    pair = (self._node_by_prefix[view.prefix], node)
                    result.metric[pair] = view.metric
                    result.next_hop[pair] = self._node_by_address[view.next_hop]
        for destination, changes in sorted(result.changes.items()):
            for tick, node, hop, metric, price in changes:
                if tick >= result.comparable_ticks:
                    break
                result.trace.add(destination, at=tick * TICK, node=node, next_hop=hop, metric=metric, price=price)
        return result

    def _run(self, until: float) -> None:
        while True:
            message_at = self._heap[0][0] if self._heap else until
            due = self._due(until)
            if min(message_at, due[0]) >= until:
                return
            if due[0] < message_at:
                self._now = max(self._now, due[0])
                outputs = self._speakers[due[1]].handle(TimerExpired(), now=self._now)
                if self._is_counting and any(_has_news(output) for output in outputs):
                    self._stray()
                self._apply(due[1], outputs)
                continue
            self._now, receiver, sender, _, is_multicast, tlvs = heapq.heappop(self._heap)
            packet = ReceivedPacket(f"to{sender}", address_of(sender), tlvs, is_multicast)
            speaker = self._speakers[receiver]
            self._apply(receiver, speaker.handle(packet, now=self._now))
            if _refusals(speaker) > self._refusals.get(receiver, 0):
                self._refusals[receiver] = _refusals(speaker)
                self._stray()

    def _stray(self) -> None:
        self._result.strays += 1
        self._result.comparable_ticks = min(self._result.comparable_ticks, self._tick())

    def _due(self, until: float) -> tuple[float, int]:
        """The earliest timer, and whose it is."""
        deadlines = ((speaker.next_deadline(), node) for node, speaker in self._speakers.items())
        return min(((at, node) for at, node in deadlines if at is not None), default=(until, -1))

    def _tick(self) -> int:
        tick, at = self._base
        return tick + round((self._now - at) / TICK)

    def _apply(self, node: int, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case SendPacket(interface, address, tlvs):
                    self._count(tlvs)
                    peer = int(interface.removeprefix("to"))
                    self._sequence += 1
                    at = (
                        self._base[1] + (self._tick() - self._base[0] + 1) * TICK
                        if self._is_counting
                        else (self._now + TICK)
                    )
                    heapq.heappush(self._heap, (at, peer, node, self._sequence, address is None, tlvs))
                case InstallRoute(prefix, _, next_hop, metric, price):
                    self._note(self._node_by_prefix[prefix], node, self._node_by_address[next_hop], metric, price)
                case RemoveRoute(prefix) | BlockRoute(prefix):
                    destination = self._node_by_prefix[prefix]
                    if self._result.next_hop.get((destination, node), NO_ROUTE) != NO_ROUTE:
                        self._note(destination, node, NO_ROUTE, METRIC_INFINITY, 0)

    def _note(self, destination: int, node: int, hop: int, metric: int, price: int) -> None:
        self._result.next_hop[destination, node] = hop
        self._result.changes[destination].append((self._tick(), node, hop, metric, price))

    def _count(self, tlvs: tuple[Tlv, ...]) -> None:
        self._result.updates += sum(isinstance(tlv, Update) for tlv in tlvs)
        self._result.requests += sum(isinstance(tlv, SeqnoRequest) for tlv in tlvs)


def _config(node: int, fee: int, price_weight: float) -> SpeakerConfig:
    return SpeakerConfig(
        router_id=(node + 1).to_bytes(8, "big"),
        fee_msat_per_gb=fee,
        price_weight=price_weight,
        hello_interval=INTERVAL,
        update_interval=INTERVAL,
        urgent_timeout=0.0,
        small_change_timeout=0.0,
        settle_timeout=1e9,
    )


def _refusals(speaker: Speaker) -> int:
    counters = speaker.counters()
    return counters.get("update_limit", 0) + counters.get("seqno_request_limit", 0)


def _has_news(output: Output) -> bool:
    """A timer has sent what the schedule does not know. Acknowledgments and Hellos change no routes."""
    return isinstance(output, SendPacket) and any(isinstance(tlv, Update | SeqnoRequest) for tlv in output.tlvs)


def _events(
    step: Step, nodes: Mapping[int, object]
) -> list[tuple[int, OriginateRoute | SetFee | InterfaceDown | InterfaceUp]]:
    match step.kind:
        case "originate":
            return [(node, OriginateRoute(prefix_of(node))) for node in nodes]
        case "fee":
            return [(step.node, SetFee(step.value))]
        case "link_down":
            ends = (step.node, step.value)
            return [(a, InterfaceDown(f"to{b}")) for a, b in (ends, ends[::-1])]
        case "cost":
            ends = (step.node, step.value)
            return [(a, InterfaceUp(f"to{b}", address_of(a), mtu=MTU, cost=step.cost)) for a, b in (ends, ends[::-1])]
    raise LockstepError(f"a step of kind '{step.kind}' cannot be compared")
