"""The fast lane in the kernel: what it carries is counted to the byte, and it carries nothing that the rules would not.

Every node is real: `a` sends by way of `b` to `c`, and b carries in its lane what it may.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import trio

from meshd.kernel.bpf import syscalls
from meshd.kernel.bpf.places import FLOWS, Places
from meshd.kernel.lane import Lane
from meshd.kernel.netlink import NetlinkSocket
from tests.meshd.kernel_lab import Flow, Node, eventually, lab, line, link_local, mac, plain, prepare, total
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401

Line = tuple[Node, Node, Node]
_SIZE = 1200
_BURST = 50
_FROM_A = plain(mac("a", "ab"))
_TO_C = plain(mac("c", "cb"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with line(tmp_path_factory.mktemp("lane"), "mk-fl-") as made:
        need_lane(made[1])
        yield made


def need_lane(node: Node) -> None:
    problem = node.call("lane")["problem"]
    if problem.startswith("the kernel has no BPF"):
        pytest.skip(problem)
    assert problem == ""


def burst(a: Node, c: Node, family: int = 6, *, size: int = _SIZE, count: int = _BURST) -> None:
    """Datagrams from a to c, all of which arrive."""
    before = c.call("sunk")
    a.call("send_datagrams", c.address(family), 7000, size, count)
    assert eventually(lambda: c.call("sunk") == before + size * count)


def into_the_lane(nodes: Line, family: int = 6, *, known: list[Flow] | None = None) -> list[Flow]:
    """Send until the flow from a to c is in the lane, and past its first packet, which goes the long way."""
    a, b, c = nodes
    read: list[Flow] = known if known is not None else []

    def is_in() -> bool:
        before = b.call("lane")["bytes"]
        burst(a, c, family)
        read.extend(b.call("read"))
        return bool(b.call("lane")["bytes"] > before)

    assert eventually(is_in), b.call("lane")
    return read


def sums(nodes: Line, read: dict[str, list[Flow]]) -> list[int]:
    """Of one direction, from a to c: sent, carried, sent on, received."""
    a, b, c = (read[node.name] for node in nodes)
    return [
        total(a, "out", interface="ab"),
        total(b, "forward_in", interface="ba", mac=_FROM_A),
        total(b, "out", interface="bc", mac=_TO_C),
        total(c, "in", interface="cb"),
    ]


@pytest.mark.parametrize("family", [6, 4])
def test_what_the_lane_carries_is_counted_to_the_byte_at_both_ends(nodes: Line, family: int) -> None:
    read = {node.name: node.call("read")[:0] for node in nodes}
    carried_before = nodes[1].call("lane")["bytes"]
    sent_before = nodes[2].call("sunk")
    into_the_lane(nodes, family, known=read["b"])
    for size in (1, 18, 400, 1400, 3000):  # the last in fragments
        burst(nodes[0], nodes[2], family, size=size)
    for node in nodes:
        read[node.name] += node.call("read")
    payload = nodes[2].call("sunk") - sent_before
    sent, carried, sent_on, received = sums(nodes, read)
    assert payload < sent == carried == sent_on
    # At the end of its way, IPv4 is counted when its fragments have been put together.
    assert received == (sent if family == 6 else sent - 2 * 20 * _BURST)
    assert nodes[1].call("lane")["bytes"] - carried_before > 3000 * _BURST  # most of it, and not by the rules


@pytest.mark.parametrize("offload", ["off", "on"])
def test_tcp_is_counted_alike_when_it_comes_and_when_it_goes(nodes: Line, offload: str) -> None:
    """Off, as meshd sets it, also by the next one; on, packets of several segments come, and go the long way."""
    a, b, c = nodes
    a.run(f"ethtool -K ab gso {offload} tso {offload}; ip link set ab gso_max_segs {64 if offload == 'on' else 1}")
    read = {node.name: node.call("read")[:0] for node in nodes}
    before = c.call("sunk")
    for _ in range(3):
        a.call("send", "tcp", c.ip6, 300_000)
        read["b"] += b.call("read")

    def agree() -> bool:
        read["b"] += b.call("read")
        read["c"] += c.call("read")
        _, carried, sent_on, received = sums(nodes, read)
        return carried == sent_on > 900_000 and (offload == "on" or sent_on == received)

    try:
        assert eventually(lambda: c.call("sunk") == before + 900_000)
        assert eventually(agree), sums(nodes, read)
    finally:
        a.run("ethtool -K ab gso off tso off; ip link set ab gso_max_segs 1")


def test_what_is_too_large_for_the_next_link_goes_the_long_way_and_is_cut_there(nodes: Line) -> None:
    a, b, c = nodes
    into_the_lane(nodes, 4)
    a.run("sysctl -qw net.ipv4.ip_no_pmtu_disc=1")  # else a would cut them itself
    b.run("ip link set bc mtu 1300")
    try:
        b.call("ask_for_routes")
        into_the_lane(nodes, 4)
        carried_before = b.call("lane")["bytes"]
        read = {node.name: node.call("read")[:0] for node in nodes}
        burst(a, c, 4, size=1350)

        def all_read() -> bool:
            for node in nodes:
                read[node.name] += node.call("read")
            whole, cut = _BURST * (1350 + 28), _BURST * (1350 + 28 + 20)
            return sums(nodes, read) == [whole, whole, cut, whole]  # the last have been put together again

        assert eventually(all_read), sums(nodes, read)
        assert b.call("lane")["bytes"] == carried_before
    finally:
        a.run("sysctl -qw net.ipv4.ip_no_pmtu_disc=0")
        b.run("ip link set bc mtu 1500")
        b.call("ask_for_routes")


@pytest.mark.parametrize("family", [6, 4])
def test_the_gate_shuts_the_lane_with_the_next_packet_and_opens_it_again(nodes: Line, family: int) -> None:
    a, b, c = nodes
    into_the_lane(nodes, family)
    b.call("suspend", "ba", _FROM_A)
    before, carried = c.call("sunk"), b.call("lane")["bytes"]
    b.call("read")
    a.call("send_datagrams", c.address(family), 7000, _SIZE, _BURST)
    refused: list[Flow] = []

    def all_refused() -> bool:
        refused.extend(b.call("read"))
        return sum(f["packets"] for f in refused if f["direction"] == "refused") == _BURST

    assert eventually(all_refused), refused
    assert c.call("sunk") == before
    assert b.call("lane")["bytes"] == carried
    b.call("resume", "ba", _FROM_A)
    into_the_lane(nodes, family)


def test_a_route_that_is_gone_holds_for_the_lane_at_once(nodes: Line) -> None:
    a, b, c = nodes
    into_the_lane(nodes)
    b.call("block", f"{c.ip6}/128")
    before = c.call("sunk")
    a.call("send_datagrams", c.ip6, 7000, _SIZE, _BURST)
    b.call("route", f"{c.ip6}/128", "bc", link_local(mac("c", "cb")))
    burst(a, c)  # they would have come before these
    assert c.call("sunk") == before + _SIZE * _BURST


@pytest.mark.parametrize("hook", ["forward", 'ingress device "ba"'])
def test_rules_of_others_for_what_is_carried_are_obeyed(nodes: Line, hook: str) -> None:
    a, b, c = nodes
    into_the_lane(nodes)
    b.run(
        f"nft 'table inet operator {{ chain theirs {{ type filter hook {hook} priority 0; udp dport 7001 drop; }}; }}'"
    )
    try:
        assert eventually(lambda: b.call("read") is not None and b.call("lane")["flows"] == 0)
        assert "inet operator theirs" in b.call("lane")["problem"]
        before = b.call("lane")["bytes"]
        burst(a, c)
        b.call("read")
        assert b.call("lane")["bytes"] == before
    finally:
        b.run("nft delete table inet operator")
    assert eventually(lambda: b.call("read") is not None and b.call("lane")["problem"] == "")
    into_the_lane(nodes)


def test_what_is_not_carried_meets_the_filters_that_others_have_added_behind_ours(nodes: Line) -> None:
    a, b, _ = nodes
    away = "match ip6 protocol 17 0xff action mirred egress redirect dev lo"
    b.run(f"tc filter add dev ba ingress pref 100 protocol ipv6 u32 {away}")
    try:
        a.call("send_datagrams", b.ip6, 7000, _SIZE, _BURST)
        assert eventually(lambda: f" {_BURST} pkt" in b.run("tc -s filter show dev ba ingress"))
    finally:
        b.run("tc filter del dev ba ingress pref 100")


def udp_frame(source_mac: str, target_mac: str, source: str, target: str, *, hop_limit: int = 64) -> str:
    """A datagram of 100 bytes; without checksum, so that whoever carries it gives it to nobody."""
    udp = struct.pack("!HHHH", 7001, 7001, 108, 0) + bytes(100)
    ip = struct.pack("!IHBB", 6 << 28, len(udp), 17, hop_limit)
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    return f"{plain(target_mac)}{plain(source_mac)}86dd{(ip + addresses + udp).hex()}"


def test_a_forged_sender_has_no_part_in_the_flow_of_another(nodes: Line) -> None:
    a, b, c = nodes
    into_the_lane(nodes)
    b.call("read")
    carried = b.call("lane")["bytes"]
    for _ in range(20):
        a.call("send_frame", "ab", udp_frame("02:00:00:00:66:66", mac("b", "ba"), a.ip6, c.ip6))
    forged: list[Flow] = []

    def counted() -> bool:
        forged.extend(b.call("read"))
        return total(forged, "forward_in", mac="020000006666") == 20 * 148

    assert eventually(counted), forged
    assert total(forged, "forward_in", mac=_FROM_A) == 0
    assert b.call("lane")["bytes"] == carried


def test_what_has_no_hops_left_or_is_for_another_card_is_not_carried(nodes: Line) -> None:
    a, b, c = nodes
    into_the_lane(nodes)
    b.call("read")
    carried = b.call("lane")["bytes"]
    for _ in range(20):
        a.call("send_frame", "ab", udp_frame(mac("a", "ab"), mac("b", "ba"), a.ip6, c.ip6, hop_limit=1))
        a.call("send_frame", "ab", udp_frame(mac("a", "ab"), "02:00:00:00:77:77", a.ip6, c.ip6))
    burst(a, c, count=1)
    assert b.call("lane")["bytes"] <= carried + _SIZE + 48
    flows = b.call("read")
    assert total(flows, "forward_in", mac=_FROM_A) == total(flows, "out", mac=_TO_C) == _SIZE + 48


def test_a_killed_daemon_loses_nothing_of_what_the_lane_carried_before_and_after(tmp_path: Path) -> None:
    with line(tmp_path, "mk-fk-") as nodes:
        a, b, c = nodes
        need_lane(b)
        in_books = into_the_lane(nodes)
        carried = b.call("lane")["bytes"]
        readings = {flow["name"]: flow["total_bytes"] for flow in in_books}
        burst(a, c)
        assert b.call("lane")["bytes"] == carried  # nobody has read what the lane carries now
        b.kill()
        burst(a, c)  # and it goes on
        b.start(is_slow=True)
        b.await_leftover()
        b.kill()  # before it was written down anywhere
        sent = total(a.call("read"), "out", interface="ab")
        b.start()
        found = b.call("recovered", readings)
        before = total(in_books, "forward_in", mac=_FROM_A), total(in_books, "out", mac=_TO_C)
        recovered = total(found, "forward_in", mac=_FROM_A), total(found, "out", mac=_TO_C)
        assert [sum(parts) for parts in zip(before, recovered, strict=True)] == [sent, sent]
        assert min(recovered) > _SIZE * _BURST
        assert "clsact" not in b.run("tc qdisc show dev ba")
        prepare(b, ["ba", "bc"])
        b.route(c, "bc", mac("c", "cb"))
        b.route(a, "ba", mac("a", "ab"))
        into_the_lane(nodes)
        b.kill()
        b.clean()
        assert "clsact" not in b.run("tc qdisc show")


def test_what_queues_go_by_is_as_if_the_kernel_had_carried_it(nodes: Line) -> None:
    a, b, c = nodes
    into_the_lane(nodes, 4)
    b.call("drop_priority", "bc", 6)  # of a TOS byte that asks for little delay
    try:
        b.call("read")
        before, carried = c.call("sunk"), b.call("lane")["bytes"]
        a.call("send_datagrams", c.ip4, 7000, _SIZE, _BURST, 0x10)
        a.call("send_datagrams", c.ip4, 7000, _SIZE, _BURST, 0x08)
        a.call("send_datagrams", c.ip4, 7000, _SIZE, _BURST)
        assert eventually(lambda: c.call("sunk") == before + 2 * _BURST * _SIZE)
        b.call("read")
        assert b.call("lane")["bytes"] - carried > 2 * _BURST * _SIZE  # the others, too
    finally:
        b.run("tc filter del dev bc egress")
    burst(a, c, 4)


def test_counts_are_believed_of_a_table_as_ours_alone() -> None:
    lane = Lane(*[cast("NetlinkSocket", None)] * 3)
    lane.open()
    if lane.problem:
        pytest.skip(lane.problem)
    assert lane._places is not None
    program = lane._programs["from_link"]
    found = Places.of_program(program)
    assert found is not None
    found.close()
    struct.pack_into("@Q", lane._places._memory, FLOWS * 128 + 8, 1)  # as of another version
    assert Places.of_program(program) is None
    assert syscalls.is_program(program, ["meshd_link"]) and not syscalls.is_program(program, ["theirs"])
    trio.run(lane.close)


def test_filters_that_others_have_added_stay_with_their_qdisc(tmp_path: Path) -> None:
    with lab(tmp_path, "mk-fs-") as made:
        a, b = made.node("a"), made.node("b")
        made.wire(a, "ab", b, "ba")
        for end in (a.stop, lambda: (a.kill(), a.clean())):
            a.start()
            need_lane(a)
            prepare(a, ["ab"])
            a.call("drop_priority", "ab", 6)
            assert "meshd" in a.run("tc filter show dev ab ingress")
            end()
            assert "clsact" in a.run("tc qdisc show dev ab")
            assert "meshd" not in a.run("tc filter show dev ab ingress")
            assert "theirs" in a.run("tc filter show dev ab egress")
            a.run("tc qdisc del dev ab clsact")


def test_where_the_operator_has_filters_of_his_own_the_lane_stays_away(tmp_path: Path) -> None:
    with lab(tmp_path, "mk-fo-") as made:
        a, b = made.node("a"), made.node("b")
        made.wire(a, "ab", b, "ba")
        a.run("tc qdisc add dev ab clsact && tc filter add dev ab ingress matchall action drop || true")
        before = a.run("tc filter show dev ab ingress; tc qdisc show dev ab")
        assert "clsact" in before
        a.start()
        need_lane(a)
        prepare(a, ["ab"])
        assert a.run("tc filter show dev ab ingress; tc qdisc show dev ab") == before
        assert a.call("lane")["outside"]["ab"].startswith("others have ")
        assert a.call("lane")["problem"] == ""
        a.stop()
        assert a.run("tc filter show dev ab ingress; tc qdisc show dev ab") == before
