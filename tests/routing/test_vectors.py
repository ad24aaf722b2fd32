"""The test vectors for other implementations (tests/vectors/babel), on our own: what they say must hold here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from routing import tlv as tlv_module
from routing.authentication import Authenticator, Drop, MacAlgorithm, MacKey
from routing.codec import DecodeError, decode, encode_packet, encode_tlv, framed, pack, split_packet
from routing.rules import price_metric
from routing.tlv import Tlv, Update
from tests.interop.captures import read_capture
from tests.routing.chart import DESTINATION, SOURCE_ID, Chart

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
Vector = dict[str, Any]


def vectors(name: str) -> list[Any]:
    """As pytest parameters."""
    rows = json.loads((VECTORS / "babel" / f"{name}.json").read_text())["vectors"]
    return [pytest.param(row, id=row.get("name")) for row in rows]


READERS: dict[str, Callable[[Any], object]] = {
    "router_id": bytes.fromhex,
    "prefix": ip_network,
    "source_prefix": ip_network,
    "next_hop": ip_address,
    "address": ip_address,
    "timestamps": tuple,
}


def tlv_of(plain: Vector) -> Tlv:
    kind = getattr(tlv_module, plain["tlv"])
    names = {field.name for field in dataclasses.fields(kind)}
    assert names == plain.keys() - {"tlv"}, "every field is told"
    values = {
        name: READERS[name](plain[name]) if name in READERS and plain[name] is not None else plain[name]
        for name in names
    }
    made: Tlv = kind(**values)
    return made


@pytest.mark.parametrize("vector", vectors("packets"))
def test_packets(vector: Vector) -> None:
    octets, source = bytes.fromhex(vector["packet"]), IPv6Address(vector["source"])
    if vector.get("error"):
        with pytest.raises(DecodeError):
            decode(octets, source=source)
        return
    meant = tuple(tlv_of(plain) for plain in vector["tlvs"])
    assert decode(octets, source=source) == meant
    packed = pack(meant, mtu=1500, source=source)
    assert tuple(tlv for packet in packed for tlv in decode(packet, source=source)) == meant
    if vector.get("canonical"):
        assert [packet.hex() for packet in packed] == [vector["packet"]]


def test_all_kinds_of_tlvs_are_there() -> None:
    rows = [param.values[0] for param in vectors("packets")]
    said = {plain["tlv"] for row in rows for plain in row.get("tlvs", ())}
    assert said == {kind.__name__ for kind in Tlv.__args__}


@pytest.mark.parametrize("vector", vectors("price_metrics"))
def test_price_metrics(vector: Vector) -> None:
    assert price_metric(vector["price_msat_per_gb"], float(vector["price_weight"])) == vector["price_metric"]


@pytest.mark.parametrize("vector", vectors("relays"))
def test_relays(vector: Vector) -> None:
    """The whole speaker: a route is heard on one interface, and announced on the other."""
    chart = Chart(fee_msat_per_gb=vector["own_fee_msat_per_gb"], price_weight=float(vector["price_weight"]))
    chart.up("heard", cost=vector["link_cost"])
    chart.hello("heard", txcost=vector["link_cost"], interval_cs=60000)
    chart.meet("told")
    heard = (vector["heard_metric"], 1, 60000, SOURCE_ID, None, vector["heard_price_msat_per_gb"])
    chart.hear("heard", Update(DESTINATION, *heard))
    chart.wait(2.0)
    (route,) = chart.speaker.routes()
    assert (route.metric, route.is_selected) == (vector["metric"], vector["is_usable"])
    sent = [update for update in chart.sent(Update, "told") if update.prefix == DESTINATION and update.metric < 65535]
    said = {(update.metric, update.price_msat_per_gb or 0) for update in sent}
    price = vector["announced_price_msat_per_gb"]
    assert said == (set() if price is None else {(vector["announced_metric"], price)})


@pytest.mark.parametrize("vector", vectors("macs"))
def test_macs(vector: Vector) -> None:
    keys = tuple(MacKey(MacAlgorithm(key["algorithm"]), bytes.fromhex(key["key"])) for key in vector["keys"])
    source, destination = IPv6Address(vector["source"]), IPv6Address(vector["destination"])
    receiver = Authenticator(keys, address=IPv6Address("fe80::99"), port=vector["port"], octets=bytes)
    packet = bytes.fromhex(vector["packet"])
    drop = receiver.check(packet, source=source, destination=destination, now=0.0).drop
    assert drop is Drop.CHALLENGED if vector["is_genuine"] else drop in {Drop.WRONG_MAC, Drop.NO_MAC}
    _, trailer = split_packet(packet)
    if vector["is_genuine"] and len(keys) == len(framed(trailer)):
        # The other direction: as the sender, with the counter and index that are in it.
        assert _signed_again(keys, vector, packet[: len(packet) - len(trailer)]) == packet


def _signed_again(keys: tuple[MacKey, ...], vector: Vector, packet: bytes) -> bytes:
    body, _ = split_packet(packet)
    tlvs = framed(body)
    counter = next(value for tlv_type, value in tlvs if tlv_type == 17)
    if tlvs[-1] != (17, counter) or len(counter) != 12:
        return bytes.fromhex(vector["packet"])  # ours is the last, of eight octets
    sender = Authenticator(
        keys, address=IPv6Address(vector["source"]), port=vector["port"], octets=lambda _: counter[4:]
    )
    sender._counter = int.from_bytes(counter[:4], "big") - 1
    bare = encode_packet(b"".join(encode_tlv(*tlv) for tlv in tlvs[:-1]))
    return sender.protect(bare, destination=IPv6Address(vector["destination"]))


@pytest.mark.parametrize("vector", vectors("counters"))
def test_counters(vector: Vector) -> None:
    key = MacKey(MacAlgorithm.BLAKE2S, b"key")
    ours, theirs, group = IPv6Address("fe80::1"), IPv6Address("fe80::2"), IPv6Address("ff02::1:6")
    receiver = Authenticator((key,), address=ours, port=6696, octets=bytes)
    sender = Authenticator((key,), address=theirs, port=6696, octets=bytes)

    def verdict(counter: int, body: bytes, to: IPv6Address) -> Drop | None:
        sender._counter = counter - 1
        packet = sender.protect(encode_packet(body), destination=to)
        return receiver.check(packet, source=theirs, destination=to, now=0.0).drop

    assert verdict(1, b"", ours) is Drop.CHALLENGED
    assert verdict(vector["challenge_answered_at"], encode_tlv(19, bytes(16)), ours) is None
    for is_multicast, counter, is_accepted in vector["packets"]:
        expected = None if is_accepted else Drop.REPLAYED
        assert verdict(counter, b"", group if is_multicast else ours) is expected, (is_multicast, counter)


@pytest.mark.parametrize("name", ["babeld-mac-hmac-sha256", "bird-mac-blake2s128"])
def test_every_mac_in_the_captures(name: str) -> None:
    """Of both ends: we verify those of the other implementation as it verified ours."""
    algorithm = MacAlgorithm.HMAC_SHA256 if "sha256" in name else MacAlgorithm.BLAKE2S
    packets = list(read_capture(VECTORS / "captures" / f"{name}.pcap"))
    for packet in packets:
        receiver = Authenticator(
            (MacKey(algorithm, bytes(range(32))),), address=IPv6Address("fe80::99"), port=6696, octets=bytes
        )
        verdict = receiver.check(packet.payload, source=packet.source, destination=packet.destination, now=0.0)
        assert verdict.drop is Drop.CHALLENGED
    assert len({packet.source for packet in packets}) == 2
