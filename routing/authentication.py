"""MAC authentication of packets (RFC 8967), with the relaxed packet counters of RFC 9467. Sans-IO.

An `Authenticator` stands between the codec and the socket of one interface. What it sends carries a packet counter (PC)
under an index that is new with each authenticator, and a MAC for each key over the packet and its addresses and ports.
What it receives must carry a MAC of one of the keys, and a counter that is new under an index that the sender has
proved to be its present one, by answering a challenge. Nothing is remembered of whom has not shown a good MAC.

Who was challenged has to send again what was dropped; Hellos and updates come again by themselves.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address

from routing.codec import (
    HEADER_LENGTH,
    TLV_CHALLENGE_REPLY,
    TLV_CHALLENGE_REQUEST,
    TLV_MAC,
    TLV_PC,
    DecodeError,
    encode_packet,
    encode_tlv,
    framed,
    split_packet,
)

# Of the specification.
COUNTER_MAX = 2**32 - 1
INDEX_MAX = 32  # octets (RFC 8967 section 6.2)
NONCE_MAX = 192  # octets (sections 6.3, 6.4)
CHALLENGE_TIMEOUT = 30.0  # section 4.3.1.1
CHALLENGE_INTERVAL = 0.3  # between two challenges, and two replies, to one neighbour (sections 4.3.1.1, 4.3.1.2)
FORGET_TIMEOUT = 300.0  # since a packet was last accepted (section 4.4)
WINDOW = 128  # counters below the highest that may still arrive (RFC 9467 section 3.2)
# Our own.
INDEX_LENGTH = 8
NONCE_LENGTH = 16
MAX_KEYS = 4
MAX_NEIGHBOURS = 256  # remembered at a time
ANSWERS_PER_SECOND = 64  # challenges and replies of an interface, to all neighbours together


class MacAlgorithm(Enum):
    HMAC_SHA256 = "hmac-sha256"  # RFC 8967 section 4.1: keys of up to 64 octets, MACs of 32
    BLAKE2S = "blake2s128"  # up to 32, and 16

    @property
    def key_max(self) -> int:
        return 64 if self is MacAlgorithm.HMAC_SHA256 else 32

    @property
    def mac_length(self) -> int:
        return 32 if self is MacAlgorithm.HMAC_SHA256 else 16


@dataclass(frozen=True, slots=True)
class MacKey:
    """Raises ValueError where the secret's length is not one that the algorithm takes. Never shown by `repr`."""

    algorithm: MacAlgorithm
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.secret) <= self.algorithm.key_max:
            raise ValueError(f"a key of {self.algorithm.value} has 1 to {self.algorithm.key_max} octets")

    def mac(self, data: bytes) -> bytes:
        if self.algorithm is MacAlgorithm.HMAC_SHA256:
            return hmac.digest(self.secret, data, "sha256")
        return hashlib.blake2s(data, digest_size=self.algorithm.mac_length, key=self.secret).digest()


class Drop(Enum):
    """Why a packet was not accepted; the value is what it is counted as."""

    MALFORMED = "packets malformed"
    NO_MAC = "packets without MAC"
    WRONG_MAC = "packets with wrong MAC"
    NO_COUNTER = "packets without packet counter"
    CHALLENGED = "packets of senders not yet proved"
    REPLAYED = "packets replayed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`drop` None: the packet is accepted. `replies`: packets to be sent to its source, in any case, as they are."""

    drop: Drop | None
    replies: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Window:
    """The highest counter accepted, and which of those below it were (RFC 9467 section 3.2).

    At first all count as seen: what was sent before the challenge may have been accepted in an earlier life of ours.
    """

    highest: int
    seen: int = (1 << WINDOW) - 1  # bit n: `highest` - n

    def take(self, counter: int) -> bool:
        """Whether it is new."""
        ahead = counter - self.highest
        if ahead > 0:
            kept = self.seen << ahead if ahead < WINDOW else 0
            self.seen = (kept | 1) & ((1 << WINDOW) - 1)
            self.highest = counter
            return True
        bit = 1 << -ahead if -ahead < WINDOW else 0
        is_new = bit != 0 and not self.seen & bit
        self.seen |= bit
        return is_new


