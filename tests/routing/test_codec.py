"""The wire format, against octets written by hand from RFC 8966 section 4, and against tshark."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from routing.codec import DecodeError, decode, pack
from routing.tlv import Ack, AckRequest, Hello, Ihu, RouteRequest, SeqnoRequest, Tlv, Update, WildcardRetraction

SOURCE = IPv6Address("fe80::1")
ROUTER = bytes.fromhex("0200 5eff fe00 5301")
PREFIX = IPv6Network("fd01:2:3::/48")


def packet(*tlvs: str) -> bytes:
    body = b"".join(bytes.fromhex(tlv) for tlv in tlvs)
    return b"\x2a\x02" + len(body).to_bytes(2, "big") + body


def read(*tlvs: str) -> tuple[Tlv, ...]:
    return decode(packet(*tlvs), source=SOURCE)


ROUTER_ID_TLV = "06 0a 0000 02005efffe005301"
# AE 2, no flags, /48, nothing omitted, interval 16 s, seqno 7, metric 96
UPDATE_TLV = "08 10 02 00 30 00 0640 0007 0060 fd0100020003"
UPDATE = Update(PREFIX, 96, 7, 1600, ROUTER, SOURCE)


@pytest.mark.parametrize(
    ("octets", "tlv"),
    [
        ("02 06 0000 1234 0064", AckRequest(0x1234, 100)),
        ("03 02 1234", Ack(0x1234)),
        ("04 06 0000 0001 0190", Hello(1, 400)),
        ("04 06 8000 0001 0190", Hello(1, 400, unicast=True)),
        ("04 0c 0000 0001 0190 03 04 000f4240", Hello(1, 400, timestamp=1_000_000)),
        ("05 10 00 00 0060 04b0 03 08 00000001 00000002", Ihu(96, 1200, None, (1, 2))),
        ("05 06 00 00 0060 04b0", Ihu(96, 1200)),
        ("05 0e 03 00 0060 04b0 0000000000000002", Ihu(96, 1200, IPv6Address("fe80::2"))),
        ("05 0a 01 00 0060 04b0 c0000201", Ihu(96, 1200, IPv4Address("192.0.2.1"))),
        ("09 02 00 00", RouteRequest(None)),
        ("09 08 02 30 fd0100020003", RouteRequest(PREFIX)),
        ("0a 14 02 30 0008 40 00 02005efffe005301 fd0100020003", SeqnoRequest(PREFIX, 8, 64, ROUTER)),
        ("08 0a 00 00 00 00 ffff 0000 ffff", WildcardRetraction()),
    ],
)
def test_each_tlv(octets: str, tlv: Tlv) -> None:
    assert read(octets) == (tlv,)
    assert pack([tlv], mtu=1500) == [packet(octets)]


def test_an_update_is_preceded_by_its_router_id() -> None:
    assert read(ROUTER_ID_TLV, UPDATE_TLV) == (UPDATE,)
    assert pack([UPDATE], mtu=1500, source=SOURCE) == [
        packet(ROUTER_ID_TLV, "08 10 02 80 30 00 0640 0007 0060 fd0100020003")
    ]


def test_the_price_follows_the_prefix() -> None:
    priced = read(ROUTER_ID_TLV, "08 18 02 00 30 00 0640 0007 0060 fd0100020003 70 06 000f4240 0005")
    assert priced == (Update(PREFIX, 96, 7, 1600, ROUTER, SOURCE, 1_000_000, 5),)


def test_an_update_without_router_id_is_ignored_but_a_retraction_needs_none() -> None:
    assert read(UPDATE_TLV) == ()
    assert read("08 10 02 00 30 00 0640 0007 ffff fd0100020003") == (Update(PREFIX, 65535, 7, 1600, bytes(8), SOURCE),)


def test_prefix_and_router_id_flags() -> None:
    host = "08 1a 02 c0 80 00 0640 0007 0060 fd010002000300000000000000000042"
    compressed = "08 0c 02 00 80 0e 0640 0007 0060 0043"
    first, second = read(host, compressed)
    assert isinstance(first, Update) and isinstance(second, Update)
    assert first.router_id == second.router_id == bytes(7) + b"\x42"
    assert second.prefix == IPv6Network("fd01:2:3::43/128")


def test_omitted_octets_need_a_default_prefix() -> None:
    assert read(ROUTER_ID_TLV, "08 0c 02 00 80 0e 0640 0007 0060 0043") == ()


def test_an_unknown_optional_sub_tlv_is_skipped_and_a_mandatory_one_hides_the_tlv() -> None:
    assert read("04 09 0000 0001 0190 7f 01 00") == (Hello(1, 400),)
    assert read("04 09 0000 0001 0190 80 01 00", "03 02 1234") == (Ack(0x1234),)


def test_a_hidden_update_still_sets_the_default_prefix() -> None:
    hidden = "08 1d 02 80 80 00 0640 0007 0060 fd010002000300000000000000000042 80 01 00"
    (update,) = read(ROUTER_ID_TLV, hidden, "08 0c 02 00 80 0e 0640 0007 0060 0043")
    assert isinstance(update, Update) and update.prefix == IPv6Network("fd01:2:3::43/128")


def test_padding_unknown_tlvs_and_the_trailer_are_skipped() -> None:
    octets = packet("00", "01 03 000000", "c8 02 abcd", "03 02 1234") + bytes.fromhex("04 06 0000 0001 0190")
    assert decode(octets, source=SOURCE) == (Ack(0x1234),)


@pytest.mark.parametrize(
    "octets",
    [
        "03 01 12",  # too short
        "04 05 0000 0001 01",
        "05 0e 05 00 0060 04b0 0000000000000002",  # unknown address encoding
        "05 0a 02 00 0060 04b0 c0000201",  # address cut
        "09 08 02 81 fd0100020003",  # /129
        "09 04 02 30 fd01",  # prefix cut
        "0a 14 02 30 0008 00 00 02005efffe005301 fd0100020003",  # hop count 0
        "0a 0e 00 00 0008 40 00 02005efffe005301",  # no prefix
        "08 0a 00 00 00 00 0640 0000 0060",  # wildcard that is no retraction
        "08 0a 00 00 01 00 ffff 0000 ffff",  # wildcard with a length
        "08 0a 00 00 00 01 ffff 0000 ffff",  # wildcard with omitted octets
    ],
)
def test_a_malformed_tlv_is_ignored_alone(octets: str) -> None:
    assert read(octets, "03 02 1234") == (Ack(0x1234),)


@pytest.mark.parametrize(
    "octets",
    ["", "2a", "2a020001", "2b020000", "2a010000", "2a02000103", "2a020002 0305", "2a02000401010003"],
)
def test_broken_framing_is_a_decode_error(octets: str) -> None:
    with pytest.raises(DecodeError):
        decode(bytes.fromhex(octets), source=SOURCE)


def test_ipv4_goes_by_ipv6() -> None:
    update = Update(IPv4Network("192.0.2.0/24"), 96, 7, 1600, ROUTER)
    octets = packet(ROUTER_ID_TLV, "08 0d 04 00 18 00 0640 0007 0060 c00002")
    assert pack([update], mtu=1500) == [octets]
    assert decode(octets, source=SOURCE) == (Update(update.prefix, 96, 7, 1600, ROUTER, SOURCE),)


def test_ipv4_needs_its_next_hop() -> None:
    octets = "08 0d 01 00 18 00 0640 0007 0060 c00002"
    next_hop = "07 06 01 00 c0000263"
    assert read(ROUTER_ID_TLV, octets) == ()
    (update,) = read(ROUTER_ID_TLV, next_hop, octets)
    assert isinstance(update, Update) and update.next_hop == IPv4Address("192.0.2.99")


def test_updates_are_split_at_the_mtu_and_each_packet_stands_alone() -> None:
    updates = [Update(IPv6Network((0xFD << 120 | i, 128)), 96, 7, 1600, ROUTER, SOURCE) for i in range(200)]
    packets = pack(updates, mtu=1280)
    assert len(packets) > 2
    assert max(len(p) for p in packets) <= 1280 - 48
    assert [tlv for p in packets for tlv in decode(p, source=SOURCE)] == updates


def _pcap(packets: list[bytes]) -> bytes:
    """Raw IPv6 (link type 229): a capture file without a network."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 229)
    destination = IPv6Address("ff02::1:6").packed
    for payload in packets:
        udp = struct.pack("!HHHH", 6696, 6696, len(payload) + 8, 0)
        ip = struct.pack("!IHBB", 6 << 28, len(payload) + 8, 17, 1) + SOURCE.packed + destination
        frame = ip + udp + payload
        out += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    return out


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_what_we_send(tmp_path: Path) -> None:
    rng = random.Random(1)
    tlvs: list[Tlv] = [
        Hello(1, 400),
        Ihu(96, 1200, IPv6Address("fe80::2")),
        AckRequest(1, 100),
        Ack(1),
        RouteRequest(None),
        RouteRequest(PREFIX),
        SeqnoRequest(PREFIX, 8, 64, ROUTER),
        WildcardRetraction(),
    ]
    for i in range(60):
        prefix = IPv6Network((0xFD << 120 | rng.getrandbits(100), rng.choice((48, 64, 128))), strict=False)
        price = rng.choice((None, 1_000_000))
        tlvs.append(Update(prefix, rng.choice((96, 65535)), i, 1600, rng.randbytes(8), None, price, 3 if price else 0))
    capture = tmp_path / "babel.pcap"
    capture.write_bytes(_pcap(pack(tlvs, mtu=1500)))
    command = ["tshark", "-r", str(capture), "-T", "fields", "-e", "_ws.malformed", "-e", "babel.message.type"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    fields = [line.split("\t") for line in done.stdout.splitlines()]
    assert all(malformed == "" for malformed, _ in fields), done.stdout
    types = [int(number) for _, numbers in fields for number in numbers.split(",")]
    assert types.count(8) == 61
    assert {2, 3, 4, 5, 6, 8, 9, 10} == set(types)


def test_every_packet_with_updates_begins_with_a_router_id_also_for_retractions() -> None:
    """babeld of FRR 8.4 ignores a retraction without one."""
    retractions = [Update(IPv6Network((0xFD << 120 | i, 128)), 65535, 1, 1600, ROUTER) for i in range(100)]
    packets = pack(retractions, mtu=600)
    assert len(packets) > 1
    assert {octets[4:16] for octets in packets} == {bytes.fromhex(ROUTER_ID_TLV)}
