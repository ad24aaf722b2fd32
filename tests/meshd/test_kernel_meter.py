"""Real traffic through three namespaces: neighbours count the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meshd.kernel_lab import Flow, Node, eventually, lab, line, link_local, mac, plain, prepare, total
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401

Line = tuple[Node, Node, Node]
_SIZE = 3_000_000
_FLOWS_AT_ONCE = 200


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with line(tmp_path_factory.mktemp("meter"), "mk-m-") as made:
        made[2].call("listen_everywhere")
        yield made


class Book:
    """What each node has read, added up."""

    def __init__(self, nodes: Line) -> None:
        self.nodes = nodes
        self.flows: dict[str, list[Flow]] = {node.name: [] for node in nodes}
        self.update()
        self.flows = {node.name: [] for node in nodes}

    def update(self) -> None:
        for node in self.nodes:
            self.flows[node.name] += node.call("read")

    def hop(self, sender: str, out: str, receiver: str, interface: str, direction: str) -> tuple[int, int]:
        """What the sender says it has sent over this hop, and what the receiver says it has received."""
        received_from = plain(mac(sender, out))
        sent = total(self.flows[sender], "out", interface=out, mac=plain(mac(receiver, interface)))
        return sent, total(self.flows[receiver], direction, interface=interface, mac=received_from)

    def agrees(self) -> bool:
        self.update()
        hops = [
            self.hop("a", "ab", "b", "ba", "forward_in"),
            self.hop("b", "bc", "c", "cb", "in"),
            self.hop("c", "cb", "b", "bc", "forward_in"),
            self.hop("b", "ba", "a", "ab", "in"),
        ]
        return all(sent == received > 0 for sent, received in hops)


@pytest.mark.parametrize("family", [6, 4])
def test_both_ends_of_each_hop_count_the_same_bytes_of_tcp(nodes: Line, family: int) -> None:
    a, _, c = nodes
    book = Book(nodes)
    before = c.call("sunk")
    a.call("send", "tcp", c.address(family), _SIZE)
    assert eventually(lambda: c.call("sunk") - before == _SIZE)
    assert eventually(book.agrees), book.flows
    forward = {"source": a.address(family), "destination": c.address(family)}
    carried = total(book.flows["b"], "forward_in", **forward)
    assert _SIZE < carried < 1.1 * _SIZE
    assert carried == total(book.flows["a"], "out", **forward) == total(book.flows["c"], "in", **forward)
    assert total(book.flows["b"], "in") == 0  # nothing was for b itself


@pytest.mark.parametrize("family", [6, 4])
def test_udp_is_billed_at_layer_3_exactly(nodes: Line, family: int) -> None:
    a, _, c = nodes
    book = Book(nodes)
    before = c.call("sunk")
    for step in range(1, 5):  # more at once would overflow the receiver's socket
        a.call("send", "udp", c.address(family), 60_000)
        assert eventually(lambda arrived=before + 60_000 * step: c.call("sunk") == arrived)  # type: ignore[misc]
    book.update()
    packets = 240_000 // 1200
    expected = 240_000 + packets * (8 + (40 if family == 6 else 20))
    assert book.hop("a", "ab", "b", "ba", "forward_in") == (expected, expected)
    assert book.hop("b", "bc", "c", "cb", "in") == (expected, expected)
    assert sum(flow["packets"] for flow in book.flows["c"]) == packets


def test_traffic_for_the_relay_itself_is_local(nodes: Line) -> None:
    a, b, _ = nodes
    book = Book(nodes)
    a.call("send", "tcp", b.ip6, 100_000)

    def agrees() -> bool:
        book.update()
        sent, received = book.hop("a", "ab", "b", "ba", "in")
        return sent == received > 100_000

    assert eventually(agrees)
    assert total(book.flows["b"], "forward_in") == 0


@pytest.mark.parametrize("rotate_at", [8192, 0], ids=["reading", "rotating"])
def test_reading_while_traffic_flows_loses_nothing(nodes: Line, rotate_at: int) -> None:
    a, _, c = nodes
    book = Book(nodes)
    for node in nodes:
        node.call("rotate_at", rotate_at)
        node.call("read_all_the_time")
    for _ in range(3):
        a.call("send", "tcp", c.ip6, 2 * _SIZE)
        c.call("send", "tcp", a.ip4, _SIZE)
    for node in nodes:
        node.call("stop_reading")
        node.call("rotate_at", 8192)
    assert eventually(book.agrees), book.flows
    assert total(book.flows["b"], "forward_in", interface="ba", source=a.ip6) > 6 * _SIZE


def test_a_cancelled_reading_loses_nothing(nodes: Line) -> None:
    a, b, c = nodes
    book = Book(nodes)
    b.call("rotate_at", 0)
    for _ in range(10):
        b.call("read_all_the_time")
        a.call("send", "tcp", c.ip6, 200_000)
        b.call("stop_reading")
    b.call("rotate_at", 8192)
    assert eventually(book.agrees), book.flows


def test_link_local_and_multicast_traffic_is_not_counted(nodes: Line) -> None:
    a, _, _ = nodes
    book = Book(nodes)
    assert a.call("mac", "ab", "fe80::ff:fe00:" + plain(mac("b", "ba"))[-4:]) == plain(mac("b", "ba"))
    a.run(
        'python3 -c "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); '
        "s.sendto(bytes(100), ('ff02::1:6', 6696, 0, socket.if_nametoindex('ab'))); "
        "s.sendto(bytes(100), ('fe80::ff:fe00:6261', 6696, 0, socket.if_nametoindex('ab')))\""
    )
    book.update()
    assert book.flows == {"a": [], "b": [], "c": []}


def test_flows_beyond_the_size_of_the_set_are_counted_by_neighbour(nodes: Line) -> None:
    a, b, c = nodes
    b.call("leave_lane")
    b.call("set_size", 1)
    b.run("nft flush ruleset")
    b.call("read")
    book = Book(nodes)
    try:
        c.call("send", "tcp", a.ip6, 10_000)
        a.call("send", "tcp", c.ip6, 50_000)
        assert eventually(book.agrees), book.flows
        assert total(book.flows["b"], "forward_in", source="None") > 0
    finally:
        b.call("set_size", 16384)
        b.run("nft flush ruleset")
        b.call("read")


def test_what_can_be_counted_for_nobody_is_not_carried(nodes: Line) -> None:
    a, b, c = nodes
    a.run("ip -6 address add fd00::aa dev lo")
    b.call("set_size", 1, 1)
    b.run("nft flush ruleset")
    b.call("read")
    try:
        b.call("read")
        before = c.call("sunk")
        a.call("send_from", a.ip6, c.ip6)  # takes the only place for a flow
        c.call("send_from", c.ip6, a.ip6)  # and this the only one for a neighbour
        a.call("send_from", "fd00::aa", c.ip6)  # now there is none
        a.call("send_from", a.ip6, c.ip6)
        assert eventually(lambda: c.call("sunk") >= before + 200)
        assert c.call("sunk") == before + 200
        c.call("send_from", c.ip6, a.ip6)
        read: list[Flow] = []

        def all_read() -> bool:
            read.extend(b.call("read"))
            return sum(flow["packets"] for flow in read if flow["direction"] == "forward_in") == 4

        assert eventually(all_read), read
    finally:
        a.run("ip -6 address del fd00::aa dev lo")
        b.call("set_size", 16384)
        b.run("nft flush ruleset")
        b.call("read")


@pytest.mark.parametrize("flows", [10_000, 18_000], ids=["as-many-as-fit", "more-than-fit"])
def test_of_thousands_of_flows_every_byte_is_counted(nodes: Line, flows: int) -> None:
    a, b, c = nodes
    network = f"fd0a:{flows:x}::/64"
    a.call("route", network, "ab", link_local(mac("b", "ba")))
    b.call("route", network, "bc", link_local(mac("c", "cb")))
    c.run(f"ip -6 route add local {network} dev lo")
    book = Book(nodes)
    for node, interface, at in ((a, "ab", "ba"), (b, "ba", "ab"), (b, "bc", "cb"), (c, "cb", "bc")):
        node.call("expect", interface, plain(mac(at[0], at)))
    for node in nodes:
        node.call("rotate_at", 12_288)
        node.call("read_all_the_time", 0.25)
    before = c.call("sunk")
    for first in range(0, flows, _FLOWS_AT_ONCE):  # more at once would overflow some queue
        a.call("spray", network, first, _FLOWS_AT_ONCE, 100)
        sent = before + 100 * (first + _FLOWS_AT_ONCE)
        assert eventually(lambda arrived=sent: c.call("sunk") >= arrived)  # type: ignore[misc]
    for node in nodes:
        node.call("stop_reading")
    book.update()
    expected = flows * (100 + 8 + 40)
    assert book.hop("a", "ab", "b", "ba", "forward_in") == (expected, expected)
    assert book.hop("b", "bc", "c", "cb", "in") == (expected, expected)
    told_apart = {flow["destination"] for flow in book.flows["b"] if flow["direction"] == "forward_in"}
    assert len(told_apart) > flows // 10  # of those that begin at once, the kernel cannot make counters for all


def test_an_interface_that_was_renamed_and_taken_anew_counts_all(nodes: Line) -> None:
    a, b, c = nodes
    book = Book(nodes)
    b.run("ip link set ba down && ip link set ba name was && ip link set was up")
    book.update()
    b.run("ip link set was down && ip link set was name ba && ip link set ba up")
    b.call("manage", "ba")
    b.route(a, "ba", mac("a", "ab"))
    for node in (a, c):
        node.call("send", "tcp", (c if node is a else a).ip6, 100_000)
    assert eventually(book.agrees), book.flows
    assert total(book.flows["b"], "forward_in", interface="ba") > 100_000


def test_rules_that_somebody_flushed_come_back(nodes: Line) -> None:
    a, b, c = nodes
    before = b.call("reloads")
    b.run("nft flush ruleset")
    assert b.call("read") == []
    assert b.call("reloads") == before + 1
    book = Book(nodes)
    a.call("send", "tcp", c.ip6, 50_000)
    assert eventually(book.agrees), book.flows


def test_neighbours_on_one_segment_are_told_apart(tmp_path: Path) -> None:
    with lab(tmp_path, "mk-s-") as made:
        switch = made.node("s")
        switch.run("ip link add br0 type bridge && ip link set br0 up")
        nodes = [made.node(name) for name in "abc"]
        for node in nodes:
            made.wire(node, "e", switch, f"s{node.name}")
            switch.run(f"ip link set s{node.name} master br0")
            node.start()
            prepare(node, ["e"])
        a, b, c = nodes
        a.route(c, "e", mac("b", "e"))  # by way of b, over the same interface
        a.route(b, "e", mac("b", "e"))
        b.route(c, "e", mac("c", "e"))
        b.route(a, "e", mac("a", "e"))
        c.route(a, "e", mac("a", "e"))  # straight back
        for family in (6, 4):
            a.call("send", "tcp", c.address(family), 100_000)
        flows: dict[str, list[Flow]] = {node.name: [] for node in nodes}

        def agree() -> bool:
            for node in nodes:
                flows[node.name] += node.call("read")
            pairs = [("a", "b", "forward_in"), ("b", "c", "in"), ("c", "a", "in")]
            return all(
                total(flows[sender], "out", mac=plain(mac(receiver, "e")))
                == total(flows[receiver], direction, mac=plain(mac(sender, "e")))
                > 0
                for sender, receiver, direction in pairs
            )

        assert eventually(agree), flows
        assert total(flows["b"], "forward_in", mac=plain(mac("a", "e"))) > 200_000
        assert total(flows["a"], "out", mac=plain(mac("c", "e"))) == 0


def test_a_kill_around_a_rotation_of_the_counters_bills_every_byte_once(tmp_path: Path) -> None:
    """However old the books are: what was read after them is found again, in sets in which nothing is counted."""
    with line(tmp_path, "mk-k-") as nodes:
        a, b, c = nodes
        b.call("leave_lane")

        def send() -> None:
            before = c.call("sunk")
            a.call("send_datagrams", c.ip6, 7000, 1000, 20)
            assert eventually(lambda: c.call("sunk") == before + 20_000)

        send()
        in_books = b.call("read")
        readings = {flow["name"]: flow["total_bytes"] for flow in in_books}
        send()
        b.call("rotate_at", 0)  # each reading goes over to new sets
        for _ in range(3):
            b.call("read")
            send()
        b.kill()
        send()
        b.start()
        found = b.call("recovered", readings)
        expected = 6 * 20 * 1048
        assert total(in_books, "forward_in") + total(found, "forward_in") == expected
        assert total(in_books, "out", interface="bc") + total(found, "out", interface="bc") == expected


def test_old_sets_that_the_kernel_will_not_delete_hold_up_no_reading(tmp_path: Path) -> None:
    with line(tmp_path, "mk-o-") as nodes:
        a, b, _ = nodes
        b.call("read")
        b.call("rotate_at", 0)
        b.call("keep_old", 0.0)
        b.run("ip link set bc down && ip link set bc name other")  # its chain stays, and is not changed any more
        for _ in range(3):
            b.call("read")
        a.call("send_datagrams", b.ip6, 7000, 1000, 20)
        flows: list[Flow] = []

        def counted() -> bool:
            flows.extend(b.call("read"))
            return total(flows, "in", interface="ba") == 20 * 1048

        assert eventually(counted), flows
