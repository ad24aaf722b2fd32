"""Many speakers on one broadcast link, in virtual time: what each sends is heard by all, a millisecond later."""

from __future__ import annotations

import heapq
import random
from ipaddress import IPv6Address, IPv6Network

from routing import codec
from routing.events import (
    Input,
    InstallRoute,
    InterfaceDown,
    InterfaceUp,
    OriginateRoute,
    Output,
    ReceivedPacket,
    SendPacket,
    TimerExpired,
)
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import Prefix

HEADERS = 48  # IPv6 and UDP
DELAY = 0.001


def address(node: int) -> IPv6Address:
    return IPv6Address(0xFE80 << 112 | node + 1)


def prefix_of(node: int, number: int = 0) -> IPv6Network:
    return IPv6Network((0xFD << 120 | number << 32 | node + 1, 128))


class Segment:
    def __init__(self, count: int, **config: object) -> None:
        self.now = 0.0
        self.packets = 0
        self.octets = 0
        self.burst = 0  # most packets that one speaker sent at one moment
        self.routes: dict[int, dict[Prefix, object]] = {node: {} for node in range(count)}
        self._queue: list[tuple[float, int, int, Input]] = []
        self._serial = 0
        self.speakers: dict[int, Speaker] = {}
        for node in range(count):
            settings = SpeakerConfig(router_id=(node + 1).to_bytes(8, "big"), **config)  # type: ignore[arg-type]
            self.speakers[node] = Speaker(settings, rng=random.Random(node), now=0.0)
            self.feed(node, OriginateRoute(prefix_of(node)))

    def up(self, node: int) -> None:
        self.feed(node, InterfaceUp("lan", address(node)))

    def down(self, node: int) -> None:
        self.feed(node, InterfaceDown("lan"))

    def feed(self, node: int, event: Input) -> None:
        outputs = self.speakers[node].handle(event, now=self.now)
        self.burst = max(self.burst, sum(isinstance(output, SendPacket) for output in outputs))
        for output in outputs:
            self._obey(node, output)
        deadline = self.speakers[node].next_deadline()
        if deadline is not None:
            self._push(max(deadline, self.now), node, TimerExpired())

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, node, event = heapq.heappop(self._queue)
            deadline = self.speakers[node].next_deadline()
            if not isinstance(event, TimerExpired) or (deadline is not None and deadline <= self.now):
                self.feed(node, event)
        self.now = end

    def clear_counts(self) -> None:
        self.packets = self.octets = self.burst = 0

    def _push(self, at: float, node: int, event: Input) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (at, self._serial, node, event))

    def _obey(self, node: int, output: Output) -> None:
        if isinstance(output, InstallRoute):
            self.routes[node][output.prefix] = output.next_hop
        elif isinstance(output, SendPacket):
            for data in codec.pack(output.tlvs, mtu=1500):
                self.packets += 1
                self.octets += len(data) + HEADERS
            received = ReceivedPacket("lan", address(node), output.tlvs, output.destination is None)
            for other in self.speakers:
                if other != node and output.destination in (None, address(other)):
                    self._push(self.now + DELAY, other, received)
        elif not hasattr(output, "next_hop") and type(output).__name__ in ("RemoveRoute", "BlockRoute"):
            self.routes[node].pop(output.prefix, None)  # type: ignore[union-attr]
