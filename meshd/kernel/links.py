"""Interfaces as the kernel sees them: state, link-local address, neighbours; and their changes as they happen."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import trio

from meshd.kernel.filters import has_bits
from meshd.kernel.interface_bytes import BytesByInterface, read_interface_bytes
from meshd.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    NetlinkSocket,
    Request,
    attributes,
    decode,
    encode,
)
from meshd.kernel.rtnl import ifaddrmsg, ifinfmsg, ndmsg

ARPHRD_ETHER, ARPHRD_NONE = 1, 65534
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_RTMGRP_LINK = 0x1
_RTMGRP_NEIGH = 0x4
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100

_EVENTS = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR

_IFF_UP = 0x1
_IFF_RUNNING = 0x40
_IFF_LOWER_UP = 0x10000
_CAN_CARRY = _IFF_UP | _IFF_RUNNING | _IFF_LOWER_UP
_IFA_F_NODAD = 0x02
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_IFA_F_OPTIMISTIC = 0x04
_NTF_USE = 0x01
_NUD_FAILED = 0x20
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDRMSG = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_NDMSG = struct.Struct("=BxxxiHBB")  # family, interface index, state, flags, type
_NDA_DST = 1
# Of each neighbour the kernel tells something every few seconds: that it is reachable, that this is old, that it asks.
_STATE_OFFSET = 16 + 8  # behind struct nlmsghdr; two bytes, in the machine's order
_FAILURES = has_bits(_STATE_OFFSET + (0 if sys.byteorder == "little" else 1), _NUD_FAILED)
_RESOLVE_INTERVAL = 0.02
_EVENTS_PAUSE = 0.005

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Link:
    """`is_up`: enabled, and with carrier. `link_local`: usable, that is, past duplicate address detection. `ipv4`: its
    first IPv4 address, if any. `hardware`: what its packets look like, ARPHRD_... of linux/if_arp.h."""

    index: int
    name: str
    mac: bytes
    mtu: int
    is_up: bool
    link_local: IPv6Address | None
    ipv4: IPv4Address | None = None
    hardware: int = ARPHRD_ETHER

    @property
    def is_ready(self) -> bool:
        return self.is_up and self.link_local is not None


class Links:
    def __init__(self, rtnetlink: NetlinkSocket) -> None:
        self._netlink = rtnetlink

    async def all(self) -> dict[str, Link]:
        """All interfaces, by name."""
        link_local_by_index = await self._link_locals()
        ipv4_by_index = await self._ipv4_addresses()
        links: dict[str, Link] = {}
        for message in await self._netlink.dump(Request(_RTM_GETLINK, bytes(_IFINFOMSG.size))):
            link = _link(message, link_local_by_index, ipv4_by_index)
            links[link.name] = link
        return links

    async def get(self, name: str) -> Link:
        """Raises NetlinkError(ENODEV) if there is none of that name."""
        link = (await self.all()).get(name)
        if link is None:
            raise NetlinkError(errno.ENODEV, name)
        return link

    @staticmethod
    def byte_counts() -> BytesByInterface:
        """(received, sent) of all interfaces since they were made. Raises OSError."""
        return read_interface_bytes()

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Link]]:
        """An endless iterator: first every interface, then each whenever it has changed.

        One that was deleted comes a last time, down and without address. It never ends by itself.
        """
        with NetlinkSocket(NETLINK_ROUTE, _EVENTS) as events:
            yield self._changes(events)

    @asynccontextmanager
    async def watch_unreachable(self) -> AsyncIterator[AsyncIterator[tuple[int, IPv6Address]]]:
        """An endless iterator: (interface index, link-local address) of whom the kernel has tried in vain to reach.

        It tries when something is sent to an address whose reachability it is not sure of any more.
        """
        with NetlinkSocket(NETLINK_ROUTE, _RTMGRP_NEIGH, wanted=_FAILURES) as events:
            yield _failures(events)

    async def neighbour_mac(self, interface: str, address: IPv6Address) -> bytes | None:
        """What the kernel knows of the neighbour's MAC address; None: nothing yet, `resolve_mac` asks."""
        message = _neighbour(interface, address)
        try:
            answers = await self._netlink.get(Request(_RTM_GETNEIGH, encode(message)))
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return None
            raise
        for answer in answers:
            mac = decode(ndmsg, answer).get_attr("NDA_LLADDR")
            if mac is not None:
                return _mac(mac)
        return None

    async def resolve_mac(self, interface: str, address: IPv6Address, *, timeout: float = 1.0) -> bytes | None:
        """As `neighbour_mac`, but makes the kernel ask the neighbour, and waits for up to `timeout` seconds.

        Empty on an interface without MAC addresses (a tunnel): there is but one neighbour.
        """
        if not (await self.get(interface)).mac:
            return b""
        with trio.move_on_after(timeout):
            while True:
                mac = await self.neighbour_mac(interface, address)
                if mac is not None:
                    return mac
                message = _neighbour(interface, address)
                message["flags"] = _NTF_USE
                await self._netlink.request(Request(_RTM_NEWNEIGH, encode(message), NLM_F_CREATE))
                await trio.sleep(_RESOLVE_INTERVAL)
        return None

    async def add_address(self, interface: str, address: IPAddress) -> bool:
        """As /32 or /128. False if it was there already."""
        message = _address(interface, address)
        message["flags"] = _IFA_F_NODAD
        try:
            await self._netlink.request(Request(_RTM_NEWADDR, encode(message), NLM_F_CREATE | NLM_F_EXCL))
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise
        return True

    async def remove_address(self, interface: str, address: IPAddress) -> None:
        """No error if it, or the interface, is gone."""
        try:
            await self._netlink.request(Request(_RTM_DELADDR, encode(_address(interface, address))))
        except NetlinkError as error:
            if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise

    async def add_link_local(self, interface: str, address: IPv6Address) -> None:
        """As /64, usable at once: nobody else can have an address that a key was hashed to. No error if it is there."""
        message = _address(interface, address)
        message["flags"] = _IFA_F_NODAD
        message["prefixlen"] = 64
        try:
            await self._netlink.request(Request(_RTM_NEWADDR, encode(message), NLM_F_CREATE | NLM_F_EXCL))
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise

    async def add_wireguard(self, interface: str) -> None:
        """Of the kernel's own kind. Raises NetlinkError(EOPNOTSUPP) where it has none."""
        message = ifinfmsg()
        message["attrs"] = [
            ("IFLA_IFNAME", interface),
            ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "wireguard")]}),
        ]
        await self._netlink.request(Request(_RTM_NEWLINK, encode(message), NLM_F_CREATE | NLM_F_EXCL))

    async def set_up(self, interface: str, *, mtu: int) -> None:
        message = ifinfmsg()
        message["index"] = _index(interface)
        message["flags"] = message["change"] = _IFF_UP
        message["attrs"] = [("IFLA_MTU", mtu)]
        await self._netlink.request(Request(_RTM_NEWLINK, encode(message)))

    async def delete(self, interface: str) -> None:
        """No error if it is gone."""
        try:
            message = ifinfmsg()
            message["index"] = _index(interface)
            await self._netlink.request(Request(_RTM_DELLINK, encode(message)))
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise

    async def gso_max_segments(self, interface: str) -> int:
        message = ifinfmsg()
        message["index"] = _index(interface)
        answers = await self._netlink.get(Request(_RTM_GETLINK, encode(message)))
        return int(decode(ifinfmsg, answers[0]).get_attr("IFLA_GSO_MAX_SEGS"))

    async def set_gso_max_segments(self, interface: str, segments: int) -> None:
        """1: also what this node sends itself leaves TCP packet by packet (it segments late even with GSO off)."""
        message = ifinfmsg()
        message["index"] = _index(interface)
        message["attrs"] = [("IFLA_GSO_MAX_SEGS", segments)]
        await self._netlink.request(Request(_RTM_NEWLINK, encode(message)))

    async def _changes(self, events: NetlinkSocket) -> AsyncIterator[Link]:
        known: dict[str, Link] = {}
        while True:
            current = await self.all()
            for link in current.values():
                if known.get(link.name) != link:
                    yield link
            for name in known.keys() - current.keys():
                yield replace(known[name], is_up=False, link_local=None, ipv4=None)
            known = current
            # An event only says that something has changed; all is read anew. So it does not matter if some are lost.
            # A carrier that comes makes several.
            await events.wait_for_events(pause=_EVENTS_PAUSE)

    async def _link_locals(self) -> dict[int, IPv6Address]:
        request = Request(_RTM_GETADDR, _IFADDRMSG.pack(socket.AF_INET6, 0, 0, 0, 0))
        found: dict[int, IPv6Address] = {}
        for message in await self._netlink.dump(request):
            _, _, flags, _, index = _IFADDRMSG.unpack_from(message.payload)
            values = _values(message.payload, _IFADDRMSG.size)
            address = IPv6Address(values[_IFA_ADDRESS])
            if address.is_link_local and _is_usable(_u32(values.get(_IFA_FLAGS)) or flags):
                found.setdefault(index, address)
        return found

    async def _ipv4_addresses(self) -> dict[int, IPv4Address]:
        request = Request(_RTM_GETADDR, _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0))
        found: dict[int, IPv4Address] = {}
        for message in await self._netlink.dump(request):
            index = _IFADDRMSG.unpack_from(message.payload)[4]
            # On a point-to-point link IFA_ADDRESS is the other end's.
            found.setdefault(index, IPv4Address(_values(message.payload, _IFADDRMSG.size)[_IFA_LOCAL]))
        return found


