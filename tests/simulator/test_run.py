import itertools
import json
import random
import subprocess
import sys
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.events import InstallRoute
from routing.rules import METRIC_INFINITY, price_metric
from simulator import main, topology
from simulator.hops import NextHops
from simulator.network import Network, Options, RouteChange, address_of, prefix_of
from simulator.oracle import solve
from simulator.pages import heap
from simulator.run import Report, Watch, differences, random_fees, simulate

WEIGHT = 256.0
SAT_PER_MB = 1_000_000


def run(text: str, *, seed: int = 1, fees: tuple[int, int] = (0, SAT_PER_MB), **options: object) -> Report:
    graph = topology.build(text, random.Random(seed), (50, 300))
    made = Options(seed=seed, **options)  # type: ignore[arg-type]
    return simulate(graph, random_fees(graph, fees, random.Random(seed)), made, until=120, quiet=5)


def finished(graph: nx.Graph, fees: dict[int, int]) -> Network:
    network = Network(graph, fees, Options(seed=1))
    while network.next_at() < 10:
        network.step()
    return network


@pytest.mark.parametrize(
    "text", ["line:1", "line:2", "diamond", "ring:7", "grid:4x4", "geometric:20", "random-regular:16"]
)
def test_the_speakers_find_the_cheapest_paths(text: str) -> None:
    report = run(text)
    assert report.is_good, report.differences
    pairs = report.nodes * (report.nodes - 1)
    assert report.route_changes >= pairs
    assert report.all_best_at is not None
    assert report.routes_all_at is not None
    assert report.routes_all_at <= report.all_best_at <= (report.last_change_at or 0.0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_the_seed_they_find_them_without_a_loop(seed: int) -> None:
    report = run("geometric:12:4", seed=seed, latency=0.02, start_spread=3.0)
    assert report.is_good, (report.differences, report.loops)


def test_a_seed_gives_one_history_and_another_seed_another() -> None:
    assert run("grid:3x3") == run("grid:3x3")
    assert run("grid:3x3").trace != run("grid:3x3", seed=2).trace


def test_a_history_does_not_depend_on_the_process() -> None:
    """Python hashes strings and addresses differently in each process: no set's order may reach an output."""
    arguments = ["run", "--topology", "grid:3x3", "--seed", "4", "--quiet", "1", "--json"]
    script = f"import sys; from simulator.main import main; sys.exit(main({arguments}))"
    traces = set()
    for salt in ("1", "2"):
        environment = {"PYTHONHASHSEED": salt}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        traces.add(json.loads(done.stdout)["trace"])
    assert len(traces) == 1


def test_with_the_codec_between_them_the_routes_are_the_same_and_bytes_are_counted() -> None:
    plain, wired = run("grid:3x3"), run("grid:3x3", wire=True)
    assert plain.bytes is None
    assert wired.bytes is not None
    assert wired.bytes > 48 * wired.packets
    assert wired.is_good, wired.differences


def test_the_oracle_agrees_with_every_simple_path() -> None:
    """Dijkstra with costs in nodes is easy to get wrong by one end: compare it with plain enumeration."""
    graph = topology.build("geometric:7:3", random.Random(5), (1, 400))
    fees = random_fees(graph, (0, 3 * SAT_PER_MB), random.Random(6))
    oracle = solve(graph, fees, WEIGHT)
    for a, b in itertools.permutations(graph, 2):
        totals = [
            sum(graph.edges[x, y]["cost"] for x, y in itertools.pairwise(path))
            + sum(price_metric(fees[relay], WEIGHT) for relay in path[1:-1])
            for path in nx.all_simple_paths(graph, a, b)
        ]
        assert oracle.distance[b][a] == min(totals)
    assert oracle.pair_count == 7 * 6


def test_the_oracle_agrees_with_networkx() -> None:
    graph = topology.build("geometric:60", random.Random(7), (1, 12_000))
    fees = random_fees(graph, (0, 30 * SAT_PER_MB), random.Random(8))
    oracle = solve(graph, fees, WEIGHT)
    for to in graph:

        def weight(near: int, far: int, link: dict[str, int], to: int = to) -> int:
            return link["cost"] + (0 if near == to else price_metric(fees[near], WEIGHT))

        best = nx.single_source_dijkstra_path_length(graph, to, weight=weight)
        assert oracle.distance[to].tolist() == [min(best[node], METRIC_INFINITY) for node in sorted(graph)]
    assert 0 < oracle.pair_count < 60 * 59, "some paths are beyond infinity"


def test_a_path_beyond_infinity_is_no_path() -> None:
    graph = topology.build("line:4", random.Random(1), (30_000, 30_000))
    assert solve(graph, dict.fromkeys(graph, 0), WEIGHT).distance[0][3] == METRIC_INFINITY
    report = simulate(graph, dict.fromkeys(graph, 0), Options(), until=60, quiet=5)
    assert report.is_good, report.differences


def test_a_node_that_carries_for_nobody_is_gone_around() -> None:
    graph = topology.build("ring:5", random.Random(1))
    network = finished(graph, {node: 2**32 - 1 if node == 1 else 0 for node in graph})
    assert network.next_hops.get(2, 0) == 4
    assert network.next_hops.get(1, 0) == 1
    assert solve(graph, {0: 0, 1: 2**32 - 1, 2: 0, 3: 0, 4: 0}, WEIGHT).relay_metric[1] == METRIC_INFINITY


def test_a_wrong_route_is_a_difference() -> None:
    """The comparison can fail: with other fees than the speakers' the metrics, or else the prices, do not fit."""
    graph = topology.build("line:3", random.Random(1))
    fees = {0: 0, 1: SAT_PER_MB, 2: 0}
    network = finished(graph, fees)
    assert differences(network, solve(graph, fees, WEIGHT), fees) == []
    dearer = fees | {1: 2 * SAT_PER_MB}
    assert len(differences(network, solve(graph, dearer, WEIGHT), dearer)) == 2
    same_metric = fees | {1: SAT_PER_MB + 1}
    assert ["price" in text for text in differences(network, solve(graph, fees, WEIGHT), same_metric)] == [True, True]


def test_a_loop_is_seen_when_it_closes() -> None:
    graph = topology.build("ring:4", random.Random(1))
    network = finished(graph, dict.fromkeys(graph, 0))
    network.next_hops.remove(0, 3)
    network.next_hops.set(0, 1, 2, 288)
    network.next_hops.set(0, 2, 3, 192)
    for node, via in ((3, 0), (3, 1), (3, 1)):
        network._apply(node, [InstallRoute(prefix_of(0), f"to{via}", address_of(via), 96, 0)])
    assert [(destination, path) for _, destination, path in network.loops] == [(0, [3, 1, 2])]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.sampled_from((0, 96, 500))), min_size=5))
