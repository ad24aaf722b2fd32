"""`kill -9` at random points under load: real daemons in namespaces that pay each other for traffic both ways.

A buyer at either end of a line pays the relay between them. Each time one of the three daemons, or two, are killed at a
random moment and started again; the traffic goes on. Then it is paused until all is settled, and the books of both
ends, the kernel's own count of what was carried and the state in the kernel are compared with those from before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.bench.common import machine
from tools.killer.books import Books, Bound, violations
from tools.lab.kernel_state import difference, routes_of_meshd, snapshot
from tools.lab.lab import Lab
from tools.lab.network import interface_to
from tools.lab.state import own_base
from tools.lab.topology import Link, Node, Topology
from tools.ns import exit_on_signals

BUYERS, RELAY = ("n1", "n3"), "n2"
NODES = ("n1", "n2", "n3")
PRICE_MSAT_PER_GB = 40_000_000  # 40 sat/MB
BYTES_PER_SECOND = 500_000  # from each buyer
MAX_WINDOW_MSAT = 20_000
READING_INTERVAL = 0.5  # the longest between two readings of the meter
TICK = 1.0
PORT = 5001
PATIENCE = 120.0
QUIET = 2.5 * TICK
WITNESS = "witness"
TRAFFIC = Path(__file__).with_name("traffic.py")
CONFIG: dict[str, dict[str, Any]] = {
    "routing": {"price_weight": 16, "max_price_msat_per_gb": 1_000_000_000, "hello_interval": 1.0},
    "price": {"price_notice": 3.0},
    "payments": {"tick": TICK, "min_confirmations": 1, "free_rate": 0, "max_window_msat": MAX_WINDOW_MSAT},
}
BOUND = Bound(PRICE_MSAT_PER_GB, MAX_WINDOW_MSAT, int(BYTES_PER_SECOND * READING_INTERVAL) * PRICE_MSAT_PER_GB // 10**9)


class NotSeenError(Exception):
    """What should have come about has not, in ample time."""


def _until(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise NotSeenError(f"not seen within {PATIENCE:.0f} s: {what}")
        time.sleep(0.1)


class Field:
    """The lab at work. `kill` and `check` in turn."""

    def __init__(self, lab: Lab, rng: random.Random) -> None:
        self._lab = lab
        self._rng = rng
        self._identity: dict[str, str] = {node: lab.rpc(node, "status")["identity"] for node in lab.nodes}
        self._clean = {node: snapshot(lab, node) for node in lab.nodes}
        self._senders = [self._traffic(buyer, other) for buyer, other in (BUYERS, BUYERS[::-1])]
        self.kills: Counter[str] = Counter()
        _until("the first payments of both", lambda: min(self._received(buyer) for buyer in BUYERS) > 0)
        self.settle()
        self.books = {buyer: self._read(buyer) for buyer in BUYERS}

    def _traffic(self, sender: str, receiver: str) -> subprocess.Popen[Any]:
        address, port = self._lab.address(receiver), str(PORT)
        self._lab.popen(receiver, [sys.executable, str(TRAFFIC), "sink", address, port])
        argv = [sys.executable, str(TRAFFIC), "send", address, port, str(BYTES_PER_SECOND)]
        return self._lab.popen(sender, argv)

    def pause(self, *, on: bool) -> None:
        for sender in self._senders:
            sender.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def kill(self) -> list[str]:
        """One daemon, or two at once, at a random moment under load; then they are started again."""
        self.pause(on=False)
        time.sleep(self._rng.uniform(0.0, 2.0))
        killed = self._rng.sample(NODES, k=self._rng.choice((1, 1, 1, 2)))
        for node in killed:
            self._lab.kill_node(node, signal.SIGKILL)
        self.kills.update(killed)
        time.sleep(self._rng.uniform(0.0, 0.5))
        for node in killed:
            self._lab.start_node(node)
        self._lab.wait_routes(PATIENCE)
        time.sleep(self._rng.uniform(0.0, 1.0))
        return killed

    def settle(self) -> None:
        """Pauses the traffic until nothing is owed that is worth a payment, and nothing more is paid."""
        self.pause(on=True)
        seen: tuple[int, float] | None = None

        def is_settled() -> bool:
            nonlocal seen
            entries = [entry for node in NODES for entry in self._lab.rpc(node, "ledger")]
            sent, received = (sum(entry[key] for entry in entries) for key in ("sent_msat", "received_msat"))
            if sent != received or not sent or any(abs(entry["balance_msat"]) >= 1000 for entry in entries):
                seen = None
            elif seen is None or seen[0] != sent:
                seen = sent, time.monotonic()
            return seen is not None and time.monotonic() > seen[1] + QUIET

        _until("all debts being paid", is_settled)

    def _received(self, buyer: str) -> int:
        entries = self._lab.rpc(RELAY, "ledger")
        return sum(int(entry["received_msat"]) for entry in entries if entry["peer"] == self._identity[buyer])

    def check(self, killed: Sequence[str]) -> tuple[list[str], int]:
        """What is wrong, and the most that a seller lost by this."""
        found, lost = [], 0
        for buyer in BUYERS:
            now = self._read(buyer)
            found += [f"{buyer}: {text}" for text in violations(self.books[buyer], now, BOUND)]
            lost = max(lost, now.lost_msat(PRICE_MSAT_PER_GB) - self.books[buyer].lost_msat(PRICE_MSAT_PER_GB))
            self.books[buyer] = now
        for node in killed:
            try:
                _until(f"a clean kernel at {node}", lambda node=node: not self._stale(node))  # type: ignore[misc]
            except NotSeenError:
                found.append(f"{node}: stale in the kernel: {self._stale(node)}")
        return found, lost

    def _stale(self, node: str) -> dict[str, list[str]]:
        return difference(self._clean[node], snapshot(self._lab, node))

    def _read(self, buyer: str) -> Books:
        at_buyer, at_relay = self._ledger(buyer, RELAY), self._ledger(RELAY, buyer)
        payer = self._channels(buyer, RELAY, "out")
        payee = self._channels(RELAY, buyer, "in")
        counters = json.loads(self._lab.exec(RELAY, ["nft", "-j", "list", "counters", "table", "ip", WITNESS]).stdout)
        carried = {c["counter"]["name"]: c["counter"]["bytes"] for c in counters["nftables"] if "counter" in c}
        return Books(
            carried_bytes=int(carried[f"from-{buyer}"]),
            billed_msat=at_relay["billed_msat"],
            sent_msat=at_buyer["sent_msat"],
            received_msat=at_relay["received_msat"],
            window_msat=at_relay["window_msat"],
            paid_by_channel={name: (payer.get(name, 0), payee.get(name, 0)) for name in payer | payee},
        )

    def _ledger(self, node: str, peer: str) -> dict[str, Any]:
        (entry,) = [entry for entry in self._lab.rpc(node, "ledger") if entry["peer"] == self._identity[peer]]
        return dict(entry)

    def _channels(self, node: str, peer: str, direction: str) -> dict[str, int]:
        """Those through which anything was paid."""
        rows = self._lab.rpc(node, "channels")
        wanted = [row for row in rows if row["peer"] == self._identity[peer] and row["direction"] == direction]
        return {row["channel_id"]: row["cumulative_msat"] for row in wanted if row["cumulative_msat"]}


def _post_witness(lab: Lab) -> None:
    """Rules of another table that count what the relay really forwards, behind the daemon's gate."""
    counters = "\n".join(f"counter from-{peer} {{}}" for peer in BUYERS)
    rules = "\n".join(f'iifname "{interface_to(peer)}" counter name "from-{peer}"' for peer in BUYERS)
    hook = "type filter hook forward priority filter + 20; policy accept;"
    lab.exec(
        RELAY,
        ["nft", "-f", "-"],
        stdin=f"table ip {WITNESS} {{\n{counters}\nchain forward {{ {hook}\n{rules}\n}}\n}}\n",
    )