async def _failures(events: NetlinkSocket) -> AsyncIterator[tuple[int, IPv6Address]]:
    while True:
        for message in await events.events() or ():  # what was lost was only a hint
            if message.kind == _RTM_NEWNEIGH and (failure := _failure(message.payload)) is not None:
                yield failure


def _failure(payload: bytes) -> tuple[int, IPv6Address] | None:
    """Not by pyroute2: somebody who scans our networks makes many of these."""
    family, index, state, _, _ = _NDMSG.unpack_from(payload)
    if family != socket.AF_INET6 or not state & _NUD_FAILED:
        return None
    for kind, start, end in attributes(payload, _NDMSG.size, len(payload)):
        if kind == _NDA_DST:
            address = IPv6Address(payload[start:end])
            return (index, address) if address.is_link_local else None
    return None


def _values(payload: bytes, start: int) -> dict[int, bytes]:
    """Attributes by type."""
    return {kind: payload[begin:end] for kind, begin, end in attributes(payload, start, len(payload))}


def _u32(value: bytes | None) -> int:
    """0: not there."""
    return int.from_bytes(value, sys.byteorder) if value is not None else 0


def _is_usable(flags: int) -> bool:
    if flags & _IFA_F_DADFAILED:
        return False
    return not flags & _IFA_F_TENTATIVE or bool(flags & _IFA_F_OPTIMISTIC)


