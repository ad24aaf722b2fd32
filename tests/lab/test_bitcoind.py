"""Three daemons on a real Bitcoin node, with wallets of both kinds; the node is killed in the middle of a transfer.

Needs Bitcoin Core (or a relative of it): `BITCOIND`, or a bitcoind on PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from payments.adapters.bitcoind_rpc import Rpc, RpcConfig, RpcError
from payments.ports import ChainError
from tests.lab.mesh import CONFIG, MB, RATE, SAT_PER_MB, Mesh, await_routes, lab_name, post_witnesses, until
from tools.lab.lab import Lab
from tools.lab.network import inside
from tools.lab.topology import Link, Node, Topology

pytestmark = pytest.mark.lab

BUYER, RELAY, SHOP = "n1", "n2", "n3"
NODES = (BUYER, RELAY, SHOP)
FEE = 20 * SAT_PER_MB
RPC_PORT, HOST_PORT = 18443, 28443
FORWARD = str(Path(__file__).with_name("forward.py"))
FUNDS = 0.02  # bitcoins


class Bitcoind:
    def __init__(self, program: str, directory: Path) -> None:
        self._argv = [program, "-regtest", f"-datadir={directory}", "-txindex=1", "-listen=0", "-server=1"]
        self._argv += [f"-rpcport={HOST_PORT}", "-fallbackfee=0.00002"]
        self.cookie = directory / "regtest" / ".cookie"
        self._process: subprocess.Popen[bytes] | None = None
        self._end = threading.Event()
        self._miner = threading.Thread(target=self._mine)

    def ask(self, method: str, *params: Any) -> Any:
        return trio.run(Rpc(RpcConfig(HOST_PORT, cookie=self.cookie, timeout=300.0)).call, Any, method, *params)

    def start(self) -> None:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL)
        until("bitcoind", self._is_up, 120.0)

    def _is_up(self) -> bool:
        try:
            self.ask("getblockcount")
        except (ChainError, RpcError):
            return False
        return True

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def mine_each_second(self) -> None:
        self._miner.start()

    def _mine(self) -> None:
        while not self._end.wait(1.0):
            try:
                self.ask("generatetoaddress", 1, self.home)
            except (ChainError, RpcError):
                time.sleep(0.5)

    def prepare(self) -> None:
        for name in ("home", BUYER, SHOP):
            self.ask("createwallet", name)
        self.home = self._wallet("home", "getnewaddress", "", "bech32")
        self.ask("generatetoaddress", 110, self.home)

    def pay(self, address: str) -> None:
        self._wallet("home", "sendtoaddress", address, FUNDS)

    def _wallet(self, name: str, method: str, *params: Any) -> Any:
        config = RpcConfig(HOST_PORT, cookie=self.cookie, path=f"/wallet/{name}", timeout=300.0)
        return trio.run(Rpc(config).call, Any, method, *params)

    def close(self) -> None:
        self._end.set()
        if self._miner.is_alive():
            self._miner.join()
        self.kill()


@contextmanager
def running(program: str, directory: Path) -> Iterator[tuple[Mesh, Bitcoind]]:
    node = Bitcoind(program, directory)
    node.start()
    bridge = directory / "rpc"
    bridges = [subprocess.Popen([sys.executable, FORWARD, f"unix:{bridge}", f"tcp:{HOST_PORT}"])]
    try:
        node.prepare()
        chain = {"backend": "bitcoind", "rpc_port": RPC_PORT, "rpc_cookie": str(node.cookie)}
        own = {name: {"wallet": "bitcoind", "rpc_wallet": name} for name in (BUYER, SHOP)}
        nodes = tuple(Node(name, FEE, CONFIG | {"chain": chain | own.get(name, {})}) for name in NODES)
        found: list[Lab] = []

        def look(step: str) -> None:
            if step.startswith("starting 3 daemons"):
                for name in NODES:
                    argv = [sys.executable, FORWARD, f"tcp:{RPC_PORT}", f"unix:{bridge}"]
                    bridges.append(subprocess.Popen(inside(found[0].namespace(name), argv)))

        graph = Topology(nodes, (Link(BUYER, RELAY, RATE), Link(RELAY, SHOP, RATE)), "none")
        found.append(Lab(graph, name=lab_name("btc"), record=True, has_chain=False, progress=look))
        with found[0] as lab:
            post_witnesses(lab)
            await_routes(lab)
            yield Mesh(lab), node
    finally:
        for each in bridges:  # those of the nodes have ended with the lab
            each.terminate()
            each.wait()
        node.close()


def test_daemons_pay_each_other_over_a_real_node_that_is_killed_meanwhile(lab_base: Path, tmp_path: Path) -> None:
    program = os.environ.get("BITCOIND") or shutil.which("bitcoind")
    if program is None:
        pytest.skip("no bitcoind: neither BITCOIND nor one on PATH")
    with running(program, tmp_path) as (mesh, node):
        for name in NODES:
            node.pay(mesh.lab.rpc(name, "wallet.address", label="funds")["address"])
        node.mine_each_second()
        wanted = round(FUNDS * 1e8)
        for name in NODES:
            until(f"{name}'s funds", lambda name=name: mesh.lab.rpc(name, "wallet.balance")["confirmed_sat"] == wanted)  # type: ignore[misc]
        upload = mesh.transfer(BUYER, SHOP)
        upload.await_more(5 * MB)
        node.kill()
        node.start()
        upload.await_more(5 * MB)
        upload.finish(now=True)
        mesh.settle()
        mesh.assert_paid_as_received()
        paid_msat = mesh.ledger(RELAY, BUYER)["received_msat"]
        assert paid_msat > 100_000
        used = {channel["channel_id"] for channel in mesh.open_channels("in") if channel["cumulative_msat"] > 0}
        for name in (RELAY, SHOP):
            mesh.lab.rpc(name, "channel.close")

        def are_closed() -> bool:
            left = mesh.open_channels("out") + mesh.open_channels("in")  # new ones may be opened meanwhile
            return not used & {channel["channel_id"] for channel in left}

        until("the channels that were paid through being closed", are_closed)
        assert mesh.lab.rpc(RELAY, "wallet.balance")["confirmed_sat"] > wanted - 10_000
        swept = mesh.lab.rpc(BUYER, "wallet.sweep", everything=True)
        assert swept["broadcast"]
