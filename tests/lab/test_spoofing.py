"""Buyer and relay share a wire with somebody who sends in their names: he is billed for nothing, and bills nobody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshd.identity import tunnel_address
from tests.lab.mesh import MB, SAT_PER_MB, Mesh, running, topology, until
from tests.lab.thief import OUR_ADDRESS, OUR_MAC, SPOOFED, US
from tools.lab import network
from tools.lab.topology import Link
from tools.ns import Namespaces

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="wireguard-go is not installed"),
]

BUYER, RELAY, SHOP = "buyer", "relay", "shop"
LINKS = [(BUYER, RELAY), (RELAY, SHOP)]
FEES = dict.fromkeys((BUYER, RELAY, SHOP), 20 * SAT_PER_MB)
TRANSFER = 8 * MB
PORT = 4444
ROOT = Path(__file__).resolve().parents[2]
# Counts what comes to the port, until it is ended; after each datagram the number is in the file.
SINK = f"""
import pathlib, socket, sys
sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.bind(("", {PORT}))
count = 0
while True:
    pathlib.Path(sys.argv[1]).write_text(str(count))
    sink.recv(65536)
    count += 1
"""


@contextmanager
def shared_wire(others: Namespaces) -> Iterator[None]:
    """In place of the lab's own wire between buyer and relay: one that the thief hears and speaks on, too."""
    create_links = network.create_links

    def create(namespace_of: dict[str, str], links: Iterable[Link]) -> None:
        create_links(namespace_of, [link for link in links if {link.a, link.b} != {BUYER, RELAY}])
        hub = ["ip", "-n", others.full("hub"), "link"]
        # It forgets at once where everybody is, so all hear everything.
        network.run([*hub, "add", "wire", "type", "bridge", "ageing_time", "0", "mcast_snooping", "0"])
        network.run([*hub, "set", "wire", "up"])
        ends = {namespace_of[BUYER]: f"to-{RELAY}", namespace_of[RELAY]: f"to-{BUYER}", others.full("thief"): "eth"}
        for number, (namespace, name) in enumerate(ends.items()):
            port = f"port{number}"
            network.run([*hub, "add", port, "type", "veth", "peer", "name", name, "netns", namespace])
            network.run([*hub, "set", port, "master", "wire", "up"])
            network.run(["ip", "-n", namespace, "link", "set", name, "up"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "create_links", create)
        yield


@pytest.fixture(scope="module")
def others() -> Iterator[Namespaces]:
    with Namespaces("tsf") as others:
        for name in ("hub", "thief"):
            others.add(name)
        yield others


@pytest.fixture(scope="module")
def mesh(lab_base: Path, others: Namespaces) -> Iterator[Mesh]:
    with shared_wire(others), running("spoof", topology(LINKS, FEES, security="wireguard")) as mesh:
        yield mesh


def counters(mesh: Mesh, node: str) -> dict[str, int]:
    return dict(mesh.lab.rpc(node, "status")["counters"])


def link(mesh: Mesh, node: str, peer: str) -> tuple[str, str]:
    """MAC and link-local address of the node on the wire to the peer."""
    (found,) = json.loads(mesh.lab.exec(node, ["ip", "-j", "-6", "addr", "show", "dev", f"to-{peer}"]).stdout)
    (shown,) = json.loads(mesh.lab.exec(node, ["ip", "-j", "link", "show", "dev", f"to-{peer}"]).stdout)
    return shown["address"], next(a["local"] for a in found["addr_info"] if a["scope"] == "link")


def set_out(mesh: Mesh, others: Namespaces) -> subprocess.Popen[Any]:
    """The thief, who begins when there is traffic to listen to."""
    (buyer_mac, buyer), (relay_mac, _) = link(mesh, BUYER, RELAY), link(mesh, RELAY, BUYER)
    inside = {node: str(tunnel_address(bytes.fromhex(mesh.identity[node]))) for node in (BUYER, RELAY)}
    commands = [f"ip link set eth address {OUR_MAC.hex(':')}"]
    commands += [f"ip addr add {a}/64 dev eth nodad" for a in (OUR_ADDRESS, inside[RELAY])]
    others.run("thief", ["sh", "-ec", "; ".join(commands)])
    words = [buyer_mac, relay_mac, buyer, inside[RELAY], inside[BUYER], mesh.lab.address(BUYER), mesh.lab.address(SHOP)]
    argv = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.lab.thief", "eth", *words, str(PORT)]
    return others.popen("thief", argv, stderr=subprocess.STDOUT)


def test_who_spoofs_on_the_same_wire_is_billed_for_nothing_and_bills_nobody(mesh: Mesh, others: Namespaces) -> None:
    progress = mesh.lab.directory / "spoofed"
    mesh.lab.popen(SHOP, [sys.executable, "-c", SINK, str(progress)])
    until("the sink", progress.exists)
    before = {node: counters(mesh, node) for node in (BUYER, RELAY)}
    guests = {node: {row["identity"] for row in mesh.lab.rpc(node, "neighbours")} for node in (BUYER, RELAY, SHOP)}

    thief = set_out(mesh, others)
    transfers = [mesh.transfer(BUYER, SHOP)]
    output, _ = thief.communicate(timeout=180)
    assert thief.returncode == 0, output
    did = json.loads(output)
    assert did["sent"]["data"] == SPOOFED and did["sent"]["tunnel packets again"] >= 300
    carried = transfers[0].finish(now=True)
    carried += mesh.transfer(BUYER, SHOP, TRANSFER).finish()
    mesh.settle()

    # Whom he pretended to be has had his traffic, and has paid for that, and for no more.
    mesh.assert_paid_as_received()
    sent, received = mesh.bytes_out(BUYER, RELAY), mesh.bytes_in(RELAY, BUYER)
    assert carried < received <= sent
    assert mesh.ledger(RELAY, BUYER)["billed_msat"] <= sent * FEES[RELAY] // 10**9
    assert progress.read_text() == "0"  # not one of the packets in the buyer's name has come through
    for node in (BUYER, RELAY, SHOP):
        assert {row["identity"] for row in mesh.lab.rpc(node, "neighbours")} == guests[node]
        assert US.public_key.hex() not in {entry["peer"] for entry in mesh.lab.rpc(node, "ledger")}
    assert did["session"] != "answered"

    # And what he did was seen.
    after = {node: counters(mesh, node) for node in (BUYER, RELAY)}
    for name in ("beacon_stale", "beacon_forged", "beacon_foreign", "beacon_source"):
        assert after[RELAY].get(name, 0) > before[RELAY].get(name, 0), name
    assert after[BUYER].get("refused_source", 0) > before[BUYER].get("refused_source", 0)
