"""WalletPort on a wallet of a Bitcoin Core node: its keys, its coin selection, its policy.

Any wallet that can sign a PSBT completely will do: descriptors, hardware signers that the node drives, encrypted ones
that are unlocked. It must give P2WPKH (or P2WSH) addresses, as channels pay their change to them. Which inputs are set
aside is locked in the node, and kept on our disk too, since the node forgets its locks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import trio
from embit.base import EmbitError
from embit.psbt import PSBT

from payments.adapters.addresses import address_of, script_of
from payments.adapters.bitcoind import sat_of
from payments.adapters.bitcoind_rpc import Rpc, RpcConfig, RpcError
from payments.adapters.chain_index import inputs_of
from payments.adapters.wallet_notes import WalletNotes, read_fundings, write_fundings
from payments.channel_tx import MAX_FEE_RATE, MAX_MONEY_SAT, dust_limit, parse_transaction
from payments.ports import (
    ChainError,
    ChainPort,
    ForeignInput,
    InsufficientFundsError,
    Outpoint,
    SignedTransaction,
    WalletBalance,
    WalletError,
)

# Bitcoin Core, src/rpc/protocol.h.
RPC_WALLET_ERROR = -4  # what newer versions say where others say -6
RPC_WALLET_INSUFFICIENT_FUNDS = -6
RPC_WALLET_NOT_FOUND = -18
RPC_WALLET_ALREADY_LOADED = -35
MAX_INPUTS = 400

_Amount = Decimal


class _Mine(msgspec.Struct):
    trusted: _Amount
    untrusted_pending: _Amount


class _Balances(msgspec.Struct):
    mine: _Mine


class _Info(msgspec.Struct):
    private_keys_enabled: bool = True
    external_signer: bool = False


class _Created(msgspec.Struct):
    psbt: str
    fee: _Amount


class _Processed(msgspec.Struct):
    psbt: str


class _Unspent(msgspec.Struct):
    txid: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    vout: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    amount: _Amount


class BitcoindWallet:
    """Use `open`. One call runs at a time."""

    def __init__(self, config: RpcConfig, name: str, chain: ChainPort, directory: Path, network: str) -> None:
        self._node = Rpc(config)
        self._rpc = Rpc(replace(config, path=f"/wallet/{quote(name)}"))
        self._name = name
        self._chain = chain
        self._network = network
        self._lock = trio.Lock()
        self._fundings_path = directory / "fundings.json"
        self._fundings = read_fundings(self._fundings_path)
        self._notes = WalletNotes(directory / "notes.json")

    @classmethod
    async def open(
        cls, config: RpcConfig, name: str, *, directory: Path, chain: ChainPort, network: str
    ) -> BitcoindWallet:
        """The wallet of that name, which must exist; it is loaded if it is not. Raises WalletError and ChainError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        wallet = cls(config, name, chain, directory, network)
        try:
            if name not in await wallet._node.call(list[str], "listwallets"):
                await wallet._node.call(Any, "loadwallet", name)
            info: _Info = await wallet._rpc.call(_Info, "getwalletinfo")
        except RpcError as error:
            raise WalletError(f"wallet {name!r} of the node: {error}") from error
        if not info.private_keys_enabled and not info.external_signer:
            raise WalletError(f"wallet {name!r} of the node cannot sign")
        for funding in await wallet.pending() + await wallet.sent():
            await wallet._set_aside(funding, is_wanted=True)
        return wallet

    # --- WalletPort ---

    async def balance_sat(self) -> int:
        balance = await self.balance()
        return balance.confirmed_sat + balance.unconfirmed_sat

    async def balance(self) -> WalletBalance:
        mine = (await self._ask(_Balances, "getbalances")).mine
        return WalletBalance(sat_of(mine.trusted), sat_of(mine.untrusted_pending))

    async def new_script_pubkey(self) -> bytes:
        return script_of(await self.address(), self._network)

    async def address(self, label: str = "") -> str:
        address = str(await self._ask(str, "getnewaddress", "", "bech32"))
        script = script_of(address, self._network)
        if len(script) not in (22, 34) or script[0] != 0:
            raise WalletError("the wallet of the node gives addresses that channels cannot pay to")
        if label:
            await self.label(address, label)
        return address

    async def fund(self, script_pubkey: bytes, amount_sat: int, *, fee_rate: float) -> SignedTransaction:
        if not dust_limit(script_pubkey) <= amount_sat <= MAX_MONEY_SAT:
            raise WalletError(f"cannot pay {amount_sat} sat to an output")
        output = {address_of(script_pubkey, self._network): _bitcoins(amount_sat)}
        async with self._lock:
            signed = await self._sign([], [output], {"changePosition": 1}, fee_rate=fee_rate)
            if (script_pubkey, amount_sat) not in _outputs_of(signed.raw):
                raise WalletError("the wallet of the node pays something else than it was asked for")
            await self._keep(signed)
        return signed

    async def fund_splice(
        self, foreign: ForeignInput, outputs: Sequence[tuple[bytes, int]], *, fee_rate: float
    ) -> SignedTransaction:
        spent = {
            "txid": foreign.outpoint.txid[::-1].hex(),
            "vout": foreign.outpoint.index,
            "sequence": foreign.sequence,
            "weight": 4 * foreign.vbytes,
        }
        wanted = [{address_of(script, self._network): _bitcoins(amount_sat)} for script, amount_sat in outputs]
        own = {"add_inputs": True, "changePosition": len(outputs)}
        async with self._lock:
            signed = await self._sign([spent], wanted, own, fee_rate=fee_rate, foreign=1)
            spends = inputs_of(parse_transaction(signed.raw))
            if (
                spends[0] != foreign.outpoint
                or len(spends) < 2
                or _outputs_of(signed.raw)[: len(outputs)] != [*outputs]
            ):
                raise WalletError("the wallet of the node makes another splice than it was asked for")
            await self._keep(signed)
        return signed

    async def send(
        self, script_pubkey: bytes, amount_sat: int, *, fee_rate: float, label: str = ""
    ) -> SignedTransaction:
        self._notes.check(label)
        signed = await self.fund(script_pubkey, amount_sat, fee_rate=fee_rate)
        async with self._lock:
            await self._mark_sent(signed, label)
        return signed

    async def sweep(
        self, txids: Collection[bytes] | None, script_pubkey: bytes, *, fee_rate: float, label: str = ""
    ) -> SignedTransaction:
        self._notes.check(label)
        async with self._lock:
            unspent: list[_Unspent] = await self._ask(list[_Unspent], "listunspent", 1, 9_999_999, [], False)
            swept = [each for each in unspent if txids is None or bytes.fromhex(each.txid)[::-1] in txids][:MAX_INPUTS]
            if not swept:
                raise InsufficientFundsError("no outputs to sweep")
            inputs = [{"txid": each.txid, "vout": each.vout} for each in swept]
            total_sat = sum(sat_of(each.amount) for each in swept)
            output = {address_of(script_pubkey, self._network): _bitcoins(total_sat)}
            whole = {"add_inputs": False, "subtractFeeFromOutputs": [0]}
            signed = await self._sign(inputs, [output], whole, fee_rate=fee_rate)
            await self._keep(signed)
            await self._mark_sent(signed, label)
        return signed

    async def release(self, txid: bytes) -> None:
        async with self._lock:
            funding = self._fundings.get(txid)
            if funding is not None:
                await self._save({other: each for other, each in self._fundings.items() if other != txid})
                await self._set_aside(funding, is_wanted=False)

    async def pending(self) -> list[SignedTransaction]:
        async with self._lock:
            await self._forget_confirmed()
            return [each for txid, each in self._fundings.items() if not self._notes.is_sent(txid)]

    async def sent(self) -> list[SignedTransaction]:
        async with self._lock:
            await self._forget_confirmed()
            return [each for txid, each in self._fundings.items() if self._notes.is_sent(txid)]

    async def labels(self) -> dict[str, str]:
        return self._notes.labels

    async def label(self, key: str, text: str) -> None:
        async with self._lock:
            await trio.to_thread.run_sync(self._notes.label, key, text)

    # --- What they need ---

    async def _ask(self, kind: Any, method: str, *params: Any) -> Any:
        """Raises WalletError for a refusal, ChainError when the node cannot be asked."""
        try:
            return await self._call(kind, method, *params)
        except RpcError as error:
            raise WalletError(f"{method}: {error}") from error

    async def _call(self, kind: Any, method: str, *params: Any) -> Any:
        """Raises RpcError and ChainError. A node that was restarted has not loaded the wallet."""
        try:
            return await self._rpc.call(kind, method, *params)
        except RpcError as error:
            if error.code != RPC_WALLET_NOT_FOUND:
                raise
        try:
            await self._node.call(Any, "loadwallet", self._name)
        except RpcError as error:
            if error.code != RPC_WALLET_ALREADY_LOADED:  # by another call of ours, meanwhile
                raise
        return await self._rpc.call(kind, method, *params)

    async def _sign(
        self,
        inputs: list[dict[str, Any]],
        outputs: list[dict[str, str]],
        options: dict[str, Any],
        *,
        fee_rate: float,
        foreign: int = 0,
    ) -> SignedTransaction:
        """Its inputs are locked in the node. The first `foreign` ones are signed by others."""
        if not 0.0 < fee_rate <= MAX_FEE_RATE:
            raise WalletError(f"a fee rate of {fee_rate} sat/vB")
        common = {"fee_rate": round(fee_rate, 3), "lockUnspents": True, "change_type": "bech32", "replaceable": True}
        try:
            created = await self._call(_Created, "walletcreatefundedpsbt", inputs, outputs, 0, common | options)
        except RpcError as error:
            if error.code in (RPC_WALLET_ERROR, RPC_WALLET_INSUFFICIENT_FUNDS):
                raise InsufficientFundsError(f"the wallet of the node does not fund it: {error}") from error
            raise WalletError(f"walletcreatefundedpsbt: {error}") from error
        try:
            processed: _Processed = await self._ask(_Processed, "walletprocesspsbt", created.psbt)
            raw = _assemble(processed.psbt, foreign)
        except (WalletError, ChainError):
            # A wallet that is locked, say: attempts would set aside one coin after the other, until none is left.
            with suppress(ChainError):
                await self._lock_inputs(_inputs_of_psbt(created.psbt), is_wanted=False)
            raise
        return SignedTransaction(raw, parse_transaction(raw).hash(), sat_of(created.fee))

    async def _keep(self, signed: SignedTransaction) -> None:
        """On the disk before anybody has it; and locked in the node beyond its restart."""
        await self._save({**self._fundings, signed.txid: signed})
        await self._set_aside(signed, is_wanted=True)

    async def _mark_sent(self, signed: SignedTransaction, label: str) -> None:
        await trio.to_thread.run_sync(self._notes.mark_sent, signed.txid, self._fundings, label)

    async def _set_aside(self, signed: SignedTransaction, *, is_wanted: bool) -> None:
        await self._lock_inputs(inputs_of(parse_transaction(signed.raw)), is_wanted=is_wanted)

    async def _lock_inputs(self, outpoints: Iterable[Outpoint], *, is_wanted: bool) -> None:
        for outpoint in outpoints:
            output = {"txid": outpoint.txid[::-1].hex(), "vout": outpoint.index}
            # Refused where it is so already, or where the output is spent or not the wallet's.
            with suppress(RpcError):
                await self._call(bool, "lockunspent", not is_wanted, [output], *([True] if is_wanted else []))

    async def _forget_confirmed(self) -> None:
        waiting = {txid: each for txid, each in self._fundings.items() if not await self._is_confirmed(txid)}
        if len(waiting) < len(self._fundings):
            await self._save(waiting)

    async def _is_confirmed(self, txid: bytes) -> bool:
        status = await self._chain.transaction(txid)
        return status is not None and status.height is not None

    async def _save(self, fundings: dict[bytes, SignedTransaction]) -> None:
        await trio.to_thread.run_sync(write_fundings, self._fundings_path, fundings)
        self._fundings = fundings


