"""What the lab tests share: a mesh of real daemons, traffic in it, and what to ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from payments.adapters.chain_client import KernelChainClient
from tools.lab.kernel_state import routes_of_meshd
from tools.lab.lab import Lab
from tools.lab.network import interface_to
from tools.lab.topology import Link, Node, Topology
from tools.replayer.replay import Replay, Run

MB = 1_000_000
SAT_PER_MB = 1_000_000  # in msat per GB
RATE = "40mbit"
TICK = 1.0
METRICS_PORT = 9676
CONFIG: dict[str, dict[str, Any]] = {
    # As in the demo: a short transfer is worth its on-chain fees, and the metric is scaled down to match.
    "routing": {"price_weight": 16, "max_price_msat_per_gb": 1_000 * SAT_PER_MB, "hello_interval": 1.0},
    "price": {"price_notice": 3.0},
    # No free tier: what is carried is billed, to the byte.
    "payments": {"tick": TICK, "min_confirmations": 1, "free_rate": 0},
    "node": {"metrics_port": METRICS_PORT},
}
QUIET = 2.5 * TICK  # no payment for so long: there will be none
PATIENCE = 60.0  # the machine may be busy with other things
HEADERS = 52 / 1448  # IPv4 and TCP with timestamps, beside a full segment's payload
FULL_PACKET = 1514  # with its Ethernet header
WITNESS = "witness"
PUMP = Path(__file__).with_name("pump.py")

Record = dict[str, Any]


def until(what: str, is_so: Callable[[], bool], timeout: float = PATIENCE, *, interval: float = 0.05) -> float:
    """Seconds until it was so, looking every `interval`; the test fails if it is not in time."""
    started = time.monotonic()
    while not is_so():
        if time.monotonic() > started + timeout:
            pytest.fail(f"not seen within {timeout:.0f} s: {what}")
        time.sleep(interval)
    return time.monotonic() - started


@dataclass
class Transfer:
    """A TCP connection from one node to another, at work."""

    sender: subprocess.Popen[Any]
    progress: Path
    report: Path

    def received(self) -> int:
        return int(self.progress.read_text())

    def await_more(self, count: int) -> None:
        """Until so many bytes more than now have arrived."""
        target = self.received() + count
        until(f"{count} bytes more", lambda: self.received() >= target)

    def finish(self, *, now: bool = False) -> int:
        """The bytes that were carried; the test fails if the connection broke or lost any."""
        if now:
            self.sender.terminate()
        until("the end of the transfer", lambda: self.sender.poll() is not None)
        assert self.sender.returncode == 0, f"the transfer broke; see {self.report.with_suffix('.log')}"
        return int(json.loads(self.report.read_text())["received"])


class Mesh:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.identity: dict[str, str] = {node: lab.rpc(node, "status")["identity"] for node in lab.nodes}
        self._transfers = 0

    # -- traffic

    def transfer(self, sender: str, receiver: str, count: int = 10**12) -> Transfer:
        """Starts it; the sink is another one each time."""
        self._transfers += 1
        host, port = self.lab.address(receiver), str(5000 + self._transfers)
        progress = self.lab.directory / f"progress-{self._transfers}"
        report = self.lab.directory / f"report-{self._transfers}"
        with report.with_suffix(".log").open("wb") as log:
            sink = [sys.executable, str(PUMP), "sink", host, port, str(progress)]
            self.lab.popen(receiver, sink, stdout=log, stderr=log)
            until("the sink", progress.exists)
            send = [sys.executable, str(PUMP), "send", host, port, str(count), str(report)]
            return Transfer(self.lab.popen(sender, send, stdout=log, stderr=log), progress, report)

    def answers(self, node: str, host: str) -> bool:
        """Whether the address answers to a packet of the node."""
        done = self.lab.exec(node, [sys.executable, str(PUMP), "echo", host], check=False)
        assert done.stderr == ""
        return done.returncode == 0

    # -- what the daemons say

    def next_hop(self, node: str, destination: str) -> str | None:
        chosen = self.lab.rpc(node, "path", destination=self.lab.address(destination))["chosen"]
        return None if chosen is None else str(chosen["under"]).removeprefix("to-")

    def price(self, node: str, destination: str) -> int:
        return int(self.lab.rpc(node, "path", destination=self.lab.address(destination))["chosen"]["price_msat_per_gb"])

    def ledger(self, node: str, peer: str) -> Record:
        """The node's account with the peer; zeroes if there is none."""
        blank = dict.fromkeys(("billed_msat", "sent_msat", "received_msat", "balance_msat", "window_msat"), 0)
        found = [entry for entry in self.lab.rpc(node, "ledger") if entry["peer"] == self.identity[peer]]
        return dict(found[0]) if found else {"state": "open", **blank}

    def neighbour(self, node: str, peer: str) -> Record:
        rows = [n for n in self.lab.rpc(node, "neighbours") if n["under"] == interface_to(peer)]
        assert len(rows) == 1
        return dict(rows[0])

    def bytes_out(self, node: str, peer: str) -> int:
        return sum(n["bytes_out"] for n in self.lab.rpc(node, "neighbours") if n["under"] == interface_to(peer))

    def bytes_in(self, node: str, peer: str) -> int:
        return sum(n["bytes_in"] for n in self.lab.rpc(node, "neighbours") if n["under"] == interface_to(peer))

    def forwarded(self, node: str, peer: str) -> int:
        """The bytes that the node really carried on for the peer, by the witness's count. Survives its daemon."""
        listed = self.lab.exec(node, ["nft", "-j", "list", "counter", "ip", WITNESS, f"from-{peer}"]).stdout
        return int(next(item["counter"]["bytes"] for item in json.loads(listed)["nftables"] if "counter" in item))

    def dropped(self, node: str, peer: str) -> int:
        """Packets that the queue of the link dropped: the node's meter has them, its neighbour's has not."""
        listed = self.lab.exec(node, ["tc", "-s", "-j", "qdisc", "show", "dev", interface_to(peer)]).stdout
        return int(next(queue["drops"] for queue in json.loads(listed) if queue.get("root")))

    def carried(self, node: str) -> int:
        return int(self.lab.rpc(node, "status")["totals"]["carried_bytes"])

    def pairs(self) -> list[tuple[str, str]]:
        """Both directions of every link."""
        return [pair for link in self.lab.topology.links for pair in ((link.a, link.b), (link.b, link.a))]

    def settle(self) -> None:
        """Until nothing is owed that is worth a payment, all that was paid has arrived, and nothing more is paid."""
        seen: tuple[int, float] | None = None

        def is_settled() -> bool:
            nonlocal seen
            entries = [entry for node in self.lab.nodes for entry in self.lab.rpc(node, "ledger")]
            sent, received = (sum(entry[key] for entry in entries) for key in ("sent_msat", "received_msat"))
            if sent != received or any(abs(entry["balance_msat"]) >= 1000 for entry in entries):
                seen = None
            elif seen is None or seen[0] != sent:
                seen = sent, time.monotonic()
            return seen is not None and time.monotonic() > seen[1] + QUIET

        until("all debts being paid", is_settled)

    def assert_paid_as_received(self) -> None:
        for payer, payee in self.pairs():
            assert self.ledger(payer, payee)["sent_msat"] == self.ledger(payee, payer)["received_msat"], (payer, payee)

    def replayed(self, node: str) -> list[Run]:
        """The lives of its daemon, run again from its recording; the test fails if one says something else."""
        replay = Replay(self.lab.recording(node))
        replay.run()
        assert replay.difference is None, f"{node}: {replay.difference}"
        return replay.runs

    # -- the chain

    def open_channels(self, direction: str) -> list[Record]:
        channels = [channel for node in self.lab.nodes for channel in self.lab.rpc(node, "channels")]
        return [c for c in channels if c["direction"] == direction and c["state"] != "closed"]

    def mine_past(self, height: int) -> None:
        async def mine() -> None:
            client = KernelChainClient(self.lab.chain_socket)
            try:
                missing = height + 1 - (await client.tip()).height
                if missing > 0:
                    await client.mine(missing)
            finally:
                client.close()

        trio.run(mine)


