"""The batch engine: right by networkx, the same in shards and interpreted, and the same history as real speakers'."""

import random

import networkx as nx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from routing import rules
from simulator import jit, lockstep, topology
from simulator.batch import engine, kernel
from simulator.batch.engine import BatchError, BatchResult, Step, simulate
from simulator.oracle import solve
from simulator.run import random_fees

WEIGHT = 256.0
SAT_PER_MB = 1_000_000


def network(text: str, seed: int, costs: tuple[int, int] = (1, 300)) -> tuple[nx.Graph, dict[int, int]]:
    rng = random.Random(seed)
    graph = topology.build(text, rng, costs)
    return graph, random_fees(graph, (0, SAT_PER_MB), rng)


def random_steps(graph: nx.Graph, rng: random.Random, count: int) -> list[Step]:
    links = sorted(graph.edges)
    rng.shuffle(links)
    steps = [Step("originate")]
    for _ in range(count):
        if rng.random() < 0.5 or not links:
            fee = rng.choice([rng.randint(0, 4 * SAT_PER_MB), 0, rules.PRICE_NOT_FOR_SALE])
            steps.append(Step("fee", rng.choice(sorted(graph)), fee))
        else:
            steps.append(Step("link_down", *links.pop()))
    return steps


def after(graph: nx.Graph, fees: dict[int, int], steps: list[Step]) -> tuple[nx.Graph, dict[int, int]]:
    left, new_fees = graph.copy(), dict(fees)
    for step in steps:
        if step.kind == "fee":
            new_fees[step.node] = step.value
        elif step.kind == "link_down":
            left.remove_edge(step.node, step.value)
    return left, new_fees


def same(a: BatchResult, b: BatchResult) -> bool:
    return (
        a.trace.digest() == b.trace.digest()
        and (a.metric == b.metric).all()
        and (a.next_hop == b.next_hop).all()
        and (a.updates, a.requests, a.changes, a.step_ticks) == (b.updates, b.requests, b.changes, b.step_ticks)
    )


@pytest.mark.parametrize("is_immediate", [False, True])
@pytest.mark.parametrize("text", ["line:1", "line:9", "grid:6x5", "geometric:60", "map:freifunk-leipzig"])
def test_routes_after_a_cold_start_are_the_shortest(text: str, is_immediate: bool) -> None:
    graph, fees = network(text, 1)
    result = simulate(graph, fees, is_immediate=is_immediate)
    oracle = solve(graph, fees, WEIGHT)
    for destination in graph:
        for node in graph:
            if node != destination:
                wanted = oracle.distance[destination][node]
                assert result.metric[destination, node] == wanted
                if wanted < rules.METRIC_INFINITY:
                    assert oracle.is_best(node, int(result.next_hop[destination, node]), destination)
    assert result.loops == 0
    assert result.changes == result.trace.count >= oracle.pair_count


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["geometric:14:4", "grid:4x4", "ring:9", "small-world:12"]))
@example(2889681, "grid:4x4")  # a request that was left over from the step before
def test_real_speakers_have_the_same_history(seed: int, text: str) -> None:
    """Dearer relays, cut links: feasibility, retractions and seqno requests, change by change."""
    graph, fees = network(text, seed)
    steps = random_steps(graph, random.Random(seed), 4)
    exact = lockstep.simulate(graph, fees, steps)
    batch = simulate(graph, fees, steps, is_immediate=True, traced_ticks=exact.comparable_ticks)
    assert exact.comparable_ticks > kernel.STEP_TICKS  # the cold start at least
    assert exact.trace.count >= len(graph) * (len(graph) - 1)
    assert batch.trace.digest() == exact.trace.digest()
    assert batch.loops == 0
    if not exact.strays:
        assert batch.requests == exact.requests
        pairs = {
            (d, node): (int(batch.metric[d, node]), int(batch.next_hop[d, node]))
            for d in graph
            for node in graph
            if batch.next_hop[d, node] >= 0
        }
        assert pairs == {pair: (metric, exact.next_hop[pair]) for pair, metric in exact.metric.items()}


def test_a_changed_rule_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: with another idea of feasibility in one of the engines the histories differ."""
    graph, fees = network("geometric:14:4", 7)
    steps = [Step("originate"), Step("fee", 3, 5 * SAT_PER_MB), Step("fee", 5, 5 * SAT_PER_MB)]
    exact = lockstep.simulate(graph, fees, steps)
    assert exact.requests > 0
    monkeypatch.setattr(kernel, "is_slot_feasible", lambda t, node, slot: True)
    batch = simulate(graph, fees, steps, is_immediate=True, is_compiled=False)
    assert batch.trace.digest() != exact.trace.digest()


def test_without_a_compiler_and_in_shards_it_is_the_same() -> None:
    graph, fees = network("geometric:14:4", 3)
    steps = random_steps(graph, random.Random(4), 3)
    whole = simulate(graph, fees, steps)
    assert whole.requests > 0
    for shards, workers in ((3, 2), (14, 1), (20, 3)):
        assert same(simulate(graph, fees, steps, shards=shards, workers=workers), whole)
    assert same(simulate(graph, fees, steps, is_compiled=False), whole)
    halves = [simulate(graph, fees, steps, destinations=part) for part in (range(5), range(5, 14))]
    assert same(engine.merge(halves), whole)


def test_the_compiler_is_here_where_the_tests_run() -> None:
    """Else the test above would compare the interpreter with itself."""
    assert jit.is_available()
    assert jit.compiled(kernel.run_destination, ()) is not kernel.run_destination


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_faults_leave_the_shortest_paths_of_what_is_left(seed: int) -> None:
    graph, fees = network("geometric:20:5", seed)
    steps = random_steps(graph, random.Random(seed), 6)
    left, new_fees = after(graph, fees, steps)
    result = simulate(graph, fees, steps)
    oracle = solve(left, new_fees, WEIGHT)
    assert result.loops == 0
    for destination in graph:
        for node in graph:
            if node != destination:
                wanted = oracle.distance[destination][node]
                # A seqno that may not rise so soon again leaves a longer way, which asks again after a while.
                assert result.metric[destination, node] >= wanted
                assert (result.metric[destination, node] < rules.METRIC_INFINITY) <= (wanted < rules.METRIC_INFINITY)


def test_a_refresh_changes_nothing_and_costs_an_update_for_each_route_and_link() -> None:
    graph, fees = network("grid:4x4", 1)
    once = simulate(graph, fees)
    again = simulate(graph, fees, [Step("originate"), Step("refresh")])
    links = 2 * graph.number_of_edges()
    assert again.changes == once.changes
    assert again.updates - once.updates == len(graph) * links - len(graph) * (len(graph) - 1)  # split horizon
    assert again.step_ticks == [once.step_ticks[0], 0]


def test_tables_that_are_too_small_grow_and_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, fees = network("grid:5x5", 2)
    steps = random_steps(graph, random.Random(1), 4)
    whole = simulate(graph, fees, steps, is_immediate=True)
    monkeypatch.setattr(engine, "first_room", lambda count: 2)
    assert same(simulate(graph, fees, steps, is_immediate=True), whole)


@pytest.mark.parametrize(
    "steps", [[Step("link_down", 0, 2)], [Step("fee", 9, 1)], [Step("explode")], [Step("fee", -1, 1)]]
)
def test_steps_that_cannot_be_are_refused(steps: list[Step]) -> None:
    graph, fees = network("line:3", 1)
    with pytest.raises(BatchError):
        simulate(graph, fees, steps)
    with pytest.raises(BatchError):
        simulate(nx.relabel_nodes(graph, {0: 7}), fees)
