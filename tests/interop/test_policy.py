"""Redistribution, filters and modes of the real daemon, with babeld and BIRD around it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.interop.mesh import MARKS, PEERS, UPDATE_INTERVAL, Mesh, Node, eventually, mesh, need, rewrite

pytestmark = MARKS
UPLINK = {"redistribute": [{"prefix": "::/0"}, {"prefix": "192.0.2.0/24", "or_longer": True, "metric": 100}]}


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> str:
    need("ip", "nft", request.param)
    return str(request.param)


def has_default(node: Node) -> bool:
    return any(line.startswith("default") for line in node.usable_routes().splitlines())


def own_prefixes(node: Node) -> set[str]:
    return {row["prefix"] for row in node.rpc("routes") if row["origin"]}


def gateway(made: Mesh) -> Node:
    """A meshd with an interface that leads out of the mesh, whose other end is node `x`."""
    node, outside = made.node("g", "meshd", **UPLINK), made.node("x", "babeld")
    made.namespaces.veth((node.name, "wan0"), (outside.name, "wan1"))
    del made.nodes["x"]
    node.run("ip -6 address add 2001:db8::2/64 dev wan0")
    return node


def test_a_default_route_is_announced_while_the_kernel_has_it(tmp_path: Path) -> None:
    need("ip", "nft", "babeld")
    with mesh(tmp_path, "redist") as made:
        g, far = gateway(made), made.node("b", "babeld")
        made.wire(g, far)
        made.start()
        made.await_reach(g, far)
        assert not has_default(far)
        g.run("ip -6 route add default via 2001:db8::1 dev wan0")
        eventually(lambda: has_default(far), 20, "the default route was not announced")
        g.run("ip route add 192.0.2.0/25 dev lo")
        eventually(lambda: "192.0.2.0/25" in own_prefixes(g), 20, "a route that a wider rule takes was not announced")
        # What the mesh has put into the kernel is there too, and not ours to announce.
        assert far.address6 in g.usable_routes() and f"{far.address6}/128" not in own_prefixes(g)
        # The uplink's carrier goes: the kernel keeps the route, but it leads nowhere.
        made.namespaces.run("x", ["ip", "link", "set", "wan1", "down"])
        eventually(lambda: not has_default(far), 20, "the default route without carrier is still announced")
        made.namespaces.run("x", ["ip", "link", "set", "wan1", "up"])
        eventually(lambda: has_default(far), 20, "the default route did not come back with the carrier")
        g.run("ip -6 route delete default")
        eventually(lambda: not has_default(far), 20, "the default route was not retracted")


def test_filters_on_what_others_announce_and_hear_can_change_while_it_runs(peer: str, tmp_path: Path) -> None:
    """a - m - b, and m - c: m takes nothing of b at first, and tells c nothing of a."""
    rules: list[dict[str, object]] = [
        {"direction": "import", "action": "refuse", "interface": "hb"},
        {"direction": "export", "action": "refuse", "interface": "hc", "prefix": "fd77::1/128"},
    ]
    with mesh(tmp_path, f"{peer}fi") as made:
        a, m = made.node("a", peer), made.node("h", "meshd", filter=rules)
        b, c = made.node("b", peer), made.node("c", peer)
        for node in (a, b, c):
            made.wire(m, node)
        made.start()
        made.await_reach(m, a)
        made.await_reach(m, c)
        eventually(lambda: b.address6 in str(m.routes()), 20, "b's route was not heard")
        refused = [row for row in m.routes() if row["prefix"].startswith(b.address6)]
        assert [row["refused"] for row in refused] == [True]
        assert m.selected(f"{b.address6}/128") is None
        eventually(lambda: m.address6 in c.usable_routes(), 20, "c did not hear of m")
        assert a.address6 not in c.usable_routes()
        rewrite(m, "filter", [{"direction": "import", "interface": "hb", "add_metric": 1000}])
        assert m.rpc("reload") == {"filters": 1, "redistributions": 0, "restart_needed": []}
        for one, other in ((a, b), (a, c), (b, c)):
            made.await_reach(one, other)
        chosen = m.selected(f"{b.address6}/128")
        assert chosen is not None and chosen["metric"] >= 1000
        rewrite(m, "filter", [{"direction": "export", "action": "refuse"}])
        m.rpc("reload")
        eventually(lambda: m.address6 not in a.usable_routes() + b.usable_routes(), 20, "a retraction did not arrive")


def test_nobodys_packets_cross_a_leaf_though_there_is_no_other_way(tmp_path: Path) -> None:
    need("ip", "nft", "babeld")
    with mesh(tmp_path, "leaf") as made:
        a, leaf = made.node("a", "babeld"), made.node("b", "meshd", routing={"mode": "leaf"})
        c = made.node("c", "meshd")
        made.line(a, leaf, c)
        made.start()
        for one in (a, c):
            made.await_reach(leaf, one)
            made.await_reach(one, leaf)
        time.sleep(UPDATE_INTERVAL)  # there is nothing to wait for: it must not come
        assert c.address6 not in a.usable_routes() and a.address6 not in str(c.routes())
        assert not made.connects(a, c) and not made.connects(c, a)
