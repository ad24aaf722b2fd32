"""The wire between `chaind` and its clients: one JSON object per line over a Unix socket.

A request `{"id", "method", ...}` is answered by `{"id", "result"}` or `{"id", "error"}`, in order. After `subscribe`
the connection carries only tips, as results of that request. Hashes and scripts are hex in internal byte order.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import trio

from payments.ports import ChainTip

MAX_LINE_BYTES = 4_000_000  # a standard transaction is at most 800,000 hex digits
MAX_SCRIPTS = 1_000  # in one request for utxos
MAX_MINED_BLOCKS = 10_000  # in one request
MAX_UTXOS = 10_000  # in one answer
SEND_TIMEOUT = 10.0  # seconds until a peer that does not read is dropped
KEEPALIVE_INTERVAL = 5.0  # seconds between repetitions of the tip to a subscriber
_CHUNK_BYTES = 65_536

HexHash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
HexBytes = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=800_000)]
HexScript = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=20_000)]
Height = Annotated[int, msgspec.Meta(ge=0, lt=500_000_000)]
Sat = Annotated[int, msgspec.Meta(ge=0, le=2_100_000_000_000_000)]
Index = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_MINED_BLOCKS)]
Text = Annotated[str, msgspec.Meta(max_length=200)]
RequestId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Request(Message, frozen=True, tag_field="method"):
    id: RequestId


class Tip(Request, frozen=True, tag="tip"):
    pass


class FeeRate(Request, frozen=True, tag="fee_rate"):
    pass


class Broadcast(Request, frozen=True, tag="broadcast"):
    raw: HexBytes


class Transaction(Request, frozen=True, tag="transaction"):
    txid: HexHash


class Output(Request, frozen=True, tag="output"):
    txid: HexHash
    index: Index


class Utxos(Request, frozen=True, tag="utxos"):
    scripts: Annotated[list[HexScript], msgspec.Meta(max_length=MAX_SCRIPTS)]


class Subscribe(Request, frozen=True, tag="subscribe"):
    pass


class Mine(Request, frozen=True, tag="mine"):
    count: Count
    script: HexScript | None = None


class Faucet(Request, frozen=True, tag="faucet"):
    script: HexScript
    amount_sat: Sat


AnyRequest = Tip | FeeRate | Broadcast | Transaction | Output | Utxos | Subscribe | Mine | Faucet


class TipResult(Message, frozen=True):
    height: Height
    block_hash: HexHash

    def to_tip(self) -> ChainTip:
        return ChainTip(self.height, bytes.fromhex(self.block_hash))


class BroadcastAnswer(Message, frozen=True):
    accepted: bool
    code: Text


class TransactionResult(Message, frozen=True):
    raw: HexBytes
    height: Height | None
    fee_sat: Sat | None


class OutputResult(Message, frozen=True):
    value_sat: Sat
    script: HexScript
    height: Height | None
    spent_by: HexHash | None
    spent_height: Height | None


class UtxoResult(Message, frozen=True):
    txid: HexHash
    index: Index
    value_sat: Sat
    script: HexScript
    height: Height | None
    coinbase: bool


class Response(Message, frozen=True):
    """`result` is decoded by the method that was asked for."""

    id: RequestId
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: Text | None = None


class LineError(Exception):
    """The peer is gone, sent an endless line, or does not read what it is sent."""


class LineStream:
    """Lines of bounded length over a socket, each way with back-pressure."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def receive(self) -> bytes | None:
        """The next line without its end; None when the peer has closed. Raises LineError."""
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if len(self._buffer) > MAX_LINE_BYTES:
                raise LineError("line too long")
            searched = len(self._buffer)
            try:
                chunk = await self._stream.receive_some(_CHUNK_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise LineError("connection lost") from error
            if not chunk:
                return None
            self._buffer += chunk

    async def send(self, line: bytes) -> None:
        """Raises LineError; the connection is then useless."""
        with trio.move_on_after(SEND_TIMEOUT) as scope:
            try:
                await self._stream.send_all(line + b"\n")
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise LineError("connection lost") from error
        if scope.cancelled_caught:
            raise LineError("the peer does not read")

    def close(self) -> None:
        self._stream.socket.close()
