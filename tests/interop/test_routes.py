"""The daemon with babeld 1.12 and with BIRD 2.0.12: who reaches whom over IPv6, and what happens when things break."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from routing.tlv import Ack, AckRequest, Hello, Ihu, SeqnoRequest, Tlv, Update
from tests.interop.captures import read_capture, tlvs_from
from tests.interop.mesh import (
    MARKS,
    PEERS,
    UPDATE_INTERVAL,
    Mesh,
    Node,
    eventually,
    link_local,
    mesh,
    need,
    slow_wire,
)

pytestmark = MARKS
# Who is not paid asks for nothing. There is no chain, and nobody gets so far as to need one.
FEE = {
    "price": {"fee_msat_per_gb": 1_000_000},
    "payments": {"enabled": True},
    "chain": {"socket": "/nonexistent/chain"},
}
ATTEMPTS = 10
RELAYED_PRICE_METRIC = 256  # of that fee
PRICE_SUB_TLV = bytes.fromhex("7006000f4240")


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> str:
    need("ip", "nft", "tcpdump", request.param)
    return str(request.param)


def triangle(made: Mesh, kinds: tuple[str, str, str]) -> tuple[Node, Node, Node]:
    a, b, c = (made.node(name, kind) for name, kind in zip("abc", kinds, strict=True))
    made.line(a, b, c, a)
    return a, b, c


@pytest.mark.parametrize("order", ["mpm", "pmp"])
def test_everybody_reaches_everybody_and_nobody_who_has_left(peer: str, order: str, tmp_path: Path) -> None:
    """A line: meshd - peer - meshd, and peer - meshd - peer."""
    with mesh(tmp_path, f"{peer}{order}") as made:
        nodes = [made.node(name, {"m": "meshd", "p": peer}[kind]) for name, kind in zip("abc", order, strict=True)]
        a, b, c = nodes
        made.line(*nodes)
        made.start()
        made.await_all()
        # Retraction: the last one says good-bye (BIRD just leaves), and its routes go everywhere.
        c.stop()
        eventually(lambda: c.address6 not in a.usable_routes() + b.usable_routes(), 15, "a route to c is left")
        made.await_reach(a, b)
        made.await_reach(b, a)
        c.start()
        made.await_all()


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_a_restart_after_a_power_cut(peer: str, victim: str, tmp_path: Path) -> None:
    with mesh(tmp_path, f"{peer}k{victim}") as made:
        made.line(made.node("a", "meshd"), made.node("b", peer), made.node("c", "meshd"))
        made.start()
        made.await_all()
        made.nodes[victim].stop(kill=True)
        made.nodes[victim].start()
        made.await_all()


def test_a_silent_cut_is_found_and_healed(peer: str, tmp_path: Path) -> None:
    with mesh(tmp_path, f"{peer}cut") as made:
        a, b, _ = triangle(made, ("meshd", peer, "meshd"))
        made.start()
        made.await_all()
        eventually(lambda: _device(a, b.address6) == "ab", 10, "a does not go to b directly")
        made.cut(a, b)
        for one, other in ((a, b), (b, a)):
            made.await_reach(one, other)
        eventually(lambda: _device(a, b.address6) == "ac", 20, "a does not go to b by c")
        made.heal(a, b)
        eventually(lambda: _device(a, b.address6) == "ab", 40, "a does not come back to the direct way")
        made.await_all()


def test_a_neighbour_whose_hellos_are_lost_is_asked_and_answers(peer: str, tmp_path: Path) -> None:
    """Its multicasts do not arrive any more, its unicast answers do. In the end the missed Hellos decide."""
    with mesh(tmp_path, f"{peer}ask") as made:
        a, b = made.node("a", "meshd"), made.node("b", peer)
        made.line(a, b)
        made.start()
        made.await_all()
        for _ in range(ATTEMPTS):  # a daemon that runs late itself, on a busy machine, does not ask
            if answered := _asked_and_answered(made, a, b):
                break
        assert answered


def _asked_and_answered(made: Mesh, a: Node, b: Node) -> set[int]:
    """The numbers of both. What was asked just before the capture began may be answered in it, and does not count."""
    with made.capture(b, "ba") as capture:
        rule = 'type filter hook ingress device "ab" priority -500; ip6 daddr ff02::1:6 drop;'
        a.run(f"nft 'table netdev deaf {{ chain multicast {{ {rule} }}\n}}'")
        eventually(lambda: b.address6 not in a.usable_routes(), 40, "a still has a route to b")
        a.run("nft delete table netdev deaf")
        made.await_all()
    asked = {tlv.opaque for tlv in tlvs_from(capture, link_local(a, "ab")) if isinstance(tlv, AckRequest)}
    return asked & {tlv.opaque for tlv in tlvs_from(capture, link_local(b, "ba")) if isinstance(tlv, Ack)}


def test_an_interface_that_goes_and_comes_needs_no_restart(tmp_path: Path) -> None:
    """Carrier lost at the other end; down; deleted and made anew. What babeld's users miss (its issue 58)."""
    need("ip", "nft")
    with mesh(tmp_path, "anew") as made:
        a, b = made.node("a", "meshd"), made.node("b", "meshd")
        made.line(a, b)
        made.start()
        made.await_all()
        for node, gone, back in (
            (b, "ip link set ba down", "ip link set ba up"),
            (a, "ip link set ab down", "ip link set ab up"),
            (a, "ip link del ab", ""),
        ):
            node.run(gone)
            eventually(lambda: b.address6 not in a.usable_routes(), 20, f"a route is left after {gone}")
            if back:
                node.run(back)
            else:
                made.namespaces.veth(("a", "ab"), ("b", "ba"))
            made.await_all()


