"""The kernel's WireGuard, told and read by us; `wg` is the judge."""

from __future__ import annotations

import socket
import subprocess
from base64 import b64encode
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio

from meshd.identity import Identity
from meshd.kernel.links import Links
from meshd.kernel.netlink import NetlinkSocket
from meshd.kernel.wireguard import Device, Endpoint, KernelDevice, WireGuardError, make, require

NAMES = ("mwa", "mwb")
OURS, THEIRS = Identity(b"\x11" * 32), Identity(b"\x12" * 32)
ENDPOINTS = [
    Endpoint(IPv4Address("192.0.2.7"), 4242),
    Endpoint(IPv6Address("2001:db8::7"), 65535),
    Endpoint(IPv6Address("fe80::7"), 1, 1),
]


def with_devices(work: Callable[[Device, Device], Awaitable[None]]) -> None:
    """Two interfaces in one namespace, each the other's peer."""

    async def main() -> None:
        with NetlinkSocket(socket.NETLINK_ROUTE) as netlink:
            links = Links(netlink)
            await require(links)
            try:
                ours, theirs = [await make(name, links) for name in NAMES]
                await ours.configure(OURS.x25519_private, THEIRS.x25519_public)
                await theirs.configure(THEIRS.x25519_private, OURS.x25519_public)
                for name in NAMES:  # a port is taken when it comes up
                    await links.set_up(name, mtu=1400)
                await work(ours, theirs)
            finally:
                for name in NAMES:
                    await links.delete(name)

    trio.run(main)


def told(name: str) -> tuple[list[str], list[str]]:
    """What `wg` says of the interface and of its one peer."""
    done = subprocess.run(["wg", "show", name, "dump"], capture_output=True, text=True, check=True)
    interface, peer = (line.split("\t") for line in done.stdout.splitlines())
    return interface, peer


def test_keys_port_and_peer_are_set() -> None:
    async def work(ours: Device, theirs: Device) -> None:
        assert isinstance(ours, KernelDevice)
        interface, peer = told("mwa")
        keys = [b64encode(key).decode() for key in (OURS.x25519_private, OURS.x25519_public)]
        assert interface == [*keys, str((await ours.status()).port), "off"]
        assert interface[2] != "0"
        assert peer[0] == b64encode(THEIRS.x25519_public).decode()
        assert peer[1:] == ["(none)", "(none)", peer[3], "0", "0", "0", "off"]
        assert set(peer[3].split(",")) == {"::/0", "0.0.0.0/0"}
        await ours.configure(OURS.x25519_private, OURS.x25519_public[::-1], port=51999, mark=0x42)
        interface, peer = told("mwa")  # all is replaced
        assert interface == [*keys, "51999", "0x42"]
        assert peer[0] == b64encode(OURS.x25519_public[::-1]).decode()
        with pytest.raises(WireGuardError, match="mwb: EADDRINUSE"):
            await theirs.configure(THEIRS.x25519_private, OURS.x25519_public, port=51999)

    with_devices(work)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
def test_the_far_end_is_set_and_read(endpoint: Endpoint) -> None:
    async def work(ours: Device, theirs: Device) -> None:
        del theirs
        await ours.set_endpoint(THEIRS.x25519_public, endpoint, keepalive=25)
        _, peer = told("mwa")
        assert peer[2] == str(endpoint).replace("%1]", "%lo]")
        assert peer[7] == "25"
        assert (await ours.status()).endpoint == endpoint
        await ours.set_endpoint(bytes(32), ENDPOINTS[0], keepalive=0)  # not made for it
        assert len(told("mwa")) == 2

    with_devices(work)


def test_a_handshake_and_what_it_carried_are_seen() -> None:
    async def work(ours: Device, theirs: Device) -> None:
        port = (await theirs.status()).port
        assert (await ours.status()).handshake_at == 0
        # The first keepalive is sent at once, and asks for the handshake.
        await ours.set_endpoint(THEIRS.x25519_public, Endpoint(IPv6Address("::1"), port), keepalive=25)
        with trio.fail_after(60):
            while not ((status := await ours.status()).handshake_at and (other := await theirs.status()).received):
                await trio.sleep(0.1)
        assert status.received > 0
        assert other.endpoint == Endpoint(IPv6Address("::1"), status.port)  # it has learnt where we are
        _, peer = told("mwa")
        assert (peer[4], peer[5]) == (str(status.handshake_at), str(status.received))

    with_devices(work)
