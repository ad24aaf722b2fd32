"""The story of tools/demo: a transfer, a price rise, a buyer that stops paying, and the closing of the books."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from payments.adapters.chain_client import KernelChainClient
from payments.ports import ChainError
from tools.lab import network
from tools.lab.lab import ROOT, Lab, require_root
from tools.lab.state import LabError
from tools.lab.topology import SECURITIES, Link, Node, Topology
from tools.ns import exit_on_signals
from tools.showcase import books
from tools.showcase.screen import Row, Screen, sat, sat_per_mb

MB = 1_000_000
PORT = 8080
SAT_PER_MB = 1_000_000  # in msat per GB
# The rise more than doubles the price of the path: with less to gain some buyers wait for minutes (ADR 19).
CHEAP_FEE, RAISED_FEE, DEAR_FEE, EDGE_FEE = (n * SAT_PER_MB for n in (20, 300, 80, 50))
BUYER, ENTRY, CHEAP, DEAR, EXIT, SHOP = "buyer", "entry", "cheap", "dear", "exit", "shop"
FEES = {BUYER: EDGE_FEE, ENTRY: EDGE_FEE, CHEAP: CHEAP_FEE, DEAR: DEAR_FEE, EXIT: EDGE_FEE, SHOP: EDGE_FEE}
LINKS = ((BUYER, ENTRY), (ENTRY, CHEAP), (ENTRY, DEAR), (CHEAP, EXIT), (DEAR, EXIT), (EXIT, SHOP))
NODE_CONFIG: dict[str, dict[str, Any]] = {
    # Prices as high as these make a short transfer worth its on-chain fees; the metric is scaled down to match.
    "routing": {"price_weight": 16, "max_price_msat_per_gb": 1_000 * SAT_PER_MB},
    "price": {"price_notice": 3.0},
    # No free tier: the books are to show that all that was carried is paid.
    "payments": {"tick": 1.0, "min_confirmations": 1, "free_rate": 0},
}
CLAIM_PATIENCE = 7.0  # a payee waits 5 s for the payers' last words before it claims
QUIET = 2.5  # more than two ticks
TCP_HEADERS, SEGMENT = 52, 1448  # IPv4 and TCP with timestamps; what is left of 1500


class DemoError(Exception):
    """Something that the demo has to show was not observed."""


class Demo:
    def __init__(self, megabytes: int, kill: str | None, name: str, security: str) -> None:
        self.size = megabytes * MB
        self.kill = kill
        self.screen = Screen()
        self.events: list[dict[str, Any]] = []
        nodes = tuple(Node(name, fee, NODE_CONFIG) for name, fee in FEES.items())
        links = tuple(Link(a, b, "40mbit") for a, b in LINKS)
        self.lab = Lab(Topology(nodes, links, security), name=name, progress=self.screen.say)
        self._identities: dict[str, str] = {}
        self._bytes_before: dict[str, tuple[float, int]] = {}
        self._onchain_before: dict[str, int] = {}
        self._title = ""
        self._closing_since: float | None = None
        self._settled_at: tuple[int, float] | None = None

    def event(self, kind: str, text: str, **facts: Any) -> None:
        self.events.append({"at_seconds": round(self.screen.elapsed, 3), "event": kind, **facts})
        self.screen.say(text)

    # -- observing

    def until(self, what: str, is_so: Callable[[], bool], timeout: float = 120.0) -> float:
        """Seconds until it was so; meanwhile the screen is kept up to date. Raises DemoError."""
        started = time.monotonic()
        while not is_so():
            if time.monotonic() > started + timeout:
                raise DemoError(f"not seen within {timeout:.0f} s: {what}")
            if self.screen.is_due():
                self.draw()
            time.sleep(0.05)
        return time.monotonic() - started

    def next_hop(self, node: str) -> str:
        path = self.path(node)
        return "" if path is None else path["under"].removeprefix("to-")

    def path(self, node: str) -> dict[str, Any] | None:
        """The route from the node to the shop; None: none now, or it is the shop itself."""
        routes = self.lab.rpc(node, "routes")
        prefix = f"{self.lab.address(SHOP)}/32"
        return next((r for r in routes if r["prefix"] == prefix and r["selected"] and not r["origin"]), None)

    def asked_of_buyer(self) -> int | None:
        path = self.path(BUYER)
        return None if path is None else int(path["price_msat_per_gb"])

    def stands_still(self) -> bool:
        """Nothing arrives for two seconds."""
        before = self.received()
        time.sleep(2.0)
        return self.received() == before

    def row(self, node: str) -> Row:
        if not self.lab.is_running(node):
            return Row(node, "", 0, 0, 0.0, 0, 0, 0, "killed")
        path = self.path(node)
        ledger = self.lab.rpc(node, "ledger")
        neighbours = self.lab.rpc(node, "neighbours")
        sent, now = sum(n["bytes_out"] for n in neighbours), time.monotonic()
        then, sent_then = self._bytes_before.get(node, (now - 1, sent))
        self._bytes_before[node] = (now, sent)
        by_identity = {identity: name for name, identity in self._identities.items()}
        cut = [by_identity.get(e["peer"], "?") for e in ledger if e["state"] == "suspended"]
        return Row(
            name=node,
            next_hop="" if path is None else path["under"].removeprefix("to-"),
            metric=0 if path is None else path["metric"],
            price_msat_per_gb=0 if path is None else path["price_msat_per_gb"],
            rate_bits=max(sent - sent_then, 0) * 8 / (now - then),
            owes_msat=sum(n["owed_to_them_msat"] or 0 for n in neighbours),
            spent_msat=sum(e["sent_msat"] for e in ledger),
            earned_msat=sum(e["received_msat"] for e in ledger),
            state=f"has cut off {', '.join(cut)}" if cut else "",
        )

    def draw(self) -> None:
        self.screen.draw([self.row(node) for node in self.lab.nodes], self._title)

    def progress_file(self) -> Path:
        return self.lab.directory / "received"

    def received(self) -> int:
        text = self.progress_file().read_text() if self.progress_file().exists() else ""
        done = int(text) if text else 0
        self._title = f"upload from {BUYER} to {SHOP}: {done / MB:.1f} of {self.size / MB:.0f} MB"
        return done

    # -- the story

    def run(self) -> dict[str, Any]:
        with self.lab:
            self.discover()
            upload = self.start_upload()
            self.until("the first part of the upload", lambda: self.received() > self.size * 0.25, 300)
            self.first_payment()
            self.raise_price()
            if self.kill is not None:
                self.kill_and_restart(self.kill)
            self.until("half of the upload", lambda: self.received() > self.size * 0.6, 120)
            self.stop_paying()
            transfer = self.finish_upload(upload)
            self.close_channels()
            report = self.balance_books(transfer)
            namespaces = self.lab.state.namespaces
        left = network.existing(namespaces)
        if left:
            raise DemoError(f"namespaces left behind: {', '.join(left)}")
        self.event("cleaned", "the lab is gone: no namespace, no process")
        return report | {"events": self.events}

    def discover(self) -> None:
        seconds = self.lab.wait_routes()
        self.event("routes", f"every node has a route to every other, {seconds:.1f} s after the last daemon started")
        self.until("the cheap way being chosen", lambda: self.next_hop(ENTRY) == CHEAP)
        price = EDGE_FEE + CHEAP_FEE + EDGE_FEE
        self.until(f"the relays' fees in the buyer's price, {price} msat/GB", lambda: self.asked_of_buyer() == price)
        path = self.path(BUYER)
        if path is None:
            raise DemoError(f"no route from {BUYER} to {SHOP}")
        text = f"{BUYER} to {SHOP} by {ENTRY}, {CHEAP}, {EXIT}: {sat_per_mb(price)} sat/MB, metric {path['metric']}"
        self.event("path", text, price_msat_per_gb=price, metric=path["metric"])
        now = books.take(self.lab)
        self._identities = {name: status["identity"] for name, status in now.status.items()}
        self._onchain_before = {name: status["wallet"]["balance_sat"] for name, status in now.status.items()}
        if set(self._onchain_before.values()) != {self.lab.funds_sat}:
            raise DemoError(f"wallets hold {self._onchain_before}; each was given {self.lab.funds_sat} sat")

    def start_upload(self) -> Any:
        address, source = self.lab.address(SHOP), self.lab.directory / "upload"
        with source.open("wb") as file:
            file.truncate(self.size)
        sink = [sys.executable, "-m", "tools.showcase.sink", address, str(PORT), str(self.progress_file())]
        with (self.lab.directory / "sink.log").open("wb") as log:
            self.lab.popen(SHOP, ["env", f"PYTHONPATH={ROOT}", *sink], stdout=log, stderr=log)
        self.until("the shop being open", self.progress_file().exists)
        result = (self.lab.directory / "curl.out").open("wb")
        variables = {
            "connects": "num_connects",
            "uploaded": "size_upload",
            "status": "http_code",
            "seconds": "time_total",
        }
        facts = r"\n{" + ", ".join(f'"{key}": %{{{name}}}' for key, name in variables.items()) + "}"
        curl = ["curl", "--silent", "--show-error", "--upload-file", str(source), "--write-out", facts]
        with result:
            upload = self.lab.popen(BUYER, [*curl, f"http://{address}:{PORT}/upload"], stdout=result, stderr=result)
        self.event("upload", f"{BUYER} uploads {self.size / MB:.0f} MB to http://{address}:{PORT} with curl")
        return upload

    def first_payment(self) -> None:
        earned = {node: self.row(node).earned_msat for node in (ENTRY, CHEAP, EXIT)}
        if not all(earned.values()):
            raise DemoError(f"after a quarter of the transfer not every relay was paid: {earned}")
        text = ", ".join(f"{node} {sat(msat)} sat" for node, msat in earned.items())
        self.event("paid", f"relays are being paid: {text}", earned_msat=earned)

    def raise_price(self) -> None:
        before = self.received()
        self.lab.rpc(CHEAP, "price.set", fee_msat_per_gb=RAISED_FEE)
        self.event(
            "price", f"{CHEAP} raises its fee from {CHEAP_FEE // SAT_PER_MB} to {RAISED_FEE // SAT_PER_MB} sat/MB"
        )
        seconds = self.until(f"{ENTRY} turning to {DEAR}", lambda: self.next_hop(ENTRY) == DEAR)
        carried = self.carried(DEAR)
        self.until(f"traffic over {DEAR}", lambda: self.carried(DEAR) > carried + MB)
        self.until("the upload going on", lambda: self.received() > before)
        text = f"traffic moved to {DEAR}, {seconds:.2f} s after the rise; the connection goes on"
        self.event("moved", text, seconds=round(seconds, 3))

    def carried(self, node: str) -> int:
        return int(self.lab.rpc(node, "status")["totals"]["carried_bytes"])

    def ledger(self, node: str, peer: str) -> dict[str, Any]:
        entries = [e for e in self.lab.rpc(node, "ledger") if e["peer"] == self._identities[peer]]
        return dict(entries[0]) if entries else {"state": "open", "received_msat": 0}

    def kill_and_restart(self, node: str) -> None:
        self.lab.kill_node(node, signal.SIGKILL)
        self.event("killed", f"{node} is killed with SIGKILL")
        time.sleep(1.0)
        self.lab.start_node(node)
        seconds = self.lab.wait_routes()
        self._bytes_before.pop(node, None)
        self.event("restarted", f"{node} is back; all routes again after {seconds:.1f} s")

    def stop_paying(self) -> None:
        self.lab.rpc(BUYER, "pay.hold")
        self.event("held", f"{BUYER} stops paying")
        self.until("the cut-off", lambda: self.ledger(ENTRY, BUYER)["state"] == "suspended")
        entry = self.ledger(ENTRY, BUYER)
        unpaid = entry["billed_msat"] - entry["received_msat"]
        self.event(
            "cut off", f"{ENTRY} has cut off {BUYER}: {sat(unpaid)} sat unpaid, window {sat(entry['window_msat'])} sat"
        )
        self.until("the upload standing still", self.stands_still)  # what was under way arrives
        before = self.received()
        received = entry["received_msat"]
        self.lab.rpc(BUYER, "pay.resume")
        self.until("the buyer paying again", lambda: self.ledger(ENTRY, BUYER)["received_msat"] > received)
        self.until("being carried again", lambda: self.ledger(ENTRY, BUYER)["state"] == "open")
        self.until("the upload going on", lambda: self.received() > before)
        self.event("paid up", f"{BUYER} has paid, and is carried again")

    def finish_upload(self, upload: Any) -> dict[str, Any]:
        self.until("the end of the upload", lambda: self.received() >= self.size and upload.poll() is not None, 300)
        lines = (self.lab.directory / "curl.out").read_text().strip().splitlines()
        if upload.returncode != 0:
            raise DemoError(f"curl: exit code {upload.returncode}: {' '.join(lines)}")
        answer, facts = json.loads(lines[-2]), json.loads(lines[-1])
        if not (answer["received"] == facts["uploaded"] == self.size and facts["status"] == 201):
            raise DemoError(f"the transfer is not whole: {answer} {facts}")
        if facts["connects"] != 1:
            raise DemoError(f"the connection was lost: {facts['connects']} connections")
        layer3 = self.size + -(-self.size // SEGMENT) * TCP_HEADERS
        text = f"upload whole, in one connection: {self.size} bytes in {facts['seconds']:.1f} s"
        self.event("uploaded", text, **facts)
        self.until("the last debts being paid", self.is_settled)
        for node in self.lab.nodes:  # nothing more is owed; a late packet is not to open a new channel
            self.lab.rpc(node, "pay.hold")
        return {"payload_bytes": self.size, "expected_layer3_bytes": layer3, "seconds": facts["seconds"]}

    def is_settled(self) -> bool:
        """No debt is left that is worth a payment, every payment has arrived, and none was made for a while."""
        self._title = "settling"
        entries = [entry for name in self.lab.nodes for entry in self.lab.rpc(name, "ledger")]
        sent, received = (sum(entry[key] for entry in entries) for key in ("sent_msat", "received_msat"))
        if sent != received or any(abs(entry["balance_msat"]) >= 1000 for entry in entries):
            self._settled_at = None
        elif self._settled_at is None or self._settled_at[0] != sent:
            self._settled_at = (sent, time.monotonic())
        return self._settled_at is not None and time.monotonic() > self._settled_at[1] + QUIET

    def close_channels(self) -> None:
        for node in self.lab.nodes:
            self.lab.rpc(node, "channel.close")
        seconds = self.until("claims being confirmed", self.are_claims_confirmed)
        self.event("claimed", f"payees have claimed, confirmed after {seconds:.1f} s")
        pending = self.open_channels("out")
        if pending:
            height = max(channel["expiry_height"] for channel in pending)
            self.mine_to(height + 1)
            self.event(
                "expired", f"{len(pending)} channels not worth their claim have expired; payers take their money back"
            )
        self.until("all channels being closed", lambda: not self.open_channels("out"))

    def open_channels(self, direction: str) -> list[dict[str, Any]]:
        channels = [c for node in self.lab.nodes for c in self.lab.rpc(node, "channels")]
        return [c for c in channels if c["direction"] == direction and c["state"] != "closed"]

    def are_claims_confirmed(self) -> bool:
        """Nothing is under way; channels that are not worth their claim stay in the state closing."""
        self._title = "closing channels"
        incoming = self.open_channels("in")
        if any(channel["state"] != "closing" for channel in incoming):
            self._closing_since = None
        elif self._closing_since is None:
            self._closing_since = time.monotonic()
        return self._closing_since is not None and (
            not incoming or time.monotonic() > self._closing_since + CLAIM_PATIENCE
        )

    def mine_to(self, height: int) -> None:
        async def mine() -> None:
            client = KernelChainClient(self.lab.chain_socket)
            try:
                missing = height - (await client.tip()).height
                if missing > 0:
                    await client.mine(missing)
            finally:
                client.close()

        trio.run(mine)

    # -- the books

    def balance_books(self, transfer: dict[str, Any]) -> dict[str, Any]:
        now = books.take(self.lab)
        transactions = books.chain_transactions(self.lab, now)
        by_node = books.node_books(now, self._onchain_before, transactions)
        hops = books.hops(self.lab, now)
        wrong = books.problems(by_node, hops, transactions, restarted=self.kill)
        first = next(hop for hop in hops if (hop.from_node, hop.to_node) == (BUYER, ENTRY))
        expected = transfer["expected_layer3_bytes"]
        # What a relay further on refused, while a channel to it was being opened, came by a second time.
        again = sum(hop.bytes_refused for hop in hops) - first.bytes_refused
        for counted in (first.bytes_sender - first.bytes_refused, first.bytes_receiver - first.bytes_refused):
            slack = books.TOLERANCE * expected
            if self.kill not in (BUYER, ENTRY) and not expected - slack <= counted <= expected + slack + again:
                wrong.append(f"the transfer takes {expected} B at layer 3; {counted} B were metered")
        self.summary(by_node, hops, transactions)
        if wrong:
            raise DemoError("the books do not balance: " + "; ".join(wrong))
        fees = sum(t.fee_sat for t in transactions)
        self.event("balanced", f"the books balance: msat earned = msat spent, on-chain difference = {fees} sat of fees")
        return {
            "nodes": {name: asdict(b) for name, b in by_node.items()},
            "hops": [hop.as_json() for hop in hops],
            "transactions": [asdict(t) for t in transactions],
            "transfer": transfer,
        }

    def summary(
        self, by_node: dict[str, books.NodeBooks], hops: list[books.Hop], transactions: list[books.ChainTransaction]
    ) -> None:
        self.screen.say("summary")
        print(
            f"\n  {'node':<7}{'carried MB':>12}{'earned sat':>14}{'spent sat':>14}"
            f"{'chain before':>14}{'after':>10}{'fees':>6}"
        )
        for name, b in by_node.items():
            print(
                f"  {name:<7}{b.bytes_carried / MB:>12.2f}{sat(b.earned_msat):>14}{sat(b.spent_msat):>14}"
                f"{b.onchain_sat_before:>14,}{b.onchain_sat_after:>10,}{b.fees_sat:>6,}"
            )
        print(f"\n  {'hop':<16}{'sent B':>14}{'received B':>14}{'refused B':>11}{'paid sat':>14}{'sat/MB':>9}")
        for hop in hops:
            price = hop.paid_msat / 1000 / (hop.bytes_sender / MB) if hop.bytes_sender else 0.0
            name = f"{hop.from_node} > {hop.to_node}"
            print(
                f"  {name:<16}{hop.bytes_sender:>14,}{hop.bytes_receiver:>14,}{hop.bytes_refused:>11,}"
                f"{sat(hop.paid_msat):>14}{price:>9.2f}"
            )
        print(f"\n  {'height':>6}  {'kind':<8}{'fee sat':>8}  {'node':<7}txid")
        for t in transactions:
            print(f"  {t.height or '-':>6}  {t.kind:<8}{t.fee_sat:>8}  {t.node:<7}{t.txid}")
        print(flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Six nodes in namespaces: a real, paid mesh, from discovery to confirmed Bitcoin transactions.",
        epilog="Example: tools/demo --report /tmp/report.json. Exit code 0 only if everything was observed.",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument(
        "--megabytes", type=int, default=150, metavar="N", help="size of the upload (default 150, at least 100)"
    )
    parser.add_argument(
        "--kill", choices=list(FEES), help="kill this daemon with SIGKILL in the middle, and restart it"
    )
    parser.add_argument(
        "--name", default="demo", help="of the lab (default demo): another one, to run two demos at the same time"
    )
    parser.add_argument(
        "--security",
        choices=SECURITIES,
        default="none",
        help="of the links: as they are, or with an encrypted tunnel on each (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.megabytes < 100:
        parser.error(f"--megabytes {arguments.megabytes}: expected at least 100")
    exit_on_signals()
    demo = Demo(arguments.megabytes, arguments.kill, arguments.name, arguments.security)
    try:
        require_root()
        report = demo.run()
    except (DemoError, LabError, network.NetworkError, ChainError) as error:
        print(f"\ntools/demo: {error}", file=sys.stderr)
        return 1
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(report, indent=2) + "\n")
        print(f"report: {arguments.report}")
    print("demo: everything was observed, and the books balance")
    return 0


if __name__ == "__main__":
    sys.exit(main())