@dataclass(slots=True)
class _Neighbour:
    """Who has shown a good MAC. `index` None: not yet that it is alive."""

    index: bytes | None = None
    multicast: _Window = field(default_factory=lambda: _Window(0))
    unicast: _Window = field(default_factory=lambda: _Window(0))
    accepted_at: float = -math.inf
    nonce: bytes | None = None  # of the challenge that is under way
    challenged_at: float = -math.inf
    replied_at: float = -math.inf


@dataclass(slots=True)
class _Claims:
    """What the first reading of a packet yields (RFC 8967 section 4.3)."""

    counter: int | None = None
    index: bytes = b""
    request: bytes | None = None
    replies: list[bytes] = field(default_factory=list)


class Authenticator:
    """One for each interface and each time that it comes up. Times in seconds of the caller's monotonic clock.

    `address`: ours, which all packets are sent from. `octets(n)` returns n octets that nobody can foresee.
    """

    def __init__(
        self, keys: tuple[MacKey, ...], *, address: IPv6Address, port: int, octets: Callable[[int], bytes]
    ) -> None:
        self._keys = keys
        self._address = address
        self._port = port
        self._octets = octets
        self._index = octets(INDEX_LENGTH)
        self._counter = 0
        self._neighbours: dict[IPv6Address, _Neighbour] = {}
        self._answers_left = float(ANSWERS_PER_SECOND)
        self._answered_at = -math.inf

    @property
    def overhead(self) -> int:
        """Octets that `protect` adds to a packet."""
        return 6 + INDEX_LENGTH + sum(2 + key.algorithm.mac_length for key in self._keys)

    def set_keys(self, keys: tuple[MacKey, ...]) -> None:
        """Others from now on. Who was proved to be alive with the old ones stays so."""
        self._keys = keys

    def protect(self, packet: bytes, *, destination: IPv6Address) -> bytes:
        """`packet` (of `codec.pack`), with packet counter and MACs, to be sent once (RFC 8967 section 4.2)."""
        body, _ = split_packet(packet)
        if self._counter == COUNTER_MAX:
            self._counter, self._index = 0, self._octets(INDEX_LENGTH)
        self._counter += 1
        packet = encode_packet(body + encode_tlv(TLV_PC, struct.pack("!I", self._counter) + self._index))
        data = self._pseudo_header(self._address, destination) + packet
        return packet + b"".join(encode_tlv(TLV_MAC, key.mac(data)) for key in self._keys)

    def check(self, packet: bytes, *, source: IPv6Address, destination: IPv6Address, now: float) -> Verdict:
        """RFC 8967 section 4.3. Never raises; what is not accepted must not be read any further."""
        try:
            body, trailer = split_packet(packet)
            drop = self._check_macs(packet[: HEADER_LENGTH + len(body)], trailer, source, destination)
            if drop is not None:
                return Verdict(drop)
            claims = _preparse(body)
        except DecodeError:
            return Verdict(Drop.MALFORMED)
        if source == self._address:
            return Verdict(Drop.REPLAYED)  # our own words
        neighbour = self._neighbour(source, now=now)
        drop = self._check_counter(neighbour, claims, is_multicast=destination.is_multicast, now=now)
        # Who sends a request to many cannot mean us; and one that was here before was answered then.
        request = None if destination.is_multicast or drop is Drop.REPLAYED else claims.request
        replies = []
        if request is not None and self._may_answer(neighbour.replied_at, now=now):
            neighbour.replied_at = now
            replies.append(self._answer(TLV_CHALLENGE_REPLY, request, source))
        if drop is Drop.CHALLENGED and self._may_answer(neighbour.challenged_at, now=now):
            neighbour.challenged_at = now
            neighbour.nonce = self._octets(NONCE_LENGTH)
            replies.append(self._answer(TLV_CHALLENGE_REQUEST, neighbour.nonce, source))
        return Verdict(drop, tuple(replies))

    def _pseudo_header(self, source: IPv6Address, destination: IPv6Address) -> bytes:
        """RFC 8967 section 4.1. Both ports are Babel's: others are not listened to."""
        port = struct.pack("!H", self._port)
        return source.packed + port + destination.packed + port

    def _check_macs(self, packet: bytes, trailer: bytes, source: IPv6Address, destination: IPv6Address) -> Drop | None:
        found = [body for tlv_type, body in framed(trailer) if tlv_type == TLV_MAC]
        if not found:
            return Drop.NO_MAC
        data = self._pseudo_header(source, destination) + packet
        ours = [key.mac(data) for key in self._keys]
        # All are compared, so that the time says nothing of how near a forged one came.
        matches = [hmac.compare_digest(mac, theirs) for mac in ours for theirs in found]
        return None if any(matches) else Drop.WRONG_MAC

    def _check_counter(self, neighbour: _Neighbour, claims: _Claims, *, is_multicast: bool, now: float) -> Drop | None:
        if claims.counter is None:
            return Drop.NO_COUNTER
        nonce = neighbour.nonce
        if nonce is not None and now - neighbour.challenged_at < CHALLENGE_TIMEOUT and nonce in claims.replies:
            neighbour.nonce = None
            if neighbour.index == claims.index:
                # Some replay from its earlier life made us ask. What it said meanwhile may still be on its way.
                neighbour.unicast.take(claims.counter)
            else:
                neighbour.index = claims.index
                neighbour.multicast, neighbour.unicast = _Window(claims.counter), _Window(claims.counter)
        elif neighbour.index is None or neighbour.index != claims.index:
            return Drop.CHALLENGED
        elif not (neighbour.multicast if is_multicast else neighbour.unicast).take(claims.counter):
            return Drop.REPLAYED
        neighbour.accepted_at = now
        return None

    def _neighbour(self, address: IPv6Address, *, now: float) -> _Neighbour:
        """Its entry: made where there is none, which only the holder of a key, or a replay of one, can bring about."""
        neighbour = self._neighbours.get(address)
        if neighbour is None:
            if len(self._neighbours) >= MAX_NEIGHBOURS:
                # Those that were never proved go first.
                del self._neighbours[min(self._neighbours, key=lambda a: self._neighbours[a].accepted_at)]
            neighbour = self._neighbours[address] = _Neighbour()
        elif now - neighbour.accepted_at >= FORGET_TIMEOUT:
            neighbour.index = None
        return neighbour

    def _may_answer(self, last_at: float, *, now: float) -> bool:
        """Old packets may be played to us over and over, of one neighbour or of many: that must not make us talk."""
        earned = (now - self._answered_at) * ANSWERS_PER_SECOND
        self._answers_left = min(float(ANSWERS_PER_SECOND), self._answers_left + earned)
        self._answered_at = now
        if now - last_at < CHALLENGE_INTERVAL or self._answers_left < 1:
            return False
        self._answers_left -= 1
        return True

    def _answer(self, tlv_type: int, nonce: bytes, to: IPv6Address) -> bytes:
        return self.protect(encode_packet(encode_tlv(tlv_type, nonce)), destination=to)


def _preparse(body: bytes) -> _Claims:
    """Of several packet counters the first counts, of several requests the last. What is out of bounds is ignored."""
    claims = _Claims()
    for tlv_type, value in framed(body):
        if tlv_type == TLV_PC and claims.counter is None and 4 <= len(value) <= 4 + INDEX_MAX:
            claims.counter, claims.index = int.from_bytes(value[:4], "big"), value[4:]
        elif tlv_type == TLV_CHALLENGE_REQUEST and len(value) <= NONCE_MAX:
            claims.request = value
        elif tlv_type == TLV_CHALLENGE_REPLY and len(value) <= NONCE_MAX:
            claims.replies.append(value)
    return claims
