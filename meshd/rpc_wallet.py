"""What meshctl can ask and tell of the wallet: money on the chain, outside of channels. Amounts are sat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from meshd import schemas
from meshd.control import FUNDS, REFUSED, TIMEOUT, Method, Param, RpcError
from payments.adapters.addresses import script_of
from payments.ports import ChainError, InsufficientFundsError, SignedTransaction, WalletError, WalletPort
from payments.records import ChannelState

if TYPE_CHECKING:
    from meshd.rpc_money import MoneyMethods

WALLET_TIMEOUT = 30.0  # to open it takes long on a busy machine; that goes on when nobody waits any more
MAX_SAT = 21_000_000 * 100_000_000


class WalletMethods:
    """The handlers; each takes checked parameters and returns JSON."""

    def __init__(self, money: MoneyMethods) -> None:
        self._money = money
        self._node = money.node

    async def _ask(self, question: Callable[[WalletPort], Awaitable[Any]]) -> Any:
        """Raises RpcError: it cannot be done, or not in time."""
        self._money.require_payments()
        if not self._node.paymaster.engine.needs_chain:
            raise RpcError(REFUSED, "no debt is settled on a chain here: there is no wallet ([payments] settlement)")
        try:
            with trio.fail_after(WALLET_TIMEOUT):
                return await question(await self._node.paymaster.wallet())
        except InsufficientFundsError as error:
            raise RpcError(FUNDS, str(error)) from error
        except (WalletError, ChainError) as error:
            raise RpcError(REFUSED, str(error)) from error
        except trio.TooSlowError as error:
            raise RpcError(TIMEOUT, "the wallet is busy; try again") from error

    async def script(self, _: dict[str, Any]) -> Any:
        script: bytes = await self._ask(lambda wallet: wallet.new_script_pubkey())
        return {"script_pubkey": script.hex()}

    async def balance(self, _: dict[str, Any]) -> Any:
        balance = await self._ask(lambda wallet: wallet.balance())
        channels = self._node.paymaster.engine.channels()
        open_ones = [each for each in channels if each.funding is not None and each.state is not ChannelState.CLOSED]
        return {
            "confirmed_sat": balance.confirmed_sat,
            "unconfirmed_sat": balance.unconfirmed_sat,
            "locked_in_channels_sat": sum(c.capacity_sat for c in open_ones if c.direction.value == "out"),
            "claimable_msat": sum(c.cumulative_msat for c in open_ones if c.direction.value == "in"),
        }

    async def address(self, params: dict[str, Any]) -> Any:
        return {"address": await self._ask(lambda wallet: wallet.address(params.get("label") or ""))}

    async def send(self, params: dict[str, Any]) -> Any:
        amount_sat = params["amount_sat"]

        async def pay(wallet: WalletPort) -> SignedTransaction:
            script = script_of(params["address"], self._node.config.chain.network)
            rate = await self._rate(params)
            return await wallet.send(script, amount_sat, fee_rate=rate, label=params.get("label") or "")

        return await self._broadcast(await self._ask(pay))

    async def sweep(self, params: dict[str, Any]) -> Any:
        """What closed channels have left, or all, into one output."""
        closed = {
            channel.spend_txid
            for channel in self._node.paymaster.engine.channels()
            if channel.state is ChannelState.CLOSED and channel.spend_txid is not None
        }

        async def pay(wallet: WalletPort) -> SignedTransaction:
            address = params.get("address")
            own = await wallet.new_script_pubkey() if address is None else None
            script = own or script_of(str(address), self._node.config.chain.network)
            txids = None if params.get("everything") else closed
            return await wallet.sweep(txids, script, fee_rate=await self._rate(params), label="sweep")

        return await self._broadcast(await self._ask(pay))

    async def _rate(self, params: dict[str, Any]) -> float:
        wanted = params.get("fee_sat_per_vb")
        return await self._node.chain.fee_rate() if wanted is None else float(wanted)

    async def _broadcast(self, signed: SignedTransaction) -> Any:
        """The wallet has it on the disk; what the chain does not hear of now is sent again at the next start."""
        try:
            with trio.fail_after(WALLET_TIMEOUT):
                result = await self._node.chain.broadcast(signed.raw)
            if not result.accepted:
                await self._ask(lambda wallet: wallet.release(signed.txid))
                raise RpcError(REFUSED, f"the chain refuses the transaction ({result.code}): nothing was paid")
            is_known = True
        except (ChainError, trio.TooSlowError):
            is_known = False
        return {"txid": signed.txid[::-1].hex(), "fee_sat": signed.fee_sat, "broadcast": is_known}

    async def labels(self, _: dict[str, Any]) -> Any:
        labels: dict[str, str] = await self._ask(lambda wallet: wallet.labels())
        return [{"key": key, "text": text} for key, text in labels.items()]

    async def label(self, params: dict[str, Any]) -> Any:
        await self._ask(lambda wallet: wallet.label(params["key"], params["text"]))
        return {"key": params["key"], "text": params["text"]}


_FEE = Param("number", "sat per virtual byte; as the chain says, if left out", required=False)


def wallet_methods(money: MoneyMethods) -> dict[str, Method]:
    """Their part of the method table."""
    node = WalletMethods(money)
    label = Param("string", "for people", required=False)
    return {
        "wallet.script": Method(
            node.script, "A fresh output script to send money to.", result=schemas.SCRIPT, writes=True
        ),
        "wallet.balance": Method(node.balance, "Money on the chain, and in channels.", result=schemas.WALLET_BALANCE),
        "wallet.address": Method(
            node.address, "A fresh address to send money to.", {"label": label}, result=schemas.NEW_ADDRESS, writes=True
        ),
        "wallet.send": Method(
            node.send,
            "Pay somebody on the chain.",
            {
                "address": Param("string", "whom"),
                "amount_sat": Param("integer", "how much"),
                "fee_sat_per_vb": _FEE,
                "label": label,
            },
            result=schemas.SENT,
            writes=True,
        ),
        "wallet.sweep": Method(
            node.sweep,
            "Bring together in one output what closed channels have left; or all that there is, to empty the wallet.",
            {
                "address": Param("string", "to where; a fresh one of our own, if left out", required=False),
                "everything": Param("boolean", "not of channels alone", required=False),
                "fee_sat_per_vb": _FEE,
            },
            result=schemas.SENT,
            writes=True,
        ),
        "wallet.labels": Method(node.labels, "What was written beside addresses and transactions.", result=LABELS),
        "wallet.label": Method(
            node.label,
            "Write something beside an address or a transaction.",
            {"key": Param("string", "address or txid"), "text": Param("string", "empty: take it away")},
            result=schemas.LABEL,
            writes=True,
        ),
    }


LABELS = schemas.array(schemas.LABEL)
