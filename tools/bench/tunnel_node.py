"""The tunnels of one node of the forwarding benchmark, as meshd makes them, until SIGTERM.

Argument: [{"name": ..., "unique": ..., "under": ..., "key": hex, "peer": hex, "port": ..., "far": address}, ...].
wireguard-go is known by its interface's name on the whole machine, so the tunnel is made as `unique`, and then named
`name`. Whoever reads "ready" finds the interfaces there, not up yet.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import AsyncExitStack
from ipaddress import IPv6Address
from typing import Any

import trio

from meshd.kernel.links import Links
from meshd.kernel.netlink import NETLINK_ROUTE, NetlinkSocket
from meshd.kernel.wireguard import Endpoint, make


async def _run(wanted: list[dict[str, Any]]) -> None:
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM))
        links = Links(stack.enter_context(NetlinkSocket(NETLINK_ROUTE)))
        for tunnel in wanted:
            device = await make(tunnel["unique"], links)
            stack.push_async_callback(device.close)  # after its interface is gone: else wireguard-go would run on
            stack.push_async_callback(trio.run_process, ["ip", "link", "del", tunnel["name"]])
            await device.configure(bytes.fromhex(tunnel["key"]), bytes.fromhex(tunnel["peer"]), port=tunnel["port"])
            under = await links.get(tunnel["under"])
            endpoint = Endpoint(IPv6Address(tunnel["far"]), tunnel["port"], under.index)
            await device.set_endpoint(bytes.fromhex(tunnel["peer"]), endpoint, keepalive=0)
            await trio.run_process(["ip", "link", "set", tunnel["unique"], "name", tunnel["name"]])
        print("ready", flush=True)
        async for _ in signals:
            break


if __name__ == "__main__":
    trio.run(_run, json.loads(sys.argv[1]))
