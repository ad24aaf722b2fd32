"""The UDP socket that Babel speaks on (RFC 8966 section 4): port 6696, link-local, multicast to ff02::1:6."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address

import trio

BABEL_GROUP = IPv6Address("ff02::1:6")
MAX_PACKET = 65_535
# Linux's number; the socket module lacks it. Without it, a socket gets the groups that any other program joined.
IPV6_MULTICAST_ALL = 29
# Control traffic must not wait behind data: DSCP CS6, as other Babel speakers mark it.
TRAFFIC_CLASS = 0xC0


@dataclass(frozen=True, slots=True)
class Datagram:
    interface_index: int
    source: IPv6Address
    destination: IPv6Address
    data: bytes


class BabelSocket:
    """One socket for all interfaces. Raises OSError where the port is taken or IPv6 is off."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.refused = 0  # datagrams that no Babel speaker can have sent
        self._joined: set[int] = set()
        # Not by trio's calls: for each datagram they take a turn of its loop more, and an idle node does little else.
        self._raw = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket = trio.socket.from_stdlib_socket(self._raw)
        for option, value in (
            (socket.IPV6_V6ONLY, 1),
            (socket.IPV6_RECVPKTINFO, 1),
            (socket.IPV6_MULTICAST_LOOP, 0),
            (IPV6_MULTICAST_ALL, 0),
            (socket.IPV6_MULTICAST_HOPS, 1),
            (socket.IPV6_UNICAST_HOPS, 1),
            (socket.IPV6_TCLASS, TRAFFIC_CLASS),
        ):
            self._socket.setsockopt(socket.IPPROTO_IPV6, option, value)
        # A full dump of a large mesh arrives in one burst.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    async def bind(self) -> None:
        try:
            await self._socket.bind(("::", self.port))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on UDP port {self.port}: {error.strerror}") from error

    def join(self, interface_index: int) -> None:
        if interface_index not in self._joined:
            self._membership(socket.IPV6_JOIN_GROUP, interface_index)
            self._joined.add(interface_index)

    def leave(self, interface_index: int) -> None:
        """Harmless where the interface has already gone."""
        if interface_index in self._joined:
            self._joined.remove(interface_index)
            try:
                self._membership(socket.IPV6_LEAVE_GROUP, interface_index)
            except OSError:
                return

    def _membership(self, option: int, interface_index: int) -> None:
        self._socket.setsockopt(socket.IPPROTO_IPV6, option, BABEL_GROUP.packed + struct.pack("@I", interface_index))

    async def receive(self) -> Datagram:
        """The next datagram that came from a link-local address and port 6696 (RFC 8966 section 4)."""
        while True:
            await trio.lowlevel.wait_readable(self._raw)
            try:
                data, control, _flags, address = self._raw.recvmsg(MAX_PACKET, socket.CMSG_SPACE(20))
            except BlockingIOError:
                continue
            host, port = address[:2]
            source = _address(host)
            arrived = _packet_info(control)
            if arrived is None or not source.is_link_local or port != self.port:
                self.refused += 1
                continue
            destination, interface_index = arrived
            return Datagram(interface_index, source, destination, data)

    async def send(
        self, interface_index: int, data: bytes, *, source: IPv6Address, destination: IPv6Address | None
    ) -> None:
        """None: to the group. Raises OSError when the interface is down, or `source` is not an address of it. Does not
        wait, unless the kernel has no room for it."""
        target = BABEL_GROUP if destination is None else destination
        sent_from = source.packed + struct.pack("@I", interface_index)
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, sent_from)]
        to = str(target), self.port, 0, interface_index
        try:
            self._raw.sendmsg([data], ancillary, 0, to)
        except BlockingIOError:
            await self._socket.sendmsg([data], ancillary, 0, to)

    def close(self) -> None:
        self._socket.close()


@lru_cache(maxsize=256)
def _address(host: str) -> IPv6Address:
    """Without the interface, if it is named."""
    return IPv6Address(host.partition("%")[0])


def _packet_info(control: list[tuple[int, int, bytes]]) -> tuple[IPv6Address, int] | None:
    for level, kind, value in control:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(value) >= 20:
            return IPv6Address(value[:16]), struct.unpack("@I", value[16:20])[0]
    return None
