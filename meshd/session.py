"""Authenticated sessions with neighbours: Noise XX over TCP on the link.

Between two neighbours the one with the numerically lower link-local address connects. Frames are a u16 length and a
Noise message; inside, after the handshake, an empty plaintext is a keep-alive and anything else is one message of the
payments protocol. The handshake's payload is the protocol version and the sender's Ed25519 key, which must convert to
the static key that the handshake proved.

What a link is (interface, neighbour's link-local address) and who is at its other end (public key) come together here:
billing uses that mapping. Two links to one identity are two sessions; messages travel on the older.

Nothing that a peer sends or fails to send blocks the daemon: every wait has a deadline, every queue a bound, and
whatever is refused is counted in `SessionManager.counters`.
"""

from __future__ import annotations

import math
import random
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address

import msgspec
import trio

from meshd.identity import Identity, x25519_public_key
from meshd.logs import Logger
from meshd.mailbox import Mailbox
from meshd.tcp import Connection, Interface, LinkLocalTcp, Network
from meshd.ticks import tick_after
from payments.noise import HandshakeState, NoiseError, Transport

log = Logger(__name__)

PROTOCOL_VERSION = 1
PROLOGUE = b"meshd session"
MAX_MESSAGE_LENGTH = 65535 - 16
_HELLO_LENGTH = 1 + 32  # version, Ed25519 key
_MAX_HANDSHAKE_FRAME = 256  # the longest XX message of ours is 32 + 48 + 33 + 16


class SessionError(Exception):
    """The session service cannot run (its port is taken). The message says why."""


class _PeerError(Exception):
    """The peer broke the protocol or went silent; `counter` says under which name it is counted."""

    def __init__(self, counter: str, detail: str) -> None:
        super().__init__(detail)
        self.counter = counter


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """`peer` (Ed25519 public key) is at the other end of this link. `first`: it had no other session."""

    peer: bytes
    interface: str
    link_local: IPv6Address
    first: bool


class PeerMessage(msgspec.Struct, frozen=True):
    peer: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """`last`: it has no other session left. `reason` is for people."""

    peer: bytes
    interface: str
    link_local: IPv6Address
    last: bool
    reason: str


SessionEvent = PeerConnected | PeerMessage | PeerDisconnected


@dataclass(frozen=True, slots=True)
class Link:
    """A neighbour reached over an interface."""

    interface: str
    address: IPv6Address  # the neighbour's link-local address


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, bytes, counts. A dead peer is found after `idle_timeout`."""

    connect_timeout: float = 5.0
    handshake_timeout: float = 5.0
    keepalive_interval: float = 6.0
    idle_timeout: float = 15.0
    send_timeout: float = 15.0
    retry_initial: float = 0.5
    retry_max: float = 30.0
    stable_after: float = 30.0  # a session that lived so long resets the back-off
    queue_messages: int = 256
    queue_bytes: int = 1 << 20
    events: int = 256
    inbound_per_source: int = 3  # the session in use, the one that replaces it, and one to spare
    inbound_per_interface: int = 128


class _Frames:
    """u16 length, then so many bytes (network order)."""

    def __init__(self, stream: Connection) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def send(self, frame: bytes) -> None:
        await self.stream.send_all(framed(frame))

    async def receive(self, max_length: int = 65535) -> bytes:
        while (frame := self.next(max_length)) is None:
            await self.fill()
        return frame

    def next(self, max_length: int = 65535) -> bytes | None:
        """Of what has come; None: no whole one has."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        end = 2 + int.from_bytes(buffer[:2], "big")
        if end - 2 > max_length:
            raise _PeerError("bad_frame", f"frame of {end - 2} bytes")
        if len(buffer) < end:
            return None
        frame = bytes(buffer[2:end])
        del buffer[:end]
        return frame

    async def fill(self) -> None:
        chunk = await self.stream.receive_some(65536)
        if not chunk:
            raise _PeerError("closed", "closed by the peer")
        self._buffer += chunk


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(2, "big") + frame


