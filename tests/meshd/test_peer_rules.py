"""What the operator says of single peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd.peer_rules import PeerRules, Rule
from payments.counts import Traffic
from payments.events import MeteredTraffic
from tests.meshd.fakes import run

A, B = b"\xaa" * 32, b"\xbb" * 32


class Gate:
    def __init__(self, file: Path | None = None) -> None:
        self.carried: dict[bytes, bool] = {}
        self.changes = 0
        self.rules = PeerRules(file, hold=self._hold, on_change=self._changed)

    async def _hold(self, peer: bytes, carrying: bool) -> None:
        self.carried[peer] = carrying

    async def _changed(self) -> None:
        self.changes += 1


def test_a_blocked_peer_stays_held_whatever_it_pays_and_a_free_one_carried_whatever_it_owes() -> None:
    async def scenario() -> None:
        gate = Gate()
        await gate.rules.set(A, Rule.BLOCKED)
        await gate.rules.set(B, Rule.FREE)
        assert (gate.carried, gate.changes, gate.rules.blocked) == ({A: False, B: True}, 2, {A})
        await gate.rules.set_carrying(A, True)
        await gate.rules.set_carrying(B, False)
        assert gate.carried == {A: False, B: True}
        await gate.rules.set(A, Rule.NORMAL)
        await gate.rules.set(B, Rule.NORMAL)  # it still owes
        assert (gate.carried, gate.rules.blocked, gate.rules.all()) == ({A: True, B: False}, frozenset(), {})
        await gate.rules.set_carrying(B, True)
        assert gate.carried[B]

    run(scenario)


def test_only_who_is_free_is_not_billed() -> None:
    async def scenario() -> None:
        gate = Gate()
        traffic = MeteredTraffic(A, 5, 7, Traffic(sent=1))
        assert gate.rules.billed(traffic) == traffic
        await gate.rules.set(A, Rule.FREE)
        assert gate.rules.billed(traffic) == MeteredTraffic(A, 0, 7, Traffic(sent=1))

    run(scenario)


def test_rules_outlive_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        await Gate(tmp_path / "peers.json").rules.set(A, Rule.BLOCKED)
        await Gate(tmp_path / "peers.json").rules.set(B, Rule.FREE)
        gate = Gate(tmp_path / "peers.json")
        await gate.rules.start()
        assert (gate.carried, gate.rules.all()) == ({A: False}, {A: Rule.BLOCKED, B: Rule.FREE})
        (tmp_path / "peers.json").write_text('{"zz": "blocked"}')
        assert Gate(tmp_path / "peers.json").rules.all() == {}
        gate = Gate(tmp_path / "none" / "peers.json")
        with pytest.raises(OSError, match="No such file"):
            await gate.rules.set(A, Rule.BLOCKED)
        assert (gate.carried, gate.rules.all()) == ({}, {})

    run(scenario)
