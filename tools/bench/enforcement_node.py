"""The relay of the enforcement benchmark: meshd's own kernel code in this namespace, obeying lines on standard input.

Argument: {"record": path, "interfaces": [...], "addresses": [...], "routes": [[prefix, interface, next hop], ...],
"free_rate": bits per second}. Each line is [operation, interface, MAC address]: hold, release, or carried, which is
answered by [seconds, free bytes, refused bytes, billed bytes] of that neighbour.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import trio

from meshd.kernel import Direction, Kernel, KernelConfig


async def _run(wanted: dict[str, Any]) -> None:
    config = KernelConfig(Path(wanted["record"]), free_rate=wanted["free_rate"])
    async with Kernel.open(config) as kernel:
        for interface in wanted["interfaces"]:
            await kernel.manage(interface)
        for address in wanted["addresses"]:
            await kernel.add_address("lo", ip_address(address))
        for prefix, interface, next_hop in wanted["routes"]:
            await kernel.routes.install(ip_network(prefix), interface, IPv6Address(next_hop))
        print(json.dumps("ready"), flush=True)
        totals: Counter[tuple[Direction, str, bytes]] = Counter()
        buffer = b""
        async for data in trio.lowlevel.FdStream(os.dup(0)):
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                print(json.dumps(await _obey(kernel, totals, *json.loads(line))), flush=True)


async def _obey(
    kernel: Kernel, totals: Counter[tuple[Direction, str, bytes]], operation: str, interface: str, mac: str
) -> Any:
    """`totals`: bytes read so far, of each neighbour."""
    neighbour = bytes.fromhex(mac)
    if operation == "hold":
        await kernel.gate.suspend(interface, neighbour)
    elif operation == "release":
        await kernel.gate.resume(interface, neighbour)
    else:
        for flow in await kernel.meter.read():
            totals[flow.direction, flow.interface, flow.mac] += flow.bytes
        directions = (Direction.FREE, Direction.REFUSED, Direction.FORWARD_IN)
        return [time.monotonic(), *(totals[d, interface, neighbour] for d in directions)]
    return None


if __name__ == "__main__":
    trio.run(_run, json.loads(sys.argv[1]))
