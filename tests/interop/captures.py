"""Reads the captures that tcpdump writes here (Ethernet, IPv6, UDP), with nothing but struct."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from routing.codec import decode
from routing.tlv import Tlv

_ETHERNET, _IPV6, _UDP = 14, 40, 8


@dataclass(frozen=True, slots=True)
class Captured:
    at: float
    source: IPv6Address
    destination: IPv6Address
    payload: bytes  # of UDP


def read_capture(path: Path) -> Iterator[Captured]:
    data = path.read_bytes()
    magic, *_, link_type = struct.unpack_from("<IHHiIII", data)
    assert (magic, link_type) == (0xA1B2C3D4, 1), "not a pcap of Ethernet with microseconds"
    at = 24
    while at + 16 <= len(data):
        seconds, fraction, length, _ = struct.unpack_from("<IIII", data, at)
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        ip = frame[_ETHERNET:]
        if frame[12:14] == b"\x86\xdd" and ip[6] == 17:
            addresses = IPv6Address(ip[8:24]), IPv6Address(ip[24:40])
            yield Captured(seconds + fraction / 1e6, *addresses, ip[_IPV6 + _UDP :])


def tlvs_from(path: Path, source: IPv6Address) -> list[Tlv]:
    """All that one sender said on a wire, in order."""
    packets = [packet for packet in read_capture(path) if packet.source == source]
    return [tlv for packet in packets for tlv in decode(packet.payload, source=source)]
