"""Socket filters. A pair of sockets passes through them as netlink does."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from meshd.kernel import filters


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_only_what_has_one_of_the_bits_arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    filters.attach(ours, filters.has_bits(2, 0x24))
    for data in (b"ab\x00", b"ab\x24z", b"ab\x18", b"ab\x04", b"ab"):
        theirs.send(data)
    assert [ours.recv(100), ours.recv(100)] == [b"ab\x24z", b"ab\x04"]
    with pytest.raises(BlockingIOError):
        ours.recv(100)


def test_a_program_that_is_none_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        filters.attach(pair[0], bytes(8))
