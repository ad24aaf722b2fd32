"""tools/dissect against the codec and tshark, on captures of real meshes and on random packets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from routing.codec import DecodeError, decode, pack
from routing.tlv import Hello, Ihu, RouteRequest, SeqnoRequest, Tlv, Update, WildcardRetraction
from tests.routing.strategies import tlvs
from tests.tools.babel_readers import assert_agrees_with_codec, assert_agrees_with_tshark, packets_in
from tests.tools.tcpdump_reader import assert_agrees_with_tcpdump
from tools.dissector import layers, words
from tools.dissector.main import describe, main
from tools.ns import Namespaces

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = sorted((ROOT / "tests/vectors/captures").glob("*.pcap"))
FOR_TSHARK = [path for path in CAPTURES if "round-trip" not in path.name]  # IHU timestamps are malformed, it says
VECTORS = ROOT / "tests/vectors/babel/packets.json"
SOURCE = "fe80::1"
SHOWN_AS_SENT = "bits beyond a prefix's length are ignored"  # by tshark and tcpdump they are not
ROUTER = bytes.fromhex("02005efffe005301")


def lines(*tlv_octets: str) -> list[str]:
    body = b"".join(bytes.fromhex(octets) for octets in tlv_octets)
    packet = layers.Babel(b"\x2a\x02" + len(body).to_bytes(2, "big") + body)
    return [words.line(record) for record in words.PacketReader(SOURCE).read(packet)]


def test_there_are_captures_of_every_peer() -> None:
    assert {capture.name.partition("-")[0] for capture in CAPTURES} == {"babeld", "bird", "frr"}


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_the_codec_reads_the_same_in_real_captures(capture: Path) -> None:
    assert sum(assert_agrees_with_codec(packet) for packet in packets_in(capture)) > 20


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("capture", FOR_TSHARK, ids=lambda path: path.stem)
def test_tshark_reads_the_same_in_real_captures(capture: Path) -> None:
    assert assert_agrees_with_tshark(capture) > 20


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_tcpdump_reads_the_same_in_real_captures(capture: Path) -> None:
    assert assert_agrees_with_tcpdump(capture) > 20


def capture_of_vectors(directory: Path, is_wanted: Callable[[list[dict[str, Any]]], bool]) -> Path:
    """A capture of those packets of tests/vectors/babel that are well-formed and `is_wanted`."""
    packets = []
    for name in ("packets", "macs"):
        for vector in json.loads((ROOT / f"tests/vectors/babel/{name}.json").read_text())["vectors"]:
            if vector.get("error") or vector["name"] == SHOWN_AS_SENT:
                continue
            octets = bytes.fromhex(vector["packet"])
            ip = IPv6(src=vector["source"], dst=vector.get("destination", "ff02::1:6"), hlim=1)
            packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / UDP(sport=6696, dport=6696) / octets
            described = describe(Ether(raw(packet)))
            is_malformed = any(record.get("malformed") for record in described["tlvs"])
            if not is_malformed and is_wanted(described["tlvs"]):
                packets.append(packet)
    wrpcap(str(directory / "vectors.pcap"), packets)
    return directory / "vectors.pcap"


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_the_same_in_the_test_vectors(tmp_path: Path) -> None:
    def is_wanted(records: list[dict[str, Any]]) -> bool:
        return not any(record["tlv"] == "IHU" and record["sub_tlvs"] for record in records)

    assert assert_agrees_with_tshark(capture_of_vectors(tmp_path, is_wanted)) > 100


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_tcpdump_reads_the_same_in_the_test_vectors(tmp_path: Path) -> None:
    assert assert_agrees_with_tcpdump(capture_of_vectors(tmp_path, lambda _: True)) > 100


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_what_is_decoded_from_real_captures_can_be_packed_and_decoded_again(capture: Path) -> None:
    for packet in packets_in(capture):
        source = IPv6Address(packet[IPv6].src)
        once = decode(packet[layers.Babel].original, source=source)
        again = [tlv for octets in pack(once, mtu=1500, source=source) for tlv in decode(octets, source=source)]
        assert [_without_idle_next_hop(tlv) for tlv in again] == [_without_idle_next_hop(tlv) for tlv in once]


def _without_idle_next_hop(tlv: Tlv) -> Tlv:
    """That of a retraction means nothing; BIRD sends none, and we fill it in."""
    if isinstance(tlv, Update) and tlv.metric == 65535:
        return replace(tlv, next_hop=None)
    return tlv


@settings(max_examples=200, deadline=None)
@given(st.lists(tlvs, min_size=1, max_size=12))
def test_the_codec_reads_the_same_in_whatever_it_packs(sent: list[Tlv]) -> None:
    for octets in pack(sent, mtu=1500):
        packet = IPv6(src=SOURCE, dst="ff02::1:6") / UDP(sport=6696, dport=6696) / layers.Babel(octets)
        assert_agrees_with_codec(packet)


@settings(max_examples=400, deadline=None)
@given(st.lists(tlvs, min_size=1, max_size=4), st.data())
def test_a_damaged_packet_is_read_as_the_codec_reads_it_or_said_to_be_malformed(
    sent: list[Tlv], data: st.DataObject
) -> None:
    octets = bytearray(pack(sent, mtu=1500)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(4, len(octets) - 1))] = data.draw(st.integers(0, 255))
    packet = IPv6(src=SOURCE, dst="ff02::1:6") / UDP(sport=6696, dport=6696) / layers.Babel(bytes(octets))
    described = describe(packet)
    assert all(words.line(record) for record in described["tlvs"])
    try:
        decode(bytes(octets), source=IPv6Address(SOURCE))
    except DecodeError:
        assert any(record.get("malformed") for record in described["tlvs"])
    else:
        assert_agrees_with_codec(packet)


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        ("04 06 8000 0001 0190", "unicast Hello 1, next within 4 s"),
        ("04 0c 0000 0001 0190 03 04 000f4240", "Hello 1, next within 4 s; sub-TLV Timestamp transmitted_us 1000000"),
        (
            "05 10 00 00 0060 04b0 03 08 00000001 00000002",
            "IHU: I hear whoever gets this, receive cost 96, holds for 12 s; "
            "sub-TLV Timestamp origin_us 1 received_us 2",
        ),
        ("05 06 00 00 ffff 04b0", "IHU: I do not hear whoever gets this, receive cost 65535, holds for 12 s"),
        ("08 0a 00 00 00 00 ffff 0000 ffff", "Update: everything is retracted"),
        (
            "09 0d 02 30 fd0100020003 80 03 10 fd01",
            "Route Request: fd01:2:3::/48; for packets from fd01::/16",
        ),
        ("10 04 01020304", "MAC body 01020304"),
        ("11 06 00000007 abcd", "PC counter 7 index abcd"),
        ("12 02 abcd", "Challenge Request body abcd"),
        ("13 02 abcd", "Challenge Reply body abcd"),
        ("c8 01 00", "unknown 200 body 00"),
        ("04 02 0000", "malformed Hello body 0000"),
        ("09 04 02 30 fd01", "malformed Route Request body 0230fd01"),
        ("04 09 00", "malformed Remains body 040900"),
        ("01 02 0000", "PadN body 0000"),
        ("00", "Pad1"),
    ],
)
def test_words(octets: str, said: str) -> None:
    assert lines(octets) == [said]


def test_an_update_is_shown_whole() -> None:
    router_id = "06 0a 0000 02005efffe005301"
    host = "08 22 02 80 80 00 0640 0007 0060 fd010002000300000000000000000042 70 06 ffffffff 0005"
    compressed = "08 0c 02 00 80 0e 0640 0007 0060 0043"
    _, first, second = lines(router_id, host, compressed)
    told = "via fe80::1, metric 96, seqno 7 of router 02005efffe005301, holds for 16 s"
    assert first == f"Update: fd01:2:3::42/128 {told}; price not for sale (epoch 5)"
    assert second == f"Update: fd01:2:3::43/128 {told}"


def test_the_trailer_is_told_apart() -> None:
    packet = layers.Babel(bytes.fromhex("2a020004 03021234 1002abcd"))
    said = [words.line(record) for record in words.PacketReader(SOURCE).read(packet)]
    assert said == ["Acknowledgment 4660", "trailer: MAC body abcd"]


def test_more_tlvs_than_scapy_takes_by_itself() -> None:
    assert len(lines(*["03021234"] * 300)) == 300


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", str(CAPTURES[0])]) == 0
    described = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert described == [describe(packet) for packet in packets_in(CAPTURES[0])]
    assert main(["--count", "1", str(CAPTURES[0])]) == 0
    head, *rest = capsys.readouterr().out.splitlines()
    assert f"{described[0]['source']} > {described[0]['destination']}" in head
    assert len(rest) == len(described[0]["tlvs"])


@pytest.mark.parametrize("argument", ["nowhere.pcap", str(ROOT / "pyproject.toml"), "--interface=nowhere0"])
def test_what_cannot_be_read_is_one_line(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("dissect: ") and output.err.count("\n") == 1


@pytest.mark.namespaces
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip")
def test_a_live_interface() -> None:
    packet = next(v for v in json.loads(VECTORS.read_text())["vectors"] if v["name"] == "price")["packet"]
    sender = f"""
