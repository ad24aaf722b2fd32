"""A debtor and an honest buyer behind one relay: the debtor falls to the free tier, over a restart too, until it pays.

The tests go through the life of one mesh, in their order.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.kernel.gate import Tier
from tests.lab.mesh import MB, SAT_PER_MB, Mesh, Record, Transfer, running, topology, until
from tools.showcase.books import TOLERANCE

pytestmark = pytest.mark.lab

DEBTOR, RELAY, SHOP, HONEST = "n1", "n2", "n3", "n4"
FEE = 20 * SAT_PER_MB
FREE_RATE = 400_000
TIER = Tier(FREE_RATE // 8)
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
    billed = mesh.ledger(RELAY, DEBTOR)["billed_msat"]
    upload.await_more(60_000)
    assert mesh.answers(DEBTOR, mesh.lab.address(SHOP))
    assert mesh.ledger(RELAY, DEBTOR)["billed_msat"] == billed


def test_others_behind_the_same_relay_are_carried_and_billed_as_ever(mesh: Mesh, upload: Transfer) -> None:
    """But for what comes while their first channel is being opened: that is free for them, too."""
    before = upload.received()
    for _ in range(2):
        assert mesh.transfer(HONEST, SHOP, 3 * MB).finish() == 3 * MB
        until("the window being cleared", lambda: mesh.neighbour(RELAY, HONEST)["state"] == "open")
    until("the last packets being billed", lambda: mesh.ledger(RELAY, HONEST)["balance_msat"] < 1000)
    paid_for = mesh.forwarded(RELAY, HONEST) - mesh.neighbour(RELAY, HONEST)["bytes_free"]
    assert mesh.ledger(RELAY, HONEST)["billed_msat"] == pytest.approx(paid_for * FEE / 1e9, rel=TOLERANCE)
    until("some of the debtor's, too", lambda: upload.received() > before)
    assert debtor(mesh)["state"] == "suspended"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_is_no_way_around_it(mesh: Mesh, upload: Transfer, number: signal.Signals) -> None:
    """All that is carried for the debtor from before the end to after the start is within the tier."""
    carried, began = mesh.forwarded(RELAY, DEBTOR), time.monotonic()
    billed = mesh.ledger(RELAY, DEBTOR)["billed_msat"]
    mesh.lab.kill_node(RELAY, number)
    mesh.lab.start_node(RELAY)
    mesh.lab.wait_routes()
    until("its being known", lambda: debtor(mesh)["identity"] is not None)
    assert debtor(mesh)["state"] == "suspended"
    upload.await_more(10_000)
    rate = TIER.rate + TIER.light_rate + TIER.dns_rate
    bucket = TIER.bucket + TIER.light_bucket + TIER.dns_bucket
    most = 2 * bucket + rate * (time.monotonic() - began)  # the new rules begin with full buckets
    assert mesh.forwarded(RELAY, DEBTOR) - carried <= most
    assert mesh.ledger(RELAY, DEBTOR)["state"] == "suspended"
    if number is signal.SIGTERM:  # after a kill, what came between the last entry and the end is billed
        assert mesh.ledger(RELAY, DEBTOR)["billed_msat"] == billed


def test_its_payment_goes_through_and_restores_it(mesh: Mesh, upload: Transfer) -> None:
    mesh.lab.rpc(DEBTOR, "pay.resume")
    until("being carried again", lambda: debtor(mesh)["state"] == "open")
    upload.await_more(3 * MB)
    assert upload.finish(now=True) > 4 * MB
    mesh.settle()
    mesh.assert_paid_as_received()
    assert mesh.ledger(RELAY, DEBTOR)["balance_msat"] < 1000
    assert debtor(mesh)["state"] == "open"
