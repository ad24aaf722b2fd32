"""tools/bench/payments at its smallest: that what it measures is really paid. Its figures are for quiet machines."""

from __future__ import annotations

import json

import pytest

from tools.bench import payments_bench
from tools.bench.common import Case


def test_payments_are_made_on_disk_at_both_ends_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(payments_bench, "tick_case", lambda *_: Case("tick", "", [0.01], [0.02]))
    assert payments_bench.main(["--json", "--repeats", "1", "--neighbours", "3", "--readings", "4"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert cases[0]["name"] == "updates per CPU-second"
    assert cases[0]["anchor"] == 4000 and cases[0]["updates"] == 12
    assert all(case["ours"] > 0 for case in cases)
