"""A debtor's traffic is not carried; what it sends to us, and what others send through us, is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
    b.call("unmanage", "ba")
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


def test_nobody_sends_to_us_from_our_own_address(nodes: Line) -> None:
    a, b, _ = nodes
    for node in (a, b):
        node.run("ip address add 10.9.9.9/32 dev lo")
    before = b.call("sunk")
    a.call("send_from", "10.9.9.9", b.ip4)
    a.call("send_from", a.ip4, b.ip4)
    assert eventually(lambda: b.call("sunk") == before + 100)
    assert "10.9.9.9" not in str(b.call("read"))
