"""What can happen to a mesh. Each step can be taken in any state of it, so that any part of a scenario is one too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from routing.events import LinkKind, NeighbourUnreachable
from routing.tlv import RouteKey
from tools.prover.world import World, address_of


class Step(Protocol):
    def take(self, world: World) -> None: ...


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float

    def take(self, world: World) -> None:
        world.run(self.seconds)


@dataclass(frozen=True, slots=True)
class Fee:
    node: int
    fee: int

    def take(self, world: World) -> None:
        world.set_fee(self.node, self.fee)


@dataclass(frozen=True, slots=True)
class Cost:
    segment: int
    node: int
    cost: int

    def take(self, world: World) -> None:
        segment = world.segments[self.segment]
        segment.cost[self.node] = self.cost
        if not segment.is_cut:
            world.raise_interface(self.node, segment)


@dataclass(frozen=True, slots=True)
class Cut:
    """`told`: the members whose interface goes down; the others find out by missing Hellos."""

    segment: int
    told: tuple[int, ...]

    def take(self, world: World) -> None:
        segment = world.segments[self.segment]
        segment.is_cut = True
        for node in self.told:
            world.lower_interface(node, segment)


@dataclass(frozen=True, slots=True)
class Heal:
    """`bounced`: the members whose interface goes down and up with it."""

    segment: int
    bounced: tuple[int, ...] = ()

    def take(self, world: World) -> None:
        segment = world.segments[self.segment]
        segment.is_cut = False
        for node in self.bounced:
            world.lower_interface(node, segment)
        for node in segment.cost:
            world.raise_interface(node, segment)


@dataclass(frozen=True, slots=True)
class Deafen:
    """Of a radio cell: `receiver` no longer hears `sender`, or does again."""

    segment: int
    sender: int
    receiver: int

    def take(self, world: World) -> None:
        segment = world.segments[self.segment]
        # A wire on which not all hear all is none: split horizon counts on that.
        if segment.kind is LinkKind.WIRELESS or len(segment.cost) == 2:
            segment.deaf ^= {(self.sender, self.receiver)}


@dataclass(frozen=True, slots=True)
class Impair:
    segment: int
    loss: float
    duplicate: float
    jitter: float

    def take(self, world: World) -> None:
        segment = world.segments[self.segment]
        segment.loss, segment.duplicate, segment.jitter = self.loss, self.duplicate, self.jitter


@dataclass(frozen=True, slots=True)
class Originate:
    node: int
    key: RouteKey
    metric: int

    def take(self, world: World) -> None:
        world.originate(self.node, self.key, self.metric)


@dataclass(frozen=True, slots=True)
class Withdraw:
    node: int
    key: RouteKey

    def take(self, world: World) -> None:
        if self.node in world.origins.get(self.key, {}):
            world.withdraw(self.node, self.key)


@dataclass(frozen=True, slots=True)
class Filters:
    """What the node adds to each metric that it hears, or announces, there. 65535 refuses."""

    segment: int
    node: int
    import_added: int
    export_added: int

    def take(self, world: World) -> None:
        world.set_filters(self.node, world.segments[self.segment], self.import_added, self.export_added)


@dataclass(frozen=True, slots=True)
class Alarm:
    """The kernel tells the node that it cannot reach `peer`. It may well be wrong."""

    segment: int
    node: int
    peer: int

    def take(self, world: World) -> None:
        segment = world.segments[self.segment]
        world.feed(self.node, NeighbourUnreachable(segment.name(), address_of(self.peer, self.segment)))


@dataclass(frozen=True, slots=True)
class Restart:
    """Off for so many seconds. `is_seen`: the other ends of its point-to-point links lose the carrier meanwhile.
    Not `is_fresh`: it keeps its router-id, and comes back with a seqno that is `behind` its last one."""

    node: int
    downtime: float
    is_seen: bool
    is_fresh: bool
    behind: int

    def take(self, world: World) -> None:
        seqno = world.switch_off(self.node)
        lines = [
            s for s in world.segments if self.is_seen and self.node in s.cost and len(s.cost) == 2 and not s.is_cut
        ]
        peers = [(segment, node) for segment in lines for node in segment.cost if node != self.node]
        for segment, node in peers:
            world.lower_interface(node, segment)
        world.run(self.downtime)
        for segment, node in peers:
            world.raise_interface(node, segment)
        world.switch_on(self.node, is_fresh=self.is_fresh, seqno=seqno - self.behind)
