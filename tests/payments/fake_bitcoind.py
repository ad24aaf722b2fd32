"""The JSON-RPC of Bitcoin Core as far as `payments.adapters.bitcoind` uses it, over real HTTP, from the embedded chain.

Codes, shapes and amounts are Core's (src/rpc/protocol.h, `bitcoin-cli help`). `answers` puts others in their place.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import trio

from payments.adapters.kernel_chain import KernelChain
from payments.ports import Outpoint
from tests.payments.http import HttpRequest, listening

Answer = Callable[..., Any]


class Refusal(Exception):  # noqa: N818  what Core calls an error object
    def __init__(self, code: int, message: str = "no") -> None:
        super().__init__(message)
        self.code = code


class Verbatim(str):
    """Bytes of an HTTP response, instead of one."""

    __slots__ = ()


def number(sat: int) -> Decimal:
    return Decimal(sat).scaleb(-8)


@dataclass
class FakeBitcoind:
    chain: KernelChain
    authorization: str = "user:password"
    is_chunked: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    port: int = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeBitcoind]:
        async with listening(self._serve) as self.port:
            yield self

    async def _serve(self, stream: trio.SocketStream, request: HttpRequest) -> None:
        if request.headers["authorization"] != "Basic " + base64.b64encode(self.authorization.encode()).decode():
            await stream.send_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            return
        await self._answer(stream, json.loads(request.body))

    async def _answer(self, stream: trio.SocketStream, request: dict[str, Any]) -> None:
        method = request["method"]
        self.calls.append(method)
        handler = self.answers.get(method) or getattr(self, method, None)
        try:
            if handler is None:
                raise Refusal(-32601)
            result = handler(*request["params"])
            if isinstance(result, trio.Event):
                await result.wait()
            if isinstance(result, Verbatim):
                await stream.send_all(result.encode())
                return
            status, answer = "200 OK", {"result": result, "error": None, "id": request["id"]}
        except Refusal as refusal:
            error = {"code": refusal.code, "message": str(refusal)}
            status, answer = "500 Internal Server Error", {"result": None, "error": error, "id": request["id"]}
        body = json.dumps(answer, default=lambda value: f"#{value:.8f}#").replace('"#', "").replace('#"', "").encode()
        if self.is_chunked:
            half = len(body) // 2
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
            await stream.send_all(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks)
        else:
            await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    # --- Methods, by Core's names ---

    def getblockchaininfo(self) -> Any:
        tip = self.chain.tip()
        best = tip.block_hash[::-1].hex()
        return {"chain": "regtest", "blocks": tip.height, "bestblockhash": best, "initialblockdownload": True}

    def estimatesmartfee(self, target: int) -> Any:
        return {"errors": ["Insufficient data or no feerate found"], "blocks": target}

    def getmempoolinfo(self) -> Any:
        return {"size": self.chain.pool_size, "mempoolminfee": number(1000)}

    def sendrawtransaction(self, raw: str) -> str:
        result = self.chain.submit(bytes.fromhex(raw))
        if not result.accepted:
            raise Refusal(-26, result.code)
        txid: bytes = self._txid(bytes.fromhex(raw))
        return txid[::-1].hex()

    @staticmethod
    def _txid(raw: bytes) -> Any:
        from embit.transaction import Transaction

        return Transaction.parse(raw).hash()

    def getrawtransaction(self, txid: str, verbose: bool) -> Any:
        found = self.chain.transaction(bytes.fromhex(txid)[::-1])
        if found is None:
            raise Refusal(-5)
        answer: dict[str, Any] = {"hex": found.raw.hex(), "txid": txid}
        if found.height is not None:
            answer["blockhash"] = self.getblockhash(found.height)
        return answer

    def getblockhash(self, height: int) -> str:
        if height > self.chain.tip().height:
            raise Refusal(-8)
        return self.chain._hash_at(height)[::-1].hex()

    def _height(self, block_hash: str) -> int:
        heights = range(self.chain.tip().height, -1, -1)
        found = next((height for height in heights if self.getblockhash(height) == block_hash), None)
        if found is None:
            raise Refusal(-5)
        return found

    def getblockheader(self, block_hash: str) -> Any:
        height = self._height(block_hash)
        return {"hash": block_hash, "height": height, "confirmations": self.chain.tip().height - height + 1}

    def getblock(self, block_hash: str, verbosity: int) -> str:
        entry = self.chain._entry_at(self._height(block_hash))
        return bytes(self.chain._manager.blocks[entry]).hex()

    def gettxout(self, txid: str, index: int, is_pool_included: bool) -> Any:
        status = self.chain.output(Outpoint(bytes.fromhex(txid)[::-1], index))
        if status is None or status.spent_by is not None:
            return None
        tip = self.chain.tip()
        return {
            "bestblock": tip.block_hash[::-1].hex(),
            "confirmations": 0 if status.height is None else tip.height - status.height + 1,
            "value": number(status.value_sat),
            "scriptPubKey": {"hex": status.script_pubkey.hex()},
        }

    def gettxspendingprevout(self, outputs: list[dict[str, Any]]) -> Any:
        found = []
        for asked in outputs:
            status = self.chain.output(Outpoint(bytes.fromhex(asked["txid"])[::-1], asked["vout"]))
            is_in_pool = status is not None and status.spent_by is not None and status.spent_height is None
            spender = {"spendingtxid": status.spent_by[::-1].hex()} if is_in_pool else {}  # type: ignore[union-attr, index]
            found.append(asked | spender)
        return found

    def scantxoutset(self, action: str, descriptors: list[str]) -> Any:
        scripts = [bytes.fromhex(text.removeprefix("raw(").removesuffix(")")) for text in descriptors]
        unspents = [
            {
                "txid": utxo.outpoint.txid[::-1].hex(),
                "vout": utxo.outpoint.index,
                "scriptPubKey": utxo.script_pubkey.hex(),
                "amount": number(utxo.value_sat),
                "height": utxo.height,
                "coinbase": utxo.coinbase,
            }
            for utxo in self.chain.utxos(scripts)
            if utxo.height is not None
        ]
        return {"success": True, "unspents": unspents}
