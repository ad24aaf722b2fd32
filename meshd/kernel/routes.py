"""Our routing table: routes that the speaker selected, and the policy rules that make the kernel look into it.

Order of look-up, so that the mesh works whatever else the machine does, and no neighbour can take over the operator's
own networks by announcing them (the table `local` comes before all of it):

1. IPv6 to fd00::/8: our table. Overlay addresses always win.
2. the table main, default routes left out: networks that the operator configured.
3. our table, default routes left out.
4. the table main: the operator's own default route.
5. our table: a default route out of the mesh.

An IPv4 prefix may have an IPv6 next hop (RFC 9229). A blocked prefix has an `unreachable` route, so that no look-up
goes on to a shorter prefix. Its priority is worse than that of any route of ours: the kernel does not replace an IPv6
route with a next hop by one without, so the new one is put beside the old one before that is deleted.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from pyroute2.netlink.rtnl.fibmsg import fibmsg

from meshd.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    NetlinkError,
    NetlinkSocket,
    Request,
    attribute,
    attributes,
    encode,
)

_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_RTN_UNICAST = 1
_RTN_UNREACHABLE = 7
_PRIORITY_OF_BLOCKS = 0x7FFF_FFFF
_RTNH_F_ONLINK = 4
_RT_TABLE_UNSPEC, _RT_TABLE_MAIN = 0, 254
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 6, 7, 18
_RTA_TABLE = _FRA_TABLE = 15
_FR_ACT_TO_TBL = 1
_AFTER_MAIN = 32768  # main is at 32766, default at 32767
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_FRA_PROTOCOL = 21
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_GONE = (errno.ESRCH, errno.ENOENT)

Prefix = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Route:
    """`next_hop` is on the link. Where `prefix` is IPv4 it may be of either family."""

    prefix: Prefix
    interface: str
    next_hop: IPv4Address | IPv6Address


class RouteTable:
    def __init__(self, rtnetlink: NetlinkSocket, table: int, protocol: int, rule_priority: int) -> None:
        self._netlink = rtnetlink
        self._table = table
        self._protocol = protocol
        self._rule_priority = rule_priority
        self._blocked: set[Prefix] = set()
        self._source_by_family: dict[int, IPv4Address | IPv6Address] = {}

    async def install(self, prefix: Prefix, interface: str, next_hop: IPv4Address | IPv6Address) -> None:
        """Route `prefix` so; an earlier route to it is replaced atomically: no packet finds none.

        Raises NetlinkError; ENODEV if the interface is gone, ENETDOWN or ENETUNREACH if it is down.
        """
        await self._netlink.request(self._new_route(Route(prefix, interface, next_hop)))
        await self._unblock([prefix])

    async def install_many(self, routes: Iterable[Route]) -> dict[Prefix, NetlinkError]:
        """As `install`, many at once. What could not be installed, and why."""
        failed: dict[Prefix, NetlinkError] = {}
        requests: list[Request] = []
        prefixes: list[Prefix] = []
        for route in routes:
            try:
                requests.append(self._new_route(route))
                prefixes.append(route.prefix)
            except NetlinkError as error:
                failed[route.prefix] = error
        results = await self._netlink.batch(requests)
        failed.update((prefix, error) for prefix, error in zip(prefixes, results, strict=True) if error is not None)
        await self._unblock(prefix for prefix in prefixes if prefix not in failed)
        return failed

    async def block_many(self, prefixes: Sequence[Prefix]) -> dict[Prefix, NetlinkError]:
        """Refuse what is for them, in place of their routes: at no moment does a shorter prefix take a packet."""
        self._blocked.update(prefixes)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        requests = [Request(_RTM_NEWROUTE, self._block_payload(prefix), flags) for prefix in prefixes]
        results = await self._netlink.batch(requests)
        routes = [self._route_payload(prefix, kind=_RTN_UNICAST) for prefix in prefixes]
        await _delete_all(self._netlink, [Request(_RTM_DELROUTE, route) for route in routes])
        return {prefix: error for prefix, error in zip(prefixes, results, strict=True) if error is not None}

    async def remove(self, prefix: Prefix) -> None:
        """No error if there is none: the kernel itself deletes routes whose interface goes down."""
        route = self._route_payload(prefix, kind=_RTN_UNICAST)
        await _delete_all(self._netlink, [Request(_RTM_DELROUTE, route)])
        await self._unblock([prefix])

    async def flush(self) -> None:
        """Remove all routes of the table."""
        for family in _FAMILIES:
            header = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            routes = await self._netlink.dump(Request(_RTM_GETROUTE, header))
            ours = [route for route in routes if _attribute_u32(route, _RTA_TABLE) == self._table]
            await _delete_all(self._netlink, [Request(_RTM_DELROUTE, route.payload) for route in ours])
        self._blocked.clear()

    async def add_rules(self) -> None:
        for message in self._rules():
            await self._netlink.request(Request(_RTM_NEWRULE, encode(message), NLM_F_CREATE | NLM_F_EXCL))

    async def cleanup(self) -> None:
        """Remove our rules and routes, also those of a daemon that was killed: known by table and protocol number."""
        for family in _FAMILIES:
            header = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            rules = await self._netlink.dump(Request(_RTM_GETRULE, header))
            ours = [Request(_RTM_DELRULE, rule.payload) for rule in rules if self._is_our_rule(rule)]
            await _delete_all(self._netlink, ours)
        await self.flush()

    def prefer_source(self, address: IPv4Address | IPv6Address) -> None:
        """Packets of this node over mesh routes come from this address, unless their socket is bound to another."""
        self._source_by_family.setdefault(_family(address), address)

    def forget_source(self, address: IPv4Address | IPv6Address) -> None:
        if self._source_by_family.get(_family(address)) == address:
            del self._source_by_family[_family(address)]

    async def _unblock(self, prefixes: Iterable[Prefix]) -> None:
        blocked = [prefix for prefix in prefixes if prefix in self._blocked]
        await _delete_all(self._netlink, [Request(_RTM_DELROUTE, self._block_payload(prefix)) for prefix in blocked])
        self._blocked.difference_update(blocked)

    def _new_route(self, route: Route) -> Request:
        try:
            index = socket.if_nametoindex(route.interface)
        except OSError:
            raise NetlinkError(errno.ENODEV, route.interface) from None
        flags, next_hop = 0, route.next_hop
        if isinstance(next_hop, IPv4Address):
            # The neighbour need not be in a subnet of ours: it has just told us that it is on the link.
            flags = _RTNH_F_ONLINK
            gateway = attribute(_RTA_GATEWAY, next_hop.packed)
        elif isinstance(route.prefix, IPv4Network):
            gateway = attribute(_RTA_VIA, struct.pack("=H", socket.AF_INET6) + next_hop.packed)
        else:
            gateway = attribute(_RTA_GATEWAY, next_hop.packed)
        payload = self._route_payload(route.prefix, kind=_RTN_UNICAST, flags=flags)
        payload += gateway + attribute(_RTA_OIF, struct.pack("=I", index))
        source = self._source_by_family.get(_family(route.prefix.network_address))
        if source is not None:
            payload += attribute(_RTA_PREFSRC, source.packed)
        return Request(_RTM_NEWROUTE, payload, NLM_F_CREATE | NLM_F_REPLACE)

    def _block_payload(self, prefix: Prefix) -> bytes:
        priority = attribute(_RTA_PRIORITY, struct.pack("=I", _PRIORITY_OF_BLOCKS))
        return self._route_payload(prefix, kind=_RTN_UNREACHABLE) + priority

    def _route_payload(self, prefix: Prefix, *, kind: int, flags: int = 0) -> bytes:
        """Not by pyroute2: a full dump of a large mesh makes thousands of these at once."""
        header = _RTMSG.pack(
            _family(prefix.network_address), prefix.prefixlen, 0, 0, _RT_TABLE_UNSPEC, self._protocol, 0, kind, flags
        )
        destination = attribute(_RTA_DST, prefix.network_address.packed)
        return header + destination + attribute(_RTA_TABLE, struct.pack("=I", self._table))

    def _rules(self) -> Sequence[Any]:
        first = self._rule_priority
        rules = [self._rule(socket.AF_INET6, first, self._table, destination=IPv6Network("fd00::/8"))]
        for family in _FAMILIES:
            rules.append(self._rule(family, first + 1, _RT_TABLE_MAIN, suppress_default=True))
            rules.append(self._rule(family, first + 2, self._table, suppress_default=True))
            rules.append(self._rule(family, _AFTER_MAIN, self._table))
        return rules

    def _rule(
        self,
        family: int,
        priority: int,
        table: int,
        *,
        destination: IPv6Network | None = None,
        suppress_default: bool = False,
    ) -> Any:
        message = fibmsg()
        message["family"] = family
        message["action"] = _FR_ACT_TO_TBL
        message["attrs"] = [("FRA_PRIORITY", priority), ("FRA_TABLE", table), ("FRA_PROTOCOL", self._protocol)]
        if destination is not None:
            message["dst_len"] = destination.prefixlen
            message["attrs"].append(("FRA_DST", str(destination.network_address)))
        if suppress_default:
            message["attrs"].append(("FRA_SUPPRESS_PREFIXLEN", 0))
        return message

    def _is_our_rule(self, rule: Message) -> bool:
        for kind, start, _ in attributes(rule.payload, _RTMSG.size, len(rule.payload)):
            if kind == _FRA_PROTOCOL and rule.payload[start] == self._protocol:
                return True
        return _attribute_u32(rule, _FRA_TABLE) == self._table


async def _delete_all(netlink: NetlinkSocket, requests: Sequence[Request]) -> None:
    for error in await netlink.batch(requests):
        if error is not None and error.code not in _GONE:
            raise error


def _attribute_u32(message: Message, wanted: int) -> int | None:
    """Both struct rtmsg and struct fib_rule_hdr are twelve bytes long."""
    for kind, start, end in attributes(message.payload, _RTMSG.size, len(message.payload)):
        if kind == wanted and end - start == 4:
            return int(struct.unpack_from("=I", message.payload, start)[0])
    return None


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
