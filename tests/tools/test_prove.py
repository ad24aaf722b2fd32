"""tools/prove: a slice of the proof itself, and that it finds what it looks for."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from routing import rules
from routing.events import BlockRoute, RemoveRoute
from routing.requests import Requests
from tools.prover import main as command
from tools.prover.scenario import Scenario, draw
from tools.prover.steps import Wait
from tools.prover.trial import run, settle, shrink
from tools.prover.truth import Truth

ROOT = Path(__file__).resolve().parents[2]


def test_no_loop_and_shortest_routes_in_twenty_thousand_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--changes", "20000", "--seed", "ci", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["changes"] >= 20_000 and summary["failure_count"] == 0
    assert 0.0 < summary["best_within"] < 300.0


def failing(monkeypatch: pytest.MonkeyPatch) -> Scenario:
    """A scenario that fails once every route is taken for feasible."""
    monkeypatch.setattr(rules, "distance_less", lambda *_: True)
    for number in range(30):
        scenario = draw(f"broken/{number}", steps=15)
        if run(scenario).failure == "loop":
            return scenario
    raise AssertionError("an engine without the feasibility condition was not found out")


def test_an_engine_that_takes_every_route_is_found_out_and_its_scenario_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = failing(monkeypatch)
    smaller = shrink(scenario, tries=40)
    assert len(smaller.steps) < len(scenario.steps)
    verdict = run(smaller)
    assert verdict.failure == "loop" and "loop to" in verdict.details[0]
    assert verdict == run(smaller)  # the same history each time


def test_seqno_requests_that_nobody_answers_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Requests, "handle_seqno_request", lambda *_, **__: None)
    assert any(run(draw(f"broken/{number}", steps=15)).failure == "starvation" for number in range(30))


def calm() -> Scenario:
    """A scenario in which nothing happens."""
    return replace(draw("calm/1", steps=0), steps=[Wait(10.0)])


def test_a_missing_route_is_found_out() -> None:
    world = calm().build()
    assert settle(world)[2] is None
    hops = next(hops for hops in world.next_hops.values() if hops)
    del hops[next(iter(hops))]
    assert any("no working route" in complaint for complaint in Truth(world).unreached())


def test_a_longer_route_is_found_out() -> None:
    world = calm().build()
    assert settle(world)[2] is None
    segment = next(segment for segment in world.segments if not segment.is_cut)
    segment.cost = {node: 2 * cost for node, cost in segment.cost.items()}  # nobody has been told
    assert Truth(world).longer()


def test_an_exception_of_the_engine_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*_: object) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("tools.prover.world.World.run", fall)
    verdict = run(calm())
    assert verdict.failure == "exception" and "on purpose" in verdict.details[0]


@pytest.mark.parametrize("output", [RemoveRoute, BlockRoute])
def test_a_route_that_is_gone_forwards_nothing(output: type[RemoveRoute] | type[BlockRoute]) -> None:
    world = calm().build()
    world.run(10.0)
    key, hops = next((key, hops) for key, hops in world.next_hops.items() if hops and not isinstance(key, tuple))
    node = next(iter(hops))
    world.obey(node, output(key))
    assert node not in hops


def test_the_script() -> None:
    done = subprocess.run([ROOT / "tools/prove", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "--changes" in done.stdout
