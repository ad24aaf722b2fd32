"""Hours of a paid mesh of four radios, in the minutes that its work takes. Only where VMLAB_HOURS says how many."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.vm.carry import FEE, carry
from tests.vm.radios import NODES, Layer, RadioMesh, eventually, line, on_air

HOURS = float(os.environ.get("VMLAB_HOURS", "1"))
PAUSE = 600.0  # between transfers
GROWTH_MAX = 1.25  # of a daemon's memory, after the first transfer: it keeps what it has seen, and no more


def resident_kib(mesh: RadioMesh, node: str) -> int:
    status = Path(f"/proc/{mesh.lab.state.process_by_node[node].pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def test_hours_of_a_mesh_leave_it_as_it_was(lab_base: Path) -> None:
    with on_air("vm-long", Layer.AD_HOC, line(), dict.fromkeys(NODES, FEE)) as mesh:
        carry(mesh, list(NODES))
        before = {node: resident_kib(mesh, node) for node in NODES}
        ends_at = time.monotonic() + HOURS * 3600
        while time.monotonic() < ends_at:
            time.sleep(PAUSE)
            eventually("the whole line", lambda: mesh.way(NODES[0], NODES[-1]) == list(NODES))
            carry(mesh, list(NODES))
        for node in NODES:
            assert mesh.lab.is_running(node)
            assert resident_kib(mesh, node) < before[node] * GROWTH_MAX, node