import socket, time
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
    sender.bind(("::1", 6696))
    while True:
        sender.sendto(bytes.fromhex("{packet}"), ("::1", 6696))
        time.sleep(0.1)
"""
    with Namespaces("dissect-") as namespaces:
        namespaces.add("n")
        namespaces.popen("n", [sys.executable, "-S", "-c", sender], stdout=None)
        command = [str(ROOT / "tools/dissect"), "--json", "--interface", "lo", "--count", "1"]
        (line,) = namespaces.run("n", command).splitlines()
    (router_id, update) = json.loads(line)["tlvs"]
    assert (router_id["router_id"], update["prefix"]) == ("02005efffe005301", "fd01:2:3::/48")
    assert update["sub_tlvs"][0]["price_msat_per_gb"] == 1_000_000


def test_the_script() -> None:
    done = subprocess.run([ROOT / "tools/dissect", "--help"], capture_output=True, text=True, check=True, timeout=240)
    assert "capture file" in done.stdout


def test_every_address_encoding() -> None:
    sent: list[Tlv] = [
        Hello(1, 400),
        Ihu(96, 1200, IPv6Address("2001:db8::1")),
        Ihu(96, 1200, IPv4Address("192.0.2.1")),
        RouteRequest(IPv4Network("192.0.2.0/24")),
        SeqnoRequest(IPv6Network("fd01::/17"), 8, 64, ROUTER),
        WildcardRetraction(),
        Update(IPv4Network("10.1.0.0/16"), 96, 3, 1600, ROUTER, IPv4Address("10.0.0.1")),
        Update(IPv4Network("10.2.0.0/15"), 96, 3, 1600, ROUTER),
    ]
    (octets,) = pack(sent, mtu=1500)
    packet = IPv6(src=SOURCE, dst="ff02::1:6") / UDP(sport=6696, dport=6696) / layers.Babel(octets)
    assert assert_agrees_with_codec(packet) == len(sent)
