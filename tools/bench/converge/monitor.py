"""What happens to the routing tables of all namespaces, with the time at which the kernel told of it.

A thread of its own only reads and keeps the bytes; they are parsed when somebody asks, so that watching costs little
while the daemons are busy.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator

from tools.bench.converge.follow import RouteEvent
from tools.bench.converge.network import Network, in_namespace

_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_NLM_F_REPLACE = 0x100
_RTMGRP_IPV6_ROUTE = 0x400
_SO_RCVBUFFORCE = 33
_RTN_UNICAST = 1
_RT_TABLE_LOCAL = 255
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_HEADER = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_NICE = -15  # of the thread: an event is to be read when it comes, however busy the daemons are


class Monitor:
    """Use as a context manager. Raises RuntimeError from `take` when the kernel had to drop events."""

    def __init__(self, network: Network) -> None:
        self._destination = {address.packed: node for node, address in enumerate(network.addresses)}
        self._neighbour = [network.neighbour_by_index(node) for node in range(network.topology.nodes)]
        self._sockets = [in_namespace(network.name(node), _socket) for node in range(network.topology.nodes)]
        self._raw: deque[tuple[float, int, bytes]] = deque()
        self._failure: OSError | None = None
        self._is_ending = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.last_at = 0.0

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    @property
    def thread_id(self) -> int:
        """Of the operating system."""
        return self._thread.native_id or 0

    def __exit__(self, *_: object) -> None:
        self._is_ending = True
        self._thread.join()
        for opened in self._sockets:
            opened.close()

    def take(self) -> list[RouteEvent]:
        """All since the last call, in the order in which they came."""
        if self._failure is not None:
            raise RuntimeError(f"route events were lost: {self._failure}")
        events: list[RouteEvent] = []
        while self._raw:
            events += self._events(*self._raw.popleft())
        return events

    def _read(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        poll = select.epoll()
        by_descriptor = {opened.fileno(): (node, opened) for node, opened in enumerate(self._sockets)}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN)
        while not self._is_ending:
            for descriptor, _ in poll.poll(0.2):
                node, opened = by_descriptor[descriptor]
                try:
                    data = opened.recv(1 << 16)
                except BlockingIOError:
                    continue
                except OSError as error:
                    self._failure = error
                    return
                self.last_at = time.monotonic()
                self._raw.append((self.last_at, node, data))
        poll.close()

    def _events(self, at: float, node: int, data: bytes) -> Iterator[RouteEvent]:
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                return
            if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
                event = self._event(at, node, kind, flags, data[offset + _HEADER.size : offset + length])
                if event is not None:
                    yield event
            offset += (length + 3) & ~3

    def _event(self, at: float, node: int, kind: int, flags: int, message: bytes) -> RouteEvent | None:
        route_kind = _RTMSG.unpack_from(message)[7]
        found = _attributes(message)
        destination = self._destination.get(found.get(_RTA_DST, b""))
        if destination is None or destination == node or _number(found, _RTA_TABLE) == _RT_TABLE_LOCAL:
            return None
        interface, gateway = _number(found, _RTA_OIF), found.get(_RTA_GATEWAY)
        if _RTA_MULTIPATH in found:  # the first of several ways
            interface = _U32.unpack_from(found[_RTA_MULTIPATH], 4)[0]
        via = self._neighbour[node].get(interface) if route_kind == _RTN_UNICAST else None
        change = "delete" if kind == _RTM_DELROUTE else "replace" if flags & _NLM_F_REPLACE else "add"
        key = (route_kind, interface, gateway)
        return RouteEvent(at, node, destination, change, _number(found, _RTA_PRIORITY), key, via)


def _socket() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    opened.bind((0, _RTMGRP_IPV6_ROUTE))
    opened.setblocking(False)
    return opened


def _attributes(message: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = _RTMSG.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(found: dict[int, bytes], kind: int) -> int:
    value = found.get(kind)
    return int(_U32.unpack(value)[0]) if value is not None and len(value) == 4 else 0
