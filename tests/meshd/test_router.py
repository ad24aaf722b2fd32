"""The router carries out what the speaker says: the kernel before the neighbours, and whatever fails, it goes on."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from typing import Any, cast

import pytest
import trio

from meshd import router as router_module
from meshd.babel_socket import BABEL_GROUP as GROUP
from meshd.babel_socket import Datagram
from meshd.billing import Billing
from meshd.config import InterfaceConfig
from meshd.following import RETRY_INTERVAL
from meshd.kernel import Link
from meshd.router import FAREWELL_TIMEOUT, REPORT_INTERVAL, Router
from routing import events
from routing.authentication import Authenticator, MacAlgorithm, MacKey
from routing.codec import pack
from routing.speaker import NeighbourView, Speaker
from routing.tlv import Hello, RouteRequest, Tlv, Update, WildcardRetraction
from tests.meshd.fakes import FakeKernel, run

OURS, THEIRS = IPv6Address("fe80::1"), IPv6Address("fe80::2")
NET, OTHER_NET = IPv6Network("fd00:1::/64"), IPv6Network("fd00:2::/64")
KEY = MacKey(MacAlgorithm.HMAC_SHA256, bytes(range(32)))
PACKET = events.SendPacket("eth0", None, (WildcardRetraction(),))
INSTALL = events.InstallRoute(NET, "eth0", THEIRS, 96, 5)
UPDATE = Update(NET, 96, 1, 1600, bytes(8), THEIRS)


class ScriptedSpeaker:
    def __init__(self) -> None:
        self.given: list[events.Input] = []
        self.answers: dict[type, list[events.Output]] = {}
        self.refused = 0
        self.deadline: float | None = None
        self.patience: float | None = None  # after a packet

    def handle(self, event: events.Input, *, now: float) -> list[events.Output]:
        self.given.append(event)
        if isinstance(event, events.TimerExpired):
            self.deadline = None
        elif isinstance(event, events.ReceivedPacket) and self.patience is not None:
            self.deadline = now + self.patience
        return self.answers.get(type(event), [])

    def next_deadline(self) -> float | None:
        return self.deadline

    def neighbours(self) -> list[NeighbourView]:
        return [NeighbourView("eth0", THEIRS, 96, 96, 96, 0xFFFF, 2, refused_count=self.refused)]


class FakeSocket:
    def __init__(self, journal: list[Any]) -> None:
        self.journal = journal
        self.port = 6696
        self.joined: list[int] = []
        self.sent: list[tuple[IPv6Address | None, bytes]] = []
        self.stuck = False
        self.failing = False
        self.closed = False
        self.arrive, self._arrived = trio.open_memory_channel[Datagram](100)

    async def bind(self) -> None:
        await trio.lowlevel.checkpoint()

    def join(self, index: int) -> None:
        self.joined.append(index)

    def leave(self, index: int) -> None:
        self.joined.remove(index)

    async def receive(self) -> Datagram:
        return await self._arrived.receive()

    async def send(self, index: int, data: bytes, *, source: IPv6Address, destination: IPv6Address | None) -> None:
        await (trio.sleep_forever() if self.stuck else trio.lowlevel.checkpoint())
        if self.failing:
            raise OSError("network is down")
        self.journal.append(("packet", index))
        self.sent.append((destination, data))

    def close(self) -> None:
        self.closed = True


class Node:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = FakeKernel()
        self.journal = self.kernel.journal
        self.speaker = ScriptedSpeaker()
        self.socket = FakeSocket(self.journal)
        monkeypatch.setattr(router_module, "BabelSocket", lambda _port: self.socket)
        self.told: list[tuple[Any, ...]] = []
        self.router = Router(
            cast("Speaker", self.speaker),
            self.kernel.as_kernel(),
            Billing(price_notice=10.0),
            [InterfaceConfig(name="eth0"), InterfaceConfig(name="eth1"), InterfaceConfig(name="mac0", mac_keys=(KEY,))],
            port=6696,
            on_neighbour=lambda *what: self.told.append(what),
            on_interface=lambda *what: self.told.append(what),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Router]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.router.run)
            yield self.router
            nursery.cancel_scope.cancel()

    async def link(
        self, *, index: int = 3, name: str = "eth0", address: IPv6Address | None = OURS, mtu: int = 1500
    ) -> None:
        self.kernel.links.change(Link(index, name, b"\x02" + bytes(5), mtu, address is not None, address))
        await trio.sleep(0.01)

    async def hear(self, *tlvs: Tlv) -> None:
        (data,) = pack(tlvs, mtu=1500)
        self.socket.arrive.send_nowait(Datagram(3, THEIRS, OURS, data))
        await trio.sleep(0.01)

    async def trigger(self, *outputs: events.Output) -> None:
        """Have the speaker say this."""
        self.speaker.answers[events.SetFee] = list(outputs)
        await self.router.put(events.SetFee(1))
        await trio.sleep(0.5)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def test_routes_are_in_the_kernel_before_the_packet_that_announces_them(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            await node.trigger(
                INSTALL,
                events.RemoveRoute(OTHER_NET),
                events.RemoveRoute(NET),
                INSTALL,
                PACKET,
                events.BlockRoute(NET),
                PACKET,
                events.RemoveRoute(NET),
            )
            assert node.journal == [
                ("remove", OTHER_NET),
                ("install", NET),
                ("packet", 3),
                ("block", NET),
                ("packet", 3),
                ("remove", NET),
            ]

    run(scenario)


def test_source_specific_routes_are_apart_from_plain_ones_and_own_defaults_are_told(node: Node) -> None:
    async def scenario() -> None:
        source, default = IPv6Network("fd00:7::/64"), IPv6Network("::/0")
        async with node.running() as router:
            await node.trigger(
                INSTALL,
                replace(INSTALL, source_prefix=source),
                events.BlockRoute(OTHER_NET, source),
                events.RemoveRoute(NET, source),
                events.RemoveRoute(OTHER_NET),
                events.LearnedPrice("eth0", THEIRS, NET, 7, source),
                events.AnnouncedPrice(NET, 9, source),
            )
            assert sorted(node.journal) == [
                ("block", OTHER_NET, source),
                ("install", NET),
                ("remove", NET, source),
                ("remove", OTHER_NET),
            ]
            now, there, sender = trio.current_time(), NET.network_address, source.network_address
            assert router._billing.highest_price_heard(("eth0", THEIRS), there, source=sender, now=now) == 7
            assert router._billing.price_asked(there, source=sender, now=now) == 9
            assert router._billing.price_asked(there, source=there, now=now) == 0
            node.journal.clear()
            await router.originate(default, source)
            await router.originate(default)
            await router.originate(NET, source)
            await router.put(events.WithdrawRoute(default, source))
            await trio.sleep(0.1)
            assert node.journal == [("keep default", source), ("leave default", source)]
            assert events.OriginateRoute(default, source_prefix=source) in node.speaker.given

    run(scenario)


def test_a_kernel_that_refuses_and_an_interface_that_fails_end_nothing(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            node.kernel.routes.refusing = True
            node.socket.failing = True
            await node.trigger(INSTALL, events.RemoveRoute(OTHER_NET), PACKET, events.BlockRoute(NET))
            node.kernel.routes.refusing = node.socket.failing = False
            await node.trigger(INSTALL, PACKET)
            assert node.journal == [("install", NET), ("packet", 3)]
            assert node.router.counters["packets not sent"] == 1

    run(scenario)


def test_another_cost_is_told_the_speaker_at_once_and_kept_for_when_the_interface_comes(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            await node.link()
            before = len(node.speaker.given)
            for name, cost in (("eth0", 96), ("eth0", 300), ("eth1", 400)):
                await router.set_cost(name, cost)
            await node.link(name="eth1", index=4)
            told = node.speaker.given[before:]
            ups = [(up.interface, up.cost) for up in told if isinstance(up, events.InterfaceUp)]
            assert ups == [("eth0", 300), ("eth1", 400)]
            with pytest.raises(KeyError):
                await router.set_cost("eth9", 1)

    run(scenario)


def test_who_floods_us_is_reported_once_in_a_while_as_long_as_it_does(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            reports = []
            await trio.sleep(REPORT_INTERVAL / 2)
            for refused in (0, 500, 500, 900):
                node.speaker.refused = refused
                await trio.sleep(REPORT_INTERVAL)
                reports.append(router.counters["floods reported"])
            assert reports == [0, 1, 1, 2]

    run(scenario)


def test_a_congested_interface_does_not_hold_up_the_others(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            node.socket.stuck = True
            began = trio.current_time()
            await node.trigger(PACKET, INSTALL)
            assert ("install", NET) in node.journal
            assert trio.current_time() - began < 1.0
            assert node.router.counters["packets not sent"] == 1

    run(scenario)


def test_a_hello_may_make_the_next_deadline_an_earlier_one(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            node.speaker.patience = 0.25
            await node.hear(Hello(1, 400))
            assert isinstance(node.speaker.given[-1], events.ReceivedPacket)
            await trio.sleep(0.2)
            assert events.TimerExpired() not in node.speaker.given
            await trio.sleep(0.1)
            assert node.speaker.given[-1] == events.TimerExpired()

    run(scenario)


@pytest.mark.parametrize("tlv", [Hello(1, 400), UPDATE])
def test_a_packet_waits_until_what_followed_from_others_is_done(node: Node, tlv: Tlv) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            node.socket.stuck = True
            node.speaker.answers[events.SetFee] = [PACKET, INSTALL]
            await node.router.put(events.SetFee(1))
            await trio.sleep(0.05)
            await node.hear(tlv)
            assert node.speaker.given[-1] == events.SetFee(1)
            await trio.sleep(0.1)
            assert node.journal == [("install", NET)]
            assert isinstance(node.speaker.given[-1], events.ReceivedPacket)

    run(scenario)


@pytest.mark.parametrize("tlv", [WildcardRetraction(), RouteRequest(None), UPDATE])
def test_packets_are_read_while_what_follows_from_one_is_done(node: Node, tlv: Tlv) -> None:
    """Else the socket's buffer overflows, while all routes of a neighbour leave the kernel, or enter it."""

    async def scenario() -> None:
        async with node.running():
            await node.link()
            node.socket.stuck = True
            node.speaker.answers[events.ReceivedPacket] = [PACKET]
            for _ in range(3):
                await node.hear(tlv)
            assert node.router.counters["packets received"] == 3
            assert len([event for event in node.speaker.given if isinstance(event, events.ReceivedPacket)]) == 1

    run(scenario)


