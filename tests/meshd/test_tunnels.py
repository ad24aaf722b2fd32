"""Tunnels follow beacons and interfaces, whatever comes in between; the kernel and WireGuard are played."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
import trio

from meshd import beacon as wire
from meshd import tunnel as tunnel_module
from meshd import tunnels as tunnels_module
from meshd.beacon import Beacon
from meshd.config import DiscoveryConfig, InterfaceConfig, PeerConfig
from meshd.following import RETRY_INTERVAL
from meshd.identity import Identity, tunnel_address
from meshd.kernel import Link, NetlinkError
from meshd.kernel.wireguard import Endpoint, Status, WireGuardError
from meshd.tunnel import HANDSHAKE_TIMEOUT, RETRY_MAX, SILENCE_MAX, STATUS_INTERVAL_UP, Tunnel
from meshd.tunnels import SILENCE, Tunnels
from routing.events import LinkKind
from tests.meshd.fakes import FakeKernel, run

US, BOB = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
OURS, THEIRS = IPv6Address("fe80::1"), IPv6Address("fe80::2")
INTERVAL = 5.0


class FakeSocket:
    """As the kernel's: joining twice is an error, and so is leaving where one has not joined."""

    def __init__(self) -> None:
        self.joined: set[int] = set()
        self.sent: list[bytes] = []
        self.send_takes = 0.0
        self.arrive, self._arrived = trio.open_memory_channel[tuple[bytes, tuple[str, int, int, int]]](100)

    async def bind(self, address: tuple[str, int]) -> None:
        await trio.lowlevel.checkpoint()

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        index = struct.unpack("@I", value[16:])[0]
        is_join = option == socket.IPV6_JOIN_GROUP
        if is_join == (index in self.joined):
            raise OSError(errno.EADDRINUSE if is_join else errno.EADDRNOTAVAIL, "membership")
        (self.joined.add if is_join else self.joined.remove)(index)

    async def sendto(self, data: bytes, address: Any) -> None:
        await trio.sleep(self.send_takes)
        self.sent.append(data)

    async def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int, int, int]]:
        return await self._arrived.receive()

    def close(self) -> None:
        self.arrive.close()


class FakeDevice:
    def __init__(self, name: str, node: Node) -> None:
        self.name = name
        self.node = node
        self.endpoint: Endpoint | None = None
        self.keys = (b"", b"")
        self.configured = (0, 0)
        self.configurations = 0
        self.questions = 0
        self.fails = False

    async def configure(self, private_key: bytes, peer_key: bytes, *, port: int = 0, mark: int = 0) -> None:
        self.keys = (private_key, peer_key)
        self.configured = (port, mark)
        self.configurations += 1
        # As something in a thread: it is not interrupted.
        with trio.CancelScope(shield=True):
            await trio.sleep(self.node.configure_takes)

    async def set_endpoint(self, peer_key: bytes, endpoint: Endpoint, *, keepalive: int) -> None:
        await trio.lowlevel.checkpoint()
        self.endpoint = endpoint

    async def status(self) -> Status:
        self.questions += 1
        if self.fails:
            raise WireGuardError("gone")
        with trio.CancelScope(shield=True):
            await trio.sleep(self.node.status_takes)
        return Status(self.node.port, self.node.handshake_at, self.node.received, self.endpoint)

    async def close(self) -> None:
        self.node.closed.append(self.name)