def run(kills: int, seed: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Until so many kills were survived, or one was not. Needs root."""
    rng = random.Random(seed)
    nodes = tuple(Node(name, PRICE_MSAT_PER_GB, CONFIG) for name in NODES)
    graph = Topology(nodes, (Link("n1", "n2", "40mbit"), Link("n2", "n3", "40mbit")))
    started, failures, losses, total = time.monotonic(), [], [0], 0
    with Lab(graph, name=f"k{os.getpid()}", progress=say) as lab:
        _post_witness(lab)
        lab.wait_routes(PATIENCE)
        _until("overlay routes", lambda: all(routes_of_meshd(lab, node) >= 4 for node in lab.nodes))
        field = Field(lab, rng)
        while sum(field.kills.values()) < kills:
            killed = field.kill()
            field.settle()
            found, lost = field.check(killed)
            losses.append(lost)
            total = sum(field.kills.values())
            say(f"{total} of {kills}: {' and '.join(killed)}; lost {lost} msat of {BOUND.msat}; {found or 'well'}")
            failures += [{"kill": total, "killed": killed, "what": text} for text in found]
        books = {buyer: asdict(each) for buyer, each in field.books.items()}
    return {
        "kills": total,
        "kills_by_node": dict(field.kills),
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "bound_msat": BOUND.msat,
        "largest_loss_msat": max(losses),
        "losses_above_a_sat": sum(loss > 1000 for loss in losses),
        "failures": failures,
        "books": books,
        "machine": machine(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when anybody lost more than the bound, or anything else was found."""
    parser = argparse.ArgumentParser(prog="tools/kill", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many (default 200; about eight seconds each)")
    parser.add_argument("--seed", default="1", help="of what is killed when")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    exit_on_signals()
    with own_base("meshkill-"):
        found = run(options.kills, options.seed, lambda text: print(text, file=sys.stderr, flush=True))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['kills']} kills, {len(found['failures'])} failures; ", end="")
        print(f"the largest loss was {found['largest_loss_msat']} msat of at most {found['bound_msat']}")
    return int(bool(found["failures"]))


if __name__ == "__main__":
    sys.exit(main())
