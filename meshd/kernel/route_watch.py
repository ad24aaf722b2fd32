"""Other people's routes: what the operator, DHCP or another routing daemon has put into the kernel, as it changes."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import trio

from meshd.kernel.netlink import NETLINK_ROUTE, Message, NetlinkSocket, Request, attributes

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_GETROUTE = 26
_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV6_ROUTE = 0x400
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, hops, interface index
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 9, 15
_RTN_UNICAST = 1
_RTM_F_CLONED = 0x200
_DEAD = 0x1 | 0x10  # RTNH_F_DEAD, RTNH_F_LINKDOWN: its interface is down, or has no carrier
_SETTLE_INTERVAL = 0.02  # what changes together is read once
_MAX_LOAD = 0.25  # of the time: where somebody holds the routes of the whole Internet, they change all the while
_BREATH = 256  # routes between two turns of the others
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A unicast route that can carry packets. `protocol` is rtnetlink's number of who has put it there."""

    prefix: Prefix
    table: int
    protocol: int
    interfaces: tuple[str, ...]


class RouteWatch:
    """`protocol` and `table` are our own: what we have put there ourselves is not told."""

    def __init__(self, rtnetlink: NetlinkSocket, table: int, protocol: int) -> None:
        self._netlink = rtnetlink
        self._table = table
        self._protocol = protocol

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[list[KernelRoute]]]:
        """An endless iterator: all routes, and all again whenever something may have changed.

        Raises NetlinkError if the kernel cannot be asked.
        """
        with NetlinkSocket(NETLINK_ROUTE, _RTMGRP_LINK | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE) as events:
            yield self._changes(events)

    async def all(self) -> list[KernelRoute]:
        found: list[KernelRoute] = []
        for family in _FAMILIES:
            header = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for number, message in enumerate(await self._netlink.dump(Request(_RTM_GETROUTE, header))):
                if number % _BREATH == 0:
                    await trio.lowlevel.checkpoint()
                route = self._route(message)
                if route is not None:
                    found.append(route)
        return found

    async def _changes(self, events: NetlinkSocket) -> AsyncIterator[list[KernelRoute]]:
        while True:
            # An event only says that something has changed; all is read anew. So it does not matter if some are lost.
            began = trio.current_time()
            routes = await self.all()
            took = trio.current_time() - began
            yield routes
            while not self._is_news(await events.events()):
                pass
            with trio.move_on_after(max(_SETTLE_INTERVAL, took / _MAX_LOAD)):
                while True:
                    await events.events()

    def _is_news(self, messages: list[Message] | None) -> bool:
        return messages is None or not all(self._is_ours(message) for message in messages)

    def _is_ours(self, message: Message) -> bool:
        if message.kind in (_RTM_NEWLINK, _RTM_DELLINK):
            return False
        return message.payload[5] == self._protocol

    def _route(self, message: Message) -> KernelRoute | None:
        family, length, source_length, _, table, protocol, _, kind, flags = _RTMSG.unpack_from(message.payload)
        if kind != _RTN_UNICAST or protocol == self._protocol or source_length or flags & _RTM_F_CLONED:
            return None
        address = bytes(4 if family == socket.AF_INET else 16)
        indexes = []
        for name, start, end in attributes(message.payload, _RTMSG.size, len(message.payload)):
            value = message.payload[start:end]
            if name == _RTA_DST:
                address = value
            elif name == _RTA_TABLE:
                table = struct.unpack("=I", value)[0]
            elif name == _RTA_OIF and not flags & _DEAD:
                indexes.append(struct.unpack("=i", value)[0])
            elif name == _RTA_MULTIPATH:
                indexes += _live_next_hops(value)
        interfaces = tuple(name for name in map(_interface_name, indexes) if name is not None)
        network = IPv4Address(address) if family == socket.AF_INET else IPv6Address(address)
        if table == self._table or not interfaces or network.is_link_local or network.is_multicast:
            return None
        prefix = IPv4Network((address, length)) if family == socket.AF_INET else IPv6Network((address, length))
        return KernelRoute(prefix, table, protocol, interfaces)


def _live_next_hops(data: bytes) -> list[int]:
    indexes = []
    start = 0
    while start + _NEXT_HOP.size <= len(data):
        length, flags, _, index = _NEXT_HOP.unpack_from(data, start)
        if length < _NEXT_HOP.size:
            break
        if not flags & _DEAD:
            indexes.append(index)
        start += (length + 3) & ~3
    return indexes


def _interface_name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None
