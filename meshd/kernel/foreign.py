"""Whether somebody else has rules for packets that are carried: a firewall, address translation, marks, traffic rules.

nftables of all families is asked, which iptables of today writes to as well; of the old iptables, whether it is in use.
Chains that have no rules and accept everything do not count.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from meshd.kernel.netlink import Message, NetlinkSocket, Request, attributes
from meshd.kernel.nft import TABLE

EVENTS = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_NFT_MSG_GETCHAIN, _NFT_MSG_NEWGEN = (10 << 8) | 4, (10 << 8) | 15  # NFNL_SUBSYS_NFTABLES
_NFGENMSG = struct.Struct(">BBH")
_TABLE = 1  # its name, in what is told of tables, and of chains, rules, sets and all else that they have
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6
_HOOK_NUMBER = 1
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_CARRYING_HOOKS = {
    "inet": (0, 2, 4, 5),
    "ip": (0, 2, 4),
    "ip6": (0, 2, 4),
    "netdev": (0, 1),
}  # not input, output, bridge
_ACCEPT = 1
_OLD_TABLES = (Path("/proc/net/ip_tables_names"), Path("/proc/net/ip6_tables_names"))


async def foreign_hook(netfilter: NetlinkSocket) -> str | None:
    """The name of such a chain of nftables. Raises NetlinkError."""
    for message in await netfilter.dump(Request(_NFT_MSG_GETCHAIN, _NFGENMSG.pack(0, 0, 0)), is_whole=True):
        name = _foreign_chain(message)
        if name is not None:
            return name
    return None


def old_hook() -> str | None:
    """The same of the old iptables, of which the kernel tells no news."""
    return "iptables" if any(map(_is_in_use, _OLD_TABLES)) else None


def is_foreign_news(events: Iterable[Message] | None) -> bool:
    """Of the kernel's news of nftables (`EVENTS`): may the rules of others have changed? None: some were lost."""
    return events is None or any(not _is_ours(event) for event in events)


def _is_ours(event: Message) -> bool:
    if event.kind == _NFT_MSG_NEWGEN:  # at the end of each transaction
        return True
    data = event.payload
    names = (data[start:end] for kind, start, end in attributes(data, _NFGENMSG.size, len(data)) if kind == _TABLE)
    return next(names, b"").rstrip(b"\0") == TABLE.encode()


def _foreign_chain(message: Message) -> str | None:
    data = message.payload
    family = _FAMILIES.get(data[0], "")
    fields = {kind: (start, end) for kind, start, end in attributes(data, _NFGENMSG.size, len(data))}
    if not {_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK} <= fields.keys():
        return None  # not a base chain
    names = (data[slice(*fields[kind])].rstrip(b"\0") for kind in (_CHAIN_TABLE, _CHAIN_NAME))
    table, chain = (name.decode(errors="replace") for name in names)
    hooks = {kind: start for kind, start, _ in attributes(data, *fields[_CHAIN_HOOK])}
    number = _u32(data, hooks.get(_HOOK_NUMBER))
    if table == TABLE or number not in _CARRYING_HOOKS.get(family, ()):
        return None
    uses = _u32(data, fields.get(_CHAIN_USE, (None,))[0])
    policy = _u32(data, fields.get(_CHAIN_POLICY, (None,))[0])
    return f"{family} {table} {chain}" if uses or policy not in (None, _ACCEPT) else None


def _u32(data: bytes, start: int | None) -> int | None:
    return None if start is None else int(struct.unpack_from(">I", data, start)[0])


def _is_in_use(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # once a second: by a text file it would take twice as long
        try:
            return bool(os.read(file, 4096).strip())
        finally:
            os.close(file)
    except FileNotFoundError:
        return False
    except OSError:  # not ours to read: it is there
        return True