async def _handshake(frames: _Frames, identity: Identity, *, initiator: bool) -> tuple[Transport, bytes]:
    """The session's ciphers and the peer's Ed25519 key. Raises NoiseError and _PeerError."""
    noise = HandshakeState(
        initiator=initiator,
        static_private=identity.x25519_private,
        ephemeral_private=secrets.token_bytes(32),
        prologue=PROLOGUE,
    )
    our_hello = bytes([PROTOCOL_VERSION]) + identity.public_key
    if initiator:
        await frames.send(noise.write_message())
        their_hello = noise.read_message(await frames.receive(_MAX_HANDSHAKE_FRAME))
        await frames.send(noise.write_message(our_hello))
    else:
        noise.read_message(await frames.receive(_MAX_HANDSHAKE_FRAME))
        await frames.send(noise.write_message(our_hello))
        their_hello = noise.read_message(await frames.receive(_MAX_HANDSHAKE_FRAME))
    transport = noise.transport()
    peer = _read_hello(their_hello, transport.remote_static)
    if peer == identity.public_key:
        raise _PeerError("own_identity", "the peer has our own key")
    return transport, peer


def _read_hello(payload: bytes, static_key: bytes) -> bytes:
    if not payload or payload[0] != PROTOCOL_VERSION:
        raise _PeerError("wrong_version", f"session protocol version {payload[:1].hex() or 'missing'}")
    if len(payload) != _HELLO_LENGTH:
        raise _PeerError("bad_frame", "malformed handshake payload")
    peer = payload[1:]
    try:
        converted = x25519_public_key(peer)
    except ValueError as error:
        raise _PeerError("wrong_identity", str(error)) from error
    if converted != static_key:
        raise _PeerError("wrong_identity", "the identity key is not the one of the handshake")
    return peer


