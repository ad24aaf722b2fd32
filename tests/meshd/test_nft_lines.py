"""Which lines nft is given; what they do is in test_kernel_*.py."""

from __future__ import annotations

import pytest
import trio

from meshd.kernel import nft as nft_module
from meshd.kernel.nft import Nft


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
