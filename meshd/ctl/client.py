"""One JSON-RPC call over the daemon's Unix socket, synchronous."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

_MAX_REPLY_LENGTH = 256 * 1024 * 1024

# Error codes of the daemon (meshd.control) by the word that meshctl shows for them.
_WORD_BY_CODE = {
    -32602: "usage",
    -32001: "not_found",
    -32002: "denied",
    -32003: "timeout",
    -32005: "funds",
    -32006: "policy",
}


class CallError(Exception):
    """`word`: one of `meshd.ctl.command.EXIT_CODES`, never ok."""

    def __init__(self, word: str, message: str) -> None:
        super().__init__(message)
        self.word = word


def call(path: str, method: str, params: dict[str, Any], *, timeout: float) -> Any:
    """The method's result. `timeout` is seconds for all of it. Raises CallError."""
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            line = _exchange(connection, path, request, timeout)
    except PermissionError as error:
        raise CallError("denied", f"no permission to open {path}") from error
    except TimeoutError as error:
        raise CallError("timeout", f"the daemon did not answer within {timeout:g} s") from error
    except OSError as error:
        raise CallError("unreachable", f"no daemon answers on {path}: {error.strerror or error}") from error
    return _result(line)


def _exchange(connection: socket.socket, path: str, request: bytes, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    connection.settimeout(timeout)
    connection.connect(path)
    connection.sendall(request)
    buffer = bytearray()
    while not buffer.endswith(b"\n"):
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = connection.recv(65536)
        if not chunk:
            raise CallError("unreachable", "the daemon closed the connection (stopping, or too many clients)")
        buffer += chunk
        if len(buffer) > _MAX_REPLY_LENGTH:
            raise CallError("error", "the daemon's answer is too long")
    return bytes(buffer)


def _result(line: bytes) -> Any:
    try:
        reply = json.loads(line)
        if "error" not in reply:
            return reply["result"]
        code, message = reply["error"]["code"], str(reply["error"]["message"])
    except (ValueError, TypeError, KeyError) as error:
        raise CallError("error", "the daemon's answer is not JSON-RPC") from error
    raise CallError(_WORD_BY_CODE.get(code, "error"), message)
