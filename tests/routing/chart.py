"""Message charts: one speaker, and what is said to it and by it, line by line.

`hear` and `wait` run the speaker; what it does is collected until `expect` or one of the readers takes it. A chart that
ends with packets or route changes that nobody has looked at can say so with `silent`.
"""

from __future__ import annotations

import random
from ipaddress import IPv6Address, IPv6Network
from typing import TypeVar

from routing.events import (
    Input,
    InstallRoute,
    InterfaceUp,
    LinkKind,
    Output,
    ReceivedPacket,
    RouteChange,
    SendPacket,
    TimerExpired,
)
from routing.speaker import Speaker, SpeakerConfig
from routing.tlv import Ack, AckRequest, Hello, Ihu, Tlv, Update

T = TypeVar("T")
OURS = b"ourselfs"
OUR_ADDRESS = IPv6Address("fe80::1")
DESTINATION = IPv6Network("fd99::/64")
SOURCE_ID = b"faraway1"


def peer_address(peer: str) -> IPv6Address:
    return IPv6Address(0xFE80 << 112 | 0x1_0000 | int.from_bytes(peer.encode(), "big"))


class Chart:
    def __init__(self, *, seed: int = 1, **config: object) -> None:
        settings = SpeakerConfig(router_id=OURS, **config)  # type: ignore[arg-type]
        self.now = 1000.0
        self.speaker = Speaker(settings, rng=random.Random(seed), now=self.now)
        self.outputs: list[Output] = []
        self.hello_seqnos: dict[str, int] = {}
        self.interface_of: dict[str, str] = {}

    def feed(self, event: Input) -> None:
        outputs = self.speaker.handle(event, now=self.now)
        kinds = [isinstance(output, SendPacket) for output in outputs]
        assert kinds == sorted(kinds), "packets come after everything else"
        self.outputs += outputs

    def up(self, interface: str, *, kind: LinkKind = LinkKind.WIRED, cost: int = 96) -> None:
        self.feed(InterfaceUp(interface, OUR_ADDRESS, kind=kind, cost=cost))

    def hear(self, peer: str, *tlvs: Tlv) -> None:
        interface = self.interface_of.get(peer, peer)
        self.feed(ReceivedPacket(interface, peer_address(peer), tlvs))

    def hello(self, peer: str, *, txcost: int = 96, interval_cs: int = 400) -> None:
        seqno = self.hello_seqnos[peer] = self.hello_seqnos.get(peer, 99) + 1
        self.hear(peer, Hello(seqno, interval_cs), Ihu(txcost, 60000, OUR_ADDRESS))

    def meet(self, *peers: str, kind: LinkKind = LinkKind.WIRED) -> None:
        """An interface for each peer, whose Hellos last, and who need not be greeted any more."""
        for peer in peers:
            self.up(peer, kind=kind)
            self.hello(peer, interval_cs=60000)
        self.wait(2.0)
        self.outputs.clear()

    def wait(self, seconds: float, *, answering: str | None = None) -> None:
        """`answering`: the peer that acknowledges at once what it is asked meanwhile."""
        end = self.now + seconds
        while True:
            deadline = self.speaker.next_deadline()
            if deadline is None or deadline > end:
                break
            assert deadline >= self.now, "a deadline in the past"
            self.now = deadline
            self.feed(TimerExpired())
            after = self.speaker.next_deadline()
            assert after is None or after > self.now, "a timer that fires for ever"
            self._answer(answering)
        self.now = end

    def _answer(self, peer: str | None) -> None:
        asked = [output for output in self.outputs if isinstance(output, SendPacket)]
        for packet in asked:
            for tlv in packet.tlvs:
                if isinstance(tlv, AckRequest) and peer is not None and packet.destination == peer_address(peer):
                    self.outputs.remove(packet)
                    self.hear(peer, Ack(tlv.opaque))

    def take(self, kind: type[T]) -> list[T]:
        """All outputs of a kind since the last look at them."""
        taken: list[T] = [output for output in self.outputs if isinstance(output, kind)]
        self.outputs = [output for output in self.outputs if not isinstance(output, kind)]
        return taken

    def sent(self, kind: type[T], to: str | None = None) -> list[T]:
        """All TLVs of a kind that were sent (on the interface `to`) since the last look at packets; others are lost."""
        return [
            tlv
            for packet in self.take(SendPacket)
            if to is None or packet.interface == to
            for tlv in packet.tlvs
            if isinstance(tlv, kind)
        ]

    def route_changes(self) -> list[RouteChange]:
        return [o for o in self.outputs if isinstance(o, RouteChange)]


def update(
    metric: int,
    *,
    seqno: int = 1,
    price: int | None = None,
    prefix: IPv6Network = DESTINATION,
    router_id: bytes = SOURCE_ID,
    interval_cs: int = 1600,
) -> Update:
    return Update(prefix, metric, seqno, interval_cs, router_id, None, price)


def installed(peer: str, metric: int, price: int = 0, prefix: IPv6Network = DESTINATION) -> InstallRoute:
    return InstallRoute(prefix, peer, peer_address(peer), metric, price)