def _bitcoins(sat: int) -> str:
    return f"{Decimal(sat).scaleb(-8):.8f}"


def _outputs_of(raw: bytes) -> list[tuple[bytes, int]]:
    return [(bytes(output.script_pubkey.data), int(output.value)) for output in parse_transaction(raw).vout]


def _inputs_of_psbt(text: str) -> list[Outpoint]:
    """None of what is no PSBT."""
    try:
        return [Outpoint(bytes(item.txid)[::-1], item.vout) for item in PSBT.from_base64(text).tx.vin]
    except (EmbitError, ValueError, IndexError, KeyError, AttributeError, TypeError, RuntimeError):
        return []


def _assemble(text: str, foreign: int) -> bytes:
    """The transaction of a PSBT whose inputs are all signed but the first `foreign`. Raises WalletError."""
    try:
        psbt = PSBT.from_base64(text)
        transaction = psbt.tx
        for spent, signed in list(zip(transaction.vin, psbt.inputs, strict=True))[foreign:]:
            if signed.final_scriptwitness is None and signed.final_scriptsig is None:
                raise WalletError("the wallet of the node does not sign all inputs by itself")
            spent.witness = signed.final_scriptwitness or spent.witness
            spent.script_sig = signed.final_scriptsig or spent.script_sig
        return bytes(transaction.serialize())
    except (EmbitError, ValueError, IndexError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise WalletError(f"nonsense from the node: {error}") from error
