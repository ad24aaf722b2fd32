"""Routes and rules as the kernel has them."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meshd.kernel_lab import Node, eventually, lab, line, link_local, mac
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with lab(tmp_path_factory.mktemp("routes"), "mk-r-") as made:
        a, b = made.node("a"), made.node("b")
        made.wire(a, "e0", b, "e1")
        a.start()
        a.call("manage", "e0")
        yield a
        assert a.stop() == 0


def _routes(node: Node) -> list[str]:
    lines = node.run("ip -4 route show table 6696; ip -6 route show table 6696").splitlines()
    return sorted(" ".join(line.split()) for line in lines)


def test_a_route_is_replaced_not_added(node: Node) -> None:
    for next_hop in ("fe80::1", "fe80::2"):
        node.call("route", "fd00::9/128", "e0", next_hop)
        node.call("route", "10.8.0.0/24", "e0", next_hop)
    assert _routes(node) == [
        "10.8.0.0/24 via inet6 fe80::2 dev e0 proto 66",
        "fd00::9 via fe80::2 dev e0 proto 66 metric 1024 pref medium",
    ]
    node.call("flush")
    assert _routes(node) == []


def test_an_ipv4_next_hop_need_not_be_in_a_subnet_of_ours(node: Node) -> None:
    for next_hop in ("fe80::1", "10.1.2.3"):
        node.call("route", "10.8.0.0/24", "e0", next_hop)
    assert _routes(node) == ["10.8.0.0/24 via 10.1.2.3 dev e0 proto 66 onlink"]
    node.call("flush")


def test_a_route_that_is_gone_may_be_removed_again(node: Node) -> None:
    node.call("route", "fd00::9/128", "e0", "fe80::1")
    node.call("unroute", "fd00::9/128")
    node.call("unroute", "fd00::9/128")
    node.call("unroute", "10.7.0.0/24")
    assert _routes(node) == []


def test_many_at_once_and_why_some_of_them_failed(node: Node) -> None:
    wanted = [[f"fd00::{n:x}/128", "e0", "fe80::1"] for n in range(1, 301)]
    wanted += [["fd00:1::/32", "nowhere", "fe80::1"], ["fd00:2::/32", "e0", "ff02::1"]]
    failed = node.call("routes", wanted)
    assert failed["fd00:1::/32"] == errno.ENODEV
    assert failed.keys() == {"fd00:1::/32", "fd00:2::/32"}
    assert len(_routes(node)) == 300
    node.call("flush")


def test_an_interface_that_is_not_there_is_one_declared_error(node: Node) -> None:
    with pytest.raises(RuntimeError, match="NetlinkError ENODEV"):
        node.call("route", "fd00::9/128", "nowhere", "fe80::1")


def test_routes_of_others_are_left_alone(node: Node) -> None:
    node.run("ip route add 10.7.0.0/24 dev e0; ip -6 route add fd77::/64 dev e0 table 77")
    node.call("flush")
    assert "10.7.0.0/24" in node.run("ip route")
    assert "fd77::/64" in node.run("ip -6 route show table 77")


def test_the_operators_networks_win_except_over_overlay_addresses(node: Node) -> None:
    node.run("ip route add 10.6.0.0/24 dev lo; ip route add default dev lo")
    node.run("ip -6 route add 2001:db8::/32 dev lo; ip -6 route add fd00::/16 dev lo")
    for prefix in ("10.6.0.7/32", "10.5.0.0/24", "0.0.0.0/0", "2001:db8::7/128", "fd00::7/128", "::/0"):
        node.call("route", prefix, "e0", "fe80::1")

    def device(address: str) -> str:
        words = node.run(f"ip route get {address}").split()
        return words[words.index("dev") + 1]

    assert device("10.6.0.7") == "lo"  # a neighbour announced a piece of the operator's network
    assert device("10.5.0.1") == "e0"
    assert device("9.9.9.9") == "lo"  # a default route of the operator's own
    assert device("2001:db8::7") == "lo"
    assert device("fd00::7") == "e0"
    assert device("2001:db9::1") == "e0"  # a default route out of the mesh, where there is no other
    node.call("flush")


def test_our_address_is_the_source_of_what_we_send(tmp_path: Path) -> None:
    with line(tmp_path, "mk-rs-") as (a, _, c):
        a.run("ip address add 10.9.1.1/24 dev ab; ip address add fd00:1::1/64 dev ab")
        assert f"src {a.ip4} " in a.run(f"ip route get {c.ip4}")
        assert f"src {a.ip6} " in a.run(f"ip route get {c.ip6}")
        assert eventually(lambda: a.call("answers", c.ip4))
        a.call("remove_address", "lo", a.ip4)
        assert a.ip4 not in a.run("ip address show dev lo")


def test_a_blocked_prefix_falls_through_to_no_shorter_one(tmp_path: Path) -> None:
    """a sends to c by b, whose default route leads back to a: what b may not forward must not take that."""
    with line(tmp_path, "mk-rb-") as (a, b, c):
        prefixes = (f"{c.ip6}/128", f"{c.ip4}/32")
        for default in ("::/0", "0.0.0.0/0"):
            b.call("route", default, "ba", link_local(mac("a", "ab")))
        b.run("nft add table inet t; nft 'add chain inet t out { type filter hook postrouting priority 0; }'")
        b.run(f"nft add rule inet t out oifname ba ip6 daddr {c.ip6} counter")
        b.run(f"nft add rule inet t out oifname ba ip daddr {c.ip4} counter")

        def strays() -> list[int]:
            return [int(n) for n in re.findall(r"counter packets (\d+)", b.run("nft list chain inet t out"))]

        done = threading.Event()

        def keep_sending() -> None:
            while not done.is_set():
                for to in (c.ip6, c.ip4):
                    a.call("send", "udp", to, 100 * 1200)

        sender = threading.Thread(target=keep_sending)
        sender.start()
        try:
            assert eventually(lambda: c.call("sunk") > 0)
            for _ in range(20):
                for prefix in prefixes:
                    b.call("block", prefix)
                b.route(c, "bc", mac("c", "cb"))
            for prefix in prefixes:
                b.call("block", prefix)
        finally:
            done.set()
            sender.join()
        a.call("send", "udp", c.ip6, 10 * 1200)
        a.call("send", "udp", c.ip4, 10 * 1200)
        assert [line.split()[0] for line in _routes(b) if line.startswith("unreachable")] == ["unreachable"] * 2
        assert strays() == [0, 0]
        for prefix in prefixes:
            b.call("unroute", prefix)
        for to in (c.ip6, c.ip4):
            a.call("send", "udp", to, 10 * 1200)
        assert all(strays())
