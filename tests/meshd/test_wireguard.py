"""What the kernel's WireGuard is told, read by pyroute2; and the life of a wireguard-go, with another in its place."""

from __future__ import annotations

import errno
import os
import subprocess
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
import trio
from pyroute2.netlink.generic.wireguard import wgmsg

from meshd.kernel import wireguard
from meshd.kernel.netlink import Message, NetlinkError, attribute, attributes, decode
from meshd.kernel.wireguard import (
    Endpoint,
    GoDevice,
    Status,
    WireGuardError,
    configuration,
    peer_endpoint,
    read_status,
)

SECRET, PEER = bytes(range(32)), bytes(range(32, 64))
GENL_HEADER = bytes((1, 1, 0, 0))  # struct genlmsghdr: command, version, reserved


def told(payload: bytes) -> Any:
    return decode(wgmsg, Message(0, GENL_HEADER + payload))


def test_the_kernel_is_told_keys_and_that_everything_goes_to_the_peer() -> None:
    message = told(configuration("mw0", SECRET, PEER))
    assert message.get_attr("WGDEVICE_A_IFNAME") == "mw0"
    assert message.get_attr("WGDEVICE_A_PRIVATE_KEY") == b64encode(SECRET)
    assert message.get_attr("WGDEVICE_A_LISTEN_PORT") == 0
    (peer,) = message.get_attr("WGDEVICE_A_PEERS")
    assert peer.get_attr("WGPEER_A_PUBLIC_KEY") == b64encode(PEER)
    assert [allowed["addr"] for allowed in peer.get_attr("WGPEER_A_ALLOWEDIPS")] == ["::/0", "0.0.0.0/0"]


@pytest.mark.parametrize(
    "endpoint", [Endpoint(IPv6Address("fe80::1"), 4242, 7), Endpoint(IPv4Address("192.0.2.1"), 65535)]
)
def test_the_kernel_is_told_where_the_far_end_is(endpoint: Endpoint) -> None:
    payload = peer_endpoint("mw0", PEER, endpoint, keepalive=25)
    (peer,) = told(payload).get_attr("WGDEVICE_A_PEERS")
    told_endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
    assert (told_endpoint["addr"], told_endpoint["port"]) == (str(endpoint.address), endpoint.port)
    assert peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    if endpoint.scope:  # pyroute2 reads it in the wrong order: struct sockaddr_in6 has the host's
        assert told_endpoint["scope_id"].to_bytes(4, "big") == wireguard.struct.pack("=I", endpoint.scope)


def test_the_state_is_read_from_what_the_kernel_says() -> None:
    seconds = wireguard.struct.pack("=qq", 1_700_000_000, 5)
    peer = attribute(1, PEER) + attribute(6, seconds)
    device = attribute(2, b"mw0\0") + attribute(6, wireguard.struct.pack("=H", 51820))
    assert read_status([device]) == Status(51820, 0)
    with_peer = device + attribute(8 | 0x8000, attribute(0x8000, peer))
    assert read_status([with_peer]) == Status(51820, 1_700_000_000)


@pytest.mark.parametrize(
    "endpoint", [Endpoint(IPv6Address("fe80::1"), 4242, 7), Endpoint(IPv4Address("192.0.2.1"), 65535)]
)
def test_where_the_kernel_heard_a_peer_last_is_read_as_it_was_told(endpoint: Endpoint) -> None:
    (given,) = told(peer_endpoint("mw0", PEER, endpoint, keepalive=0)).get_attr("WGDEVICE_A_PEERS")
    assert given.get_attr("WGPEER_A_ENDPOINT")
    peer = attribute(1, PEER) + attribute(7, wireguard.struct.pack("=Q", 2**40))
    for kind, start, end in attributes(payload := peer_endpoint("mw0", PEER, endpoint, keepalive=0), 0, len(payload)):
        if kind == 8:
            ((_, first, last),) = attributes(payload, start, end)
            peer += b"".join(attribute(k, payload[s:e]) for k, s, e in attributes(payload, first, last) if k == 4)
    device = attribute(8 | 0x8000, attribute(0x8000, peer))
    assert read_status([device]) == Status(0, 0, 2**40, endpoint)
    broken = attribute(8 | 0x8000, attribute(0x8000, attribute(4, b"\x02\0")))
    assert read_status([broken]).endpoint is None


