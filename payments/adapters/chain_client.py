"""ChainPort over the socket of `chaind`. Everything that comes back is checked; whatever is wrong is a ChainError."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from payments.adapters import chain_protocol as protocol
from payments.adapters.chain_protocol import LineError, LineStream
from payments.channel_tx import MAX_FEE_RATE, parse_transaction
from payments.ports import BroadcastResult, ChainError, ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo

REQUEST_TIMEOUT = 10.0  # seconds
MINE_TIMEOUT = 60.0
SILENCE_TIMEOUT = 4 * protocol.KEEPALIVE_INTERVAL  # of a subscription

T = TypeVar("T")
_response_decoder = msgspec.json.Decoder(protocol.Response)


class KernelChainClient:
    """One connection for requests, opened when needed and again after it was lost; one for each iterator of tips."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._lock = trio.Lock()
        self._lines: LineStream | None = None
        self._next_id = 1

    def close(self) -> None:
        """The next request would connect again."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    # --- ChainPort ---

    async def tip(self) -> ChainTip:
        result: protocol.TipResult = await self._request(protocol.Tip(self._id()), protocol.TipResult)
        return result.to_tip()

    async def fee_rate(self) -> float:
        rate: float = await self._request(protocol.FeeRate(self._id()), float)
        if not 0.0 < rate <= MAX_FEE_RATE or not math.isfinite(rate):
            raise ChainError(f"fee rate {rate}")
        return rate

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        answer = await self._request(protocol.Broadcast(self._id(), raw.hex()), protocol.BroadcastAnswer)
        return BroadcastResult(answer.accepted, answer.code)

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        request = protocol.Transaction(self._id(), txid.hex())
        result = await self._request(request, protocol.TransactionResult | None)
        if result is None:
            return None
        raw = bytes.fromhex(result.raw)
        try:
            is_asked = parse_transaction(raw).hash() == txid
        except ValueError as error:
            raise ChainError(str(error)) from error
        if not is_asked:
            raise ChainError("another transaction than was asked for")
        return TransactionStatus(raw, result.height, result.fee_sat)

    async def output(self, outpoint: Outpoint) -> OutputStatus | None:
        request = protocol.Output(self._id(), outpoint.txid.hex(), outpoint.index)
        result = await self._request(request, protocol.OutputResult | None)
        if result is None:
            return None
        return OutputStatus(
            result.value_sat,
            bytes.fromhex(result.script),
            result.height,
            None if result.spent_by is None else bytes.fromhex(result.spent_by),
            result.spent_height,
        )

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        found: list[Utxo] = []
        for start in range(0, len(script_pubkeys), protocol.MAX_SCRIPTS):
            found += await self._utxos_of(script_pubkeys[start : start + protocol.MAX_SCRIPTS])
        return found

    def tips(self) -> AsyncIterator[ChainTip]:
        return _Tips(self._socket_path)

    # --- Regtest only ---

    async def mine(self, count: int = 1, script_pubkey: bytes | None = None) -> ChainTip:
        """`count` blocks at once, at most 10,000; rewards to `script_pubkey`, else to the faucet. Raises ChainError."""
        script = None if script_pubkey is None else script_pubkey.hex()
        request = protocol.Mine(self._id(), count, script)
        result: protocol.TipResult = await self._request(
            request, protocol.TipResult, timeout=MINE_TIMEOUT, repeatable=False
        )
        return result.to_tip()

    async def faucet(self, script_pubkey: bytes, amount_sat: int) -> bytes:
        """The txid of a payment, not yet in a block. Raises ChainError."""
        request = protocol.Faucet(self._id(), script_pubkey.hex(), amount_sat)
        txid: str = await self._request(request, protocol.HexHash, repeatable=False)
        return bytes.fromhex(txid)

    # --- The connection ---

    async def _utxos_of(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        request = protocol.Utxos(self._id(), [script.hex() for script in script_pubkeys])
        wanted = set(request.scripts)
        results = await self._request(request, list[protocol.UtxoResult])
        if any(result.script not in wanted for result in results):
            raise ChainError("an output of a script that was not asked for")
        return [
            Utxo(
                Outpoint(bytes.fromhex(result.txid), result.index),
                result.value_sat,
                bytes.fromhex(result.script),
                result.height,
                result.coinbase,
            )
            for result in results
        ]

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _request(
        self, request: protocol.AnyRequest, kind: Any, *, timeout: float = REQUEST_TIMEOUT, repeatable: bool = True
    ) -> Any:
        """The result, of type `kind`. A connection that the server has closed since its last use is replaced once."""
        with trio.move_on_after(timeout):
            async with self._lock:
                if repeatable and self._lines is not None:
                    try:
                        return await self._exchange(self._lines, request, kind)
                    except LineError:
                        pass
                else:
                    self.close()
                try:
                    self._lines = await _connect(self._socket_path)
                    return await self._exchange(self._lines, request, kind)
                except LineError as error:
                    raise ChainError(str(error)) from error
        raise ChainError(f"no answer within {timeout} s")

    async def _exchange(self, lines: LineStream, request: protocol.AnyRequest, kind: Any) -> Any:
        """After any failure, cancellation included, an answer may be under way: the connection is of no more use."""
        is_whole = False
        try:
            await lines.send(msgspec.json.encode(request))
            result = await _receive_result(lines, request.id, kind)
            is_whole = True
            return result
        finally:
            if not is_whole:
                self.close()


class _Tips:
    """Async iterator over the tips; a repetition is not news."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._lines: LineStream | None = None
        self._last: ChainTip | None = None

    def __aiter__(self) -> _Tips:
        return self

    async def __anext__(self) -> ChainTip:
        tip = None
        try:
            tip = await self._next()
        except LineError as error:
            raise ChainError(str(error)) from error
        finally:
            if tip is None and self._lines is not None:
                self._lines.close()
        return tip

    async def _next(self) -> ChainTip:
        while True:
            with trio.move_on_after(SILENCE_TIMEOUT):
                if self._lines is None:
                    self._lines = await _connect(self._socket_path)
                    await self._lines.send(msgspec.json.encode(protocol.Subscribe(1)))
                tip: ChainTip = (await _receive_result(self._lines, 1, protocol.TipResult)).to_tip()
                if tip != self._last:
                    self._last = tip
                    return tip
                continue
            raise ChainError("the chain has fallen silent")


async def _connect(socket_path: Path) -> LineStream:
    """Raises ChainError."""
    try:
        return LineStream(await trio.open_unix_socket(str(socket_path)))
    except OSError as error:
        raise ChainError(f"no chain at {socket_path}: {error}") from error


async def _receive_result(lines: LineStream, request_id: int, kind: Any) -> Any:
    """Raises LineError if the connection is over, ChainError if the answer is no answer."""
    line = await lines.receive()
    if line is None:
        raise LineError("the chain has closed the connection")
    try:
        response = _response_decoder.decode(line)
        if response.error is not None:
            raise ChainError(response.error)
        if response.id != request_id:
            raise ChainError("an answer to another question")
        return msgspec.json.decode(response.result, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ChainError(f"nonsense from the chain: {error}") from error
