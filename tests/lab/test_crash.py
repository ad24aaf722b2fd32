"""Daemons that are killed in the middle of a paid transfer, and stopped: what stays in the kernel, and whose money."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshd.accounting import BUSY_INTERVAL
from tests.lab.mesh import MB, SAT_PER_MB, Mesh, await_routes, lab_name, post_witnesses, topology, until
from tools.lab.kernel_state import difference, snapshot
from tools.lab.lab import Lab
from tools.showcase.books import TOLERANCE

pytestmark = pytest.mark.lab

BUYER, RELAY, SHOP = "n1", "n2", "n3"
NODES = (BUYER, RELAY, SHOP)
FEE = 20 * SAT_PER_MB
RATE_BYTES = 40e6 / 8  # per second, of the links
MSAT_PER_SECOND = RATE_BYTES * FEE / 1e9
RESTART_TIMEOUT = 60.0

State = dict[str, list[str]]


class Chain3(Mesh):
    """n1 - n2 - n3, with the state of each namespace from before the daemons and under them."""

    def __init__(self, lab: Lab, before: dict[str, State]) -> None:
        super().__init__(lab)
        self.before = before
        self.lives = dict.fromkeys(NODES, 1)
        self.under_daemons = {node: snapshot(lab, node) for node in lab.nodes}

    def kill_and_restart(self, node: str) -> None:
        self.lab.kill_node(node, signal.SIGKILL)
        self.start(node)

    def start(self, node: str) -> None:
        self.lives[node] += 1
        self.lab.start_node(node)
        self.lab.wait_routes(RESTART_TIMEOUT)


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[Chain3]:
    before: dict[str, State] = {}
    graph = topology([(BUYER, RELAY), (RELAY, SHOP)], dict.fromkeys(NODES, FEE))
    found: list[Lab] = []

    def look(step: str) -> None:
        if step.startswith("starting 3 daemons"):
            lab = found[0]
            post_witnesses(lab)
            for node in lab.nodes:
                _await_link_local(lab, node)
                before[node] = snapshot(lab, node)

    lab = Lab(graph, name=lab_name("crash"), record=True, progress=look)
    found.append(lab)
    with lab:
        await_routes(lab)
        yield Chain3(lab, before)


def _await_link_local(lab: Lab, node: str) -> None:
    """The kernel gives them when the carrier is there, a moment after the link was made."""
    wanted = len(lab.topology.neighbours(node))

    def there() -> bool:
        routes = lab.exec(node, ["ip", "-6", "route", "show", "table", "all"]).stdout
        return sum(line.startswith("local fe80::") for line in routes.splitlines()) == wanted

    until("link-local addresses", there)


def _assert_as_after_a_clean_start(mesh: Chain3) -> None:
    for node in NODES:

        def changed(node: str = node) -> dict[str, list[str]]:
            return difference(mesh.under_daemons[node], snapshot(mesh.lab, node))

        # The restarted one's overlay routes take a moment more than the IPv4 ones that were waited for.
        until(f"the state of a clean start at {node}", lambda: not changed()) if changed() else None
        assert changed() == {}


def test_a_relay_killed_in_a_transfer_comes_back_without_loss_beyond_its_window(mesh: Chain3) -> None:
    upload = mesh.transfer(BUYER, SHOP)
    upload.await_more(5 * MB)
    mesh.kill_and_restart(RELAY)
    upload.await_more(2 * MB)
    assert upload.finish(now=True) > 7 * MB
    mesh.settle()
    mesh.assert_paid_as_received()
    _assert_as_after_a_clean_start(mesh)

    bill = mesh.ledger(RELAY, BUYER)
    lost_msat = mesh.forwarded(RELAY, BUYER) * FEE / 1e9 - bill["billed_msat"]
    tolerance_msat = TOLERANCE * bill["billed_msat"]
    assert -tolerance_msat <= lost_msat
    assert lost_msat <= bill["window_msat"] + MSAT_PER_SECOND * BUSY_INTERVAL + tolerance_msat
    assert 0 <= bill["billed_msat"] - bill["received_msat"] < 1000


@pytest.mark.parametrize("node", [BUYER, SHOP])
def test_an_end_killed_in_a_transfer_comes_back_and_pays_what_it_owes(mesh: Chain3, node: str) -> None:
    mesh.settle()
    before = mesh.forwarded(RELAY, BUYER), mesh.ledger(RELAY, BUYER)["billed_msat"]
    upload = mesh.transfer(BUYER, SHOP)
    upload.await_more(3 * MB)
    mesh.kill_and_restart(node)
    upload.await_more(2 * MB)
    assert upload.finish(now=True) > 5 * MB
    mesh.settle()
    mesh.assert_paid_as_received()
    _assert_as_after_a_clean_start(mesh)

    # The relay was not killed: it bills what it carried, and is paid for it.
    carried = mesh.forwarded(RELAY, BUYER) - before[0]
    bill = mesh.ledger(RELAY, BUYER)
    assert bill["billed_msat"] - before[1] == pytest.approx(carried * FEE / 1e9, rel=TOLERANCE)
    assert 0 <= bill["billed_msat"] - bill["received_msat"] < 1000
    assert bill["state"] == "open"


def test_sigterm_leaves_the_namespace_as_it_was(mesh: Chain3) -> None:
    mesh.lab.kill_node(SHOP, signal.SIGTERM)
    assert difference(mesh.before[SHOP], snapshot(mesh.lab, SHOP)) == {}
    # It said good-bye: its neighbour does not wait for Hellos.
    until("the route being gone", lambda: mesh.lab.unreachable(RELAY) == [SHOP])
    mesh.start(SHOP)
    _assert_as_after_a_clean_start(mesh)


def test_clean_removes_what_a_killed_daemon_left(mesh: Chain3) -> None:
    mesh.lab.kill_node(RELAY, signal.SIGKILL)
    left = difference(mesh.before[RELAY], snapshot(mesh.lab, RELAY))
    assert {"rules", "routes", "nftables", "addresses", "sysctls", "offloads"} <= set(left)
    meshd, _, *rest = mesh.lab.state.process_by_node[RELAY].command.split()
    mesh.lab.exec(RELAY, [meshd, "clean", *rest])
    assert difference(mesh.before[RELAY], snapshot(mesh.lab, RELAY)) == {}


def test_each_life_of_a_daemon_is_replayed_to_the_same_outputs(mesh: Chain3) -> None:
    lives = {node: mesh.replayed(node) for node in NODES}
    assert {node: len(runs) for node, runs in lives.items()} == mesh.lives
    assert all(run.inputs > 10 for runs in lives.values() for run in runs)
