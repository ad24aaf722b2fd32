import json
from types import SimpleNamespace

import pytest

from tools.bench import simulator_bench, simulator_exact, simulator_large
from tools.bench.simulator_bench import Outcome, measure
from tools.bench.simulator_cases import Task, script


def test_a_case_is_measured_in_a_process_of_its_own() -> None:
    burn = "import json; x = bytearray(60_000_000); sum(range(3_000_000)); print(json.dumps({'answer': len(x)}))"
    found = measure(Task("burn", script(burn), 600, 1024, check=lambda document: [f"answer {document['answer']}"]))
    assert found.status == 0
    assert found.document == {"answer": 60_000_000}
    assert found.errors == ["answer 60000000"]
    assert not found.is_good
    assert found.cpu_seconds > 0
    assert 57 < found.peak_mib < 1024
    failed = measure(Task("fail", script("raise SystemExit(3)"), 60))
    assert (failed.status, failed.is_good) == (3, False)


def test_time_and_memory_each_have_their_target() -> None:
    assert Outcome(Task("x", (), 10, 100), 5.0, 5.0, 80.0, 0, {}).is_good
    assert not Outcome(Task("x", (), 10, 100), 5.0, 5.0, 120.0, 0, {}).is_good
    assert not Outcome(Task("x", (), 10, 100), 11.0, 5.0, 80.0, 0, {}).is_good
    found = Outcome(Task("x", (), 10), 5.0, 5.0, 80.0, 0, {}).as_dict()
    assert (found["ratio"], found["anchor_is"], found["ok"]) == (0.5, "target", True)


def test_the_verdict_is_in_the_exit_code_and_the_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without running what takes a minute."""
    spent = {"slow": 99.0}
    tasks = [Task("quick", (), 5), Task("slow", (), 60, is_long=True), Task("beside", (), anchor="slow")]
    monkeypatch.setattr(
        simulator_bench, "measure", lambda task: Outcome(task, spent.get(task.name, 1.0), 1.0, 10.0, 0, {})
    )
    monkeypatch.setattr(simulator_bench, "MODULES", (SimpleNamespace(tasks=lambda: tasks),))
    assert simulator_bench.main(["--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    ratios = [(case["name"], case["ratio"]) for case in document["cases"]]
    assert ratios == [("quick", 0.2), ("slow", 1.65), ("beside", 0.0101)]
    assert document["machine"]["cpus"]
    assert simulator_bench.main(["--quick"]) == 0
    assert "slow" not in capsys.readouterr().out


def test_every_case_says_what_it_runs() -> None:
    tasks = [task for module in simulator_bench.MODULES for task in module.tasks()]
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names) > 10
    assert all(task.command for task in tasks)
    for number, task in enumerate(tasks):
        assert task.anchor is None or task.anchor in names[:number], "what it is divided by is measured before it"


def test_what_is_wrong_with_a_run_is_told() -> None:
    assert simulator_exact.all_best({"loops": 0, "difference_count": 0}) == []
    assert len(simulator_exact.all_best({"loops": 1, "difference_count": 2})) == 2
    assert simulator_exact.same_trace({"traces": ["a", "a"], "compiled": [True, False]}) == []
    assert len(simulator_exact.same_trace({"traces": ["a", "b"], "compiled": [False, False]})) == 2
    assert simulator_large.all_pairs({"nodes": 3, "routes": 5, "loops": 0}) == ["1 routes are missing"]
