"""n1 to n4 by a cheap relay (n2) and a dear one (n3): carried, metered, paid, moved, cut off, and settled on the chain.

The tests go through the life of one mesh, in their order.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.mesh import FULL_PACKET, HEADERS, MB, SAT_PER_MB, TICK, Mesh, Transfer, running, topology, until
from tools.showcase import books

pytestmark = pytest.mark.lab

BUYER, CHEAP, DEAR, SHOP = "n1", "n2", "n3", "n4"
CHEAP_FEE, RAISED_FEE, DEAR_FEE = 50 * SAT_PER_MB, 400 * SAT_PER_MB, 200 * SAT_PER_MB
FEES = {BUYER: DEAR_FEE, CHEAP: CHEAP_FEE, DEAR: DEAR_FEE, SHOP: DEAR_FEE}
LINKS = [(BUYER, CHEAP), (BUYER, DEAR), (CHEAP, SHOP), (DEAR, SHOP)]
PRICE_SUB_TLV = 112
SIZE = 30 * MB
WORTH_CLAIMING = 700_000  # msat; at the lab's fee rate a claim of one channel takes less


class Diamond(Mesh):
    def __init__(self, mesh: Mesh, capture: Path) -> None:
        super().__init__(mesh.lab)
        self.capture = capture
        self.onchain_before = {node: self.lab.rpc(node, "status")["wallet"]["balance_sat"] for node in self.lab.nodes}


@pytest.fixture(scope="module")
def diamond(lab_base: Path) -> Iterator[Diamond]:
    with running("diamond", topology(LINKS, FEES)) as mesh:
        yield Diamond(mesh, mesh.lab.directory / "babel.pcap")


@pytest.fixture
def capture(diamond: Diamond) -> Iterator[subprocess.Popen[Any]]:
    """tshark, writing down what Babel says on the link from n1 to n2."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    diamond.capture.touch(mode=0o666)
    command = ["tshark", "-q", "-i", f"to-{CHEAP}", "-f", "udp port 6696", "-w", str(diamond.capture)]
    recorder = diamond.lab.popen(BUYER, command)
    until("packets in the capture", lambda: bool(_decoded(diamond.capture, "babel")))
    yield recorder
    recorder.terminate()
    recorder.wait()


def _decoded(capture: Path, display_filter: str) -> list[str]:
    command = ["tshark", "-r", str(capture), "-Y", display_filter]
    # A capture that still grows may end in the middle of a packet: exit code 2, after all that is whole was shown.
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def test_traffic_goes_over_the_cheap_relay_and_each_hop_is_metered_and_paid(diamond: Diamond) -> None:
    # A route is there as soon as one of the two relays is; the acknowledgements have theirs.
    until("the cheap way there", lambda: diamond.next_hop(BUYER, SHOP) == CHEAP)
    until("the cheap way back", lambda: diamond.next_hop(SHOP, BUYER) == CHEAP)
    assert diamond.price(BUYER, SHOP) == CHEAP_FEE
    assert diamond.transfer(BUYER, SHOP, SIZE).finish() == SIZE
    diamond.settle()

    # What is sent while the first channel is being opened meets a shut gate, and is sent again: at least so much.
    payload = SIZE * (1 + HEADERS)
    for sender, receiver in ((BUYER, CHEAP), (CHEAP, SHOP)):
        sent, received = diamond.bytes_out(sender, receiver), diamond.bytes_in(receiver, sender)
        lost = diamond.dropped(sender, receiver) * FULL_PACKET
        assert -books.TOLERANCE * sent <= sent - received <= books.TOLERANCE * sent + lost
        assert received >= payload
    forwarded = diamond.forwarded(CHEAP, BUYER)
    assert forwarded >= payload
    refused = diamond.neighbour(CHEAP, BUYER)["bytes_refused"]
    assert diamond.bytes_in(CHEAP, BUYER) - refused == pytest.approx(forwarded, rel=books.TOLERANCE)
    assert diamond.carried(DEAR) < 0.01 * payload

    bill = diamond.ledger(CHEAP, BUYER)
    assert bill["billed_msat"] == pytest.approx(forwarded * CHEAP_FEE / 1e9, rel=books.TOLERANCE)
    assert 0 <= bill["billed_msat"] - bill["received_msat"] < 1000  # all is paid but a part of a sat
    assert diamond.ledger(SHOP, CHEAP)["billed_msat"] == 0  # the shop does not ask for what it gets itself
    assert diamond.ledger(CHEAP, SHOP)["received_msat"] > 0  # the acknowledgements are the shop's traffic
    diamond.assert_paid_as_received()


def test_a_price_rise_moves_traffic_without_breaking_the_connection(
    diamond: Diamond, capture: subprocess.Popen[Any]
) -> None:
    upload = diamond.transfer(BUYER, SHOP)
    upload.await_more(5 * MB)
    carried = diamond.carried(DEAR)
    diamond.lab.rpc(CHEAP, "price.set", fee_msat_per_gb=RAISED_FEE)
    until("the other relay being chosen", lambda: diamond.next_hop(BUYER, SHOP) == DEAR)
    until("traffic over the other relay", lambda: diamond.carried(DEAR) > carried + MB)
    upload.await_more(MB)
    assert upload.finish(now=True) > 6 * MB
    diamond.settle()
    assert diamond.ledger(DEAR, BUYER)["received_msat"] > MB * DEAR_FEE // 10**9
    diamond.assert_paid_as_received()

    capture.terminate()
    capture.wait()
    assert _decoded(diamond.capture, f"babel.subtlv.type == {PRICE_SUB_TLV}")
    assert _decoded(diamond.capture, "babel && _ws.malformed") == []


