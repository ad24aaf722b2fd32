"""A tunnel across an Internet with a NAT in it, between real daemons: it comes up, follows who moves, and stays out of
the mesh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshd.identity import Identity
from tests.lab.mesh import until
from tools.lab import network, rpc, toml_text
from tools.ns import Namespaces

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="wireguard-go is not installed"),
]

HOME, GATEWAY = Identity(b"\x11" * 32), Identity(b"\x12" * 32)
NAME = "gateway.example"
PORT = 51820
MTU = 1400


class Node:
    """One daemon in a namespace, without payments."""

    def __init__(self, namespaces: Namespaces, name: str, identity: Identity, directory: Path, **config: Any) -> None:
        self.namespaces = namespaces
        self.name = name
        self.identity = identity
        self.directory = directory / name
        self.process: subprocess.Popen[Any] | None = None
        state = self.directory / "state"
        state.mkdir(parents=True)
        (state / "identity").touch(0o600)
        (state / "identity").write_text(identity.seed.hex())
        document = {
            "node": {"name": name, "state_dir": str(state), "control_socket": str(self.directory / "s")},
            "payments": {"enabled": False},
            "chain": {"socket": str(self.directory / "chain")},
            "routing": {"hello_interval": 0.5, "announce": config.pop("announce", [])},
            **config,
        }
        (self.directory / "config.toml").write_text(toml_text.dump(document))

    def start(self) -> None:
        argv = [str(Path(sys.executable).parent / "meshd"), "run", "--config", str(self.directory / "config.toml")]
        with (self.directory / "log").open("ab") as log:
            self.process = self.namespaces.popen(self.name, argv, stdout=log, stderr=log)
        until(f"{self.name} answers", lambda: self.rpc("status") is not None)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Nothing of it remains, also where it was killed last."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        for number in network.pids_in(self.namespaces.full(self.name)):
            os.kill(number, signal.SIGKILL)

    def run(self, command: str) -> str:
        return self.namespaces.run(self.name, ["sh", "-ec", command])

    def rpc(self, method: str) -> Any:
        try:
            return rpc.call(self.directory / "s", method, {})
        except rpc.RpcFailedError:
            return None

    def tunnel(self) -> dict[str, Any]:
        (tunnel,) = self.rpc("tunnels")
        return dict(tunnel)

    def reaches(self, other: Node) -> bool:
        route = f"{other.identity.address}/128"
        return any(row["prefix"] == route and row["selected"] for row in self.rpc("routes") or ())


class Internet:
    """home -- nat -- gateway. What the gateway's name means is in home's own /etc/hosts."""

    def __init__(self, namespaces: Namespaces, directory: Path) -> None:
        for name in ("home", "nat", "gateway"):
            namespaces.add(name)
        namespaces.veth(("home", "wan"), ("nat", "lan"))
        namespaces.veth(("nat", "wan"), ("gateway", "wan"))
        self.namespaces = namespaces
        self.hosts = Path("/etc/netns") / namespaces.full("home") / "hosts"
        self.hosts.parent.mkdir(parents=True)
        self.hosts.write_text(f"192.0.2.2 {NAME}\n")
        peer = {"name": "gw", "identity": GATEWAY.public_key.hex(), "endpoint": f"{NAME}:{PORT}", "keepalive": 1}
        self.home = Node(namespaces, "home", HOME, directory, peer=[peer])
        # What it announces would draw home's tunnel into itself.
        guest = {"name": "home", "identity": HOME.public_key.hex(), "listen_port": PORT}
        self.gateway = Node(namespaces, "gateway", GATEWAY, directory, peer=[guest], announce=["192.0.2.0/30"])
        self.home.run(f"ip addr add 10.1.0.2/24 dev wan; ip link set wan mtu {MTU}; ip route add default via 10.1.0.1")
        self.nat("ip addr add 10.1.0.1/24 dev lan; ip addr add 192.0.2.1/24 dev wan; sysctl -qw net.ipv4.ip_forward=1")
        self.nat("nft add table ip n; nft 'add chain ip n p { type nat hook postrouting priority srcnat; }'")
        self.nat("nft add rule ip n p oifname wan masquerade")
        self.gateway.run("ip addr add 192.0.2.2/24 dev wan")

    def nat(self, command: str) -> None:
        self.namespaces.run("nat", ["sh", "-ec", command])

    def await_tunnel(self) -> None:
        home, gateway = self.home, self.gateway
        until("routes through the tunnel", lambda: home.reaches(gateway) and gateway.reaches(home))
        until("both ends being up", lambda: home.tunnel()["state"] == gateway.tunnel()["state"] == "up")

    def await_silence(self) -> None:
        """Until nothing comes through."""
        until("the neighbour being lost", lambda: self.home.rpc("neighbours") == [])


@pytest.fixture(scope="module")
def internet(lab_base: Path) -> Iterator[Internet]:
    with Namespaces("tsp") as namespaces:
        made = Internet(namespaces, lab_base / "static")
        try:
            made.gateway.start()
            made.home.start()
            made.await_tunnel()
            yield made
        finally:
            shutil.rmtree(made.hosts.parent)
            for node in (made.home, made.gateway):
                node.end()
                print((node.directory / "log").read_text()[-4000:])
    shutil.rmtree(lab_base / "static")


def test_a_tunnel_comes_up_through_a_nat_and_fits_the_path(internet: Internet) -> None:
    home, gateway = internet.home.tunnel(), internet.gateway.tunnel()
    assert home["endpoint"] == f"192.0.2.2:{PORT}" and gateway["port"] == PORT
    assert gateway["endpoint"].startswith("192.0.2.1:")  # the NAT's
    assert home["identity"] == GATEWAY.public_key.hex() and gateway["identity"] == HOME.public_key.hex()
    assert home["mtu"] == MTU - 80
    (row,) = internet.home.rpc("neighbours")
    assert row["under"] == "gw" and row["identity"] == home["identity"]
    internet.home.run(f"ip link set wan mtu {MTU + 50}")
    until("the tunnel's MTU having followed", lambda: internet.home.tunnel()["mtu"] == MTU + 50 - 80)


def test_the_tunnel_is_not_sent_into_itself(internet: Internet) -> None:
    """The gateway has announced a network that it is in itself, and home has taken that route."""
    assert "dev mw" in internet.home.run("ip route get 192.0.2.2")
    assert "dev wan" in internet.home.run("ip route get 192.0.2.2 mark 0x6d657368")


def test_a_peer_whose_address_changes_is_followed(internet: Internet) -> None:
    before = internet.gateway.tunnel()["endpoint"]
    internet.nat("ip addr add 192.0.2.9/24 dev wan; ip addr del 192.0.2.1/24 dev wan; ip addr add 192.0.2.7/24 dev wan")
    until("the new address", lambda: not internet.gateway.tunnel()["endpoint"].startswith(before.rpartition(":")[0]))
    internet.await_tunnel()


def test_a_name_that_means_another_address_now_is_looked_up_again(internet: Internet) -> None:
    internet.gateway.run("ip addr add 192.0.2.3/24 dev wan; ip addr del 192.0.2.2/24 dev wan")
    internet.gateway.run("ip addr show dev wan | grep -q 192.0.2.3 || ip addr add 192.0.2.3/24 dev wan")
    internet.await_silence()
    internet.hosts.write_text(f"192.0.2.3 {NAME}\n")
    until("the new address", lambda: internet.home.tunnel()["endpoint"] == f"192.0.2.3:{PORT}")
    internet.await_tunnel()


@pytest.mark.parametrize("name", ["home", "gateway"])
def test_a_killed_daemon_at_either_end_comes_back_to_the_tunnel(internet: Internet, name: str) -> None:
    node = internet.home if name == "home" else internet.gateway
    other = internet.gateway if name == "home" else internet.home
    node.kill()
    assert "mw" in node.run("ip -o link")  # it carries on
    until("the neighbour being lost", lambda: other.rpc("neighbours") == [])
    node.start()
    internet.await_tunnel()
    assert node.run("ip -o link | grep -c ': mw'").strip() == "1"
