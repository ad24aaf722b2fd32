"""ChainPort over public or own servers with the Esplora HTTP API: at least two, which must agree (`combined_chain`).

Requests are composed by bitcoinlib's client of that API, in worker threads; what it does not bound is bounded here:
size, duration and number of requests. A server is not trusted: a transaction must have the id that was asked for, and
one that is said to spend an output must spend it. What it says of heights, and that something is not there, only
another server can contradict. docs/adr/0017 says why bitcoinlib's `Service` is not used.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio

from payments.adapters.combined_chain import CombinedChain
from payments.adapters.polling import poll_tips
from payments.adapters.wallet_book import load_bitcoinlib
from payments.channel_tx import MAX_FEE_RATE, MAX_MONEY_SAT, parse_transaction
from payments.ports import BroadcastResult, ChainError, ChainTip, Outpoint, OutputStatus, TransactionStatus, Utxo

REQUEST_TIMEOUT = 10.0  # seconds, of one request
MAX_ANSWER = 4 * 1024 * 1024
MAX_THREADS = 4  # for each server: one that hangs keeps no more
POLL_INTERVAL = 30.0
MIN_SERVERS = 2
FEE_TARGET = 6  # blocks
MIN_FEE_RATE = 1.0  # sat/vB
MAX_UTXOS = 10_000
_NOT_FOUND = 404

HexHash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
HexText = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})+$")]
Height = Annotated[int, msgspec.Meta(ge=0, lt=500_000_000)]
Sat = Annotated[int, msgspec.Meta(ge=0, le=MAX_MONEY_SAT)]


class _StatusError(Exception):
    """An HTTP status other than success."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP status {status}")
        self.status = status


class _Block(msgspec.Struct):
    id: HexHash
    height: Height


class _TxStatus(msgspec.Struct):
    confirmed: bool
    block_height: Height | None = None


class _Outspend(msgspec.Struct):
    spent: bool
    txid: HexHash | None = None
    status: _TxStatus | None = None


class _Unspent(msgspec.Struct):
    txid: HexHash
    vout: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    value: Sat
    status: _TxStatus


class EsploraChain:
    """One server. `client`: bitcoinlib's BlockstreamClient for it, or anything with its `compose_request`."""

    def __init__(self, client: Any, *, timeout: float = REQUEST_TIMEOUT, poll_interval: float = POLL_INTERVAL) -> None:
        self._client = client
        self._timeout = timeout
        self._poll_interval = poll_interval
        self._threads = trio.CapacityLimiter(MAX_THREADS)

    # --- ChainPort ---

    async def tip(self) -> ChainTip:
        tip_hash = await self._ask(HexHash, "blocks", "tip", "hash")
        block: _Block = await self._ask(_Block, "block", tip_hash)
        if block.id != tip_hash:
            raise ChainError("another block than was asked for")
        return ChainTip(block.height, bytes.fromhex(tip_hash)[::-1])

    async def fee_rate(self) -> float:
        per_kvb = await self._call(lambda: self._client.estimatefee(FEE_TARGET))
        if not isinstance(per_kvb, int) or per_kvb <= 0:
            raise ChainError(f"a fee of {per_kvb!r}")
        return min(max(per_kvb / 1000, MIN_FEE_RATE), MAX_FEE_RATE)

    async def broadcast(self, raw: bytes) -> BroadcastResult:
        txid = parse_transaction(raw).hash()
        try:
            await self._call(lambda: self._client.sendrawtransaction(raw.hex()))
        except _StatusError as error:
            # By status, never by text; and what it knows by now it has accepted, whatever it said.
            if not 400 <= error.status < 500 or error.status == 429:
                raise ChainError(str(error)) from error
            is_known = await self.transaction(txid) is not None
            return BroadcastResult(accepted=is_known, code=str(error.status))
        return BroadcastResult(accepted=True)

    async def transaction(self, txid: bytes) -> TransactionStatus | None:
        raw = await self._raw(txid)
        if raw is None:
            return None
        status: _TxStatus = await self._ask(_TxStatus, "tx", _hex(txid), "status")
        return TransactionStatus(raw, _height(status), None)

    async def output(self, outpoint: Outpoint) -> OutputStatus | None:
        created = await self.transaction(outpoint.txid)
        if created is None:
            return None
        outputs = parse_transaction(created.raw).vout
        if outpoint.index >= len(outputs):
            return None
        output = outputs[outpoint.index]
        value_sat, script = int(output.value), bytes(output.script_pubkey.data)
        spent: _Outspend = await self._ask(_Outspend, "tx", _hex(outpoint.txid), "outspend", str(outpoint.index))
        if not spent.spent or spent.txid is None:
            return OutputStatus(value_sat, script, created.height)
        spender = bytes.fromhex(spent.txid)[::-1]
        await self._check_spends(spender, outpoint)
        height = None if spent.status is None else _height(spent.status)
        return OutputStatus(value_sat, script, created.height, spender, height)

    async def utxos(self, script_pubkeys: Sequence[bytes]) -> list[Utxo]:
        found: list[Utxo] = []
        for script in script_pubkeys:
            digest = hashlib.sha256(script).digest()[::-1].hex()
            unspents: list[_Unspent] = await self._ask(list[_Unspent], "scripthash", digest, "utxo")
            found += [
                Utxo(Outpoint(bytes.fromhex(each.txid)[::-1], each.vout), each.value, script, _height(each.status))
                for each in unspents
            ]
            if len(found) > MAX_UTXOS:
                raise ChainError("more outputs than can be")
        return found

    def tips(self) -> AsyncIterator[ChainTip]:
        return poll_tips(self.tip, self._poll_interval)

    # --- What they need ---

    async def _raw(self, txid: bytes) -> bytes | None:
        try:
            text = await self._call(lambda: self._client.getrawtransaction(_hex(txid)))
            raw = bytes.fromhex(msgspec.convert(text, HexText))
            is_asked = parse_transaction(raw).hash() == txid
        except _StatusError as error:
            if error.status == _NOT_FOUND:
                return None
            raise ChainError(str(error)) from error
        except (ValueError, msgspec.ValidationError) as error:
            raise ChainError(f"nonsense from the explorer: {error}") from error
        if not is_asked:
            raise ChainError("another transaction than was asked for")
        return raw

    async def _check_spends(self, spender: bytes, outpoint: Outpoint) -> None:
        raw = await self._raw(spender)
        spent = [] if raw is None else [(bytes(i.txid)[::-1], i.vout) for i in parse_transaction(raw).vin]
        if (outpoint.txid, outpoint.index) not in spent:
            raise ChainError("a transaction that does not spend what it is said to")

    async def _ask(self, kind: Any, *path: str) -> Any:
        """A GET, as type `kind`. Raises ChainError."""
        try:
            return msgspec.convert(await self._call(lambda: self._client.compose_request(*path)), kind)
        except _StatusError as error:
            raise ChainError(str(error)) from error
        except msgspec.ValidationError as error:
            raise ChainError(f"nonsense from the explorer: {error}") from error

    async def _call(self, request: Callable[[], Any]) -> Any:
        """In a worker thread, which is left to itself after the deadline. Raises _StatusError and ChainError."""
        with trio.move_on_after(self._timeout):
            try:
                return await trio.to_thread.run_sync(request, abandon_on_cancel=True, limiter=self._threads)
            except (_StatusError, ChainError):
                raise
            except Exception as error:  # requests, urllib3 and bitcoinlib raise dozens of types
                raise ChainError(f"{type(error).__name__}: {str(error)[:200]}") from error
        raise ChainError(f"no answer within {self._timeout:g} s")


