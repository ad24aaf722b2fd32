"""What it costs to read ten thousand counters: processor time, and for how long at a time nobody else has a turn.

In a namespace of its own, over one interface, with a datagram to each of so many addresses before each reading.
"""

from __future__ import annotations

import json
import socket
import sys
import tempfile
import time
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import trio

from meshd.kernel import Kernel, KernelConfig
from tools.bench.common import Case
from tools.ns import Namespaces

_FLOWS = 10_000
_CPU_LIMIT_MS, _HOLD_LIMIT_MS = 100.0, 10.0
_NETWORK = IPv6Network("fd0a::/64")
_OWN = IPv6Address("fd00::1")
_PEER, _PEER_MAC = "fe80::ff:fe00:2", "02:00:00:00:00:02"


def reading_cases(repeats: int) -> list[Case]:
    """`ours` is what a reading takes, `anchor` what it may; of readings in which all counters had something new."""
    with tempfile.TemporaryDirectory(prefix="mk-read-") as directory, Namespaces("mk-read-") as namespaces:
        for name in "ab":
            namespaces.add(name)
            namespaces.run(name, ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        namespaces.veth(("a", "e"), ("b", "e"), macs=("02:00:00:00:00:01", _PEER_MAC))
        argv = [sys.executable, "-m", "tools.bench.reading_bench", directory, str(repeats)]
        said = json.loads(namespaces.run("a", argv, timeout=600))
    name = f"metered, reading {_FLOWS:,} counters"
    limits = {"CPU": _CPU_LIMIT_MS, "longest hold of the event loop": _HOLD_LIMIT_MS}
    return [
        Case(f"{name}, {what}", "ms", said[what], [limit] * len(said[what]), higher_is_better=False)
        for what, limit in limits.items()
    ]


async def _measure(directory: Path, repeats: int) -> None:
    cpu: list[float] = []
    holds: list[float] = []
    async with Kernel.open(KernelConfig(directory / "record.json")) as kernel:
        async with kernel.links.watch() as changes:
            async for link in changes:
                if link.name == "e" and link.is_ready:
                    break
        await kernel.manage("e")
        await kernel.meter.expect("e", bytes.fromhex(_PEER_MAC.replace(":", "")))
        await kernel.add_address("lo", _OWN)
        await kernel.routes.install(_NETWORK, "e", IPv6Address(_PEER))
        for _ in range(repeats + 1):
            _send_to_all()
            started, holds_here = time.process_time(), [0.0]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, holds_here)
                flows = await kernel.meter.read()
                nursery.cancel_scope.cancel()
            cpu.append((time.process_time() - started) * 1e3)
            holds.append(max(holds_here) * 1e3)
            if sum(flow.packets for flow in flows) != _FLOWS:
                raise RuntimeError(f"{sum(flow.packets for flow in flows)} packets were metered")
    # In the first, all flows are new.
    print(json.dumps({"CPU": cpu[1:], "longest hold of the event loop": holds[1:]}))


def _send_to_all() -> None:
    first = int(_NETWORK.network_address)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        for number in range(1, _FLOWS + 1):
            udp.sendto(b"x", (str(IPv6Address(first + number)), 9))
            if number % 500 == 0:
                time.sleep(0.01)  # the kernel gets the memory of counters ready


async def _watch(holds: list[float]) -> None:
    """How long the others took between two of its turns, in processor time of this process: other programs take the
    processor away, too."""
    while True:
        before = time.process_time()
        await trio.lowlevel.checkpoint()
        holds.append(time.process_time() - before)


if __name__ == "__main__":
    trio.run(_measure, Path(sys.argv[1]), int(sys.argv[2]))
