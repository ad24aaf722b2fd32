"""`meshd radio setup | show | remove`: the command line of `meshd.radio_setup`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import trio

from meshd.kernel import NetlinkError
from meshd.kernel.batman import Batman
from meshd.kernel.devices import Devices
from meshd.kernel.nl80211 import Nl80211, RadioType, Station, Width
from meshd.radio_setup import (
    ALGORITHMS,
    MTU_PLAIN,
    MTU_UNDER_BATMAN,
    NETWORK_MAX,
    TYPE_NAMES,
    Found,
    RadioError,
    Setup,
    Step,
    Wanted,
    describe,
    explain,
    frequency_of,
    network_of,
    plan,
    plan_removal,
)

EXIT_ERROR = 1
_TYPES = {"ibss": RadioType.IBSS, "mesh": RadioType.MESH_POINT}
_WIDTHS = {"noht": Width.NO_HT, "ht20": Width.HT20}
_MTU_MAX = 2304  # of an 802.11 frame


def add_parser(commands: Any) -> None:
    text = "set a radio up for a mesh, show radios, or take it back"
    parser = commands.add_parser("radio", help=text, description=text)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    setup = actions.add_parser(
        "setup",
        help="join an ad-hoc cell or an 802.11s mesh, and put batman-adv over it if wanted; again, it changes nothing",
        epilog="Example: meshd radio setup wlan0 --type ibss --network ourmesh --channel 1 --cell 02:ca:fe:ca:ca:40",
    )
    setup.add_argument("interface", metavar="INTERFACE")
    setup.add_argument("--type", choices=_TYPES, required=True, help="ibss: ad-hoc; mesh: 802.11s")
    setup.add_argument("--network", type=_network, required=True, metavar="NAME", help="the SSID, or the mesh id")
    where = setup.add_mutually_exclusive_group(required=True)
    where.add_argument("--channel", type=_channel, dest="frequency", metavar="N", help="1 to 14, or 32 to 177")
    where.add_argument("--frequency", type=int, metavar="MHZ", help="the centre of a channel, as 2412")
    setup.add_argument("--width", choices=_WIDTHS, default="ht20", help="20 MHz with or without 802.11n (default ht20)")
    setup.add_argument("--cell", type=_mac, metavar="MAC", help="BSSID of the ad-hoc cell; all nodes the same")
    setup.add_argument(
        "--forwarding", action="store_true", help="let 802.11s relay by itself, past meshd (default: off)"
    )
    setup.add_argument("--batman", metavar="NAME", help="make this batman-adv interface (bat0) over it")
    setup.add_argument("--algorithm", choices=ALGORITHMS, default=ALGORITHMS[0], help="of batman-adv")
    setup.add_argument(
        "--mtu", type=_mtu, help=f"of the radio (default {MTU_PLAIN}, {MTU_UNDER_BATMAN} under batman-adv)"
    )
    setup.add_argument("--dry-run", action="store_true", help="say what would be done")
    show = actions.add_parser("show", help="radios, what they are part of, and their stations")
    show.add_argument("interface", metavar="INTERFACE", nargs="?")
    show.add_argument("--json", action="store_true", help="for programs")
    remove = actions.add_parser("remove", help="leave the network, and be a managed station again")
    remove.add_argument("interface", metavar="INTERFACE")
    remove.add_argument("--dry-run", action="store_true", help="say what would be done")


def main(arguments: argparse.Namespace) -> int:
    """0: done, or nothing to do; 1: it cannot be done."""
    actions: dict[str, Callable[[argparse.Namespace, _Door], Any]] = {"setup": _setup, "show": _show, "remove": _remove}
    try:
        trio.run(partial(_with_kernel, actions[arguments.action], arguments))
    except RadioError as error:
        print(f"meshd: {error}", file=sys.stderr)
        return EXIT_ERROR
    except NetlinkError as error:
        print(f"meshd: {explain(error)}", file=sys.stderr)
        return EXIT_ERROR
    return 0


class _Door:
    def __init__(self, devices: Devices, radios: Nl80211, meshes: Batman) -> None:
        self.devices, self.radios, self.meshes = devices, radios, meshes
        self.setup = Setup(devices, radios, meshes)


async def _with_kernel(action: Callable[[argparse.Namespace, _Door], Any], arguments: argparse.Namespace) -> None:
    with Devices() as devices, Nl80211() as radios, Batman() as meshes:
        await action(arguments, _Door(devices, radios, meshes))


async def _setup(arguments: argparse.Namespace, door: _Door) -> None:
    wanted = wanted_of(arguments)
    found = await door.setup.look(wanted.interface, wanted.mesh)
    await _carry_out(plan(wanted, found), wanted, found, door, is_dry=arguments.dry_run)


async def _remove(arguments: argparse.Namespace, door: _Door) -> None:
    found = await door.setup.look(arguments.interface)
    mesh = None if found.mesh_device is None else found.mesh_device.name
    wanted = Wanted(arguments.interface, found.radio.type, b"", found.radio.frequency or 0, mesh=mesh)
    await _carry_out(plan_removal(found), wanted, found, door, is_dry=arguments.dry_run)


async def _carry_out(steps: Sequence[Step], wanted: Wanted, found: Found, door: _Door, *, is_dry: bool) -> None:
    if not steps:
        print("Nothing to do.")
    if is_dry:
        for step in steps:
            print(f"Would {describe(step, wanted)}.")
        return
    for step in steps:
        await door.setup.carry_out([step], wanted, found)
        print(f"Done: {describe(step, wanted)}.", flush=True)


def wanted_of(arguments: argparse.Namespace) -> Wanted:
    """Raises RadioError for what does not go together."""
    kind = _TYPES[arguments.type]
    if arguments.cell is not None and kind is not RadioType.IBSS:
        raise RadioError("--cell is for --type ibss: an 802.11s mesh is known by its mesh id alone")
    if arguments.forwarding and kind is not RadioType.MESH_POINT:
        raise RadioError("--forwarding is for --type mesh: ad-hoc radios do not relay")
    return Wanted(
        interface=arguments.interface,
        type=kind,
        network=arguments.network,
        frequency=arguments.frequency,
        width=_WIDTHS[arguments.width],
        cell=arguments.cell,
        forwarding=arguments.forwarding,
        mtu=arguments.mtu or (MTU_PLAIN if arguments.batman is None else MTU_UNDER_BATMAN),
        mesh=arguments.batman,
        algorithm=arguments.algorithm,
    )


async def _show(arguments: argparse.Namespace, door: _Door) -> None:
    rows = await _radios(door, arguments.interface)
    if arguments.interface is not None and not rows:
        raise RadioError(f"{arguments.interface} is no radio")
    if arguments.json:
        print(json.dumps(rows))
        return
    print("\n".join(_lines(rows)) or "No radios.")


async def _radios(door: _Door, only: str | None) -> list[dict[str, Any]]:
    devices = await door.devices.all()
    by_index = {device.index: device for device in devices.values()}
    has_meshes = await door.meshes.is_there()
    rows = []
    for radio in (await door.radios.radios()).values():
        device = devices.get(radio.name)
        if device is None or only not in (None, radio.name):
            continue
        master = by_index.get(device.master)
        mesh = await door.meshes.mesh(master.index) if master is not None and has_meshes else None
        stations = await door.radios.stations(radio.index) if radio.frequency is not None else {}
        rows.append(
            {
                "interface": radio.name,
                "type": TYPE_NAMES.get(radio.type, radio.type.name.lower()),
                "network": network_of(radio, device),
                "frequency_mhz": radio.frequency,
                "mac": radio.mac.hex(":"),
                "mtu": device.mtu,
                "up": device.is_enabled,
                "part_of": None if master is None else master.name,
                "algorithm": None if mesh is None else mesh.algorithm,
                "stations": [_station(station) for station in stations.values()],
            }
        )
    return rows


def _station(station: Station) -> dict[str, Any]:
    return {
        "mac": station.mac.hex(":"),
        "signal_dbm": station.signal,
        "tx_bitrate_kbps": station.tx_bitrate,
        "expected_throughput_kbps": station.expected_throughput,
        "tx_packets": station.tx_packets,
        "tx_retries": station.tx_retries,
        "tx_failed": station.tx_failed,
        "inactive_seconds": station.inactive,
    }


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        where = "in no network" if row["frequency_mhz"] is None else f"at {row['frequency_mhz']} MHz"
        network = "" if row["network"] is None else f" {_printable(row['network'])}"
        mesh = "" if row["algorithm"] is None else f" ({row['algorithm']})"
        part = "" if row["part_of"] is None else f", part of {row['part_of']}{mesh}"
        state = "up" if row["up"] else "down"
        lines.append(f"{row['interface']}: {row['type']}{network} {where}, {state}, MTU {row['mtu']}{part}")
        for station in row["stations"]:
            expected, bitrate = _mbit(station["expected_throughput_kbps"]), _mbit(station["tx_bitrate_kbps"])
            signal = "-" if station["signal_dbm"] is None else f"{station['signal_dbm']} dBm"
            lines.append(f"  {station['mac']}  signal {signal}, bitrate {bitrate}, expected throughput {expected}")
    return lines


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _mbit(kbps: int | None) -> str:
    return "-" if kbps is None else f"{kbps / 1000:.1f} Mbit/s"


def _network(text: str) -> bytes:
    data = text.encode()
    if not 1 <= len(data) <= NETWORK_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {NETWORK_MAX} octets")
    return data


def _channel(text: str) -> int:
    try:
        return frequency_of(int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _mac(text: str) -> bytes:
    try:
        data = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        data = b""
    if len(data) != 6 or text.count(":") != 5 or data[0] & 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a MAC address of one node, as 02:ca:fe:ca:ca:40")
    return data


def _mtu(text: str) -> int:
    if not text.isdecimal() or not 1280 <= int(text) <= _MTU_MAX:
        raise argparse.ArgumentTypeError(f"expected 1280 to {_MTU_MAX}")
    return int(text)
