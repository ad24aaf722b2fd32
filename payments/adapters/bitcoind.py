"""ChainPort over the JSON-RPC of a Bitcoin node (Bitcoin Core 24 or later, `txindex=1`), of any network.

The node's height may go back when it was killed or the chain is reorganised; this tells what the node says now, and the
payment core keeps the highest. Who has spent an output is looked for in the pool, then in the blocks from its own on.
"""

from __future__ import annotations

import io
import math
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import trio
from embit.transaction import Transaction

from payments.adapters.bitcoind_rpc import Rpc, RpcConfig, RpcError
from payments.adapters.polling import poll_tips
from payments.channel_tx import MAX_FEE_RATE, MAX_MONEY_SAT, parse_transaction
from payments.ports import BroadcastResult, ChainError, ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo

POLL_INTERVAL = 1.0
SCAN_TIMEOUT = 600.0  # of the whole set of unspent outputs
MAX_SCAN = 500  # blocks that one question is answered from; the next one goes on from there
FEE_TARGET = 6  # blocks
MIN_FEE_RATE = 1.0  # sat/vB
SAT_PER_BITCOIN = 10**8
_BLOCK_HEADER_BYTES = 80

# Bitcoin Core, src/rpc/protocol.h.
RPC_INVALID_ADDRESS_OR_KEY = -5  # no such transaction or block
RPC_DESERIALIZATION_ERROR = -22
RPC_VERIFY_ERROR = -25
RPC_VERIFY_REJECTED = -26
RPC_VERIFY_ALREADY_IN_CHAIN = -27
RPC_METHOD_NOT_FOUND = -32601
_REFUSALS = (RPC_DESERIALIZATION_ERROR, RPC_VERIFY_ERROR, RPC_VERIFY_REJECTED)

HexHash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
HexText = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$")]
Height = Annotated[int, msgspec.Meta(ge=0, lt=500_000_000)]
Amount = Decimal  # bitcoins


class _ChainInfo(msgspec.Struct):
    chain: str
    blocks: Height
    bestblockhash: HexHash
    initialblockdownload: bool = False


class _Estimate(msgspec.Struct):
    feerate: Amount | None = None


class _PoolInfo(msgspec.Struct):
    mempoolminfee: Amount


class _Header(msgspec.Struct):
    height: Height
    confirmations: int


class _RawTransaction(msgspec.Struct):
    hex: HexText
    blockhash: HexHash | None = None


class _Script(msgspec.Struct):
    hex: HexText


class _TxOut(msgspec.Struct):
    bestblock: HexHash
    confirmations: Annotated[int, msgspec.Meta(ge=0)]
    value: Amount
    script: _Script = msgspec.field(name="scriptPubKey")


class _Spending(msgspec.Struct):
    spendingtxid: HexHash | None = None


class _Unspent(msgspec.Struct):
    txid: HexHash
    vout: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    amount: Amount
    height: Height
    script: HexText = msgspec.field(name="scriptPubKey")
    coinbase: bool = False


class _Scan(msgspec.Struct):
    success: bool
    unspents: list[_Unspent]


@dataclass(slots=True)
class _Search:
    """How far the blocks were searched for who spends an output, and who does."""

    height: int
    block_hash: str
    spender: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Scanned:
    """What a search of all unspent outputs found, with that block at the tip."""

    tip_hash: bytes
    scripts: frozenset[bytes]
    utxos: list[Utxo]


