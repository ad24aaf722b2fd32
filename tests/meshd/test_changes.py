"""Changes to the machine, as far as they can be looked at without a kernel to change."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import cast

import trio

from meshd.kernel.changes import Changes
from meshd.kernel.links import Links


class SlowLinks:
    def __init__(self) -> None:
        self.there: set[str] = set()

    async def add_address(self, interface: str, address: IPv4Address | IPv6Address) -> bool:
        await trio.sleep(0)
        self.there.add(str(address))
        return True

    async def remove_address(self, interface: str, address: IPv4Address | IPv6Address) -> None:
        await trio.sleep(0)
        self.there.discard(str(address))


def test_an_address_whose_adding_is_cancelled_is_known_to_be_ours(tmp_path: Path) -> None:
    links = SlowLinks()

    async def scenario() -> None:
        changes = Changes(tmp_path / "kernel.json", cast("Links", links))
        with trio.CancelScope() as scope:
            scope.cancel()
            await changes.add_address("lo", IPv6Address("fd00::1"))
        assert links.there == {"fd00::1"}
        await Changes(tmp_path / "kernel.json", cast("Links", links)).restore()  # as after a crash
        assert links.there == set()

    trio.run(scenario)
