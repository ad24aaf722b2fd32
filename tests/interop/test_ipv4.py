"""IPv4 with others: v4-via-v6 with babeld, and IPv4 next hops with both."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from routing.tlv import Update
from tests.interop.captures import tlvs_from
from tests.interop.mesh import MARKS, PEERS, Node, eventually, link_local, mesh, need

pytestmark = MARKS


def next_hops(capture: Path, node: Node, interface: str) -> set[bool]:
    """Whether the next hops of the IPv4 updates that `node` sent were IPv4 addresses."""
    said = tlvs_from(capture, link_local(node, interface))
    updates = [tlv for tlv in said if isinstance(tlv, Update) and isinstance(tlv.prefix, IPv4Network)]
    return {isinstance(update.next_hop, IPv4Address) for update in updates if update.metric < 65535}


@pytest.mark.parametrize("order", ["mpm", "pmp"])
def test_v4_via_v6_with_babeld(order: str, tmp_path: Path) -> None:
    """No link has an IPv4 address."""
    need("ip", "tcpdump", "babeld")
    with mesh(tmp_path, f"v4{order}") as made:
        kinds = {"m": "meshd", "p": "babeld"}
        a, b, c = (made.node(n, kinds[k], interface=_via_ipv6(kinds[k])) for n, k in zip("abc", order, strict=True))
        made.line(a, b, c)
        with made.capture(a, "ab") as capture:
            made.start()
            made.await_all(family=4)
            made.await_all(family=6)
            c.stop()
            eventually(lambda: c.address4 not in a.usable_routes(), 15, "a keeps a route to c")
        assert next_hops(capture, a, "ab") == next_hops(capture, b, "ba") == {False}


def _via_ipv6(kind: str) -> str | dict[str, object]:
    return "v4-via-v6 true" if kind == "babeld" else {}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("order", ["mpm", "pmp", "mmp"])
def test_ipv4_next_hops(peer: str, order: str, tmp_path: Path) -> None:
    """Every link has IPv4 addresses."""
    need("ip", "tcpdump", peer)
    with mesh(tmp_path, f"{peer}4{order}") as made:
        a, b, c = (made.node(n, {"m": "meshd", "p": peer}[k]) for n, k in zip("abc", order, strict=True))
        made.line(a, b, c, ipv4=True)
        with made.capture(b, "bc") as capture:
            made.start()
            made.await_all(family=4)
            made.await_all(family=6)
            c.stop()
            eventually(lambda: c.address4 not in a.usable_routes(), 15, "a keeps a route to c")
            c.start()
            made.await_all(family=4)
        assert next_hops(capture, b, "bc") == next_hops(capture, c, "cb") == {True}


def test_the_operator_may_have_v4_via_v6_in_spite_of_addresses(tmp_path: Path) -> None:
    need("ip", "tcpdump", "babeld")
    with mesh(tmp_path, "v4opt") as made:
        a = made.node("a", "meshd", interface={"ipv4_next_hop": False})
        b = made.node("b", "babeld")
        made.wire(a, b, ipv4=True)
        with made.capture(a, "ab") as capture:
            made.start()
            made.await_all(family=4)
        assert (next_hops(capture, a, "ab"), next_hops(capture, b, "ba")) == ({False}, {True})
