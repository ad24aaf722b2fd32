"""Radios as the kernel's nl80211 shows them (linux/nl80211.h): what an interface is, and how its stations are reached.

Stations are the neighbours that a driver keeps figures of, by MAC address. What comes from the driver is checked: a
figure of an unexpected length counts as not known.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from meshd.kernel.generic import GenericNetlink, mac_address, nested, number, signed, u32, values
from meshd.kernel.netlink import Conversation, NetlinkError, attribute

FAMILY = "nl80211"
MAX_STATIONS = 2048  # more than any driver holds

_GET_WIPHY, _GET_INTERFACE, _SET_INTERFACE, _GET_STATION = 1, 5, 6, 17
_GET_MESH_CONFIG, _SET_MESH_CONFIG, _GET_SCAN = 28, 29, 32
_JOIN_IBSS, _LEAVE_IBSS, _JOIN_MESH, _LEAVE_MESH = 43, 44, 68, 69
_WIPHY, _IFINDEX, _IFNAME, _IFTYPE, _MAC, _STA_INFO, _BANDS = 1, 3, 4, 5, 6, 21, 22
_MESH_ID, _SUPPORTED_TYPES, _MESH_CONFIG, _FREQUENCY, _BSS, _SSID, _FREQUENCY_FIXED = 24, 32, 35, 38, 47, 52, 60
_CHANNEL_WIDTH, _CENTRE_FREQUENCY, _SPLIT_DUMP = 159, 160, 174
_INACTIVE, _PLINK, _SIGNAL, _TX_BITRATE, _TX_PACKETS, _TX_RETRIES, _TX_FAILED, _EXPECTED = 1, 6, 7, 8, 10, 11, 12, 27
_BITRATE_16, _BITRATE_32 = 1, 5  # units of 100 kbit/s
_PLINK_ESTABLISHED = 4
_BAND_FREQUENCIES, _FREQUENCY_MHZ, _FREQUENCY_DISABLED, _FREQUENCY_NO_IR = 1, 1, 2, 3
_BSS_BSSID, _BSS_STATUS, _STATUS_IBSS_JOINED = 1, 9, 2
_MESH_FORWARDING = 19


class RadioType(IntEnum):
    """enum nl80211_iftype."""

    UNSPECIFIED = 0
    IBSS = 1
    MANAGED = 2
    AP = 3
    AP_VLAN = 4
    WDS = 5
    MONITOR = 6
    MESH_POINT = 7
    P2P_CLIENT = 8
    P2P_GO = 9
    P2P_DEVICE = 10
    OCB = 11
    NAN = 12


class Width(IntEnum):
    """enum nl80211_chan_width: those that a channel alone determines."""

    NO_HT = 0
    HT20 = 1


@dataclass(frozen=True, slots=True)
class Radio:
    """An interface of a radio. `network`: the SSID of the cell that it is in, or the mesh id, where the kernel tells.
    `frequency`: MHz; None: on no channel, so in no network."""

    index: int
    name: str
    wiphy: int
    mac: bytes
    type: RadioType
    network: bytes | None
    frequency: int | None


@dataclass(frozen=True, slots=True)
class Station:
    """A neighbour as the driver sees it; None: it does not say.

    Throughput and bitrate in kbit/s; `signal` in dBm; `inactive`: seconds since anything came from it; `tx_packets`,
    `tx_retries`, `tx_failed` count from its first appearance, modulo 2^32. `is_peer`: false while an 802.11s peer link
    is not established.
    """

    mac: bytes
    inactive: float | None
    signal: int | None
    tx_bitrate: int | None
    tx_packets: int | None
    tx_retries: int | None
    tx_failed: int | None
    expected_throughput: int | None
    is_peer: bool


@dataclass(frozen=True, slots=True)
class Wiphy:
    """What a radio can do. `frequencies`: MHz -> whether it may begin to transmit there."""

    types: frozenset[RadioType]
    frequencies: dict[int, bool]


class Nl80211(Conversation):
    def __init__(self) -> None:
        self._family = GenericNetlink(FAMILY)

    def close(self) -> None:
        self._family.close()

    async def radios(self) -> dict[int, Radio]:
        """By interface index; none where the kernel has no wireless stack."""
        if not await self._family.is_there():
            return {}
        found = (read_radio(data) for data in await self._family.dump(_GET_INTERFACE))
        return {radio.index: radio for radio in found if radio is not None}

    async def stations(self, index: int) -> dict[bytes, Station]:
        """By MAC address. Raises NetlinkError (ENODEV: no such interface)."""
        found = (read_station(data) for data in (await self._family.dump(_GET_STATION, u32(_IFINDEX, index))))
        stations = [station for station in found if station is not None]
        return {station.mac: station for station in stations[:MAX_STATIONS]}

    async def wiphy(self, number: int) -> Wiphy:
        request = u32(_WIPHY, number) + attribute(_SPLIT_DUMP, b"")
        return read_wiphy(await self._family.dump(_GET_WIPHY, request), number)

    async def set_type(self, index: int, kind: RadioType) -> None:
        """The interface must be down. Raises NetlinkError: EOPNOTSUPP, the driver lacks it; EBUSY."""
        await self._family.request(_SET_INTERFACE, u32(_IFINDEX, index) + u32(_IFTYPE, kind))

    async def join_ibss(
        self, index: int, ssid: bytes, *, frequency: int, width: Width, bssid: bytes | None = None
    ) -> None:
        """Found or enter an ad-hoc cell on just this channel. `bssid`: that all its members agree on beforehand."""
        payload = u32(_IFINDEX, index) + attribute(_SSID, ssid) + channel(frequency, width)
        payload += attribute(_FREQUENCY_FIXED, b"")
        if bssid is not None:
            payload += attribute(_MAC, bssid)
        await self._family.request(_JOIN_IBSS, payload)

    async def leave_ibss(self, index: int) -> None:
        await self._family.request(_LEAVE_IBSS, u32(_IFINDEX, index))

    async def cell(self, index: int) -> bytes | None:
        """The BSSID of the ad-hoc cell that it has joined."""
        for data in await self._family.dump(_GET_SCAN, u32(_IFINDEX, index)):
            bss = values(values(data).get(_BSS, b""))
            if number(bss, _BSS_STATUS, 4) == _STATUS_IBSS_JOINED:
                return mac_address(bss, _BSS_BSSID)
        return None

    async def join_mesh(self, index: int, mesh_id: bytes, *, frequency: int, width: Width) -> None:
        payload = u32(_IFINDEX, index) + attribute(_MESH_ID, mesh_id) + channel(frequency, width)
        await self._family.request(_JOIN_MESH, payload)

    async def leave_mesh(self, index: int) -> None:
        await self._family.request(_LEAVE_MESH, u32(_IFINDEX, index))

    async def mesh_forwarding(self, index: int) -> bool | None:
        """Whether 802.11s relays by itself there; None: it is in no mesh."""
        try:
            answers = await self._family.get(_GET_MESH_CONFIG, u32(_IFINDEX, index))
        except NetlinkError as error:
            if error.code in (errno.EOPNOTSUPP, errno.ENOTCONN, errno.ENETDOWN):
                return None
            raise
        for data in answers:
            forwarding = number(values(values(data).get(_MESH_CONFIG, b"")), _MESH_FORWARDING, 1)
            if forwarding is not None:
                return bool(forwarding)
        return None

    async def set_mesh_forwarding(self, index: int, *, is_on: bool) -> None:
        """After the mesh was joined."""
        config = nested(_MESH_CONFIG, attribute(_MESH_FORWARDING, bytes([is_on])))
        await self._family.request(_SET_MESH_CONFIG, u32(_IFINDEX, index) + config)


def channel(frequency: int, width: Width) -> bytes:
    return u32(_FREQUENCY, frequency) + u32(_CHANNEL_WIDTH, width) + u32(_CENTRE_FREQUENCY, frequency)


def read_radio(data: bytes) -> Radio | None:
    """None: not of a network interface (a P2P device has none)."""
    found = values(data)
    index, kind, name = number(found, _IFINDEX, 4), number(found, _IFTYPE, 4), found.get(_IFNAME)
    if index is None or name is None:
        return None
    return Radio(
        index=index,
        name=name.rstrip(b"\0").decode(errors="replace"),
        wiphy=number(found, _WIPHY, 4) or 0,
        mac=mac_address(found, _MAC) or b"",
        type=_type(kind),
        network=found.get(_SSID) or found.get(_MESH_ID),
        frequency=number(found, _FREQUENCY, 4),
    )


def read_station(data: bytes) -> Station | None:
    found = values(data)
    mac = mac_address(found, _MAC)
    if mac is None:
        return None
    info = values(found.get(_STA_INFO, b""))
    inactive = number(info, _INACTIVE, 4)
    return Station(
        mac=mac,
        inactive=None if inactive is None else inactive / 1000,
        signal=signed(info, _SIGNAL, 1),
        tx_bitrate=_bitrate(info.get(_TX_BITRATE, b"")),
        tx_packets=number(info, _TX_PACKETS, 4),
        tx_retries=number(info, _TX_RETRIES, 4),
        tx_failed=number(info, _TX_FAILED, 4),
        expected_throughput=number(info, _EXPECTED, 4),
        is_peer=number(info, _PLINK, 1) in (None, _PLINK_ESTABLISHED),
    )


def read_wiphy(parts: Sequence[bytes], wanted: int) -> Wiphy:
    """The kernel tells of a radio in several messages."""
    types: set[RadioType] = set()
    frequencies: dict[int, bool] = {}
    for data in parts:
        found = values(data)
        if number(found, _WIPHY, 4) != wanted:
            continue
        types |= {_type(kind) for kind in values(found.get(_SUPPORTED_TYPES, b""))}
        for band in values(found.get(_BANDS, b"")).values():
            for entry in values(values(band).get(_BAND_FREQUENCIES, b"")).values():
                what = values(entry)
                mhz = number(what, _FREQUENCY_MHZ, 4)
                if mhz is not None:
                    frequencies[mhz] = _FREQUENCY_DISABLED not in what and _FREQUENCY_NO_IR not in what
    return Wiphy(frozenset(types), frequencies)


def _type(value: int | None) -> RadioType:
    try:
        return RadioType(value if value is not None else 0)
    except ValueError:
        return RadioType.UNSPECIFIED  # newer than this list


def _bitrate(data: bytes) -> int | None:
    """kbit/s."""
    found = values(data)
    rate = number(found, _BITRATE_32, 4)
    if rate is None:
        rate = number(found, _BITRATE_16, 2)
    return None if not rate else rate * 100
