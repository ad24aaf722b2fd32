"""Random scenarios: a mesh, and a list of steps. Any part of the list is a scenario too, so that it can be shrunk."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from routing.events import LinkKind
from routing.filters import REFUSED
from routing.rules import PRICE_NOT_FOR_SALE
from routing.speaker import SpeakerConfig
from routing.tlv import RouteKey
from tools.prover.steps import (
    Alarm,
    Cost,
    Cut,
    Deafen,
    Fee,
    Filters,
    Heal,
    Impair,
    Originate,
    Restart,
    Step,
    Wait,
    Withdraw,
)
from tools.prover.topologies import TOPOLOGIES, Edges
from tools.prover.world import Segment, World

FEES = (0, 0, 10_000, 12_000, 300_000, 1_000_000, 2_000_000, 200_000_000, PRICE_NOT_FOR_SALE)
COSTS = (96, 96, 96, 128, 256, 500, 900, 30_000)
WAITS = (0.001, 0.02, 0.02, 0.02, 0.3, 0.3, 0.3, 1.0, 1.0, 5.0, 20.0)
DELAYS = (0.0002, 0.03)
SEQNOS = (0, 32760, 65530, 65535)
ADDED = (0, 0, 50, 1000, REFUSED)
DISTURBANCES = ("fee", "fee", "cost", "cut", "cut", "heal", "heal", "impair", "deafen", "route", "filters", "alarm")


@dataclass
class Scenario:
    seed: str
    topology: str
    config: SpeakerConfig
    wire: bool
    segments: list[Segment]
    fees: dict[int, int]
    leaves: frozenset[int]
    seqnos: dict[int, int]
    origins: dict[RouteKey, dict[int, int]]
    steps: list[Step] = field(default_factory=list)

    def build(self) -> World:
        world = World(self.config, self.seed, self.wire)
        world.segments = [
            Segment(s.number, s.kind, dict(s.cost), dict(s.delay), s.has_ipv4, s.loss, s.duplicate, s.jitter)
            for s in self.segments
        ]
        world.fees = dict(self.fees)
        world.leaves = self.leaves
        world.origins = {key: dict(metrics) for key, metrics in self.origins.items()}
        for node in self.fees:
            world.switch_on(node, seqno=self.seqnos[node])
        return world


def prefix_of(node: int) -> IPv6Network:
    return IPv6Network((0xFD << 120 | node + 1, 128))


def draw(seed: str, *, steps: int) -> Scenario:
    """The scenario of that seed."""
    rng = random.Random(seed)
    topology = rng.choice(sorted(TOPOLOGIES))
    edges, count = TOPOLOGIES[topology](rng)
    hello = rng.choice((1.0, 4.0, 4.0, 4.0))
    config = SpeakerConfig(bytes(7) + b"\1", hello_interval=hello, update_interval=4 * hello)
    segments = _segments(edges, count, rng)
    origins: dict[RouteKey, dict[int, int]] = {prefix_of(node): {node: 0} for node in range(count)}
    for node in rng.sample(range(count), count // 4):
        origins[IPv4Network((10 << 24 | 255 << 16 | node, 32))] = {node: rng.choice((0, 10))}
    for node in rng.sample(range(count), count // 6):
        origins[IPv6Network("2000::/3"), IPv6Network((0x20010DB8 << 96 | node << 80, 48))] = {node: 0}
    if rng.random() < 0.3:  # several gateways
        gateways = rng.sample(range(count), min(count, rng.randint(2, 3)))
        origins[IPv6Network("2000::/3")] = {node: rng.choice((0, 50)) for node in gateways}
    scenario = Scenario(
        seed=seed,
        topology=topology,
        config=config,
        wire=rng.random() < 0.1,
        segments=segments,
        fees={node: rng.choice(FEES[:6]) for node in range(count)},
        leaves=frozenset(node for node in range(count) if rng.random() < 0.03),
        seqnos={node: rng.choice(SEQNOS) for node in range(count)},
        origins=origins,
    )
    kinds = DISTURBANCES if rng.random() < 0.8 else (*DISTURBANCES, "restart")
    for _ in range(steps):
        scenario.steps += _disturb(scenario, rng.choice(kinds), rng)
        scenario.steps.append(Wait(rng.choice(WAITS)))
    if rng.random() < 0.5:
        scenario.steps += [Heal(segment.number) for segment in segments]
    return scenario


def _segments(edges: Edges, count: int, rng: random.Random) -> list[Segment]:
    groups: list[tuple[int, ...]] = [tuple(edge) for edge in edges]
    if count > 4 and rng.random() < 0.4:  # switches or radio cells of several
        groups += [tuple(rng.sample(range(count), rng.randint(3, 5))) for _ in range(rng.randint(1, 3))]
    is_radio_mesh = rng.choice((0.0, 0.0, 0.3, 1.0))
    segments = []
    for number, members in enumerate(groups):
        kind = LinkKind.WIRELESS if rng.random() < is_radio_mesh else LinkKind.WIRED
        cost = rng.choice(COSTS[:5])
        segment = Segment(
            number,
            kind,
            cost={node: cost if rng.random() < 0.8 else rng.choice(COSTS) for node in members},
            delay={node: rng.uniform(*DELAYS) for node in members},
            has_ipv4=rng.random() < 0.3,
        )
        if rng.random() < 0.4:
            segment.loss, segment.duplicate, segment.jitter = _impairment(rng)
        segments.append(segment)
    return segments


def _impairment(rng: random.Random) -> tuple[float, float, float]:
    return rng.choice((0.0, 0.05, 0.3, 0.6)), rng.choice((0.0, 0.0, 0.2)), rng.choice((0.0, 0.01, 0.1, 1.0))


def _disturb(scenario: Scenario, kind: str, rng: random.Random) -> list[Step]:
    segment = rng.choice(scenario.segments)
    members = tuple(segment.cost)
    node = rng.choice(sorted(scenario.fees))
    some = tuple(member for member in members if rng.random() < 0.5)
    match kind:
        case "fee":
            return [Fee(node, rng.choice(FEES))]
        case "cost":
            return [Cost(segment.number, rng.choice(members), rng.choice(COSTS))]
        case "cut":
            return [Cut(segment.number, rng.choice(((), members, some)))]
        case "heal":
            return [Heal(segment.number, rng.choice(((), (), members, some)))]
        case "impair":
            return [Impair(segment.number, *_impairment(rng))]
        case "deafen":
            sender, receiver = rng.sample(members, 2)
            return [Deafen(segment.number, sender, receiver)]
        case "filters":
            return [Filters(segment.number, rng.choice(members), rng.choice(ADDED), rng.choice(ADDED))]
        case "alarm":
            return [Alarm(segment.number, *rng.sample(members, 2))]
        case "restart":
            # Behind by more than half the circle: it counts as newer.
            behind = rng.choice((0, 1, 3, 100, 40_000))
            downtime = rng.choice((0.001, 0.1, 2.0, 30.0))
            return [Restart(node, downtime, rng.random() < 0.5, rng.random() < 0.3, behind)]
        case _:
            return _change_origin(scenario, node, rng)


def _change_origin(scenario: Scenario, node: int, rng: random.Random) -> list[Step]:
    key = rng.choice(sorted(scenario.origins, key=str))
    mine = prefix_of(node)
    choices: tuple[list[Step], ...] = (
        [Withdraw(node, mine)],
        [Withdraw(node, mine), Wait(rng.choice(WAITS)), Originate(node, mine, 0)],
        [Originate(node, mine, rng.choice((0, 10, 500)))],
        [Originate(node, key, rng.choice((0, 200)))],  # also: a prefix moves, or becomes anycast
        [Withdraw(node, key)],
    )
    return rng.choice(choices)
