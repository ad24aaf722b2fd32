"""Interfaces, their changes, and neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.meshd.kernel_lab import Node, eventually, lab, link_local, mac, plain, total
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with lab(tmp_path_factory.mktemp("links"), "mk-l-") as made:
        a, b = made.node("a"), made.node("b")
        made.wire(a, "e0", b, "e1")
        a.start()
        yield a, b


def test_what_is_told_of_an_interface(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    a.run("ip link set e0 mtu 1400")
    a.call("manage", "e0")
    address = mac("a", "e0")
    expected = {"mac": plain(address), "mtu": 1400, "is_up": True, "link_local": link_local(address)}
    assert a.call("link", "e0") == expected
    with pytest.raises(RuntimeError, match="ENODEV"):
        a.call("link", "nowhere")


def test_bytes_that_cannot_be_billed_are_refused_with_a_way_out(pair: tuple[Node, Node]) -> None:
    """As those of PPP and GRE, which have no MAC addresses either, and more in front of the IP header."""
    a, _ = pair
    a.run("ip addr add fe80::1/64 dev lo nodad")
    with pytest.raises(RuntimeError, match=r"EPFNOSUPPORT: lo is neither .*type 772.*\[\[peer\]\]"):
        a.call("manage", "lo")


def test_changes_of_carrier_and_of_existence_are_seen(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.call("watch")
    assert a.call("seen", "e0", True)
    b.run("ip link set e1 down")
    assert a.call("seen", "e0", False)
    b.run("ip link set e1 up")
    assert a.call("seen", "e0", True)
    b.run("ip link del e1")
    assert a.call("seen", "e0", False)


def test_an_address_is_used_only_after_duplicate_address_detection(pair: tuple[Node, Node]) -> None:
    a, _ = pair

    def is_used_at_once() -> bool:
        a.run("ip link set e0 down; sysctl -qw net.ipv6.conf.e0.accept_dad=1 net.ipv6.conf.e0.dad_transmits=3")
        a.run("ip link set e0 up")
        return bool(a.call("link", "e0")["link_local"] != "None")

    assert not all(is_used_at_once() for _ in range(5))  # on a busy machine three seconds may pass before we look
    a.call("manage", "e0")  # waits for it
    assert a.call("link", "e0")["link_local"] == link_local(mac("a", "e0"))


def test_the_neighbours_mac_address_is_asked_for(pair: tuple[Node, Node]) -> None:
    a, _ = pair
    neighbour = mac("b", "e1")
    assert a.call("known_mac", "e0", link_local(neighbour)) is None
    assert a.call("mac", "e0", link_local(neighbour)) == plain(neighbour)
    assert a.call("known_mac", "e0", link_local(neighbour)) == plain(neighbour)
    assert a.call("mac", "e0", "fe80::dead") is None


def test_whom_the_kernel_cannot_reach_is_told(pair: tuple[Node, Node]) -> None:
    """Link-local addresses only: no other is a neighbour's."""
    a, _ = pair
    a.run("sysctl -qw net.ipv6.neigh.e0.retrans_time_ms=50; ip route add fd00::/64 dev e0")
    a.call("watch_unreachable")
    for address in ("fd00::dead", "fe80::dead%e0"):
        send = f"s.sendto(bytes(1), socket.getaddrinfo('{address}', 9)[0][4])"
        a.run(f'python3 -c "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); {send}"')
    assert eventually(lambda: "fe80::dead%e0" in a.call("unreachable"))
    assert not [told for told in a.call("unreachable") if told.startswith("fd00::")]


def test_an_interface_made_anew_is_metered_again(pair: tuple[Node, Node]) -> None:
    a, b = pair
    a.call("manage", "e0")
    a.call("address", "lo", a.ip6)
    for _ in range(2):
        a.run("ip link del e0")
        a.lab.wire(a, "e0", b, "e1")
        a.call("manage", "e0")
        a.call("route", "fd00::b/128", "e0", link_local(mac("b", "e1")))
        a.call("read")
        a.run(
            'python3 -c "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); '
            "s.sendto(bytes(52), ('fd00::b', 9))\""
        )
        # It leaves as soon as the neighbour's MAC address is known.
        assert eventually(lambda: total(a.call("read"), "out", mac=plain(mac("b", "e1"))) == 100)