def test_interfaces_come_change_and_go(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            await node.link(address=None)
            assert node.speaker.given == []
            assert node.kernel.managed == ["eth0"]  # ready for when it gets a carrier
            await node.link()
            await node.link(name="other", index=9)
            await node.link(mtu=1400)
            assert router.attached["eth0"].mtu == 1400
            assert node.told == [("eth0", 3, OURS)]
            await node.link(index=4)  # deleted and made anew
            assert (node.kernel.managed, node.socket.joined) == (["eth0", "eth0"], [4])
            await node.link(index=4, address=None)
            await node.link(index=4)
            assert len(node.kernel.managed) == 2
            kinds = [type(event) for event in node.speaker.given]
            up, down = events.InterfaceUp, events.InterfaceDown
            assert kinds == [up, up, down, up, down, up]  # the second tells of the new MTU
            assert [event.mtu for event in node.speaker.given[:2]] == [1500, 1400]
            assert node.told[1:] == [
                ("eth0", 3, None),
                ("eth0", 4, OURS),
                ("eth0", 4, None),
                ("eth0", 4, OURS),
            ]

    run(scenario)


def test_whom_the_kernel_cannot_reach_is_told_to_the_speaker(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            for index in (3, 8):
                await node.kernel.links.fail.send((index, THEIRS))
            await trio.sleep(0.1)
            assert node.speaker.given[1:] == [events.NeighbourUnreachable("eth0", THEIRS)]

    run(scenario)


def test_an_interface_that_could_not_be_metered_is_not_used_and_tried_again(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            node.kernel.manage_failures = 2
            await node.link()
            assert not router.attached and not node.speaker.given
            await trio.sleep(3 * RETRY_INTERVAL)
            assert "eth0" in router.attached
            assert [type(event) for event in node.speaker.given] == [events.InterfaceUp]

    run(scenario)


def test_nonsense_is_counted_and_what_comes_from_elsewhere_dropped(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            await node.link()
            for index, data in ((3, b"junk"), (8, b"junk"), (3, bytes((42, 2, 0, 0)))):
                await node.socket.arrive.send(Datagram(index, THEIRS, GROUP, data))
            await trio.sleep(0.1)
            assert (router.counters["packets received"], router.counters["packets malformed"]) == (2, 1)
            assert node.speaker.given[1:] == [events.ReceivedPacket("eth0", THEIRS, (), True)]

    run(scenario)


def test_where_there_are_keys_only_what_is_authenticated_gets_in(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            await node.link(name="mac0", index=5)
            them = Authenticator((KEY,), address=THEIRS, port=6696, octets=random.Random(1).randbytes)
            (hello,) = pack([Hello(7, 400)], mtu=1500)

            async def hear(data: bytes, *, to: IPv6Address = GROUP) -> None:
                await node.socket.arrive.send(Datagram(5, THEIRS, to, data))
                await trio.sleep(0.5)

            await hear(hello)
            await hear(them.protect(hello, destination=GROUP))
            assert node.speaker.given[1:] == []
            ((destination, challenge),) = node.socket.sent
            assert destination == THEIRS
            answer = them.check(challenge, source=OURS, destination=THEIRS, now=0.0).replies[0]
            await hear(answer, to=OURS)
            await hear(packet := them.protect(hello, destination=GROUP))
            await hear(packet)
            received = [events.ReceivedPacket("mac0", THEIRS, tlvs, bool(tlvs)) for tlvs in ((), (Hello(7, 400),))]
            assert node.speaker.given[1:] == received
            dropped = {"without MAC": 1, "of senders not yet proved": 1, "replayed": 1}
            assert dropped.items() <= {name[8:]: count for name, count in router.counters.items()}.items()
            # What we say ourselves is taken by them: after a challenge of theirs, which it answers.
            await node.trigger(replace(PACKET, interface="mac0"))
            said = node.socket.sent[-1][1]
            asked = them.check(said, source=OURS, destination=GROUP, now=1.0)
            await hear(asked.replies[0], to=OURS)
            assert them.check(node.socket.sent[-1][1], source=OURS, destination=THEIRS, now=2.0).drop is None
            # The operator takes everybody, then only who has another key, then everybody without any key.
            await router.set_keys("mac0", (KEY,), verify=False)
            await hear(hello)
            assert len(node.speaker.given) == 6 and router.counters["packets taken unauthenticated"] == 1
            await router.set_keys("mac0", (MacKey(MacAlgorithm.BLAKE2S, b"other"),), verify=True)
            await hear(them.protect(hello, destination=GROUP))
            assert len(node.speaker.given) == 6 and router.counters["packets with wrong MAC"] == 1
            await router.set_keys("mac0", (), verify=True)
            await hear(hello)
            assert len(node.speaker.given) == 7

    run(scenario)


def test_prices_and_neighbours_are_passed_on(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            await node.trigger(
                events.NeighbourUp("eth0", THEIRS),
                events.LearnedPrice("eth0", THEIRS, NET, 7),
                events.AnnouncedPrice(NET, 9),
                events.NeighbourDown("eth0", THEIRS),
            )
            there = NET.network_address
            now = trio.current_time()
            assert router._billing.highest_price_heard(("eth0", THEIRS), there, now=now) == 7
            assert router._billing.price_asked(there, now=now) == 9
            assert node.told == [("eth0", THEIRS, True), ("eth0", THEIRS, False)]

    run(scenario)


def test_neighbours_are_told_at_the_end_and_routes_stay_for_the_kernels_cleaning(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            node.speaker.answers[events.Shutdown] = [events.RemoveRoute(NET), PACKET]
        assert node.speaker.given[-1] == events.Shutdown()
        assert node.journal == [("packet", 3)]
        assert node.socket.closed

    run(scenario)


def test_the_end_comes_even_if_nobody_can_be_told(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            node.socket.stuck = True
            node.speaker.answers[events.Shutdown] = [PACKET] * 100
            began = trio.current_time()
        assert trio.current_time() - began <= FAREWELL_TIMEOUT
        assert node.socket.closed

    run(scenario)


def test_in_a_tunnel_nobody_is_heard_but_whom_its_key_belongs_to(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            await router.add_interface(InterfaceConfig(name="mw1"), THEIRS)
            await node.link(name="mw1")
            for source in (IPv6Address("fe80::bad"), THEIRS, OURS):
                await node.socket.arrive.send(Datagram(3, source, GROUP, bytes((42, 2, 0, 0))))
            await trio.sleep(0.1)
            assert router.counters["packets of a wrong neighbour"] == 2
            assert node.speaker.given[1:] == [events.ReceivedPacket("mw1", THEIRS, (), True)]

    run(scenario)


def test_a_tunnel_that_is_taken_away_while_its_news_waits_ends_nothing(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as router:
            await router.add_interface(InterfaceConfig(name="mw1"), THEIRS)
            await node.link(name="mw1")
            async with router._links_lock:  # as while it is being detached
                node.kernel.links.change(Link(3, "mw1", b"", 1500, True, IPv6Address("fe80::3")))
                await trio.sleep(0.1)
                router._configured.pop("mw1")
            await trio.sleep(0.1)
            assert router.attached["mw1"].address == OURS  # not looked at any more
            await node.link()
            assert "eth0" in router.attached

    run(scenario)


def test_what_the_kernel_refuses_as_a_whole_ends_nothing(node: Node) -> None:
    async def scenario() -> None:
        node.kernel.links.failures = 2  # for the watch, then for the look at those that are not there
        async with node.running() as router:
            await trio.sleep(2 * RETRY_INTERVAL + 0.1)
            await node.link()
            assert "eth0" in router.attached
            node.kernel.routes.install_failures = 1
            await node.trigger(INSTALL, PACKET)
            assert node.journal == [("packet", 3)]

    run(scenario)
