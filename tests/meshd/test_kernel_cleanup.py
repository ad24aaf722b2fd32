"""Everything is as before: after an exit, after a kill and the next start, and after a failed start."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.meshd.kernel_lab import Node, lab, link_local, mac, plain
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401

_STATE = """
ip -4 route show table all; ip -6 route show table all; ip -4 rule; ip -6 rule
nft list ruleset; tc qdisc show dev e0; ip -o address show dev lo; ip -d -o link show e0; ethtool -k e0
grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | grep -v -e stable_secret -e mc_forwarding | sort
cat /proc/sys/net/ipv4/ip_forward
"""


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with lab(tmp_path_factory.mktemp("cleanup"), "mk-c-") as made:
        a, b = made.node("a"), made.node("b")
        made.wire(a, "e0", b, "e1")
        # What the operator has: an address, a route, a rule, nftables, settings that differ between interfaces.
        a.run("ip address add 10.1.0.1/32 dev lo; ip route add 10.2.0.0/16 dev e0; ip rule add pref 500 lookup 77")
        a.run("nft add table inet mine; nft add chain inet mine c; ethtool -K e0 gro on tso off")
        a.run("sysctl -qw net.ipv4.conf.e0.forwarding=1 net.ipv4.conf.all.rp_filter=1 net.ipv6.conf.e0.accept_ra=1")
        yield a


def _change_everything(node: Node) -> None:
    node.start()
    node.call("manage", "e0")
    node.call("address", "lo", node.ip6)
    node.call("address", "lo", node.ip4)
    node.call("address", "lo", "10.1.0.1")  # the operator's: ours to use, not to remove
    node.call("route", "fd00::b/128", "e0", link_local(mac("b", "e1")))
    node.call("route", "10.9.0.2/32", "e0", link_local(mac("b", "e1")))
    node.call("block", "fd00::c/128")
    node.call("block", "10.9.0.3/32")
    node.call("route", "::/0", "e0", link_local(mac("b", "e1")), "2001:db8:a::/48")
    node.call("route", "10.9.0.0/16", "e0", link_local(mac("b", "e1")), "192.0.2.0/24")
    node.call("block", "10.9.0.4/32", "192.0.2.0/25")
    node.call("keep_default", "2001:db8:b::/48", True)
    node.call("suspend", "e0", plain(mac("b", "e1")))
    changed = node.run(_STATE)
    assert "table netdev meshd" in changed
    assert ("qdisc clsact" in changed) is (not node.call("lane")["problem"])
    assert "proto 66" in changed


def _settled(node: Node) -> str:
    """The state, when the link-local address of `e0` is there."""
    node.run(
        "for i in $(seq 100); do ip -6 route show table local | grep -q 'fe80::.* dev e0' && exit; sleep 0.02; done"
    )
    return node.run(_STATE)


def test_an_exit_leaves_everything_as_it_was(node: Node) -> None:
    before = _settled(node)
    _change_everything(node)
    assert node.stop() == 0
    assert node.run(_STATE) == before
    assert not node.record.exists()


def test_the_start_after_a_kill_removes_what_was_left(node: Node) -> None:
    before = _settled(node)
    _change_everything(node)
    node.kill()
    assert "proto 66" in node.run(_STATE)
    node.clean()
    assert node.run(_STATE) == before

    _change_everything(node)
    node.kill()
    node.start()
    assert node.call("read") == []  # it is up
    assert "10.9.0.2" not in node.run("ip route show table all; ip address; ip -6 route show table all")
    assert node.stop() == 0
    assert node.run(_STATE) == before


def test_it_does_not_matter_if_the_interface_has_gone(node: Node) -> None:
    _change_everything(node)
    node.run("ip link del e0")
    assert node.stop() == 0
    assert "meshd" not in node.run("nft list ruleset")
    assert node.run("cat /proc/sys/net/ipv6/conf/all/forwarding").strip() == "0"


def test_a_record_of_another_boot_is_ignored(node: Node) -> None:
    record = {"boot_id": "another", "namespace": "another", "sysctls": {"ipv4/conf/e0/forwarding": "0"}}
    node.record.write_text(json.dumps(record))
    before = _settled(node)
    node.clean()
    assert node.run(_STATE) == before


def test_a_start_that_fails_leaves_nothing(node: Node) -> None:
    before = _settled(node)
    path = node.lab.directory / "empty"
    path.mkdir()
    node.start(path=str(path))  # no nft to be found
    assert node.process is not None
    assert node.process.wait(15) != 0
    assert node.run(_STATE) == before
