"""Reads the counters of `nft` out of the kernel: who sent how much, by neighbour and flow, without losing a byte.

The counters only ever grow; what is new since the last reading is worked out here. A reading may run while packets are
counted: what it misses, the next one has.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import trio

from meshd.kernel.netlink import NetlinkError, NetlinkSocket, Request, attribute, attributes
from meshd.kernel.nft import COUNTER_SETS, TABLE, CounterSet, Direction, Nft

_NFT_MSG_GETSETELEM = (10 << 8) | 13  # NFNL_SUBSYS_NFTABLES
_NFGENMSG = struct.Struct(">BBH")
_NFPROTO = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEM_KEY, _ELEM_EXPR = 1, 7
_EXPR_DATA = 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_BE64 = struct.Struct(">Q")

_ETHERNET_HEADER = 14
_BROADCAST = IPv4Address("255.255.255.255")
_MANY_ELEMENTS = 8192
_MAX_TOTALS = 4096
_GRACE_PERIOD = 0.1  # much more than a packet spends in the rules

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class FlowCount:
    """New since the last reading. `bytes` at layer 3. `mac`: of the neighbour that sent it, or that it was sent to;
    empty in a tunnel, which has one neighbour.

    `source` and `destination` are None where there were more flows than the kernel counts apart.
    """

    direction: Direction
    interface: str
    mac: bytes
    source: IPAddress | None
    destination: IPAddress | None
    bytes: int
    packets: int
    total_bytes: int  # since this counter began; one may begin anew


@dataclass(slots=True)
class _Counter:
    """One element of a set: its key, decoded, and what has been read of it."""

    direction: Direction
    index: int  # of the interface
    mac: bytes
    source: IPAddress | None
    destination: IPAddress | None
    bytes: int = 0
    packets: int = 0

    @property
    def is_billed(self) -> bool:
        """Neither link-local nor multicast. Whatever is carried on is billed, no matter what it pretends to be."""
        if self.direction is Direction.FORWARD_IN:
            return True
        if self.direction is Direction.OUT and self.mac and self.mac[0] & 1:  # a multicast group, not a neighbour
            return False
        if isinstance(self.source, IPv6Address) and self.source.is_link_local:
            return False
        return self.destination is None or not (self.destination.is_multicast or self.destination == _BROADCAST)

    def layer3(self, size: int, packets: int) -> int:
        """At egress the Ethernet header is already there."""
        return size - _ETHERNET_HEADER * packets if self.direction is Direction.OUT and self.mac else size


class Meter:
    """`totals`: bytes ever read, by (direction, interface, MAC address); senders choose those: the oldest go first."""

    def __init__(self, netfilter: NetlinkSocket, nft: Nft) -> None:
        self.totals: dict[tuple[Direction, str, bytes], int] = {}
        self.reloads = 0  # how often somebody else had deleted our rules, with what they had counted
        self._netlink = netfilter
        self._nft = nft
        self._interface_by_index: dict[int, str] = {}
        self._gone: set[int] = set()  # indices of interfaces that are no more; what they counted is still to be read
        self._counters: dict[tuple[str, int, bytes], _Counter] = {}
        self._draining: int | None = None  # the generation to be read a last time
        self._unreported: list[FlowCount] = []
        self._lock = trio.Lock()

    def name_interface(self, index: int, interface: str) -> None:
        """What is counted on the interface of that index is reported under this name."""
        self._interface_by_index[index] = interface

    def interface_gone(self, index: int) -> None:
        """It counts nothing any more; after the next reading it is forgotten."""
        self._gone.add(index)

    async def read(self) -> list[FlowCount]:
        """All that was counted since the last reading. Raises NetlinkError, NftError.

        If it is cancelled or fails, nothing is lost: the next reading has it.
        """
        async with self._lock:
            gone = frozenset(self._gone)
            try:
                await self._read_generation(self._nft.generation)
                if self._draining is None and len(self._counters) > _MANY_ELEMENTS:
                    old = self._nft.generation
                    await self._nft.switch_generation()
                    self._draining = old
                if self._draining is not None:
                    await self._drain(self._draining)
            except NetlinkError as error:
                if error.code != errno.ENOENT:
                    raise
                # Our tables are gone (`nft flush ruleset`): traffic must not go on uncounted.
                await self._nft.load()
                self._counters.clear()
                self._draining = None
                self.reloads += 1
            for index in gone:
                self._interface_by_index.pop(index, None)
            self._gone -= gone
            flows, self._unreported = self._unreported, []
            return flows

    async def _drain(self, generation: int) -> None:
        """Nothing is counted in this generation any more: read it a last time and empty it."""
        await trio.sleep(_GRACE_PERIOD)
        await self._read_generation(generation)
        await self._nft.empty(generation)
        self._counters = {key: c for key, c in self._counters.items() if key[1] != generation}
        self._draining = None

    async def leftover(self) -> list[FlowCount]:
        """All that the tables of a killed daemon have counted since it started, the part included that it had read."""
        found: list[FlowCount] = []
        for generation in (0, 1):
            for counter_set in COUNTER_SETS:
                try:
                    elements = await self._dump(counter_set, generation)
                except NetlinkError as error:
                    if error.code != errno.ENOENT:
                        raise
                    continue
                for key, size, packets in elements:
                    counter = _decode_key(counter_set, key)
                    interface = _interface_name(counter.index)
                    if packets and interface is not None and counter.is_billed:
                        found.append(_flow_count(counter, interface, (size, packets), (size, packets)))
        return found

    async def _read_generation(self, generation: int) -> None:
        for counter_set in self._nft.counter_sets:
            for key, size, packets in await self._dump(counter_set, generation):
                self._book(counter_set, generation, key, size, packets)

    async def _dump(self, counter_set: CounterSet, generation: int) -> list[tuple[bytes, int, int]]:
        """(key, bytes, packets) of each element."""
        header = _NFGENMSG.pack(_NFPROTO[counter_set.family], 0, 0)
        name = f"{counter_set.name}_{generation}".encode() + b"\0"
        payload = header + attribute(_LIST_TABLE, TABLE.encode() + b"\0") + attribute(_LIST_SET, name)
        elements: list[tuple[bytes, int, int]] = []
        for message in await self._netlink.dump(Request(_NFT_MSG_GETSETELEM, payload)):
            elements += _elements(message.payload)
            await trio.lowlevel.checkpoint()
        return elements

    def _book(self, counter_set: CounterSet, generation: int, key: bytes, size: int, packets: int) -> None:
        """Set apart what is new in one element."""
        identity = (counter_set.name, generation, key)
        counter = self._counters.get(identity)
        if counter is None:
            counter = self._counters[identity] = _decode_key(counter_set, key)
        if packets < counter.packets:  # somebody emptied the set
            counter.bytes = counter.packets = 0
        new_bytes, new_packets = size - counter.bytes, packets - counter.packets
        counter.bytes, counter.packets = size, packets
        interface = self._interface_by_index.get(counter.index)
        if new_packets and interface is not None and counter.is_billed:
            count = _flow_count(counter, interface, (new_bytes, new_packets), (size, packets))
            neighbour = (count.direction, interface, count.mac)
            self.totals[neighbour] = self.totals.get(neighbour, 0) + count.bytes
            if len(self.totals) > _MAX_TOTALS:
                del self.totals[next(iter(self.totals))]
            self._unreported.append(count)


def _flow_count(counter: _Counter, interface: str, new: tuple[int, int], total: tuple[int, int]) -> FlowCount:
    """`new` and `total`: (bytes as the kernel counts them, packets)."""
    return FlowCount(
        counter.direction,
        interface,
        counter.mac,
        counter.source,
        counter.destination,
        bytes=counter.layer3(*new),
        packets=new[1],
        total_bytes=counter.layer3(*total),
    )


def _interface_name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def _decode_key(counter_set: CounterSet, key: bytes) -> _Counter:
    """The fields of the key are one after the other, each padded to four bytes."""
    (index,) = struct.unpack_from("=I", key)
    size = counter_set.address_size
    mac, start = (key[4:10], 12) if counter_set.has_mac else (b"", 4)
    source, destination = (_address(key[start + size * n :][:size]) for n in (0, 1))
    return _Counter(counter_set.direction, index, mac, source, destination)


def _address(data: bytes) -> IPAddress | None:
    return ip_address(data) if data else None


def _elements(payload: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(key, bytes, packets) of each element in a NFT_MSG_NEWSETELEM."""
    for kind, start, end in attributes(payload, _NFGENMSG.size, len(payload)):
        if kind == _LIST_ELEMENTS:
            for _, element, element_end in attributes(payload, start, end):
                yield _element(payload, element, element_end)


def _element(payload: bytes, start: int, end: int) -> tuple[bytes, int, int]:
    key, size, packets = b"", 0, 0
    for kind, inner, inner_end in attributes(payload, start, end):
        if kind == _ELEM_KEY:
            key = payload[inner + 4 : inner_end]  # NFTA_DATA_VALUE alone
        elif kind == _ELEM_EXPR:
            size, packets = _counter(payload, inner, inner_end)
    return key, size, packets


def _counter(payload: bytes, start: int, end: int) -> tuple[int, int]:
    size = packets = 0
    for kind, inner, inner_end in attributes(payload, start, end):
        if kind == _EXPR_DATA:
            for what, value, _ in attributes(payload, inner, inner_end):
                if what == _COUNTER_BYTES:
                    (size,) = _BE64.unpack_from(payload, value)
                elif what == _COUNTER_PACKETS:
                    (packets,) = _BE64.unpack_from(payload, value)
    return size, packets
