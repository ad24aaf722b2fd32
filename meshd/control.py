"""The control socket: JSON-RPC 2.0, one object per line, over a Unix socket.

Root, the daemon's own user and the members of a group may do everything, as the kernel names them (SO_PEERCRED,
SO_PEERGROUPS); all others may read, or open nothing. Batches are not taken. `rpc.discover` describes every method.

A client cannot hold up the daemon: lines, clients and waiting times are bounded, and each client has a task of its own.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import json
import logging
import os
import secrets
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

log = logging.getLogger(__name__)

MAX_LINE_LENGTH = 64 * 1024  # of a request; what we answer may be longer

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# Ours, in the range that JSON-RPC leaves to servers. meshctl has an exit code for each.
NOT_FOUND = -32001  # no such destination, peer or channel
DENIED = -32002
TIMEOUT = -32003
REFUSED = -32004  # understood, but it cannot be done now; the message says why
FUNDS = -32005  # not enough money for it
POLICY = -32006  # this node's rules forbid it

_MAX_PATH_LENGTH = 107  # unix(7): sun_path, less its NUL
_SO_PEERGROUPS = 59
_MAX_GROUPS = 256  # for who is in more, only the first counts: getsockopt of Python takes 1024 octets
_KIND_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


class ControlError(Exception):
    """The control socket cannot be opened. The message names it and says why."""


class RpcError(Exception):
    """What a handler raises to refuse: a code from above, and a message for people."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Param:
    """`kind`: string, integer, number or boolean. An optional one may also be null."""

    kind: str
    doc: str
    required: bool = True


