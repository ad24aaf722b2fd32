"""Who is held to the free tier: by what the engine says, by what the last run left, on which ports."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from meshd import enforcement
from meshd.billing import LinkKey
from meshd.enforcement import Enforcement, HeldFile, State
from meshd.neighbours import Neighbours
from tests.meshd.fakes import FakeKernel, run

LINK: LinkKey = ("eth0", ip_address("fe80::2"))  # type: ignore[assignment]
MAC = b"\x02\0\0\0\0\x02"
PORT, STRANGER = ("eth0", MAC), ("eth0", b"\x02\0\0\0\0\x07")
TUNNEL = ("mw1", b"")
PEER = b"P" * 32


class Node:
    """One life of a daemon, of whom the file is left."""

    def __init__(self, path: Path) -> None:
        self.kernel = FakeKernel()
        self.neighbours = Neighbours()
        file = HeldFile(path)
        held = file.load()
        self.kernel.gate.shut = set(held)  # `Kernel.open` does it
        self.enforcement = Enforcement(self.kernel.as_kernel(), self.neighbours, file=file, held=held, free_rate=64_000)

    def meet(self) -> None:
        self.neighbours.learn_port(LINK, MAC)
        self.neighbours.peer_by_link[LINK] = PEER


def test_the_next_start_holds_whom_the_last_one_held_before_it_knows_who_that_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        before = Node(tmp_path / "held.json")
        before.meet()
        await before.enforcement.set_carrying(PEER, False)
        await before.enforcement.hold_stranger(STRANGER)
        await before.enforcement.hold_stranger(TUNNEL)
        after = Node(tmp_path / "held.json")
        assert after.kernel.gate.shut == {PORT, STRANGER, TUNNEL}
        await after.enforcement.apply()  # nobody has said who is behind them
        assert after.kernel.gate.shut == {PORT, STRANGER, TUNNEL}
        assert after.enforcement.state_of(PORT) is State.SUSPENDED
        assert after.enforcement.state_of(STRANGER) is after.enforcement.state_of(TUNNEL) is State.FREE

    run(scenario)


def test_who_is_found_to_owe_nothing_is_let_go_and_stays_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        before = Node(tmp_path / "held.json")
        before.meet()
        await before.enforcement.set_carrying(PEER, False)
        after = Node(tmp_path / "held.json")
        after.meet()
        await after.enforcement.apply()
        assert after.kernel.gate.shut == set()
        assert after.enforcement.state_of(PORT) is State.OPEN
        assert Node(tmp_path / "held.json").kernel.gate.shut == set()

    run(scenario)


def test_a_stranger_that_turns_out_to_be_a_debtor_gets_a_tier_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node(tmp_path / "held.json")
        await node.enforcement.hold_stranger(PORT)
        assert node.kernel.gate.shared == {PORT}
        await node.enforcement.set_carrying(PEER, False)
        node.meet()
        await node.enforcement.apply()
        assert node.kernel.gate.shut == {PORT}
        assert node.kernel.gate.shared == set()
        await node.enforcement.hold_stranger(PORT)  # it is none any more
        assert node.kernel.gate.shared == set()

    run(scenario)


def test_the_file_is_written_before_the_kernel_holds_and_after_it_lets_go(tmp_path: Path) -> None:
    """Whatever a kill leaves, nobody who was held is free at the next start."""

    async def scenario() -> None:
        node = Node(tmp_path / "held.json")
        node.meet()
        node.kernel.gate.failures = 1
        await node.enforcement.set_carrying(PEER, False)
        assert node.enforcement.failures == 1
        assert HeldFile(tmp_path / "held.json").load() == {PORT: False}
        await node.enforcement.apply()
        assert node.kernel.gate.shut == {PORT}
        node.kernel.gate.failures = 1
        await node.enforcement.set_carrying(PEER, True)
        assert HeldFile(tmp_path / "held.json").load() == {PORT: False}

    run(scenario)


def test_a_disk_that_refuses_lets_nobody_through(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node(tmp_path / "nowhere" / "held.json")
        node.meet()
        await node.enforcement.set_carrying(PEER, False)
        assert node.kernel.gate.shut == {PORT}
        assert node.enforcement.failures == 1

    run(scenario)


def test_a_damaged_file_holds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    for content in (b"", b"[1]", b'[{"interface": "eth0", "mac": "xy", "is_shared": true}]'):
        path.write_bytes(content)
        assert HeldFile(path).load() == {}


def test_strangers_make_room_for_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcement, "MAX_STRANGERS_HELD", 3)

    async def scenario() -> None:
        node = Node(tmp_path / "held.json")
        ports = [("eth0", number.to_bytes(6, "big")) for number in range(5)]
        gone = [old for port in ports for old in await node.enforcement.hold_stranger(port)]
        assert gone == ports[:2]
        assert node.kernel.gate.shut == set(ports[2:])

    run(scenario)
