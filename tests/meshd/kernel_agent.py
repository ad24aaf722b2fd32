"""Runs inside a namespace for the tests: opens the real `Kernel`, makes traffic, and obeys JSON lines on stdin.

Each line is [operation, argument, ...]; the answer is {"ok": result} or {"error": text}.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import trio

from meshd.kernel import Blocked, FlowCount, Kernel, KernelConfig, Link, NetlinkError, Route, clean
from meshd.kernel import meter as meter_module
from meshd.kernel import nft as nft_module
from meshd.kernel.bpf import syscalls
from meshd.kernel.gate import Tier
from meshd.kernel.netlink import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL, NetlinkSocket, Request, attribute
from meshd.recovery import flow_name, unbilled
from payments.records import Reading

_PORT = 7000
_SPRAY_PORT = 7001
_UDP_SIZE = 1200


class Agent:
    def __init__(self, kernel: Kernel, nursery: trio.Nursery, leftover: Sequence[FlowCount]) -> None:
        self.kernel = kernel
        self._leftover = leftover
        self.nursery = nursery
        self.received = 0
        self.flows: list[FlowCount] = []
        self.changes: list[Link] = []
        self.route_readings: list[set[str]] = []
        self.failures: list[str] = []
        self.reader: trio.CancelScope | None = None

    async def manage(self, interface: str) -> None:
        async with self.kernel.links.watch() as changes:
            async for link in changes:
                if link.name == interface and link.is_ready:
                    break
        await self.kernel.manage(interface)

    async def forget_interface(self, interface: str) -> None:
        """The rules do, as of one that is deleted."""
        await self.kernel._nft.remove_interface(interface)

    async def address(self, interface: str, address: str) -> None:
        await self.kernel.add_address(interface, ip_address(address))

    async def remove_address(self, interface: str, address: str) -> None:
        await self.kernel.remove_address(interface, ip_address(address))

    async def route(self, prefix: str, interface: str, next_hop: str, source: str | None = None) -> None:
        await self.kernel.routes.install(ip_network(prefix), interface, ip_address(next_hop), _source(source))

    async def routes(self, entries: list[tuple[str, str, str]]) -> dict[str, int]:
        wanted = [Route(ip_network(p), i, IPv6Address(n)) for p, i, n in entries]
        failed = await self.kernel.routes.install_many(wanted)
        return {str(prefix): error.code for prefix, error in failed.items()}

    async def unroute(self, prefix: str, source: str | None = None) -> None:
        await self.kernel.routes.remove(ip_network(prefix), _source(source))

    async def block(self, prefix: str, source: str | None = None) -> None:
        failed = await self.kernel.routes.block_many([Blocked(ip_network(prefix), _source(source))])
        assert not failed, failed

    async def keep_default(self, source: str, is_ours: bool) -> None:
        await self.kernel.routes.keep_default(ip_network(source), is_ours=is_ours)

    async def foreign_routes(self) -> list[tuple[str, int, int, list[str]]]:
        routes = await self.kernel.route_watch.all()
        return sorted((str(r.prefix), r.table, r.protocol, sorted(r.interfaces)) for r in routes)

    async def follow_routes(self) -> None:
        self.nursery.start_soon(self._follow_routes)

    async def _follow_routes(self) -> None:
        async with self.kernel.route_watch.watch() as changes:
            async for routes in changes:
                self.route_readings.append({str(route.prefix) for route in routes})

    async def readings_until(self, prefix: str, is_there: bool) -> int:
        """Wait until the last reading is so, ten seconds at most; how many there have been."""
        with trio.fail_after(60):
            while not self.route_readings or (prefix in self.route_readings[-1]) != is_there:
                await trio.sleep(0.005)
        return len(self.route_readings)

    async def flush(self) -> None:
        await self.kernel.routes.flush()

    async def free_rate(self, bits_per_second: int) -> None:
        """As if it had been configured; the rules are loaded anew, and all counters with them."""
        self.kernel._nft._tier = Tier(bits_per_second // 8)
        await self.kernel._nft.load()
        self.kernel.meter._counters.clear()

    async def suspend(self, interface: str, mac: str, is_shared: bool = False) -> None:
        await self.kernel.gate.suspend(interface, bytes.fromhex(mac), is_shared=is_shared)

    async def resume(self, interface: str, mac: str) -> None:
        await self.kernel.gate.resume(interface, bytes.fromhex(mac))

    async def suspended(self) -> list[tuple[str, str]]:
        return sorted((interface, mac.hex()) for interface, mac in self.kernel.gate.suspended)

    async def read(self) -> list[dict[str, Any]]:
        """Everything read since the last `read`, also by `read_all_the_time`."""
        new = await self.kernel.meter.read()
        flows, self.flows = [*self.flows, *new], []
        return [_plain(flow) for flow in flows]

    async def read_all_the_time(self, interval: float = 0.001) -> None:
        self.reader = trio.CancelScope()
        self.nursery.start_soon(self._read_loop, self.reader, interval)

    async def stop_reading(self) -> None:
        assert self.reader is not None
        self.reader.cancel()
        await trio.sleep(0)

    async def _read_loop(self, scope: trio.CancelScope, interval: float) -> None:
        with scope:
            while True:
                flows = await self.kernel.meter.read()
                self.flows += flows
                await trio.sleep(interval)

    async def expect(self, interface: str, mac: str) -> None:
        await self.kernel.meter.expect(interface, bytes.fromhex(mac))

    async def reloads(self) -> int:
        return self.kernel.meter.reloads

    async def lane(self) -> dict[str, Any]:
        lane = self.kernel.lane
        return {"problem": lane.problem, "outside": lane.outside, "flows": lane.flows, "bytes": lane.bytes}

    async def leftover(self) -> list[dict[str, Any]]:
        return [_plain(flow) for flow in self._leftover]

    async def recovered(self, readings: dict[str, int]) -> list[dict[str, Any]]:
        """Of what the last daemon left, what is not in its books yet."""
        books = {bytes.fromhex(name): Reading(total, 0) for name, total in readings.items()}
        return [_plain(entry.flow) for entry in unbilled(self._leftover, books)]

    async def send_frame(self, interface: str, frame: str) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((interface, 0))
            raw.send(bytes.fromhex(frame))

    async def ask_for_routes(self) -> None:
        """The lane does, for the next packet of each flow."""
        self.kernel.lane.routes_changed()

    async def leave_lane(self) -> None:
        """All goes the long way from now on."""
        await self.kernel.lane.close()

    async def rotate_at(self, elements: int) -> None:
        """Go over to empty sets when one has more than so many elements, at each reading."""
        meter_module._MANY_ELEMENTS = elements
        meter_module._ROTATION_INTERVAL = 0.0

    async def keep_old(self, seconds: float) -> None:
        """So long are sets kept in which nothing is counted any more."""
        meter_module._KEEP_PERIOD = seconds

    async def set_size(self, elements: int, rest: int = 1024) -> None:
        """From the next loading of the rules."""
        nft_module.SET_SIZE = elements
        nft_module._REST_SIZE = rest

    async def link(self, interface: str) -> dict[str, Any]:
        link = await self.kernel.links.get(interface)
        return {"mac": link.mac.hex(), "mtu": link.mtu, "is_up": link.is_up, "link_local": str(link.link_local)}

    async def mac(self, interface: str, address: str) -> str | None:
        mac = await self.kernel.links.resolve_mac(interface, IPv6Address(address))
        return mac.hex() if mac else None

    async def known_mac(self, interface: str, address: str) -> str | None:
        mac = await self.kernel.links.neighbour_mac(interface, IPv6Address(address))
        return mac.hex() if mac else None

    async def watch(self) -> None:
        self.nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        async with self.kernel.links.watch() as changes:
            async for link in changes:
                self.changes.append(link)

    async def watch_unreachable(self) -> None:
        await self.nursery.start(self._watch_unreachable)

    async def _watch_unreachable(self, task_status: trio.TaskStatus[None]) -> None:
        async with self.kernel.links.watch_unreachable() as failures:
            task_status.started()
            async for index, address in failures:
                self.failures.append(f"{address}%{socket.if_indextoname(index)}")

    async def unreachable(self) -> list[str]:
        return self.failures

    async def seen(self, interface: str, is_up: bool) -> bool:
        """Wait for it."""
        with trio.move_on_after(30):
            while True:
                last = [link for link in self.changes if link.name == interface][-1:]
                if last and last[0].is_up == is_up:
                    return True
                await trio.sleep(0.005)
        return False

    async def listen(self, address: str) -> None:
        """Take in all that is sent to us by TCP and UDP."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        tcp = trio.socket.socket(family, socket.SOCK_STREAM)
        await tcp.bind((address, _PORT))
        tcp.listen()
        udp = trio.socket.socket(family, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        await udp.bind((address, _PORT))
        self.nursery.start_soon(trio.serve_listeners, self._sink, [trio.SocketListener(tcp)])
        self.nursery.start_soon(self._udp_sink, udp)

    async def _sink(self, stream: trio.SocketStream) -> None:
        async for data in stream:
            self.received += len(data)

    async def _udp_sink(self, udp: trio.socket.SocketType) -> None:
        while True:
            data = await udp.recv(65536)
            self.received += len(data)

    async def send_from(self, source: str, address: str) -> None:
        """One datagram, from that of our addresses."""
        with trio.socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as udp:
            await udp.bind((source, 0))
            await udp.sendto(bytes(100), (address, _PORT))

    async def drop_priority(self, interface: str, priority: int) -> None:
        """Somebody else's filter: nothing of this priority goes out there."""
        instructions = (
            (0x61, 0x12, 32, 0),  # r2 = skb->priority
            (0xB7, 0, 0, 0),  # r0 = TC_ACT_OK
            (0x55, 2, 1, priority),  # leave out the next one if r2 is another
            (0xB7, 0, 0, 2),  # r0 = TC_ACT_SHOT
            (0x95, 0, 0, 0),  # return r0
        )
        code = b"".join(struct.pack("=BBhi", *instruction) for instruction in instructions)
        fd = syscalls.load_program(code, "theirs", licence="GPL")
        header = struct.pack("=BxxxiIII", 0, socket.if_nametoindex(interface), 0, 0xFFFFFFF3, 7 << 16 | 0x0300)
        options = attribute(6, struct.pack("=I", fd)) + attribute(7, b"theirs\0") + attribute(8, struct.pack("=I", 1))
        with NetlinkSocket(NETLINK_ROUTE) as rtnetlink:
            payload = header + attribute(1, b"bpf\0") + attribute(2, options)
            await rtnetlink.request(Request(44, payload, NLM_F_CREATE | NLM_F_EXCL))  # RTM_NEWTFILTER
        os.close(fd)

    async def send_datagrams(self, address: str, port: int, size: int, count: int, tos: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with trio.socket.socket(family, socket.SOCK_DGRAM) as udp:
            if tos:
                udp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            for _ in range(count):
                await udp.sendto(bytes(size), (address, port))

    async def send(self, protocol: str, address: str, size: int) -> None:
        if protocol == "tcp":
            stream = await trio.open_tcp_stream(address, _PORT)
            await stream.send_all(bytes(size))
            await stream.aclose()
            return
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with trio.socket.socket(family, socket.SOCK_DGRAM) as udp:
            await udp.connect((address, _PORT))
            for _ in range(size // _UDP_SIZE):
                await udp.send(bytes(_UDP_SIZE))

    async def listen_everywhere(self) -> None:
        """Take in what is sprayed, whatever address of ours it is for."""
        udp = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        await udp.bind(("::", _SPRAY_PORT))
        self.nursery.start_soon(self._udp_sink, udp)

    async def spray(self, network: str, first: int, flows: int, size: int) -> None:
        """One datagram to each of so many addresses: as many flows."""
        base = int(IPv6Network(network).network_address)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
            for number in range(first, first + flows):
                udp.sendto(bytes(size), (str(IPv6Address(base + number)), _SPRAY_PORT))

    async def answers(self, address: str) -> bool:
        """Whether a TCP connection comes about within half a second."""
        with trio.move_on_after(0.5):
            stream = await trio.open_tcp_stream(address, _PORT)
            await stream.aclose()
            return True
        return False

    async def sunk(self) -> int:
        return self.received


def _source(text: str | None) -> IPv4Network | IPv6Network | None:
    return None if text is None else ip_network(text)


def _plain(flow: FlowCount) -> dict[str, Any]:
    return {
        "direction": flow.direction.value,
        "interface": flow.interface,
        "mac": flow.mac.hex(),
        "source": str(flow.source),
        "destination": str(flow.destination),
        "bytes": flow.bytes,
        "packets": flow.packets,
        "total_bytes": flow.total_bytes,
        "name": flow_name(flow).hex(),
    }


async def _obey(agent: Agent) -> None:
    buffer = b""
    async for data in trio.lowlevel.FdStream(os.dup(0)):
        buffer += data
        if not buffer.endswith(b"\n"):
            continue
        name, *arguments = json.loads(buffer)
        buffer = b""
        operation: Callable[..., Awaitable[Any]] = getattr(agent, name)
        try:
            answer = {"ok": await operation(*arguments)}
        except (NetlinkError, OSError) as error:
            answer = {"error": f"{type(error).__name__} {error}"}
        print(json.dumps(answer), flush=True)


async def _leave_on_sigterm(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _main(record: Path, *, is_slow: bool = False) -> None:
    async with trio.open_nursery() as outer:
        outer.start_soon(_leave_on_sigterm, outer.cancel_scope)
        leftover: list[FlowCount] = []

        async def keep(found: Sequence[FlowCount]) -> None:
            leftover.extend(found)
            if is_slow:
                print(json.dumps({"ok": "keeping"}), flush=True)
                await trio.sleep_forever()

        async with Kernel.open(KernelConfig(record), keep=keep) as kernel, trio.open_nursery() as nursery:
            await _obey(Agent(kernel, nursery, leftover))
            nursery.cancel_scope.cancel()
        outer.cancel_scope.cancel()


if __name__ == "__main__":
    if sys.argv[2:] == ["clean"]:
        trio.run(clean, KernelConfig(Path(sys.argv[1])))
    else:
        trio.run(partial(_main, is_slow=sys.argv[2:] == ["slow"]), Path(sys.argv[1]))
