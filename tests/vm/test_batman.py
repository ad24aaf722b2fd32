"""Four radios in a line, batman-adv over them, a daemon on each `bat0`: to the daemons that is one link of all four,
and how well each is reached is what batman-adv says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from tests.vm.carry import FEE, carry
from tests.vm.radios import BATMAN, NODES, RADIO, Layer, RadioMesh, eventually, line, on_air

TQ_TOLERANCE = 24  # of 255: ours is of a moment ago, and theirs moves with every lost broadcast


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[RadioMesh]:
    with on_air("vm-bat", Layer.BATMAN, line(), dict.fromkeys(NODES, FEE)) as mesh:
        yield mesh


def mac(mesh: RadioMesh, node: str) -> str:
    (link,) = json.loads(mesh.lab.exec(node, ["ip", "-j", "link", "show", RADIO]).stdout)
    return str(link["address"])


def batmans_view(mesh: RadioMesh, node: str) -> dict[str, int]:
    """TQ of the best way to each node, as batman-adv's own tool tells."""
    listed = json.loads(mesh.lab.exec(node, ["batctl", "meshif", BATMAN, "originators_json"]).stdout)
    tq_by_mac = {row["orig_address"]: row["tq"] for row in listed if row.get("best")}
    return {peer: tq_by_mac.get(mac(mesh, peer), 0) for peer in NODES if peer != node}


def daemons_view(mesh: RadioMesh, node: str) -> dict[str, int]:
    found = {}
    for peer in NODES:
        row = None if peer == node else mesh.find(node, peer)
        if row is not None and row["quality"] is not None and row["quality"]["source"] == "TQ":
            found[peer] = row["quality"]["tq"]
    return found


def test_all_are_neighbours_through_it(mesh: RadioMesh) -> None:
    def is_whole() -> bool:
        return all(mesh.neighbours(node) == set(NODES) - {node} for node in NODES)

    eventually("neighbours over several hops of batman-adv", is_whole)


def test_our_figures_are_batman_advs(mesh: RadioMesh) -> None:
    def differences(node: str) -> dict[str, int]:
        ours, theirs = daemons_view(mesh, node), batmans_view(mesh, node)
        return {peer: abs(ours.get(peer, 1000) - tq) for peer, tq in theirs.items()}

    for node in NODES:
        eventually(f"{node} agreeing", lambda: max(differences(node).values()) <= TQ_TOLERANCE)  # noqa: B023
    for near, far in permutations(NODES, 2):  # worse the farther away: what routes by quality live on
        if NODES.index(far) - NODES.index(near) == 1:
            view = daemons_view(mesh, near)
            assert all(view[far] >= view[other] for other in NODES[NODES.index(far) + 1 :] if other in view)


def test_traffic_over_it_is_counted_and_paid(mesh: RadioMesh) -> None:
    way = mesh.way(NODES[0], NODES[-1])
    assert way[-1] == NODES[-1]
    carry(mesh, way)