Handler = Callable[[dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Method:
    """A handler gets params whose names and kinds were checked; what it returns must be JSON. It may raise RpcError."""

    handler: Handler
    doc: str
    params: Mapping[str, Param] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)  # JSON Schema of what it gives; empty: anything
    writes: bool = False  # not for others, who may read at most


@dataclass(frozen=True, slots=True)
class Access:
    """Who besides root and the daemon's own user: `group` may write ("": none), `others_may_read` all the rest.

    A group that the machine does not have has no members.
    """

    group: str = ""
    others_may_read: bool = False

    def gid(self) -> int | None:
        try:
            return grp.getgrnam(self.group).gr_gid if self.group else None
        except KeyError:
            return None


@dataclass(frozen=True, slots=True)
class Limits:
    max_clients: int = 32
    idle_timeout: float = 60.0  # until a whole request has come
    handler_timeout: float = 30.0
    send_timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    params: dict[str, Any]
    is_notification: bool


class ControlServer:
    """`await nursery.start(server.run)`; the socket exists from then until it is cancelled."""

    def __init__(
        self,
        path: Path,
        methods: Mapping[str, Method],
        *,
        access: Access = Access(),
        limits: Limits | None = None,
    ) -> None:
        self._path = path
        self._access = access
        self._gid = access.gid()
        self._methods = {**methods, "rpc.discover": Method(self._discover, "Describes every method.")}
        self._limits = limits or Limits()
        self._clients = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Raises ControlError when the socket cannot be had, for one because another daemon answers on it."""
        try:
            listening, inode = _listen(self._path, self._gid, others=self._access.others_may_read)
        except OSError as error:
            raise ControlError(f"cannot open the control socket {self._path}: {error.strerror}") from error
        try:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])
        finally:
            _remove(self._path, inode)

    async def _serve(self, stream: trio.SocketStream) -> None:
        if self._clients >= self._limits.max_clients:
            await trio.aclose_forcefully(stream)
            return
        self._clients += 1
        try:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError):
                await self._converse(stream, may_write=_may_write(stream, self._gid))
        finally:
            self._clients -= 1
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream, *, may_write: bool) -> None:
        buffer = bytearray()
        while True:
            with trio.fail_after(self._limits.idle_timeout):
                line = await _receive_line(stream, buffer)
            if line is None:
                return
            if len(line) > MAX_LINE_LENGTH:
                await self._send(stream, _failure(None, PARSE_ERROR, f"a request is at most {MAX_LINE_LENGTH} bytes"))
                return
            reply = await self._answer(line, may_write=may_write)
            if reply is not None:
                await self._send(stream, reply)

    async def _send(self, stream: trio.SocketStream, reply: bytes) -> None:
        with trio.fail_after(self._limits.send_timeout):
            await stream.send_all(reply)

    async def _answer(self, line: bytes, *, may_write: bool) -> bytes | None:
        """The reply to one request; None to a notification."""
        request: _Request | None = None
        request_id = None
        try:
            document = _decode(line)
            request_id = _request_id(document)
            request = _parse(document)
            result = await self._call(request, may_write=may_write)
            reply = _encode({"jsonrpc": "2.0", "result": result, "id": request_id})
        except RpcError as error:
            reply = _failure(request_id, error.code, str(error))
        return None if request and request.is_notification else reply

    async def _call(self, request: _Request, *, may_write: bool) -> Any:
        method = self._methods.get(request.method)
        if method is None:
            raise RpcError(METHOD_NOT_FOUND, f"no method {request.method}")
        if method.writes and not may_write:
            raise RpcError(DENIED, f"{request.method} is for root, the daemon's own user and its group")
        params = _check_params(method, request.params)
        try:
            with trio.fail_after(self._limits.handler_timeout):
                result = await method.handler(params)
            json.dumps(result, allow_nan=False)
        except RpcError:
            raise
        except trio.TooSlowError as error:
            raise RpcError(TIMEOUT, f"{request.method} took longer than {self._limits.handler_timeout:g} s") from error
        except Exception as error:
            # A fault in one method is not worth the daemon; the log has it.
            log.exception("control method %s failed", request.method)
            raise RpcError(INTERNAL_ERROR, f"internal error in {request.method}; see the daemon's log") from error
        return result

    async def _discover(self, params: dict[str, Any]) -> Any:  # noqa: ARG002  a handler like any other
        return {
            name: {
                "doc": method.doc,
                "writes": method.writes,
                "result": method.result,
                "params": {
                    key: {"kind": param.kind, "doc": param.doc, "required": param.required}
                    for key, param in method.params.items()
                },
            }
            for name, method in sorted(self._methods.items())
        }


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RpcError(PARSE_ERROR, "not JSON") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _request_id(document: Any) -> str | int | None:
    """Fractions, which JSON-RPC advises against, count as none: 1e999 could not be given back."""
    value = document.get("id") if isinstance(document, dict) else None
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _parse(document: Any) -> _Request:
    if not isinstance(document, dict) or document.get("jsonrpc") != "2.0":
        raise RpcError(INVALID_REQUEST, "not a JSON-RPC 2.0 request")
    method, params = document.get("method"), document.get("params", {})
    if not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, "method must be a string")
    if not isinstance(params, dict):
        raise RpcError(INVALID_PARAMS, "params must be an object")
    return _Request(method, params, is_notification="id" not in document)


def _check_params(method: Method, params: dict[str, Any]) -> dict[str, Any]:
    for name in params:
        if name not in method.params:
            raise RpcError(INVALID_PARAMS, f"unknown parameter {name}")
    for name, param in method.params.items():
        value = params.get(name)
        if value is None:
            if param.required:
                raise RpcError(INVALID_PARAMS, f"parameter {name} is missing")
            continue
        is_kind = isinstance(value, _KIND_TYPES[param.kind])
        if not is_kind or (param.kind in ("integer", "number") and isinstance(value, bool)):
            raise RpcError(INVALID_PARAMS, f"parameter {name} must be of kind {param.kind}")
    return params


def _encode(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _failure(request_id: str | int | None, code: int, message: str) -> bytes:
    return _encode({"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": request_id})


async def _receive_line(stream: trio.SocketStream, buffer: bytearray) -> bytes | None:
    """The next line; None at the end of the stream. Gives up, with what there is, above MAX_LINE_LENGTH."""
    searched = 0
    while (end := buffer.find(b"\n", searched)) < 0:
        searched = len(buffer)
        if searched > MAX_LINE_LENGTH:
            return bytes(buffer)
        chunk = await stream.receive_some(4096)
        if not chunk:
            return None
        buffer += chunk
    line = bytes(buffer[:end])
    del buffer[: end + 1]
    return line


def _may_write(stream: trio.SocketStream, group: int | None) -> bool:
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, gid = struct.unpack("3i", credentials)
    if uid in (0, os.geteuid()):
        return True
    return group is not None and (group == gid or group in _further_groups(stream))


def _further_groups(stream: trio.SocketStream) -> tuple[int, ...]:
    """unix(7) does not name it: SO_PEERGROUPS gives as many gid_t as there is room for, or ERANGE."""
    try:
        octets = stream.socket.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"{len(octets) // 4}I", octets)


def _listen(path: Path, group: int | None, *, others: bool) -> tuple[socket.socket, int]:
    """A listening socket at the path, with its inode. Raises OSError and ControlError."""
    if len(os.fsencode(path)) > _MAX_PATH_LENGTH:  # the bind below, under another name, would not notice
        raise ControlError(f"cannot open the control socket {path}: the path is too long")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _require_free(path)
    # Bound aside and moved into place, so that it is never there with another mode or without somebody listening.
    temporary = path.with_name(f".{secrets.token_hex(4)}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        try:
            listening.bind(str(temporary))
        except OSError as error:
            # Python's own "AF_UNIX path too long" has no errno, hence no strerror.
            raise ControlError(f"cannot open the control socket {path}: {error}") from error
        if group is not None:
            with contextlib.suppress(PermissionError):  # our own group, and then it is so, or none that we are in
                os.chown(temporary, -1, group)
        temporary.chmod(0o666 if others else 0o660)
        listening.listen(64)
        inode = temporary.stat().st_ino
        temporary.rename(path)
    except BaseException:
        listening.close()
        temporary.unlink(missing_ok=True)
        raise
    return listening, inode


def _require_free(path: Path) -> None:
    """What a crashed daemon left may be replaced; a living daemon's socket, or a file of another kind, may not."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"cannot open the control socket {path}: something else is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(str(path))
    if result not in (errno.ECONNREFUSED, errno.ENOENT):
        raise ControlError(f"cannot open the control socket {path}: another daemon answers on it")


def _remove(path: Path, inode: int) -> None:
    """Only our own: another daemon may have taken the place meanwhile."""
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()
