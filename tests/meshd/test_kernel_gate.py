"""A debtor's traffic is held to the free tier; what it sends to us, and what others send through us, is not."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from meshd.kernel.gate import BURST, LIGHT_FLOWS, Tier
from tests.meshd.kernel_lab import Node, eventually, line, mac, plain, total
from tests.meshd.kernel_lab import needs_namespaces as pytestmark  # noqa: F401

Line = tuple[Node, Node, Node]
_A = plain(mac("a", "ab"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with line(tmp_path_factory.mktemp("gate"), "mk-g-") as made:
        yield made


@pytest.mark.parametrize("family", [6, 4])
def test_a_suspended_neighbour_still_reaches_us_but_nobody_behind_us(nodes: Line, family: int) -> None:
    a, b, c = nodes
    b.call("suspend", "ba", _A)
    b.call("suspend", "ba", _A)
    b.call("read")
    assert not a.call("answers", c.address(family))
    assert eventually(lambda: a.call("answers", b.address(family)))
    flows = b.call("read")
    assert total(flows, "forward_in", mac=_A) == 0  # what is dropped is not billed
    assert total(flows, "refused", mac=_A) > 0  # but counted, so that both ends agree on what was sent
    assert total(flows, "in", mac=_A) > 0
    b.call("resume", "ba", _A)
    b.call("resume", "ba", _A)
    assert eventually(lambda: a.call("answers", c.address(family)))


def test_others_are_not_punished_for_it(nodes: Line) -> None:
    _, b, c = nodes
    b.call("suspend", "ba", "020000000000")
    b.call("suspend", "bc", _A)  # the same address on another interface is somebody else
    assert eventually(lambda: nodes[0].call("answers", c.ip6))
    b.call("resume", "ba", "020000000000")
    b.call("resume", "bc", _A)


def test_it_outlives_the_interface_and_a_flush_of_the_rules(nodes: Line) -> None:
    a, b, c = nodes
    b.call("suspend", "ba", _A)
    b.call("forget_interface", "ba")
    b.call("manage", "ba")
    assert not a.call("answers", c.ip6)
    b.run("nft flush ruleset")
    b.call("read")
    assert not a.call("answers", c.ip6)
    b.call("resume", "ba", _A)
    assert eventually(lambda: a.call("answers", c.ip6))


def test_who_is_suspended_can_be_told(nodes: Line) -> None:
    _, b, _ = nodes
    b.call("suspend", "ba", _A)
    assert b.call("suspended") == [["ba", _A]]
    b.call("resume", "ba", _A)
    assert b.call("suspended") == []


_BITS = 8_000
_TIER = Tier(_BITS // 8)
_BUCKET = _TIER.rate + BURST
_ALONE = _TIER.rate + _TIER.light_rate, _BUCKET + _TIER.light_rate + LIGHT_FLOWS * BURST
_UDP = {4: 28, 6: 48}  # of headers, with IP's
_COUNT, _SIZE = 60, 1000


class Flood:
    """Far more than the free tier of `sender`, of both families, and what the relay made of it.

    The tier lets through its bucket, and what the rate adds to that while it lasts; a busy machine only makes that
    longer, and it is measured around all of it.
    """

    def __init__(self, nodes: Line, *senders: tuple[Node, Node, str, str]) -> None:
        """`senders`: who, to whom, over which interface of b, from which MAC address."""
        self._relay = nodes[1]
        self._senders = senders
        self._flows = []
        self._began = time.monotonic()

    def run(self, *, port: int = 7000) -> None:
        for sender, to, _, _ in self._senders:
            for family in (4, 6):
                sender.call("send_datagrams", to.address(family), port, _SIZE, _COUNT)
        sent = len(self._senders) * sum(_COUNT * (_SIZE + _UDP[family]) for family in (4, 6))
        assert eventually(lambda: self.count("free") + self.count("refused") == sent), self._flows

    def count(self, direction: str) -> int:
        self._flows += self._relay.call("read")
        return sum(total(self._flows, direction, interface=i, mac=m) for *_, i, m in self._senders)

    def assert_within(self, rate: int, bucket: int) -> None:
        """At least the tier's own bucket was filled up; at most so much was carried."""
        most = bucket + rate * (time.monotonic() - self._began)
        assert _BUCKET - _SIZE - max(_UDP.values()) < self.count("free") <= most
        assert self.count("forward_in") == 0  # nothing is billed


