"""Sets a radio up for a mesh: ad-hoc (IBSS) or 802.11s, and batman-adv over it if wanted; and takes that back.

What has to be done is found by comparing what is wanted with what is there (`plan`, pure), so that to do it again does
nothing, and a dry run can tell.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from meshd.kernel import NetlinkError
from meshd.kernel.batman import Batman, Mesh
from meshd.kernel.devices import Device, Devices
from meshd.kernel.nl80211 import Nl80211, Radio, RadioType, Width, Wiphy

ALGORITHMS = ("BATMAN_IV", "BATMAN_V")
MTU_PLAIN = 1500
MTU_UNDER_BATMAN = 1532  # batman-adv's header, so that 1500 octets fit into one frame
NETWORK_MAX = 32  # octets of an SSID or mesh id
TYPE_NAMES = {
    RadioType.IBSS: "ad-hoc",
    RadioType.MESH_POINT: "802.11s mesh point",
    RadioType.MANAGED: "managed",
    RadioType.AP: "access point",
    RadioType.MONITOR: "monitor",
}
_ERFKILL = 132
_ALIAS = "meshd mesh id "  # the kernel does not tell the mesh that a mesh point is in


class RadioError(Exception):
    """It cannot be done; the message says why, and what the operator can do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`type`: IBSS or MESH_POINT. `network`: SSID or mesh id. `cell`: BSSID of an ad-hoc cell; None: whatever is there,
    or a new one. `forwarding`: 802.11s relays by itself. `mesh`: a batman-adv interface to make it part of."""

    interface: str
    type: RadioType
    network: bytes
    frequency: int
    width: Width = Width.HT20
    cell: bytes | None = None
    forwarding: bool = False
    mtu: int = MTU_PLAIN
    mesh: str | None = None
    algorithm: str = ALGORITHMS[0]


@dataclass(frozen=True, slots=True)
class Found:
    """What is there. `forwarding`: None unless in an 802.11s mesh. `mesh_device`: the batman-adv interface that is
    wanted, or that the radio is part of; `members`: what that runs over."""

    device: Device
    radio: Radio
    wiphy: Wiphy
    cell: bytes | None = None
    forwarding: bool | None = None
    mesh_device: Device | None = None
    mesh: Mesh | None = None
    members: tuple[int, ...] = ()


class Step(Enum):
    RELEASE = auto()
    DELETE_MESH = auto()
    LEAVE = auto()
    DISABLE = auto()
    SET_TYPE = auto()
    SET_MANAGED = auto()
    SET_MTU = auto()
    SET_PLAIN_MTU = auto()
    ENABLE = auto()
    JOIN = auto()
    SET_FORWARDING = auto()
    NOTE = auto()
    FORGET = auto()
    ADD_MESH = auto()
    LOOP_AVOIDANCE_OFF = auto()
    ADD_TO_MESH = auto()
    ENABLE_MESH = auto()


def plan(wanted: Wanted, found: Found) -> list[Step]:
    """Raises RadioError for what this radio, or this kernel, cannot do."""
    _check(wanted, found)
    steps: list[Step] = []
    is_enabled = found.device.is_enabled
    is_joined = _is_joined(wanted, found)
    if not is_joined:
        if found.radio.frequency is not None and found.radio.type in (RadioType.IBSS, RadioType.MESH_POINT):
            steps.append(Step.LEAVE)
        if found.radio.type is not wanted.type:
            steps += [Step.DISABLE] * is_enabled + [Step.SET_TYPE]
            is_enabled = False
    if found.device.mtu != wanted.mtu:
        steps.append(Step.SET_MTU)
    if not is_enabled:
        steps.append(Step.ENABLE)
    if not is_joined:
        steps.append(Step.JOIN)
    if wanted.type is RadioType.MESH_POINT:
        if not is_joined or found.forwarding is not wanted.forwarding:
            steps.append(Step.SET_FORWARDING)
        if found.device.alias != _note(wanted):
            steps.append(Step.NOTE)
    return steps + (_plan_mesh(found) if wanted.mesh is not None else [])


def _plan_mesh(found: Found) -> list[Step]:
    mesh, device = found.mesh, found.mesh_device
    steps: list[Step] = []
    if device is None:
        steps.append(Step.ADD_MESH)
    if mesh is None or mesh.loop_avoidance:
        steps.append(Step.LOOP_AVOIDANCE_OFF)
    if device is None or found.device.master != device.index:
        steps.append(Step.ADD_TO_MESH)
    if device is None or not device.is_enabled:
        steps.append(Step.ENABLE_MESH)
    return steps


def plan_removal(found: Found) -> list[Step]:
    steps: list[Step] = []
    if found.mesh is not None:
        steps.append(Step.RELEASE)
        if set(found.members) <= {found.device.index}:
            steps.append(Step.DELETE_MESH)
    if found.radio.type in (RadioType.IBSS, RadioType.MESH_POINT):
        if found.radio.frequency is not None:
            steps.append(Step.LEAVE)
        steps += [Step.DISABLE] * found.device.is_enabled + [Step.SET_MANAGED]
    if found.device.mtu != MTU_PLAIN:
        steps.append(Step.SET_PLAIN_MTU)
    if found.device.alias.startswith(_ALIAS):
        steps.append(Step.FORGET)
    return steps


def _is_joined(wanted: Wanted, found: Found) -> bool:
    radio = found.radio
    if not found.device.is_enabled or (radio.type, radio.frequency) != (wanted.type, wanted.frequency):
        return False
    if wanted.type is RadioType.MESH_POINT:
        return found.device.alias == _note(wanted)
    return radio.network == wanted.network and wanted.cell in (None, found.cell)


def _note(wanted: Wanted) -> str:
    return _ALIAS + wanted.network.decode(errors="replace")


def network_of(radio: Radio, device: Device) -> str | None:
    """As the kernel tells it; of a mesh point as we have noted it."""
    if radio.network is not None:
        return radio.network.decode(errors="replace")
    is_noted = radio.frequency is not None and device.alias.startswith(_ALIAS)
    return device.alias.removeprefix(_ALIAS) if is_noted else None


def _check(wanted: Wanted, found: Found) -> None:
    name, wiphy, mesh_device = wanted.interface, found.wiphy, found.mesh_device
    if wanted.type not in wiphy.types:
        can = ", ".join(sorted(TYPE_NAMES[kind] for kind in wiphy.types if kind in TYPE_NAMES))
        raise RadioError(f"the driver of {name} cannot do {TYPE_NAMES[wanted.type]}; it can do: {can or 'nothing'}")
    if wanted.frequency not in wiphy.frequencies:
        raise RadioError(f"{name} has no channel at {wanted.frequency} MHz")
    if not wiphy.frequencies[wanted.frequency]:
        raise RadioError(
            f"{name} may not begin to transmit at {wanted.frequency} MHz here: set the country (iw reg set CC), or "
            "take another channel"
        )
    if wanted.mesh is None:
        return
    if mesh_device is not None and found.mesh is None:
        raise RadioError(f"{wanted.mesh} is there, and no batman-adv interface")
    if found.mesh is not None and found.mesh.algorithm != wanted.algorithm:
        raise RadioError(
            f"{wanted.mesh} runs {found.mesh.algorithm}, not {wanted.algorithm}: that is chosen when it is made; "
            f"delete it first (ip link del {wanted.mesh})"
        )
    if found.device.master and (mesh_device is None or found.device.master != mesh_device.index):
        raise RadioError(f"{name} is part of another interface: take it out first (ip link set {name} nomaster)")


def describe(step: Step, wanted: Wanted) -> str:
    """For people."""
    name, network = wanted.interface, wanted.network.decode(errors="replace")
    kind, mesh = TYPE_NAMES[wanted.type], wanted.mesh
    cell = "" if wanted.cell is None else f", cell {wanted.cell.hex(':')}"
    return {
        Step.RELEASE: f"take {name} out of {mesh}",
        Step.DELETE_MESH: f"delete {mesh}",
        Step.LEAVE: f"leave the network that {name} is in",
        Step.DISABLE: f"set {name} down",
        Step.SET_TYPE: f"make {name} an {kind}" + (" radio" if wanted.type is RadioType.IBSS else ""),
        Step.SET_MANAGED: f"make {name} a managed station",
        Step.SET_MTU: f"set the MTU of {name} to {wanted.mtu}",
        Step.SET_PLAIN_MTU: f"set the MTU of {name} to {MTU_PLAIN}",
        Step.ENABLE: f"set {name} up",
        Step.JOIN: f"join {network} at {wanted.frequency} MHz{cell}",
        Step.SET_FORWARDING: f"switch relaying by 802.11s {'on' if wanted.forwarding else 'off'}",
        Step.NOTE: f"note the mesh id as the alias of {name}",
        Step.FORGET: f"remove the alias of {name}",
        Step.ADD_MESH: f"make {mesh} with {wanted.algorithm}",
        Step.LOOP_AVOIDANCE_OFF: f"switch bridge loop avoidance of {mesh} off, which holds broadcasts back for 30 s",
        Step.ADD_TO_MESH: f"add {name} to {mesh}",
        Step.ENABLE_MESH: f"set {mesh} up",
    }[step]


class Setup:
    """Looks, and carries steps out."""

    def __init__(self, devices: Devices, radios: Nl80211, meshes: Batman) -> None:
        self._devices = devices
        self._radios = radios
        self._meshes = meshes

    async def look(self, interface: str, mesh: str | None = None) -> Found:
        """`mesh`: the batman-adv interface that is asked for; None: the one that it is part of, if any."""
        devices = await self._devices.all()
        device = devices.get(interface)
        if device is None:
            raise RadioError(f"no interface {interface}")
        radios = await self._radios.radios()
        radio = radios.get(device.index)
        if radio is None:
            known = ", ".join(sorted(other.name for other in radios.values()))
            raise RadioError(f"{interface} is no radio" + (f"; radios are: {known}" if known else ": there is none"))
        if mesh is None:
            mesh_device = next((other for other in devices.values() if other.index == device.master), None)
        else:
            mesh_device = devices.get(mesh)
        is_mesh = mesh_device is not None and await self._meshes.is_there()
        index = mesh_device.index if is_mesh and mesh_device is not None else 0
        there = await self._meshes.mesh(index) if index else None
        return Found(
            device=device,
            radio=radio,
            wiphy=await self._radios.wiphy(radio.wiphy),
            cell=await self._radios.cell(device.index) if radio.type is RadioType.IBSS else None,
            forwarding=await self._forwarding(radio),
            mesh_device=mesh_device,
            mesh=there,
            members=tuple(other.index for other in devices.values() if index and other.master == index),
        )

    async def _forwarding(self, radio: Radio) -> bool | None:
        if radio.type is not RadioType.MESH_POINT or radio.frequency is None:
            return None
        return await self._radios.mesh_forwarding(radio.index)

    async def carry_out(self, steps: Sequence[Step], wanted: Wanted, found: Found) -> None:
        """In order; ends at the first that fails, with RadioError."""
        for step in steps:
            try:
                await self._do(step, wanted, found)
            except NetlinkError as error:
                if step is Step.ADD_MESH and error.code == errno.EOPNOTSUPP:
                    raise RadioError("this kernel has no batman-adv: modprobe batman-adv") from error
                raise RadioError(f"cannot {describe(step, wanted)}: {explain(error)}") from error

    async def _do(self, step: Step, wanted: Wanted, found: Found) -> None:
        index = found.device.index
        match step:
            case Step.RELEASE:
                await self._devices.set_master(index, 0)
            case Step.DISABLE | Step.ENABLE:
                await self._devices.enable(index, is_enabled=step is Step.ENABLE)
            case Step.SET_TYPE:
                await self._radios.set_type(index, wanted.type)
            case Step.SET_MANAGED:
                await self._radios.set_type(index, RadioType.MANAGED)
            case Step.SET_MTU:
                await self._devices.set_mtu(index, wanted.mtu)
            case Step.SET_PLAIN_MTU:
                await self._devices.set_mtu(index, MTU_PLAIN)
            case Step.LEAVE | Step.JOIN | Step.SET_FORWARDING:
                await self._do_in_network(step, wanted, found)
            case Step.NOTE:
                await self._devices.set_alias(index, _note(wanted))
            case Step.FORGET:
                await self._devices.set_alias(index, "")
            case Step.ADD_MESH | Step.DELETE_MESH | Step.LOOP_AVOIDANCE_OFF | Step.ADD_TO_MESH | Step.ENABLE_MESH:
                await self._do_with_mesh(step, wanted, found)
            case _:
                assert_never(step)

    async def _do_in_network(self, step: Step, wanted: Wanted, found: Found) -> None:
        index = found.device.index
        if step is Step.LEAVE:
            is_ibss = found.radio.type is RadioType.IBSS
            await (self._radios.leave_ibss(index) if is_ibss else self._radios.leave_mesh(index))
        elif step is Step.SET_FORWARDING:
            await self._radios.set_mesh_forwarding(index, is_on=wanted.forwarding)
        elif wanted.type is RadioType.IBSS:
            await self._radios.join_ibss(
                index, wanted.network, frequency=wanted.frequency, width=wanted.width, bssid=wanted.cell
            )
        else:
            await self._radios.join_mesh(index, wanted.network, frequency=wanted.frequency, width=wanted.width)

    async def _do_with_mesh(self, step: Step, wanted: Wanted, found: Found) -> None:
        if step is Step.DELETE_MESH:
            await self._devices.delete(found.device.master)
            return
        name = wanted.mesh or ""
        if step is Step.ADD_MESH:
            await self._devices.add_batman(name, wanted.algorithm)
            return
        mesh = (await self._devices.all()).get(name)  # it may have been made just now
        if mesh is None:
            raise NetlinkError(errno.ENODEV, name)
        if step is Step.ADD_TO_MESH:
            await self._devices.set_master(found.device.index, mesh.index)
        elif step is Step.ENABLE_MESH:
            await self._devices.enable(mesh.index, is_enabled=True)
        else:
            await self._meshes.set_loop_avoidance(mesh.index, is_on=False)


def explain(error: NetlinkError) -> str:
    """What an operator can make of the kernel's refusal."""
    hints = {
        errno.EPERM: "needs root, or CAP_NET_ADMIN",
        errno.EACCES: "needs root, or CAP_NET_ADMIN",
        errno.EBUSY: "in use; does NetworkManager or wpa_supplicant hold it?",
        errno.EOPNOTSUPP: "the driver, or this kernel, cannot do it",
        _ERFKILL: "the radio is switched off (rfkill unblock wifi)",
    }
    hint = hints.get(error.code)
    return str(error) if hint is None else f"{hint} ({error})"


def frequency_of(channel: int) -> int:
    """MHz of a channel's centre in the bands at 2.4 and 5 GHz. Raises ValueError."""
    if 1 <= channel <= 13:
        return 2407 + 5 * channel
    if channel == 14:
        return 2484
    if 32 <= channel <= 177:
        return 5000 + 5 * channel
    raise ValueError(f"no channel {channel} in the bands at 2.4 and 5 GHz")
