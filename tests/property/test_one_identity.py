"""A neighbour behind a tunnel is one key: that of the tunnel, of routing, of the payment session and of the ledger."""

from __future__ import annotations

import base64
from ipaddress import IPv6Address
from typing import Any

import pytest
import trio
from hypothesis import assume, given
from hypothesis import strategies as st
from nacl import bindings

from meshd.discovery import PeerFound, PeerLost
from meshd.identity import Identity, overlay_address, tunnel_address, x25519_public_key
from meshd.kernel.wireguard import configuration
from meshd.session import PeerConnected
from meshd.tunnel import interface_name
from meshd.tunnels import Tunnels
from tests.meshd.fakes import run
from tests.meshd.test_session import LOW, dial_as, nodes
from tests.meshd.test_tunnels import Node
from tests.meshd.test_wireguard import told

identities = st.binary(min_size=32, max_size=32).map(Identity)


def twin(public_key: bytes) -> bytes:
    """The negative of a key: another Ed25519 key, and the same X25519 key."""
    return public_key[:31] + bytes([public_key[31] ^ 0x80])


@given(identities, identities, st.sampled_from(["wlan0", "gw"]))
def test_both_ends_derive_the_same_tunnel_from_the_two_identities(a: Identity, b: Identity, under: str) -> None:
    assume(a != b)
    for ours, theirs in ((a, b), (b, a)):
        message = told(configuration("mw0", ours.x25519_private, x25519_public_key(theirs.public_key)))
        (peer,) = message.get_attr("WGDEVICE_A_PEERS")
        # What one end expects is what the other can prove, and has as its session's static key.
        expected = base64.b64decode(peer.get_attr("WGPEER_A_PUBLIC_KEY"))
        assert expected == theirs.x25519_public == bindings.crypto_scalarmult_base(theirs.x25519_private)
    assert a.x25519_public != b.x25519_public
    assert tunnel_address(a.public_key) != tunnel_address(b.public_key)
    assert overlay_address(a.public_key) != overlay_address(b.public_key)
    names = {interface_name(a.public_key, b.public_key, under), interface_name(b.public_key, a.public_key, under)}
    assert len(names) == 2  # wireguard-go has one name for the whole machine


@pytest.fixture(scope="module")
def patched() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@given(seed=st.binary(min_size=32, max_size=32), is_twin=st.booleans())
def test_the_tunnels_key_its_far_end_and_who_it_is_of_are_the_beacons(
    patched: pytest.MonkeyPatch, seed: bytes, is_twin: bool
) -> None:
    """Also of one who shows the negative of a key: that is somebody else to all of them."""
    key = Identity(seed).public_key
    key = twin(key) if is_twin else key
    node = Node(patched)

    async def scenario() -> None:
        async with node.running() as tunnels:
            await node.link()
            await tunnels._execute([PeerFound("eth0", key, IPv6Address("fe80::2"), 5555)])
            await trio.sleep(0.1)
            (tunnel,) = tunnels.all()
            assert tunnel.peer == key and tunnel.far_end == tunnel_address(key)
            assert node.devices[0].keys == (node.identity.x25519_private, x25519_public_key(key))
            assert isinstance(tunnels, Tunnels) and tunnels.on(node.devices[0].name) is tunnel
            await tunnels._execute([PeerLost("eth0", key)])

    run(scenario)


@given(peer=identities, other=identities, lie=st.sampled_from(["none", "peer's key", "twin"]))
def test_a_session_in_a_tunnel_is_of_the_tunnels_key_or_refused_and_counted(
    peer: Identity, other: Identity, lie: str
) -> None:
    us = Identity(b"u" * 32)
    assume(len({peer, other, us}) == 3)

    async def scenario() -> None:
        async with nodes(Identity(b"x" * 32), us) as (_, node):
            for name in ("eth0", "mw0"):
                node.manager.interface_down(name)
            node.manager.interface_up("mw0", 1, IPv6Address("fe80::2"), peer.public_key)
            # The peer's own twin proves the same X25519 key; whoever else claims the peer's key does not.
            who = peer if lie == "twin" else other
            claimed = {"none": other.public_key, "peer's key": peer.public_key, "twin": twin(peer.public_key)}[lie]
            stream, _transport = await dial_as(who, node.wire, source=LOW, hello=b"\x01" + claimed)
            assert await stream.receive_some() == b""
            assert dict(node.manager.counters) == {"wrong_identity": 1}
            node.nothing()
            await dial_as(peer, node.wire, source=LOW)
            # Under this key come its messages, which is the key of the ledger.
            assert await node.next() == PeerConnected(peer.public_key, "mw0", LOW, first=True)

    run(scenario)
