"""Networks where source-specific and plain routes to overlapping prefixes come and go (RFC 9079).

At every change of a route, no packet goes in a circle: at each node the most specific destination decides, then the
most specific source. In the end every packet is where the most specific route that it matches was announced.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.events import BlockRoute, InstallRoute, OriginateRoute, Output, RemoveRoute, WithdrawRoute
from routing.tlv import Prefix
from tests.property.test_routing_network import QUIET, stir
from tests.routing.harness import Network

Pair = tuple[Prefix, Prefix | None]
DEFAULT, NET, SUBNET = (IPv6Network(text) for text in ("::/0", "2001:db8:c::/48", "2001:db8:c:1::/64"))
A, PART_OF_A = IPv6Network("2001:db8:a::/48"), IPv6Network("2001:db8:a:1::/64")
PAIRS: list[Pair] = [(prefix, source) for prefix in (DEFAULT, NET, SUBNET) for source in (None, A, PART_OF_A)]
PACKETS = [
    (IPv6Address(source), IPv6Address(destination))
    for source in ("2001:db8:a:1::1", "2001:db8:a:2::1", "2001:db8:e::1")
    for destination in ("2001:db8:f::1", "2001:db8:c:2::1", "2001:db8:c:1::1")
]
HERE, REFUSED = -1, -2


def matching(pairs: set[Pair], source: IPv6Address, destination: IPv6Address) -> Pair | None:
    fitting = [p for p in pairs if destination in p[0] and (p[1] is None or source in p[1])]
    return max(fitting, key=lambda p: (p[0].prefixlen, 0 if p[1] is None else p[1].prefixlen), default=None)


@dataclass
class Mixed(Network):
    tables: dict[int, dict[Pair, int]] = field(default_factory=dict)  # the next hop, HERE or REFUSED
    own: set[tuple[int, Pair]] = field(default_factory=set)

    def announce(self, node: int, pair: Pair) -> None:
        """It is in the kernel before it is announced, and until it is not announced any more."""
        self.own.add((node, pair))
        self.tables.setdefault(node, {})[pair] = HERE
        self.feed(node, OriginateRoute(pair[0], source_prefix=pair[1]))

    def withdraw(self, node: int, pair: Pair) -> None:
        if (node, pair) in self.own:
            self.own.remove((node, pair))
            self.feed(node, WithdrawRoute(*pair))
            if self.tables[node].get(pair) == HERE:
                del self.tables[node][pair]

    def announcers(self) -> dict[Pair, set[int]]:
        found: dict[Pair, set[int]] = {}
        for node, pair in self.own:
            found.setdefault(pair, set()).add(node)
        return found

    def walk(self, node: int, source: IPv6Address, destination: IPv6Address) -> int | None:
        """Where the packet ends; None: refused, or lost on a cut link."""
        path = [node]
        while True:
            table = self.tables.get(path[-1], {})
            pair = matching(set(table), source, destination)
            hop = REFUSED if pair is None else table[pair]
            if hop == HERE:
                return path[-1]
            if hop == REFUSED or self.link(path[-1], hop).is_cut:
                return None
            assert hop not in path, f"t={self.now}: {source} to {destination} in a circle: {path} {hop}"
            path.append(hop)

    def _obey(self, node: int, output: Output) -> None:
        super()._obey(node, output)
        if not isinstance(output, InstallRoute | BlockRoute | RemoveRoute):
            return
        table = self.tables.setdefault(node, {})
        pair = (output.prefix, output.source_prefix)
        if (node, pair) in self.own:
            return  # the kernel's own comes before it
        match output:
            case InstallRoute():
                table[pair] = int(output.interface[2:])
            case BlockRoute():
                table[pair] = REFUSED
            case RemoveRoute():
                table.pop(pair, None)
        for source, destination in PACKETS:
            self.walk(node, source, destination)


def build(rng: random.Random, nodes: int) -> Mixed:
    network = Mixed(seed=rng.getrandbits(32))
    for node in range(nodes):
        network.add_node(node, fee=rng.choice((0, 0, 300_000)))
    for node in range(1, nodes):
        network.add_link(node, rng.randrange(node), delay=rng.uniform(0.0005, 0.02))
    for _ in range(rng.randint(0, nodes)):
        a, b = rng.sample(range(nodes), 2)
        if (min(a, b), max(a, b)) not in network.links:
            network.add_link(a, b, cost=rng.choice((96, 128, 300)), delay=rng.uniform(0.0005, 0.02))
    return network


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 7), st.integers(2, 14))
def test_no_packet_goes_in_a_circle_and_each_ends_where_it_should(seed: int, nodes: int, events: int) -> None:
    rng = random.Random(seed)
    network = build(rng, nodes)
    # One node each: what several announce may go in a circle for a moment when one stops (RFC 8966 section 1.1).
    announcer = {pair: rng.randrange(nodes) for pair in PAIRS}
    for _ in range(events):
        for _ in range(rng.randint(0, 3)):
            change = rng.choice((network.announce, network.announce, network.withdraw))
            pair = rng.choice(PAIRS)
            change(announcer[pair], pair)
        stir(network, rng)
    for link in network.links.values():
        link.loss = 0.0
        if link.is_cut:
            network.carrier_found(link.a, link.b)
    network.run(2 * QUIET)
    announcers = network.announcers()
    for source, destination in PACKETS:
        best = matching(set(announcers), source, destination)
        ends = {network.walk(node, source, destination) for node in range(nodes)}
        assert ends <= (announcers[best] if best is not None else {None})