def _link(message: Message, link_local_by_index: dict[int, IPv6Address], ipv4_by_index: dict[int, IPv4Address]) -> Link:
    """Not by pyroute2: every event makes us read all interfaces again, and it takes a millisecond for each."""
    _, hardware, index, flags, _ = _IFINFOMSG.unpack_from(message.payload)
    values = _values(message.payload, _IFINFOMSG.size)
    return Link(
        index=index,
        name=values[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace"),
        mac=values.get(_IFLA_ADDRESS, b""),
        mtu=_u32(values.get(_IFLA_MTU)),
        is_up=flags & _CAN_CARRY == _CAN_CARRY,
        link_local=link_local_by_index.get(index),
        ipv4=ipv4_by_index.get(index),
        hardware=hardware,
    )


def _address(interface: str, address: IPAddress) -> Any:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    message["prefixlen"] = address.max_prefixlen
    message["index"] = _index(interface)
    message["attrs"] = [("IFA_LOCAL", str(address)), ("IFA_ADDRESS", str(address))]
    return message


def _neighbour(interface: str, address: IPv6Address) -> Any:
    message = ndmsg()
    message["family"] = socket.AF_INET6
    message["ifindex"] = _index(interface)
    message["attrs"] = [("NDA_DST", str(address))]
    return message


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise NetlinkError(errno.ENODEV, interface) from None


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
