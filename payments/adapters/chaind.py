"""`python -m payments.adapters.chaind`: one embedded regtest chain for all daemons of a demo, on a Unix socket.

Clients are neither trusted nor waited for: each has its own task, one request at a time, and lines, answers and time to
send are bounded. The chain runs in a worker thread, one call at a time, so that none of them holds up the sockets.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, assert_never

import msgspec
import trio

from payments.adapters import chain_protocol as protocol
from payments.adapters.chain_protocol import LineError, LineStream
from payments.adapters.kernel_chain import KernelChain, KernelChainError
from payments.ports import ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo

MAX_CLIENTS = 256
MINE_BATCH = 50  # blocks between two looks at other requests

T = TypeVar("T")
_decoder = msgspec.json.Decoder(protocol.AnyRequest)


class ChainServer:
    """Serves one KernelChain to many clients."""

    def __init__(self, chain: KernelChain, *, mine_on_transaction: bool = False) -> None:
        self._chain = chain
        self._mine_on_transaction = mine_on_transaction
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._mining = trio.Lock()
        self._clients = 0
        self._tip = chain.tip()
        self._tip_changed = trio.Event()
        self._transaction_came = trio.Event()

    async def serve_client(self, stream: trio.SocketStream) -> None:
        """Until the client goes, or breaks the protocol."""
        async with stream:
            if self._clients >= MAX_CLIENTS:
                return
            self._clients += 1
            try:
                await self._serve(LineStream(stream))
            except LineError:
                pass  # its own fault, or its end
            finally:
                self._clients -= 1

    async def mine_every(self, interval: float) -> None:
        """A block each `interval` seconds, whether or not there is anything to put into it: heights are our clock."""
        while True:
            if self._mine_on_transaction:
                with trio.move_on_after(interval):
                    await self._transaction_came.wait()
                self._transaction_came = trio.Event()
            else:
                await trio.sleep(interval)
            await self._mine(1, None)

    async def _serve(self, lines: LineStream) -> None:
        while (line := await lines.receive()) is not None:
            try:
                request = _decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                # Without an id there is nothing to answer to.
                await lines.send(_encode({"id": 0, "error": f"bad request: {error}"[:200]}))
                return
            if isinstance(request, protocol.Subscribe):
                await self._send_tips(lines, request.id)
                return
            try:
                answer = {"id": request.id, "result": await self._answer(request)}
            except KernelChainError as error:
                answer = {"id": request.id, "error": str(error)[:200]}
            await lines.send(_encode(answer))

    async def _send_tips(self, lines: LineStream, request_id: int) -> None:
        """Each new tip; only the latest to one who reads slowly. Repeated now and then: silence means failure."""
        while True:
            changed = self._tip_changed
            await lines.send(_encode({"id": request_id, "result": _tip(self._tip)}))
            with trio.move_on_after(protocol.KEEPALIVE_INTERVAL):
                await changed.wait()

    async def _answer(self, request: protocol.AnyRequest) -> object:
        match request:
            case protocol.Tip():
                return _tip(await self._call(self._chain.tip))
            case protocol.FeeRate():
                return await self._call(self._chain.fee_rate)
            case protocol.Broadcast():
                return await self._broadcast(bytes.fromhex(request.raw))
            case protocol.Transaction():
                return _transaction(await self._call(self._chain.transaction, bytes.fromhex(request.txid)))
            case protocol.Output():
                outpoint = Outpoint(bytes.fromhex(request.txid), request.index)
                return _output(await self._call(self._chain.output, outpoint))
            case protocol.Utxos():
                found = await self._call(self._chain.utxos, [bytes.fromhex(script) for script in request.scripts])
                return [_utxo(utxo) for utxo in found[: protocol.MAX_UTXOS]]
            case protocol.Mine():
                await self._mine(request.count, None if request.script is None else bytes.fromhex(request.script))
                return _tip(self._tip)
            case protocol.Faucet():
                txid = await self._call(self._chain.faucet, bytes.fromhex(request.script), request.amount_sat)
                self._transaction_came.set()
                return txid.hex()
            case protocol.Subscribe():
                raise AssertionError("a subscription is no answer")
            case _:
                assert_never(request)

    async def _broadcast(self, raw: bytes) -> object:
        result = await self._call(self._chain.submit, raw)
        if result.accepted:
            self._transaction_came.set()
        return protocol.BroadcastAnswer(result.accepted, result.code)

    async def _mine(self, count: int, script: bytes | None) -> None:
        async with self._mining:
            while count > 0:
                await self._call(self._chain.mine, min(count, MINE_BATCH), script)
                count -= MINE_BATCH
            self._tip = await self._call(self._chain.tip)
            self._tip_changed.set()
            self._tip_changed = trio.Event()

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._one_at_a_time)


def _encode(answer: dict[str, object]) -> bytes:
    return msgspec.json.encode(answer)


def _tip(tip: ChainTip) -> protocol.TipResult:
    return protocol.TipResult(tip.height, tip.block_hash.hex())


def _transaction(status: TransactionStatus | None) -> protocol.TransactionResult | None:
    if status is None:
        return None
    return protocol.TransactionResult(status.raw.hex(), status.height, status.fee_sat)


def _output(status: OutputStatus | None) -> protocol.OutputResult | None:
    if status is None:
        return None
    return protocol.OutputResult(
        status.value_sat,
        status.script_pubkey.hex(),
        status.height,
        None if status.spent_by is None else status.spent_by.hex(),
        status.spent_height,
    )


def _utxo(utxo: Utxo) -> protocol.UtxoResult:
    return protocol.UtxoResult(
        utxo.outpoint.txid.hex(),
        utxo.outpoint.index,
        utxo.value_sat,
        utxo.script_pubkey.hex(),
        utxo.height,
        utxo.coinbase,
    )


def listen(socket_path: Path) -> trio.SocketListener:
    """For this user alone. A socket that nobody listens on any more is removed; anything else is in the way."""
    if socket_path.exists() and stat.S_ISSOCK(socket_path.stat().st_mode):
        socket_path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(os.fspath(socket_path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    listener.listen(MAX_CLIENTS)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


async def run(arguments: argparse.Namespace) -> None:
    chain = await trio.to_thread.run_sync(KernelChain, arguments.datadir)
    try:
        listener = listen(arguments.socket)
        server = ChainServer(chain, mine_on_transaction=arguments.mine_on_transaction)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, server.serve_client, [listener])
                nursery.start_soon(server.mine_every, arguments.block_interval)
                print(f"chaind: height {chain.tip().height}, listening on {arguments.socket}", file=sys.stderr)
                async for _ in signals:
                    nursery.cancel_scope.cancel()
        arguments.socket.unlink(missing_ok=True)
    finally:
        chain.close()


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.01 <= seconds < math.inf:
        raise argparse.ArgumentTypeError("at least 0.01 s")
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaind", description="An embedded Bitcoin regtest chain on a Unix socket.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--datadir", type=Path, required=True, help="where the chain is kept")
    parser.add_argument("--block-interval", type=_interval, default=1.0, help="seconds between blocks (1.0)")
    parser.add_argument("--mine-on-transaction", action="store_true", help="also mine as soon as a transaction comes")
    try:
        trio.run(run, parser.parse_args())
    except (KernelChainError, OSError) as error:
        print(f"chaind: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
