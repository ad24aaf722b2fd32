"""Opens the wallet once, in the background, and knows its balance without making anybody wait for it.

A wallet is heavy: on a busy machine it takes long to open, and a node of a large chain takes minutes to say what it
holds. Whoever asks may give up; what was begun goes on, and the next one has it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from payments.ports import ChainError, WalletBalance, WalletError, WalletPort

BALANCE_AGE = 1.0  # the wallet asks the chain and writes its database for it

Failure = WalletError | ChainError


class WalletKeeper:
    """`prepare` runs once, with the wallet just opened."""

    def __init__(
        self, open_wallet: Callable[[], Awaitable[WalletPort]], prepare: Callable[[WalletPort], Awaitable[None]]
    ) -> None:
        self._open_wallet = open_wallet
        self._prepare = prepare
        self._nursery: trio.Nursery | None = None
        self._wallet: WalletPort | None = None
        self._opened: trio.Event | None = None  # there is an attempt under way
        self._failure: Failure | None = None
        self._asked: trio.Event | None = None
        self._balance: WalletBalance | None = None
        self._balance_at = -math.inf

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def wallet(self) -> WalletPort:
        """Opened when it is first needed. Raises WalletError and ChainError; the next call tries again."""
        if self._wallet is not None:
            return self._wallet
        if self._opened is None:
            self._opened = self._in_background(self._open)
        await self._opened.wait()
        if self._wallet is None:
            raise type(self._failure or WalletError())(str(self._failure))
        return self._wallet

    async def balance(self, patience: float) -> WalletBalance | None:
        """As of a moment ago; after `patience` seconds, as it was last known. None: never, or it cannot be had."""
        if trio.current_time() - self._balance_at > BALANCE_AGE:
            if self._asked is None:
                self._asked = self._in_background(self._ask)
            with trio.move_on_after(patience):
                await self._asked.wait()
        return self._balance

    def _in_background(self, work: Callable[[trio.Event], Awaitable[None]]) -> trio.Event:
        if self._nursery is None:
            raise WalletError("payments are not running")
        done = trio.Event()
        self._nursery.start_soon(work, done)
        return done

    async def _open(self, done: trio.Event) -> None:
        try:
            wallet = await self._open_wallet()
            await self._prepare(wallet)
            self._wallet = wallet
        except (WalletError, ChainError) as error:
            self._failure = error
        finally:
            self._opened = None
            done.set()

    async def _ask(self, done: trio.Event) -> None:
        try:
            self._balance = await (await self.wallet()).balance()
        except (WalletError, ChainError):
            self._balance = None
        finally:
            self._balance_at, self._asked = trio.current_time(), None
            done.set()
