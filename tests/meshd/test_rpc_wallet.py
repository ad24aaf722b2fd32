"""What the control socket does with the wallet: whom it pays, from what, and what if the chain does not take it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from meshd.control import REFUSED, TIMEOUT, RpcError
from meshd.rpc_money import MoneyMethods
from meshd.rpc_wallet import WalletMethods
from payments.adapters.addresses import address_of
from payments.events import ChannelView
from payments.ports import BroadcastResult, ChainError, Outpoint, SignedTransaction, WalletBalance, WalletError
from payments.records import ChannelState, Direction
from tests.meshd.fakes import run

THEIRS = b"\x00\x14" + bytes(20)
OURS = b"\x00\x14" + b"o" * 20
SIGNED = SignedTransaction(b"raw", b"t" * 32, 141)
PEER = b"p" * 32


def channel(direction: Direction, state: ChannelState, paid_msat: int = 0, spend: bytes | None = None) -> ChannelView:
    funding = None if state is ChannelState.OPENING else Outpoint(b"f" * 32, 0)
    return ChannelView(b"c" * 16, PEER, direction, state, 1000, paid_msat, 0, funding, 99, spend)


class Desk:
    """The daemon around the methods: a wallet that remembers, a chain that says what the test wants."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.verdict: BroadcastResult | Exception = BroadcastResult(accepted=True)
        self.wallet_takes = 0.0
        self.failure: Exception | None = None
        self.needs_chain = True
        engine = SimpleNamespace(
            channels=lambda: [
                channel(Direction.OUT, ChannelState.OPEN),
                channel(Direction.OUT, ChannelState.OPENING),
                channel(Direction.IN, ChannelState.CLOSING, 7_000),
                channel(Direction.IN, ChannelState.CLOSED, 9_000, b"s" * 32),
            ],
            needs_chain=True,
        )
        node = SimpleNamespace(
            payments_enabled=True,
            config=SimpleNamespace(chain=SimpleNamespace(network="regtest")),
            chain=SimpleNamespace(fee_rate=self._fee_rate, broadcast=self._broadcast),
            paymaster=SimpleNamespace(engine=engine, wallet=self._open),
        )
        self.node = node
        self.methods = WalletMethods(MoneyMethods(cast("Any", node)))

    async def _open(self) -> Any:
        await trio.sleep(self.wallet_takes)
        if self.failure is not None:
            raise self.failure
        return self

    async def _fee_rate(self) -> float:
        return 3.0

    async def _broadcast(self, raw: bytes) -> BroadcastResult:
        self.did.append(("broadcast", raw))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    # --- the wallet ---

    async def balance(self) -> WalletBalance:
        return WalletBalance(11, 4)

    async def new_script_pubkey(self) -> bytes:
        return OURS

    async def send(self, script: bytes, amount_sat: int, *, fee_rate: float, label: str) -> SignedTransaction:
        self.did.append(("send", script, amount_sat, fee_rate, label))
        return SIGNED

    async def sweep(
        self, txids: Collection[bytes] | None, script: bytes, *, fee_rate: float, label: str
    ) -> SignedTransaction:
        self.did.append(("sweep", txids, script, fee_rate))
        return SIGNED

    async def release(self, txid: bytes) -> None:
        self.did.append(("release", txid))


async def code_of(call: Callable[[dict[str, Any]], Awaitable[Any]], **params: Any) -> int:
    with pytest.raises(RpcError) as refused:
        await call(params)
    return refused.value.code


def with_desk(scenario: Callable[[Desk], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Desk())

    run(main)


TO = {"address": address_of(THEIRS, "regtest"), "amount_sat": 600}


def test_a_payment_is_on_the_disk_of_the_wallet_and_then_broadcast() -> None:
    async def scenario(desk: Desk) -> None:
        sent = await desk.methods.send({**TO, "fee_sat_per_vb": 2, "label": "rent"})
        assert sent == {"txid": (b"t" * 32).hex(), "fee_sat": 141, "broadcast": True}
        assert desk.did == [("send", THEIRS, 600, 2.0, "rent"), ("broadcast", b"raw")]
        await desk.methods.send(TO)
        assert desk.did[2] == ("send", THEIRS, 600, 3.0, "")

    with_desk(scenario)


def test_what_the_chain_refuses_is_released_and_what_it_does_not_hear_of_is_not() -> None:
    async def scenario(desk: Desk) -> None:
        desk.verdict = BroadcastResult(accepted=False, code="-26")
        assert await code_of(desk.methods.send, **TO) == REFUSED
        assert desk.did[-1] == ("release", b"t" * 32)
        desk.verdict = ChainError("away")
        assert (await desk.methods.send(TO))["broadcast"] is False
        assert desk.did[-1] == ("broadcast", b"raw")

    with_desk(scenario)


def test_an_address_of_another_network_is_refused_before_anything_is_signed() -> None:
    async def scenario(desk: Desk) -> None:
        wrong = {**TO, "address": address_of(THEIRS, "main")}
        assert await code_of(desk.methods.send, **wrong) == REFUSED
        assert desk.did == []

    with_desk(scenario)


def test_a_sweep_takes_what_closed_channels_left_and_everything_only_when_told() -> None:
    async def scenario(desk: Desk) -> None:
        await desk.methods.sweep({})
        assert desk.did[0] == ("sweep", {b"s" * 32}, OURS, 3.0)
        await desk.methods.sweep({"everything": True, "address": TO["address"], "fee_sat_per_vb": 1.5})
        assert desk.did[2] == ("sweep", None, THEIRS, 1.5)

    with_desk(scenario)


def test_the_balance_tells_channels_apart() -> None:
    async def scenario(desk: Desk) -> None:
        assert await desk.methods.balance({}) == {
            "confirmed_sat": 11,
            "unconfirmed_sat": 4,
            "locked_in_channels_sat": 1000,
            "claimable_msat": 7_000,
        }

    with_desk(scenario)


def test_a_wallet_that_is_busy_missing_or_of_no_use_is_told_apart() -> None:
    async def scenario(desk: Desk) -> None:
        desk.wallet_takes = 1000.0
        assert await code_of(desk.methods.balance) == TIMEOUT
        desk.wallet_takes, desk.failure = 0.0, WalletError("no such extra")
        assert await code_of(desk.methods.script) == REFUSED
        desk.node.paymaster.engine.needs_chain = False
        assert await code_of(desk.methods.address) == REFUSED
        desk.node.payments_enabled = False
        assert await code_of(desk.methods.address) == REFUSED

    with_desk(scenario)
