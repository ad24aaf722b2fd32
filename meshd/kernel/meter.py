"""Reads the counters of `nft` out of the kernel: who sent how much, by neighbour and flow, without losing a byte.

The counters only ever grow; what is new since the last reading is worked out here. A reading may run while packets are
counted: what it misses, the next one has. Flows that have ended cost time at each reading, so now and then counting
goes over to new sets (`Nft.switch_generation`), and the old ones are read a last time, and deleted once the books have
what was read. What the fast lane carries is counted there (`lane`), and reported beside the rest.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import trio

from meshd.kernel.bpf.places import Flow
from meshd.kernel.elements import elements
from meshd.kernel.gate import Port
from meshd.kernel.interface_bytes import BytesByInterface, read_interface_bytes
from meshd.kernel.lane import Carried, Lane
from meshd.kernel.netlink import NetlinkError, NetlinkSocket, Request, attribute, attributes
from meshd.kernel.nft import COUNTER_SETS, SET_SIZE, TABLE, CounterSet, Direction, Nft, NftError
from meshd.logs import Logger

_NFT_MSG_GETSET, _NFT_MSG_GETSETELEM = (10 << 8) | 10, (10 << 8) | 13  # NFNL_SUBSYS_NFTABLES
_NFGENMSG = struct.Struct(">BBH")
_NFPROTO = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
_LIST_TABLE, _LIST_SET = 1, 2
_SET_TABLE, _SET_NAME = 1, 2

_ETHERNET_HEADER = 14
_BROADCAST = b"\xff\xff\xff\xff"
_MANY_ELEMENTS = SET_SIZE * 3 // 4  # in one set: the next flows may find it full
_FEW_ELEMENTS = 1024  # not worth switching generations for
_ROTATION_INTERVAL = 10.0  # at most so often: it takes two runs of nft, and live flows begin anew
_KEEP_PERIOD = 20.0  # of old sets: several ticks, until the books have what was read of them
_FLOWS_AT_ONCE = 256  # new ones in the lane; each takes some ten microseconds
_ESTABLISHED = 8  # packets: such a flow is worth a place in the fast lane
_IDLE_TIMEOUT = 60.0
_QUIET_BYTES = 2000  # of one interface: Hellos and keep-alives of many seconds, or two packets
_LONG = 4096  # bytes of elements: a millisecond's work, after which others have their turn
_GRACE_PERIOD = 0.1  # much more than a packet spends in the rules

IPAddress = IPv4Address | IPv6Address

log = Logger("meshd.kernel")


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
    total_bytes: int  # since this counter began
    counter: int  # a number that no other counter of the same flow has, today or after a crash


@dataclass(slots=True)
class _Counter:
    """One element of a set: its key, decoded, and what has been read of it."""

    direction: Direction
    index: int  # of the interface
    mac: bytes
    source: IPAddress | None
    destination: IPAddress | None
    is_billed: bool
    generation: int
    period: int  # in which it last had something new
    bytes: int = 0
    packets: int = 0

    def layer3(self, size: int, packets: int) -> int:
        """At egress the Ethernet header is already there."""
        return size - _ETHERNET_HEADER * packets if self.direction is Direction.OUT and self.mac else size


class Meter:
    """`reloads`: how often somebody else had deleted our rules, with what they had counted."""

    def __init__(self, netfilter: NetlinkSocket, nft: Nft, lane: Lane | None = None) -> None:
        self.reloads = 0
        self._netlink = netfilter
        self._nft = nft
        self._lane = lane
        # Counters with something new in this reading, by source and destination: from neighbours, and to neighbours.
        self._came: dict[tuple[IPAddress, IPAddress], _Counter] = {}
        self._went: dict[tuple[IPAddress, IPAddress], list[_Counter]] = {}
        self._interface_by_index: dict[int, str] = {}
        self._gone: set[int] = set()  # indices of interfaces that are no more; what they counted is still to be read
        self._counters: dict[tuple[str, int], dict[bytes, _Counter]] = {}  # by set and generation, then by key
        self._period = 0
        self._period_ends_at = -math.inf
        self._rotate_at = -math.inf  # not before
        self._draining: int | None = None  # the generation to be read a last time
        self._old: list[tuple[float, int]] = []  # generations that were, and when they can be deleted
        self._unreported: list[FlowCount] = []
        self._bytes_before: BytesByInterface = {}  # when it was last said that a reading is worth while
        self._lock = trio.Lock()

    def name_interface(self, index: int, interface: str) -> None:
        """What is counted on the interface of that index is reported under this name."""
        self._interface_by_index[index] = interface

    def interface_gone(self, index: int) -> None:
        """It counts nothing any more; after the next reading it is forgotten."""
        self._gone.add(index)

    async def expect(self, interface: str, mac: bytes) -> None:
        """Of a neighbour on a link, once its address is known: its packets find a counter however many flows begin at
        once. Raises NftError."""
        await self._nft.expect(interface, mac)

    def unexpect(self, interface: str, mac: bytes) -> None:
        self._nft.unexpect(interface, mac)

    def generations(self) -> set[int]:
        """Those whose sets are in the kernel."""
        # While counting goes over to new ones, `_counters` has the old ones, too.
        others = (generation for _, generation in [*self._counters, *self._old])
        return {self._nft.generation, *others}

    async def is_worth_reading(self) -> bool:
        """Whether an interface has carried more than a little since a reading that this was said before, or it is not
        known. True is said once: whoever hears it reads. Costs little. Raises NetlinkError."""
        has_news = self._lane is not None and await self._lane.make_way()  # somebody may have deleted our rules
        try:
            now = read_interface_bytes()
        except (OSError, ValueError) as error:
            log.debug("bytes of the interfaces not read", reason=error)
            return True
        before, names = self._bytes_before, self._interface_by_index.values()
        if not has_news and not self._gone and all(_is_quiet(before.get(name), now.get(name)) for name in names):
            return False
        self._bytes_before = now
        return True

    async def read(self) -> list[FlowCount]:
        """All that was counted since the last reading. Raises NetlinkError, NftError.

        If it is cancelled or fails, nothing is lost: the next reading has it.
        """
        async with self._lock:
            try:
                return await self._read()
            except BaseException:
                self._bytes_before = {}  # what it did not read is worth another one
                raise

    async def _read(self) -> list[FlowCount]:
        gone = frozenset(self._gone)
        try:
            await self._read_generation(self._nft.generation)
            if self._draining is None and self._should_rotate(now=trio.current_time()):
                old = self._nft.generation
                await self._nft.switch_generation()
                self._draining = old
            if self._draining is not None:
                await self._drain(self._draining)
            await self._delete_old(now=trio.current_time())
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise
            # Our tables are gone (`nft flush ruleset`): traffic must not go on uncounted.
            await self._nft.load()
            self._counters.clear()
            self._draining = None
            self._old.clear()
            self.reloads += 1
        await self._read_lane()
        for index in gone:
            self._interface_by_index.pop(index, None)
        self._gone -= gone
        flows, self._unreported = self._unreported, []
        return flows

    async def _drain(self, generation: int) -> None:
        """Nothing is counted in this generation any more: read it a last time."""
        await trio.sleep(_GRACE_PERIOD)
        await self._read_generation(generation, is_last=True)
        self._counters = {place: known for place, known in self._counters.items() if place[1] != generation}
        self._draining = None
        now = trio.current_time()
        self._old.append((now + _KEEP_PERIOD, generation))
        self._rotate_at = now + _ROTATION_INTERVAL

    async def _delete_old(self, *, now: float) -> None:
        for entry in [entry for entry in self._old if now >= entry[0]]:
            try:
                await self._nft.delete(entry[1])
            except NftError as error:  # an interface that was renamed has them in its chain; what was read is reported
                log.warning("old counters not deleted yet", reason=error)
                self._old.append((now + _KEEP_PERIOD, entry[1]))
            self._old.remove(entry)

    async def _read_lane(self) -> None:
        """What was carried there, and who takes it from now on."""
        came, self._came = self._came, {}
        went, self._went = self._went, {}
        if self._lane is None:
            return
        if await self._lane.make_way():
            self._bytes_before = {}  # ours may have been deleted after the sets were read; it is not told twice
        for part in self._lane.parts():
            for carried in part:
                for direction, port in ((Direction.FORWARD_IN, carried.came), (Direction.OUT, carried.goes)):
                    self._unreported.append(_lane_count(carried, direction, port))
            await trio.lowlevel.checkpoint()  # what is set apart is reported, by the next reading if not by this one
        for number, ((source, destination), counter) in enumerate(came.items(), 1):
            if number % _FLOWS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            ways = went.get((source, destination), [])
            if len(ways) == 1 and ways[0].is_billed:  # else it has just changed its way
                goes = ways[0].index, ways[0].mac
                self._lane.enter(Flow((counter.index, counter.mac), source, destination, goes))

    def _should_rotate(self, *, now: float) -> bool:
        """A set is nearly full, or most flows have ended: each costs two microseconds at each reading."""
        known = idle = 0
        if now >= self._period_ends_at:
            known = sum(map(len, self._counters.values()))
            busy = sum(c.period == self._period for counters in self._counters.values() for c in counters.values())
            idle = known - busy
            self._period += 1
            self._period_ends_at = now + _IDLE_TIMEOUT
        if now < self._rotate_at:
            return False
        fullest = max(map(len, self._counters.values()), default=0)
        return fullest > _MANY_ELEMENTS or idle > max(_FEW_ELEMENTS, known // 2)

    async def leftover(self) -> list[FlowCount]:
        """All that the tables of a killed daemon have counted since it started, the part included that it had read."""
        found: list[FlowCount] = []
        for counter_set, generation in await self._sets():
            found_there = [e for part in await self._dump(counter_set, generation) for e in elements(part)]
            for key, size, packets in found_there:
                counter = _decode_key(counter_set, generation, key)
                interface = _interface_name(counter.index)
                if packets and interface is not None and counter.is_billed:
                    found.append(_flow_count(counter, interface, (size, packets), (size, packets)))
        return found

    async def _sets(self) -> list[tuple[CounterSet, int]]:
        """Those that are in the kernel, and their generations."""
        known = {(_NFPROTO[s.family], s.name): s for s in COUNTER_SETS}
        found = []
        for family in sorted({family for family, _ in known}):
            request = _NFGENMSG.pack(family, 0, 0) + attribute(_SET_TABLE, TABLE.encode() + b"\0")
            try:
                answer = await self._netlink.dump(Request(_NFT_MSG_GETSET, request))
            except NetlinkError as error:
                if error.code != errno.ENOENT:
                    raise
                continue
            for message in answer:
                name, _, generation = _set_name(message.payload).rpartition("_")
                if (family, name) in known and generation.isdecimal():
                    found.append((known[family, name], int(generation)))
        return found

    async def _read_generation(self, generation: int, *, is_last: bool = False) -> None:
        for counter_set in self._nft.sets_in_use:
            for part in await self._dump(counter_set, generation, is_whole=is_last):
                self._book(counter_set, generation, part)
                if len(part) > _LONG:
                    await trio.lowlevel.checkpoint()  # what is booked is reported, if not by this reading by the next

    async def _dump(self, counter_set: CounterSet, generation: int, *, is_whole: bool = False) -> list[bytes]:
        """Messages of the kernel, some hundred elements in each (`elements`)."""
        header = _NFGENMSG.pack(_NFPROTO[counter_set.family], 0, 0)
        name = f"{counter_set.name}_{generation}".encode() + b"\0"
        payload = header + attribute(_LIST_TABLE, TABLE.encode() + b"\0") + attribute(_LIST_SET, name)
        answer = await self._netlink.dump(Request(_NFT_MSG_GETSETELEM, payload), is_whole=is_whole)
        return [message.payload for message in answer]

    def _book(self, counter_set: CounterSet, generation: int, payload: bytes) -> None:
        """Set apart what is new in these elements."""
        counters = self._counters.setdefault((counter_set.name, generation), {})
        for key, size, packets in elements(payload):
            counter = counters.get(key)
            if counter is None:
                counter = counters[key] = _decode_key(counter_set, generation, key)
            elif packets == counter.packets:
                continue
            elif packets < counter.packets:  # somebody emptied the set
                counter.bytes = counter.packets = 0
            new = size - counter.bytes, packets - counter.packets
            counter.bytes, counter.packets, counter.period = size, packets, self._period
            interface = self._interface_by_index.get(counter.index)
            if new[1] and interface is not None and counter.is_billed:
                self._unreported.append(_flow_count(counter, interface, new, (size, packets)))
                self._note(counter)

    def _note(self, counter: _Counter) -> None:
        """For the fast lane: what is carried, and where to."""
        if self._lane is None or self._lane.problem or counter.source is None or counter.destination is None:
            return
        pair = counter.source, counter.destination
        if counter.direction is Direction.OUT:
            self._went.setdefault(pair, []).append(counter)
        elif counter.direction is Direction.FORWARD_IN and counter.packets >= _ESTABLISHED:
            self._came[pair] = counter


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
        counter=counter.generation,
    )


def _lane_count(carried: Carried, direction: Direction, port: Port) -> FlowCount:
    flow = carried.flow
    sizes = carried.bytes, carried.packets, carried.total_bytes
    return FlowCount(direction, *port, flow.source, flow.destination, *sizes, counter=carried.serial)


def lane_counts(leftover: Iterable[tuple[Flow, int, int]]) -> list[FlowCount]:
    """What a killed daemon's fast lane has carried since it started (`Lane.leftover`)."""
    found = []
    for flow, serial, size in leftover:
        came, goes = _interface_name(flow.came[0]), _interface_name(flow.goes[0])
        if size and came is not None and goes is not None:
            ports = (came, flow.came[1]), (goes, flow.goes[1])
            carried = Carried(flow, *ports, serial, size, 0, total_bytes=size)
            found.append(_lane_count(carried, Direction.FORWARD_IN, carried.came))
            found.append(_lane_count(carried, Direction.OUT, carried.goes))
    return found


