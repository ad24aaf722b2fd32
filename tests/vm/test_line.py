"""Four radios in a line, a daemon on each, tunnels of the kernel's own WireGuard: directly over ad-hoc radios, and over
802.11s that forwards nothing itself."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.vm.carry import FEE, carry
from tests.vm.radios import NODES, Layer, RadioMesh, eventually, line, on_air
from tools.lab.topology import Link

FIRST, LAST = NODES[0], NODES[-1]
LEFT_BY_KERNEL = {"local", "main", "default"}  # tables of the rules that each namespace has


@pytest.fixture(scope="module", params=[Layer.AD_HOC, Layer.MESH_POINT], ids=str)
def mesh(request: pytest.FixtureRequest, lab_base: Path) -> Iterator[RadioMesh]:
    layer: Layer = request.param
    with on_air("vm-line", layer, line(), dict.fromkeys(NODES, FEE)) as mesh:
        yield mesh


def tunnels(mesh: RadioMesh, node: str) -> list[str]:
    """Names of the interfaces that are the kernel's own WireGuard."""
    listed = mesh.lab.exec(node, ["ip", "-j", "link", "show", "type", "wireguard"]).stdout
    return [link["ifname"] for link in json.loads(listed or "[]") if link]


def test_neighbours_are_those_in_range_and_have_tunnels_of_the_kernel(mesh: RadioMesh) -> None:
    for node in NODES:
        in_range = set(mesh.lab.topology.neighbours(node))
        assert mesh.neighbours(node) == in_range
        rows = mesh.lab.rpc(node, "neighbours")
        assert {row["interface"] for row in rows} == set(tunnels(mesh, node))
        assert {row["under"] for row in rows} == {mesh.lab.interface}


def test_every_hop_is_counted_and_paid(mesh: RadioMesh) -> None:
    assert mesh.way(FIRST, LAST) == list(NODES)
    carry(mesh, list(NODES))


def test_a_radio_that_moves_away_is_routed_around(mesh: RadioMesh) -> None:
    """n3 leaves, and n4 comes into the range of n2; then all is as before."""
    shorter = ["n1", "n2", "n4"]
    mesh.lab.hear([Link(a, b) for a, b in pairwise(shorter)])
    eventually("the way without n3", lambda: mesh.way(FIRST, LAST) == shorter)
    eventually("n3 being no neighbour", lambda: "n3" not in mesh.neighbours("n2") | mesh.neighbours("n4"))
    carry(mesh, shorter)
    mesh.lab.hear(mesh.lab.topology.links)
    eventually("the way with n3", lambda: mesh.way(FIRST, LAST) == list(NODES))
    eventually("n4 being no neighbour of n2", lambda: mesh.neighbours("n2") == {"n1", "n3"})


def test_a_stopped_daemon_leaves_nothing(mesh: RadioMesh) -> None:
    tunnel = mesh.tunnel(LAST, "n3")
    mesh.lab.kill_node(LAST)
    assert tunnel in tunnels(mesh, LAST)  # it carries on without the daemon
    mesh.lab.start_node(LAST)
    eventually("the neighbour of before", lambda: mesh.neighbours(LAST) == {"n3"})
    eventually("the tunnel of before, and no other", lambda: tunnels(mesh, LAST) == [tunnel])
    mesh.lab.kill_node(LAST, signal.SIGTERM)
    assert tunnels(mesh, LAST) == []
    assert mesh.lab.exec(LAST, ["nft", "list", "ruleset"]).stdout == ""
    rules = json.loads(mesh.lab.exec(LAST, ["ip", "-j", "rule"]).stdout)
    assert {rule["table"] for rule in rules} == LEFT_BY_KERNEL
    assert mesh.lab.exec(LAST, ["ip", "route", "show", "table", "all", "proto", "66"]).stdout == ""
    mesh.lab.start_node(LAST)