class _Session:
    """One authenticated connection: its queue, its loops, its end."""

    def __init__(self, frames: _Frames, transport: Transport, peer: bytes, link: Link, limits: Limits) -> None:
        self.peer = peer
        self.link = link
        self.closed = trio.Event()  # set when it is over and its end was reported
        self.reason = ""
        self.counter = ""
        self._frames = frames
        self._transport = transport
        self._limits = limits
        self._scope = trio.CancelScope()
        self._unsent = b""  # the rest of a frame, when the kernel took no more
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._queued = trio.Event()
        self._sent_at = self._heard_at = trio.current_time()

    def close(self, reason: str, counter: str = "") -> None:
        if not self.reason:
            self.reason, self.counter = reason, counter
        self._scope.cancel()

    def enqueue(self, messages: Sequence[bytes]) -> bool:
        """Sends at once what the kernel takes. False, and the session ends, when the peer reads too slowly."""
        if not self._unsent and not self._queue:
            return self._send_now(messages)
        return all(self._keep(data) for data in messages)

    def _keep(self, data: bytes) -> bool:
        full = len(self._queue) >= self._limits.queue_messages
        if full or self._queued_bytes + len(data) > self._limits.queue_bytes:
            self.close("the peer reads too slowly", "slow_peer")
            return False
        self._queue.append(data)
        self._queued_bytes += len(data)
        return True

    def _send_now(self, messages: Sequence[bytes]) -> bool:
        self._sent_at = trio.current_time()
        try:
            frames = b"".join([framed(self._transport.encrypt(data)) for data in messages])
            self._unsent = frames[self._frames.stream.send_now(frames) :]
        except NoiseError as error:
            self.close(f"Noise: {error}", "bad_frame")
            return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("connection lost", "closed")
            return False
        if self._unsent:
            self._queued.set()
        return True

    async def run(self, deliver: Mailbox[SessionEvent]) -> None:
        """Until either side ends it; then `reason` says why. Closes the stream."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_failure, self._send_loop)
                    nursery.start_soon(self._until_failure, self._watch_loop)
                    nursery.start_soon(self._until_failure, partial(self._receive_loop, deliver))
        finally:
            await trio.aclose_forcefully(self._frames.stream)

    async def _until_failure(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except _PeerError as error:
            self.close(str(error), error.counter)
        except NoiseError as error:
            self.close(f"Noise: {error}", "bad_frame")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("connection lost", "closed")

    async def _receive_loop(self, deliver: Mailbox[SessionEvent]) -> None:
        while True:
            await self._frames.fill()
            while (frame := self._frames.next()) is not None:
                data = self._transport.decrypt(frame)
                self._heard_at = trio.current_time()
                if data:
                    await self._deliver(PeerMessage(self.peer, data), deliver)

    async def _deliver(self, message: PeerMessage, deliver: Mailbox[SessionEvent]) -> None:
        if not deliver.put_nowait(message):
            self._heard_at = math.inf  # while it is us who do not listen
            await deliver.put(message)
            self._heard_at = trio.current_time()

    async def _send_loop(self) -> None:
        """What could not be sent at once."""
        while True:
            await self._queued.wait()
            while self._unsent or self._queue:
                if not self._unsent:
                    data = self._queue.popleft()
                    self._queued_bytes -= len(data)
                    self._unsent = framed(self._transport.encrypt(data))
                with trio.move_on_after(self._limits.send_timeout) as stuck:
                    await self._frames.stream.send_all(self._unsent)
                if stuck.cancelled_caught:
                    raise _PeerError("slow_peer", "the peer reads too slowly")
                self._unsent = b""
                self._sent_at = trio.current_time()
            self._queued = trio.Event()

    async def _watch_loop(self) -> None:
        """Keep-alives when there is nothing else to say; the end when nothing is heard."""
        while True:
            silent_at = self._heard_at + self._limits.idle_timeout
            await trio.sleep_until(min(silent_at, self._keepalive_at))
            now = trio.current_time()
            if now >= self._heard_at + self._limits.idle_timeout:
                raise _PeerError("idle_timeout", f"nothing heard for {self._limits.idle_timeout:g} s")
            if now >= self._keepalive_at:
                self._sent_at = now
                if not self._unsent and not self._queue:
                    self._send_now([b""])

    @property
    def _keepalive_at(self) -> float:
        """At the same time as those of the other sessions, and neither too soon after what was sent nor too late."""
        interval = self._limits.keepalive_interval
        return tick_after(self._sent_at + interval / 2, interval)


class SessionManager:
    """All sessions of this node. `run` it first; then feed it what the routing engine says of neighbours.

    Events come out of `events`, in order for each link: PeerConnected, PeerMessage..., PeerDisconnected. A slow reader
    of them holds back the peers, not the daemon. After any PeerDisconnected, messages under way may be lost.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        network: Network | None = None,
        rng: random.Random | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._identity = identity
        self._network = network or LinkLocalTcp()
        self._rng = rng or random.SystemRandom()
        self._limits = limits or Limits()
        self._nursery: trio.Nursery | None = None
        self._interface_by_name: dict[str, Interface] = {}
        self._dialer_by_link: dict[Link, trio.CancelScope] = {}
        self._session_by_link: dict[Link, _Session] = {}
        self._sessions_by_peer: dict[bytes, list[_Session]] = {}  # the oldest first
        self._inbound_by_link: Counter[Link] = Counter()
        self.events = Mailbox[SessionEvent](self._limits.events)
        self.counters: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled; no events are sent for the sessions that end with it. Raises SessionError at once
        when the port cannot be had."""
        try:
            listeners = await self._network.listen()
        except OSError as error:
            raise SessionError(f"cannot listen for sessions: {error}") from error
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._serve, listeners)
                task_status.started()
        finally:
            self._nursery = None

    async def _serve(self, listeners: Sequence[trio.abc.Listener[Connection]]) -> None:
        await trio.serve_listeners(self._accept, list(listeners))

    def interface_up(self, name: str, index: int, own_address: IPv6Address, peer: bytes | None = None) -> None:
        """We may talk on it. The same name with another index or address replaces it and ends its sessions.

        `peer`: the only one who may have a session there, by the key of the tunnel that it is.
        """
        interface = Interface(name, index, own_address, peer)
        if self._interface_by_name.get(name) not in (None, interface):
            self.interface_down(name)
        self._interface_by_name[name] = interface

    def interface_down(self, name: str) -> None:
        self._interface_by_name.pop(name, None)
        for link in [link for link in {*self._dialer_by_link, *self._session_by_link} if link.interface == name]:
            self._forget(link, "interface down")

    def neighbour_up(self, interface: str, link_local: IPv6Address) -> None:
        """Somebody is there. We connect if ours is the lower address, and wait otherwise. Repeating it changes nothing.

        Raises ValueError for an interface that is not up, RuntimeError when not running.
        """
        ours = self._interface_by_name.get(interface)
        if ours is None:
            raise ValueError(f"interface {interface} is not up")
        if self._nursery is None:
            raise RuntimeError("the session manager is not running")
        link = Link(interface, link_local)
        if ours.address < link_local and link not in self._dialer_by_link:
            scope = self._dialer_by_link[link] = trio.CancelScope()
            self._nursery.start_soon(self._dial, ours, link, scope)

    def neighbour_down(self, interface: str, link_local: IPv6Address) -> None:
        """It is gone: stop connecting, and end its session."""
        self._forget(Link(interface, link_local), "neighbour lost")

    async def next_events(self) -> list[SessionEvent]:
        """One at least, and what came with it: to wait for each would take longer than to handle it."""
        await self.events.wait()
        return self.events.take(self._limits.events)

    def send(self, peer: bytes, *messages: bytes) -> bool:
        """Of 1 to 65,519 bytes each. False when there is no session, or the peer is too slow for them."""
        for data in messages:
            if not 1 <= len(data) <= MAX_MESSAGE_LENGTH:
                raise ValueError(f"a message is 1 to {MAX_MESSAGE_LENGTH} bytes, not {len(data)}")
        sessions = self._sessions_by_peer.get(peer)
        return sessions[0].enqueue(messages) if sessions else False

    def disconnect(self, peer: bytes, reason: str) -> None:
        """Ends all sessions with the peer (it broke a rule of a higher protocol); who connects may try again."""
        for session in self._sessions_by_peer.get(peer, ()):
            session.close(reason, "disconnected")

    def links(self, peer: bytes) -> tuple[Link, ...]:
        """Where the peer is connected now; the first carries the messages."""
        return tuple(session.link for session in self._sessions_by_peer.get(peer, ()))

    def peer_on(self, interface: str, link_local: IPv6Address) -> bytes | None:
        """Who is at the other end of the link, if a session says so."""
        session = self._session_by_link.get(Link(interface, link_local))
        return session.peer if session else None

    def _forget(self, link: Link, reason: str) -> None:
        if dialer := self._dialer_by_link.pop(link, None):
            dialer.cancel()
        if session := self._session_by_link.get(link):
            session.close(reason)

    async def _dial(self, interface: Interface, link: Link, scope: trio.CancelScope) -> None:
        failures = 0
        with scope:
            while True:
                began = trio.current_time()
                if session := await self._connect(interface, link):
                    # A task of its own: when we stop dialling, the session still reports its end.
                    self._spawn(self._run_session, session)
                    await session.closed.wait()
                failures = 0 if trio.current_time() - began >= self._limits.stable_after else failures + 1
                await trio.sleep(self._retry_interval(failures))

    def _retry_interval(self, failures: int) -> float:
        """Doubles with every failure; the jitter keeps a mesh that lost power together from coming back in step."""
        interval: float = self._limits.retry_initial * 2 ** min(max(failures - 1, 0), 16)
        return min(interval, self._limits.retry_max) * self._rng.uniform(0.5, 1.0)

    async def _connect(self, interface: Interface, link: Link) -> _Session | None:
        try:
            with trio.fail_after(self._limits.connect_timeout):
                stream = await self._network.connect(interface, link.address)
        except (OSError, trio.TooSlowError) as error:
            self._count("connect_failed", link, str(error) or "no answer")
            return None
        return await self._establish(stream, link, initiator=True)

    async def _accept(self, stream: Connection) -> None:
        link = self._admit(stream)
        if link is None:
            await trio.aclose_forcefully(stream)
            return
        self._inbound_by_link[link] += 1
        try:
            if session := await self._establish(stream, link, initiator=False):
                await self._run_session(session)
        finally:
            self._inbound_by_link[link] -= 1
            if not self._inbound_by_link[link]:
                del self._inbound_by_link[link]

    def _admit(self, stream: Connection) -> Link | None:
        """The link that an inbound connection belongs to; None, and counted, when it has no business here."""
        source = self._network.source(stream)
        if source is None:
            return None
        index, address = source
        interface = next((known for known in self._interface_by_name.values() if known.index == index), None)
        if interface is None or not address.is_link_local or address >= interface.address:
            self._count("refused_source", None, f"{address} on interface {index}")
            return None
        link = Link(interface.name, address)
        on_interface = sum(n for other, n in self._inbound_by_link.items() if other.interface == interface.name)
        if (
            self._inbound_by_link[link] >= self._limits.inbound_per_source
            or on_interface >= self._limits.inbound_per_interface
        ):
            self._count("refused_limit", link, "too many connections")
            return None
        return link

    async def _establish(self, stream: Connection, link: Link, *, initiator: bool) -> _Session | None:
        """Shakes hands. Owns the stream unless it returns a session."""
        session = None
        frames = _Frames(stream)
        try:
            with trio.fail_after(self._limits.handshake_timeout):
                transport, peer = await _handshake(frames, self._identity, initiator=initiator)
            interface = self._interface_by_name.get(link.interface)
            if interface is not None and interface.peer not in (None, peer):
                raise _PeerError("wrong_identity", "the session's key is not the tunnel's")
            session = _Session(frames, transport, peer, link, self._limits)
        except trio.TooSlowError:
            self._count("handshake_timeout", link, "no handshake in time")
        except NoiseError as error:
            self._count("handshake_failed", link, str(error))
        except _PeerError as error:
            self._count(error.counter, link, str(error))
        except trio.BrokenResourceError:
            self._count("closed", link, "connection lost in the handshake")
        finally:
            if session is None:
                await trio.aclose_forcefully(stream)
        return session

    async def _run_session(self, session: _Session) -> None:
        try:
            if await self._take_link(session):
                await self._report_session(session)
        finally:
            session.closed.set()

    async def _take_link(self, session: _Session) -> bool:
        """A newer session of the same peer replaces the older (it has restarted); another peer has to wait."""
        while (older := self._session_by_link.get(session.link)) is not None:
            if older.peer != session.peer:
                session.close("another peer holds the link")
                self._count("link_taken", session.link, session.peer.hex())
                await session.run(self.events)  # closed already: only closes the stream
                return False
            older.close("replaced by a newer session")
            await older.closed.wait()
        if session.link.interface not in self._interface_by_name:  # gone since the handshake began
            session.close("interface down")
        self._session_by_link[session.link] = session
        return True

    async def _report_session(self, session: _Session) -> None:
        link = session.link
        sessions = self._sessions_by_peer.setdefault(session.peer, [])
        sessions.append(session)
        try:
            await self.events.put(PeerConnected(session.peer, link.interface, link.address, first=len(sessions) == 1))
            await session.run(self.events)
        finally:
            sessions.remove(session)
            if not sessions:
                del self._sessions_by_peer[session.peer]
            del self._session_by_link[link]
        self._count(session.counter, link, session.reason)
        last = session.peer not in self._sessions_by_peer
        await self.events.put(PeerDisconnected(session.peer, link.interface, link.address, last, session.reason))

    def _spawn(self, task: Callable[[_Session], Awaitable[None]], session: _Session) -> None:
        assert self._nursery is not None  # noqa: S101  dialers live in it
        self._nursery.start_soon(task, session)

    def _count(self, counter: str, link: Link | None, detail: str) -> None:
        if counter:
            self.counters[counter] += 1
        log.info(
            "session refused or ended",
            counter=counter,
            detail=detail,
            interface=link.interface if link else None,
            neighbour=link.address if link else None,
        )
