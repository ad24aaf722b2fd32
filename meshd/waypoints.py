"""Which way a packet goes, hop by hop: each node tells the next hop of its route, what it costs and why.

Babel tells a node the metric and the price of the whole way, and of the hops only its own. So whoever wants to know
asks one node after the other, over the overlay: UDP, one request and one answer. An answer is signed with the identity
whose hash the asked address is, so that no other can give it. It is never longer than the request, which is padded, and
a node gives ANSWERS_PER_SECOND at most: nothing is gained by asking in somebody else's name.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address

import msgspec
import trio
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from meshd.identity import Identity, overlay_address
from meshd.logs import Logger

log = Logger("meshd.waypoints")
PORT = 6699
VERSION = 1
REQUEST_LENGTH = 512
ANSWERS_PER_SECOND = 20
ANSWER_TIMEOUT = 2.0
TRIES = 2
MAX_HOPS = 32
MAX_TEXT = 120
_PURPOSE = b"meshd waypoint 1"
_SIGNATURE_LENGTH = 64

Address = IPv4Address | IPv6Address


class Request(msgspec.Struct, frozen=True, array_like=True):
    version: int
    nonce: bytes
    destination: str


class Waypoint(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a node says of its route. `next_node`: overlay address of the next hop; None: there is none, or it is not
    known. `price_msat_per_gb`: what it pays the next hop; `share`: of the best that the link to it can be."""

    nonce: bytes
    identity: bytes
    arrived: bool
    prefix: str | None
    next_node: str | None
    metric: int
    price_msat_per_gb: int
    fee_msat_per_gb: int
    link_cost: int | None
    share: float | None
    why: str


_request_decoder = msgspec.msgpack.Decoder(Request)
_waypoint_decoder = msgspec.msgpack.Decoder(Waypoint)
_encoder = msgspec.msgpack.Encoder()


def encode_request(destination: Address, nonce: bytes) -> bytes:
    body = _encoder.encode(Request(VERSION, nonce, str(destination)))
    return len(body).to_bytes(2, "big") + body + bytes(REQUEST_LENGTH - 2 - len(body))


def decode_request(datagram: bytes) -> Request | None:
    """None: not one."""
    length = int.from_bytes(datagram[:2], "big")
    if len(datagram) != REQUEST_LENGTH or length > REQUEST_LENGTH - 2:
        return None
    try:
        request = _request_decoder.decode(datagram[2 : 2 + length])
    except msgspec.MsgspecError:
        return None
    return request if request.version == VERSION and len(request.nonce) == 16 else None


def encode_answer(waypoint: Waypoint, identity: Identity) -> bytes:
    body = _encoder.encode(waypoint)
    return identity.sign(_PURPOSE + body) + body


def decode_answer(datagram: bytes, *, asked: IPv6Address, nonce: bytes) -> Waypoint | None:
    """None: not an answer to this, or not of who was asked."""
    signature, body = datagram[:_SIGNATURE_LENGTH], datagram[_SIGNATURE_LENGTH:]
    try:
        waypoint = _waypoint_decoder.decode(body)
        if waypoint.nonce != nonce or overlay_address(waypoint.identity) != asked:
            return None
        VerifyKey(waypoint.identity).verify(_PURPOSE + body, signature)
    except (msgspec.MsgspecError, BadSignatureError, ValueError):
        return None
    return waypoint


class Waypoints:
    """`look` tells this node's own waypoint for a destination, with an empty nonce."""

    def __init__(self, identity: Identity, look: Callable[[str], Awaitable[Waypoint]], *, port: int = PORT) -> None:
        self._identity = identity
        self._look = look
        self._port = port
        self._tokens = float(ANSWERS_PER_SECOND)
        self._refilled_at = trio.current_time()

    async def run(self) -> None:
        """Until cancelled. A port that is taken is no reason not to route: then nothing is told."""
        with trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
            try:
                await server.bind((str(self._identity.address), self._port))
            except OSError as error:
                log.warning("paths are not told", port=self._port, reason=error)
                return
            while True:
                try:
                    datagram, source = await server.recvfrom(REQUEST_LENGTH + 1)
                    answer = await self.answer(datagram)
                    if answer is not None:
                        await server.sendto(answer, source)
                except OSError as error:  # an earlier answer came back as unreachable
                    log.debug("path not told", reason=error)

    async def answer(self, datagram: bytes) -> bytes | None:
        """None: nothing is said."""
        request = decode_request(datagram)
        if request is None or not self._may_answer(now=trio.current_time()):
            return None
        waypoint = msgspec.structs.replace(await self._look(request.destination), nonce=request.nonce)
        answer = encode_answer(waypoint, self._identity)
        return answer if len(answer) <= REQUEST_LENGTH else None

    def _may_answer(self, *, now: float) -> bool:
        gained = (now - self._refilled_at) * ANSWERS_PER_SECOND
        self._tokens, self._refilled_at = min(ANSWERS_PER_SECOND, self._tokens + gained), now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    async def trace(self, destination: Address) -> list[tuple[str, Waypoint | None]]:
        """The nodes from here on, each with what it said; None: it said nothing. Ends where the way ends, or where it
        comes back to."""
        here = str(self._identity.address)
        found: list[tuple[str, Waypoint | None]] = [(here, await self._look(str(destination)))]
        while len(found) < MAX_HOPS:
            last = found[-1][1]
            if last is None or last.arrived or last.next_node is None:
                break
            known = {node for node, _ in found}
            try:
                following = IPv6Address(last.next_node)
            except ValueError:
                break
            found.append((str(following), await self._ask(following, destination)))
            if str(following) in known:
                break
        return found

    async def _ask(self, node: IPv6Address, destination: Address) -> Waypoint | None:
        nonce = secrets.token_bytes(16)
        with trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            try:
                await client.bind((str(self._identity.address), 0))
                await client.connect((str(node), self._port))
                for _ in range(TRIES):
                    await client.send(encode_request(destination, nonce))
                    with trio.move_on_after(ANSWER_TIMEOUT):
                        while True:
                            waypoint = decode_answer(await client.recv(REQUEST_LENGTH + 1), asked=node, nonce=nonce)
                            if waypoint is not None:
                                return waypoint
            except OSError as error:
                log.debug("not asked", node=node, reason=error)
        return None
