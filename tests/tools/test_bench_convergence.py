"""The pure parts of tools/bench/convergence: graphs, following tables, medians and ratios, configurations."""

from __future__ import annotations

import json
import random
import tomllib
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, cast

import pytest

from meshd import config as meshd_config
from tools.bench.converge.daemons import KINDS, Daemon, Times
from tools.bench.converge.follow import Moment, RouteEvent, Tables, Timeline, median_and_spread
from tools.bench.converge.main import plans, times
from tools.bench.converge.network import Network
from tools.bench.converge.results import as_json, collect, table
from tools.bench.converge.run import Sample
from tools.bench.converge.topology import Topology, parse

_SQUARE = Topology("square", 4, ((0, 1), (0, 2), (1, 3), (2, 3)))


def _add(at: float, node: int, destination: int, via: int | None, kind: str = "add") -> RouteEvent:
    return RouteEvent(at, node, destination, kind, 1024, (1, via), via)


def _filled() -> Tables:
    """All best paths of the square: 0 to 3 by 1, 1 to 2 by 0, and back by the same."""
    tables = Tables(_SQUARE)
    ways = {(0, 1): 1, (0, 2): 2, (0, 3): 1, (1, 0): 0, (1, 3): 3, (1, 2): 0}
    ways |= {(2, 0): 0, (2, 3): 3, (2, 1): 0, (3, 1): 1, (3, 2): 2, (3, 0): 1}
    tables.apply(_add(1.0, node, destination, via) for (node, destination), via in ways.items())
    return tables


@pytest.mark.parametrize(
    ("spec", "nodes", "links"),
    [("line:10", 10, 9), ("ring:5", 5, 5), ("grid:5x5", 25, 40), ("grid:7x7", 49, 84), ("grid:2x3", 6, 7)],
)
def test_topologies_have_their_size_and_are_connected(spec: str, nodes: int, links: int) -> None:
    topology = parse(spec, 1)
    assert (topology.nodes, len(set(topology.links))) == (nodes, links)
    assert len(topology.best_costs()) == nodes * (nodes - 1)


def test_a_geometric_topology_is_connected_and_follows_its_seed() -> None:
    one, again, other = (parse("geometric:50/150", seed) for seed in (1, 1, 2))
    assert one == again != other
    assert len(one.links) >= 150
    for topology in (one, other):
        assert len(topology.best_costs()) == 50 * 49


@pytest.mark.parametrize("spec", ["star:4", "grid:5", "line:", "geometric:5"])
def test_what_is_no_topology_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="topology"):
        parse(spec, 1)


def test_best_costs_follow_link_costs_and_losses() -> None:
    assert _SQUARE.best_costs()[0, 3] == 2
    assert _SQUARE.best_costs(costs={(0, 1): 5, (0, 2): 2})[0, 3] == 3
    assert _SQUARE.best_costs(dead_links={(0, 1)})[0, 1] == 3
    assert (0, 3) not in _SQUARE.best_costs(dead_nodes={3})
    assert len(_SQUARE.best_costs(dead_nodes={1, 2})) == 0


def test_faults_strike_where_traffic_is_and_leave_the_rest_connected() -> None:
    topology = parse("grid:3x3", 1)
    paths = [[0, 1, 4, 7], [1, 4, 7], [3, 4], [2, 1, 4]]
    assert topology.busy_node(paths, random.Random(1)) in (1, 4)
    assert topology.busy_link(paths, random.Random(1)) in ((0, 1), (1, 4), (4, 7), (3, 4), (1, 2))
    assert topology.has_spare()
    assert not parse("line:4", 1).has_spare()


def test_tables_are_followed_to_the_end() -> None:
    tables = _filled()
    assert tables.now == Moment(1.0, delivered=12, optimal=12, looped=0)
    assert not tables.missing()
    assert [3, 1, 0] in tables.paths()
    assert tables.timeline.since("optimal") == 1.0


def test_another_path_of_equal_cost_is_as_good() -> None:
    tables = _filled()
    tables.apply([_add(2.0, 0, 3, 2, "replace")])
    assert tables.now.optimal == 12


def test_a_detour_is_delivered_but_not_optimal() -> None:
    tables = _filled()
    tables.apply([_add(2.0, 0, 1, 2, "replace"), _add(2.0, 2, 1, 3, "replace")])
    assert tables.now == Moment(2.0, delivered=12, optimal=11, looped=0)


def test_a_loop_is_seen_and_counted_when_it_lasts() -> None:
    tables = _filled()
    tables.apply([_add(2.0, 0, 3, 2, "replace"), _add(2.0, 2, 3, 0, "replace")])
    assert tables.now == Moment(2.0, delivered=10, optimal=10, looped=2)
    tables.apply([_add(2.5, 2, 3, 3, "replace")])
    tables.apply([_add(3.0, 2, 3, 0, "replace"), _add(3.001, 2, 3, 3, "replace")])
    assert tables.timeline.loops() == 1
    assert tables.now.delivered == 12


def test_who_leads_into_a_loop_is_lost_too() -> None:
    tables = Tables(parse("line:4", 1))
    tables.apply([_add(1.0, 1, 3, 2), _add(1.0, 2, 3, 1), _add(1.0, 0, 3, 1)])
    assert tables.now.looped == 3


def test_of_two_routes_the_one_with_the_lower_priority_counts() -> None:
    tables = _filled()
    tables.apply([RouteEvent(2.0, 0, 3, "add", 10, (1, "better"), None)])
    assert (0, 3) in tables.missing()
    tables.apply([RouteEvent(3.0, 0, 3, "delete", 10, (1, "told otherwise"), None)])
    assert not tables.missing()


