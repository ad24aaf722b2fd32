"""Two ways between radios: a cheap one and a dear one. Loss on the cheap one (netem) decides, by what a link costs.

A perfect hop costs 256, and 1 sat/MB weighs 16: the cheap way 528, the dear one 832. Hellos lost in both directions
make the cheap one some 650 at 10 % (256 / 0.9^2 a hop), and more than 1,000 at 30 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.mesh import SAT_PER_MB
from tests.vm.radios import Layer, RadioMesh, eventually, on_air
from tools.lab.topology import Link

BUYER, CHEAP, DEAR, SHOP = "n1", "n2", "n3", "n4"
FEES = {BUYER: 0, CHEAP: 1 * SAT_PER_MB, DEAR: 20 * SAT_PER_MB, SHOP: 0}
LINKS = [Link(BUYER, CHEAP), Link(BUYER, DEAR), Link(CHEAP, SHOP), Link(DEAR, SHOP)]


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[RadioMesh]:
    with on_air("vm-loss", Layer.AD_HOC, LINKS, FEES, quality="hello") as mesh:
        yield mesh


def lose(mesh: RadioMesh, percent: int) -> None:
    """From now on each packet in the tunnels of the cheap way, in either direction."""
    for a, b in ((BUYER, CHEAP), (SHOP, CHEAP)):
        for node, peer in ((a, b), (b, a)):
            tunnel = mesh.tunnel(node, peer)
            mesh.lab.exec(node, ["tc", "qdisc", "replace", "dev", tunnel, "root", "netem", "loss", f"{percent}%"])


def await_way(mesh: RadioMesh, relay: str) -> None:
    eventually(f"the way through {relay}", lambda: mesh.way(BUYER, SHOP) == [BUYER, relay, SHOP])


def test_much_loss_moves_the_route_and_a_little_does_not_keep_it_away(mesh: RadioMesh) -> None:
    await_way(mesh, CHEAP)
    lose(mesh, 30)
    await_way(mesh, DEAR)
    lose(mesh, 10)
    await_way(mesh, CHEAP)
