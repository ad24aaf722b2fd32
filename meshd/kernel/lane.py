"""The fast lane: flows that have shown themselves in the meter, and pay, are carried by a BPF program before nftables.

A flow gets there once the meter has seen it come from a neighbour and go to another, with no sign of address
translation in between. From then on the program (bpf/lane.c) counts what it carries of it, and the counts come out
of `parts` as those of the meter do. What it does not carry goes the long way, and is counted there. Nothing here is
needed: where the kernel, or the operator, does not allow it, all goes the long way.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from meshd.kernel.bpf import syscalls
from meshd.kernel.bpf.places import Flow, Places
from meshd.kernel.foreign import foreign_hook, is_foreign_news, old_hook
from meshd.kernel.gate import Port
from meshd.kernel.links import ARPHRD_NONE, Link, Links
from meshd.kernel.netlink import NetlinkError, NetlinkSocket
from meshd.kernel.traffic_control import TrafficControl
from meshd.logs import Logger

_PROGRAMS = Path(__file__).with_name("bpf") / "lane.json"
_PROGRAM_NAMES = ("meshd_link", "meshd_tunnel")
_UPDATE_PRIORITY = Path("/proc/sys/net/ipv4/ip_forward_update_priority")
_LICENCE = "Dual MIT/GPL"  # the kernel lends the look-up of routes to such programs only
_LOAD_IMMEDIATE_MAP = 0x10  # in the second byte of an instruction: the source is a map's file descriptor
_IDLE_TIMEOUT = 60.0
_DRAIN_PERIOD = 0.1  # much more than a packet spends in the program
_KEEP_PERIOD = 20.0  # after the last reading of a flow: several ticks, until the books have what was read
_OLD_INTERVAL = 1.0  # between two looks for rules of iptables, whose changes the kernel does not tell
_CHAINS_INTERVAL = 60.0  # between two looks at the chains of nftables, whose changes it tells
_FLOWS_AT_ONCE = 256  # more would hold up everybody else

log = Logger("meshd.kernel")


@dataclass(slots=True)
class Carried:
    """New since the last reading, of a flow in the lane. `bytes` at layer 3, when it came in as when it went out.
    `serial`: a number that no other flow has, at any time."""

    flow: Flow
    came: Port
    goes: Port
    serial: int
    bytes: int
    packets: int
    total_bytes: int


@dataclass(slots=True)
class _Entry:
    flow: Flow
    came: Port
    goes: Port
    serial: int
    first_bytes: int
    bytes: int
    packets: int
    busy_at: float
    shut_at: float | None = None  # since when no packet of it is carried
    read_at: float | None = None  # when its last bytes were read


@dataclass(frozen=True, slots=True)
class _Interface:
    name: str
    mac: bytes


class Lane:
    """`problem`: why there is none, in words; empty: there is. `outside`: by interface, why it carries nothing from and
    to there. `flows`, `bytes`: in it now, carried since the start. `rules`: subscribed to the news of
    nftables (`foreign.EVENTS`)."""

    def __init__(self, rtnetlink: NetlinkSocket, netfilter: NetlinkSocket, rules: NetlinkSocket) -> None:
        self.problem = "not started"
        self.bytes = 0
        self._netfilter = netfilter
        self._rules = rules
        self._control = TrafficControl(rtnetlink)
        self._places: Places | None = None
        self._programs: dict[str, int] = {}
        self._interfaces: dict[int, _Interface] = {}
        self._outside: dict[int, tuple[str, str]] = {}  # interfaces, and why
        self._entries: dict[int, _Entry] = {}  # by place
        self._place_by_key: dict[bytes, int] = {}  # the newest of each
        self._shut: set[Port] = set()
        self._old_at = self._chains_at = -math.inf  # when to look again
        self._chains_problem = ""
        self._is_blocked = False

    @property
    def flows(self) -> int:
        return sum(entry.shut_at is None for entry in self._entries.values())

    def serials(self) -> set[int]:
        """Of the flows that have a place."""
        return {entry.serial for entry in self._entries.values()}

    @property
    def outside(self) -> dict[str, str]:
        return dict(self._outside.values())

    def open(self) -> None:
        """Bring the programs into the kernel. If that is not possible, `problem` says why, and nothing else happens."""
        try:
            self._places = Places.create(keeps_priority=_keeps_priority())
            for name, program in json.loads(_PROGRAMS.read_text()).items():
                self._programs[name] = _load(program, _program_name(name), self._places.fd)
                probe = Places.of_program(self._programs[name])  # the next start after a crash must find the counts
                if probe is not None:
                    probe.close()
        except OSError as error:
            self._drop_programs()
            self.problem = f"the kernel has no BPF for us: {error.strerror}"
        else:
            self.problem = ""

    async def close(self) -> None:
        """Takes the programs out of the kernel. What was counted is to be read before."""
        indices = list(self._interfaces)
        for index in indices:
            self.leave(index)
        if indices:
            await trio.sleep(_DRAIN_PERIOD)  # what is counted already still goes out
        for index in indices:
            await self._control.detach(index)
        self._drop_programs()
        self._outside.clear()
        self._entries.clear()
        self._place_by_key.clear()
        self.problem = "not started"

    def _drop_programs(self) -> None:
        for fd in self._programs.values():
            os.close(fd)
        self._programs.clear()
        if self._places is not None:
            self._places.close()
            self._places = None

    async def attach(self, link: Link) -> None:
        """Packets that come in there, if of a flow in the lane, are carried by it. If not, `outside` says why."""
        if self._places is None or link.index in self._interfaces:
            return
        for old in [index for index, known in self._interfaces.items() if known.name == link.name]:
            self.leave(old)  # it was made anew
        self._outside = {index: entry for index, entry in self._outside.items() if entry[0] != link.name}
        program = self._programs["from_tunnel" if link.hardware == ARPHRD_NONE else "from_link"]
        try:
            reason = await self._control.attach(link.index, program)
        except NetlinkError as error:
            reason = f"tc refuses it: {error}"
        if reason:
            self._outside[link.index] = link.name, reason
        else:
            self._interfaces[link.index] = _Interface(link.name, b"" if link.hardware == ARPHRD_NONE else link.mac)

    def leave(self, index: int) -> None:
        """Carry nothing more from or to this interface: it is gone, or about to be, and takes the program with it."""
        self._outside.pop(index, None)
        if self._interfaces.pop(index, None) is not None:
            self._shut_where(lambda entry: index in (entry.flow.came[0], entry.flow.goes[0]))

    def shut(self, port: Port) -> None:
        """What this neighbour hands us to carry on goes the long way, from the next packet on."""
        self._shut.add(port)
        self._shut_where(lambda entry: entry.came == port)

    def allow(self, port: Port) -> None:
        self._shut.discard(port)

    def routes_changed(self) -> None:
        """Look up the way of each flow again, for its next packet."""
        if self._places is not None:
            self._places.routes_changed(time.monotonic_ns())

    def enter(self, flow: Flow) -> None:
        """The meter sees this flow come and go, by the long way. If it is in the lane already, that is a packet in
        a second, or it now takes another way."""
        came, goes = self._interfaces.get(flow.came[0]), self._interfaces.get(flow.goes[0])
        if self._places is None or self._is_blocked or came is None or goes is None:
            return
        from_port = (came.name, flow.came[1])
        if from_port in self._shut:
            return
        known = self._place_by_key.get(flow.key)
        if known is not None and self._entries[known].flow.goes == flow.goes:
            self._open_again(self._places, known)
            return
        if known is not None:
            self._shut_entry(known)
        place = self._places.vacant(flow)
        if place is not None:
            size, packets = self._places.counts(place)
            serial, goes_to = secrets.randbits(63), (goes.name, flow.goes[1])
            now = trio.current_time()
            self._entries[place] = _Entry(flow, from_port, goes_to, serial, size, size, packets, busy_at=now)
            self._place_by_key[flow.key] = place
            self._places.open_flow(place, flow, goes.mac, serial)

    def _open_again(self, places: Places, place: int) -> None:
        entry = self._entries[place]
        if entry.shut_at is not None:
            entry.shut_at = entry.read_at = None
            entry.busy_at = trio.current_time()
            places.open_again(place)

    def parts(self) -> Iterator[list[Carried]]:
        """What is new since the last reading, some flows at a time. What was taken is not told again."""
        now = trio.current_time()
        entries = list(self._entries.items())
        for first in range(0, len(entries), _FLOWS_AT_ONCE):
            found: list[Carried] = []
            for place, entry in entries[first : first + _FLOWS_AT_ONCE]:
                self._read_entry(place, entry, found, now=now)
            yield found

    def _read_entry(self, place: int, entry: _Entry, found: list[Carried], *, now: float) -> None:
        if self._places is None or place not in self._entries:
            return
        if entry.read_at is not None:
            if now >= entry.read_at + _KEEP_PERIOD:
                self._places.free(place)
                del self._entries[place]
                if self._place_by_key.get(entry.flow.key) == place:
                    del self._place_by_key[entry.flow.key]
            return
        is_last = entry.shut_at is not None and now >= entry.shut_at + _DRAIN_PERIOD
        size, packets = self._places.counts(place)
        if size != entry.bytes:
            new = size - entry.bytes, packets - entry.packets
            entry.bytes, entry.packets, entry.busy_at = size, packets, now
            self.bytes += new[0]
            total = size - entry.first_bytes
            found.append(Carried(entry.flow, entry.came, entry.goes, entry.serial, *new, total_bytes=total))
        elif now >= entry.busy_at + _IDLE_TIMEOUT and entry.shut_at is None:
            self._shut_entry(place)
        if is_last:
            entry.read_at = now

    async def make_way(self) -> bool:
        """Others' rules for what is carried hold for all of it: then nothing takes the lane; nor where it cannot be
        seen whether there are any. To be called often: while nobody changes rules it takes some microseconds.

        Returns whether any rules have changed since the last call, ours included.
        """
        news = self._rules.waiting_events()
        has_changed = news is None or bool(news)
        now = trio.current_time()
        is_due = is_foreign_news(news) or now >= self._chains_at
        if self._places is None or not (is_due or now >= self._old_at):
            return has_changed
        if is_due:
            await self._look_at_chains(now=now)
        problem = self._chains_problem or _problem_of(old_hook())
        self._old_at = now + _OLD_INTERVAL
        self.problem, self._is_blocked = problem, bool(problem)
        if self._is_blocked:
            self._shut_where(lambda _: True)
        return has_changed

    async def _look_at_chains(self, *, now: float) -> None:
        self._chains_at = now  # if it is cancelled, the next call looks
        try:
            self._chains_problem = _problem_of(await foreign_hook(self._netfilter))
            self._chains_at = now + _CHAINS_INTERVAL
        except NetlinkError as error:
            problem = f"whether others have rules for what is carried cannot be seen: {error}"
            if problem != self._chains_problem:
                log.warning("nothing takes the fast lane", reason=problem)
            self._chains_problem, self._chains_at = problem, now + _OLD_INTERVAL

    def _shut_where(self, is_meant: Callable[[_Entry], bool]) -> None:
        for place in [place for place, entry in self._entries.items() if is_meant(entry)]:
            self._shut_entry(place)

    def _shut_entry(self, place: int) -> None:
        entry = self._entries[place]
        if self._places is not None and entry.shut_at is None:
            self._places.shut(place)
            entry.shut_at = trio.current_time()

    async def leftover(self, links: Links) -> list[tuple[Flow, int, int]]:
        """What a killed daemon has left carries nothing from now on. Its flows, their serial numbers, and the bytes of
        each; all of it stays in the kernel until `clear`, so that whoever is killed meanwhile finds it again."""
        programs: dict[int, int] = {}
        with ExitStack() as stack:
            try:
                for number in {number for numbers in (await self._ours(links)).values() for number in numbers}:
                    programs[number] = syscalls.program_by_id(number)
                    stack.callback(os.close, programs[number])
                tables = list(_tables(programs.values(), stack))
            except OSError as error:
                advice = "; it had more rights: `meshd clean` with those forgets it"
                text = f"what a daemon before us has carried: {error.strerror}"
                raise NetlinkError(error.errno or 0, text + (advice if error.errno == errno.EPERM else "")) from error
            for places in tables:
                places.shut_all()
            if tables:
                await trio.sleep(_DRAIN_PERIOD)
            return [flow for places in tables for flow in places.leftover()]

    async def clear(self, links: Links) -> None:
        """Takes what a killed daemon left out of the kernel, with its counts. After `leftover`."""
        for index in await self._ours(links):
            await self._control.detach(index)

    async def _ours(self, links: Links) -> dict[int, set[int]]:
        """By interface, the numbers of the programs there that we, or a daemon before us, have put there."""
        found: dict[int, set[int]] = {}
        for link in (await links.all()).values():
            filters = await self._control.filters(link.index)
            numbers = {each.program for each in filters if each.program is not None}
            if numbers:
                found[link.index] = numbers
        return found


def _problem_of(hook: str | None) -> str:
    return "" if hook is None else f"others have rules for what is carried: {hook}"


def _tables(programs: Iterable[int], stack: ExitStack) -> Iterator[Places]:
    """Of each map once, whichever programs use it; open until the stack is closed. Raises OSError."""
    seen: set[int] = set()
    for program in programs:
        numbers = set(syscalls.map_ids(program))
        if seen & numbers:
            continue
        seen |= numbers
        places = Places.of_program(program) if syscalls.is_program(program, _PROGRAM_NAMES) else None
        if places is None:
            log.warning("what a daemon before us has carried is not in a table as ours are: it is not billed")
        else:
            stack.callback(places.close)
            yield places


def _keeps_priority() -> bool:
    try:
        return _UPDATE_PRIORITY.read_text().strip() == "0"
    except OSError:
        return False


def _program_name(name: str) -> str:
    return name.replace("from", "meshd")


def _load(program: dict[str, list[object]], name: str, map_fd: int) -> int:
    code = bytearray.fromhex("".join(map(str, program["code"])))
    for number in program["places"]:
        at = int(str(number)) * 8
        code[at + 1] |= _LOAD_IMMEDIATE_MAP
        struct.pack_into("=i", code, at + 4, map_fd)
    return syscalls.load_program(bytes(code), name, licence=_LICENCE)
