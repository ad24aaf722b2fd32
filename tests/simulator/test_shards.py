"""Destination shards of one batch run: in processes, kept in a folder, the same as in one piece."""

import random
from pathlib import Path

import networkx as nx
import pytest

from simulator import topology
from simulator.batch import engine, shards
from simulator.batch.engine import BatchError, Job, Step
from simulator.run import random_fees

STEPS = [Step("originate"), Step("fee", 3, 5_000_000), Step("refresh")]


@pytest.fixture
def network() -> tuple[nx.Graph, dict[int, int]]:
    graph = topology.build("geometric:14:4", random.Random(3), (1, 300))
    return graph, random_fees(graph, (0, 1_000_000), random.Random(4))


def test_processes_give_the_result_of_one_piece(network: tuple[nx.Graph, dict[int, int]]) -> None:
    whole = engine.simulate(*network, STEPS)
    apart = shards.run(engine.jobs(*network, STEPS, shards=5), shards.in_processes(2))
    assert apart.trace.digest() == whole.trace.digest()
    assert (apart.metric == whole.metric).all()
    assert (apart.next_hop == whole.next_hop).all()
    for name in ("updates", "requests", "changes", "loops", "routes", "step_ticks", "destinations"):
        assert getattr(apart, name) == getattr(whole, name)


def test_a_run_goes_on_with_the_shards_that_are_missing(
    network: tuple[nx.Graph, dict[int, int]], tmp_path: Path
) -> None:
    ran: list[list[int]] = []

    def here(run, jobs):
        for number, job in enumerate(jobs):
            ran.append(job.destinations)
            yield number, run(job)

    jobs = engine.jobs(*network, STEPS, shards=4, keeps_routes=False)
    first = shards.run(jobs, here, tmp_path)
    assert len(ran) == 4
    assert len(first.metric) == 0
    kept = sorted(tmp_path.iterdir())
    kept[1].unlink()
    again = shards.run(jobs, here, tmp_path)
    assert len(ran) == 5
    assert (again.trace.digest(), again.updates, again.routes) == (first.trace.digest(), first.updates, first.routes)
    shards.run(engine.jobs(*network, STEPS[:2], shards=4, keeps_routes=False), here, tmp_path)
    assert len(ran) == 9  # another run
    kept[0].write_bytes(b"rubbish")
    with pytest.raises(BatchError, match="not a shard"):
        shards.run(jobs, here, tmp_path)


def test_a_shard_that_cannot_be_run_says_why(network: tuple[nx.Graph, dict[int, int]]) -> None:
    graph = nx.path_graph(1600)
    nx.set_edge_attributes(graph, 1, "cost")
    jobs: list[Job] = engine.jobs(graph, dict.fromkeys(graph, 0), destinations=[0])
    with pytest.raises(BatchError, match="did not settle"):
        shards.run(jobs, shards.in_processes(1))
