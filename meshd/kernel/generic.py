"""Generic netlink: a family by its name, its commands, and the attributes in its messages (linux/genetlink.h).

Not by pyroute2's sockets, which block; nor by its message classes: of what is needed here they know WireGuard without
the scope of an address, nl80211 with the mesh attributes as hexadecimal text, and nothing of batman-adv.
"""

from __future__ import annotations

import errno
import struct
import sys

from meshd.kernel.netlink import Conversation, NetlinkError, NetlinkSocket, Request, attribute, attributes

_NETLINK_GENERIC = 16
_HEADER = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_NESTED = 0x8000


class GenericNetlink(Conversation):
    """One conversation with one family of the kernel.

    Its number is looked up at the first use, among the families that are there: to ask for it by name would make the
    kernel load the module, and a machine without radios shall not get a wireless stack by being asked for radios.
    """

    def __init__(self, family: str, *, version: int = 1) -> None:
        self._name = family
        self._version = version
        self._number: int | None = None
        self._netlink = NetlinkSocket(_NETLINK_GENERIC)

    def close(self) -> None:
        self._netlink.close()

    async def is_there(self) -> bool:
        """Whether the kernel has the family now: its module may be loaded later, or go."""
        self._number = await self._look_up()
        return self._number is not None

    async def request(self, command: int, payload: bytes) -> None:
        """Raises NetlinkError: ENOENT, the kernel has no such family; else what it says."""
        await self._netlink.request(await self._request(command, payload))

    async def dump(self, command: int, payload: bytes = b"") -> list[bytes]:
        """The attributes of each object."""
        return [m.payload[_HEADER.size :] for m in await self._netlink.dump(await self._request(command, payload))]

    async def get(self, command: int, payload: bytes) -> list[bytes]:
        return [m.payload[_HEADER.size :] for m in await self._netlink.get(await self._request(command, payload))]

    async def _request(self, command: int, payload: bytes) -> Request:
        if self._number is None and not await self.is_there():
            raise NetlinkError(errno.ENOENT, f"this kernel has no {self._name}")
        return Request(self._number or 0, _HEADER.pack(command, self._version, 0) + payload)

    async def _look_up(self) -> int | None:
        for answer in await self._netlink.dump(Request(_CONTROL, _HEADER.pack(_GET_FAMILY, 1, 0))):
            found = values(answer.payload[_HEADER.size :])
            if text(found, _FAMILY_NAME) == self._name:
                return number(found, _FAMILY_ID, 2)
        return None


def values(data: bytes) -> dict[int, bytes]:
    """Attributes by type; of several of a type the last. Raises NetlinkError(EBADMSG)."""
    return {kind: data[start:end] for kind, start, end in attributes(data, 0, len(data))}


def number(found: dict[int, bytes], kind: int, size: int) -> int | None:
    """An unsigned integer of just so many octets; None: not there, or something else."""
    value = found.get(kind)
    return int.from_bytes(value, sys.byteorder) if value is not None and len(value) == size else None


def signed(found: dict[int, bytes], kind: int, size: int) -> int | None:
    value = found.get(kind)
    return int.from_bytes(value, sys.byteorder, signed=True) if value is not None and len(value) == size else None


def mac_address(found: dict[int, bytes], kind: int) -> bytes | None:
    """Six octets."""
    value = found.get(kind)
    return value if value is not None and len(value) == 6 else None


def text(found: dict[int, bytes], kind: int) -> str | None:
    value = found.get(kind)
    return None if value is None else value.rstrip(b"\0").decode(errors="replace")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, content: bytes) -> bytes:
    return attribute(kind | _NESTED, content)
