import json

import pytest

from tools.bench import simulator_bench
from tools.bench.simulator_bench import Outcome, Task, measure


def test_a_case_is_measured_in_a_process_of_its_own() -> None:
    burn = "import json; x = bytearray(60_000_000); sum(range(3_000_000)); print(json.dumps({'answer': len(x)}))"
    found = measure(Task("burn", (), 60, 1024, script=burn))
    assert found.status == 0
    assert found.document == {"answer": 60_000_000}
    assert found.cpu_seconds > 0
    assert 57 < found.peak_mib < 1024
    assert measure(Task("fail", (), 60, script="raise SystemExit(3)")).status == 3


def test_the_ratio_is_of_time_or_memory_whichever_is_worse() -> None:
    outcome = Outcome(Task("x", (), 10, 100), 5.0, 5.0, 80.0, 0, {})
    assert outcome.ratio == 0.8
    assert Outcome(Task("x", (), 10), 5.0, 5.0, 80.0, 0, {}).ratio == 0.5
    assert outcome.as_dict()["ok"] is True


def test_the_verdict_is_in_the_exit_code_and_the_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without running what takes a minute."""
    spent = {"slow": 99.0}
    monkeypatch.setattr(
        simulator_bench, "measure", lambda task: Outcome(task, spent.get(task.name, 1.0), 1.0, 10.0, 0, {})
    )
    monkeypatch.setattr(simulator_bench, "tasks", lambda: [Task("quick", (), 5), Task("slow", (), 60, is_long=True)])
    assert simulator_bench.main(["--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [(case["name"], case["ratio"]) for case in document["cases"]] == [("quick", 0.2), ("slow", 1.65)]
    assert document["machine"]["cpus"]
    assert simulator_bench.main(["--quick"]) == 0
    assert "slow" not in capsys.readouterr().out


def test_every_case_says_what_it_runs() -> None:
    names = [task.name for task in simulator_bench.tasks()]
    assert len(set(names)) == len(names) > 10
    assert all(task.arguments or task.script for task in simulator_bench.tasks())
