"""Three daemons that settle on credit: payments, a crash and a limit, and nowhere a chain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.mesh import MB, SAT_PER_MB, Mesh, Record, running, topology, until

pytestmark = pytest.mark.lab

BUYER, RELAY, SHOP = "n1", "n2", "n3"
NODES = (BUYER, RELAY, SHOP)
FEE = 20 * SAT_PER_MB
LIMIT_MSAT = 10**9


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[Mesh]:
    payments = {"settlement": "credit", "credit_limit_msat": LIMIT_MSAT}
    graph = topology([(BUYER, RELAY), (RELAY, SHOP)], dict.fromkeys(NODES, FEE), payments=payments)
    with running("credit", graph, has_chain=False) as made:
        yield made


def credit(mesh: Mesh, node: str, peer: str) -> Record:
    (found,) = (row for row in mesh.lab.rpc(node, "credit") if row["peer"] == mesh.identity[peer])
    return dict(found)


def test_a_paid_transfer_and_a_killed_relay_leave_both_ends_with_the_same_balance(mesh: Mesh) -> None:
    upload = mesh.transfer(BUYER, SHOP)
    upload.await_more(2 * MB)
    mesh.lab.kill_node(RELAY)
    mesh.lab.start_node(RELAY)
    upload.await_more(2 * MB)
    upload.finish(now=True)
    mesh.settle()
    mesh.assert_paid_as_received()
    owed = credit(mesh, RELAY, BUYER)
    assert owed["balance_msat"] == mesh.ledger(RELAY, BUYER)["received_msat"] > 0
    assert credit(mesh, BUYER, RELAY)["balance_msat"] == -owed["balance_msat"]
    assert credit(mesh, BUYER, RELAY)["limit_msat"] == LIMIT_MSAT
    assert [row for node in NODES for row in mesh.lab.rpc(node, "channels")] == []
    status = mesh.lab.rpc(RELAY, "status")
    assert (status["chain"]["height"], status["chain"]["connected"]) == (None, False)
    assert status["wallet"]["balance_sat"] is None


def test_what_was_paid_in_cash_is_redeemed_and_the_debtor_holds_the_receipt(mesh: Mesh) -> None:
    mesh.settle()
    owed_msat = credit(mesh, RELAY, BUYER)["balance_msat"]
    mesh.lab.rpc(RELAY, "credit.redeem", peer=mesh.identity[BUYER], amount_msat=owed_msat)
    until("the buyer's news of it", lambda: credit(mesh, BUYER, RELAY)["balance_msat"] == 0)
    assert credit(mesh, BUYER, RELAY)["redeemed_by_them_msat"] == owed_msat
    assert credit(mesh, RELAY, BUYER)["balance_msat"] == 0