def topology(
    links: list[tuple[str, str]],
    fee_by_node: dict[str, int],
    *,
    payments: dict[str, Any] | None = None,
    security: str = "none",
) -> Topology:
    """`payments`: keys of that table beyond CONFIG's."""
    config = CONFIG | {"payments": CONFIG["payments"] | (payments or {})}
    nodes = tuple(Node(name, fee, config) for name, fee in fee_by_node.items())
    return Topology(nodes, tuple(Link(a, b, RATE) for a, b in links), security)


def post_witnesses(lab: Lab) -> None:
    """Rules that count what is forwarded, beside the daemon's own and behind its gate. What TCP sends again is in.

    When it returns nothing takes the fast lane, which would pass them by; daemons look once a second for such rules.
    """
    for node in lab.nodes:
        peers = lab.topology.neighbours(node)
        counters = "\n".join(f"counter from-{peer} {{}}" for peer in peers)
        rules = "\n".join(f'iifname "{interface_to(peer)}" counter name "from-{peer}"' for peer in peers)
        hook = "type filter hook forward priority filter + 20; policy accept;"
        rules = f"table ip {WITNESS} {{\n{counters}\nchain forward {{ {hook}\n{rules}\n}}\n}}\n"
        lab.exec(node, ["nft", "-f", "-"], stdin=rules)
    for node in filter(lab.is_running, lab.nodes):
        until("the fast lane making way", lambda node=node: lab.rpc(node, "status")["fast_lane"]["problem"] is not None)


def await_routes(lab: Lab) -> None:
    """Until every node has a route to every other, of both families: what is looked at then changes no more."""
    lab.wait_routes(PATIENCE)
    wanted = 2 * (len(lab.nodes) - 1)
    until("overlay routes too", lambda: all(routes_of_meshd(lab, node) >= wanted for node in lab.nodes))


def lab_name(subject: str) -> str:
    """Another one in each process: tests of two checkouts may run at once. `subject`: at most 7 letters."""
    return f"t{os.getpid()}-{subject}"


@contextmanager
def running(
    subject: str, graph: Topology, progress: Callable[[str], None] = lambda _: None, *, has_chain: bool = True
) -> Iterator[Mesh]:
    """The mesh, when every node has a route to every other."""
    with Lab(graph, name=lab_name(subject), record=True, has_chain=has_chain, progress=progress) as lab:
        post_witnesses(lab)
        await_routes(lab)
        yield Mesh(lab)
