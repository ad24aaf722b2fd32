"""A short one of tools/soak's long runs: it comes to its end, and finds nothing amiss where nothing is."""

from __future__ import annotations

import pytest

from tools.lab import topology
from tools.soaker import main as soak

pytestmark = pytest.mark.lab


def test_six_daemons_stand_half_a_minute_of_churn() -> None:
    said: list[str] = []
    report = soak.run(soak.paying(topology.load("grid:3x2")), 30, 5, "1", said.append)
    assert report["found"] == []
    assert report["paid_msat"] == report["received_msat"] > 0
    assert report["events"]
    assert set(report["resident_bytes"]) == {"n1", "n3", "n4", "n6"}