def test_a_silent_link_delivers_nothing_until_nobody_uses_it() -> None:
    tables = _filled()
    timeline = tables.begin(5.0, dead_links={(0, 1)})
    assert timeline.since("delivered") is None
    tables.apply([_add(6.0, 0, 1, 2, "replace"), _add(6.0, 2, 1, 3, "replace"), _add(6.5, 0, 3, 2, "replace")])
    tables.apply([_add(7.0, 1, 0, 3, "replace"), _add(7.0, 1, 2, 3, "replace"), _add(8.0, 3, 0, 2, "replace")])
    assert (timeline.since("delivered"), timeline.since("optimal")) == (3.0, 3.0)
    assert timeline.lost_pair_seconds(9.0) == pytest.approx(11.5)


def test_a_dead_node_is_nobody_s_destination() -> None:
    tables = _filled()
    timeline = tables.begin(5.0, dead_nodes={1})
    assert timeline.pairs == 6
    tables.apply([_add(6.0, 0, 3, 2, "replace"), _add(7.0, 3, 0, 2, "replace")])
    assert timeline.since("optimal") == 2.0


def test_what_was_reached_for_a_while_only_does_not_count() -> None:
    moments = [
        Moment(at, delivered, 0, 0) for at, delivered in ((0.0, 0), (1.0, 100), (2.0, 98), (3.0, 99), (4.0, 100))
    ]
    timeline = Timeline(0.0, 100, moments)
    assert timeline.since("delivered") == 4.0
    assert timeline.since("delivered", 0.99) == 3.0
    assert timeline.since("optimal") is None


def test_a_route_replaced_by_deleting_it_first_is_no_gap() -> None:
    states = {0.0: 0, 1.0: 100, 5.0: 98, 5.01: 99, 5.015: 100}
    timeline = Timeline(0.0, 100, [Moment(at, delivered, 0, 0) for at, delivered in states.items()])
    assert timeline.since("delivered") == 1.0
    timeline.moments[-1] = Moment(5.03, 100, 0, 0)
    assert timeline.since("delivered") == 5.03
    timeline.moments.append(Moment(6.0, 99, 0, 0))
    assert timeline.since("delivered") is None


def _samples(case: str, **values: list[float]) -> list[Sample]:
    return [
        Sample(case, "grid:5x5", "1", seed, daemon, value, is_over=value >= 30)
        for daemon, row in values.items()
        for seed, value in enumerate(row)
    ]


def test_the_ratio_is_to_the_better_anchor() -> None:
    result = collect(_samples("cold optimal", meshd=[1.0, 4.0, 2.0], babeld=[30.0, 30.0, 8.0], bird=[5.0, 8.0, 9.0]))[0]
    assert result.name == "cold optimal, grid:5x5, hello 1"
    assert result.medians == {"meshd": 2.0, "babeld": 30.0, "bird": 8.0}
    assert (result.anchor, result.ratio) == ("bird", 0.25)
    assert (result.is_over("babeld"), result.is_over("bird")) == (True, False)
    shown = table([result])
    assert ">30 (8-30)" in shown
    assert "0.25" in shown


def test_without_an_anchor_there_is_a_bound_or_no_ratio() -> None:
    price, other = collect(_samples("price rise, rerouted", meshd=[0.2]) + _samples("x", meshd=[1.0]))
    assert (price.anchor, price.ratio) == ("bound", 0.2)
    assert (other.anchor, other.ratio) == (None, None)
    assert "< 1" in table([price])
    read = json.loads(as_json([price, other], limit=30.0))
    assert [case["ratio"] for case in read["cases"]] == [0.2, None]
    assert read["cases"][0]["meshd_samples"] == [0.2]


def test_median_and_spread() -> None:
    assert median_and_spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_and_spread([4.0, 1.0]) == (2.5, 1.0, 4.0)


def test_the_default_plan_has_faults_in_one_place_and_all_colds() -> None:
    made = plans(None, None, None)
    assert all("cold" in plan.cases for plan in made)
    assert {plan.spec for plan in made if "cut" in plan.cases} == {"grid:5x5"}
    assert plans(["line:3"], ["2"], ["kill", "price"])[0].cases == {"cold", "kill"}
    assert set(times("cheap")) == {"babeld", "meshd"}
    with pytest.raises(ValueError, match="hello"):
        times("0")


class _Wires:
    """As much of a network as a configuration needs."""

    addresses = (IPv6Address("fd00::1"), IPv6Address("fd00::2"))
    interface = staticmethod(Network.interface)

    def interfaces(self, node: int) -> list[str]:
        return ["to1", "to7"]


def _daemon(kind: str, directory: Path, *, is_wireless: bool = False) -> Daemon:
    network = cast("Any", _Wires())
    return KINDS[kind](0, network, directory, Times(0.5, 2.0), is_wireless=is_wireless)


def test_meshd_understands_its_configuration(tmp_path: Path) -> None:
    text = _daemon("meshd", tmp_path, is_wireless=True).config()
    parsed = meshd_config.parse(text)
    assert [interface.name for interface in parsed.interfaces] == ["to1", "to7"]
    assert (parsed.routing.hello_interval, parsed.routing.update_interval) == (0.5, 2.0)
    assert tomllib.loads(text)["interface"][0]["kind"] == "wireless"


@pytest.mark.parametrize("kind", ["babeld", "bird"])
def test_anchors_get_the_same_intervals_and_links(kind: str, tmp_path: Path) -> None:
    text = _daemon(kind, tmp_path).config()
    expected = {
        "babeld": "interface to7 type wired hello-interval 0.5 update-interval 2\n",
        "bird": 'interface "to7" { type wired; hello interval 500 ms; update interval 2000 ms; };\n',
    }
    assert expected[kind] in text
    assert text.count("type wired") == 2
