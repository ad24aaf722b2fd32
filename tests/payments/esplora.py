"""The Esplora HTTP API, as far as `payments.adapters.explorer` uses it, over real HTTP, from the embedded chain.

Paths, shapes and statuses are those of Blockstream's esplora (API.md). `answers` puts others in their place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from embit.transaction import Transaction

from payments.adapters.kernel_chain import KernelChain
from payments.ports import Outpoint
from tests.payments.http import HttpRequest, listening


class Status(Exception):  # noqa: N818  an HTTP status, not an error of the test
    def __init__(self, code: int, text: str = "no") -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Esplora:
    chain: KernelChain
    answers: dict[str, Callable[[], Any]] = field(default_factory=dict)  # by the beginning of the path
    scripts: list[bytes] = field(default_factory=list)  # whose outputs can be asked for by hash
    calls: list[str] = field(default_factory=list)
    height_offset: int = 0
    url: str = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Esplora]:
        async with listening(self._serve) as port:
            self.url = f"http://127.0.0.1:{port}/api"
            yield self

    async def _serve(self, stream: trio.SocketStream, request: HttpRequest) -> None:
        path = request.path.removeprefix("/api/")
        try:
            status, answer = 200, await self._answer(request.method, path, request.body.decode())
        except Status as refusal:
            status, answer = refusal.code, str(refusal)
        text = answer if isinstance(answer, bytes) else str(answer).encode()
        if isinstance(answer, dict | list):
            text = json.dumps(answer).encode()
        reply = f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode()
        await stream.send_all(reply + text)

    async def _answer(self, method: str, path: str, body: str) -> Any:
        self.calls.append(f"{method} {path}")
        for beginning, answer in self.answers.items():
            if path.startswith(beginning):
                result = answer()
                if isinstance(result, trio.Event):
                    await result.wait()
                return result
        match path.split("/"):
            case ["blocks", "tip", "hash"]:
                return self.chain.tip().block_hash[::-1].hex()
            case ["blocks", "tip", "height"]:
                return self.chain.tip().height + self.height_offset
            case ["block", block_hash]:
                return self._block(block_hash)
            case ["fee-estimates"]:
                return {"1": 5.5, "6": 3.25, "144": 1.0}
            case ["tx"] if method == "POST":
                return self._send(body)
            case ["tx", txid, *what]:
                return self._transaction(bytes.fromhex(txid)[::-1], what)
            case ["scripthash", digest, "utxo"]:
                return self._utxos(digest)
        raise Status(404)

    def _block(self, block_hash: str) -> Any:
        if block_hash != self.chain.tip().block_hash[::-1].hex():
            raise Status(404)
        return {"id": block_hash, "height": self.chain.tip().height + self.height_offset}

    def _send(self, body: str) -> str:
        raw = bytes.fromhex(body)
        result = self.chain.submit(raw)
        if not result.accepted:
            raise Status(400, f"sendrawtransaction RPC error: {result.code}")
        return str(Transaction.parse(raw).hash()[::-1].hex())

    @staticmethod
    def _confirmed(height: int | None) -> dict[str, Any]:
        return {"confirmed": False} if height is None else {"confirmed": True, "block_height": height}

    def _transaction(self, txid: bytes, what: list[str]) -> Any:
        found = self.chain.transaction(txid)
        if found is None:
            raise Status(404, "Transaction not found")
        if what == ["hex"]:
            return found.raw.hex()
        if what == ["status"]:
            return self._confirmed(found.height)
        if what[:1] == ["outspend"]:
            status = self.chain.output(Outpoint(txid, int(what[1])))
            if status is None or status.spent_by is None:
                return {"spent": False}
            spent = self._confirmed(status.spent_height)
            return {"spent": True, "txid": status.spent_by[::-1].hex(), "vin": 0, "status": spent}
        raise Status(404)

    def _utxos(self, digest: str) -> Any:
        scripts = [s for s in self.scripts if hashlib.sha256(s).digest()[::-1].hex() == digest]
        return [
            {
                "txid": utxo.outpoint.txid[::-1].hex(),
                "vout": utxo.outpoint.index,
                "value": utxo.value_sat,
                "status": self._confirmed(utxo.height),
            }
            for utxo in self.chain.utxos(scripts)
        ]
