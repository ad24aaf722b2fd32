"""A topology as network namespaces: veth pairs for links, counters of control traffic, and the faults that befall it.

A link or node that goes silent keeps its carrier: nftables drops what arrives, so that the sender learns
nothing either.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from typing import TypeVar

from tools.bench.converge.topology import Link, Topology
from tools.ns import Namespaces

T = TypeVar("T")

_LIBC = ctypes.CDLL("libc.so.6", use_errno=True)
_CLONE_NEWNET = 0x40000000
_RTM_NEWLINK = 16
_NLM_F_REQUEST = 0x1
_NLMSG_ERROR = 2
_IFF_UP = 0x1
_NFT = """
table inet bench {
 counter control {}
 chain arriving { type filter hook prerouting priority -400; }
 chain leaving { type filter hook output priority 0; udp dport 6696 counter name control; }
}
"""
_SETTINGS = (
    ("net/ipv6/conf", "accept_dad", 0),
    ("net/ipv6/conf", "accept_ra", 0),
    ("net/ipv6/conf", "router_solicitations", 0),
    ("net/ipv6/conf", "forwarding", 1),
)


def in_namespace(name: str, do: Callable[[], T]) -> T:
    """Call `do` with this thread inside the namespace: the sockets that it makes stay there."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _enter(there)
        try:
            return do()
        finally:
            _enter(before)
    finally:
        os.close(before)
        os.close(there)


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """Links are down until `raise_links`. Use as a context manager: whatever happens, nothing remains."""

    def __init__(self, topology: Topology, addresses: list[IPv6Address], prefix: str) -> None:
        self.topology = topology
        self.addresses = addresses
        self.namespaces = Namespaces(prefix)
        self._sockets: list[socket.socket] = []
        self._index: dict[tuple[int, str], int] = {}

    def __enter__(self) -> Network:
        self.namespaces.__enter__()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for opened in self._sockets:
            opened.close()
        self._sockets.clear()
        self.namespaces.close()

    def name(self, node: int) -> str:
        return self.namespaces.full(str(node))

    @staticmethod
    def interface(towards: int) -> str:
        return f"to{towards}"

    def interfaces(self, node: int) -> list[str]:
        return [self.interface(other) for other in self.topology.neighbours[node]]

    def neighbour_by_index(self, node: int) -> dict[int, int]:
        """Of interface indices."""
        return {self._index[node, self.interface(other)]: other for other in self.topology.neighbours[node]}

    def raise_links(self) -> None:
        """All of them, as fast as the kernel does it."""
        for node, index in ((node, index) for (node, _), index in self._index.items()):
            self._set_up(node, index, is_up=True)

    def set_carrier(self, at: Link, *, is_up: bool) -> None:
        """The lower end of the link is switched off or on by its operator; the other sees the carrier go or come."""
        self._set_up(at[0], self._index[at[0], self.interface(at[1])], is_up=is_up)

    def silence_link(self, at: Link) -> None:
        for node, other in (at, at[::-1]):
            self._nft(node, f'add rule inet bench arriving iifname "{self.interface(other)}" drop')

    def silence_node(self, node: int) -> None:
        self._nft(node, 'add rule inet bench arriving iifname != "lo" drop')

    def lose(self, at: Link, percent: int) -> None:
        """Random loss in both directions."""
        for node, other in (at, at[::-1]):
            match = f'iifname "{self.interface(other)}" numgen random mod 100 < {percent}'
            self._nft(node, f"add rule inet bench arriving {match} drop")

    def heal(self, nodes: Iterable[int]) -> None:
        """End silence and loss at these nodes."""
        for node in nodes:
            self._nft(node, "flush chain inet bench arriving")

    def control_bytes(self, node: int) -> int:
        """Of Babel packets sent so far, with IPv6 and UDP headers."""
        words = self._run(node, "nft list counter inet bench control").split()
        return int(words[words.index("bytes") + 1])

    def _build(self) -> None:
        for node in range(self.topology.nodes):
            self.namespaces.add(str(node))
        links = [
            f"link add {self.interface(b)} netns {self.name(a)} type veth "
            f"peer name {self.interface(a)} netns {self.name(b)}\n"
            for a, b in self.topology.links
        ]
        subprocess.run(["ip", "-batch", "-"], input="".join(links), text=True, check=True, capture_output=True)
        for node in range(self.topology.nodes):
            self._prepare(node)

    def _prepare(self, node: int) -> None:
        scopes = ["all", "default", *self.interfaces(node)]
        lines = [f"echo {v} > /proc/sys/{d}/{scope}/{k}" for scope in scopes for d, k, v in _SETTINGS]
        lines.append(f"ip address add {self.addresses[node]}/128 dev lo nodad")
        lines.append(f"nft -f - <<'END'{_NFT}END")
        self._run(node, "\n".join(lines))
        for index, name in in_namespace(self.name(node), socket.if_nameindex):
            if name != "lo":
                self._index[node, name] = index
        self._sockets.append(in_namespace(self.name(node), _route_socket))

    def _set_up(self, node: int, index: int, *, is_up: bool) -> None:
        """As `ip link set up` does, without starting a process."""
        # struct nlmsghdr (length, type, flags, sequence, port); struct ifinfomsg (family, type, index, flags, change)
        message = struct.pack("=IHHIIBxHiII", 32, _RTM_NEWLINK, _NLM_F_REQUEST, 1, 0, 0, 0, index, int(is_up), _IFF_UP)
        self._sockets[node].send(message)
        try:
            answer = self._sockets[node].recv(4096)
        except BlockingIOError:
            return  # no news: done
        if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
            raise OSError(-struct.unpack_from("=i", answer, 16)[0], f"interface {index} of node {node}")

    def _nft(self, node: int, command: str) -> None:
        self._run(node, f"nft '{command}'")

    def _run(self, node: int, command: str) -> str:
        return self.namespaces.run(str(node), ["sh", "-ec", command])


def _route_socket() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    opened.setblocking(False)
    opened.bind((0, 0))
    return opened
