"""One node of the counting proof: meshd's kernel code, whose totals survive `kill -9` as the daemon's books do.

Argument: {"record": path, "state": path, "interfaces": [...], "neighbours": [[interface, MAC address], ...],
"addresses": [...], "routes": [[prefix, interface, next hop], ...]}. What is read every 100 ms is added up by direction
and interface, and written to the state file together with how far each counter had come. Ends, after a last reading,
with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import trio

from meshd.kernel import FlowCount, Kernel, KernelConfig
from meshd.recovery import flow_name, unbilled
from payments.records import Reading

_READ_INTERVAL = 0.1


class Books:
    """`totals`: bytes by "direction interface". Both change together on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        stored: dict[str, Any] = {"totals": {}, "readings": {}, "by_lane": 0}
        stored |= json.loads(path.read_text()) if path.exists() else {}
        self.totals: dict[str, int] = stored["totals"]
        self._by_lane_before: int = stored["by_lane"]
        self._readings: dict[str, int] = stored["readings"]

    async def recover(self, leftover: Iterable[FlowCount]) -> None:
        """What the kernel counted while nobody read."""
        readings = {name.encode(): Reading(total, 0) for name, total in self._readings.items()}
        self.add([entry.flow for entry in unbilled(leftover, readings)])

    def add(self, flows: Iterable[FlowCount], *, by_lane: int = 0) -> None:
        """`by_lane`: bytes that the fast lane has carried since this start."""
        for flow in flows:
            key = f"{flow.direction.value} {flow.interface}"
            self.totals[key] = self.totals.get(key, 0) + flow.bytes
            self._readings[flow_name(flow).decode()] = flow.total_bytes
        new = self._path.with_suffix(".new")
        new.write_text(
            json.dumps({"totals": self.totals, "readings": self._readings, "by_lane": self._by_lane_before + by_lane})
        )
        new.replace(self._path)


async def _run(wanted: dict[str, Any]) -> None:
    books = Books(Path(wanted["state"]))
    async with (
        Kernel.open(KernelConfig(Path(wanted["record"])), keep=books.recover) as kernel,
        trio.open_nursery() as nursery,
    ):
        for interface in wanted["interfaces"]:
            await kernel.manage(interface)
        for interface, mac in wanted["neighbours"]:
            await kernel.meter.expect(interface, bytes.fromhex(mac.replace(":", "")))
        for address in wanted["addresses"]:
            await kernel.add_address("lo", ip_address(address))
        for prefix, interface, next_hop in wanted["routes"]:
            await kernel.routes.install(ip_network(prefix), interface, IPv6Address(next_hop))
        print("ready", flush=True)
        nursery.start_soon(_leave_at_end_of_input, nursery.cancel_scope)
        try:
            while True:  # as the daemon does
                books.add(await kernel.meter.read(), by_lane=kernel.lane.bytes)
                await trio.sleep(_READ_INTERVAL)
        finally:
            with trio.CancelScope(shield=True):
                await kernel.routes.cleanup()
                books.add(await kernel.meter.read(), by_lane=kernel.lane.bytes)


async def _leave_at_end_of_input(scope: trio.CancelScope) -> None:
    async for _ in trio.lowlevel.FdStream(os.dup(0)):
        pass
    scope.cancel()


if __name__ == "__main__":
    trio.run(_run, json.loads(sys.argv[1]))
