"""Interfaces as an operator sets them up: enabled, MTU, master, kind. For rare use, by rtnetlink; `links` is for the
daemon's."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from meshd.kernel.generic import nested, number, string, text, u32, values
from meshd.kernel.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Conversation,
    NetlinkError,
    NetlinkSocket,
    Request,
)

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS, _NAME, _MTU, _MASTER, _LINKINFO, _ALIAS = 1, 3, 4, 10, 18, 20
_INFO_KIND, _INFO_DATA = 1, 2
_BATADV_ALGORITHM = 1
_IFF_UP = 0x1


@dataclass(frozen=True, slots=True)
class Device:
    """`is_enabled`: set up by somebody, whether or not it has a carrier. `master`: index of the interface that it is
    part of, 0 for none. `kind`: as in `ip link add type KIND`; empty for hardware."""

    index: int
    name: str
    mac: bytes
    mtu: int
    is_enabled: bool
    master: int = 0
    kind: str = ""
    alias: str = ""


class Devices(Conversation):
    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE)

    def close(self) -> None:
        self._netlink.close()

    async def all(self) -> dict[str, Device]:
        """By name."""
        messages = await self._netlink.dump(Request(_RTM_GETLINK, bytes(_IFINFOMSG.size)))
        devices = (read_device(message.payload) for message in messages)
        return {device.name: device for device in devices if device is not None}

    async def enable(self, index: int, *, is_enabled: bool) -> None:
        head = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, _IFF_UP if is_enabled else 0, _IFF_UP)
        await self._netlink.request(Request(_RTM_NEWLINK, head))

    async def set_mtu(self, index: int, mtu: int) -> None:
        await self._set(index, u32(_MTU, mtu))

    async def set_master(self, index: int, master: int) -> None:
        """0: part of nothing."""
        await self._set(index, u32(_MASTER, master))

    async def set_alias(self, index: int, alias: str) -> None:
        """What people see in `ip link`; empty: none."""
        await self._set(index, string(_ALIAS, alias))

    async def add_batman(self, name: str, algorithm: str) -> None:
        """Raises NetlinkError: EOPNOTSUPP, the kernel has no batman-adv; EINVAL, not that algorithm."""
        info = string(_INFO_KIND, "batadv") + nested(_INFO_DATA, string(_BATADV_ALGORITHM, algorithm))
        payload = bytes(_IFINFOMSG.size) + string(_NAME, name) + nested(_LINKINFO, info)
        await self._netlink.request(Request(_RTM_NEWLINK, payload, NLM_F_CREATE | NLM_F_EXCL))

    async def delete(self, index: int) -> None:
        """No error if it is gone."""
        try:
            await self._netlink.request(Request(_RTM_DELLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)))
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise

    async def _set(self, index: int, attributes: bytes) -> None:
        head = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        await self._netlink.request(Request(_RTM_NEWLINK, head + attributes))


def read_device(payload: bytes) -> Device | None:
    if len(payload) < _IFINFOMSG.size:
        return None
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(payload)
    found = values(payload[_IFINFOMSG.size :])
    name = text(found, _NAME)
    if name is None:
        return None
    return Device(
        index=index,
        name=name,
        mac=found.get(_ADDRESS, b""),
        mtu=number(found, _MTU, 4) or 0,
        is_enabled=bool(flags & _IFF_UP),
        master=number(found, _MASTER, 4) or 0,
        kind=text(values(found.get(_LINKINFO, b"")), _INFO_KIND) or "",
        alias=text(found, _ALIAS) or "",
    )
