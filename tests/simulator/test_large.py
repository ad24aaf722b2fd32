"""meshsim batch and meshsim flow, from the command line."""

import json

import pytest

from simulator import main


def test_batch_says_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["batch", "--topology", "grid:5x4", "--json", "--shards", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["nodes"], found["routes"], found["loops"]) == (20, 20 * 19, 0)
    assert main.main(["batch", "--topology", "grid:5x4", "--shards", "1"]) == 0
    assert found["trace"] in capsys.readouterr().out


def test_flow_finds_an_equilibrium_and_follows_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["flow", "--topology", "geometric:500:8", "--gateways", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gap"] <= 5e-3
    assert found["relays_that_earn"] > 100
    assert main.main(["flow", "--topology", "map:geant2012", "--rule", "--rounds", "5"]) == 0
    assert "flapping" in capsys.readouterr().out
    assert main.main(["flow", "--topology", "geometric:500:8", "--demand", "9", "--rounds", "1"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["batch", "--topology", "geometric:10000", "--max-memory", "100M"],
        ["flow", "--topology", "geometric:1000000", "--max-memory", "200M"],
        ["flow", "--topology", "grid:3x3", "--gateways", "10"],
        ["flow", "--topology", "grid:3x3", "--capacity", "0"],
        ["batch", "--topology", "pyramid:3"],
    ],
)
def test_what_cannot_be_or_needs_too_much_is_refused_at_once(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(arguments) == 2
    assert capsys.readouterr().err.startswith("meshsim: ")
