"""The beacon: who is on this segment, said by multicast and signed (design section 5).

    magic "mesh" | version u8 | network 8 | Ed25519 key 32 | incarnation u64 | number u32 | lifetime u16 (centiseconds)
    | link-local source address 16 | count u8 | count x (peer tag 8, UDP port u16) | signature 64

in network byte order; the signature is over all that precedes it. A port is where this node's tunnel for that peer
listens; a peer's tag is the first 8 bytes of BLAKE2b(its key). The WireGuard key is not in it: it is converted from the
Ed25519 key, so that a tunnel cannot be had with any other key than the identity's.

Freshness needs no clock that both share: (incarnation, number) only ever grows. The source address is signed, so that
nobody can answer from another address in the sender's name.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from nacl import bindings
from nacl.exceptions import BadSignatureError

from meshd.identity import Identity

PORT = 6698
GROUP = IPv6Address("ff12::6d65:7368")  # transient, link-local: "mesh"
VERSION = 1
MAX_PEERS = 64
_MAGIC = b"mesh"
_HEAD = struct.Struct("!4sB8s32sQIH16sB")
_PEER = struct.Struct("!8sH")
_SIGNATURE_LENGTH = 64
MAX_LENGTH = _HEAD.size + MAX_PEERS * _PEER.size + _SIGNATURE_LENGTH


class BeaconError(ValueError):
    """Not a beacon to go by; `counter` is the name under which it is counted."""

    def __init__(self, counter: str) -> None:
        super().__init__(counter)
        self.counter = counter


@dataclass(frozen=True, slots=True)
class Beacon:
    """`lifetime`: seconds after which the sender is gone if nothing more is heard of it. `port_by_tag`: see above."""

    public_key: bytes
    incarnation: int
    number: int
    lifetime: float
    address: IPv6Address
    port_by_tag: Mapping[bytes, int] = field(default_factory=dict)

    @property
    def age(self) -> tuple[int, int]:
        """The greater is the newer."""
        return self.incarnation, self.number


def peer_tag(public_key: bytes) -> bytes:
    return hashlib.blake2b(public_key, digest_size=8, person=b"meshd peer tag").digest()


def network_tag(chain: str) -> bytes:
    """Nodes that settle on different chains cannot pay each other: they do not see each other."""
    return hashlib.blake2b(chain.encode(), digest_size=8, person=b"meshd network").digest()


def encode(beacon: Beacon, identity: Identity, *, network: bytes) -> bytes:
    """Signs. Raises ValueError for more than `MAX_PEERS` ports or a key that is not the identity's."""
    if len(beacon.port_by_tag) > MAX_PEERS or beacon.public_key != identity.public_key:
        raise ValueError("too many peers, or not our key")
    head = _HEAD.pack(
        _MAGIC,
        VERSION,
        network,
        beacon.public_key,
        beacon.incarnation,
        beacon.number,
        round(beacon.lifetime * 100),
        beacon.address.packed,
        len(beacon.port_by_tag),
    )
    signed = head + b"".join(_PEER.pack(tag, port) for tag, port in beacon.port_by_tag.items())
    return signed + identity.sign(signed)


def parse(data: bytes, *, source: IPv6Address, network: bytes) -> Beacon:
    """Checks all that is cheap: what is said may still be forged, see `verify`. Raises BeaconError."""
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise BeaconError("beacon_malformed")
    _, version, their_network, key, incarnation, number, lifetime, address, count = _HEAD.unpack_from(data)
    if version != VERSION:
        raise BeaconError("beacon_version")
    end = _HEAD.size + count * _PEER.size
    if count > MAX_PEERS or len(data) != end + _SIGNATURE_LENGTH or lifetime == 0:
        raise BeaconError("beacon_malformed")
    if their_network != network:
        raise BeaconError("beacon_foreign")
    if IPv6Address(address) != source or not source.is_link_local:
        raise BeaconError("beacon_source")
    ports = dict(_PEER.iter_unpack(data[_HEAD.size : end]))
    return Beacon(key, incarnation, number, lifetime / 100, source, ports)


def verify(data: bytes, public_key: bytes) -> None:
    """Whether the holder of the key has said what `parse` has read: 0.1 ms. Raises BeaconError."""
    signed, signature = data[:-_SIGNATURE_LENGTH], data[-_SIGNATURE_LENGTH:]
    try:
        bindings.crypto_sign_open(signature + signed, public_key)
    except BadSignatureError:
        raise BeaconError("beacon_forged") from None
