"""Where a peer across the Internet is: the addresses of its name, and how large a packet may be on the way."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, ip_address

import trio

from meshd.kernel.wireguard import Endpoint

LOOK_UP_TIMEOUT = 10.0
MAX_ADDRESSES = 8
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h; the socket module has no names for them


async def look_up(host: str, port: int) -> list[Endpoint]:
    """The nearest first, in a thread, so that nobody has to wait for a resolver. Raises OSError."""
    try:
        with trio.fail_after(LOOK_UP_TIMEOUT):
            answers = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except trio.TooSlowError:
        raise OSError(f"no answer in {LOOK_UP_TIMEOUT:g} s") from None
    except UnicodeError as error:
        raise OSError(f"not a name: {error}") from error
    found = []
    for _, _, _, _, address in answers:
        text, _, _ = str(address[0]).partition("%")
        endpoint = Endpoint(ip_address(text), port)
        if endpoint not in found and not (endpoint.address.is_multicast or endpoint.address.is_unspecified):
            found.append(endpoint)
    if not found:
        raise OSError("no address")
    return found[:MAX_ADDRESSES]


def path_mtu(endpoint: Endpoint, *, mark: int = 0) -> int | None:
    """As the kernel knows it now; None: it has no way there. Nothing is sent."""
    is_ipv4 = isinstance(endpoint.address, IPv4Address)
    family, level = (socket.AF_INET, socket.IPPROTO_IP) if is_ipv4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            if mark:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            target = (str(endpoint.address), endpoint.port)
            probe.connect(target if is_ipv4 else (*target, 0, endpoint.scope))
            return probe.getsockopt(level, _IP_MTU if is_ipv4 else _IPV6_MTU)
        except OSError:
            return None