def explorer_chain(urls: Sequence[str], *, network: str, directory: Path, is_real: bool = True) -> CombinedChain:
    """All servers must agree. `network`: by bitcoinlib's name; `directory`: for its settings. Raises ValueError for
    fewer than two servers."""
    if len(set(urls)) < MIN_SERVERS:
        raise ValueError("an explorer alone is not to be trusted: name two or more")
    servers = [(url, EsploraChain(bitcoinlib_client(url, network=network, directory=directory))) for url in urls]
    return CombinedChain(servers, is_real=is_real, poll_interval=POLL_INTERVAL)


def bitcoinlib_client(url: str, *, network: str, directory: Path, timeout: float = REQUEST_TIMEOUT) -> Any:
    """bitcoinlib's client for the server at `url` (https://HOST/api), with requests that are bounded."""
    load_bitcoinlib(directory)
    module = importlib.import_module("bitcoinlib.services.blockstream")
    client = module.BlockstreamClient(network, url.rstrip("/") + "/", 1)
    client.request = _BoundedRequests(client.base_url, timeout)
    return client


class _BoundedRequests:
    """In the place of bitcoinlib's `BaseClient.request`, which reads whatever comes for as long as it comes."""

    def __init__(self, base_url: str, timeout: float) -> None:
        self._base_url = base_url
        self._timeout = timeout
        self._requests: Any = importlib.import_module("requests")

    def __call__(self, url_path: str, variables: Any = None, method: str = "get", post_data: str = "") -> Any:
        """Text, or what its JSON says. Raises _StatusError, ChainError, and what `requests` raises."""
        deadline = time.monotonic() + self._timeout
        with self._requests.request(
            method,
            self._base_url + url_path,
            params=variables or None,
            data=post_data or None,
            timeout=self._timeout,
            stream=True,
            allow_redirects=False,
        ) as response:
            body = bytearray()
            for chunk in response.iter_content(65536):
                body += chunk
                if len(body) > MAX_ANSWER or time.monotonic() > deadline:
                    raise ChainError("an answer that is too long")
            if response.status_code != 200:
                raise _StatusError(response.status_code)
        text = body.decode("utf-8").strip()
        return json.loads(text) if text[:1] in ("{", "[") or (text.isdecimal() and len(text) < 16) else text


def _hex(txid: bytes) -> str:
    return txid[::-1].hex()


def _height(status: _TxStatus) -> int | None:
    return status.block_height if status.confirmed else None
