"""The way to a destination, told by the nodes on it, and by nobody in their place."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd import waypoints
from meshd.identity import Identity
from meshd.waypoints import REQUEST_LENGTH, Waypoint, Waypoints, decode_answer, decode_request
from tests.meshd.fakes import run

A, B, C = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
NONCE = bytes(16)
TARGET = ip_address("fd00::9")


def waypoint(of: Identity, following: Identity | None, *, arrived: bool = False, why: str = "cheap") -> Waypoint:
    return Waypoint(
        nonce=b"",
        identity=of.public_key,
        arrived=arrived,
        prefix="fd00::9/128",
        next_node=None if following is None else str(following.address),
        metric=5,
        price_msat_per_gb=7,
        fee_msat_per_gb=1,
        link_cost=96,
        share=None,
        why=why,
    )


class Node:
    def __init__(self, identity: Identity, said: Waypoint) -> None:
        self.said = said
        self.asked: list[str] = []
        self.service = Waypoints(identity, self._look)

    async def _look(self, destination: str) -> Waypoint:
        self.asked.append(destination)
        return self.said


def connect(monkeypatch: pytest.MonkeyPatch, nodes: dict[IPv6Address, Node]) -> None:
    """Datagrams go straight from one to the other."""

    async def ask(_: Waypoints, node: IPv6Address, destination: waypoints.Address) -> Waypoint | None:
        if node not in nodes:
            return None
        answer = await nodes[node].service.answer(waypoints.encode_request(destination, NONCE))
        return None if answer is None else decode_answer(answer, asked=node, nonce=NONCE)

    monkeypatch.setattr(Waypoints, "_ask", ask)


def test_the_way_is_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        first, second = Node(A, waypoint(A, B)), Node(B, waypoint(B, C))
        third = Node(C, waypoint(C, None, arrived=True))
        connect(monkeypatch, {B.address: second, C.address: third})
        found = await first.service.trace(TARGET)
        assert [node for node, _ in found] == [str(one.address) for one in (A, B, C)]
        assert [said is not None and said.arrived for _, said in found] == [False, False, True]
        assert second.asked == third.asked == ["fd00::9"]

    run(scenario)


def test_it_ends_where_nobody_answers_where_it_comes_back_and_where_there_is_no_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        first = Node(A, waypoint(A, B))
        connect(monkeypatch, {})
        assert (await first.service.trace(TARGET))[-1] == (str(B.address), None)
        connect(monkeypatch, {B.address: Node(B, waypoint(B, A)), A.address: first})
        assert [node for node, _ in await first.service.trace(TARGET)] == [str(x.address) for x in (A, B, A)]
        assert len(await Node(A, waypoint(A, None)).service.trace(TARGET)) == 1
        bad = msgspec.structs.replace(waypoint(A, B), next_node="nonsense")
        assert len(await Node(A, bad).service.trace(TARGET)) == 1

    run(scenario)


def test_an_answer_of_another_is_none() -> None:
    async def scenario() -> None:
        answer = await Node(B, waypoint(B, C)).service.answer(waypoints.encode_request(TARGET, NONCE))
        assert answer is not None
        assert decode_answer(answer, asked=B.address, nonce=NONCE) is not None
        assert decode_answer(answer, asked=C.address, nonce=NONCE) is None
        assert decode_answer(answer, asked=B.address, nonce=bytes(15) + b"1") is None
        assert decode_answer(answer[:-1] + b"z", asked=B.address, nonce=NONCE) is None
        forged = waypoints.encode_answer(msgspec.structs.replace(waypoint(B, C), nonce=NONCE), C)
        assert decode_answer(forged, asked=B.address, nonce=NONCE) is None

    run(scenario)


def test_nothing_is_gained_by_asking_in_the_name_of_another() -> None:
    async def scenario() -> None:
        node = Node(B, waypoint(B, C, why="x" * waypoints.MAX_TEXT))
        request = waypoints.encode_request(TARGET, NONCE)
        answers = [await node.service.answer(request) for _ in range(3 * waypoints.ANSWERS_PER_SECOND)]
        given_ = [answer for answer in answers if answer is not None]
        assert len(given_) == waypoints.ANSWERS_PER_SECOND
        assert max(map(len, given_)) <= len(request) == REQUEST_LENGTH
        assert await node.service.answer(request[:-1]) is None

    run(scenario)


@given(st.binary(max_size=REQUEST_LENGTH + 1))
def test_any_bytes_are_a_request_or_none(datagram: bytes) -> None:
    decode_request(datagram)
    decode_request(datagram.ljust(REQUEST_LENGTH, b"\0"))
    assert decode_answer(datagram, asked=B.address, nonce=NONCE) is None