def test_who_stops_paying_is_cut_off_until_it_pays(diamond: Diamond) -> None:
    relay = DEAR
    until("the dear way", lambda: diamond.next_hop(BUYER, SHOP) == relay)
    upload = diamond.transfer(BUYER, SHOP)
    upload.await_more(2 * MB)
    diamond.lab.rpc(BUYER, "pay.hold")
    until("the cut-off", lambda: diamond.ledger(relay, BUYER)["state"] == "suspended")
    until("the gate being shut", lambda: diamond.neighbour(relay, BUYER)["state"] == "suspended")

    until("the transfer standing still", lambda: not _moves(diamond, relay, upload))
    stalled_at = upload.received()
    assert diamond.answers(BUYER, diamond.lab.address(relay))
    assert not diamond.answers(BUYER, diamond.lab.address(SHOP))
    until("routing going on", lambda: diamond.next_hop(BUYER, SHOP) == relay)
    until("every node having a route", lambda: diamond.lab.unreachable(BUYER) == [])
    assert upload.received() == stalled_at
    unpaid = diamond.ledger(relay, BUYER)["balance_msat"]
    assert unpaid > diamond.ledger(relay, BUYER)["window_msat"]

    diamond.lab.rpc(BUYER, "pay.resume")
    until("being carried again", lambda: diamond.ledger(relay, BUYER)["state"] == "open")
    upload.await_more(MB)
    assert upload.finish(now=True) > stalled_at
    diamond.settle()
    diamond.assert_paid_as_received()


def _moves(diamond: Diamond, relay: str, upload: Transfer) -> bool:
    """Whether the relay carries anything for the buyer, or any of it arrives, during two ticks."""
    before = diamond.carried(relay), upload.received()
    end = diamond.lab.rpc(relay, "status")["uptime_seconds"] + 2 * TICK
    until("two ticks", lambda: diamond.lab.rpc(relay, "status")["uptime_seconds"] >= end)
    return (diamond.carried(relay), upload.received()) != before


def test_channels_are_claimed_and_refunded_and_the_books_balance(diamond: Diamond) -> None:
    for node in diamond.lab.nodes:  # a late packet is not to open a new channel
        diamond.lab.rpc(node, "pay.hold")
    paid = {c["channel_id"] for c in diamond.open_channels("in") if c["cumulative_msat"] >= WORTH_CLAIMING}
    assert paid
    for node in diamond.lab.nodes:
        diamond.lab.rpc(node, "channel.close")

    def claimed() -> bool:
        return not paid & {channel["channel_id"] for channel in diamond.open_channels("in")}

    until("claims being confirmed", claimed)
    # What is not worth its claim comes back to the payer after the expiry.
    waiting = diamond.open_channels("out")
    if waiting:
        diamond.mine_past(max(channel["expiry_height"] for channel in waiting))
    until("all channels being closed", lambda: not diamond.open_channels("out"))

    def balanced() -> list[str]:
        now = books.take(diamond.lab)
        transactions = books.chain_transactions(diamond.lab, now)
        by_node = books.node_books(now, diamond.onchain_before, transactions)
        # What was under way at the cut-off was sent, but not carried: on that hop the meters rightly differ.
        hops = [hop for hop in books.hops(diamond.lab, now) if (hop.from_node, hop.to_node) != (BUYER, DEAR)]
        return books.problems(by_node, hops, transactions, restarted=None)

    def is_balanced() -> bool:
        print(problems := balanced())
        return not problems

    # A wallet tells its last known balance where the chain does not answer at once.
    until("the last transactions being confirmed, and known to the wallets", is_balanced, interval=1.0)
    kinds = {t.kind for t in books.chain_transactions(diamond.lab, books.take(diamond.lab))}
    assert {"funding", "claim"} <= kinds
    assert ("refund" in kinds) == bool(waiting)


def test_what_every_daemon_recorded_is_replayed_to_the_same_outputs(diamond: Diamond) -> None:
    """Through all of the above, and a link that is cut and comes back."""
    cut = ["ip", "link", "set", f"to-{DEAR}"]
    diamond.lab.exec(BUYER, [*cut, "down"])
    until("the other relay being chosen", lambda: diamond.next_hop(BUYER, SHOP) == CHEAP)
    diamond.lab.exec(BUYER, [*cut, "up"])
    until("the way back", lambda: diamond.next_hop(BUYER, SHOP) == DEAR)
    for node in diamond.lab.nodes:
        (run,) = diamond.replayed(node)
        assert run.inputs > 100
        # The engine knows what the kernel was told.
        hops = {str(route.prefix): route.interface for route in run.speaker.routes() if route.is_selected}
        assert set(hops) >= {f"{diamond.lab.address(other)}/32" for other in diamond.lab.nodes if other != node}
        if node == BUYER:
            assert hops[f"{diamond.lab.address(SHOP)}/32"] == f"to-{DEAR}"