@pytest.fixture
def tiered(nodes: Line) -> Iterator[Line]:
    nodes[1].call("free_rate", _BITS)
    yield nodes
    for interface, neighbour in nodes[1].call("suspended"):
        nodes[1].call("resume", interface, neighbour)
    nodes[1].call("free_rate", 0)


def test_a_debtor_gets_one_free_tier_for_both_families_and_all_else_is_refused_and_counted(tiered: Line) -> None:
    a, b, c = tiered
    flood = Flood(tiered, (a, c, "ba", _A))
    b.call("read")
    b.call("suspend", "ba", _A)
    flood.run()
    flood.assert_within(*_ALONE)


def test_a_debtor_that_is_told_so_again_gets_no_fresh_bucket(tiered: Line) -> None:
    a, b, c = tiered
    flood = Flood(tiered, (a, c, "ba", _A))
    b.call("read")
    b.call("suspend", "ba", _A)
    flood.run()
    b.call("suspend", "bc", "020000000001")
    b.call("suspend", "ba", _A)
    b.call("resume", "bc", "020000000001")
    a.call("send_datagrams", c.ip4, 7000, _SIZE, 5)
    assert eventually(lambda: flood.count("free") + flood.count("refused") == _COUNT * 2076 + 5 * 1028)
    flood.assert_within(*_ALONE)


def test_one_flow_that_takes_all_leaves_the_others_something(tiered: Line) -> None:
    """They share no bucket with it: all that they send is carried."""
    a, b, c = tiered
    b.call("read")
    b.call("suspend", "ba", _A)
    a.call("send_datagrams", c.ip4, 7000, _SIZE, _COUNT)
    flood = Flood(tiered, (a, c, "ba", _A))
    assert eventually(lambda: flood.count("free") + flood.count("refused") == _COUNT * (_SIZE + _UDP[4]))
    before = flood.count("free"), flood.count("refused")
    a.call("send_datagrams", c.ip6, 7000, 100, 10)
    assert eventually(lambda: flood.count("free") == before[0] + 10 * (100 + _UDP[6]))
    assert flood.count("refused") == before[1]


def test_strangers_share_one_tier(tiered: Line) -> None:
    a, b, c = tiered
    other = plain(mac("c", "cb"))
    flood = Flood(tiered, (a, c, "ba", _A), (c, a, "bc", other))
    b.call("read")
    b.call("suspend", "ba", _A, True)
    b.call("suspend", "bc", other, True)
    flood.run()
    flood.assert_within(_TIER.rate, _BUCKET)


def test_dns_is_carried_without_a_free_tier_but_not_as_a_way_around_it(nodes: Line) -> None:
    a, b, c = nodes
    tier = Tier(0)
    b.call("read")
    flood = Flood(nodes, (a, c, "ba", _A))
    b.call("suspend", "ba", _A)
    a.call("send_datagrams", c.ip4, 7000, 100, 10)
    a.call("send_datagrams", c.ip4, 53, 100, 10)
    assert eventually(lambda: flood.count("refused") + flood.count("free") == 20 * 128), flood._flows
    assert flood.count("free") == 10 * 128
    flood = Flood(nodes, (a, c, "ba", _A))
    flood.run(port=53)
    most = tier.dns_rate * (1 + time.monotonic() - flood._began) + BURST
    assert 0 < flood.count("free") <= most
    b.call("resume", "ba", _A)


def test_nobody_sends_to_us_from_our_own_address(nodes: Line) -> None:
    a, b, _ = nodes
    for node in (a, b):
        node.run("ip address add 10.9.9.9/32 dev lo")
    before = b.call("sunk")
    a.call("send_from", "10.9.9.9", b.ip4)
    a.call("send_from", a.ip4, b.ip4)
    assert eventually(lambda: b.call("sunk") == before + 100)
    assert "10.9.9.9" not in str(b.call("read"))
