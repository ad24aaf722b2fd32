"""Five nodes in a line with a WireGuard tunnel on each link: carried, paid, broken by force, and without leftovers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab.mesh import MB, SAT_PER_MB, Mesh, running, topology, until
from tools.lab.lab import Lab

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="wireguard-go is not installed"),
]

NODES = ("n1", "n2", "n3", "n4", "n5")
BUYER, RELAY, SHOP = "n1", "n3", "n5"
VICTIMS = ("n2", RELAY)  # both ends of one tunnel, and one end of two others
LINKS = list(pairwise(NODES))
FEE = 20 * SAT_PER_MB
SIZE = 10 * MB
OVERLAY_RULE = ["priority", "1", "table", "99"]


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[Mesh]:
    payments = {"free_rate": 64_000}
    graph = topology(LINKS, dict.fromkeys(NODES, FEE), payments=payments, security="wireguard")
    with running("t-tun", graph) as mesh:
        yield mesh


def tunnels(lab: Lab, node: str) -> dict[str, int]:
    """Interface index by name."""
    lines = lab.exec(node, ["ip", "-o", "link"]).stdout.splitlines()
    named = {line.split(": ")[1].partition("@")[0]: int(line.split(": ")[0]) for line in lines}
    return {name: index for name, index in named.items() if name.startswith("mw")}


def servers(node: str, mesh: Mesh) -> list[int]:
    """Process numbers of the wireguard-go that serve the node's tunnels."""
    found = []
    names = {name.encode() for name in tunnels(mesh.lab, node)}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"wireguard-go" and names & set(words):
            found.append(int(path.parent.name))
    return found


def carry(mesh: Mesh) -> None:
    """So many bytes through the whole line, counted at both ends of each hop and paid."""
    before = {pair: (mesh.bytes_out(*pair), mesh.bytes_in(*reversed(pair))) for pair in LINKS}
    assert mesh.transfer(BUYER, SHOP, SIZE).finish() == SIZE
    mesh.settle()
    for pair in LINKS:
        sent = mesh.bytes_out(*pair) - before[pair][0]
        received = mesh.bytes_in(*reversed(pair)) - before[pair][1]
        assert SIZE < received <= sent  # wireguard-go's queue loses some where the machine is busy
    mesh.assert_paid_as_received()


def test_traffic_goes_through_tunnels_and_every_hop_is_counted_and_paid(mesh: Mesh) -> None:
    for node in NODES:
        assert len(tunnels(mesh.lab, node)) == len(mesh.lab.topology.neighbours(node))
    carry(mesh)
    for payer, payee in LINKS[:-1]:  # the shop asks nothing for what it gets itself
        assert mesh.ledger(payee, payer)["received_msat"] > SIZE * FEE // 10**9


def test_tunnel_session_and_ledger_belong_to_one_key(mesh: Mesh) -> None:
    for node in NODES:
        rows = mesh.lab.rpc(node, "neighbours")
        assert {row["identity"] for row in rows} == {mesh.identity[peer] for peer in mesh.lab.topology.neighbours(node)}
        assert all(row["interface"].startswith("mw") and row["under"].startswith("to-") for row in rows)


def test_who_does_not_pay_is_held_to_the_free_tier_in_its_tunnel(mesh: Mesh) -> None:
    payee = "n2"
    upload = mesh.transfer(BUYER, SHOP)
    upload.await_more(MB)
    mesh.lab.rpc(BUYER, "pay.hold")
    until("the suspension", lambda: mesh.neighbour(payee, BUYER)["state"] == "suspended")
    before = mesh.neighbour(payee, BUYER)

    def has_grown(key: str) -> bool:
        return int(mesh.neighbour(payee, BUYER)[key]) > int(before[key])

    until("free bytes, and refused ones", lambda: has_grown("bytes_free") and has_grown("bytes_refused"))
    mesh.lab.rpc(BUYER, "pay.resume")
    until("being carried again", lambda: mesh.neighbour(payee, BUYER)["state"] == "open")
    upload.await_more(MB)
    upload.finish(now=True)
    mesh.settle()
    mesh.assert_paid_as_received()


