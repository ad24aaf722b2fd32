"""Scenario files: what they may say, what is said when they are wrong, and what names them."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from simulator import scenario
from simulator.scenario import Scenario, ScenarioError, load, parse, roles_of, select
from simulator.trace import NO_ROUTE, RouteTrace

ROOT = Path(__file__).parents[2]


def test_an_empty_file_is_a_scenario_of_defaults() -> None:
    assert parse("") == Scenario()


def test_every_table_is_read() -> None:
    made = parse(
        """
        [scenario]
        name = "all"
        duration = 10
        [topology]
        graph = "line:3"
        cost = [50, 300]
        [routing]
        hello_interval = 1
        [payments]
        enabled = true
        [[link]]
        between = [[0, 1]]
        latency = 0.02
        [[role]]
        nodes = 2
        role = "gateway"
        [[demand]]
        source = "all"
        rate = 1e6
        [[price]]
        policy = "auto"
        fee = 1000
        [[churn]]
        mean_up = 100
        [[mobility]]
        nodes = ["random:2", 0]
        [[fault]]
        at = 3
        kind = "node_down"
        nodes = 1
        [[adversary]]
        kind = "metric_liar"
        nodes = "relay"
        """
    )
    assert (made.run.duration, made.topology.cost, made.routing.hello_interval) == (10.0, (50, 300), 1.0)
    assert made.links[0].between == ((0, 1),)
    assert made.links[0].latency == (0.02, 0.02)
    assert made.links[0].loss is None
    assert made.demands[0].destination is None
    assert made.mobilities[0].nodes == ("random:2", 0)
    assert (made.faults[0].nodes, made.adversaries[0].nodes) == ((1,), ("relay",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[topolgy]", 'unknown table [topolgy]; did you mean "topology"?'),
        ("[scenario]\nseeed = 1", '[scenario]: unknown key seeed; did you mean "seed"?'),
        ("[scenario]\nseed = -1", "[scenario]: seed = -1: expected an integer from 0 to"),
        ("[topology]\ncost = [9, 1]", "[topology]: cost = [9, 1]: expected an integer from 1 to 65534, or [low, high]"),
        ("[link]", "links are written as [[link]]"),
        ("[[link]]\nbetween = [[1, 1]]", "[[link]] number 1: between = [[1, 1]]"),
        ("[[role]]\nnodes = 1", "[[role]] number 1: role is missing"),
        ('[[role]]\nnodes = "rely"\nrole = "leaf"', '[[role]] number 1: nodes = "rely": expected a node, a role'),
        ('[[adversary]]\nnodes = 1\nkind = "black_hol"', 'did you mean "black_hole"?'),
        ("[[price]]\nfloor = 9\nceiling = 8", "[[price]] number 1: floor = 9: expected at most ceiling (8)"),
        ('[[fault]]\nat = 1\nkind = "node_up"', "[[fault]] number 1: nodes is missing"),
        ('[[fault]]\nat = 1\nkind = "loss"\nvalue = 2', "value = 2: expected a share from 0 to 1"),
        ("[payments]\nwindow = 9\nmax_window = 8", "[payments]: window = 9: expected at most max_window (8)"),
        ('[[demand]]\nsource = "all"\nrate = 1', 'without destination needs a [[role]] with role = "gateway"'),
        ("[scenario", "Expected"),
        ("scenario = 3", "[scenario] must be a table"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(message)):
        parse(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"none\.toml: No such file"):
        load(tmp_path / "none.toml")
    path = tmp_path / "bad.toml"
    path.write_text("[scenario]\nname = 3")
    with pytest.raises(ScenarioError, match=r"bad.toml: \[scenario\]: name = 3"):
        load(path)


def test_the_digest_is_of_the_content_and_of_the_files_it_names(tmp_path: Path) -> None:
    (tmp_path / "graph.csv").write_text("0,1\n")
    path = tmp_path / "a.toml"
    path.write_text('[topology]\nfile = "graph.csv"')
    first = load(path).digest()
    path.write_text('# the same\n[topology]\nfile = "graph.csv"\ncost = 96')
    assert load(path).digest() == first
    (tmp_path / "graph.csv").write_text("0,2\n")
    assert load(path).digest() != first
    assert parse("").digest() != parse("[scenario]\nseed = 1").digest()


def test_selectors_mean_nodes() -> None:
    def chosen(*selector: int | str) -> list[int]:
        roles = {0: "gateway", 1: "relay"}
        return select(selector, count=4, roles=roles, names=["a", "b", "c", "d"], rng=random.Random(1))

    assert chosen("all") == [0, 1, 2, 3]
    assert chosen(3, "gateway") == [0, 3]
    assert chosen("relay") == [1, 2, 3]
    assert chosen("name:c") == [2]
    assert len(chosen("random:2")) == 2
    for wrong in (4, "random:5", "name:e"):
        with pytest.raises(ScenarioError):
            chosen(wrong)


def test_the_later_role_decides() -> None:
    tables = parse('[[role]]\nnodes="all"\nrole="buyer"\n[[role]]\nnodes=1\nrole="gateway"').roles
    assert roles_of(tables, count=3, rng=random.Random(1)) == {0: "buyer", 1: "gateway", 2: "buyer"}


def test_the_reference_is_complete() -> None:
    """docs/scenarios.md holds what the declarations say, word for word."""
    page = (ROOT / "docs/scenarios.md").read_text()
    wanted = "\n".join(scenario.reference())
    assert wanted in page, "write the output of `meshsim scenario` into docs/scenarios.md"


def test_a_trace_is_the_same_however_it_is_sharded() -> None:
    changes = [(7, 0.5, 1, 7, 96, 0), (8, 0.5, 1, 8, 96, 5), (7, 1.0, 2, 1, 192, 9), (7, 2.0, 1, NO_ROUTE, 65535, 0)]

    def traced(wanted: list[tuple[int, float, int, int, int, int]]) -> RouteTrace:
        trace = RouteTrace()
        for destination, at, node, hop, metric, price in wanted:
            trace.add(destination, at=at, node=node, next_hop=hop, metric=metric, price=price)
        return trace

    whole = traced(changes)
    shards = traced([c for c in changes if c[0] == 8])
    shards.merge(traced([c for c in changes if c[0] == 7]))
    assert (shards.digest(), shards.count) == (whole.digest(), 4)
    assert traced(changes[:3]).digest() != whole.digest()
    with pytest.raises(ValueError, match="two shards"):
        whole.merge(shards)
