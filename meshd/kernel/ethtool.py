"""Offloads that merge or split packets, through the ethtool ioctl.

With them on, two ends of a wire count different bytes: one packet of 64 KB with one header here, 45 with theirs there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946

# name -> (get, set) of linux/ethtool.h
_OFFLOADS = {"gro": (0x2B, 0x2C), "tso": (0x1E, 0x1F), "gso": (0x23, 0x24)}
_ETHTOOL_GFLAGS, _ETHTOOL_SFLAGS = 0x25, 0x26
_ETH_FLAG_LRO = 1 << 15


def read_offloads(interface: str) -> dict[str, int]:
    """1 on, 0 off, for each offload that the driver knows. Raises OSError (ENODEV)."""
    state: dict[str, int] = {}
    for name, (get, _) in _OFFLOADS.items():
        value = _call(interface, get)
        if value is not None:
            state[name] = value
    flags = _call(interface, _ETHTOOL_GFLAGS)
    if flags is not None:
        state["lro"] = int(bool(flags & _ETH_FLAG_LRO))
    return state


def set_offloads(interface: str, state: dict[str, int]) -> None:
    """Switch those named. What the driver does not allow to change stays. Raises OSError (ENODEV)."""
    for name, value in state.items():
        if name in _OFFLOADS:
            _call(interface, _OFFLOADS[name][1], value)
    flags = _call(interface, _ETHTOOL_GFLAGS) if "lro" in state else None
    if flags is not None and bool(flags & _ETH_FLAG_LRO) != bool(state["lro"]):
        _call(interface, _ETHTOOL_SFLAGS, flags ^ _ETH_FLAG_LRO)


def _call(interface: str, command: int, value: int = 0) -> int | None:
    """struct ethtool_value in, its data out; None if not supported."""
    buffer = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(buffer)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            fcntl.ioctl(handle, _SIOCETHTOOL, request)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise
    return int(struct.unpack("=II", buffer.raw)[1])
