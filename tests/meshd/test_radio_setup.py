"""What is done to set a radio up, from what is there; on a kernel that is played, as real ones are in tests/vm."""

from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import pytest
import trio

from meshd import radio_command
from meshd.kernel import NetlinkError
from meshd.kernel.batman import Mesh
from meshd.kernel.devices import Device
from meshd.kernel.nl80211 import Radio, RadioType, Station, Width, Wiphy
from meshd.main import main
from meshd.radio_setup import Found, RadioError, Setup, Step, Wanted, describe, frequency_of, plan, plan_removal

OURS, CELL = bytes.fromhex("020000000000"), bytes.fromhex("02cafecaca40")
IBSS = ("setup", "wlan0", "--type", "ibss", "--network", "meshtest", "--channel", "1")
FULL = (*IBSS, "--cell", "02:ca:fe:ca:ca:40", "--batman", "bat0")
MESH = ("setup", "wlan0", "--type", "mesh", "--network", "meshtest", "--frequency", "2437")


@dataclass
class World:
    """A kernel with one radio. Refuses what a kernel refuses: another type while up, to join while down."""

    devices: dict[str, Device] = field(
        default_factory=lambda: {
            "lo": Device(1, "lo", bytes(6), 65536, is_enabled=True),
            "wlan0": Device(2, "wlan0", OURS, 1500, is_enabled=True),
        }
    )
    radio: Radio = Radio(  # noqa: RUF009
        2, "wlan0", 0, OURS, RadioType.MANAGED, None, None
    )
    wiphy: Wiphy = Wiphy(  # noqa: RUF009
        frozenset((RadioType.IBSS, RadioType.MESH_POINT, RadioType.MANAGED)), {2412: True, 2437: True, 5180: False}
    )
    bssid: bytes | None = None
    forwarding: bool = True
    mesh_of: dict[int, Mesh] = field(default_factory=dict)
    refuse: tuple[str, int] | None = None
    log: list[str] = field(default_factory=list)

    def _do(self, what: str) -> None:
        self.log.append(what)
        if self.refuse is not None and self.refuse[0] == what:
            raise NetlinkError(self.refuse[1])

    def change(self, index: int, **values: object) -> None:
        device = next(device for device in self.devices.values() if device.index == index)
        self.devices[device.name] = replace(device, **values)  # type: ignore[arg-type]

    # Devices
    async def all(self) -> dict[str, Device]:
        return dict(self.devices)

    async def enable(self, index: int, *, is_enabled: bool) -> None:
        self._do("up" if is_enabled else "down")
        self.change(index, is_enabled=is_enabled)

    async def set_mtu(self, index: int, mtu: int) -> None:
        self._do(f"mtu {mtu}")
        self.change(index, mtu=mtu)

    async def set_master(self, index: int, master: int) -> None:
        self._do(f"master {master}")
        self.change(index, master=master)

    async def set_alias(self, index: int, alias: str) -> None:
        self._do(f"alias {alias}")
        self.change(index, alias=alias)

    async def add_batman(self, name: str, algorithm: str) -> None:
        self._do(f"add {name}")
        self.devices[name] = Device(7, name, OURS, 1500, is_enabled=False, kind="batadv")
        self.mesh_of[7] = Mesh(7, name, algorithm, "2022.3", loop_avoidance=True)

    async def delete(self, index: int) -> None:
        self._do("delete")
        self.devices = {name: device for name, device in self.devices.items() if device.index != index}
        self.mesh_of.pop(index)

    # Nl80211
    async def radios(self) -> dict[int, Radio]:
        return {2: self.radio}

    async def stations(self, index: int) -> dict[bytes, Station]:
        near = bytes.fromhex("020000000100")
        return {near: Station(near, 0.1, -30, 130_000, 561, 1, 2, 46_312, is_peer=True)}

    async def get_wiphy(self, number: int) -> Wiphy:
        return self.wiphy

    async def cell(self, index: int) -> bytes | None:
        return self.bssid

    async def mesh_forwarding(self, index: int) -> bool | None:
        return self.forwarding

    async def set_type(self, index: int, kind: RadioType) -> None:
        self._do(f"type {kind.name}")
        if self.devices["wlan0"].is_enabled:
            raise NetlinkError(errno.EBUSY)
        self.radio = replace(self.radio, type=kind)

    async def join_ibss(
        self, index: int, ssid: bytes, *, frequency: int, width: Width, bssid: bytes | None = None
    ) -> None:
        self._join(ssid, frequency)
        self.radio = replace(self.radio, network=ssid)
        self.bssid = bssid

    async def join_mesh(self, index: int, mesh_id: bytes, *, frequency: int, width: Width) -> None:
        self._join(mesh_id, frequency)
        self.forwarding = True

    def _join(self, network: bytes, frequency: int) -> None:
        self._do(f"join {network.decode()} {frequency}")
        if not self.devices["wlan0"].is_enabled:
            raise NetlinkError(errno.ENETDOWN)
        if self.radio.frequency is not None:
            raise NetlinkError(errno.EALREADY)
        self.radio = replace(self.radio, frequency=frequency)

    async def leave_ibss(self, index: int) -> None:
        self._do("leave ibss")
        self.radio = replace(self.radio, frequency=None, network=None)
        self.bssid = None

    async def leave_mesh(self, index: int) -> None:
        self._do("leave mesh")
        self.radio = replace(self.radio, frequency=None)

    async def set_mesh_forwarding(self, index: int, *, is_on: bool) -> None:
        self._do(f"forwarding {is_on}")
        self.forwarding = is_on

    # Batman
    async def is_there(self) -> bool:
        return bool(self.mesh_of)

    async def mesh(self, index: int) -> Mesh | None:
        return self.mesh_of.get(index)

    async def set_loop_avoidance(self, index: int, *, is_on: bool) -> None:
        self._do(f"loop avoidance {is_on}")
        self.mesh_of[index] = replace(self.mesh_of[index], loop_avoidance=is_on)


