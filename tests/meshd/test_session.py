"""Sessions between managers over in-memory links, in virtual time; and over real TCP on ::1."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv6Address

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

from meshd import session
from meshd.identity import Identity
from meshd.session import (
    Limits,
    PeerConnected,
    PeerDisconnected,
    PeerMessage,
    SessionError,
    SessionManager,
)
from meshd.tcp import Connection, Interface, LinkLocalTcp, TcpConnection, TcpListener
from payments.noise import HandshakeState, Transport

LOW, HIGH = IPv6Address("fe80::1"), IPv6Address("fe80::2")
LOW_2, HIGH_2 = IPv6Address("fe80::11"), IPv6Address("fe80::12")
STRANGER = IPv6Address("fe80::0:9")  # sorts between LOW and LOW_2, below HIGH_2
ALICE, BOB, MALLORY = Identity(b"a" * 32), Identity(b"b" * 32), Identity(b"m" * 32)


class MemoryStream(Connection):
    """A stream that knows where it comes from."""

    def __init__(self, stream: trio.abc.Stream, source: tuple[int, IPv6Address] | None = None) -> None:
        self._stream = stream
        self.source = source
        self.is_cut = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_cut:
            await trio.lowlevel.checkpoint()
        else:
            await self._stream.send_all(data)

    def send_now(self, data: bytes) -> int:
        return 0  # as a socket whose buffer is full: all goes through `send_all`

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        if not self.is_cut:  # a cut wire carries no FIN either
            await self._stream.aclose()


class MemoryNetwork:
    """Interfaces with the same index are on one wire."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def listen(self) -> Sequence[trio.abc.Listener[Connection]]:
        send, receive = trio.open_memory_channel[MemoryStream](100)
        self.inbox = send
        return [ChannelListener(receive)]

    async def connect(self, interface: Interface, address: IPv6Address) -> Connection:
        await trio.lowlevel.checkpoint()
        return self.wire.dial(interface.index, interface.address, address)

    def source(self, stream: Connection) -> tuple[int, IPv6Address] | None:
        assert isinstance(stream, MemoryStream)
        return stream.source


class ChannelListener(trio.abc.Listener[Connection]):
    def __init__(self, streams: trio.MemoryReceiveChannel[MemoryStream]) -> None:
        self._streams = streams

    async def accept(self) -> Connection:
        return await self._streams.receive()

    async def aclose(self) -> None:
        await self._streams.aclose()


class Wire:
    """Who listens at which (interface index, link-local address)."""

    def __init__(self) -> None:
        self.network_at: dict[tuple[int, IPv6Address], MemoryNetwork] = {}
        self.streams: list[MemoryStream] = []
        self.dialled_at: list[float] = []
        self.stream_pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = memory_stream_pair

    def dial(self, index: int, source: IPv6Address, destination: IPv6Address) -> MemoryStream:
        self.dialled_at.append(trio.current_time())
        network = self.network_at.get((index, destination))
        if network is None:
            raise ConnectionRefusedError
        near, far = self.stream_pair()
        dialled, accepted = MemoryStream(near), MemoryStream(far, (index, source))
        network.inbox.send_nowait(accepted)
        self.streams += [dialled, accepted]
        return dialled

    def cut(self) -> None:
        """Packets get lost from now on; nobody is told."""
        for stream in self.streams:
            stream.is_cut = True


async def next_event(manager: SessionManager) -> session.SessionEvent:
    await manager.events.wait()
    (event,) = manager.events.take(1)
    return event


class Node:
    def __init__(self, wire: Wire, identity: Identity, limits: Limits | None = None) -> None:
        self.wire = wire
        self.identity = identity
        self.network = MemoryNetwork(wire)
        self.manager = SessionManager(identity, network=self.network, rng=random.Random(1), limits=limits)
        self.peer = identity.public_key

    def interface_up(self, name: str, index: int, address: IPv6Address) -> None:
        self.manager.interface_up(name, index, address)
        self.wire.network_at[index, address] = self.network

    async def next(self) -> session.SessionEvent:
        with trio.fail_after(1000):
            return await next_event(self.manager)

    def nothing(self) -> None:
        assert not self.manager.events.take(1)


