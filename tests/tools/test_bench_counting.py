"""The proof that every byte is counted once, at its smallest: `tools/bench/counting --bytes 10G` is the same code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401
from tools.bench.common import Case
from tools.bench.counting_bench import is_exact, run


def _backlog_drops() -> int:
    """Packets that processors had no place for in the queue between a veth's two ends; of the whole machine."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines())


@pytest.mark.parametrize("loss", [0.0, 0.02], ids=["loss-free", "lossy"])
def test_meters_agree_to_the_byte_through_a_restart_and_a_kill(loss: float) -> None:
    before = _backlog_drops()
    cases = run(10_000_000, loss=loss, restarts=not loss, seconds=0.5)
    if not is_exact(cases) and _backlog_drops() != before:
        pytest.skip("the machine was so busy that packets were lost between two interfaces, where nobody counts them")
    assert is_exact(cases), [(case.name, case.ours, case.anchor) for case in cases if case.ours != case.anchor]
    assert len(cases) == 13
    assert all(case.anchor > 1_000_000 for case in cases)
    lost = sum(int(str(case.notes.get("lost", 0))) for case in cases)
    assert bool(lost) == bool(loss)


def test_a_byte_too_many_is_noticed() -> None:
    assert not is_exact([Case("x", "bytes", [2.0], [2.0]), Case("y", "bytes", [3.0], [2.0])])
