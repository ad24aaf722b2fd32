"""Scenarios in the exact engine: links, faults, demand, money and cheats."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from simulator import main, webmap
from simulator.commands import scenario as scenario_command
from simulator.exact.money import Bank
from simulator.exact.pipe import Pipe
from simulator.exact.traffic import rate_at
from simulator.exact.world import World
from simulator.network import prefix_of
from simulator.results import balance_msat, compare_with_fair, document
from simulator.scenario import INTERNET, DemandConfig, ScenarioError, load, parse

SCENARIOS = Path(main.__file__).parent / "scenarios"
LINE = """
[scenario]
duration = 60
[topology]
graph = "line:3"
[[role]]
nodes = 2
role = "gateway"
[[price]]
fee = 1_000_000
[[demand]]
source = 0
rate = 800_000
"""
PAID = "[payments]\nenabled = true\nblock_interval = 2\nwindow = 1_000\n"


def run(text: str, seed: int = 1) -> World:
    world = World(parse(text), seed=seed)
    world.run()
    return world


def bank_of(world: World) -> Bank:
    assert world.bank is not None
    return world.bank


def test_a_pipe_delays_by_latency_transmission_and_queue() -> None:
    pipe = Pipe(0.01, random.Random(1), bandwidth=8_000, queue=1_500)
    assert pipe.send(1_000, now=0.0) == pytest.approx(1.01)
    assert pipe.send(1_000, now=0.0) == pytest.approx(2.01)
    assert pipe.send(1_000, now=0.0) is None
    assert (pipe.overflowed, pipe.lost) == (1, 0)
    assert pipe.send(1_000, now=5.0) == pytest.approx(6.01)
    pipe.is_up = False
    assert pipe.send(1_000, now=9.0) is None
    assert pipe.lost == 1


def test_a_pipe_loses_its_share() -> None:
    pipe = Pipe(0.0, random.Random(1), loss=0.25)
    arrived = sum(pipe.send(100, now=0.0) is not None for _ in range(4_000))
    assert 2_800 < arrived < 3_200


def test_relays_earn_what_they_asked_for_what_they_carried() -> None:
    world = run(LINE)
    relay, source = world.traffic.nodes[1], world.traffic.nodes[0]
    assert relay.carried == world.traffic.flows[0].delivered > 0
    assert relay.earned == source.owed == relay.carried * 1_000_000
    assert balance_msat(world, 1) == -balance_msat(world, 0) == relay.earned // 10**9


def test_payments_follow_to_the_msat() -> None:
    world = run(LINE + PAID)
    bank, relay = bank_of(world), world.traffic.nodes[1]
    assert bank.difference() == (0, 0)
    balances = bank.balances()
    assert balances[1].received == balances[0].sent > 0
    assert balances[1].received + balances[1].unpaid == relay.earned // 10**9
    assert document(world)["ok"]


def test_whoever_never_pays_is_not_carried_for_long() -> None:
    cheat = run(LINE + PAID + '[[adversary]]\nkind = "free_rider"\nnodes = 0')
    fair = run(LINE + PAID)
    assert (1, 0) in bank_of(cheat).suspended
    window_bytes = 1_000 * 10**9 // 1_000_000
    assert cheat.traffic.flows[0].delivered <= window_bytes + 2 * 100_000 < fair.traffic.flows[0].delivered / 2
    against = compare_with_fair(cheat, fair)
    assert against["gain_of_cheats"]["delivered_bytes"] < 0
    assert against["gain_of_others"]["balance_msat"] < 0


def test_a_link_carries_no_more_than_its_bandwidth() -> None:
    world = run(LINE + "[[link]]\nbetween = [[1, 2]]\nbandwidth = 400_000")
    flow = world.traffic.flows[0]
    assert 2 * flow.delivered == flow.offered > 0
    assert world.traffic.link_dropped[1, 2] > 0


def test_what_one_bottleneck_drops_does_not_load_the_next() -> None:
    text = LINE.replace("line:3", "line:4").replace("nodes = 2", "nodes = 3")
    world = run(text + "[[link]]\nbetween = [[0, 1], [1, 2], [2, 3]]\nbandwidth = 400_000")
    flow = world.traffic.flows[0]
    assert flow.offered > 0
    assert flow.delivered == pytest.approx(flow.offered / 2, rel=1e-6)
    assert world.traffic.link_dropped[0, 1] == pytest.approx(flow.offered / 2, rel=1e-6)
    assert world.traffic.link_dropped[1, 2] + world.traffic.link_dropped[2, 3] < 2 * 60  # a byte a second of rounding


def test_flows_that_meet_behind_a_bottleneck_share_by_what_is_left_of_them() -> None:
    """Half of one is lost before the link that both use: 400 of 800 kbit/s, beside 800, on a link of 600."""
    text = (
        LINE.replace("line:3", "line:4").replace("nodes = 2", "nodes = 3") + "[[demand]]\nsource = 1\nrate = 800_000\n"
    )
    text += "[[link]]\nbetween = [[0, 1]]\nbandwidth = 400_000\n[[link]]\nbetween = [[1, 2]]\nbandwidth = 600_000\n"
    first, second = run(text).traffic.flows
    assert first.delivered / first.offered == pytest.approx(0.25, rel=1e-3)
    assert second.delivered / second.offered == pytest.approx(0.5, rel=1e-3)


def test_a_relay_without_a_route_is_paid_for_nothing() -> None:
    """The gateway is cut off, and the relay knows it at once. What it announced stays in force for a while."""
    cut = '[[fault]]\nat = 20.05\nkind = "link_down"\nlinks = [[1, 2]]\ncarrier_lost = true\n'
    world = World(parse(LINE + cut), seed=1)
    world.network.call_at(20.04, lambda: setattr(world.network.pipe(1, 0), "loss", 1.0))  # so that nobody hears of it
    world.run()
    traffic, flow = world.traffic, world.traffic.flows[0]
    assert traffic.link_bytes[0, 1] > traffic.nodes[1].carried, "it went on being sent what it could not carry"
    assert traffic.nodes[1].carried == flow.delivered
    assert traffic.nodes[1].earned == flow.delivered * 1_000_000


def test_a_withdrawn_price_is_forgotten_after_its_notice() -> None:
    cut = '[[fault]]\nat = 20.05\nkind = "link_down"\nlinks = [[1, 2]]\ncarrier_lost = true\n'
    asked: dict[float, int] = {}
    world = World(parse(LINE + cut), seed=1)

    def look() -> None:
        asked[world.network.now] = world.traffic.price_asked(1, INTERNET)

    for at in (19.5, 21.0, 31.9, 32.5):
        world.network.call_at(at, look)
    world.run()
    assert asked == {19.5: 1_000_000, 21.0: 1_000_000, 31.9: 1_000_000, 32.5: 0}


def test_customers_of_a_gateway_that_fails_go_to_the_other() -> None:
    text = LINE.replace("line:3", "line:5").replace("nodes = 2", "nodes = [2, 4]")
    world = run(text + '[[fault]]\nat = 20\nkind = "node_down"\nnodes = 2\ncarrier_lost = true')
    assert world.network.next_hops.get(INTERNET, 0) is None, "the line is cut"
    ring = text.replace("line:5", "ring:5")
    world = run(ring + '[[fault]]\nat = 20\nkind = "node_down"\nnodes = 2\ncarrier_lost = true')
    assert world.traffic.path(0, INTERNET) == [0, 4]
    assert world.settled[0] - 20 < 5
    assert world.network.loops == []


def test_a_node_that_comes_back_is_found_again() -> None:
    faults = (
        '[[fault]]\nat = 10\nkind = "node_down"\nnodes = 1\n[[fault]]\nat = 30\nkind = "node_up"\nnodes = 1\n'
        '[[fault]]\nat = 12\nkind = "cost"\nlinks = [[0, 1]]\nvalue = 500\n'
    )
    world = run(LINE + faults)
    route = world.network.speaker(0).selected(prefix_of(2))
    assert route is not None
    assert route.metric == 500 + 96 + 256
    assert [happening.text for happening in world.happenings] == ["node down", "cost 500", "node up"]


def test_links_that_are_cut_silently_or_with_their_carrier_are_gone_around() -> None:
    text = '[scenario]\nduration = 60\n[topology]\ngraph = "ring:4"\n[[fault]]\nat = 20\nkind = "link_down"'
    text += "\nlinks = [[0, 1]]"
    settled = {}
    for carrier in ("true", "false"):
        world = run(f"{text}\ncarrier_lost = {carrier}")
        assert world.network.next_hops.get(1, 0) == 3
        assert world.network.loops == []
        settled[carrier] = world.settled[0] - 20
    assert settled["true"] < settled["false"]


def test_demand_follows_its_pattern() -> None:
    def at(pattern: str, now: float) -> float:
        return rate_at(DemandConfig(source=(0,), rate=100.0, pattern=pattern, period=10.0, duty=0.2, start=5.0), now)

    assert [at("on_off", now) for now in (4.0, 5.0, 7.5, 15.0)] == [0.0, 100.0, 0.0, 100.0]
    assert at("diurnal", 5.0) == pytest.approx(10.0)
    assert at("diurnal", 10.0) == pytest.approx(100.0)
    assert [at("flash_crowd", now) for now in (6.0, 8.0, 16.0)] == [800.0, 100.0, 100.0]


def test_a_buyer_keeps_to_its_price_and_budget() -> None:
    assert run(LINE + "max_price = 999_999").traffic.flows[0].offered == 0
    poor = run(LINE + "budget_per_hour = 2_000").traffic.flows[0]
    assert poor.purse is not None
    assert 2_000 <= poor.purse.spent_units / 10**9 < 2_200
    both = run(LINE.replace("source = 0", "source = 0\ndestination = [1, 2]") + "budget_per_day = 2_000").traffic.flows
    assert both[0].purse is both[1].purse is not None
    assert both[0].offered > both[1].offered > 0  # to a neighbour it costs nothing, and goes on
    assert run(LINE + "elasticity = 1\nreference_price = 500_000").traffic.flows[0].offered == pytest.approx(
        poor.wanted / 2, rel=0.05
    )


# What its kind of cheating brings in a grid, where others can carry, too: 1 gains, -1 loses.
PAYS = {"bait_and_switch": -1, "black_hole": 1, "under_reporter": 1, "false_retraction": -1, "sybil_chain": -1}


def test_each_kind_of_cheat_has_its_own_gain() -> None:
    text = LINE.replace("line:3", "ring:6") + PAID
    both = (
        '[[adversary]]\nkind = "free_rider"\nnodes = 0\n[[adversary]]\nkind = "colluders"\nnodes = [4, 5]\nfactor = 2'
    )
    against = compare_with_fair(run(text + both), run(text))
    assert set(against["gain_by_kind"]) == {"free_rider", "colluders"}
    parts = [gain["balance_msat"] for gain in against["gain_by_kind"].values()]
    assert sum(parts) == against["gain_of_cheats"]["balance_msat"]
    assert against["unpaid_by_cheats_msat"] > 0


@pytest.mark.parametrize(
    "kind",
    [
        "bait_and_switch",
        "metric_liar",
        "black_hole",
        "under_reporter",
        "false_retraction",
        "flooder",
        "sybil_chain",
        "colluders",
    ],
)
def test_cheats_leave_money_conserved_and_show_in_the_comparison(kind: str) -> None:
    text = """
        [scenario]
        duration = 60
        [topology]
        graph = "grid:3x3"
        [payments]
        enabled = true
        block_interval = 2
        [[role]]
        nodes = 8
        role = "gateway"
        [[price]]
        fee = 500_000
        [[demand]]
        source = [0, 1, 3]
        rate = 500_000
    """
    cheat = run(f'{text}\n[[adversary]]\nkind = "{kind}"\nnodes = 4\nstart = 10\nperiod = 10\nfactor = 20')
    fair = run(text)
    assert bank_of(cheat).difference() == bank_of(fair).difference() == (0, 0)
    assert fair.network.loops == []
    assert cheat.network.trace != fair.network.trace
    against = compare_with_fair(cheat, fair)
    assert (against["kinds"], against["cheats"]) == ([kind], [4])
    assert against["gain_by_kind"] == {kind: against["gain_of_cheats"]}
    money = [against[f"gain_of_{who}"]["balance_msat"] for who in ("cheats", "others")]
    assert sum(money) == 0
    assert PAYS.get(kind, 0) * money[0] >= 0, money
    if kind == "black_hole":
        assert against["gain_of_others"]["delivered_bytes"] < 0
    if kind == "flooder":
        assert against["packets"] > 1_000


def test_churn_mobility_and_traces_run_without_loops(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("# up and down\n5,link_down,0,1\n9,link_up,0,1\n12,node_down,3\n20,node_up,3\n")
    base = '[scenario]\nduration = 40\n[topology]\ngraph = "geometric:12"\n'
    world = World(
        parse(base.replace("geometric:12", "grid:3x3") + '[[churn]]\ntrace = "trace.csv"', base=tmp_path), seed=1
    )
    world.run()
    assert [happening.text for happening in world.happenings] == ["link down", "link up", "node down", "node up"]
    churned = run(base + "[[churn]]\nmean_up = 20\nmean_down = 5")
    walked = run(base + "[[mobility]]\nspeed = 0.05\nradius = 0.4\npause = 1")
    assert churned.happenings != []
    assert walked.network.routes.count > 132
    assert (churned.network.loops, walked.network.loops) == ([], [])
    (tmp_path / "trace.csv").write_text("5,link_down,0\n")
    with pytest.raises(ScenarioError, match=r"trace\.csv, line 1"):
        World(parse('[[churn]]\ntrace = "trace.csv"', base=tmp_path), seed=1)


def test_prices_that_follow_the_load_rise_above_their_floor_where_there_is_load() -> None:
    text = LINE.replace("duration = 60", "duration = 600")
    text = text.replace("fee = 1_000_000", 'policy = "auto"\nfee = 1_000\nfloor = 1_000\ncapacity = 400_000')
    world = run(text)
    assert world.traffic.fee_by_node[1] > 10_000
    assert world.traffic.fee_by_node[0] == 1_000


def test_examples_that_are_shipped_can_be_read() -> None:
    paths = sorted(SCENARIOS.glob("*.toml"))
    assert len(paths) >= 3
    for path in paths:
        World(load(path), seed=1)


def test_the_command_writes_results_that_it_can_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "line.toml"
    path.write_text(LINE + PAID + '[[adversary]]\nkind = "free_rider"\nnodes = 0')
    folder = tmp_path / "results"
    assert main.main(["run", str(path), "--output", str(folder), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["against_fair"]["cheats"] == [0]
    assert {p.name for p in folder.iterdir()} == {
        "summary.json", "manifest.json", "time.csv", "nodes.csv", "links.csv", "map.html",
    }  # fmt: skip
    assert len((folder / "nodes.csv").read_text().splitlines()) == 1 + 3 * 60
    manifest = str(folder / "manifest.json")
    assert main.main(["run", str(path), "--verify", manifest]) == 0
    path.write_text(path.read_text().replace("rate = 800_000", "rate = 900_000"))
    assert main.main(["run", str(path), "--verify", manifest]) == 1
    assert main.main(["report", str(folder)]) == 0
    assert "cheats, against fair" in capsys.readouterr().out
    assert main.main(["report", str(tmp_path)]) == 2
    path.write_text("[scenario]\nduration = -1")
    assert main.main(["run", str(path)]) == 2


def test_plots_are_drawn_from_a_result_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "line.toml"
    path.write_text(LINE)
    assert main.main(["run", str(path), "--output", str(tmp_path)]) == 0
    assert main.main(["report", str(tmp_path), "--plots"]) == 0
    for name in ("convergence", "prices", "load", "earnings"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "nodes.csv").write_text("time\n")
    assert main.main(["report", str(tmp_path), "--plots"]) == 2
    assert "no results of meshsim" in capsys.readouterr().err


def test_timers_that_were_replaced_leave_the_heap() -> None:
    """Else each event makes another, and a long run never ends."""
    counts = []
    for until in (200, 400):
        half = World(parse(LINE.replace("duration = 60", f"duration = {until}")), seed=1)
        half.run()
        counts.append(half.network.event_count)
    assert counts[1] < 2.2 * counts[0]


def test_the_map_asks_nothing_of_any_server() -> None:
    world = run(LINE + '[[fault]]\nat = 9\nkind = "node_down"\nnodes = 0')
    world.names[0] = "</script><b>"
    page = webmap.render(world)
    assert not re.search(r"https?://|src=|@import|fetch\(|XMLHttp", page)
    assert page.count("</script>") == 1
    assert '"node down"' in page


def test_money_from_nowhere_is_not_ok() -> None:
    world = run(LINE + PAID)
    found = document(world)
    bank_of(world)._tills[0].engine._core.peers.clear()
    assert found["ok"]
    assert bank_of(world).difference()[1] > 0
    assert not document(world)["ok"]


def test_money_from_nowhere_is_noticed_in_the_run() -> None:
    world = World(parse(LINE + PAID), seed=1)

    def forge() -> None:
        bank_of(world)._tills[0].engine._core.peers.clear()

    world.network.call_at(30.5, forge)
    world.run()
    violation = bank_of(world).violation
    assert violation is not None
    assert violation.startswith("at 31.000 s")
    assert not document(world)["ok"]


def test_progress_estimates_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 1.0, 5.0])
    monkeypatch.setattr(scenario_command.time, "monotonic", lambda: next(times))
    world = World(parse(LINE), seed=1)
    show = scenario_command.progress(60.0)
    world.network.now = 10.0
    show(world.network)
    assert capsys.readouterr().err == ""
    show(world.network)
    assert "10.00 of 60 s simulated, 2 x real time" in (line := capsys.readouterr().err)
    assert "25 s to go" in line