class Node:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, peers: Sequence[PeerConfig] = ()) -> None:
        self.identity = US
        self.kernel = FakeKernel()
        self.socket = FakeSocket()
        self.devices: list[FakeDevice] = []
        self.closed: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.configure_takes = self.status_takes = 0.0
        self.handshake_at = self.received = 0
        self.port = 4242
        self.number = 0
        monkeypatch.setattr(tunnels_module, "BeaconSocket", lambda: self.socket)
        monkeypatch.setattr(tunnel_module, "write_sysctl", lambda *_: None)
        monkeypatch.setattr(tunnel_module, "make", self._make)
        monkeypatch.setattr(tunnels_module, "require", self._require)
        self.tunnels = Tunnels(
            US,
            self.kernel.as_kernel(),
            [InterfaceConfig(name=name, security="wireguard") for name in ("eth0", "eth1")],
            DiscoveryConfig(beacon_interval=INTERVAL),
            peers=peers,
            chain="regtest",
            incarnation=1,
            on_up=self._on_up,
            on_down=self._on_down,
        )

    async def _make(self, name: str, links: Any) -> FakeDevice:
        await trio.lowlevel.checkpoint()
        self.devices.append(FakeDevice(name, self))
        return self.devices[-1]

    async def _require(self, links: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def _on_up(self, tunnel: Tunnel) -> None:
        self.told.append(("up", tunnel.name))

    async def _on_down(self, tunnel: Tunnel) -> None:
        self.told.append(("down", tunnel.name))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tunnels]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tunnels.run)
            yield self.tunnels
            nursery.cancel_scope.cancel()

    async def link(self, address: IPv6Address | None = OURS, *, index: int = 3, name: str = "eth0") -> None:
        self.kernel.links.change(Link(index, name, b"\x02" + bytes(5), 1500, address is not None, address))
        await trio.sleep(0.01)

    async def beacon(self, *, index: int = 3, port: int = 5555) -> None:
        self.number += 1
        ports = {wire.peer_tag(US.public_key): port}
        said = Beacon(BOB.public_key, 1, self.number, 3.5 * INTERVAL, THEIRS, ports)
        data = wire.encode(said, BOB, network=wire.network_tag("regtest"))
        self.socket.arrive.send_nowait((data, (f"{THEIRS}%eth0", DiscoveryConfig().port, 0, index)))
        await trio.sleep(0.01)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def test_a_beacon_makes_a_tunnel_and_silence_ends_it(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as tunnels:
            await node.link()
            await node.beacon()
            (device,) = node.devices
            assert device.endpoint == Endpoint(THEIRS, 5555, 3)
            assert node.kernel.devices == [device.name]
            tunnel = tunnels.on(device.name)
            assert tunnel is not None and tunnel.far_end == tunnel_address(BOB.public_key)
            assert tunnels.names() == {"eth0": [device.name], "eth1": []}
            assert ("up", device.name, 1500 - tunnel_module.OVERHEAD) in node.kernel.journal
            await trio.sleep(4 * INTERVAL)
            assert node.told == [("up", device.name), ("down", device.name)]
            assert node.closed == [device.name] and node.kernel.devices == []
            assert tunnels.on(device.name) is None

    run(scenario)


def test_an_interface_that_lost_its_carrier_is_used_again(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            for index in (3, 3, 4):
                await node.link(index=index)
                await node.beacon(index=index)
                assert node.told[-1][0] == "up" and node.socket.joined == {index}
                await node.link(None, index=index)
                assert node.told[-1][0] == "down" and node.socket.joined == set()
            assert len(node.devices) == 3

    run(scenario)


def test_a_peer_that_is_found_again_while_its_tunnel_is_taken_down_gets_a_new_one(node: Node) -> None:
    async def scenario() -> None:
        node.kernel.delete_takes = 2.0
        async with node.running() as tunnels:
            await node.link()
            await node.beacon()
            await node.link(None)
            await node.link()
            await node.beacon()
            assert len(node.devices) == 1  # its interface has the same name: one after the other
            await trio.sleep(2.0)
            name = node.devices[0].name
            assert node.told == [("up", name), ("down", name), ("up", name)]
            assert node.devices[1].endpoint is not None and tunnels.on(name) is not None
            assert node.kernel.devices == [name]
            await node.link(None)
            await node.link()
            await node.beacon()
            await node.link(None)  # found again, and lost again
            await trio.sleep(3.0)
            assert tunnels.on(name) is None and len(node.devices) == 2

    run(scenario)


def test_a_peer_that_is_lost_while_beacons_are_being_sent_is_not_lost_after_it_was_found_again(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as tunnels:
            await node.link()
            await node.link(index=4, name="eth1")
            await node.beacon(index=4)
            node.socket.send_takes = 3.0  # so that all is late, and comes together: eth0's beacon before eth1's loss
            with trio.fail_after(100):
                while tunnels.discovery.peers()["eth1"]:
                    await trio.sleep(0.1)
            await node.beacon(index=4)
            await trio.sleep(10.0)
            assert tunnels.discovery.peers()["eth1"]
            assert tunnels.on(node.devices[-1].name) is not None and len(node.devices) == 2

    run(scenario)


@pytest.mark.parametrize("waiting_for", ["configure_takes", "status_takes"])
def test_an_interface_may_go_at_any_moment(node: Node, waiting_for: str) -> None:
    """What runs in a thread is not interrupted: the tunnel goes on a little with the interface gone."""

    async def scenario() -> None:
        setattr(node, waiting_for, 1.0)
        async with node.running() as tunnels:
            await node.link()
            await node.beacon()
            await trio.sleep(0.5 if waiting_for == "configure_takes" else 1.5)
            await node.beacon(port=7777)
            await node.link(None)
            await trio.sleep(5.0)
            assert node.kernel.devices == [] and tunnels.on(node.devices[0].name) is None
            setattr(node, waiting_for, 0.0)
            await node.link()
            await node.beacon()
            assert node.told[-1][0] == "up"

    run(scenario)


def test_an_interface_is_guarded_before_it_can_have_tunnels_and_again_when_it_is_made_anew(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link(None)
            assert node.kernel.guarded == {"eth0": 3}
            await node.link(None, index=4)
            assert node.kernel.guarded == {"eth0": 4}

    run(scenario)


def test_an_interface_that_could_not_be_used_is_tried_again(node: Node) -> None:
    async def scenario() -> None:
        node.kernel.guard_failures = 1
        async with node.running() as tunnels:
            await node.link()
            assert tunnels.address_on("eth0") is None
            node.kernel.links.failures = 1
            await trio.sleep(2 * RETRY_INTERVAL + 0.1)
            assert tunnels.address_on("eth0") == OURS and node.kernel.guarded == {"eth0": 3}

    run(scenario)


def test_interfaces_that_cannot_be_read_end_nothing(node: Node) -> None:
    async def scenario() -> None:
        node.kernel.links.failures = 1
        async with node.running() as tunnels:
            await node.link()
            await trio.sleep(RETRY_INTERVAL + 0.1)
            assert tunnels.address_on("eth0") == OURS

    run(scenario)


def test_a_device_that_cannot_be_told_is_made_anew(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async def refuse(*_: Any, **__: Any) -> None:
            raise NetlinkError(errno.EBUSY)

        async with node.running() as tunnels:
            await node.link()
            with monkeypatch.context() as patched:
                patched.setattr(node.kernel.links, "set_up", refuse)
                await node.beacon()
                await trio.sleep(0.1)
                assert tunnels.counters["tunnels_broken"] == 1 and node.kernel.devices == []
                assert node.closed == [node.devices[0].name]
            await node.beacon()
            await trio.sleep(RETRY_MAX)
            assert ("up", node.devices[1].name) in node.told

    run(scenario)


@pytest.mark.parametrize(("handshake_at", "doubts"), [(0, 1), (1_700_000_000, 0)])
def test_a_tunnel_that_does_not_shake_hands_is_told_of_once(node: Node, handshake_at: int, doubts: int) -> None:
    async def scenario() -> None:
        node.handshake_at = handshake_at
        async with node.running() as tunnels:
            await node.link()
            for _ in range(10):
                await node.beacon()
                await trio.sleep(HANDSHAKE_TIMEOUT / 5)
            tunnel = tunnels.on(node.devices[0].name)
            assert tunnel is not None and tunnel.is_up is (doubts == 0)
            assert tunnels.counters["tunnels_without_handshake"] == doubts

    run(scenario)


def test_a_cost_is_that_of_the_tunnels_there_are_and_of_those_to_come(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as tunnels:
            assert tunnels.set_cost("eth0", 7) == []
            await node.link()
            await node.beacon()
            tunnel = tunnels.on(node.devices[0].name)
            assert tunnel is not None and tunnel.under.cost == 7
            assert tunnels.set_cost("eth0", 9) == [tunnel.name] and tunnel.under.cost == 9
            with pytest.raises(KeyError):
                tunnels.set_cost("eth9", 9)

    run(scenario)


def test_wireguard_is_not_asked_between_two_hellos_of_a_neighbour(node: Node) -> None:
    async def scenario() -> None:
        async with node.running():
            await node.link()
            await node.beacon()
            node.handshake_at = 1
            await trio.sleep(4.0)
            (device,) = node.devices

            async def asked(every: float) -> int:
                """How often in a minute, when something comes so seldom."""
                before = device.questions
                for number in range(60):
                    if number % every == 0:
                        node.kernel.links.received[device.name] = node.kernel.links.received.get(device.name, 0) + 80
                    await node.beacon()  # else it is lost where nothing comes
                    await trio.sleep(1.0)
                return device.questions - before

            assert await asked(every=4) <= 3
            assert await asked(every=20) >= 5

    run(scenario)


def test_the_mtu_follows_that_of_the_interface_under_it(node: Node) -> None:
    async def scenario() -> None:
        async with node.running() as tunnels:
            await node.link()
            await node.beacon()
            name = node.devices[0].name
            node.kernel.links.change(Link(3, "eth0", b"\x02" + bytes(5), 9000, True, OURS))
            await trio.sleep(0.01)
            assert ("up", name, 8920) in node.kernel.journal and node.told == [("up", name)]
            node.kernel.links.change(Link(3, "eth0", b"\x02" + bytes(5), 1300, True, OURS))
            await trio.sleep(0.01)
            assert [entry[2] for entry in node.kernel.journal if entry[0] == "up"] == [1420, 8920, 1280]
            (shown,) = tunnels.all()
            assert shown.mtu == 1280

    run(scenario)


GATEWAY = PeerConfig(name="gw", identity=BOB.public_key, endpoint=("gw.example", 51820), cost=77)
WAITING = PeerConfig(name="pi", identity=BOB.public_key, listen_port=4242)
FIRST, SECOND = (Endpoint(IPv4Address(f"192.0.2.{n}"), 51820) for n in (1, 2))


class Internet:
    """Names and paths, played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[Endpoint] = [FIRST, SECOND]
        self.mtu: int | None = 1500
        self.asked: list[float] = []
        monkeypatch.setattr(tunnel_module, "look_up", self._look_up)
        monkeypatch.setattr(tunnel_module, "path_mtu", self._path_mtu)

    async def _look_up(self, host: str, port: int) -> list[Endpoint]:
        await trio.lowlevel.checkpoint()
        self.asked.append(trio.current_time())
        if not self.found:
            raise OSError(f"{host}:{port}")
        return self.found

    def _path_mtu(self, endpoint: Endpoint, *, mark: int) -> int | None:
        assert mark == tunnels_module.MARK
        return self.mtu


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    return Internet(monkeypatch)


def test_a_peer_by_name_has_a_tunnel_and_its_next_address_is_tried_when_it_is_silent(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch, [GATEWAY])
        async with node.running() as tunnels:
            await trio.sleep(0.1)
            (device,) = node.devices
            assert device.endpoint == FIRST and device.configured == (0, tunnels_module.MARK)
            assert node.told == [("up", device.name)] and tunnels.names()["gw"] == [device.name]
            assert node.kernel.kept_out == tunnels_module.MARK and node.kernel.devices == [device.name]
            tunnel = tunnels.on(device.name)
            assert tunnel is not None and tunnel.under.cost == 77 and tunnel.under.kind is LinkKind.TUNNEL
            assert tunnel.state(now=trio.current_time()) == "trying"
            await trio.sleep(SILENCE + 0.1)
            assert device.endpoint == SECOND and device.configurations == 2
            node.handshake_at = 1
            for _ in range(100):
                node.received += 1
                await trio.sleep(1.0)
            assert device.endpoint == SECOND and len(internet.asked) == 2 and tunnel.is_up
            assert device.configurations == 2
            device.endpoint = None  # the peer's packets have moved it, and then they stop
            await trio.sleep(SILENCE + 1.1)
            assert device.endpoint == FIRST
            assert tunnels.set_cost("gw", 9) == [device.name]
        assert node.closed == [device.name] and node.kernel.devices == []

    run(scenario)


def test_what_comes_out_of_a_tunnel_shows_that_its_peer_is_there(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch, [GATEWAY])
        async with node.running() as tunnels:
            node.handshake_at = 1
            await trio.sleep(2)
            (device,) = node.devices
            asked = device.questions
            for _ in range(100):
                node.kernel.links.received[device.name] = node.kernel.links.received.get(device.name, 0) + 80
                await trio.sleep(1.0)
            assert len(internet.asked) == 1 and device.questions - asked <= 5
            asked = device.questions
            await trio.sleep(SILENCE + STATUS_INTERVAL_UP)  # nothing comes: WireGuard is asked, and the peer looked for
            assert len(internet.asked) == 2 and device.questions > asked
            assert tunnels.all()[0].is_up

    run(scenario)


def test_a_name_without_an_answer_is_asked_for_ever_more_seldom(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        internet.found = []
        node = Node(monkeypatch, [GATEWAY])
        async with node.running() as tunnels:
            await trio.sleep(600)
            assert 12 <= len(internet.asked) <= 20 and internet.asked[1] - internet.asked[0] < 2
            assert tunnels.counters == {"names_not_resolved": len(internet.asked)} and node.told == []
            assert tunnels.all()[0].state(now=trio.current_time()) == "looking up"
            internet.found = [SECOND]
            await trio.sleep(61)
            assert node.devices[0].endpoint == SECOND and len(node.devices) == 1

    run(scenario)


def test_a_silent_peer_is_looked_for_ever_more_seldom(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch, [GATEWAY])
        async with node.running():
            await trio.sleep(10 * SILENCE_MAX)
            assert 12 <= len(internet.asked) <= 20

    run(scenario)


def test_who_waits_has_a_tunnel_from_the_first_handshake_on(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch, [WAITING])
        async with node.running() as tunnels:
            await trio.sleep(100)
            (device,) = node.devices
            assert device.configured == (4242, tunnels_module.MARK) and node.told == []
            (tunnel,) = tunnels.all()
            assert tunnel.state(now=trio.current_time()) == "waiting"
            node.handshake_at, device.endpoint = 1, FIRST
            await trio.sleep(1.1)
            assert tunnel.state(now=trio.current_time()) == "up"
            assert tunnel.state(now=trio.current_time() + 200) == "silent"
            assert node.told == [("up", device.name)] and internet.asked == []
            assert [entry[2] for entry in node.kernel.journal if entry[0] == "up"] == [1420]
            internet.mtu = 1400
            await trio.sleep(STATUS_INTERVAL_UP + 0.1)
            assert tunnels.all()[0].mtu == 1320
            internet.mtu = None  # no way there for a moment
            await trio.sleep(STATUS_INTERVAL_UP + 0.1)
            assert tunnels.all()[0].mtu == 1320

    run(scenario)


def test_a_port_that_is_taken_is_tried_again(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch, [WAITING])
        node.port = 0
        async with node.running() as tunnels:
            await trio.sleep(20)
            assert tunnels.counters["tunnels_broken"] >= 1 and len(node.closed) == tunnels.counters["tunnels_broken"]
            node.port = 4242
            await trio.sleep(RETRY_MAX)
            before = tunnels.counters["tunnels_broken"]
            await trio.sleep(RETRY_MAX)
            assert tunnels.counters["tunnels_broken"] == before and tunnels.all()[0].status is not None

    run(scenario)


def test_a_device_that_breaks_while_a_name_is_looked_up_is_made_anew(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch, [GATEWAY])
        async with node.running() as tunnels:
            await trio.sleep(0.1)
            node.devices[0].fails = True
            await trio.sleep(5.0)
            assert tunnels.counters["tunnels_broken"] == 1
            assert node.devices[1].endpoint == FIRST and node.told[-1][0] == "up"

    run(scenario)


def test_nobody_has_a_tunnel_with_himself(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        node = Node(monkeypatch, [PeerConfig(name="me", identity=US.public_key, endpoint=("gw.example", 51820))])
        async with node.running() as tunnels:
            await trio.sleep(10)
            assert node.devices == [] and tunnels.all() == []

    run(scenario)
