"""The map that the fast lane's program and the daemon share: a table of flows, which both have in their memory.

The layout is that of lane.c. The daemon writes what a flow is and whether it is open; the program finds it by a hash of
its key, and counts. Counts only ever grow, also when a place goes from one flow to the next. Only for machines of 64
bits, where a count is read whole.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from meshd.kernel.bpf import syscalls

FLOWS = 16384
_TRIES = 4
_PLACE_SIZE = 128
_MULTIPLIER = 0x9E3779B97F4A7C15
_U64 = (1 << 64) - 1
NAME = "meshd_places"
_IPV4 = bytes(10) + b"\xff\xff"
_KEY = struct.Struct("=I6sxx16s16s")
_KEY_WORDS = struct.Struct("=5QI")
_WAY = struct.Struct("=II6s6sHHQQ")  # is open, interface, MAC address of the neighbour, ours, has it, MTU, times
_TIMES_AT, _COUNTS_AT = 24, 40
# In the machine's own way ("@"): a number that the program changes meanwhile is read and written whole.
_TIMES = _COUNTS = struct.Struct("@QQ")
_FIRST_BYTES_AT, _KEY_AT, _IS_TAKEN_AT, _SERIAL_AT = 56, 64, 108, 112
_HEAD = struct.Struct("@QQI")  # routes changed at, layout, keeps priority
_HEAD_AT = FLOWS * _PLACE_SIZE
_LAYOUT_AT = _HEAD_AT + 8
_LAYOUT = int.from_bytes(b"meshd  1", "big")  # another one for each change of it: counts are read as they were written
_MAX_COUNT = 1 << 62  # the books take it
_U32, _WORD = struct.Struct("@I"), struct.Struct("@Q")

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Flow:
    """Layer 3 from `source` to `destination`: comes in from a neighbour, goes out to another. A neighbour is (index of
    the interface, MAC address); the address is empty in a tunnel."""

    came: tuple[int, bytes]
    source: IPAddress
    destination: IPAddress
    goes: tuple[int, bytes]

    @property
    def key(self) -> bytes:
        return _KEY.pack(self.came[0], self.came[1], _packed(self.source), _packed(self.destination))


class Places:
    """Owns the map's file descriptor. `close` leaves the map to those programs that still use it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, (FLOWS + 1) * _PLACE_SIZE)
        self._taken: set[int] = set()

    @classmethod
    def create(cls, *, keeps_priority: bool = False) -> Places:
        """`keeps_priority`: what is carried of IPv4 keeps its own. Raises OSError."""
        fd = syscalls.create_array(NAME, value_size=_PLACE_SIZE, entries=FLOWS + 1)
        try:
            made = cls(fd)
        except BaseException:
            os.close(fd)
            raise
        _HEAD.pack_into(made._memory, _HEAD_AT, 0, _LAYOUT, keeps_priority)
        return made

    @classmethod
    def of_program(cls, program_fd: int) -> Places | None:
        """The one that an earlier daemon made; None: it has none, or one that is not as ours are."""
        for number in syscalls.map_ids(program_fd):
            fd = syscalls.map_by_id(number)
            try:
                found = cls(fd) if syscalls.is_array(fd, NAME, value_size=_PLACE_SIZE, entries=FLOWS + 1) else None
            except BaseException:
                os.close(fd)
                raise
            if found is None:
                os.close(fd)
            elif _WORD.unpack_from(found._memory, _LAYOUT_AT)[0] == _LAYOUT:
                return found
            else:
                found.close()
        return None

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)

    def vacant(self, flow: Flow) -> int | None:
        """A place where the program would find it; None if all of these are taken."""
        return next((at for at in _candidates(flow.key) if at not in self._taken), None)

    def open_flow(self, place: int, flow: Flow, our_mac: bytes, serial: int) -> None:
        """From now on it is carried."""
        self._taken.add(place)
        base = place * _PLACE_SIZE
        (carried,) = _WORD.unpack_from(self._memory, base + _COUNTS_AT)
        _WORD.pack_into(self._memory, base + _FIRST_BYTES_AT, carried)
        _WORD.pack_into(self._memory, base + _SERIAL_AT, serial)
        _U32.pack_into(self._memory, base + _IS_TAKEN_AT, 1)
        has_mac = bool(flow.goes[1])
        _WAY.pack_into(self._memory, base, 0, flow.goes[0], flow.goes[1], our_mac, has_mac, 0, 0, 0)
        self._memory[base + _KEY_AT : base + _KEY_AT + _KEY.size] = flow.key
        _U32.pack_into(self._memory, base, 1)  # last: open

    def open_again(self, place: int) -> None:
        """The same flow, which has been shut and not freed."""
        base = place * _PLACE_SIZE
        _TIMES.pack_into(self._memory, base + _TIMES_AT, 0, 0)
        _U32.pack_into(self._memory, base, 1)

    def shut(self, place: int) -> None:
        """No packet that comes from now on is carried."""
        _U32.pack_into(self._memory, place * _PLACE_SIZE, 0)

    def shut_all(self) -> None:
        for place in range(FLOWS):
            self.shut(place)

    def free(self, place: int) -> None:
        """Another flow may have it. Not before what was counted is in the books."""
        _U32.pack_into(self._memory, place * _PLACE_SIZE + _IS_TAKEN_AT, 0)
        self._memory[place * _PLACE_SIZE + _KEY_AT : place * _PLACE_SIZE + _KEY_AT + _KEY.size] = bytes(_KEY.size)
        self._taken.discard(place)

    def routes_changed(self, now_ns: int) -> None:
        """All routes are looked up again for the next packet. `now_ns`: of CLOCK_MONOTONIC."""
        _WORD.pack_into(self._memory, _HEAD_AT, now_ns)

    def counts(self, place: int) -> tuple[int, int]:
        """Bytes and packets, of this flow and of those that had the place before."""
        carried: tuple[int, int] = _COUNTS.unpack_from(self._memory, place * _PLACE_SIZE + _COUNTS_AT)
        return carried

    def leftover(self) -> Iterator[tuple[Flow, int, int]]:
        """Of an earlier daemon: flows, serial numbers, and the bytes of each since it began."""
        for base in range(0, FLOWS * _PLACE_SIZE, _PLACE_SIZE):
            if not _U32.unpack_from(self._memory, base + _IS_TAKEN_AT)[0]:
                continue
            _, out, to, _, has_mac, *_ = _WAY.unpack_from(self._memory, base)
            index, mac, source, destination = _KEY.unpack_from(self._memory, base + _KEY_AT)
            (carried,) = _WORD.unpack_from(self._memory, base + _COUNTS_AT)
            (first,) = _WORD.unpack_from(self._memory, base + _FIRST_BYTES_AT)
            (serial,) = _WORD.unpack_from(self._memory, base + _SERIAL_AT)
            came = (index, mac if any(mac) else b"")
            goes = (out, to if has_mac else b"")
            if not 0 <= carried - first < _MAX_COUNT:
                continue
            yield Flow(came, _address(source), _address(destination), goes), serial, carried - first


def _candidates(key: bytes) -> list[int]:
    """The places where the program looks, by the hash that it computes."""
    *words, last = _KEY_WORDS.unpack(key)
    value = 0
    for word in words:
        value = (value ^ word) * _MULTIPLIER & _U64
        value ^= value >> 29
    value = (value ^ last) * _MULTIPLIER & _U64
    return [((value >> 48) + number) % FLOWS for number in range(_TRIES)]


def _packed(address: IPAddress) -> bytes:
    return address.packed if isinstance(address, IPv6Address) else _IPV4 + address.packed


def _address(packed: bytes) -> IPAddress:
    is_v4 = packed.startswith(_IPV4)  # such addresses are never on a wire as IPv6
    return IPv4Address(packed[len(_IPV4) :]) if is_v4 else IPv6Address(packed)
