"""What is fuzzed: functions of octets that raise only where something is wrong.

The same functions serve tools/fuzz (atheris, millions of inputs) and tests/tools/test_fuzz.py (a slice).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from routing.codec import DecodeError, decode, pack
from routing.events import (
    InstallRoute,
    InterfaceDown,
    InterfaceUp,
    LinkKind,
    NeighbourUnreachable,
    OriginateRoute,
    Output,
    ReceivedPacket,
    SendPacket,
    SetFee,
    TimerExpired,
    WithdrawRoute,
)
from routing.rules import METRIC_INFINITY
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import Hello, Ihu, Tlv, Update

SOURCE = IPv6Address("fe80::1")
MTU = 1500
ROUTES_MAX = 20
NEIGHBOURS_MAX = 4
REQUESTS_MAX = 10
WAITS = (0.0, 0.001, 0.03, 0.4, 1.5, 5.0, 20.0, 300.0)
TIMERS_PER_SECOND = 300  # of virtual time; a timer that fires for ever is far above
INTERFACES = ("wire", "radio")
OURS = IPv6Address("fe80::ffff")
OWN_PREFIX = IPv6Network("fd00::1/128")
Target = Callable[[bytes], None]


class WrongError(Exception):
    """A promise that was broken. Whatever else is raised is a defect as well."""


def decode_target(octets: bytes) -> None:
    """A packet, or else the body of one: what was understood can be said again, and means the same."""
    packet = octets if octets.startswith(b"\x2a\x02") else b"\x2a\x02" + len(octets).to_bytes(2, "big") + octets
    try:
        once = decode(packet, source=SOURCE)
    except DecodeError:
        return
    packets = pack(once, mtu=MTU, source=SOURCE)
    if any(len(portion) > MTU - 48 for portion in packets):
        raise WrongError("a packet longer than the MTU")
    again = tuple(tlv for portion in packets for tlv in decode(portion, source=SOURCE))
    if again != once and [_meaning(tlv) for tlv in again] != [_meaning(tlv) for tlv in once]:
        raise WrongError(f"said again it means something else: {once} and {again}")


def _meaning(tlv: Tlv) -> Tlv:
    """The next hop of a retraction means nothing, and may have to be filled in."""
    if isinstance(tlv, Update) and tlv.metric >= METRIC_INFINITY:
        return replace(tlv, next_hop=None)
    return tlv


def speaker_target(octets: bytes) -> None:
    """A script for one speaker: each step is an octet that says what, one of how long, and perhaps TLVs."""
    script = Script(octets)
    patient = Patient()
    while script.is_more:
        patient.take(script)
    patient.check()


class Script:
    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    @property
    def is_more(self) -> bool:
        return self._at < len(self._octets)

    def octet(self) -> int:
        octet = self._octets[self._at] if self.is_more else 0
        self._at += 1
        return octet

    def portion(self) -> bytes:
        length = self.octet()
        portion = self._octets[self._at : self._at + length]
        self._at += length
        return portion


class Patient:
    """A speaker with two interfaces and a neighbour on each, which is introduced properly."""

    def __init__(self) -> None:
        self.now = 1000.0
        config = SpeakerConfig(
            router_id=b"ourselfs",
            max_neighbours_per_interface=NEIGHBOURS_MAX,
            max_routes_per_neighbour=ROUTES_MAX,
            max_requests_per_neighbour=REQUESTS_MAX,
        )
        self.speaker = Speaker(config, rng=random.Random(1), now=self.now)
        self.is_ipv4 = False
        self.feed(OriginateRoute(OWN_PREFIX))
        for name in INTERFACES:
            self.raise_interface(name)
            hello = (Hello(1, 6000), Ihu(96, 60000, OURS))
            self.feed(ReceivedPacket(name, _neighbour(0), hello))

    def take(self, script: Script) -> None:
        what = script.octet()
        name = INTERFACES[what & 1]
        source = _neighbour(what >> 1 & 7)
        self.wait(WAITS[script.octet() & 7])
        match what >> 4:
            case 0:
                self.feed(InterfaceDown(name))
                self.raise_interface(name)
            case 1:
                self.is_ipv4 = not self.is_ipv4
                self.raise_interface(name)
            case 2:
                self.feed(SetFee(script.octet() << 24 | script.octet()))
            case 3:
                self.feed(NeighbourUnreachable(name, source))
            case 4:
                self.feed(WithdrawRoute(OWN_PREFIX))
                self.feed(OriginateRoute(OWN_PREFIX, script.octet() << 8))
            case _:
                self.hear(name, source, script.portion(), is_multicast=bool(what & 0x10))

    def hear(self, name: str, source: IPv6Address, body: bytes, *, is_multicast: bool) -> None:
        try:
            tlvs = decode(b"\x2a\x02" + len(body).to_bytes(2, "big") + body, source=source)
        except DecodeError:
            return
        self.feed(ReceivedPacket(name, source, tlvs, is_multicast))

    def raise_interface(self, name: str) -> None:
        kind = LinkKind.WIRED if name == "wire" else LinkKind.WIRELESS
        address4 = IPv4Address("10.0.0.1") if self.is_ipv4 else None
        self.feed(InterfaceUp(name, OURS, kind=kind, address4=address4))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        budget = 100 + int(seconds * TIMERS_PER_SECOND)
        while (deadline := self.speaker.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.feed(TimerExpired())
            budget -= 1
            if budget < 0:
                raise WrongError("a storm of timers")
        self.now = end

    def feed(self, event: object) -> None:
        for output in self.speaker.handle(event, now=self.now):  # type: ignore[arg-type]
            self.inspect(output)

    def inspect(self, output: Output) -> None:
        if isinstance(output, SendPacket):
            pack(output.tlvs, mtu=MTU)
        elif isinstance(output, InstallRoute) and output.metric >= METRIC_INFINITY:
            raise WrongError(f"an infinite route is installed: {output}")

    def check(self) -> None:
        neighbours = self.speaker.neighbours()
        routes = self.speaker.routes()
        if len(neighbours) > NEIGHBOURS_MAX * len(INTERFACES):
            raise WrongError(f"{len(neighbours)} neighbours")
        if any(neighbour.route_count > ROUTES_MAX for neighbour in neighbours):
            raise WrongError("more routes of a neighbour than allowed")
        if sum(neighbour.route_count for neighbour in neighbours) != len(routes):
            raise WrongError("routes are counted wrongly")
        if any(route.is_selected and route.metric >= METRIC_INFINITY for route in routes):
            raise WrongError("an infinite route is selected")


def _neighbour(number: int) -> IPv6Address:
    return IPv6Address(0xFE80 << 112 | 0x100 + number)


TARGETS: dict[str, Target] = {"decode": decode_target, "speaker": speaker_target}
