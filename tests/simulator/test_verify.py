import json
import random

import numpy as np
import pytest

from simulator import main, preflight, topology, verify
from simulator.batch import engine
from simulator.batch.engine import Step
from simulator.preflight import PreflightError
from simulator.run import random_fees


def test_the_fidelities_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["verify", "--topology", "geometric:16:4", "--seed", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    names = [check["name"] for check in document["checks"]]
    assert names[0] == "exact and batch"
    assert {"batch in shards", "loops", "batch and flow: routes", "batch and flow: loads"} == set(names[1:])


def test_wrong_routes_and_loads_are_seen() -> None:
    graph = topology.build("grid:4x4", random.Random(1), (64, 256))
    fees = random_fees(graph, (0, 1_000_000), random.Random(2))
    batch = engine.simulate(graph, fees)
    assert all(check.is_good for check in verify.compare_flow(graph, fees, batch, 256.0))
    batch.metric[3, 5] += 1
    assert [check.is_good for check in verify.compare_flow(graph, fees, batch, 256.0)] == [False, False]
    dearer = fees | {5: 3_000_000}
    batch = engine.simulate(graph, fees)
    assert not verify.compare_flow(graph, dearer, batch, 256.0)[0].is_good


def test_loads_are_counted_hop_by_hop() -> None:
    next_hop = np.array([-1, 0, 1, 1, -1], np.int32)
    assert verify._carried(next_hop, 0).tolist() == [0, 2, 0, 0, 0]


def test_steps_cut_each_link_once() -> None:
    graph = topology.build("ring:6", random.Random(1))
    steps = verify.random_steps(graph, random.Random(1), 11)
    cuts = [(step.node, step.value) for step in steps if step.kind == "link_down"]
    assert steps[0] == Step("originate")
    assert len(steps) == 12
    assert len(cuts) == len(set(cuts)) > 1
    assert all(graph.has_edge(*cut) for cut in cuts)


@pytest.mark.parametrize("arguments", [["--topology", "pyramid:3"], ["--topology", "file:/none"]])
def test_what_cannot_be_verified_is_refused(arguments: list[str]) -> None:
    assert main.main(["verify", *arguments]) == 2


def test_a_run_that_needs_more_memory_than_allowed_is_refused() -> None:
    estimate = preflight.batch(10_000, 30_000)
    assert preflight.batch(10_000, 30_000, keeps_routes=True).memory > 12 * 10_000**2
    estimate.check(None)
    estimate.check(preflight.parse_size("64G"))
    with pytest.raises(PreflightError, match="max-memory"):
        estimate.check(preflight.parse_size("100M"))
    assert preflight.batch(2000, 6000).seconds > preflight.batch(1000, 3000).seconds * 3
    assert preflight.flow(10**6, 3 * 10**6).memory < 1e9
    assert preflight.exact(1000, 3000).seconds > 1
    assert "MiB" in str(estimate)


@pytest.mark.parametrize(("nodes", "links", "mib"), [(200, 519, 122), (400, 1137, 303), (1000, 2815, 1488)])
def test_the_memory_of_an_exact_run_is_about_what_was_measured(nodes: int, links: int, mib: int) -> None:
    """Of `geometric` by machine code, 2026-11-21."""
    memory = preflight.exact(nodes, links, is_compiled=True).memory
    assert memory / 2**20 == pytest.approx(mib, rel=0.15)
    assert memory < preflight.exact(nodes, links).memory < 1.5 * memory


@pytest.mark.parametrize(("text", "size"), [("500M", 500 * 2**20), ("2g", 2 * 2**30), ("1.5 KiB", None), ("12", 12)])
def test_sizes_are_read(text: str, size: float | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match="size"):
            preflight.parse_size(text)
    else:
        assert preflight.parse_size(text) == size
