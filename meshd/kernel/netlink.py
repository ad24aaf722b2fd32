"""A netlink socket for trio: request and acknowledgement, dump, batch, and multicast events. It never blocks.

Messages go in and come out as bytes; `encode` and `decode` turn pyroute2's rtnetlink message classes into them.
Errors of the kernel are `NetlinkError`, with errno and, where the kernel gives one, its text (extended ack).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import trio

from meshd.kernel import filters

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
_NLM_F_ACK_TLVS = 0x200
_NLM_F_DUMP_INTR = 0x10

_NLMSG_ERROR = 2
_NLMSG_DONE = 3

_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_NETLINK_CAP_ACK = 10

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_NLA_TYPE_MASK = 0x3FFF
_NLMSGERR_ATTR_MSG = 1
_RECEIVE_SIZE = 65536
_SHORT = 4096  # bytes of an answer: done with sooner than a turn of trio's loop
_BATCH_SIZE = 64  # acknowledgements of one send must fit into the receive buffer
_TRIES = 5  # of a dump that others' changes cut into
_TRY_AGAIN_AFTER = 0.005  # after the first; twice as long after each further one


class NetlinkError(Exception):
    """The kernel refused. `code` is the errno, positive."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(f"{errno.errorcode.get(code, code)}: {text or os.strerror(code)}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """`payload` starts after struct nlmsghdr."""

    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Request:
    kind: int
    payload: bytes
    flags: int = 0


class Conversation(ABC):
    """Something with a socket of its own: closed at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...


class NetlinkSocket(Conversation):
    """One conversation with the kernel. Requests of several tasks take turns.

    `wanted`: a program of the kernel's socket filter (`filters`) that says which messages need come; empty: all.
    """

    def __init__(self, protocol: int, groups: int = 0, wanted: bytes = b"") -> None:
        self._protocol = protocol
        self._groups = groups
        self._wanted = wanted
        self._lock = trio.Lock()
        self._sequence = 0
        self._socket = self._new_socket()

    def close(self) -> None:
        self._socket.close()

    async def request(self, request: Request) -> None:
        """Send it and wait until the kernel has done it."""
        for error in await self.batch([request]):
            if error is not None:
                raise error

    async def batch(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        """Send all, in order; for each, the kernel's refusal or None. One failing does not stop the others."""
        results: list[NetlinkError | None] = []
        async with self._lock:
            for start in range(0, len(requests), _BATCH_SIZE):
                results += await self._batch(requests[start : start + _BATCH_SIZE])
        return results

    async def dump(self, request: Request, *, is_whole: bool = False) -> list[Message]:
        """All the objects that the request asks for.

        What is changed while the kernel answers may make it leave out others, or tell them twice: then it is asked
        again. After some tries its last answer counts; with `is_whole`, NetlinkError(EAGAIN) is raised.
        """
        for attempt in range(_TRIES):
            if attempt:
                await trio.sleep(_TRY_AGAIN_AFTER * 2 ** (attempt - 1))
            messages, is_interrupted = await self._collect(request, NLM_F_DUMP)
            if not is_interrupted:
                return messages
        if is_whole:
            raise NetlinkError(errno.EAGAIN, "what was asked for changes all the time")
        return messages

    async def get(self, request: Request) -> list[Message]:
        """The answer to a request for one object."""
        messages, _ = await self._collect(request, NLM_F_ACK)
        return messages

    async def events(self) -> list[Message] | None:
        """The next events of the groups subscribed to. None: some were lost (ENOBUFS), look at everything again."""
        try:
            data = await self._socket.recv(_RECEIVE_SIZE)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise
        return [Message(kind, payload) for kind, _, _, payload in _split(data)]

    async def wait_for_events(self, *, pause: float) -> None:
        """Return `pause` seconds after the next event, with all that have come until then taken."""
        await self.events()
        await trio.sleep(pause)
        self.waiting_events()

    def waiting_events(self) -> list[Message] | None:
        """All that have come, without waiting. None: some were lost (ENOBUFS), look at everything again."""
        found: list[Message] = []
        is_whole = True
        while True:
            try:
                data = self._raw.recv(_RECEIVE_SIZE)
            except BlockingIOError:
                return found if is_whole else None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_whole = False
            else:
                found += [Message(kind, payload) for kind, _, _, payload in _split(data)]

    async def _batch(self, requests: Sequence[Request]) -> list[NetlinkError | None]:
        first = self._sequence + 1
        parts = [_pack(r.kind, r.flags | NLM_F_REQUEST | NLM_F_ACK, self._next_sequence(), r.payload) for r in requests]
        results: dict[int, NetlinkError | None] = {}
        try:
            await self._send(b"".join(parts))
            while len(results) < len(requests):
                for kind, flags, sequence, payload in _split(await self._socket.recv(_RECEIVE_SIZE)):
                    if kind == _NLMSG_ERROR and first <= sequence <= self._sequence:
                        results[sequence] = _error(payload, flags)
        except BaseException:
            self._start_over()
            raise
        return [results[first + index] for index in range(len(requests))]

    async def _collect(self, request: Request, flags: int) -> tuple[list[Message], bool]:
        """The answer, and whether it was interrupted."""
        messages: list[Message] = []
        seen = 0
        try:
            self._lock.acquire_nowait()  # mostly it is free, and a turn of trio's loop costs more than a short answer
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            sequence = self._next_sequence()
            try:
                await self._send(_pack(request.kind, request.flags | flags | NLM_F_REQUEST, sequence, request.payload))
                data = await self._receive()
                while True:
                    is_last, part_flags = _take_part(data, sequence, messages)
                    seen |= part_flags
                    if is_last:
                        break
                    is_long = len(data) > _SHORT  # then others have their turn meanwhile
                    data = await (self._socket.recv(_RECEIVE_SIZE) if is_long else self._receive())
            except BaseException:
                self._start_over()
                raise
        finally:
            self._lock.release()
        return messages, bool(seen & _NLM_F_DUMP_INTR)

    async def _send(self, data: bytes) -> None:
        """Straight to the kernel, which works on a request while it is sent: a turn of trio's loop costs more than it
        does, and an idle node would do little else. Whoever sends has just waited for the lock."""
        try:
            sent = self._raw.send(data)
        except BlockingIOError:
            sent = await self._socket.send(data)
        if sent != len(data):
            raise NetlinkError(errno.EMSGSIZE)

    async def _receive(self) -> bytes:
        """What comes next of an answer, which is mostly there already."""
        try:
            return self._raw.recv(_RECEIVE_SIZE)
        except BlockingIOError:
            return await self._socket.recv(_RECEIVE_SIZE)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _start_over(self) -> None:
        # Answers to a request that was given up (cancelled, failed) must not be taken for those of the next one, and a
        # dump that is not read to its end would make the next dump fail with EBUSY.
        self._socket.close()
        self._socket = self._new_socket()

    def _new_socket(self) -> trio.socket.SocketType:
        raw = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, self._protocol)
        try:
            raw.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            raw.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            if self._wanted:
                with suppress(OSError):  # what is not wanted is passed over by who reads, too
                    filters.attach(raw, self._wanted)
            raw.bind((0, self._groups))
            raw.connect((0, 0))
            self._raw = raw
            return trio.socket.from_stdlib_socket(raw)
        except BaseException:
            raw.close()
            raise


