"""Mixed traffic between two nodes for the counting proof. Arguments: "sink", or "send" and JSON of what to send.

Sink: takes in TCP and UDP on all addresses, and says at the end of its standard input how many bytes that were. Send:
TCP in both directions of both families, and until the end of its standard input datagrams to many addresses, small and
large.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from ipaddress import ip_address
from typing import Any

import trio

_PORT = 7000
_ANYWHERE = {socket.AF_INET6: "::", socket.AF_INET: "0.0.0.0"}  # noqa: S104  a namespace of its own
_CHUNK = bytes(65536)
_DATAGRAMS = (18, 64, 300, 1200)  # bytes of payload
_AT_ONCE = 20  # datagrams between two pauses: more would overflow queues
_PAUSE = 0.005


class Sink:
    def __init__(self) -> None:
        self.streams = self.datagrams = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for family, any_address in _ANYWHERE.items():
                listeners = await trio.open_tcp_listeners(_PORT, host=any_address)
                nursery.start_soon(trio.serve_listeners, self._take, listeners)
                udp = trio.socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
                await udp.bind((any_address, _PORT))
                nursery.start_soon(self._take_datagrams, udp)
            print("ready", flush=True)
            async for _ in trio.lowlevel.FdStream(os.dup(0)):
                pass
            print(json.dumps({"streams": self.streams, "datagrams": self.datagrams}), flush=True)
            nursery.cancel_scope.cancel()

    async def _take(self, stream: trio.SocketStream) -> None:
        """What comes; then as much is sent back as the first eight bytes say."""
        back = -1
        async for data in stream:
            back = int.from_bytes(data[:8], "big") if back < 0 else back
            self.streams += len(data)
        while back > 0:
            await stream.send_all(_CHUNK[: min(back, len(_CHUNK))])
            back -= len(_CHUNK)

    async def _take_datagrams(self, udp: trio.socket.SocketType) -> None:
        while True:
            self.datagrams += len(await udp.recv(2048))


async def _stream(address: str, size: int, back: int, received: list[int]) -> None:
    stream = await trio.open_tcp_stream(address, _PORT)
    await stream.send_all(back.to_bytes(8, "big"))
    for _ in range(size // len(_CHUNK)):
        await stream.send_all(_CHUNK)
    await stream.send_eof()
    async for data in stream:
        received[0] += len(data)


async def _spray(bases: list[str], flows: int, sent: list[int]) -> None:
    """Until cancelled: one datagram to each of so many addresses of each network, again and again."""
    first = [ip_address(base) for base in bases]
    sockets = {v: socket.socket(f, socket.SOCK_DGRAM) for v, f in ((4, socket.AF_INET), (6, socket.AF_INET6))}
    number = 0
    while True:
        for base in first:
            payload = _DATAGRAMS[number % len(_DATAGRAMS)]
            sockets[base.version].sendto(bytes(payload), (str(base + number % flows), _PORT))
            sent[0] += payload
            number += 1
        if number % _AT_ONCE < len(first):
            await trio.sleep(_PAUSE)


async def _send(wanted: dict[str, Any]) -> None:
    sent, received = [0], [0]
    share = wanted["bytes"] // (2 * len(wanted["addresses"]))
    async with trio.open_nursery() as spraying:
        spraying.start_soon(_spray, wanted["networks"], wanted["flows"], sent)
        async with trio.open_nursery() as nursery:
            for address in wanted["addresses"]:
                nursery.start_soon(_stream, address, share, share, received)
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            pass
        spraying.cancel_scope.cancel()
    streams = len(wanted["addresses"]) * (8 + share // len(_CHUNK) * len(_CHUNK))
    print(json.dumps({"streams": streams, "datagrams": sent[0], "back": received[0]}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        trio.run(Sink().run)
    else:
        trio.run(_send, json.loads(sys.argv[2]))