def test_babeld_and_we_measure_round_trip_times(tmp_path: Path) -> None:
    """Over a wire that takes 60 ms each way."""
    need("ip", "nft", "tcpdump", "ethtool", "babeld")
    with mesh(tmp_path, "rtt") as made:
        a = made.node("a", "meshd", interface={"kind": "tunnel"})
        b = made.node("b", "babeld", interface="enable-timestamps true")
        b.options["global"] = [f"local-path {b.directory}/monitor"]
        slow_wire(made, a, b)
        with made.capture(a, "ab", timestamps=True) as capture:
            made.start()
            made.await_all()
            eventually(lambda: _rtt_seen_by(a) is not None, 30, "meshd has measured nothing")
            eventually(lambda: " rtt " in _dump(b), 30, "babeld has measured nothing")
        for speaker, interface in ((a, "ab"), (b, "ba")):
            tlvs = tlvs_from(capture, link_local(speaker, interface))
            assert any(isinstance(tlv, Hello) and tlv.timestamp is not None for tlv in tlvs)
            assert any(isinstance(tlv, Ihu) and tlv.timestamps is not None for tlv in tlvs)
        # A loaded machine may add to it. The clocks, which differ by days, have dropped out.
        ours, theirs = _rtt_seen_by(a), float(_dump(b).split(" rtt ")[1].split()[0])
        assert ours is not None and 119 < ours < 5000 and 119 < theirs < 5000
        assert a.rpc("neighbours")[0]["cost"] == 96 + 150


def test_seqno_requests_both_ways(peer: str, tmp_path: Path) -> None:
    """After a cut the way round is unfeasible (it is no shorter than what the asker itself once announced), until the
    source has raised its seqno because somebody asked. Three equal links: whichever is cut, both ends of it ask."""
    with mesh(tmp_path, f"{peer}seq") as made:
        a, b, c = triangle(made, ("meshd", peer, "meshd"))
        made.start()
        made.await_all()
        time.sleep(2 * UPDATE_INTERVAL)  # all have announced what they last learnt: their feasibility distances stand
        with made.capture(a, "ab") as capture:
            made.cut(b, c)  # b asks a for c's newest, and a has to pass it on
            made.await_all()
            made.heal(b, c)
            eventually(lambda: _device(c, b.address6) == "cb", 40, "c does not come back to the direct way")
            made.cut(a, c)  # a asks b for c's newest, and b has to pass it on
            made.await_all()
        ours, theirs = tlvs_from(capture, link_local(a, "ab")), tlvs_from(capture, link_local(b, "ba"))
        asked_by_us = [tlv for tlv in ours if isinstance(tlv, SeqnoRequest)]
        asked_by_them = [tlv for tlv in theirs if isinstance(tlv, SeqnoRequest)]
        # For c's only: a peer may raise its own seqno unasked (babeld does, now and then), our daemon never. One
        # request for any of c's prefixes serves all.
        routers_at_c = {
            tlv.router_id for tlv in ours if isinstance(tlv, Update) and str(tlv.prefix) == f"{c.address6}/128"
        }
        for asked in (asked_by_us, asked_by_them):
            assert routers_at_c & {request.router_id for request in asked}
        assert _is_answered(asked_by_us, theirs)
        assert _is_answered(asked_by_them, ours)


def test_our_price_is_accepted_and_stripped(peer: str, tmp_path: Path) -> None:
    """a - b - c - d, of which c is the peer: b's price reaches c's wire, but not d; the metric carries it to d."""
    with mesh(tmp_path, f"{peer}price") as made:
        a, b = (made.node(name, "meshd", **FEE) for name in "ab")
        c, d = made.node("c", peer), made.node("d", "meshd", **FEE)
        made.line(a, b, c, d)
        with made.capture(c, "cb") as before, made.capture(c, "cd") as behind:
            made.start()
            made.await_all()
        b_address, c_address = link_local(b, "bc"), link_local(c, "cd")
        priced = [tlv for tlv in tlvs_from(before, b_address) if isinstance(tlv, Update) and tlv.price_msat_per_gb]
        assert {str(tlv.prefix) for tlv in priced} >= {f"{a.address6}/128"}
        assert any(PRICE_SUB_TLV in packet.payload for packet in read_capture(before))
        relayed = [packet for packet in read_capture(behind) if packet.source == c_address]
        assert relayed and not any(PRICE_SUB_TLV in packet.payload for packet in relayed)
        route = d.selected(f"{a.address6}/128")
        assert route is not None and route["price_msat_per_gb"] == 0
        assert route["metric"] >= 3 * 96 + RELAYED_PRICE_METRIC


def _is_answered(requests: list[SeqnoRequest], said: list[Tlv]) -> bool:
    """An update with at least the seqno that was asked for, from the router that was meant."""
    updates = [tlv for tlv in said if isinstance(tlv, Update) and tlv.metric < 65535]
    return any(
        update.prefix == request.prefix
        and update.router_id == request.router_id
        and (update.seqno - request.seqno) & 0xFFFF < 0x8000
        for request in requests
        for update in updates
    )


def _device(node: Node, address: str) -> str:
    words = node.run(f"ip -6 route get {address} || true").split()
    return words[words.index("dev") + 1] if "dev" in words else ""


def _rtt_seen_by(node: Node) -> float | None:
    """In milliseconds."""
    rows = node.rpc("neighbours")
    return rows[0]["rtt_ms"] if rows else None


def _dump(babeld: Node) -> str:
    """What babeld tells of its neighbours on its local socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(babeld.directory / "monitor"))
        connection.sendall(b"dump\nquit\n")
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()
