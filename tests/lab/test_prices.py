"""A relay whose fee follows its load, and a buyer with a budget, in running daemons under real traffic.

The tests go through the life of one mesh, in their order.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.mesh import MB, SAT_PER_MB, Mesh, Record, Transfer, running, topology, until

pytestmark = pytest.mark.lab

BUYER, RELAY, SHOP = "n1", "n2", "n3"
FEE, FLOOR, CEILING = 20 * SAT_PER_MB, 16 * SAT_PER_MB, 25 * SAT_PER_MB
# Well below what the link carries, so that a busy machine is above 70 % of it, too.
AUTO = {
    "price": "auto",
    "capacity_mbit": 2,
    "floor_msat_per_gb": FLOOR,
    "ceiling_msat_per_gb": CEILING,
    "interval": 1.0,
    "price_notice": 3.0,
}


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[Mesh]:
    plain = topology([(BUYER, RELAY), (RELAY, SHOP)], dict.fromkeys((BUYER, RELAY, SHOP), FEE))
    nodes = (replace(n, config={**n.config, "price": AUTO}) if n.name == RELAY else n for n in plain.nodes)
    with running("price", replace(plain, nodes=tuple(nodes))) as made:
        yield made


@pytest.fixture(scope="module")
def upload(mesh: Mesh) -> Iterator[Transfer]:
    yield mesh.transfer(BUYER, SHOP)


def asked(mesh: Mesh) -> Record:
    return dict(mesh.lab.rpc(RELAY, "price.show"))


def test_without_traffic_it_falls_to_the_floor(mesh: Mesh) -> None:
    until("the floor", lambda: asked(mesh)["fee_msat_per_gb"] == FLOOR)
    until("the buyer hearing of it", lambda: mesh.price(BUYER, SHOP) == FLOOR)


def test_under_load_it_rises_to_the_ceiling_and_the_buyer_pays_it(mesh: Mesh, upload: Transfer) -> None:
    upload.await_more(MB)
    until("a rise", lambda: asked(mesh)["fee_msat_per_gb"] > FLOOR)
    until("the ceiling", lambda: asked(mesh)["fee_msat_per_gb"] == CEILING)
    until("the load that it follows", lambda: asked(mesh)["load_mbit"] > 1.4)
    until("the buyer hearing of it", lambda: mesh.price(BUYER, SHOP) == CEILING)
    paid = mesh.ledger(BUYER, RELAY)["sent_msat"]
    until("a payment after it", lambda: mesh.ledger(BUYER, RELAY)["sent_msat"] > paid)
    shown = subprocess.run(mesh.lab.ctl_argv(RELAY, "price", "show"), capture_output=True, text=True, check=True)
    assert f"{CEILING:,} msat/GB" in shown.stdout
    assert "of 2 Mbit/s" in shown.stdout


def spending(mesh: Mesh) -> Record:
    found = dict(mesh.lab.rpc(BUYER, "budget.show"))
    return found | {row["period"]: row for row in found["periods"]}


def has_way(mesh: Mesh, to: str) -> bool:
    prefix = f"{mesh.lab.address(to)}/32"
    return any(row["prefix"] == prefix and row["selected"] for row in mesh.lab.rpc(BUYER, "routes"))


def test_once_the_budget_is_used_up_nothing_more_is_bought(mesh: Mesh, upload: Transfer) -> None:
    spent = spending(mesh)["month"]["spent_msat"]
    assert spent > 0
    mesh.lab.rpc(BUYER, "budget.set", per_month_msat=spent + 1000)
    until("the end of buying", lambda: not spending(mesh)["is_buying"])
    until("no way that costs", lambda: not has_way(mesh, SHOP))
    assert has_way(mesh, RELAY)  # what is free goes on
    assert mesh.answers(BUYER, mesh.lab.address(RELAY))
    mesh.settle()
    assert spending(mesh)["month"]["spent_msat"] >= spent + 1000
    assert not spending(mesh)["is_buying"]


def test_a_restart_knows_what_was_spent(mesh: Mesh, upload: Transfer) -> None:
    before = spending(mesh)["month"]["spent_msat"]
    mesh.lab.kill_node(BUYER)
    config = mesh.lab.path(BUYER) / "config.toml"
    config.write_text(f"{config.read_text()}\n[budget]\nper_month_msat = {before // 2}\n")
    mesh.lab.start_node(BUYER)
    assert spending(mesh)["month"]["spent_msat"] == pytest.approx(before, abs=1000)
    assert not spending(mesh)["is_buying"]
    until("the relay again", lambda: has_way(mesh, RELAY))
    until("the shop being heard of", lambda: mesh.lab.address(SHOP) in str(mesh.lab.rpc(BUYER, "routes")))
    assert not has_way(mesh, SHOP)
    mesh.lab.rpc(BUYER, "budget.set", per_month_msat=0)
    until("the way again", lambda: has_way(mesh, SHOP))
    upload.await_more(MB)
    assert upload.finish(now=True) > 2 * MB