@asynccontextmanager
async def nodes(*identities: Identity, limits: Limits | None = None) -> AsyncIterator[list[Node]]:
    """Running nodes on one wire; each has eth0 (index 1), at fe80::1, fe80::2 and so on."""
    wire = Wire()
    async with trio.open_nursery() as nursery:
        made = [Node(wire, identity, limits) for identity in identities]
        for number, node in enumerate(made, start=1):
            await nursery.start(node.manager.run)
            node.interface_up("eth0", 1, IPv6Address(f"fe80::{number}"))
        yield made
        nursery.cancel_scope.cancel()


async def meet(alice: Node, bob: Node) -> None:
    alice.manager.neighbour_up("eth0", HIGH)
    bob.manager.neighbour_up("eth0", LOW)
    assert await alice.next() == PeerConnected(bob.peer, "eth0", HIGH, first=True)
    assert await bob.next() == PeerConnected(alice.peer, "eth0", LOW, first=True)


def run(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0))


def test_neighbours_meet_talk_and_part() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            await meet(alice, bob)
            assert alice.manager.send(bob.peer, b"hello")
            assert bob.manager.send(alice.peer, b"x" * session.MAX_MESSAGE_LENGTH)
            assert await bob.next() == PeerMessage(alice.peer, b"hello")
            assert await alice.next() == PeerMessage(bob.peer, b"x" * session.MAX_MESSAGE_LENGTH)
            assert alice.manager.peer_on("eth0", HIGH) == bob.peer
            assert len(alice.wire.dialled_at) == 1  # only the lower address connects
            alice.manager.neighbour_down("eth0", HIGH)
            assert await alice.next() == PeerDisconnected(bob.peer, "eth0", HIGH, True, "neighbour lost")
            assert await bob.next() == PeerDisconnected(alice.peer, "eth0", LOW, True, "closed by the peer")
            assert alice.manager.peer_on("eth0", HIGH) is None
            assert not alice.manager.send(bob.peer, b"too late")
            await trio.sleep(1000)
            assert len(alice.wire.dialled_at) == 1

    run(scenario)


def test_order_is_kept_and_nothing_is_lost() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            await meet(alice, bob)
            sent = [bytes([number]) * (number + 1) for number in range(200)]
            for data in sent:
                assert alice.manager.send(bob.peer, data)
            assert [await bob.next() for _ in sent] == [PeerMessage(alice.peer, data) for data in sent]

    run(scenario)


def test_quiet_sessions_stay_and_dead_ones_are_found_in_fifteen_seconds() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            await meet(alice, bob)
            await trio.sleep(600)
            alice.nothing()
            bob.nothing()
            began = trio.current_time()
            alice.wire.cut()
            alice.wire.network_at.clear()
            event = await bob.next()
            assert isinstance(event, PeerDisconnected) and "15 s" in event.reason
            assert trio.current_time() - began <= 15
            assert bob.manager.counters["idle_timeout"] == 1

    run(scenario)


def test_reconnects_with_growing_intervals_and_again_after_success() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            del alice.wire.network_at[1, HIGH]
            alice.manager.neighbour_up("eth0", HIGH)
            alice.manager.neighbour_up("eth0", HIGH)  # says nothing new
            await trio.sleep(300)
            intervals = [b - a for a, b in zip(alice.wire.dialled_at, alice.wire.dialled_at[1:], strict=False)]
            assert all(0.25 <= interval <= 30 for interval in intervals)
            assert intervals[0] <= 0.5 and intervals[2] >= 1 and min(intervals[-3:]) >= 15
            assert alice.manager.counters["connect_failed"] == len(alice.wire.dialled_at)
            alice.wire.network_at[1, HIGH] = bob.network
            assert isinstance(await alice.next(), PeerConnected)

    run(scenario)


