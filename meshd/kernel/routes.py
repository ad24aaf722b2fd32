"""Our routing tables: routes that the speaker selected, and the policy rules that make the kernel look into them.

What goes into which table, and in which order the kernel looks, is told in `layout`. Here it is carried out.

An IPv4 prefix may have an IPv6 next hop (RFC 9229). A blocked prefix has an `unreachable` route, so that no look-up
goes on to a shorter prefix. Its priority is worse than that of any route of ours: the kernel does not replace an IPv6
route with a next hop by one without, so the new one is put beside the old one before that is deleted.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

from meshd.kernel.layout import UNREACHABLE, Blocked, Cell, Layout, Prefix, Route, Rule
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
from meshd.kernel.rtnl import fibmsg

_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_RTN_UNICAST = 1
_RTN_UNREACHABLE = 7
_PRIORITY_OF_BLOCKS = 0x7FFF_FFFF
_RTNH_F_ONLINK = 4
_RT_TABLE_UNSPEC = 0
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_VIA = 1, 4, 5, 6, 7, 18
_RTA_TABLE = _FRA_TABLE = 15
_FR_ACT_TO_TBL, _FR_ACT_UNREACHABLE = 1, 7
_FIB_RULE_FIND_SADDR = 0x10000
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_FRA_PROTOCOL = 21
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_GONE = (errno.ESRCH, errno.ENOENT)


class RouteTable:
    """`changed` is called whenever the kernel has other routes or rules than before."""

    def __init__(
        self,
        rtnetlink: NetlinkSocket,
        table: int,
        protocol: int,
        rule_priority: int,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._netlink = rtnetlink
        self._changed = changed
        self._protocol = protocol
        self._layout = Layout(table, rule_priority)
        self._rules: frozenset[Rule] = frozenset()  # those that the kernel has
        self._blocked: set[tuple[int, Prefix]] = set()
        self._source_by_family: dict[int, IPv4Address | IPv6Address] = {}

    async def install(
        self,
        prefix: Prefix,
        interface: str,
        next_hop: IPv4Address | IPv6Address,
        source_prefix: Prefix | None = None,
    ) -> None:
        """Route `prefix` so; an earlier route to it is replaced atomically: no packet finds none.

        Raises NetlinkError; ENODEV if the interface is gone, ENETDOWN or ENETUNREACH if it is down.
        """
        failed = await self.install_many([Route(prefix, interface, next_hop, source_prefix)])
        if failed:
            raise failed[prefix]

    async def install_many(self, routes: Iterable[Route]) -> dict[Prefix, NetlinkError]:
        """As `install`, many at once. What could not be installed, and why."""
        return await self._put(routes)

    async def block_many(self, blocked: Iterable[Blocked]) -> dict[Prefix, NetlinkError]:
        """Refuse what is for them, in place of their routes: at no moment does a shorter prefix take a packet."""
        return await self._put(blocked)

    async def remove(self, prefix: Prefix, source_prefix: Prefix | None = None) -> None:
        """No error if there is none: the kernel itself deletes routes whose interface goes down."""
        await self._write(self._layout.drop(prefix, source_prefix))
        await self._follow_rules()

    async def keep_default(self, source_prefix: Prefix, *, is_ours: bool) -> None:
        """The operator's own default route, which we announce for this source prefix, serves that one (`layout`)."""
        await self._write(self._layout.keep_default(source_prefix, is_ours=is_ours))
        await self._follow_rules()

    async def _put(self, entries: Iterable[Route | Blocked]) -> dict[Prefix, NetlinkError]:
        failed: dict[Prefix, NetlinkError] = {}
        cells: list[Cell] = []
        for entry in entries:
            try:
                cells += self._layout.put(entry)
            except NetlinkError as error:
                failed[entry.prefix] = error
        failed |= await self._write(cells)
        await self._follow_rules()
        return failed

    async def _write(self, cells: Iterable[Cell]) -> dict[Prefix, NetlinkError]:
        """Make the tables so. What could not be put there, and why."""
        installs: list[Cell] = []
        requests: list[Request] = []
        blocks: list[Cell] = []
        gone: list[Cell] = []
        failed: dict[Prefix, NetlinkError] = {}
        for cell in {(cell.table, cell.prefix): cell for cell in cells}.values():  # the last word on each
            match cell.entry:
                case Route():
                    try:
                        requests.append(self._new_route(cell.table, cell.entry))
                        installs.append(cell)
                    except NetlinkError as error:
                        failed[cell.prefix] = error
                case Blocked():
                    blocks.append(cell)
                case None:
                    gone.append(cell)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        refusals = [Request(_RTM_NEWROUTE, self._block_payload(cell.table, cell.prefix), flags) for cell in blocks]
        self._blocked.update((cell.table, cell.prefix) for cell in blocks)
        # Many at once, in their order: a blocked route is there before the one that it stands for is deleted.
        results = await self._netlink.batch([*refusals, *requests]) if refusals or requests else []
        for cell, refusal in zip([*blocks, *installs], results, strict=True):
            if refusal is not None:
                failed[cell.prefix] = refusal
        dead = [self._route_payload(cell.table, cell.prefix, kind=_RTN_UNICAST) for cell in (*blocks, *gone)]
        await _delete_all(self._netlink, [Request(_RTM_DELROUTE, payload) for payload in dead])
        await self._unblock(cell for cell in (*installs, *gone) if cell.entry is None or cell.prefix not in failed)
        self._changed()
        return failed

    async def flush(self) -> None:
        """Remove all routes of our tables."""
        for family in _FAMILIES:
            header = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            routes = await self._netlink.dump(Request(_RTM_GETROUTE, header))
            ours = [route for route in routes if self._is_our_route(route)]
            await _delete_all(self._netlink, [Request(_RTM_DELROUTE, route.payload) for route in ours])
        self._changed()
        self._blocked.clear()
        self._layout.clear()

    async def add_rules(self) -> None:
        await self._follow_rules()

    async def keep_out(self, mark: int) -> None:
        """Packets with this mark never take our routes."""
        self._layout.outside_mark = mark
        await self._follow_rules()

    async def _follow_rules(self) -> None:
        wanted = self._layout.rules()
        if wanted == self._rules:
            return
        flags = NLM_F_CREATE | NLM_F_EXCL
        for rule in wanted - self._rules:
            await self._netlink.request(Request(_RTM_NEWRULE, encode(self._rule_message(rule)), flags))
            self._rules |= {rule}  # if the next one fails, this one is not added again
        old = [Request(_RTM_DELRULE, encode(self._rule_message(rule))) for rule in self._rules - wanted]
        await _delete_all(self._netlink, old)
        self._changed()
        self._rules = wanted

    async def cleanup(self) -> None:
        """Remove our rules and routes, also those of a daemon that was killed: known by table and protocol number."""
        for family in _FAMILIES:
            header = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            rules = await self._netlink.dump(Request(_RTM_GETRULE, header))
            ours = [Request(_RTM_DELRULE, rule.payload) for rule in rules if self._is_our_rule(rule)]
            await _delete_all(self._netlink, ours)
        self._rules = frozenset()
        await self.flush()

    def prefer_source(self, address: IPv4Address | IPv6Address) -> None:
        """Packets of this node over mesh routes come from this address, unless their socket is bound to another."""
        self._source_by_family.setdefault(_family(address), address)

    def forget_source(self, address: IPv4Address | IPv6Address) -> None:
        if self._source_by_family.get(_family(address)) == address:
            del self._source_by_family[_family(address)]

    async def _unblock(self, cells: Iterable[Cell]) -> None:
        blocked = [(cell.table, cell.prefix) for cell in cells if (cell.table, cell.prefix) in self._blocked]
        await _delete_all(self._netlink, [Request(_RTM_DELROUTE, self._block_payload(*place)) for place in blocked])
        self._blocked.difference_update(blocked)

    def _new_route(self, table: int, route: Route) -> Request:
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
        payload = self._route_payload(table, route.prefix, kind=_RTN_UNICAST, flags=flags)
        payload += gateway + attribute(_RTA_OIF, struct.pack("=I", index))
        source = self._source_by_family.get(_family(route.prefix.network_address))
        if source is not None and table == self._layout.table:  # in the others the source is given
            payload += attribute(_RTA_PREFSRC, source.packed)
        return Request(_RTM_NEWROUTE, payload, NLM_F_CREATE | NLM_F_REPLACE)

    def _block_payload(self, table: int, prefix: Prefix) -> bytes:
        priority = attribute(_RTA_PRIORITY, struct.pack("=I", _PRIORITY_OF_BLOCKS))
        return self._route_payload(table, prefix, kind=_RTN_UNREACHABLE) + priority

    def _route_payload(self, table: int, prefix: Prefix, *, kind: int, flags: int = 0) -> bytes:
        """Not by pyroute2: a full dump of a large mesh makes thousands of these at once."""
        header = _RTMSG.pack(
            _family(prefix.network_address), prefix.prefixlen, 0, 0, _RT_TABLE_UNSPEC, self._protocol, 0, kind, flags
        )
        destination = attribute(_RTA_DST, prefix.network_address.packed)
        return header + destination + attribute(_RTA_TABLE, struct.pack("=I", table))

    def _rule_message(self, rule: Rule) -> Any:
        message = fibmsg()
        message["family"] = socket.AF_INET if rule.version == 4 else socket.AF_INET6
        message["action"] = _FR_ACT_UNREACHABLE if rule.table == UNREACHABLE else _FR_ACT_TO_TBL
        attributes: list[tuple[str, int | str]]
        attributes = [("FRA_PRIORITY", rule.priority), ("FRA_TABLE", rule.table), ("FRA_PROTOCOL", self._protocol)]
        if rule.mark:
            attributes.append(("FRA_FWMARK", rule.mark))
        if rule.source_prefix is not None:
            message["src_len"] = rule.source_prefix.prefixlen
            attributes.append(("FRA_SRC", str(rule.source_prefix.network_address)))
            if rule.version == 6:
                # Who sends without having chosen an address is given one of the source prefix, if that suits.
                message["flags"] = _FIB_RULE_FIND_SADDR
        if rule.destination is not None:
            message["dst_len"] = rule.destination.prefixlen
            attributes.append(("FRA_DST", str(rule.destination.network_address)))
        if rule.suppress_default:
            attributes.append(("FRA_SUPPRESS_PREFIXLEN", 0))
        message["attrs"] = attributes
        return message

    def _is_our_route(self, route: Message) -> bool:
        """Next to our table there may be somebody else's."""
        table = _attribute_u32(route, _RTA_TABLE)
        is_ours = _RTMSG.unpack_from(route.payload)[5] == self._protocol
        return table == self._layout.table or (is_ours and table in self._layout.source_tables)

    def _is_our_rule(self, rule: Message) -> bool:
        for kind, start, _ in attributes(rule.payload, _RTMSG.size, len(rule.payload)):
            if kind == _FRA_PROTOCOL and rule.payload[start] == self._protocol:
                return True
        return _attribute_u32(rule, _FRA_TABLE) == self._layout.table


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
