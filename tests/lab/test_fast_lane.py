"""Whole daemons with nobody else's rules beside them: what the fast lane carries is billed and paid like the rest.

In the other labs witnesses count in the hook forward, and so all goes the long way there.
"""

from __future__ import annotations

import pytest

from tests.lab.mesh import MB, SAT_PER_MB, Mesh, await_routes, lab_name, topology, until
from tools.lab.lab import Lab

pytestmark = pytest.mark.lab
BUYER, RELAY, SHOP = NODES = ("n1", "n2", "n3")
FEE = 20 * SAT_PER_MB


def test_what_the_lane_carries_is_paid_for_through_a_kill_of_the_relay() -> None:
    graph = topology([(BUYER, RELAY), (RELAY, SHOP)], dict.fromkeys(NODES, FEE))
    with Lab(graph, name=lab_name("lane")) as lab:
        await_routes(lab)
        mesh = Mesh(lab)

        def lane() -> dict[str, int]:
            return dict(lab.rpc(RELAY, "status")["fast_lane"])

        problem = lab.rpc(RELAY, "status")["fast_lane"]["problem"]
        if problem is not None:
            pytest.skip(f"no fast lane here: {problem}")
        upload = mesh.transfer(BUYER, SHOP)
        upload.await_more(3 * MB)
        until("the transfer in the lane", lambda: lane()["bytes"] > 2 * MB)
        # From before the kill on: its neighbours soon give it up, maybe before a busy machine lets us look again.
        before = upload.received()
        lab.kill_node(RELAY)
        until("what it left carrying on", lambda: upload.received() > before + MB // 2)
        lab.start_node(RELAY)
        lab.kill_node(RELAY)  # mostly before it has billed what it found in the kernel: it does not find it there again
        lab.start_node(RELAY)
        until("the transfer in the new lane", lambda: lane()["bytes"] > MB)
        upload.finish(now=True)
        mesh.settle()
        mesh.assert_paid_as_received()
        billed, sent = mesh.ledger(RELAY, BUYER)["billed_msat"], mesh.ledger(BUYER, RELAY)["sent_msat"]
        assert 0 <= billed - sent < 1000
        received = upload.received()
        assert billed >= received * FEE / 1e9  # headers come on top
