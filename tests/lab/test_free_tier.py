"""A debtor and an honest buyer behind one relay: the debtor falls to the free tier, over a restart too, until it pays.

The tests go through the life of one mesh, in their order.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.kernel.gate import BURST, LIGHT_FLOWS, Tier
from tests.lab.mesh import MB, SAT_PER_MB, Mesh, Record, Transfer, running, topology, until
from tools.lab.network import interface_to
from tools.showcase.books import TOLERANCE

pytestmark = pytest.mark.lab

DEBTOR, RELAY, SHOP, HONEST = "n1", "n2", "n3", "n4"
FEE = 20 * SAT_PER_MB
FREE_RATE = 64_000
TIER = Tier(FREE_RATE // 8)
FLOOD = (
    "import socket, sys, time\n"
    "udp = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)\n"
    "while True:\n"
    "    udp.sendto(bytes(1200), (sys.argv[1], 9))\n"
    "    time.sleep(0.001)\n"
)
LINKS = [(DEBTOR, RELAY), (RELAY, SHOP), (HONEST, RELAY)]


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[Mesh]:
    graph = topology(LINKS, dict.fromkeys((DEBTOR, RELAY, SHOP, HONEST), FEE), payments={"free_rate": FREE_RATE})
    with running("free", graph) as made:
        yield made


@pytest.fixture(scope="module")
def upload(mesh: Mesh) -> Iterator[Transfer]:
    transfer = mesh.transfer(DEBTOR, SHOP)
    transfer.await_more(MB)
    # Its first channel takes a moment to open, and while it grows its window it may be held for one more.
    until("a payment", lambda: mesh.ledger(RELAY, DEBTOR)["received_msat"] > 0)
    yield transfer


def debtor(mesh: Mesh) -> Record:
    return mesh.neighbour(RELAY, DEBTOR)


def test_who_does_not_pay_is_carried_at_the_free_rate_and_not_billed(mesh: Mesh, upload: Transfer) -> None:
    until("being carried", lambda: debtor(mesh)["state"] == "open" and debtor(mesh)["rate_bits_per_second"] is None)
    mesh.lab.rpc(DEBTOR, "pay.hold")
    until("the suspension", lambda: debtor(mesh)["state"] == "suspended")
    assert debtor(mesh)["rate_bits_per_second"] == FREE_RATE
    free = debtor(mesh)["bytes_free"]
    until(
        "free bytes, and refused ones", lambda: debtor(mesh)["bytes_free"] > free and debtor(mesh)["bytes_refused"] > 0
    )
    # One more reading of the meter: what was carried before the suspension is in the bill then.
    free = debtor(mesh)["bytes_free"]
    until("another reading", lambda: debtor(mesh)["bytes_free"] > free)
    billed = mesh.ledger(RELAY, DEBTOR)["billed_msat"]
    upload.await_more(20_000)
    assert mesh.answers(DEBTOR, mesh.lab.address(SHOP))
    assert mesh.ledger(RELAY, DEBTOR)["billed_msat"] == billed


def test_others_behind_the_same_relay_are_carried_and_billed_as_ever(mesh: Mesh, upload: Transfer) -> None:
    """But for what comes while their first channel is being opened: that is free for them, too."""
    before = upload.received()
    for _ in range(2):
        assert mesh.transfer(HONEST, SHOP, MB).finish() == MB
        until("the window being cleared", lambda: mesh.neighbour(RELAY, HONEST)["state"] == "open")

    def all_is_billed() -> bool:
        """The meter is read less often than the kernel counts: right after a transfer, the bill is behind."""
        paid_for = mesh.forwarded(RELAY, HONEST) - mesh.neighbour(RELAY, HONEST)["bytes_free"]
        billed_msat: int = mesh.ledger(RELAY, HONEST)["billed_msat"]
        return billed_msat == pytest.approx(paid_for * FEE / 1e9, rel=TOLERANCE)

    until("a bill for what was carried, but for the free part", all_is_billed)
    until("some of the debtor's, too", lambda: upload.received() > before)
    assert debtor(mesh)["state"] == "suspended"


@pytest.fixture
def flood(mesh: Mesh) -> Iterator[None]:
    """UDP of the debtor to the shop, far beyond the free tier, that asks nobody whether it may."""
    process = mesh.lab.popen(DEBTOR, [sys.executable, "-c", FLOOD, mesh.lab.address(SHOP)])
    yield
    process.kill()
    process.wait()


def sent(mesh: Mesh) -> int:
    """Bytes that the debtor has put on its link, whoever knows of it."""
    listed = mesh.lab.exec(DEBTOR, ["tc", "-s", "-j", "qdisc", "show", "dev", interface_to(RELAY)]).stdout
    return int(next(queue["bytes"] for queue in json.loads(listed) if queue.get("root")))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_is_no_way_around_it_for_one_that_hides(
    mesh: Mesh, upload: Transfer, flood: None, number: signal.Signals
) -> None:
    """The relay hears nothing of the debtor: it sees packets of a MAC address, and holds it from the first one on. A
    stranger would have a window first, which is worth half a megabyte."""
    if mesh.lab.is_running(DEBTOR):
        mesh.lab.kill_node(DEBTOR)
    carried, began = mesh.forwarded(RELAY, DEBTOR), time.monotonic()
    mesh.lab.kill_node(RELAY, number)
    mesh.lab.start_node(RELAY)
    arrived, flooded = mesh.forwarded(RELAY, DEBTOR), sent(mesh)
    until("a flood", lambda: sent(mesh) > flooded + 2 * MB and mesh.forwarded(RELAY, DEBTOR) > arrived)
    rate = TIER.rate + TIER.light_rate + TIER.dns_rate
    bucket = rate + (1 + LIGHT_FLOWS + 1) * BURST
    most = 2 * bucket + rate * (time.monotonic() - began)  # the new rules begin with full buckets
    assert mesh.forwarded(RELAY, DEBTOR) - carried <= most


def test_its_payment_goes_through_and_restores_it(mesh: Mesh, upload: Transfer) -> None:
    mesh.lab.start_node(DEBTOR)  # its new daemon pays
    mesh.lab.wait_routes()
    until("being carried again", lambda: debtor(mesh)["identity"] is not None and debtor(mesh)["state"] == "open")
    upload.await_more(MB)
    assert upload.finish(now=True) > 2 * MB
    mesh.settle()
    mesh.assert_paid_as_received()