def test_whoever_sends_past_the_tunnel_is_not_carried(mesh: Mesh) -> None:
    """n4's kernel hands n3 packets for n1 on the bare wire, as anybody there could."""
    thief, destination = "n4", mesh.lab.address(BUYER)
    row = next(i for i in mesh.lab.rpc(RELAY, "status")["interfaces"] if i["name"] == f"to-{thief}")
    assert mesh.answers(thief, destination)
    bare = ["via", "inet6", row["address"], "dev", f"to-{RELAY}", "table", "99"]
    mesh.lab.exec(thief, ["ip", "route", "add", destination, *bare])
    mesh.lab.exec(thief, ["ip", "rule", "add", *OVERLAY_RULE])
    try:
        assert not mesh.answers(thief, destination)
    finally:
        mesh.lab.exec(thief, ["ip", "rule", "del", *OVERLAY_RULE])
    assert mesh.answers(thief, destination)


def await_repair(mesh: Mesh, nodes: Sequence[str]) -> None:
    """Until each tunnel of theirs has a process, the neighbours meet in it again, and all is carried and paid."""
    for node in nodes:
        neighbours = mesh.lab.topology.neighbours(node)
        until("one process for each tunnel", lambda: len(servers(node, mesh)) == len(neighbours))  # noqa: B023
        until("the neighbours", lambda: len(mesh.lab.rpc(node, "neighbours")) == len(neighbours))  # noqa: B023
    mesh.lab.wait_routes()
    carry(mesh)


def test_a_killed_wireguard_go_is_replaced(mesh: Mesh) -> None:
    nodes = VICTIMS
    killed = [number for node in nodes for number in servers(node, mesh)]
    assert len(killed) == 2 * len(nodes)
    for number in killed:
        os.kill(number, signal.SIGKILL)
    until("new tunnels", lambda: all(len(set(servers(node, mesh)) - set(killed)) == 2 for node in nodes))
    await_repair(mesh, nodes)


def test_a_killed_daemon_comes_back_to_its_tunnels(mesh: Mesh) -> None:
    nodes = VICTIMS
    names = {node: set(tunnels(mesh.lab, node)) for node in nodes}
    for node in nodes:
        mesh.lab.kill_node(node, signal.SIGKILL)
        assert set(tunnels(mesh.lab, node)) == names[node]  # they carry on without it
    for node in nodes:
        mesh.lab.start_node(node)
    await_repair(mesh, nodes)
    assert {node: set(tunnels(mesh.lab, node)) for node in nodes} == names


def test_tunnels_of_a_daemon_that_comes_back_without_them_are_gone(mesh: Mesh) -> None:
    """What it left in the kernel is found again by its record, though it wants no tunnel any more."""
    config = mesh.lab.path(SHOP) / "config.toml"
    before = config.read_text()
    (left,) = tunnels(mesh.lab, SHOP)
    mesh.lab.kill_node(SHOP, signal.SIGKILL)
    config.write_text(before.replace('"wireguard"', '"none"'))
    mesh.lab.start_node(SHOP)
    assert left not in tunnels(mesh.lab, SHOP) and not Path(f"/var/run/wireguard/{left}.sock").exists()
    mesh.lab.kill_node(SHOP, signal.SIGTERM)
    config.write_text(before)
    mesh.lab.start_node(SHOP)
    await_repair(mesh, [SHOP])


def test_a_stopped_daemon_leaves_no_tunnel(mesh: Mesh) -> None:
    mesh.lab.kill_node(SHOP, signal.SIGTERM)
    assert tunnels(mesh.lab, SHOP) == {}
    lost = f"to-{SHOP}"

    def is_gone() -> bool:
        return all(row["under"] != lost for row in mesh.lab.rpc("n4", "neighbours"))

    until("the neighbour being gone", is_gone)
