"""Source-specific routes in the kernel (RFC 9079): the destination first, then the source, for both families."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.meshd.kernel_lab import Node, lab
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401

FAMILIES = {
    "default": ("0.0.0.0/0", "::/0"),
    "net": ("198.18.0.0/16", "2001:db8:c::/48"),
    "subnet": ("198.18.1.0/24", "2001:db8:c:1::/64"),
    "far": ("203.0.113.1", "2001:db8:f::1"),
    "in net": ("198.18.7.1", "2001:db8:c:7::1"),
    "in subnet": ("198.18.1.1", "2001:db8:c:1::1"),
    "a": ("192.0.2.0/24", "2001:db8:a::/48"),
    "part of a": ("192.0.2.128/25", "2001:db8:a:1::/64"),
    "from a": ("192.0.2.1", "2001:db8:a:2::1"),
    "from part of a": ("192.0.2.129", "2001:db8:a:1::1"),
    "from elsewhere": ("192.0.3.1", "2001:db8:b::1"),
}
VIA = ("fe80::1", "fe80::2", "fe80::3")
HOPS = {hop: number for number, hop in enumerate(VIA)}


class Family:
    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.number = number

    def __getitem__(self, name: str) -> str:
        return FAMILIES[name][self.number]

    def route(self, name: str, hop: int, source: str | None = None) -> None:
        self.node.call("route", self[name], "e0", VIA[hop], source and self[source])

    def unroute(self, name: str, source: str | None = None) -> None:
        self.node.call("unroute", self[name], source and self[source])

    def block(self, name: str, source: str | None = None) -> None:
        self.node.call("block", self[name], source and self[source])

    def hop(self, source: str, destination: str) -> int | str:
        """Which of `VIA` a packet that we forward is handed to; or what is said in place of it."""
        command = f"ip route get {self[destination]} from {self[source]} iif e1 2>&1 || true"
        words = self.node.run(command).split()
        return next((HOPS[word] for word in words if word in HOPS), "main" if "lo" in words else "unreachable")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with lab(tmp_path_factory.mktemp("source"), "mk-s-") as made:
        a, b = made.node("a"), made.node("b")
        made.wire(a, "e0", b, "e1")
        made.wire(a, "e1", b, "e2")
        a.run("ip address add 198.51.100.1/24 dev e1")
        a.run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.e1.rp_filter=0")
        a.start()
        for interface in ("e0", "e1"):
            a.call("manage", interface)
        yield a
        assert a.stop() == 0


@pytest.fixture(params=[0, 1], ids=["ipv4", "ipv6"])
def family(node: Node, request: pytest.FixtureRequest) -> Iterator[Family]:
    before = node.run("ip -4 rule; ip -6 rule; ip route show table all; ip -6 route show table all")
    yield Family(node, request.param)
    node.run("ip route del default dev lo 2>/dev/null; ip -6 route del default dev lo 2>/dev/null; true")
    after = node.run("ip -4 rule; ip -6 rule; ip route show table all; ip -6 route show table all")
    assert after == before, "each test removes what it made"


def test_the_destination_comes_first_then_the_source(family: Family) -> None:
    family.route("subnet", 0)
    family.route("net", 1, "a")
    family.route("net", 2, "part of a")
    assert family.hop("from part of a", "in net") == 2
    assert family.hop("from a", "in net") == 1
    assert family.hop("from elsewhere", "in net") == "unreachable"
    # The plain route has the longer destination: no source prefix takes that from it.
    assert {family.hop(source, "in subnet") for source in ("from part of a", "from a", "from elsewhere")} == {0}
    family.route("subnet", 1)  # it moves, for all sources
    assert {family.hop(source, "in subnet") for source in ("from part of a", "from a", "from elsewhere")} == {1}
    family.unroute("subnet")
    assert [family.hop(source, "in subnet") for source in ("from part of a", "from a", "from elsewhere")] == [
        2,
        1,
        "unreachable",
    ]
    family.unroute("net", "part of a")
    assert family.hop("from part of a", "in net") == 1
    family.unroute("net", "a")
    assert family.hop("from part of a", "in net") == "unreachable"


def test_what_is_blocked_is_refused_and_nothing_less_specific_takes_it(family: Family) -> None:
    family.route("net", 0)
    family.route("net", 1, "a")
    family.block("net", "a")
    assert [family.hop(source, "in net") for source in ("from a", "from elsewhere")] == ["unreachable", 0]
    family.route("net", 2, "a")
    assert family.hop("from a", "in net") == 2
    family.block("net")
    assert [family.hop(source, "in net") for source in ("from a", "from elsewhere")] == [2, "unreachable"]
    family.unroute("net", "a")
    assert family.hop("from a", "in net") == "unreachable"
    family.unroute("net")


def test_the_operators_default_route_comes_first_unless_it_is_announced_for_a_source(family: Family) -> None:
    family.route("default", 0)
    family.route("default", 1, "a")
    assert [family.hop(source, "far") for source in ("from a", "from elsewhere")] == [1, 0]
    family.node.run(f"ip route add {family['default']} dev lo")
    assert [family.hop(source, "far") for source in ("from a", "from elsewhere")] == ["main", "main"]
    # It is for a part of these only: the others leave by whoever announced a default route for them.
    family.node.call("keep_default", family["part of a"], True)
    assert [family.hop(source, "far") for source in ("from part of a", "from a")] == ["main", 1]
    assert family.hop("from elsewhere", "far") == "main"
    family.node.call("keep_default", family["part of a"], False)
    assert family.hop("from a", "far") == "main"
    for source in (None, "a"):
        family.unroute("default", source)


def test_what_has_no_source_address_yet_gets_one_that_the_route_takes(node: Node) -> None:
    """IPv6 only: the kernel can look for one."""
    family = Family(node, 1)
    node.run("ip address add 2001:db8:a::1/128 dev lo")
    family.route("default", 1, "a")
    assert "src 2001:db8:a::1" in node.run(f"ip route get {family['far']}")
    node.run("ip address del 2001:db8:a::1/128 dev lo")
    family.unroute("default", "a")