class PlayedLinks:
    def __init__(self, code: int) -> None:
        self.code = code
        self.asked: list[str] = []

    async def add_wireguard(self, name: str) -> None:
        self.asked.append("make")
        if self.code:
            raise NetlinkError(self.code)

    async def delete(self, name: str) -> None:
        self.asked.append("delete")


@pytest.mark.parametrize(
    ("code", "is_installed", "asked", "error"),
    [
        (errno.EOPNOTSUPP, True, [], None),
        (0, False, ["make", "delete"], None),
        (errno.EOPNOTSUPP, False, ["make"], 'apt install wireguard-go, or, .*security = "none"'),
        (errno.EPERM, False, ["make"], "Operation not permitted"),
    ],
)
def test_who_can_make_no_tunnel_is_told_both_ways_out(
    code: int, is_installed: bool, asked: list[str], error: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wireguard.shutil, "which", lambda _: "/usr/bin/wireguard-go" if is_installed else None)
    links = PlayedLinks(code)
    with nullcontext() if error is None else pytest.raises(WireGuardError, match=error):
        trio.run(wireguard.require, links)
    assert links.asked == asked


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of wireguard-go: never makes anything, and writes its process number down."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid.new\nmv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 60\n")
    path.chmod(0o755)
    monkeypatch.setattr(wireguard, "PROGRAM", str(path))
    monkeypatch.setattr(wireguard, "_SOCKETS", tmp_path)
    return tmp_path / "pid"


def test_a_program_whose_start_is_given_up_is_ended(program: Path) -> None:
    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wireguard._start_program, "mw0")
            while not program.exists():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(scenario)
    with pytest.raises(ProcessLookupError):  # not even a zombie
        os.kill(int(program.read_text()), 0)


def test_a_program_that_does_not_end_with_its_interface_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wireguard, "_END_TIMEOUT", 0.01)
    process = subprocess.Popen(["sleep", "60"])
    trio.run(GoDevice("mw0", process).close)
    assert process.returncode is not None


async def answering(path: Path, reply: bytes, ask: Callable[[], Awaitable[Any]]) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(reply)
        await stream.aclose()

    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await listener.bind(str(path))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(listener)])
        await ask()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "reply",
    [b"private_key=5ec2e7\n", b"private_key=5ec2e7\nerrno=22\n\n", b"private_key=5ec2e7\nlisten_port=x\nerrno=0\n\n"],
)
def test_what_is_wrong_with_an_answer_is_said_without_the_key(
    reply: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wireguard, "_SOCKETS", tmp_path)
    with subprocess.Popen(["sleep", "60"]) as process:
        device = GoDevice("mw0", process)

        async def ask() -> None:
            with pytest.raises(WireGuardError) as caught:
                await device.status()
            assert "5ec2e7" not in str(caught.value)

        trio.run(answering, tmp_path / "mw0.sock", reply, ask)
        process.kill()


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        (b"endpoint=192.0.2.1:51820\n", Endpoint(IPv4Address("192.0.2.1"), 51820)),
        (b"endpoint=[2001:db8::1]:1\n", Endpoint(IPv6Address("2001:db8::1"), 1)),
        (b"endpoint=[fe80::1%7]:65535\n", Endpoint(IPv6Address("fe80::1"), 65535, 7)),
        (b"endpoint=[fe80::1%lo]:5\n", Endpoint(IPv6Address("fe80::1"), 5, 1)),
        (b"endpoint=[fe80::1%gone]:5\n", Endpoint(IPv6Address("fe80::1"), 5)),
        (b"", None),
    ],
)
def test_where_wireguard_go_heard_a_peer_last_is_read(
    text: bytes, endpoint: Endpoint | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wireguard, "_SOCKETS", tmp_path)
    reply = b"listen_port=7\n" + text + b"rx_bytes=99\nlast_handshake_time_sec=5\nerrno=0\n\n"
    with subprocess.Popen(["sleep", "60"]) as process:
        device = GoDevice("mw0", process)

        async def ask() -> None:
            assert await device.status() == Status(7, 5, 99, endpoint)

        trio.run(answering, tmp_path / "mw0.sock", reply, ask)
        process.kill()


def test_a_socket_is_not_taken_from_a_program_that_is_about_to_remove_it(tmp_path: Path) -> None:
    path = tmp_path / "mw0.sock"

    async def scenario() -> None:
        listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wireguard._wait_for_predecessor, path)
            await trio.testing.wait_all_tasks_blocked()
            assert path.exists()
            listener.close()
        assert not path.exists()

    trio.run(scenario)
