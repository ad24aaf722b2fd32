"""TCP between link-local addresses; its connections can also be written to at once, without a task that waits for it.

A payment is three short messages on a session that is otherwise quiet. To wake a task for each, and to let it through
trio's checkpoints, would take longer than to sign the payment.
"""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Protocol

import trio

DEFAULT_PORT = 6697


class Connection(trio.abc.Stream):
    """A stream with `send_now`."""

    @abstractmethod
    def send_now(self, data: bytes) -> int:
        """How many of the bytes were taken without waiting, 0 if none. Not while `send_all` is at work. Raises
        trio.BrokenResourceError and trio.ClosedResourceError."""


class TcpConnection(Connection):
    """Takes over the stream's socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = socket.socket(fileno=stream.socket.detach())
        self.socket.setblocking(False)

    def send_now(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError from error
            raise trio.BrokenResourceError(str(error)) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            rest = rest[self.send_now(rest) :]
            if rest:
                await self.wait_send_all_might_not_block()

    async def wait_send_all_might_not_block(self) -> None:
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Waits first: what is asked for has mostly not come yet."""
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return self.socket.recv(65536 if max_bytes is None else max_bytes)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def aclose(self) -> None:
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()


class TcpListener(trio.abc.Listener[Connection]):
    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener

    async def accept(self) -> Connection:
        return TcpConnection(await self._listener.accept())

    async def aclose(self) -> None:
        await self._listener.aclose()


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    index: int
    address: IPv6Address  # our link-local address on it
    peer: bytes | None = None  # who alone can be there (a tunnel)


class Network(Protocol):
    """Where streams come from; tests put another in the place of `LinkLocalTcp`. All but `source` raise OSError."""

    async def listen(self) -> Sequence[trio.abc.Listener[Connection]]: ...

    async def connect(self, interface: Interface, address: IPv6Address) -> Connection: ...

    def source(self, stream: Connection) -> tuple[int, IPv6Address] | None:
        """Interface index and address that an accepted stream comes from; None when it is gone already."""


class LinkLocalTcp:
    """TCP between link-local addresses; one listener for all interfaces, on [::]."""

    def __init__(self, port: int = DEFAULT_PORT) -> None:
        self._port = port

    async def listen(self) -> Sequence[trio.abc.Listener[Connection]]:
        try:
            return [TcpListener(listener) for listener in await trio.open_tcp_listeners(self._port, host="::")]
        except OSError as error:
            raise OSError(error.errno, f"TCP port {self._port}: {error.strerror}") from error

    async def connect(self, interface: Interface, address: IPv6Address) -> Connection:
        sock = trio.socket.socket(trio.socket.AF_INET6, trio.socket.SOCK_STREAM)
        try:
            # The peer knows us by the source address, so that it must be the one that we announce routes from.
            await sock.bind((str(interface.address), 0, 0, interface.index))
            await sock.connect((str(address), self._port, 0, interface.index))
        except BaseException:
            sock.close()
            raise
        return TcpConnection(trio.SocketStream(sock))

    def source(self, stream: Connection) -> tuple[int, IPv6Address] | None:
        assert isinstance(stream, TcpConnection)  # noqa: S101  what our own listener accepts
        try:
            name = stream.socket.getpeername()
        except OSError:
            return None
        return name[3], IPv6Address(name[0].partition("%")[0])
