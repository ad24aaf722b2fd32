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

_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCMSG = struct.Struct("=BxxxiIII")  # family, interface, handle, parent, info
_HANDLE = slice(8, 12)  # of struct tcmsg
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
    """`program`: the number of its program, if it is ours. `header`: struct tcmsg, by which the kernel knows it."""

    program: int | None
    header: bytes


class TrafficControl:
    def __init__(self, rtnetlink: NetlinkSocket) -> None:
        self._netlink = rtnetlink

    async def attach(self, index: int, program_fd: int) -> str:
        """Why not, if somebody else has something there; empty: it is done. Raises NetlinkError, as where the kernel
        has no such thing."""
        if await self.filters(index):
            return "others have filters (tc) there"
        if await self._has_qdisc(index):
            return "others have a qdisc at its ingress"
        error: NetlinkError | None = None
        with trio.CancelScope(shield=True):
            error = await self._add(index, program_fd)
        if error is not None:
            raise error
        return ""

    async def _add(self, index: int, program_fd: int) -> NetlinkError | None:
        """Both or nothing."""
        # The kernel does both while they are sent: who is killed leaves no qdisc behind without our filter in it,
        # which nobody would know as ours.
        qdisc = Request(_RTM_NEWQDISC, _clsact(index), NLM_F_CREATE | NLM_F_EXCL)
        of_qdisc, of_filter = await self._netlink.batch([qdisc, _new_filter(index, program_fd)])
        if of_qdisc is None and of_filter is None:
            return None
        for ours in [found for found in await self.filters(index) if found.program is not None]:
            await self._delete(_deletion(ours))
        if of_qdisc is None:
            await self._delete(Request(_RTM_DELQDISC, _clsact(index)))
        return of_qdisc or of_filter

    async def detach(self, index: int) -> None:
        """What `attach` has put there; the qdisc stays if others have filters in it. No error if the interface is gone.

        For some milliseconds the kernel then drops whatever goes out there, as it does in `attach`.
        """
        found = await self.filters(index)
        requests = [_deletion(each) for each in found if each.program is not None]
        if requests and len(requests) == len(found):
            requests.append(Request(_RTM_DELQDISC, _clsact(index)))  # together, as in `attach`
        if requests:
            await self._delete(*requests)

    async def _delete(self, *requests: Request) -> None:
        for error in await self._netlink.batch(requests):
            if error is not None and error.code not in _GONE:
                raise error

    async def _has_qdisc(self, index: int) -> bool:
        messages = await self._netlink.dump(Request(_RTM_GETQDISC, _TCMSG.pack(0, index, 0, 0, 0)))
        found = (_TCMSG.unpack_from(message.payload) for message in messages)
        return any((interface, parent) == (index, _CLSACT_PARENT) for _, interface, _, parent, _ in found)

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
        return [each for each in found if each.header[_HANDLE] != bytes(4)]


def _clsact(index: int) -> bytes:
    return _TCMSG.pack(0, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + attribute(_TCA_KIND, b"clsact\0")


def _new_filter(index: int, program_fd: int) -> Request:
    header = _TCMSG.pack(0, index, 0, _INGRESS, _PRIORITY << 16 | _ALL_PROTOCOLS)
    options = attribute(_TCA_BPF_FD, struct.pack("=I", program_fd)) + attribute(_TCA_BPF_NAME, NAME + b"\0")
    options += attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
    payload = header + attribute(_TCA_KIND, b"bpf\0") + attribute(_TCA_OPTIONS, options)
    return Request(_RTM_NEWTFILTER, payload, NLM_F_CREATE | NLM_F_EXCL)


def _deletion(ours: Filter) -> Request:
    """Of this one, and no other of the same priority."""
    return Request(_RTM_DELTFILTER, ours.header + attribute(_TCA_KIND, b"bpf\0"))


def _filter(message: Message) -> Filter:
    data = message.payload
    fields: dict[int, bytes] = {}
    for kind, start, end in attributes(data, _TCMSG.size, len(data)):
        if kind == _TCA_OPTIONS:
            fields = {inner: data[a:b] for inner, a, b in attributes(data, start, end)}
    is_ours = fields.get(_TCA_BPF_NAME) == NAME + b"\0" and len(fields.get(_TCA_BPF_ID, b"")) == 4
    return Filter(struct.unpack("=I", fields[_TCA_BPF_ID])[0] if is_ours else None, data[: _TCMSG.size])
