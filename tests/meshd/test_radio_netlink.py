"""nl80211 and batman-adv as recorded from a real kernel (tests/vectors/netlink), whole and damaged."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from meshd.kernel import NetlinkError, batman, nl80211
from meshd.kernel.batman import read_client, read_mesh, read_path
from meshd.kernel.devices import Device, Devices, read_device
from meshd.kernel.generic import GenericNetlink, mac_address, nested, number, string, text, u32, values
from meshd.kernel.netlink import attribute
from meshd.kernel.nl80211 import RadioType, read_radio, read_station, read_wiphy

VECTORS = Path(__file__).parents[1] / "vectors" / "netlink"
IBSS, MESH = (json.loads((VECTORS / f"{name}.json").read_text()) for name in ("ibss-batman-iv", "mesh-point-batman-v"))
OURS, NEAR, MIDDLE, FAR = (bytes((2, 0, 0, 0, node, 0)) for node in range(4))


def recorded(vector: dict[str, Any], name: str) -> list[bytes]:
    return [bytes.fromhex(item) for item in vector[name]]


def test_an_ad_hoc_cell() -> None:
    (radio,) = map(read_radio, recorded(IBSS, "interface"))
    assert radio == nl80211.Radio(2, "wlan0", 0, OURS, RadioType.IBSS, b"meshtest", 2412)


def test_a_mesh_point_does_not_tell_its_mesh() -> None:
    (radio,) = map(read_radio, recorded(MESH, "interface"))
    assert radio == nl80211.Radio(2, "wlan0", 0, OURS, RadioType.MESH_POINT, None, 2412)


def test_stations() -> None:
    (station,) = map(read_station, recorded(IBSS, "station"))
    assert station is not None and station.mac == NEAR
    # `iw` said: signal -30 dBm, tx bitrate 14.4 MBit/s, expected throughput 9.704 Mbps (of 1024 kbit), 5 packets
    assert (station.signal, station.tx_bitrate, station.expected_throughput) == (-30, 14_400, 9937)
    assert (station.tx_packets, station.tx_retries, station.tx_failed) == (5, 0, 0)
    assert station.inactive is not None and 0 <= station.inactive < 1
    assert station.is_peer
    (peer,) = map(read_station, recorded(MESH, "station"))
    assert peer is not None
    assert (peer.tx_bitrate, peer.expected_throughput, peer.is_peer) == (130_000, 46_312, True)


def test_a_peer_link_that_is_not_established() -> None:
    (station,) = map(read_station, [attribute(6, NEAR) + nested(21, attribute(6, b"\2"))])
    assert station is not None and not station.is_peer
    assert station.expected_throughput is None and station.inactive is None


def test_what_a_radio_can_do() -> None:
    wiphy = read_wiphy(recorded(IBSS, "wiphy"), 0)
    assert {RadioType.IBSS, RadioType.MESH_POINT, RadioType.AP} <= wiphy.types
    assert wiphy.frequencies[2412] and not wiphy.frequencies[5180]  # no-IR in the world domain
    assert read_wiphy(recorded(IBSS, "wiphy"), 1).types == frozenset()


def test_a_mesh_of_batman_adv() -> None:
    (mesh,) = map(read_mesh, recorded(IBSS, "mesh"))
    assert mesh == batman.Mesh(3, "bat0", "BATMAN_IV", "2022.3", loop_avoidance=False)
    (mesh,) = map(read_mesh, recorded(MESH, "mesh"))
    assert mesh is not None and mesh.algorithm == "BATMAN_V"


def test_paths_have_a_tq_or_a_throughput() -> None:
    paths = {path.mac: path for path in map(read_path, recorded(IBSS, "originators")) if path is not None}
    assert {mac: path.tq for mac, path in paths.items()} == {NEAR: 251, MIDDLE: 195, FAR: 151}
    assert all(path.is_best and path.neighbour == NEAR and path.throughput is None for path in paths.values())
    assert all(0 <= path.last_seen < 10 for path in paths.values())
    paths = {path.mac: path for path in map(read_path, recorded(MESH, "originators")) if path is not None}
    assert {mac: path.throughput for mac, path in paths.items()} == {NEAR: 46_200, MIDDLE: 17_400, FAR: 9_000}
    (neighbour,) = map(read_path, recorded(MESH, "neighbours"))
    assert neighbour is not None
    assert (neighbour.mac, neighbour.throughput, neighbour.interface_index) == (NEAR, 46_200, 2)


def test_clients_lead_to_originators() -> None:
    found: dict[bytes, bytes] = {}
    for data in recorded(IBSS, "clients"):
        read_client(data, found)
    assert found[bytes.fromhex("2e724853c26b")] == NEAR
    assert found[bytes.fromhex("9a10a8feee77")] == MIDDLE
    assert found[bytes.fromhex("aaf3fa9a8acf")] == FAR


def test_of_several_that_announce_a_client_the_best_counts() -> None:
    client = b"client"

    def entry(originator: bytes, *, best: bool, vlan: int = 0) -> bytes:
        data = attribute(16, client) + attribute(9, originator) + attribute(20, vlan.to_bytes(2, "little"))
        return data + (attribute(22, b"") if best else b"")

    found: dict[bytes, bytes] = {}
    for data in (entry(FAR, best=False), entry(NEAR, best=True), entry(MIDDLE, best=False)):
        read_client(data, found)
    assert found == {client: NEAR}
    read_client(entry(FAR, best=True, vlan=0x8001), found)
    assert found == {client: NEAR}


READERS = (read_radio, read_station, read_mesh, read_path, lambda data: read_wiphy([data], 0))
SAMPLES = [
    data for vector in (IBSS, MESH) for name in vector if name != "provenance" for data in recorded(vector, name)
]


@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_messages_are_refused_or_read_but_nothing_else_happens(sample: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(sample) - 1))
    damaged = sample[:at] + data.draw(st.binary(max_size=8)) + sample[at + data.draw(st.integers(0, 8)) :]
    for reader in (*READERS, lambda data: read_client(data, {})):
        try:
            reader(damaged)
        except NetlinkError as error:
            assert error.code  # EBADMSG


def test_values_of_another_length_are_not_taken() -> None:
    found = values(attribute(1, b"\1\0\0\0") + attribute(2, b"\1\0") + attribute(3, b"12345") + string(4, "x"))
    assert number(found, 1, 4) == 1
    assert number(found, 2, 4) is None
    assert mac_address(found, 3) is None
    assert text(found, 4) == "x" and text(found, 5) is None
    with pytest.raises(NetlinkError):
        values(u32(1, 5)[:-2])


def test_families_are_found_by_name_in_this_kernel() -> None:
    async def scenario() -> None:
        with GenericNetlink("nlctrl") as control:
            assert await control.is_there()
            answers = await control.dump(3)
            assert "nlctrl" in {text(values(answer), 2) for answer in answers}
        with GenericNetlink("no such thing") as nothing:
            assert not await nothing.is_there()
            with pytest.raises(NetlinkError, match="this kernel has no no such thing") as refused:
                await nothing.request(1, b"")
            assert refused.value.code == errno.ENOENT

    trio.run(scenario)


def test_without_a_wireless_stack_or_batman_adv_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nl80211, "FAMILY", "no such thing")
    monkeypatch.setattr(batman, "FAMILY", "no such thing")

    async def scenario() -> None:
        with nl80211.Nl80211() as radios, batman.Batman() as meshes:
            assert await radios.radios() == {}
            assert not await meshes.is_there()
            assert await meshes.mesh(1) is None

    trio.run(scenario)


def test_devices_of_this_kernel() -> None:
    async def scenario() -> None:
        with Devices() as devices:
            loopback = (await devices.all())["lo"]
            assert (loopback.index, loopback.mac, loopback.kind, loopback.master) == (1, bytes(6), "", 0)

    trio.run(scenario)


def test_a_member_of_a_mesh() -> None:
    head = bytes((0, 0, 1, 0)) + (7).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(4)
    info = nested(18, string(1, "batadv"))
    told = head + string(3, "wlan0") + attribute(1, NEAR) + u32(4, 1532) + u32(10, 5) + info + string(20, "a mesh")
    assert read_device(told) == Device(7, "wlan0", NEAR, 1532, True, 5, "batadv", "a mesh")
    assert read_device(head) is None
    assert read_device(head[:8]) is None
