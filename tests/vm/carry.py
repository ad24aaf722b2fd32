"""Traffic along a way, judged: counted at both ends of each hop, and paid."""

from __future__ import annotations

from itertools import pairwise

from tests.lab.mesh import MB, SAT_PER_MB
from tests.vm.radios import RadioMesh

FEE = 20 * SAT_PER_MB
SIZE = 4 * MB


def carry(mesh: RadioMesh, way: list[str]) -> None:
    """So many bytes from its first to its last node. Every node of the way asks FEE."""
    hops = list(pairwise(way))
    before = {(a, b): (mesh.bytes_out(a, b), mesh.bytes_in(b, a)) for a, b in hops}
    earned = {(a, b): mesh.ledger(b, a)["received_msat"] for a, b in hops}
    assert mesh.transfer(way[0], way[-1], SIZE).finish() == SIZE
    mesh.settle()
    for a, b in hops:
        sent, received = mesh.bytes_out(a, b) - before[a, b][0], mesh.bytes_in(b, a) - before[a, b][1]
        assert SIZE < received <= sent, (a, b)
    mesh.assert_paid_as_received()
    for a, b in hops[:-1]:  # the last asks nothing for what it gets itself
        assert mesh.ledger(b, a)["received_msat"] - earned[a, b] > SIZE * FEE // 10**9, (a, b)
