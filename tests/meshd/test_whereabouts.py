"""Names and paths, as this machine knows them; nothing is sent."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
import trio

from meshd.kernel.wireguard import Endpoint
from meshd.whereabouts import LOOK_UP_TIMEOUT, MAX_ADDRESSES, look_up, path_mtu
from tests.meshd.fakes import run


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str, takes: float = 0.0) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        await trio.sleep(takes)
        return [(socket.AF_INET6, socket.SOCK_DGRAM, 17, "", (address, port)) for address in addresses]

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_needs_no_resolver(host: str) -> None:
    (found,) = trio.run(look_up, host, 7)
    assert (str(found.address), found.port, found.scope) == (host, 7, 0)


def test_of_many_addresses_the_first_are_taken_once_each_and_none_that_is_no_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [f"192.0.2.{n}" for n in range(1, 20)]
    answers(monkeypatch, "ff02::1", "0.0.0.0", "2001:db8::1", "2001:db8::1", *many)  # noqa: S104  refused
    found = trio.run(look_up, "gw.example", 7)
    assert found[:2] == [Endpoint(IPv6Address("2001:db8::1"), 7), Endpoint(IPv4Address("192.0.2.1"), 7)]
    assert len(found) == MAX_ADDRESSES


def test_no_answer_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        answers(monkeypatch, "192.0.2.1", takes=LOOK_UP_TIMEOUT + 1)
        with pytest.raises(OSError, match="no answer in 10 s"):
            await look_up("gw.example", 7)
        answers(monkeypatch, "ff02::1")
        with pytest.raises(OSError, match="no address"):
            await look_up("gw.example", 7)

    run(scenario)


def test_a_name_that_cannot_be_one_is_an_error() -> None:
    with pytest.raises(OSError, match="not a name"):
        trio.run(look_up, "a" * 64 + ".example", 7)


def test_the_mtu_is_that_of_the_way_there() -> None:
    assert path_mtu(Endpoint(IPv4Address("127.0.0.1"), 7)) in (65535, 65536)  # `lo` has 65536, IPv4 at most 65535
    assert path_mtu(Endpoint(IPv6Address("fe80::1"), 7, 999_999)) is None
