"""MAC authentication (RFC 8967) with babeld 1.12.1 and BIRD 2.0.12: both algorithms, restarts, wrong keys, replays."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from meshd.ctl.client import CallError
from routing.codec import framed, split_packet
from tests.interop.captures import Captured, read_capture
from tests.interop.mesh import MARKS, PEERS, Mesh, Node, eventually, link_local, mesh, need, rewrite

pytestmark = MARKS
SECRET = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"  # noqa: S105
WRONG = "ff" + SECRET[2:]
ALGORITHMS = ("hmac-sha256", "blake2s128")
# Sends UDP payloads, in hexadecimal, as a neighbour that has another's address.
SENDER = """
import socket, sys
address, device, destination, *payloads = sys.argv[1:]
index = socket.if_nametoindex(device)
sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sender.bind((address, 6696, 0, index))
for payload in payloads:
    sender.sendto(bytes.fromhex(payload), (destination, 6696, 0, index))
"""


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> str:
    need("ip", "nft", "tcpdump", request.param)
    return str(request.param)


def speaker(made: Mesh, name: str, kind: str, algorithm: str, secret: str = SECRET) -> Node:
    """Which has the key on all of its interfaces."""
    match kind:
        case "meshd":
            return made.node(name, kind, interface={"mac_keys": [{"algorithm": algorithm, "key": secret}]})
        case "babeld":
            key = f"key id k type {algorithm} value {secret}"
            return made.node(name, kind, interface="key k", **{"global": [key]})
    octets = ":".join(secret[at : at + 2] for at in range(0, len(secret), 2))
    words = {"hmac-sha256": "hmac sha256", "blake2s128": "blake2s128"}[algorithm]
    return made.node(name, kind, interface=f"authentication mac; password {octets} {{ algorithm {words}; }};")


def counters(node: Node) -> Counter[str]:
    return Counter(node.rpc("status")["counters"])


def test_who_has_a_key_takes_part_also_after_a_restart(peer: str, tmp_path: Path) -> None:
    """b has the one key, c the other, and a both: each of its packets has two MACs."""
    with mesh(tmp_path, f"{peer}mac") as made:
        keys = [{"algorithm": algorithm, "key": SECRET} for algorithm in ALGORITHMS]
        a = made.node("a", "meshd", interface={"mac_keys": keys})
        b, c = (speaker(made, name, peer, algorithm) for name, algorithm in zip("bc", ALGORITHMS, strict=True))
        made.line(b, a, c)
        with made.capture(a, "ab") as capture:
            made.start()
            made.await_all()
            a.stop(kill=True)
            a.start()
            eventually(lambda: _has_route(a, b) and _has_route(a, c), 30, "a does not believe the others again")
            challenged = _count(a, "packets of senders not yet proved")
            for node in (b, c):
                node.stop(kill=True)
                node.start()
            eventually(lambda: _count(a, "packets of senders not yet proved") >= challenged + 2, 30, "all is as before")
            eventually(lambda: _has_route(a, b) and _has_route(a, c), 30, "a does not believe the new ones")
            made.await_all()
        bodies = [split_packet(packet.payload)[0] for packet in read_capture(capture)]
        assert {tlv_type for body in bodies for tlv_type, _ in framed(body)} >= {17, 18, 19}
        assert not counters(a)["packets with wrong MAC"]


def test_who_has_another_key_or_none_is_nobody(peer: str, tmp_path: Path) -> None:
    with mesh(tmp_path, f"{peer}wrong") as made:
        a = speaker(made, "a", "meshd", "hmac-sha256")
        b, c = speaker(made, "b", peer, "hmac-sha256", WRONG), made.node("c", peer)
        made.line(b, a, c)
        made.start()
        for reason in ("packets with wrong MAC", "packets without MAC"):
            eventually(lambda reason=reason: _count(a, reason) > 5, 30, f"no {reason}")
        assert a.rpc("neighbours") == []
        assert b.address6 not in c.usable_routes() and c.address6 not in b.usable_routes()


def test_replayed_packets_are_dropped(tmp_path: Path) -> None:
    """All that a neighbour once said is said again when it is dead: to who had heard it, and to who has forgotten."""
    need("ip", "nft", "tcpdump", "babeld")
    with mesh(tmp_path, "replay") as made:
        a, b = speaker(made, "a", "meshd", "hmac-sha256"), speaker(made, "b", "babeld", "hmac-sha256")
        made.wire(a, b)
        with made.capture(a, "ab") as capture:
            made.start()
            made.await_all()
        address = link_local(b, "ba")
        said = [packet for packet in read_capture(capture) if packet.source == address]
        b.stop(kill=True)
        eventually(lambda: not a.rpc("neighbours"), 30, "a dead neighbour stays")
        assert_dropped(a, b, said, "packets replayed")
        a.stop(kill=True)
        a.start()
        eventually(lambda: _has_interface(a), 30, "a does not come back")
        assert_dropped(a, b, said, "packets of senders not yet proved")


def assert_dropped(node: Node, replayer: Node, said: list[Captured], reason: str) -> None:
    before = _count(node, reason)
    replay(replayer, said)
    eventually(lambda: _count(node, reason) >= before + len(said), 30, reason)
    assert node.rpc("neighbours") == []


def replay(node: Node, packets: list[Captured]) -> None:
    for destination in {packet.destination for packet in packets}:
        octets = [packet.payload.hex() for packet in packets if packet.destination == destination]
        source = str(packets[0].source)
        argv = [sys.executable, "-S", "-c", SENDER, source, node.interfaces[0], str(destination), *octets]
        node.mesh.namespaces.run(node.name, argv)


def test_neighbours_without_the_key_are_taken_where_the_operator_says_so(tmp_path: Path) -> None:
    """While the keys are being brought to all nodes of a mesh."""
    need("ip", "nft", "bird")
    with mesh(tmp_path, "migrate") as made:
        key = {"algorithm": "blake2s128", "key": SECRET}
        a, b = made.node("a", "meshd", interface={"mac_keys": [key], "mac_verify": False}), made.node("b", "bird")
        made.wire(a, b)
        made.start()
        made.await_all()
        assert counters(a)["packets taken unauthenticated"] > 0


def test_keys_are_changed_while_routes_stay(tmp_path: Path) -> None:
    """As the configuration's documentation tells: the new key beside the old one everywhere, then without the old."""
    need("ip", "nft")
    old, new = ({"algorithm": "hmac-sha256", "key": secret} for secret in (SECRET, WRONG))
    with mesh(tmp_path, "rotate") as made:
        a, b = (made.node(name, "meshd", interface={"mac_keys": [old]}) for name in "ab")
        made.wire(a, b)
        made.start()
        made.await_all()
        for keys in ([old, new], [new]):
            for node in (a, b):
                rewrite(node, "interface", [{"name": node.interfaces[0], "security": "none", "mac_keys": keys}])
                node.rpc("reload")
                seen = [counters(n)["packets received"] for n in (a, b)]
                for n, before in zip((a, b), seen, strict=True):
                    eventually(lambda n=n, before=before: counters(n)["packets received"] > before, 30, "silence")
                assert _has_route(a, b) and _has_route(b, a)
        assert not any(counters(node)["packets with wrong MAC"] for node in (a, b))
        rewrite(a, "interface", [{"name": "ab", "security": "none", "mac_keys": [old]}])
        a.rpc("reload")
        eventually(lambda: _count(b, "packets with wrong MAC") > 0, 30, "the key was not changed")


def _count(node: Node, reason: str) -> int:
    try:
        return counters(node)[reason]
    except CallError:
        return 0  # it is starting


def _has_route(node: Node, other: Node) -> bool:
    """As the daemon knows it: the kernel keeps routes of a daemon that was killed."""
    return node.selected(f"{other.address6}/128") is not None


def _has_interface(node: Node) -> bool:
    try:
        return all(interface["up"] for interface in node.rpc("status")["interfaces"])
    except CallError:
        return False
