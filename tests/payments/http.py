"""As much of an HTTP server as the tests' Bitcoin nodes and explorers need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio


@dataclass(frozen=True)
class HttpRequest:
    """`headers` by name in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


async def read_request(stream: trio.SocketStream) -> HttpRequest:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await stream.receive_some(65536)
    return HttpRequest(method, path, headers, body)


@asynccontextmanager
async def listening(answer: Callable[[trio.SocketStream, HttpRequest], Awaitable[None]]) -> AsyncIterator[int]:
    """One request for each connection. The port, on 127.0.0.1 as well."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await answer(stream, await read_request(stream))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()
