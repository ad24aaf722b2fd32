"""JSON-RPC over HTTP to a Bitcoin node: one request at a time, each with a deadline and a bound on its answer.

What the node says is decided on by code, never by text. It is our own node, but what it relays is not: nothing that it
answers raises anything but ChainError and RpcError.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from payments.ports import ChainError

MAX_ANSWER = 64 * 1024 * 1024  # a block of 4 MB is 8 MB of hex
MAX_HEAD = 64 * 1024
_UNAUTHORIZED = 401


class RpcError(Exception):
    """The node refused. `code`: one of Bitcoin Core's `RPCErrorCode` (src/rpc/protocol.h)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code


class _Fault(msgspec.Struct):
    code: int
    message: str = ""


class _Answer(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Fault | None = None


_answers = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True)
class RpcConfig:
    """Where the node is, and how to show that we may talk to it: a cookie file, read anew when it is refused, or a user
    and a password."""

    port: int
    host: str = "127.0.0.1"
    cookie: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    timeout: float = 30.0  # seconds, of one request
    path: str = "/"  # /wallet/NAME for a wallet of the node

    def credentials(self) -> str:
        """`user:password`. Raises ChainError."""
        if self.cookie is None:
            return f"{self.user}:{self.password}"
        try:
            return self.cookie.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ChainError(f"no cookie at {self.cookie}: is the node running? {error}") from error


class Rpc:
    def __init__(self, config: RpcConfig) -> None:
        self._config = config
        self._lock = trio.Lock()

    async def call(self, kind: Any, method: str, *params: Any, timeout: float | None = None) -> Any:
        """The result as type `kind`. Raises RpcError for what the node refuses, ChainError for all else."""
        body = msgspec.json.encode({"jsonrpc": "1.0", "id": "meshd", "method": method, "params": params})
        seconds = self._config.timeout if timeout is None else timeout
        with trio.move_on_after(seconds):
            async with self._lock:
                return _result_of(await self._post(body), kind)
        raise ChainError(f"{method}: no answer within {seconds:g} s")

    async def _post(self, body: bytes) -> bytes:
        status, answer = await self._exchange(body)
        if status == _UNAUTHORIZED and self._config.cookie is not None:
            status, answer = await self._exchange(body)  # the node has been restarted since we read its cookie
        if status == _UNAUTHORIZED:
            raise ChainError("the node refuses our cookie or password")
        if not answer.lstrip().startswith(b"{"):
            raise ChainError(f"HTTP status {status} from the node")
        return answer

    async def _exchange(self, body: bytes) -> tuple[int, bytes]:
        authorization = base64.b64encode(self._config.credentials().encode()).decode()
        head = (
            f"POST {self._config.path} HTTP/1.1\r\nHost: {self._config.host}\r\n"
            f"Authorization: Basic {authorization}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            stream = await trio.open_tcp_stream(self._config.host, self._config.port)
            async with stream:
                await stream.send_all(head.encode() + body)
                return await _read_response(stream.receive_some)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChainError(f"no node at {self._config.host}:{self._config.port}: {error}") from error


def _result_of(data: bytes, kind: Any) -> Any:
    try:
        answer = _answers.decode(data)
        if answer.error is not None:
            raise RpcError(answer.error.code, answer.error.message[:200])
        return msgspec.json.decode(answer.result, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ChainError(f"nonsense from the node: {error}") from error


async def _read_response(receive: Callable[[int], Any]) -> tuple[int, bytes]:
    """(status, body) of an HTTP/1.1 response whose connection ends with it (RFC 9112). Raises ChainError."""
    data = bytearray()
    head_end = -1
    while head_end < 0:
        chunk = await receive(65536)
        data += chunk
        head_end = data.find(b"\r\n\r\n")
        if head_end < 0 and (not chunk or len(data) > MAX_HEAD):
            raise ChainError("no HTTP response")
    status, headers = _parse_head(bytes(data[:head_end]))
    body = data[head_end + 4 :]
    length = headers.get(b"content-length")
    try:
        wanted = None if length is None else int(length)
    except ValueError as error:
        raise ChainError("malformed HTTP response") from error
    while (wanted is None or len(body) < wanted) and (chunk := await receive(65536)):
        body += chunk
        if len(body) > MAX_ANSWER:
            raise ChainError("an answer that is too long")
    if wanted is not None and len(body) < wanted:
        raise ChainError("half an answer")
    is_chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
    return status, _join_chunks(bytes(body)) if is_chunked else bytes(body)


def _parse_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ChainError("malformed HTTP response")
    pairs = (line.partition(b":") for line in lines)
    return int(words[1][:4]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _join_chunks(data: bytes) -> bytes:
    """RFC 9112 section 7.1. Raises ChainError."""
    parts: list[bytes] = []
    at = 0
    while True:
        line_end = data.find(b"\r\n", at)
        try:
            size = int(data[at:line_end].split(b";")[0], 16) if line_end >= 0 else -1
        except ValueError:
            size = -1
        at = line_end + 2
        if size < 0 or at + size > len(data):
            raise ChainError("malformed HTTP response")
        if size == 0:
            return b"".join(parts)
        parts.append(data[at : at + size])
        at += size + 2
