"""One node of the forwarding benchmark: meshd's own kernel code, in this namespace, until standard input ends.

Argument: {"record": path, "interfaces": [...], "addresses": [...], "routes": [[prefix, interface, next hop], ...],
"held": [[interface, MAC address], ...]}. `held` are in the free tier.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import trio

from meshd.kernel import Direction, FlowCount, Kernel, KernelConfig

_READ_INTERVAL = 0.1  # of the daemon under load
_FREE_RATE = 1_000_000


async def _run(wanted: dict[str, Any]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_leave_on_sigterm, nursery.cancel_scope)
        async with Kernel.open(KernelConfig(Path(wanted["record"]), free_rate=_FREE_RATE)) as kernel:
            for interface in wanted["interfaces"]:
                await kernel.manage(interface)
            for address in wanted["addresses"]:
                await kernel.add_address("lo", ip_address(address))
            for prefix, interface, next_hop in wanted["routes"]:
                await kernel.routes.install(ip_network(prefix), interface, IPv6Address(next_hop))
            for interface, mac in wanted["held"]:
                await kernel.gate.suspend(interface, bytes.fromhex(mac.replace(":", "")))
            print("ready", flush=True)
            carried = 0
            with trio.CancelScope() as reading:
                nursery.start_soon(_leave_at_end_of_input, reading)
                while True:  # as the daemon does
                    carried += _carried(await kernel.meter.read())
                    await trio.sleep(_READ_INTERVAL)
            carried += _carried(await kernel.meter.read())
            print(carried, kernel.lane.bytes, flush=True)
        nursery.cancel_scope.cancel()


def _carried(flows: list[FlowCount]) -> int:
    return sum(flow.bytes for flow in flows if flow.direction is Direction.FORWARD_IN)


async def _leave_at_end_of_input(reading: trio.CancelScope) -> None:
    async for _ in trio.lowlevel.FdStream(os.dup(0)):
        pass
    reading.cancel()


async def _leave_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    trio.run(_run, json.loads(sys.argv[1]))
