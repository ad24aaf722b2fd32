"""Which lines nft is given; what they do is in test_kernel_*.py."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from meshd.kernel import nft as nft_module
from meshd.kernel.gate import Tier
from meshd.kernel.nft import Direction, Nft


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    transactions: list[list[str]] = []

    async def take(lines: list[str]) -> None:
        await trio.lowlevel.checkpoint()
        transactions.append(lines)

    monkeypatch.setattr(nft_module, "_run", take)
    return transactions


def test_an_interface_that_is_guarded_again_leaves_no_rule_of_its_former_index(given: list[list[str]]) -> None:
    async def scenario() -> None:
        nft = Nft()
        for index in (3, 9):
            await nft.guard_interface("eth0", index)
        await nft.guard_interface("eth1", 4)

    trio.run(scenario)
    guards = [line for line in given[-1] if line.startswith("insert rule ip6 meshd forward")]
    assert guards == [f"insert rule ip6 meshd forward iif {index} drop" for index in (4, 9)]


def test_an_interface_that_was_unplugged_does_not_spoil_the_rules_of_the_others(
    given: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"eth0": 3, "eth1": 4, "eth2": 5}
    monkeypatch.setattr(nft_module, "_index_of", there.get)

    async def scenario() -> None:
        nft = Nft()
        for name, index in there.items():
            await nft.add_interface(name, index)
        del there["eth1"]
        there["eth2"] = 8  # made anew; its chain went with the old one
        await nft.switch_generation()
        await nft.load()

    trio.run(scenario)
    for lines in given[-2:]:
        text = " ".join(lines)
        assert " out_3 " in text and " out_4 " not in text and " out_5 " not in text


def test_who_was_held_before_is_held_by_the_first_rules_and_by_those_of_an_interface_that_comes_later(
    given: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft_module, "_index_of", {"eth0": 2}.get)

    async def scenario() -> None:
        nft = Nft(Tier(1000))
        nft.hold_before_load({("eth0", b"\x02\0\0\0\0\x07"): False, ("mw1", b""): True})
        await nft.load()
        await nft.add_interface("eth0", 3)
        await nft.add_interface("mw1", 4, is_tunnel=True)

    trio.run(scenario)
    first, link, tunnel = given
    assert "add element inet meshd held { 2 . 0x020000000007 }" in first
    assert "add rule inet meshd forward iif . @ll,48,48 @who goto tier" in first
    assert "delete element inet meshd held { 2 . 0x020000000007 }" in link  # made anew
    assert "add element inet meshd held { 3 . 0x020000000007 }" in link
    assert "add rule inet meshd forward iif . @ll,48,48 @who goto tier" in link
    assert "add element inet meshd shared_tunnels { 4 }" in tunnel
    assert "add rule inet meshd forward iif @who_tunnels goto tier_tunnels" in tunnel
    assert not any(" element inet meshd held " in line for line in tunnel)  # its bucket stays as it is


def test_nobody_pays_for_a_gate_that_holds_nobody(given: list[list[str]]) -> None:
    async def scenario() -> None:
        nft = Nft(Tier(1000))
        await nft.load()
        await nft.add_interface("eth0", 3)
        await nft.hold("eth0", b"\x02\0\0\0\0\x07", is_shared=False)
        await nft.release("eth0", b"\x02\0\0\0\0\x07")

    trio.run(scenario)
    for lines in (given[0], given[1], given[3]):
        assert "delete chain inet meshd forward" in lines
        assert not any("@suspended" in line for line in lines)
    assert "delete chain inet meshd forward" not in given[2]


def places(lines: list[str], name: str) -> list[str]:
    return [
        line.partition("{ ")[2].rstrip("} ") for line in lines if line.startswith("add element") and f" {name} " in line
    ]


def test_neighbours_keep_a_place_where_is_counted_what_finds_none_by_flow(
    given: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft_module, "_index_of", {"eth0": 3, "eth1": 4, "mw0": 5}.get)

    async def scenario() -> None:
        nft = Nft()
        await nft.add_interface("eth0", 3)
        await nft.add_interface("eth1", 4)
        await nft.expect("eth0", b"\2\0\0\0\0\7")
        now = nft.generation
        for name in ("forward_in_ip6_rest", "forward_in_ip4_rest", "out_ip6_rest", "in_ip6_rest", "refused"):
            assert places(given[-1], f"{name}_{now}") == ["3 . 0x020000000007"]
        assert not places(given[-1], f"forward_in_ip6_{now}")
        transactions = len(given)
        await nft.expect("eth0", b"\2\0\0\0\0\7")
        await nft.expect("gone", b"\2\0\0\0\0\7")
        assert len(given) == transactions
        await nft.add_interface("mw0", 5, is_tunnel=True)
        assert places(given[-1], f"tunnel_forward_in_ip6_rest_{now}") == ["5"]
        await nft.expect("eth1", b"\2\0\0\0\0\x08")
        await nft.switch_generation()
        assert nft.generation == now + 1
        assert places(given[-1], f"forward_in_ip6_rest_{now + 1}") == ["3 . 0x020000000007, 4 . 0x020000000008"]
        assert not places(given[-1], f"forward_in_ip6_rest_{now}")
        nft.unexpect("eth1", b"\2\0\0\0\0\x08")
        await nft.remove_interface("mw0")
        await nft.load()
        assert places(given[-1], f"forward_in_ip6_rest_{now + 2}") == ["3 . 0x020000000007"]
        assert not places(given[-1], f"tunnel_forward_in_ip6_rest_{now + 2}")
        await nft.remove_interface("eth0")
        await nft.switch_generation()
        assert not places(given[-1], f"forward_in_ip6_rest_{now + 3}")

    trio.run(scenario)


def test_of_two_who_are_held_at_once_neither_is_forgotten(given: list[list[str]]) -> None:
    async def scenario() -> None:
        nft = Nft()
        await nft.load()
        async with trio.open_nursery() as nursery:
            for name in ("eth0", "eth1", "eth2"):
                nursery.start_soon(partial(nft.hold, name, b"\x02\0\0\0\0\x07", is_shared=False))
        assert {interface for interface, _ in nft.held} == {"eth0", "eth1", "eth2"}

    trio.run(scenario)


def test_only_sets_in_which_something_may_have_been_counted_are_read(
    given: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft_module, "_index_of", {"eth0": 3, "mw1": 4}.get)

    async def scenario() -> None:
        nft = Nft()
        assert len(nft.sets_in_use) == 1  # so that it is noticed when somebody deletes them
        await nft.add_interface("mw1", 4, is_tunnel=True)
        assert {(s.has_mac, s.direction) for s in nft.sets_in_use} == {(False, d) for d in usual}
        await nft.add_interface("eth0", 3)
        assert {(s.has_mac, s.direction) for s in nft.sets_in_use} == {(m, d) for m in (True, False) for d in usual}
        await nft.hold("mw1", b"", is_shared=False)
        await nft.release("mw1", b"")
        await nft.remove_interface("eth0")
        assert nft.sets_in_use == list(nft.counter_sets)  # what was counted before stays to be read

    usual = Direction.IN, Direction.FORWARD_IN, Direction.OUT
    trio.run(scenario)
    assert given
