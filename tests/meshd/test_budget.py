"""What becomes of a budget in the daemon: kept over restarts, and acted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from meshd.budget import BudgetKeeper, spent_msat
from payments.events import LedgerView
from tests.meshd.fakes import run

BLANK = LedgerView(
    peer=b"p",
    is_connected=True,
    billed_units=0,
    acknowledged_units=0,
    their_billed_units=0,
    accepted_units=0,
    owed_limit_units=0,
    sent_msat=0,
    received_msat=0,
    net_owed_msat=0,
    unpaid_msat=0,
    window_msat=10,
    is_suspended=False,
    faults=0,
    settlement="channels",
)


class Node:
    """Its ledgers, its clock, and what it was told."""

    def __init__(self, file: Path | None) -> None:
        self.ledgers = [BLANK]
        self.now = 1e9
        self.told: list[bool] = []
        self.file = file
        self.keeper = self.start()

    def start(self) -> BudgetKeeper:
        self.keeper = BudgetKeeper(
            {"hour": 100},
            ledgers=lambda: self.ledgers,
            set_buying=self._set_buying,
            file=self.file,
            clock=lambda: self.now,
        )
        return self.keeper

    async def _set_buying(self, is_buying: bool) -> None:
        assert self.keeper.is_buying is is_buying
        self.told.append(is_buying)

    def pay(self, msat: int) -> None:
        self.ledgers = [replace(BLANK, sent_msat=self.ledgers[0].sent_msat + msat)]


def test_spent_is_what_was_paid_and_is_owed_less_what_was_earned() -> None:
    buyer = replace(BLANK, sent_msat=70, unpaid_msat=-5)
    relay = replace(BLANK, received_msat=20, unpaid_msat=9)  # what it is owed may never come
    assert spent_msat([buyer, relay]) == 55


def test_it_stops_once_and_buys_again_in_the_next_hour_or_with_a_higher_limit() -> None:
    async def scenario() -> None:
        node = Node(None)  # the clock of the test does not wait for a thread that writes
        with trio.move_on_after(10.5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.keeper.run)
                await trio.sleep(0.5)
                node.pay(100)
                await trio.sleep(3)
                assert node.told == [False]
                node.now += 3600
                await trio.sleep(3)
                assert node.told == [False, True]
                node.pay(100)
                await trio.sleep(3)
                await node.keeper.set_limits({"hour": 101})
        assert node.told == [False, True, False, True]
        assert node.keeper.view()["periods"][0]["spent_msat"] == 100

    run(scenario)


def test_a_restart_is_no_way_around_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        node = Node(tmp_path / "budget.json")
        await node.keeper.check()
        node.pay(100)
        await node.start().check()
        assert node.told == [False]
        assert (tmp_path / "budget.json").stat().st_size < 300

    run(scenario)


def test_a_damaged_or_unwritable_file_ends_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "budget.json"
        file.write_bytes(b"[]")
        node = Node(file)
        await node.keeper.check()
        assert b"hour" in file.read_bytes()
        lost = Node(tmp_path / "none" / "budget.json")
        await lost.keeper.check()
        lost.pay(100)
        await lost.keeper.check()
        assert lost.told == [False]

    run(scenario)
