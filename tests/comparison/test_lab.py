"""The simulator's side of the comparison with real daemons (tools/compare lab)."""

from __future__ import annotations

import networkx as nx
import pytest

from tests.comparison.history import CASES, Findings, History, plan
from tests.comparison.lab import compare
from tests.comparison.simulated import Simulation
from tools.bench.converge.daemons import Times
from tools.bench.converge.topology import parse

TOPOLOGY = parse("grid:3x3", 1)
ENDS = [end for at in TOPOLOGY.links for end in (at, at[::-1])]
TIMES = Times(4.0, 16.0)


def _history(*, late: float) -> History:
    raised = dict.fromkeys(ENDS, 0.0)
    raised[0, 1] = raised[1, 0] = late
    return History(raised, [dict.fromkeys(ENDS, 0.5)])


def test_a_history_leads_to_the_only_best_paths() -> None:
    todo = plan(TOPOLOGY, changes=1, count=1, seed=3)
    findings = Simulation(TOPOLOGY, TIMES, todo, _history(late=0.0), seed=1).run()
    graph = nx.Graph()
    graph.add_weighted_edges_from((a, b, cost) for (a, b), cost in todo.costs[0].items())
    wanted = {
        (source, to, path[1], nx.path_weight(graph, path, "weight"))
        for source, paths in nx.all_pairs_dijkstra_path(graph)
        for to, path in paths.items()
        if source != to
    }
    assert findings.routes == [wanted]
    assert [len(findings.seconds[case]) for case in CASES] == [1] * len(CASES)
    assert all(seconds[0] < 10.0 for seconds in findings.seconds.values())


def test_seconds_count_from_when_all_was_done() -> None:
    todo = plan(TOPOLOGY, changes=0, count=0, seed=1)
    early, late = (Simulation(TOPOLOGY, TIMES, todo, _history(late=late), seed=1).run().seconds for late in (0.0, 8.0))
    assert 0.0 < late[CASES[1]][0] < 2 * early[CASES[1]][0]


def test_a_difference_of_more_than_a_fifth_is_found() -> None:
    lab, simulated = Findings(), Findings()
    for case in CASES:
        lab.note(case, 1.0)
        lab.note(case, 1.5, after=0.5)
        simulated.note(case, 1.0 if case == CASES[0] else 1.5)
    rows = compare(lab, simulated)
    assert [row.is_within for row in rows] == [True, *[False] * (len(CASES) - 1)]
    lab.note(CASES[0], None)
    assert not compare(lab, simulated)[0].is_within
    assert rows[0].errors == pytest.approx((0.0, 0.0))
