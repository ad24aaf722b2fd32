"""Puts a BPF program before everything else that the kernel does with the packets of an interface (tc, clsact).

Our filters are known by the name of their programs. Where somebody else has filters or an ingress qdisc of his own, we
stay away: his come first.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

import trio

from meshd.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkError,
    NetlinkSocket,
    Request,
    attribute,
    attributes,
)

_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_CLSACT_HANDLE, _CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_ALL_PROTOCOLS, _PRIORITY = 0x0300, 1  # ETH_P_ALL in network order
_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)
_NO_FILTERS = (*_GONE, errno.EOPNOTSUPP)  # the last: a kernel without traffic control
NAME = b"meshd"


@dataclass(frozen=True, slots=True)
class Filter:
    """`program`: the number of its program, if it is ours."""

    program: int | None


class TrafficControl:
    def __init__(self, rtnetlink: NetlinkSocket) -> None:
        self._netlink = rtnetlink

    async def attach(self, index: int, program_fd: int) -> bool:
        """False: somebody else has something there. Raises NetlinkError, as where the kernel has no such thing."""
        if await self.filters(index):
            return False
        with trio.CancelScope(shield=True):  # a qdisc without our filter in it would not be known as ours
            try:
                await self._netlink.request(Request(_RTM_NEWQDISC, _clsact(index), NLM_F_CREATE | NLM_F_EXCL))
            except NetlinkError as error:
                if error.code == errno.EEXIST:
                    return False
                raise
            await self._add_filter(index, program_fd)
        return True

    async def _add_filter(self, index: int, program_fd: int) -> None:
        options = attribute(_TCA_BPF_FD, struct.pack("=I", program_fd)) + attribute(_TCA_BPF_NAME, NAME + b"\0")
        options += attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        payload = _our_filter(index) + attribute(_TCA_OPTIONS, options)
        try:
            await self._netlink.request(Request(_RTM_NEWTFILTER, payload, NLM_F_CREATE | NLM_F_EXCL))
        except BaseException:
            await self.detach(index)
            raise

    async def disarm(self, index: int) -> None:
        """Take the program away and leave the qdisc. No error if the interface is gone."""
        await self._delete(Request(_RTM_DELTFILTER, _our_filter(index)))

    async def detach(self, index: int) -> None:
        """What `attach` has put there, with its qdisc. No error if the interface is gone.

        For some milliseconds the kernel then drops whatever goes out there, as it does in `attach`.
        """
        await self._delete(Request(_RTM_DELQDISC, _clsact(index)))

    async def _delete(self, request: Request) -> None:
        try:
            await self._netlink.request(request)
        except NetlinkError as error:
            if error.code not in _GONE:
                raise

    async def filters(self, index: int) -> list[Filter]:
        """All of an interface, in both directions."""
        found: list[Filter] = []
        for parent in (_INGRESS, _EGRESS):
            header = _TCMSG.pack(0, index, 0, parent, 0)
            try:
                found += [_filter(message) for message in await self._netlink.dump(Request(_RTM_GETTFILTER, header))]
            except NetlinkError as error:
                if error.code not in _NO_FILTERS:
                    raise
        return found


def _clsact(index: int) -> bytes:
    return _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + attribute(_TCA_KIND, b"clsact\0")


def _our_filter(index: int) -> bytes:
    header = _TCMSG.pack(0, index, 0, _INGRESS, _PRIORITY << 16 | _ALL_PROTOCOLS)
    return header + attribute(_TCA_KIND, b"bpf\0")


def _filter(message: Message) -> Filter:
    data = message.payload
    fields: dict[int, bytes] = {}
    for kind, start, end in attributes(data, _TCMSG.size, len(data)):
        if kind == _TCA_OPTIONS:
            fields = {inner: data[a:b] for inner, a, b in attributes(data, start, end)}
    is_ours = fields.get(_TCA_BPF_NAME) == NAME + b"\0" and len(fields.get(_TCA_BPF_ID, b"")) == 4
    return Filter(struct.unpack("=I", fields[_TCA_BPF_ID])[0] if is_ours else None)