def _is_quiet(before: tuple[int, int] | None, now: tuple[int, int] | None) -> bool:
    """An interface, by (received, sent); None: it was not there, or is not."""
    if before is None or now is None:
        return False
    received, sent = now[0] - before[0], now[1] - before[1]
    return received >= 0 and sent >= 0 and received + sent < _QUIET_BYTES


def _set_name(payload: bytes) -> str:
    names = (payload[a:b] for kind, a, b in attributes(payload, _NFGENMSG.size, len(payload)) if kind == _SET_NAME)
    return next(names, b"").rstrip(b"\0").decode(errors="replace")


def _interface_name(index: int) -> str | None:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def _decode_key(counter_set: CounterSet, generation: int, key: bytes) -> _Counter:
    """The fields of the key are one after the other, each padded to four bytes."""
    (index,) = struct.unpack_from("=I", key)
    size = counter_set.address_size
    mac, start = (key[4:10], 12) if counter_set.has_mac else (b"", 4)
    source, destination = key[start : start + size], key[start + size : start + 2 * size]
    direction = counter_set.direction
    billed = _is_billed(direction, mac, source, destination)
    return _Counter(direction, index, mac, _address(source), _address(destination), billed, generation, period=-1)


def _is_billed(direction: Direction, mac: bytes, source: bytes, destination: bytes) -> bool:
    """Neither link-local nor multicast. Whatever is carried on is billed, no matter what it pretends to be."""
    if direction is Direction.FORWARD_IN:
        return True
    if direction is Direction.OUT and mac and mac[0] & 1:  # a multicast group, not a neighbour
        return False
    if len(destination) == 4:
        return destination[0] >> 4 != 0xE and destination != _BROADCAST
    is_link_local = bool(source) and source[0] == 0xFE and source[1] >> 6 == 2
    return not is_link_local and (not destination or destination[0] != 0xFF)


def _address(data: bytes) -> IPAddress | None:
    if not data:
        return None
    return IPv4Address(data) if len(data) == 4 else IPv6Address(data)
