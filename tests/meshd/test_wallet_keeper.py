"""A wallet that opens slowly, or not, and whose chain does not say what it holds: nobody waits for long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from meshd.wallet_keeper import BALANCE_AGE, WalletKeeper
from payments.ports import ChainError, WalletBalance, WalletError, WalletPort
from tests.meshd.fakes import run


class Bank:
    """What a test says of the wallet, and how often it was asked."""

    def __init__(self) -> None:
        self.opening_takes = self.balance_takes = 0.0
        self.failures: list[Exception] = []
        self.holds: int | Exception = 5
        self.opened = self.prepared = self.asked = 0
        self.keeper = WalletKeeper(self._open, self._prepare)

    async def _open(self) -> WalletPort:
        await trio.sleep(self.opening_takes)
        if self.failures:
            raise self.failures.pop()
        self.opened += 1
        return cast("WalletPort", SimpleNamespace(balance=self._balance))

    async def _prepare(self, wallet: WalletPort) -> None:
        self.prepared += 1

    async def _balance(self) -> WalletBalance:
        self.asked += 1
        await trio.sleep(self.balance_takes)
        if isinstance(self.holds, Exception):
            raise self.holds
        return WalletBalance(self.holds, 0)


def run_with(scenario: Any) -> None:
    async def main() -> None:
        bank = Bank()
        async with trio.open_nursery() as nursery:
            bank.keeper.start(nursery)
            await scenario(bank)
            nursery.cancel_scope.cancel()

    run(main)


def test_a_wallet_that_takes_minutes_to_open_is_opened_once_though_everybody_gives_up() -> None:
    async def scenario(bank: Bank) -> None:
        bank.opening_takes = 100.0
        for _ in range(3):
            with pytest.raises(trio.TooSlowError):
                with trio.fail_after(30):
                    await bank.keeper.wallet()
        assert bank.opened == 0
        with trio.fail_after(30):
            first = await bank.keeper.wallet()
        assert await bank.keeper.wallet() is first
        assert (bank.opened, bank.prepared) == (1, 1)

    run_with(scenario)


def test_a_wallet_that_cannot_be_opened_is_tried_again() -> None:
    async def scenario(bank: Bank) -> None:
        bank.failures = [WalletError("locked"), ChainError("away")]
        with pytest.raises(ChainError, match="away"):
            await bank.keeper.wallet()
        with pytest.raises(WalletError, match="locked"):
            await bank.keeper.wallet()
        await bank.keeper.wallet()
        assert bank.opened == 1

    run_with(scenario)


def test_the_balance_is_asked_for_once_for_all_who_ask_together() -> None:
    async def scenario(bank: Bank) -> None:
        bank.balance_takes = 0.2
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(bank.keeper.balance, 1.0)
        assert bank.asked == 1
        assert await bank.keeper.balance(0.0) == WalletBalance(5, 0)
        assert bank.asked == 1
        await trio.sleep(2 * BALANCE_AGE)
        bank.holds = ChainError("away")
        assert await bank.keeper.balance(1.0) is None

    run_with(scenario)


def test_who_asks_for_the_balance_of_a_slow_chain_gets_the_last_one_and_the_answer_is_not_lost() -> None:
    async def scenario(bank: Bank) -> None:
        assert await bank.keeper.balance(1.0) == WalletBalance(5, 0)
        bank.holds, bank.balance_takes = 7, 100.0
        await trio.sleep(2 * BALANCE_AGE)
        for _ in range(4):
            began = trio.current_time()
            assert await bank.keeper.balance(1.0) == WalletBalance(5, 0)
            assert trio.current_time() - began == 1.0
        assert bank.asked == 2
        await trio.sleep(100.0)
        bank.balance_takes = 1000.0
        assert await bank.keeper.balance(1.0) == WalletBalance(7, 0)

    run_with(scenario)


def test_a_keeper_that_was_not_started_says_so() -> None:
    async def scenario() -> None:
        with pytest.raises(WalletError, match="not running"):
            await Bank().keeper.wallet()

    run(scenario)
