"""The benchmark of enforcement runs, and sees a debtor in the free tier; what it measures is for quiet machines."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.meshd.kernel_lab import needs_namespaces
from tools.bench import enforcement_bench
from tools.bench.common import report


@pytest.mark.parametrize("case", [pytest.param("enforced-debtor-udp-1-mbit", marks=needs_namespaces)])
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not installed")
def test_a_debtors_rate_is_measured_beside_the_configured_one(case: str) -> None:
    measured = enforcement_bench._cases()[case](1, 0.5)
    read = json.loads(report([measured], as_json=True))["cases"][0]
    assert read["name"] == case
    assert read["anchor"] == 1_000_000
    assert 0 < read["free_bytes"] < read["refused_bytes"]  # twenty times the tier was sent


def test_every_case_is_named_after_what_it_shows() -> None:
    assert all(name.startswith("enforced-") for name in enforcement_bench._cases())
