"""Scenario files in batch, flow and verify."""

import json
from pathlib import Path

import pytest

from routing import rules
from simulator import main
from simulator.batch import engine
from simulator.batch.engine import Step
from simulator.batch.plan import plan
from simulator.draft import Draft
from simulator.exact.world import World
from simulator.flow import economy
from simulator.oracle import solve
from simulator.scenario import ScenarioError, parse

CITY = """
[scenario]
name = "city"
seed = 5
duration = 400

[topology]
graph = "geometric:24:5"
cost = [64, 200]

[[role]]
nodes = ["random:2"]
role = "gateway"

[[role]]
nodes = [3, 4]
role = "leaf"

[[price]]
fee = [0, 1000000]

[[demand]]
source = ["all"]
rate = 1e6
"""
FAULTS = """
[[fault]]
at = 20
kind = "cost"
links = [[LINK]]
value = 900

[[fault]]
at = 10
kind = "node_down"
nodes = [7]

[[fault]]
at = 30
kind = "node_up"
nodes = [7]
"""


def with_faults(text: str) -> str:
    link = sorted(Draft(parse(text), 5).graph.edges)[0]
    return text + FAULTS.replace("[LINK]", str(list(link)))


def test_all_fidelities_draw_the_same_mesh() -> None:
    scenario = parse(CITY)
    world, draft = World(scenario, seed=9), Draft(scenario, 9)
    assert dict(world.graph.edges) == dict(draft.graph.edges)
    assert (world.fees, world.roles) == (draft.fees, draft.roles)
    assert len(set(draft.fees.values())) > 10
    assert [(f.source, f.destination) for f in world.traffic.flows] == [flow[:2] for flow in draft.flows()]


def test_batch_ends_with_the_shortest_paths_of_the_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Links that fail and return, and one that is dearer; nobody goes through a leaf."""
    text = with_faults(CITY)
    draft = Draft(parse(text), 5)
    planned = plan(draft)
    kinds = [step.kind for step in planned.steps]
    links = draft.graph.degree[7]
    assert kinds == ["originate", *["link_down"] * links, "cost", *["link_up"] * links]
    assert planned.left_out == ["[[demand]]"]
    result = engine.simulate(draft.graph, draft.asked_fees(), planned.steps)
    changed = planned.steps[1 + links]
    draft.graph.edges[changed.node, changed.value]["cost"] = 900
    oracle = solve(draft.graph, draft.asked_fees(), 256.0)
    assert result.loops == 0
    for destination in draft.graph:
        for node in set(draft.graph) - {destination}:
            wanted = oracle.distance[destination][node]
            assert result.metric[destination, node] == wanted
            assert result.next_hop[destination, node] in ({-1} | set(draft.graph) - {3, 4}) | {destination}
    path, output = tmp_path / "city.toml", tmp_path / "routes.csv"
    path.write_text(text)
    assert main.main(["batch", str(path), "--json", "--output", str(output)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["seed"], found["trace"]) == ("city", 5, result.trace.digest())
    assert len(output.read_text().splitlines()) == 1 + found["routes"]


def test_a_link_returns_when_it_and_both_its_ends_are_well() -> None:
    text = CITY.replace('graph = "geometric:24:5"', 'graph = "line:3"').replace("[3, 4]", "[2]").replace(":2", ":1")
    for at, kind, what in (
        (1, "link_down", "links = [[0, 1]]"),
        (2, "node_down", "nodes = [1]"),
        (3, "link_up", "links = [[0, 1]]"),
        (4, "node_up", "nodes = [1]"),
    ):
        text += f'\n[[fault]]\nat = {at}\nkind = "{kind}"\n{what}\n'
    steps = plan(Draft(parse(text), 1)).steps
    assert steps[1:] == [
        Step("link_down", 0, 1),
        Step("link_down", 1, 2),
        Step("link_up", 0, 1),
        Step("link_up", 1, 2),
    ]


def test_flow_carries_what_the_sources_send_and_money_adds_up() -> None:
    draft = Draft(parse(CITY), 5)
    found = economy.settle(draft, rounds=10)
    gateways = [node for node, role in draft.roles.items() if role == "gateway"]
    assert not found.is_reached[23]  # behind a leaf
    assert found.is_reached[:23].all()
    assert found.load[gateways].sum() == pytest.approx(1e6 * (23 - len(gateways)))
    assert (found.load[[3, 4]] == 0).all()
    assert len(found.run.rounds) == 1
    assert (found.fee == [draft.fees[node] for node in range(24)]).all()
    batch = engine.simulate(draft.graph, draft.asked_fees(), destinations=gateways)
    for node in set(range(23)) - set(gateways):  # the way is the batch engine's, the gateway's own fee on top
        ways = [
            int(batch.metric[row, node]) + rules.price_metric(draft.fees[gateway], 256.0)
            for row, gateway in enumerate(batch.destinations)
        ]
        assert found.distance[node] == min(ways)


def test_fees_follow_the_load_where_the_scenario_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CITY.replace("fee = [0, 1000000]", 'fee = [100000, 100000]\npolicy = "auto"\ncapacity = 5e6')
    found = economy.settle(Draft(parse(text), 5), rounds=60)
    idle, busy = found.load < 1e5, found.load > 5e6
    idle[[3, 4]] = False  # the leaves sell nothing
    assert idle.any()
    assert busy.any()
    assert found.fee[idle].max() < 100_000 < found.fee[busy].min()
    path, output = tmp_path / "city.toml", tmp_path / "nodes.csv"
    path.write_text(text)
    assert main.main(["flow", str(path), "--rounds", "60", "--json", "--output", str(output)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["earned_msat_per_s"] == pytest.approx(found.earned.sum())
    assert len(output.read_text().splitlines()) == 25


def test_verify_takes_a_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "city.toml"
    path.write_text(with_faults(CITY).replace("at = 30", "at = 900"))
    assert main.main(["verify", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["checks"][0]["name"] == "exact and batch"
    assert (document["name"], document["left_out"]) == ("city", ["[[demand]]"])
    assert document["steps"] > 2


@pytest.mark.parametrize(
    ("text", "verbs"),
    [
        ("[[mobility]]", ("batch", "flow", "verify")),
        ('[[adversary]]\nkind = "black_hole"\nnodes = [1]', ("batch", "flow", "verify")),
        ("[[link]]\nloss = 0.1", ("batch", "flow", "verify")),
        ('[[price]]\npolicy = "auto"', ("batch", "verify")),
        ('[[fault]]\nat = 1\nkind = "loss"\nvalue = 0.5', ("batch", "verify")),
        ("", ("flow",)),  # no gateway
        ("[topology]\ngraph = 'pyramid:3'", ("batch", "flow", "verify")),
    ],
)
def test_what_a_fidelity_does_not_have_is_refused(text: str, verbs: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    for verb in verbs:
        assert main.main([verb, str(path)]) == 2


def test_plans_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    churn = parse("[scenario]\nduration = 1000\n[[churn]]\nmean_up = 100\nmean_down = 1\n")
    assert len(plan(Draft(churn, 1)).steps) > 100
    monkeypatch.setattr("simulator.batch.plan.STEPS_MAX", 100)
    with pytest.raises(ScenarioError, match="fail and return"):
        plan(Draft(churn, 1))
