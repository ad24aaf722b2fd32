"""Routes that others have put into the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.meshd.kernel_lab import Node, eventually, lab
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401

STATIC, BOOT = 4, 3
MAIN = 254


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with lab(tmp_path_factory.mktemp("watch"), "mk-w-") as made:
        a, b = made.node("a"), made.node("b")
        made.wire(a, "e0", b, "e1")
        made.wire(a, "f0", b, "f1")
        a.start()
        a.call("manage", "e0")
        yield a, b


def foreign(node: Node) -> list[list[object]]:
    return [row for row in node.call("foreign_routes") if row[2] in (STATIC, BOOT)]


def test_what_can_carry_packets_is_told_and_what_is_ours_is_not(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.call("route", "10.8.0.0/24", "e0", "fe80::1")
    for command in (
        "route add 10.1.0.0/24 dev e0 proto static",
        "route add 10.2.0.0/24 dev e0 table 100",
        "route add 10.3.0.0/24 proto static nexthop dev e0 nexthop dev f0",
        "-4 route add default via inet6 fe80::9 dev f0 proto static",
        "-6 route add fd05::/64 proto static nexthop via fe80::1 dev e0 nexthop via fe80::2 dev f0",
        "route add 10.9.1.0/24 dev e0 proto 66",
        "route add 10.9.2.0/24 dev e0 table 6696",
        "route add blackhole 10.9.3.0/24 proto static",
        "route add unreachable 10.9.4.0/24 proto static",
        "-6 route add fe80:1::/64 dev e0 proto static",
    ):
        a.run(f"ip {command}")
    told = [
        ["0.0.0.0/0", MAIN, STATIC, ["f0"]],
        ["10.1.0.0/24", MAIN, STATIC, ["e0"]],
        ["10.2.0.0/24", 100, BOOT, ["e0"]],
        ["10.3.0.0/24", MAIN, STATIC, ["e0", "f0"]],
        ["fd05::/64", MAIN, STATIC, ["e0", "f0"]],
    ]
    assert foreign(a) == told
    b.run("ip link set f1 down")  # the carrier of f0
    del told[0]
    told[2][3] = told[3][3] = ["e0"]
    assert eventually(lambda: foreign(a) == told, 10), foreign(a)


def test_changes_are_seen_and_our_own_are_none(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.call("follow_routes")
    a.call("readings_until", "10.1.0.0/24", False)
    a.run("ip route add 10.1.0.0/24 dev f0")
    before = a.call("readings_until", "10.1.0.0/24", True)
    for number in range(50):
        a.call("route", f"10.8.{number}.0/24", "e0", "fe80::1")
    assert a.call("readings_until", "10.1.0.0/24", True) == before
    b.run("ip link set f1 down")
    a.call("readings_until", "10.1.0.0/24", False)
    b.run("ip link set f1 up")
    a.call("readings_until", "10.1.0.0/24", True)
    a.run("ip route delete 10.1.0.0/24")
    assert a.call("readings_until", "10.1.0.0/24", False) > before
