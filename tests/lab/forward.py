"""forward.py FROM TO: carries each connection to FROM on to TO; each is unix:PATH or tcp:PORT on 127.0.0.1."""

from __future__ import annotations

import sys

import trio


async def _open(place: str) -> trio.SocketStream:
    kind, _, where = place.partition(":")
    if kind == "unix":
        return await trio.open_unix_socket(where)
    return await trio.open_tcp_stream("127.0.0.1", int(where))


async def _listen(place: str) -> trio.SocketListener:
    kind, _, where = place.partition(":")
    if kind == "tcp":
        return (await trio.open_tcp_listeners(int(where), host="127.0.0.1"))[0]
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(where)
    sock.listen()
    return trio.SocketListener(sock)


async def _pipe(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for chunk in source:
        await sink.send_all(chunk)
    await sink.send_eof()


async def _carry(stream: trio.SocketStream) -> None:
    try:
        async with stream, await _open(sys.argv[2]) as other, trio.open_nursery() as nursery:
            nursery.start_soon(_pipe, stream, other)
            nursery.start_soon(_pipe, other, stream)
    except* (OSError, trio.BrokenResourceError):
        pass


async def main() -> None:
    await trio.serve_listeners(_carry, [await _listen(sys.argv[1])])


if __name__ == "__main__":
    trio.run(main)
