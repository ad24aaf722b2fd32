"""A scenario made into a network with demand, prices, payments, faults and cheats, and run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import networkx as nx

from payments.budget import Budget
from routing.speaker import SpeakerConfig
from simulator import adversaries
from simulator.draft import CARRIES_FOR_NOBODY, Break, Draft
from simulator.exact.money import Bank
from simulator.exact.traffic import Flow, Purse, Traffic
from simulator.network import Network, Options
from simulator.oracle import Oracle, solve
from simulator.run import Watch, differences, few_collections
from simulator.scenario import INTERNET, MobilityConfig, Scenario

DEFAULT_LATENCY = 0.001


@dataclass(frozen=True, slots=True)
class Happening:
    """A fault or its end, for the map and the reader."""

    at: float
    text: str
    nodes: tuple[int, ...] = ()
    links: tuple[tuple[int, int], ...] = ()
    is_bad: bool = True


@dataclass(slots=True)
class Samples:
    """A row for each sample, node and link. Bytes are of the time since the row before; money in msat, cumulative."""

    times: list[float] = field(default_factory=list)
    totals: list[tuple[float, ...]] = field(default_factory=list)  # see TOTALS
    nodes: list[list[tuple[float, ...]]] = field(default_factory=list)  # see NODES; by node
    links: list[list[tuple[int, ...]]] = field(default_factory=list)  # see LINKS; by edge of `edges`


TOTALS = ("routes", "route_changes", "packets", "offered_bytes", "delivered_bytes", "mean_fee", "payments")
NODES = ("up", "fee", "carried_bytes", "earned_msat", "owed_msat", "received_msat", "sent_msat", "delivered_bytes")
LINKS = ("up", "forth_bytes", "back_bytes", "dropped_bytes")


class World:
    """`seed` in place of the scenario's own. Raises ScenarioError."""

    def __init__(self, scenario: Scenario, *, seed: int, wire: bool = False) -> None:
        self.scenario = scenario
        self.seed = seed
        self.happenings: list[Happening] = []
        self.settled: list[float] = []  # for each of them, when the last route changed before the next one
        self.samples = Samples()
        self.draft = draft = Draft(scenario, seed)
        self.graph, self.names, self.roles = draft.graph, draft.names, draft.roles
        self.price_by_node, self.fees = draft.price_by_node, draft.fees
        routing = scenario.routing
        config = SpeakerConfig(
            router_id=b"\xff" * 7 + b"\0",
            price_weight=routing.price_weight,
            hello_interval=routing.hello_interval,
            update_interval=routing.update_interval,
            sticky_fraction=routing.sticky_fraction,
            sticky_timeout=routing.sticky_timeout,
            is_eager=routing.eager,
            urgent_timeout=routing.urgent_timeout,
            split_horizon=routing.split_horizon,
        )
        self.network = Network(
            self.graph,
            self.fees,
            Options(seed, DEFAULT_LATENCY, routing.start_spread, wire, config, scenario.topology.medium == "shared"),
            gateways=[node for node, role in self.roles.items() if role == "gateway"],
            leaves=[node for node, role in self.roles.items() if role in CARRIES_FOR_NOBODY],
        )
        self.bank = Bank(self.network, scenario.payments) if scenario.payments.enabled else None
        self.traffic = Traffic(self.network, self._flows(), self.price_by_node, self.bank, self.fees)
        self.cheats: dict[int, str] = {}
        self._schedule()
        self.edges = sorted(tuple(sorted(edge)) for edge in self.graph.edges)
        self.oracle = self._oracle()
        self.watch = Watch(self.oracle)
        self._before: tuple[list[int], dict[tuple[int, int], int], dict[tuple[int, int], int]] = ([], {}, {})
        self._totals_before = (0, 0)
        self.network.call_at(scenario.run.sample_interval, self._sample)

    # --- what the scenario says

    def _flows(self) -> list[Flow]:
        """Those of one source for one table share its purse."""
        purses: dict[tuple[int, int], Purse | None] = {}
        flows = []
        for source, destination, demand in self.draft.flows():
            who = (id(demand), source)
            if who not in purses:
                limits = demand.budget_limits()
                purses[who] = Purse(Budget(limits)) if any(limits.values()) else None
            flows.append(Flow(source, destination, demand, purse=purses[who]))
        return flows

    def _schedule(self) -> None:
        for item in self.draft.faults():
            self.network.call_at(item.fault.at, partial(self._break, item))
        for mobility in self.scenario.mobilities:
            Walk(self, mobility)
        for adversary in self.scenario.adversaries:
            nodes = self.draft.select(adversary.nodes)
            self.cheats.update(dict.fromkeys(nodes, adversary.kind))
            adversaries.install(self, adversary, nodes)

    def _break(self, item: Break) -> None:
        network, fault, nodes, links = self.network, item.fault, item.nodes, item.links
        for node in nodes:
            if fault.kind == "node_down":
                network.fail_node(node, carrier_lost=fault.carrier_lost)
            else:
                network.restore_node(node)
        for a, b in links:
            if not self.graph.has_edge(a, b):
                continue  # it walked away
            match fault.kind:
                case "link_down":
                    network.fail_link(a, b, carrier_lost=fault.carrier_lost)
                case "link_up":
                    network.restore_link(a, b)
                case "cost":
                    network.set_cost(a, b, max(1, int(fault.value)))
                case "loss":
                    network.pipe(a, b).loss = network.pipe(b, a).loss = fault.value
        what = fault.kind.replace("_", " ") + (f" {fault.value:g}" if fault.kind in ("cost", "loss") else "")
        is_bad = fault.kind in ("node_down", "link_down") or (fault.kind == "loss" and fault.value > 0)
        shown = links if len(links) <= 20 else ()
        self.settled.append(network.now)
        self.happenings.append(Happening(network.now, what, nodes, shown, is_bad))

    # --- while it runs

    def _oracle(self) -> Oracle:
        """Of what is up now."""
        network = self.network
        graph = nx.Graph()
        graph.add_nodes_from(node for node in self.graph if network.is_up(node))
        for a, b, data in self.graph.edges(data=True):
            if network.is_link_up(a, b) and network.is_link_up(b, a):
                graph.add_edge(a, b, cost=data["cost"])
        barred = {node for node, role in self.roles.items() if role in CARRIES_FOR_NOBODY}
        fees = {node: 2**32 - 1 if node in barred else fee for node, fee in self.traffic.fee_by_node.items()}
        return solve(graph, {node: fees[node] for node in graph}, self.scenario.routing.price_weight)

    @property
    def is_steady(self) -> bool:
        """Nothing but the protocol moves routes, so that in the end they must be the oracle's."""
        scenario = self.scenario
        is_lossy = any(table.loss is not None or table.kind == "wireless" for table in scenario.links)
        has_auto = any(table.policy == "auto" for table in scenario.prices)
        moves = scenario.churns or scenario.mobilities or scenario.adversaries or scenario.faults
        return not (is_lossy or has_auto or moves)

    def run(self, progress: Callable[[Network], None] = lambda _: None) -> None:
        with few_collections():
            self._run(progress)
        if self.bank is not None:
            self.bank.drain()
            self.bank.audit()

    def _run(self, progress: Callable[[Network], None]) -> None:
        config, network, watch = self.scenario.run, self.network, self.watch
        is_followed = self.is_steady
        while network.next_at() <= config.duration:
            settled_at = watch.last_change_at or 0.0
            is_settled = is_followed and config.quiet > 0 and watch.all_best.since is not None
            if is_settled and network.next_at() > settled_at + config.quiet:
                break
            for change in network.step():
                if self.settled:
                    self.settled[-1] = change.at
                if change.destination != INTERNET and not self.scenario.mobilities:
                    watch.handle(change)
            if network.event_count % 2000 == 0:
                progress(network)

    def differences(self) -> list[str]:
        """From the oracle's routes. Empty where something else than the protocol moves them."""
        return differences(self.network, self.oracle, self.traffic.fee_by_node) if self.is_steady else []

    def _sample(self) -> None:
        network, traffic, samples = self.network, self.traffic, self.samples
        if self.bank is not None:
            self.bank.audit()
        balances = {} if self.bank is None else self.bank.balances()
        carried_before, bytes_before, dropped_before = self._before
        rows: list[tuple[float, ...]] = []
        for index, node in enumerate(sorted(traffic.nodes)):
            count = traffic.nodes[node]
            carried = count.carried - (carried_before[index] if carried_before else 0)
            balance = balances.get(node)
            received, sent = (0, 0) if balance is None else (balance.received, balance.sent)
            earned, owed = count.earned // 10**9, count.owed // 10**9
            fee = traffic.fee_by_node[node]
            rows.append((int(network.is_up(node)), fee, carried, earned, owed, received, sent, count.delivered))
        links: list[tuple[int, ...]] = []
        now_bytes, now_dropped = dict(traffic.link_bytes), dict(traffic.link_dropped)
        for a, b in self.edges:
            forth = now_bytes.get((a, b), 0) - bytes_before.get((a, b), 0)
            back = now_bytes.get((b, a), 0) - bytes_before.get((b, a), 0)
            dropped = sum(now_dropped.get(ends, 0) - dropped_before.get(ends, 0) for ends in ((a, b), (b, a)))
            links.append((int(network.is_link_up(a, b)), forth, back, dropped))
        self._before = ([traffic.nodes[node].carried for node in sorted(traffic.nodes)], now_bytes, now_dropped)
        offered, delivered = (sum(getattr(flow, name) for flow in traffic.flows) for name in ("offered", "delivered"))
        fees = list(traffic.fee_by_node.values())
        payments = 0 if self.bank is None else self.bank.payments
        samples.times.append(network.now)
        samples.totals.append(
            (
                network.next_hops.total(),
                self.watch.changes,
                network.traffic.packets,
                offered - self._totals_before[0],
                delivered - self._totals_before[1],
                sum(fees) / len(fees),
                payments,
            )
        )
        self._totals_before = (offered, delivered)
        samples.nodes.append(rows)
        samples.links.append(links)
        network.call_at(network.now + self.scenario.run.sample_interval, self._sample)