def test_no_loop_is_missed_whatever_metrics_say(changes: list[tuple[int, int, int]]) -> None:
    hops = NextHops(5, [0])
    for node, via, metric in changes:
        if node == via:
            hops.remove(0, node)
            continue
        path: list[int] = [node]
        at: int | None = via
        while at is not None and at not in path:
            path.append(at)
            at = hops.get(0, at)
        changed = hops.get(0, node) != via
        assert hops.set(0, node, via, metric) == ((path if at == node else []) if changed else None)


def test_only_memory_without_a_file_is_put_into_large_pages() -> None:
    maps = (
        "55d0c0de0000-55d0c1de0000 rw-p 00000000 00:00 0                          [heap]",
        "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 ",
        "7f0001000000-7f0001400000 r--p 00000000 00:00 0 ",
        "7f0002000000-7f0002400000 rw-p 00000000 fe:00 77                         /usr/lib/libc.so.6",
        "7ffd00000000-7ffd00400000 rw-p 00000000 00:00 0                          [stack]",
    )
    assert heap("\n".join(maps)) == [(0x55D0C0DE0000, 0x55D0C1DE0000), (0x7F0000000000, 0x7F0000400000)]


def test_convergence_is_counted_from_when_it_holds_for_good() -> None:
    graph = nx.path_graph(2)
    nx.set_edge_attributes(graph, 96, "cost")
    watch = Watch(solve(graph, {0: 0, 1: 0}, WEIGHT))
    history = [(1.0, 0, 1), (2.0, 1, 0), (3.0, 0, None), (4.0, 0, 1)]
    since = []
    for at, node, hop in history:
        watch.handle(RouteChange(at, node, 1 - node, hop))
        since.append(watch.routes_all.since)
    assert since == [None, 2.0, None, 4.0]
    assert watch.all_best.since == 4.0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["run", "--topology", "diamond", "--quiet", "1"], 0),
        (["run", "--topology", "grid:3x3", "--until", "0.05"], 1),  # too early for all routes
        (["run", "--topology", "pyramid:3"], 2),
    ],
)
def test_exit_codes_say_what_happened(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(arguments) == status
    assert (capsys.readouterr().out == "") is (status == 2)


@pytest.mark.parametrize(
    "option", ["--fee-range=9:1", "--fee-range=4294967295", "--cost-range=0", "--until=-1", "--latency=x"]
)
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["run", option])
    assert caught.value.code == 2


def test_the_report_as_json_has_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["run", "--topology", "line:3", "--quiet", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["nodes"], document["loops"], document["topology"]) == (True, 3, 0, "line:3")
    assert not replace(run("line:3"), loops=1).is_good