class BitcoindChain:
    """`network`: Bitcoin Core's name of the chain that it must be (main, test, testnet4, signet, regtest).
    `fallback_fee_rate`: sat/vB where the node has seen too little traffic to estimate."""

    def __init__(
        self,
        config: RpcConfig,
        *,
        network: str,
        fallback_fee_rate: float = 2.0,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        self._rpc = Rpc(config)
        self._scans = Rpc(config)  # on a connection of their own: they take minutes, and everything else would wait
        self._scan_lock = trio.Lock()
        self._scanned: _Scanned | None = None
        self._network = network
        self._fallback_fee_rate = fallback_fee_rate
        self._poll_interval = poll_interval
        self._searches: dict[Outpoint, _Search] = {}

    # --- ChainPort ---

    async def tip(self) -> ChainTip:
        info: _ChainInfo = await self._ask(_ChainInfo, "getblockchaininfo")
        if info.chain != self._network:
            raise ChainError(f"the node is on {info.chain!r}, and not on {self._network!r}")
        if info.initialblockdownload and self._network != "regtest":
            raise ChainError(f"the node is still loading the chain, at height {info.blocks}")
        return ChainTip(info.blocks, bytes.fromhex(info.bestblockhash)[::-1])

    async def fee_rate(self) -> float:
        try:
            estimate: _Estimate = await self._rpc.call(_Estimate, "estimatesmartfee", FEE_TARGET)
            rate = estimate.feerate
        except RpcError:
            rate = None
        if rate is not None and rate > 0:
            return _rate_of(rate)
        pool: _PoolInfo = await self._ask(_PoolInfo, "getmempoolinfo")
        return max(self._fallback_fee_rate, _rate_of(pool.mempoolminfee))

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        txid = parse_transaction(raw).hash()
        try:
            answer: str = await self._rpc.call(HexHash, "sendrawtransaction", raw.hex())
        except RpcError as error:
            return await self._refused(txid, error)
        if answer != _hex_of(txid):
            raise ChainError("the node has sent another transaction than ours")
        return BroadcastResult(accepted=True)

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        try:
            found: _RawTransaction = await self._rpc.call(_RawTransaction, "getrawtransaction", _hex_of(txid), True)
        except RpcError as error:
            if error.code == RPC_INVALID_ADDRESS_OR_KEY:
                return None
            raise ChainError(str(error)) from error
        raw = bytes.fromhex(found.hex)
        if _parse(raw).hash() != txid:
            raise ChainError("another transaction than was asked for")
        height = None if found.blockhash is None else await self._height_of(found.blockhash)
        return TransactionStatus(raw, height, None)

    async def output(self, outpoint: Outpoint) -> OutputStatus | None:
        unspent = await self._ask(_TxOut | None, "gettxout", _hex_of(outpoint.txid), outpoint.index, True)
        if unspent is not None:
            height = None
            if unspent.confirmations:
                best_height = await self._height_of(unspent.bestblock)
                height = None if best_height is None else best_height - unspent.confirmations + 1
            return OutputStatus(sat_of(unspent.value), bytes.fromhex(unspent.script.hex), height)
        created = await self.transaction(outpoint.txid)
        if created is None:
            return None
        outputs = _parse(created.raw).vout
        if outpoint.index >= len(outputs):
            return None
        output = outputs[outpoint.index]
        spent_by, spent_height = await self._spender(outpoint, created.height)
        return OutputStatus(int(output.value), bytes(output.script_pubkey.data), created.height, spent_by, spent_height)

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        """Of the blocks alone: the node's pool is not searched. One search for each block, and for each new script."""
        if not script_pubkeys:
            return []
        scripts = frozenset(script_pubkeys)
        async with self._scan_lock:
            tip_hash = (await self.tip()).block_hash
            known = self._scanned
            if known is None or known.tip_hash != tip_hash or not scripts <= known.scripts:
                known = self._scanned = _Scanned(tip_hash, scripts, await self._scan(scripts))
        return [utxo for utxo in known.utxos if utxo.script_pubkey in scripts]

    async def _scan(self, script_pubkeys: Collection[bytes]) -> list[Utxo]:
        wanted = [f"raw({script.hex()})" for script in script_pubkeys]
        scan: _Scan = await self._ask(_Scan, "scantxoutset", "start", wanted, timeout=SCAN_TIMEOUT, rpc=self._scans)
        if not scan.success:
            raise ChainError("the unspent outputs were not searched to the end")
        found = [
            Utxo(
                Outpoint(bytes.fromhex(each.txid)[::-1], each.vout),
                sat_of(each.amount),
                bytes.fromhex(each.script),
                each.height,
                each.coinbase,
            )
            for each in scan.unspents
        ]
        if not {utxo.script_pubkey for utxo in found} <= set(script_pubkeys):
            raise ChainError("an output of a script that was not asked for")
        return found

    def tips(self) -> AsyncIterator[ChainTip]:
        return poll_tips(self.tip, self._poll_interval)

    # --- What they need ---

    async def _ask(
        self, kind: Any, method: str, *params: Any, timeout: float | None = None, rpc: Rpc | None = None
    ) -> Any:
        """Raises ChainError for a refusal, too."""
        try:
            return await (rpc or self._rpc).call(kind, method, *params, timeout=timeout)
        except RpcError as error:
            raise ChainError(f"{method}: {error}") from error

    async def _refused(self, txid: bytes, error: RpcError) -> BroadcastResult:
        """What is in the pool or in a block already is accepted, whatever the node calls it."""
        code = str(error.code)
        if error.code == RPC_VERIFY_ALREADY_IN_CHAIN:
            return BroadcastResult(accepted=True, code=code)
        if error.code not in _REFUSALS:
            raise ChainError(f"sendrawtransaction: {error}") from error
        is_known = await self.transaction(txid) is not None
        return BroadcastResult(accepted=is_known, code=code)

    async def _height_of(self, block_hash: str) -> int | None:
        """None: no longer in the best chain."""
        header: _Header = await self._ask(_Header, "getblockheader", block_hash)
        return header.height if header.confirmations > 0 else None

    async def _spender(self, outpoint: Outpoint, created_height: int | None) -> tuple[bytes, int | None]:
        """Who spends an output that is not unspent, and at which height. Raises ChainError if that cannot be found."""
        question = [{"txid": _hex_of(outpoint.txid), "vout": outpoint.index}]
        try:
            answer: list[_Spending] = await self._rpc.call(list[_Spending], "gettxspendingprevout", question)
        except RpcError as error:
            if error.code != RPC_METHOD_NOT_FOUND:
                raise ChainError(str(error)) from error
            answer = []
        if answer and answer[0].spendingtxid is not None:
            return bytes.fromhex(answer[0].spendingtxid)[::-1], None
        if created_height is None:
            raise ChainError("an output that is neither spent nor unspent")
        return await self._search(outpoint, created_height)

    async def _search(self, outpoint: Outpoint, created_height: int) -> tuple[bytes, int]:
        search = self._searches.get(outpoint)
        if search is None or search.height < created_height or await self._hash_at(search.height) != search.block_hash:
            search = _Search(created_height - 1, "")  # the first time, or what was searched has been reorganised away
        tip_height = (await self.tip()).height
        last = min(tip_height, search.height + MAX_SCAN)
        while search.spender is None and search.height < last:
            height = search.height + 1
            block_hash = await self._hash_at(height)
            raw = bytes.fromhex(await self._block(block_hash))
            # Not before the block was looked at: where that fails, the next search begins with it.
            search = self._searches[outpoint] = _Search(height, block_hash, _spender_in(raw, outpoint))
        if search.spender is None:
            raise ChainError(f"who spent an output is not found up to height {search.height}")
        return search.spender, search.height

    async def _hash_at(self, height: int) -> str:
        try:
            found: str = await self._rpc.call(HexHash, "getblockhash", height)
        except RpcError:
            return ""  # above the tip
        return found

    async def _block(self, block_hash: str) -> str:
        found = await self._ask(HexText, "getblock", block_hash, 0)
        return str(found)


def _hex_of(txid: bytes) -> str:
    return txid[::-1].hex()


def sat_of(amount: Decimal) -> int:
    """Raises ChainError unless it is a whole number of sat."""
    sat = amount * SAT_PER_BITCOIN
    if not sat.is_finite() or sat != sat.to_integral_value() or not 0 <= sat <= MAX_MONEY_SAT:
        raise ChainError(f"an amount of {amount}")
    return int(sat)


def _rate_of(bitcoin_per_kvb: Decimal) -> float:
    rate = float(bitcoin_per_kvb) * SAT_PER_BITCOIN / 1000
    if not math.isfinite(rate) or rate < 0:
        raise ChainError(f"fee rate {bitcoin_per_kvb}")
    return min(max(rate, MIN_FEE_RATE), MAX_FEE_RATE)


def _parse(raw: bytes) -> Transaction:
    try:
        return parse_transaction(raw)
    except ValueError as error:
        raise ChainError(f"nonsense from the node: {error}") from error


def _spender_in(block: bytes, outpoint: Outpoint) -> bytes | None:
    """The txid of the block's transaction that spends it. Most blocks do not contain its bytes at all."""
    needle = outpoint.txid + outpoint.index.to_bytes(4, "little")
    if needle not in block:
        return None
    stream = io.BytesIO(block[_BLOCK_HEADER_BYTES:])
    try:
        for _ in range(_read_count(stream)):
            transaction = Transaction.read_from(stream)
            if any((bytes(i.txid)[::-1], i.vout) == (outpoint.txid, outpoint.index) for i in transaction.vin):
                return bytes(transaction.hash())
    except Exception as error:
        raise ChainError(f"nonsense from the node: {error}") from error
    return None


def _read_count(stream: io.BytesIO) -> int:
    first = stream.read(1)[0]
    size = {0xFD: 2, 0xFE: 4, 0xFF: 8}.get(first)
    return first if size is None else int.from_bytes(stream.read(size), "little")