def encode(message: Any) -> bytes:
    """The payload of a pyroute2 message (without struct nlmsghdr)."""
    message.encode()
    return bytes(message.data[_HEADER.size :])


def decode(message_class: Any, message: Message) -> Any:
    """A pyroute2 message of that class: fields by name, attributes by `get_attr`."""
    data = _pack(message.kind, 0, 0, message.payload)
    decoded = message_class(data)
    decoded.decode()
    return decoded


def attribute(kind: int, value: bytes) -> bytes:
    """struct nlattr and its value, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start of value, end of value) of the attributes in data[start:end]."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            raise NetlinkError(errno.EBADMSG)
        yield kind & _NLA_TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def _pack(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    data = _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload
    return data + bytes(-len(data) % 4)


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise NetlinkError(errno.EBADMSG)
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _take_part(data: bytes, sequence: int, part: list[Message]) -> tuple[bool, int]:
    """Append the messages of one datagram of a dump; whether it was the last, and the flags of any of them."""
    seen = 0
    for kind, flags, number, payload in _split(data):
        if number != sequence:
            continue
        if kind in (_NLMSG_ERROR, _NLMSG_DONE):
            error = _error(payload, flags)
            if error is not None:
                raise error
            return True, seen | flags
        seen |= flags
        part.append(Message(kind, payload))
    return False, seen


def _error(payload: bytes, flags: int) -> NetlinkError | None:
    """The content of NLMSG_ERROR (also an acknowledgement) or NLMSG_DONE."""
    code = int(struct.unpack_from("=i", payload)[0])
    if code >= 0:
        return None
    text = ""
    # struct nlmsgerr: the error, then the header of the request (NETLINK_CAP_ACK: no more of it), then attributes.
    if flags & _NLM_F_ACK_TLVS:
        for kind, start, end in attributes(payload, 4 + _HEADER.size, len(payload)):
            if kind == _NLMSGERR_ATTR_MSG:
                text = payload[start:end].rstrip(b"\0").decode(errors="replace")
    return NetlinkError(-code, text)