def test_no_one_is_dialled_after_neighbour_down() -> None:
    async def scenario() -> None:
        async with nodes(ALICE) as (alice,):
            alice.manager.neighbour_up("eth0", HIGH)
            await trio.sleep(10)
            alice.manager.neighbour_down("eth0", HIGH)
            count = len(alice.wire.dialled_at)
            await trio.sleep(1000)
            assert len(alice.wire.dialled_at) == count

    run(scenario)


def test_two_interfaces_to_one_peer_are_two_links_and_one_carries() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            alice.interface_up("wlan0", 2, LOW_2)
            bob.interface_up("wlan0", 2, HIGH_2)
            await meet(alice, bob)
            alice.manager.neighbour_up("wlan0", HIGH_2)
            assert await alice.next() == PeerConnected(bob.peer, "wlan0", HIGH_2, first=False)
            assert await bob.next() == PeerConnected(alice.peer, "wlan0", LOW_2, first=False)
            assert [link.interface for link in alice.manager.links(bob.peer)] == ["eth0", "wlan0"]
            alice.manager.send(bob.peer, b"once")
            assert await bob.next() == PeerMessage(alice.peer, b"once")
            bob.nothing()
            alice.manager.interface_down("eth0")
            assert await alice.next() == PeerDisconnected(bob.peer, "eth0", HIGH, False, "interface down")
            assert await bob.next() == PeerDisconnected(alice.peer, "eth0", LOW, False, "closed by the peer")
            alice.manager.send(bob.peer, b"the other way")
            assert await bob.next() == PeerMessage(alice.peer, b"the other way")

    run(scenario)


def test_restarted_peer_replaces_its_old_session() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            await meet(alice, bob)
            # Alice loses power and comes back before Bob has noticed.
            await dial_as(ALICE, alice.wire)
            event = await bob.next()
            assert isinstance(event, PeerDisconnected) and "replaced" in event.reason
            assert await bob.next() == PeerConnected(alice.peer, "eth0", LOW, first=True)

    run(scenario)


def test_another_peer_cannot_take_a_link_in_use() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            await meet(alice, bob)
            stream, _ = await dial_as(MALLORY, alice.wire)
            assert await stream.receive_some() == b""
            assert bob.manager.counters["link_taken"] == 1
            assert bob.manager.peer_on("eth0", LOW) == alice.peer
            bob.nothing()

    run(scenario)


async def dial_as(
    identity: Identity, wire: Wire, *, source: IPv6Address = LOW, hello: bytes | None = None
) -> tuple[MemoryStream, Transport]:
    """A peer of our own making connects to Bob, and says `hello` in the handshake."""
    stream = wire.dial(1, source, HIGH)
    frames = session._Frames(stream)
    noise = HandshakeState(
        initiator=True,
        static_private=identity.x25519_private,
        ephemeral_private=b"e" * 32,
        prologue=session.PROLOGUE,
    )
    await frames.send(noise.write_message())
    noise.read_message(await frames.receive())
    await frames.send(noise.write_message(b"\x01" + identity.public_key if hello is None else hello))
    return stream, noise.transport()


@pytest.mark.parametrize(
    ("hello", "counter"),
    [
        (b"\x01" + ALICE.public_key, "wrong_identity"),
        (b"\x01" + bytes(32), "wrong_identity"),
        (b"\x01" + MALLORY.public_key + b"more", "bad_frame"),
        (b"\x01", "bad_frame"),
        (b"\x02" + MALLORY.public_key, "wrong_version"),
        (b"", "wrong_version"),
    ],
)
def test_claims_that_the_handshake_does_not_prove_are_refused(hello: bytes, counter: str) -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (_, bob):
            stream, _transport = await dial_as(MALLORY, bob.wire, hello=hello)
            assert await stream.receive_some() == b""
            assert dict(bob.manager.counters) == {counter: 1}
            bob.nothing()

    run(scenario)


