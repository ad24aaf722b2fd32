"""Packets of our own: names looked up, and a way traced hop by hop. No privilege is needed."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from meshd.ctl.client import CallError

_PORT = 33434  # where traceroute begins; nobody listens there
_TRIES = 2
_TIMEOUT = 1.0
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_UNREACHABLE_TYPES = {_ORIGIN_ICMP: 3, _ORIGIN_ICMP6: 1}
_PORT_UNREACHABLE = {(_ORIGIN_ICMP, 3, 3), (_ORIGIN_ICMP6, 1, 4)}


def resolve(text: str) -> str:
    """An address. Raises CallError."""
    try:
        return str(ip_address(text))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(text, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise CallError("not_found", f"{text!r} is no address, and no name that is known: {error.strerror}") from error
    return str(found[0][4][0])


def trace(address: str, *, max_hops: int) -> list[dict[str, Any]]:
    """One entry a hop, to the destination or to where no packet goes on. Raises CallError."""
    hops = []
    for number in range(1, max_hops + 1):
        answer = None
        for _ in range(_TRIES):
            answer = _probe(address, number)
            if answer is not None:
                break
        who, seconds, is_end, arrived = answer or (None, None, False, False)
        rtt = None if seconds is None else round(seconds * 1000, 3)
        hops.append({"hop": number, "address": who, "rtt_ms": rtt, "arrived": arrived})
        silent = len(hops) >= 5 and all(hop["address"] is None for hop in hops[-5:])
        if is_end or silent:
            break
    return hops


def _probe(address: str, hop: int) -> tuple[str, float, bool, bool] | None:
    """(who answered, seconds, nothing comes after it, it is the destination); None: nobody."""
    is_6 = isinstance(ip_address(address), IPv6Address)
    family = socket.AF_INET6 if is_6 else socket.AF_INET
    level, limit, error_option = (
        (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, _IPV6_RECVERR)
        if is_6
        else (socket.IPPROTO_IP, socket.IP_TTL, _IP_RECVERR)
    )
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(level, limit, hop)
        probe.setsockopt(level, error_option, 1)
        began = time.monotonic()
        try:
            probe.connect((address, _PORT + hop))
            probe.send(b"meshctl trace")
        except OSError as error:
            raise CallError("not_found", f"{address}: {error.strerror}") from error
        poll = select.poll()
        poll.register(probe, select.POLLERR)
        if not poll.poll(_TIMEOUT * 1000):
            return None
        with contextlib.suppress(OSError):
            _, ancillary, _, _ = probe.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            for where, kind, data in ancillary:
                if (where, kind) == (level, error_option):
                    return _read(data, time.monotonic() - began)
    return None


def _read(data: bytes, seconds: float) -> tuple[str, float, bool, bool] | None:
    _number, origin, kind, code, _pad, _info, _data = _ERROR.unpack_from(data)
    if origin not in _UNREACHABLE_TYPES:
        return None
    offender = data[_ERROR.size :]
    who: IPv4Address | IPv6Address
    who = IPv4Address(offender[4:8]) if origin == _ORIGIN_ICMP else IPv6Address(offender[8:24])
    arrived = (origin, kind, code) in _PORT_UNREACHABLE
    return str(who), seconds, kind == _UNREACHABLE_TYPES[origin], arrived