class Door:
    """One of the three sockets."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> object:
        return getattr(self._world, {"wiphy": "get_wiphy"}.get(name, name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    for name in ("Devices", "Nl80211", "Batman"):
        monkeypatch.setattr(radio_command, name, lambda: Door(world))
    return world


def radio(*arguments: str) -> int:
    return main(["radio", *arguments])


def test_an_ad_hoc_cell_with_batman_adv_over_it(world: World) -> None:
    assert radio(*FULL) == 0
    assert world.log == [
        "down", "type IBSS", "mtu 1532", "up", "join meshtest 2412",
        "add bat0", "loop avoidance False", "master 7", "up",
    ]  # fmt: skip
    assert world.bssid == CELL
    assert world.mesh_of[7].algorithm == "BATMAN_IV"


@pytest.mark.parametrize("arguments", [IBSS, FULL, MESH, (*MESH, "--forwarding")])
def test_a_second_time_nothing_is_done(
    world: World, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert radio(*arguments) == 0
    world.log.clear()
    capsys.readouterr()
    assert radio(*arguments) == 0
    assert world.log == []
    assert capsys.readouterr().out == "Nothing to do.\n"


def test_an_802_11s_mesh_does_not_relay_by_itself(world: World) -> None:
    assert radio(*MESH) == 0
    assert world.log == [
        "down", "type MESH_POINT", "up", "join meshtest 2437", "forwarding False", "alias meshd mesh id meshtest",
    ]  # fmt: skip
    world.log.clear()
    assert radio(*MESH, "--forwarding") == 0
    assert world.log == ["forwarding True"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*IBSS[:-1], "6"), ["leave ibss", "join meshtest 2437"]),
        ((*IBSS, "--cell", "02:ca:fe:ca:ca:41"), ["leave ibss", "join meshtest 2412"]),
        ((*IBSS[:5], "other", *IBSS[6:]), ["leave ibss", "join other 2412"]),
        ((*IBSS, "--mtu", "1532"), ["mtu 1532"]),
        (
            MESH,
            ["leave ibss", "down", "type MESH_POINT", "up", "join meshtest 2437", "forwarding False",
             "alias meshd mesh id meshtest"],
        ),
    ],
)  # fmt: skip
def test_only_what_differs_is_changed(world: World, arguments: tuple[str, ...], expected: list[str]) -> None:
    radio(*IBSS, "--cell", "02:ca:fe:ca:ca:40")
    world.log.clear()
    assert radio(*arguments) == 0
    assert world.log == expected


def test_another_mesh_is_left_before_the_new_one_is_joined(world: World) -> None:
    radio(*MESH)
    world.log.clear()
    assert radio(*(word if word != "meshtest" else "other" for word in MESH)) == 0
    assert world.log == ["leave mesh", "join other 2437", "forwarding False", "alias meshd mesh id other"]


def test_a_dry_run_tells_and_does_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert radio(*FULL, "--dry-run") == 0
    assert world.log == []
    assert capsys.readouterr().out == (
        "Would set wlan0 down.\n"
        "Would make wlan0 an ad-hoc radio.\n"
        "Would set the MTU of wlan0 to 1532.\n"
        "Would set wlan0 up.\n"
        "Would join meshtest at 2412 MHz, cell 02:ca:fe:ca:ca:40.\n"
        "Would make bat0 with BATMAN_IV.\n"
        "Would switch bridge loop avoidance of bat0 off, which holds broadcasts back for 30 s.\n"
        "Would add wlan0 to bat0.\n"
        "Would set bat0 up.\n"
    )


def test_all_of_it_is_taken_back(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(world.devices)
    radio(*FULL)
    world.log.clear()
    assert radio("remove", "wlan0", "--dry-run") == 0
    assert world.log == []
    assert radio("remove", "wlan0") == 0
    assert world.log == ["master 0", "delete", "leave ibss", "down", "type MANAGED", "mtu 1500"]
    assert world.devices == before | {"wlan0": replace(before["wlan0"], is_enabled=False)}
    world.log.clear()
    assert radio("remove", "wlan0") == 0
    assert world.log == []
    radio(*MESH)
    world.log.clear()
    radio("remove", "wlan0")
    assert world.log == ["leave mesh", "down", "type MANAGED", "alias "]


def test_a_mesh_with_other_members_stays(world: World) -> None:
    radio(*FULL)
    world.devices["eth0"] = Device(9, "eth0", OURS, 1500, is_enabled=True, master=7)
    radio("remove", "wlan0")
    assert "delete" not in world.log and "bat0" in world.devices


def found(world: World, **values: object) -> Found:
    return replace(Found(world.devices["wlan0"], world.radio, world.wiphy), **values)  # type: ignore[arg-type]


WANTED = Wanted("wlan0", RadioType.IBSS, b"meshtest", 2412, mtu=1532, mesh="bat0")
BAT = Device(7, "bat0", OURS, 1500, is_enabled=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: found(w, wiphy=replace(w.wiphy, types=frozenset({RadioType.AP, RadioType.MANAGED}))),
            "the driver of wlan0 cannot do ad-hoc; it can do: access point, managed",
        ),
        (lambda w: found(w, wiphy=replace(w.wiphy, frequencies={})), "wlan0 has no channel at 2412 MHz"),
        (lambda w: found(w, wiphy=replace(w.wiphy, frequencies={2412: False})), "may not begin to transmit"),
        (lambda w: found(w, mesh_device=BAT), "bat0 is there, and no batman-adv interface"),
        (
            lambda w: found(w, mesh_device=BAT, mesh=Mesh(7, "bat0", "BATMAN_V", "", loop_avoidance=False)),
            "bat0 runs BATMAN_V, not BATMAN_IV",
        ),
        (lambda w: found(w, device=replace(w.devices["wlan0"], master=5)), "wlan0 is part of another interface"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(change: Callable[[World], Found], message: str) -> None:
    with pytest.raises(RadioError, match=message.replace("(", r"\(")):
        plan(WANTED, change(World()))


def test_interfaces_that_are_none_or_no_radio(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (("wlan9", "no interface wlan9"), ("lo", "lo is no radio; radios are: wlan0")):
        assert radio("remove", name) == 1
        assert capsys.readouterr().err == f"meshd: {message}\n"


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.EPERM, "needs root"),
        (errno.EBUSY, "NetworkManager"),
        (132, "rfkill"),
        (errno.EOPNOTSUPP, "the driver, or this kernel, cannot do it"),
        (errno.EINVAL, "EINVAL"),
    ],
)
def test_what_the_kernel_refuses_is_explained(
    world: World, capsys: pytest.CaptureFixture[str], code: int, hint: str
) -> None:
    world.refuse = ("join meshtest 2412", code)
    assert radio(*IBSS) == 1
    message = capsys.readouterr().err
    assert message.startswith("meshd: cannot join meshtest at 2412 MHz: ") and hint in message
    assert world.log[-1] == "join meshtest 2412"


def test_a_kernel_without_batman_adv_is_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.refuse = ("add bat0", errno.EOPNOTSUPP)
    assert radio(*FULL) == 1
    assert "modprobe batman-adv" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        (*IBSS[:-1], "15"),
        (*IBSS[:5], "x" * 33, *IBSS[6:]),
        (*IBSS, "--cell", "03:00:00:00:00:00"),
        (*IBSS, "--cell", "02:00"),
        (*IBSS, "--mtu", "100"),
        (*IBSS, "--frequency", "2412"),
        IBSS[:-2],
    ],
)
def test_wrong_usage(world: World, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        radio(*arguments)
    assert ended.value.code == 2
    assert world.log == []


def test_options_that_do_not_go_together(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert radio(*IBSS, "--forwarding") == 1
    assert radio(*MESH, "--cell", "02:ca:fe:ca:ca:40") == 1
    assert capsys.readouterr().err.count("meshd: --") == 2
    assert world.log == []


def test_radios_are_shown(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    radio(*FULL)
    capsys.readouterr()
    assert radio("show") == 0
    assert capsys.readouterr().out == (
        "wlan0: ad-hoc meshtest at 2412 MHz, up, MTU 1532, part of bat0 (BATMAN_IV)\n"
        "  02:00:00:00:01:00  signal -30 dBm, bitrate 130.0 Mbit/s, expected throughput 46.3 Mbit/s\n"
    )
    assert radio("show", "wlan0", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["interface"], row["part_of"], row["stations"][0]["tx_failed"]) == ("wlan0", "bat0", 2)
    assert radio("show", "lo") == 1
    radio("remove", "wlan0")
    radio(*MESH)
    capsys.readouterr()
    radio("show")
    assert capsys.readouterr().out.startswith("wlan0: 802.11s mesh point meshtest at 2437 MHz, up, MTU 1500\n")


def test_channels() -> None:
    assert [frequency_of(channel) for channel in (1, 13, 14, 36, 149)] == [2412, 2472, 2484, 5180, 5745]
    for channel in (0, 15, 31, 178):
        with pytest.raises(ValueError, match="no channel"):
            frequency_of(channel)


def test_every_step_can_be_told() -> None:
    assert len({describe(step, WANTED) for step in Step}) == len(Step)


def test_nothing_is_left_undone_when_looked_at_again(world: World) -> None:
    """Whatever part of it is there already: what is planned leads to where nothing is planned any more."""

    async def scenario() -> None:
        door = Door(world)
        setup = Setup(door, door, door)  # type: ignore[arg-type]
        for done in range(len(plan(WANTED, await setup.look("wlan0", "bat0")))):
            world.__init__()  # type: ignore[misc]
            seen = await setup.look("wlan0", "bat0")
            await setup.carry_out(plan(WANTED, seen)[:done], WANTED, seen)  # and then somebody pulled the plug
            seen = await setup.look("wlan0", "bat0")
            await setup.carry_out(plan(WANTED, seen), WANTED, seen)
            seen = await setup.look("wlan0", "bat0")
            assert plan(WANTED, seen) == []
            await setup.carry_out(plan_removal(seen), WANTED, seen)
            assert plan_removal(await setup.look("wlan0")) == []

    trio.run(scenario)


def test_the_command_line_means_what_it_says() -> None:
    parser = argparse.ArgumentParser()
    radio_command.add_parser(parser.add_subparsers())
    options = parser.parse_args(["radio", *FULL, "--width", "noht", "--algorithm", "BATMAN_V"])
    assert radio_command.wanted_of(options) == Wanted(
        "wlan0", RadioType.IBSS, b"meshtest", 2412, Width.NO_HT, CELL, mtu=1532, mesh="bat0", algorithm="BATMAN_V"
    )