def test_our_own_identity_is_no_neighbour() -> None:
    async def scenario() -> None:
        async with nodes(BOB, BOB) as (twin, bob):
            twin.manager.neighbour_up("eth0", HIGH)
            await trio.sleep(1)
            assert bob.manager.counters["own_identity"] or twin.manager.counters["own_identity"]
            bob.nothing()

    run(scenario)


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.0\r\n\r\n", b"\x00\x00", b"\xff\xff", b"\x00\x20" + bytes(32)])
def test_junk_before_the_handshake_is_dropped(junk: bytes) -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (_, bob):
            stream = bob.wire.dial(1, LOW, HIGH)
            await stream.send_all(junk)
            assert await stream.receive_some() == b""
            assert bob.manager.counters.total() == 1
            bob.nothing()

    run(scenario)


def test_silence_and_drops_in_the_handshake_end_it() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (_, bob):
            began = trio.current_time()
            stream = bob.wire.dial(1, LOW, HIGH)
            await stream.send_all(b"\x00")
            assert await stream.receive_some() == b""
            assert trio.current_time() - began == pytest.approx(5)
            assert bob.manager.counters["handshake_timeout"] == 1

    run(scenario)


def test_forged_frame_ends_the_session_only() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (_, bob):
            stream, transport = await dial_as(MALLORY, bob.wire)
            assert isinstance(await bob.next(), PeerConnected)
            frames = session._Frames(stream)
            await frames.send(transport.encrypt(b"good"))
            await frames.send(bytes(40))
            assert await bob.next() == PeerMessage(MALLORY.public_key, b"good")
            event = await bob.next()
            assert isinstance(event, PeerDisconnected) and event.last
            assert bob.manager.counters["bad_frame"] == 1

    run(scenario)


@pytest.mark.parametrize(
    ("index", "source"),
    [(7, LOW), (1, IPv6Address("2001:db8::1")), (1, IPv6Address("fe80::3")), (1, HIGH)],
    ids=["other interface", "not link-local", "higher address", "our own address"],
)
def test_connections_from_elsewhere_are_refused(index: int, source: IPv6Address) -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (_, bob):
            bob.wire.network_at[index, HIGH] = bob.network
            stream = bob.wire.dial(index, source, HIGH)
            assert await stream.receive_some() == b""
            assert dict(bob.manager.counters) == {"refused_source": 1}

    run(scenario)


def test_inbound_connections_are_bounded_by_source_and_by_interface() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB, limits=Limits(inbound_per_source=2, inbound_per_interface=3)) as (_, bob):
            bob.interface_up("eth0", 1, HIGH_2)
            for source in (LOW, LOW, LOW, STRANGER, STRANGER):
                bob.wire.dial(1, source, HIGH_2)
            await trio.sleep(1)
            assert dict(bob.manager.counters) == {"refused_limit": 2}
            await trio.sleep(10)  # the others have timed out: there is room again
            bob.wire.dial(1, STRANGER, HIGH_2)
            await trio.sleep(1)
            assert bob.manager.counters["refused_limit"] == 2

    run(scenario)


@pytest.mark.parametrize("limits", [Limits(queue_messages=10), Limits(queue_bytes=10_000)])
def test_slow_peer_is_disconnected_when_its_queue_is_full(limits: Limits) -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB, limits=limits) as (_, bob):
            bob.wire.stream_pair = lockstep_stream_pair
            await dial_as(MALLORY, bob.wire)
            assert isinstance(await bob.next(), PeerConnected)
            results = [bob.manager.send(MALLORY.public_key, bytes(1000)) for _ in range(12)]
            assert results[0] and not results[-1]
            event = await bob.next()
            assert isinstance(event, PeerDisconnected) and "slowly" in event.reason
            assert bob.manager.counters["slow_peer"] == 1

    run(scenario)


def test_peer_that_does_not_read_is_disconnected_though_it_talks() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (_, bob):
            bob.wire.stream_pair = lockstep_stream_pair
            stream, transport = await dial_as(MALLORY, bob.wire)
            assert isinstance(await bob.next(), PeerConnected)
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await session._Frames(stream).send(transport.encrypt(b""))
                    await trio.sleep(1)
            event = await bob.next()
            assert isinstance(event, PeerDisconnected) and "slowly" in event.reason

    run(scenario)


