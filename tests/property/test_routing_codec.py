"""What is packed is what is decoded, and no input makes the decoder raise anything but `DecodeError`."""

from __future__ import annotations

import contextlib
import dataclasses
from ipaddress import IPv6Address

from hypothesis import example, given, settings
from hypothesis import strategies as st

from routing.codec import DecodeError, decode, pack
from routing.tlv import Tlv, Update
from tests.routing.strategies import tlvs

SOURCE = IPv6Address("fe80::1")


def resolved(tlv: Tlv) -> Tlv:
    """An update as the receiver sees it: without an explicit next hop it is the sender's address."""
    if isinstance(tlv, Update) and tlv.next_hop is None:
        return dataclasses.replace(tlv, next_hop=SOURCE)
    return tlv


@given(st.lists(tlvs, max_size=40), st.integers(512, 1500))
def test_round_trip(sent: list[Tlv], mtu: int) -> None:
    packets = pack(sent, mtu=mtu)
    assert all(len(packet) + 48 <= mtu for packet in packets)
    received = [tlv for packet in packets for tlv in decode(packet, source=SOURCE)]
    assert received == [resolved(tlv) for tlv in sent]


@given(st.lists(tlvs, max_size=20))
def test_packing_what_was_decoded_gives_the_same_octets(sent: list[Tlv]) -> None:
    packets = pack(sent, mtu=1500, source=SOURCE)
    for packet in packets:
        assert pack(decode(packet, source=SOURCE), mtu=1500, source=SOURCE) == [packet]


@given(st.binary(max_size=200))
@example(b"")
def test_random_octets(packet: bytes) -> None:
    with contextlib.suppress(DecodeError):
        decode(packet, source=SOURCE)


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_random_body(body: bytes) -> None:
    header = b"\x2a\x02" + len(body).to_bytes(2, "big")
    with contextlib.suppress(DecodeError):
        decode(header + body, source=SOURCE)


@settings(max_examples=500)
@given(st.lists(tlvs, min_size=1, max_size=6), st.data())
def test_mutated_packet(sent: list[Tlv], data: st.DataObject) -> None:
    packet = bytearray(pack(sent, mtu=1500)[0])
    for _ in range(data.draw(st.integers(1, 5))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del packet[data.draw(st.integers(0, len(packet))) :]
    with contextlib.suppress(DecodeError):
        received = decode(bytes(packet), source=SOURCE)
        # Whatever was understood can be said again.
        pack(received, mtu=1500)