class Walk:
    """Random waypoints in the unit square."""

    def __init__(self, world: World, config: MobilityConfig) -> None:
        self._world = world
        self._config = config
        self._rng = random.Random(f"{world.seed}/mobility")
        self._position: dict[int, tuple[float, float]] = {}
        for node in sorted(world.graph):
            data = world.graph.nodes[node]
            place = data.get("pos") or (self._rng.random(), self._rng.random())
            self._position[node] = (float(place[0]), float(place[1]))
        self._movers = {node: self._leg() for node in world.draft.select(config.nodes)}
        world.network.call_at(config.interval, self._step)

    def _leg(self) -> tuple[tuple[float, float], float]:
        return (self._rng.random(), self._rng.random()), self._rng.uniform(*self._config.speed)

    def _step(self) -> None:
        world, config = self._world, self._config
        now = world.network.now
        for node, (target, speed) in self._movers.items():
            x, y = self._position[node]
            far = math.dist((x, y), target)
            step = speed * config.interval
            if far > step:
                self._position[node] = (x + (target[0] - x) * step / far, y + (target[1] - y) * step / far)
            elif far > 0:
                self._position[node] = target
            elif self._rng.random() < min(1.0, config.interval / max(config.pause, config.interval)):
                self._movers[node] = self._leg()
            world.graph.nodes[node]["pos"] = self._position[node]
        for node in sorted(self._movers):
            for other in sorted(world.graph):
                if other != node:
                    self._link(node, other)
        world.network.call_at(now + config.interval, self._step)

    def _link(self, a: int, b: int) -> None:
        world = self._world
        is_near = math.dist(self._position[a], self._position[b]) <= self._config.radius
        if is_near and not world.graph.has_edge(a, b):
            low, high = world.scenario.topology.cost
            edge: dict[str, object] = {"cost": self._rng.randint(low, high)}
            for table in world.scenario.links:
                if not table.between:
                    world.draft.set_link(edge, table)
            world.network.add_link(a, b, **edge)
            if (min(a, b), max(a, b)) not in world.edges:
                world.edges.append((min(a, b), max(a, b)))
        elif not is_near and world.graph.has_edge(a, b):
            world.network.remove_link(a, b)
