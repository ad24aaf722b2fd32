"""The tunnels of one node of the forwarding benchmark, as meshd makes them, until standard input ends.

Argument: [{"name": ..., "unique": ..., "under": ..., "key": hex, "peer": hex, "port": ..., "far": address}, ...].
wireguard-go is known by its interface's name on the whole machine, so the tunnel is made as `unique`, then named `name`.
Whoever reads "ready" finds the interfaces there, not up yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import IPv6Address
from typing import Any

import trio

from meshd.kernel.links import Links
from meshd.kernel.netlink import NETLINK_ROUTE, NetlinkSocket
from meshd.kernel.wireguard import Endpoint, make


async def _run(wanted: list[dict[str, Any]]) -> None:
    with NetlinkSocket(NETLINK_ROUTE) as rtnetlink:
        links = Links(rtnetlink)
        devices = []
        for tunnel in wanted:
            device = await make(tunnel["unique"], links)
            devices.append(device)
            await device.configure(bytes.fromhex(tunnel["key"]), bytes.fromhex(tunnel["peer"]), port=tunnel["port"])
            under = await links.get(tunnel["under"])
            endpoint = Endpoint(IPv6Address(tunnel["far"]), tunnel["port"], under.index)
            await device.set_endpoint(bytes.fromhex(tunnel["peer"]), endpoint, keepalive=0)
            await trio.run_process(["ip", "link", "set", tunnel["unique"], "name", tunnel["name"]])
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        for tunnel in wanted:
            subprocess.run(["ip", "link", "del", tunnel["name"]], check=False, capture_output=True)
        for device in devices:
            await device.close()


if __name__ == "__main__":
    trio.run(_run, json.loads(sys.argv[1]))
