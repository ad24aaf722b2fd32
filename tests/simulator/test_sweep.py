import json
from pathlib import Path

import pytest

from simulator import main, sweep
from simulator.sweep import SweepError

SCENARIO = """
[scenario]
duration = 30
quiet = 1

[topology]
graph = "line:3"

[[link]]
latency = 0.001
"""
VARY = ["--vary", "link.0.latency=0.001,0.05", "--seeds", "2"]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "line.toml"
    path.write_text(SCENARIO)
    return path


def test_a_sweep_goes_on_where_it_stopped(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = scenario.with_name("sweep.jsonl")
    command = ["sweep", str(scenario), *VARY, "--output", str(output)]
    assert main.main(command) == 0
    assert "4 runs, 4 of them now" in capsys.readouterr().out
    lines = output.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    output.write_text(lines[0] + lines[2] + lines[3][:40])  # killed in the middle of a line
    assert main.main(command) == 0
    assert "4 runs, 2 of them now" in capsys.readouterr().out
    assert sorted(output.read_text().splitlines(keepends=True)) == sorted(lines)
    assert main.main([*command, "--workers", "2"]) == 0
    assert "4 runs, 0 of them now" in capsys.readouterr().out


def test_processes_give_the_same_rows(scenario: Path) -> None:
    cells = sweep.cells(sweep.read_document(scenario), scenario.parent, [], range(3))
    one, two = scenario.with_name("one"), scenario.with_name("two")
    assert sweep.run(cells, one) == sweep.run(cells, two, workers=2) == 3
    assert sweep.done(one) == sweep.done(two)
    assert len({row["trace"] for row in sweep.done(one).values()}) == 3


def test_two_sides_are_compared_by_their_means(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = scenario.with_name("sweep.jsonl")
    assert main.main(["sweep", str(scenario), *VARY, "--output", str(output)]) == 0
    capsys.readouterr()
    assert main.main(["compare", str(output), "--by", "link.0.latency", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    slower = found["routes_all_at"]
    assert slower["means"][1] > slower["means"][0] + 0.04
    assert found["nodes"] == {"means": [3.0, 3.0], "deviations": [0.0, 0.0], "is_clear": False}
    assert main.main(["compare", str(output), str(output)]) == 0
    assert "4 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "routing.hello_interval", "routing.hello_interval=", "a=1", "a.b=[", "a.b.c.d=1", "link.7.latency=1"]
)
def test_a_variation_that_makes_no_sense_is_refused(scenario: Path, text: str) -> None:
    assert main.main(["sweep", str(scenario), "--vary", text, "--output", str(scenario) + ".out"]) == 2


def test_files_that_are_no_sweeps_are_refused(scenario: Path, tmp_path: Path) -> None:
    assert main.main(["sweep", str(tmp_path / "none.toml"), "--output", str(tmp_path / "x")]) == 2
    assert main.main(["sweep", str(scenario), "--output", str(tmp_path)]) == 2
    assert main.main(["compare", str(scenario), str(scenario)]) == 2
    assert main.main(["compare", str(tmp_path), str(tmp_path / "none")]) == 2
    with pytest.raises(SweepError, match="line 1"):
        sweep.done(scenario)
