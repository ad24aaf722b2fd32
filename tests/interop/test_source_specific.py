"""Source-specific routes (RFC 9079) with babeld: two gateways, each for the addresses of its own uplink."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from routing.tlv import Update
from tests.interop.captures import tlvs_from
from tests.interop.mesh import MARKS, Mesh, Node, eventually, link_local, mesh, need

pytestmark = MARKS
PORT = 7778
# Says who has answered.
GREETER = f"""
import socket, sys
server = socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = server.accept()
    connection.sendall(sys.argv[1].encode())
    connection.close()
"""
ASKER = f"""
import socket, sys
try:
    with socket.create_connection((sys.argv[2], {PORT}), 1, (sys.argv[1], 0)) as connection:
        print(connection.recv(100).decode())
except OSError:
    print("nobody")
"""
ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
SOURCES = {"g": {4: "192.0.2.0/24", 6: "2001:db8:a::/48"}, "h": {4: "198.51.100.0/24", 6: "2001:db8:b::/48"}}
CLIENTS = {"g": {4: "192.0.2.7", 6: "2001:db8:a::7"}, "h": {4: "198.51.100.7", 6: "2001:db8:b::7"}}
FAR = {4: "203.0.113.9", 6: "2001:db8:f::9"}  # at both gateways, as the Internet is
NEAR_NET = {4: "198.18.1.0/24", 6: "2001:db8:c::/64"}  # behind one of them, for everybody
NEAR = {4: "198.18.1.9", 6: "2001:db8:c::9"}
LAST_CLIENT = [address for addresses in CLIENTS.values() for address in addresses.values()]


def gateway(made: Mesh, name: str, kind: str) -> Node:
    """It reaches everything for its own sources. Who is h reaches a network for all."""
    near = list(NEAR_NET.values()) if name == "h" else []
    options: dict[str, Any]
    if kind == "meshd":
        pairs = [f"{ANYWHERE[family]} from {source}" for family, source in SOURCES[name].items()]
        options = {"routing": {"announce_from": pairs}}
    else:
        lines = [
            f"redistribute ip {ANYWHERE[family]} eq 0 proto 4 src-prefix {source}"
            for family, source in SOURCES[name].items()
        ]
        lines += [f"redistribute ip {net} proto 4" for net in near]
        options = {"redistribute": lines, "interface": "v4-via-v6 true"}
    node = made.node(name, kind, **options)
    if kind == "meshd":
        node.options["routing"]["announce"] = [f"{node.address6}/128", f"{node.address4}/32", *near]
    node.run("ip link add far type veth peer name away; ip link set far up; ip link set away up")
    for address in (*FAR.values(), *(NEAR.values() if near else [])):
        node.run(f"ip address add {address} dev far")
    if kind == "babeld":
        for route in (*ANYWHERE.values(), *near):
            node.run(f"ip {'-6' if ':' in route else ''} route add {route} dev far proto static")
    made.namespaces.popen(name, [sys.executable, "-S", "-c", GREETER, name], stdout=None)
    return node


def client(made: Mesh, name: str, kind: str) -> Node:
    """It has an address of each gateway."""
    node = made.node(name, kind, **({"interface": "v4-via-v6 true"} if kind == "babeld" else {}))
    hosts = [f"{node.address6}/128", f"{node.address4}/32"]
    hosts += [f"{address}/{128 if ':' in address else 32}" for address in LAST_CLIENT]
    if kind == "meshd":
        node.options["routing"] = {"announce": hosts}
    else:
        for host in hosts:
            node.run(f"ip address replace {host} dev lo")
    return node


def answer(made: Mesh, node: Node, source: str, destination: str) -> str:
    argv = ["ip", "netns", "exec", made.namespaces.full(node.name)]
    argv += [sys.executable, "-S", "-c", ASKER, source, destination]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


def families(made: Mesh) -> list[int]:
    """babeld 1.12 announces IPv4 routes from a source prefix, and installs none."""
    return [4, 6] if made.nodes["c"].kind == made.nodes["r"].kind == "meshd" else [6]


def is_answered_by(name: str, made: Mesh, node: Node, source: str, destination: str) -> bool:
    return answer(made, node, source, destination) == name


def await_answers(made: Mesh, node: Node, destination: dict[int, str], **expected: str) -> None:
    """From the client's addresses of g and of h."""
    for family in families(made):
        for owner, name in expected.items():
            source, to = CLIENTS[owner][family], destination[family]
            said = f"{to} from {source} is not answered by {name}"
            eventually(partial(is_answered_by, name, made, node, source, to), 30, said)


@pytest.mark.parametrize("order", ["mpmp", "mmpp"])
def test_packets_leave_by_the_gateway_of_their_source(order: str, tmp_path: Path) -> None:
    """c - r - g and r - h, each meshd (m) or babeld (p): c and r choose, g and h announce."""
    need("ip", "nft", "tcpdump", "babeld")
    kinds = dict(zip("crgh", ({"m": "meshd", "p": "babeld"}[kind] for kind in order), strict=True))
    with mesh(tmp_path, f"ss{order}") as made:
        c = client(made, "c", kinds["c"])
        r = made.node("r", kinds["r"], **({"interface": "v4-via-v6 true"} if kinds["r"] == "babeld" else {}))
        g, h = (gateway(made, name, kinds[name]) for name in "gh")
        for a, b in ((c, r), (r, g), (r, h)):
            made.wire(a, b)
        with made.capture(r, "rc") as capture:
            made.start()
            await_answers(made, c, FAR, g="g", h="h")
            # The destination comes first: what h announces for everybody is not for g, whatever the source.
            await_answers(made, c, NEAR, g="h", h="h")
            g.stop()  # a retraction
            await_answers(made, c, FAR, g="nobody", h="h")
            g.start()
            await_answers(made, c, FAR, g="g", h="h")
            made.cut(r, h)
            await_answers(made, c, FAR, g="g", h="nobody")
            made.heal(r, h)
            await_answers(made, c, FAR, g="g", h="h")
        heard = {u for u in tlvs_from(capture, link_local(r, "rc")) if isinstance(u, Update)}
        said = {(str(u.prefix), str(u.source_prefix)) for u in heard if u.source_prefix is not None}
        assert said >= {(ANYWHERE[family], SOURCES[name][family]) for family in families(made) for name in "gh"}
        retracted = {u.source_prefix for u in heard if u.metric == 65535}
        assert {ip_network(SOURCES["g"][family]) for family in families(made)} <= retracted