def test_slow_reader_of_events_holds_back_peers_and_loses_nothing() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB, limits=Limits(events=1)) as (alice, bob):
            alice.manager.neighbour_up("eth0", HIGH)
            assert isinstance(await alice.next(), PeerConnected)
            for number in range(20):
                alice.manager.send(bob.peer, bytes([number + 1]))
            await trio.sleep(100)  # longer than any timeout of a session
            assert isinstance(await bob.next(), PeerConnected)
            received = [await bob.next() for _ in range(20)]
            assert received == [PeerMessage(alice.peer, bytes([number + 1])) for number in range(20)]

    run(scenario)


def test_disconnect_for_a_reason_of_a_higher_protocol() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            await meet(alice, bob)
            bob.manager.disconnect(alice.peer, "bad signature")
            assert await bob.next() == PeerDisconnected(alice.peer, "eth0", LOW, True, "bad signature")
            assert isinstance(await alice.next(), PeerDisconnected)
            assert isinstance(await alice.next(), PeerConnected)  # it may try again

    run(scenario)


def test_mistakes_of_our_own_raise() -> None:
    async def scenario() -> None:
        async with nodes(ALICE, BOB) as (alice, bob):
            for data in (b"", bytes(session.MAX_MESSAGE_LENGTH + 1)):
                with pytest.raises(ValueError, match="message"):
                    alice.manager.send(bob.peer, data)
            with pytest.raises(ValueError, match="not up"):
                alice.manager.neighbour_up("eth9", HIGH)
        idle = SessionManager(ALICE)
        idle.interface_up("eth0", 1, LOW)
        with pytest.raises(RuntimeError, match="not running"):
            idle.neighbour_up("eth0", HIGH)

    run(scenario)


class LoopbackTcp(LinkLocalTcp):
    """Real sockets on ::1, with addresses made up from who is who."""

    def __init__(self, listener: trio.SocketListener, remote_port: int, remote: IPv6Address) -> None:
        super().__init__()
        self._listener, self._remote_port, self._remote = listener, remote_port, remote

    async def listen(self) -> Sequence[trio.abc.Listener[Connection]]:
        await trio.lowlevel.checkpoint()
        return [TcpListener(self._listener)]

    async def connect(self, interface: Interface, address: IPv6Address) -> Connection:
        return TcpConnection(await trio.open_tcp_stream("::1", self._remote_port))

    def source(self, stream: Connection) -> tuple[int, IPv6Address] | None:
        real = super().source(stream)
        assert real == (0, IPv6Address("::1"))
        return 1, self._remote


def test_over_real_tcp() -> None:
    async def scenario() -> None:
        listeners = [(await trio.open_tcp_listeners(0, host="::1"))[0] for _ in range(2)]
        ports = [listener.socket.getsockname()[1] for listener in listeners]
        alice = SessionManager(ALICE, network=LoopbackTcp(listeners[0], ports[1], HIGH))
        bob = SessionManager(BOB, network=LoopbackTcp(listeners[1], ports[0], LOW))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(alice.run)
                await nursery.start(bob.run)
                alice.interface_up("lo", 1, LOW)
                bob.interface_up("lo", 1, HIGH)
                alice.neighbour_up("lo", HIGH)
                assert isinstance(await next_event(bob), PeerConnected)
                big = bytes(session.MAX_MESSAGE_LENGTH)
                for _ in range(10):
                    bob.send(ALICE.public_key, big)
                assert isinstance(await next_event(alice), PeerConnected)
                assert [await next_event(alice) for _ in range(10)] == [PeerMessage(BOB.public_key, big)] * 10
                nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_taken_port_is_one_clear_error() -> None:
    async def scenario() -> None:
        (taken,) = await trio.open_tcp_listeners(0, host="::")
        async with taken:
            manager = SessionManager(ALICE, network=LinkLocalTcp(taken.socket.getsockname()[1]))
            with pytest.raises(SessionError, match="cannot listen"):
                await manager.run()

    trio.run(scenario)
