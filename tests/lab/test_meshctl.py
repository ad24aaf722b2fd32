"""meshctl against living daemons: every command in both forms, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshd.ctl.commands import COMMANDS
from tests.lab.mesh import MB, METRICS_PORT, SAT_PER_MB, Mesh, running, topology, until
from tests.meshd.schema import closed, validate

pytestmark = pytest.mark.lab
BUYER, RELAY, SHOP = "n1", "n2", "n3"
FEE = 20 * SAT_PER_MB
SCHEMAS = {command.words: command.result for command in COMMANDS}
READING = ("status", "neighbours", "routes", "path", "channels", "ledger", "price show")


@pytest.fixture(scope="module")
def mesh(lab_base: Path) -> Iterator[Mesh]:
    """After a transfer that was paid, so that no table is empty."""
    with running("ctl", topology([(BUYER, RELAY), (RELAY, SHOP)], dict.fromkeys((BUYER, RELAY, SHOP), FEE))) as made:
        made.transfer(BUYER, SHOP, 4 * MB).finish()
        made.settle()
        yield made


def ask(mesh: Mesh, node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(mesh.lab.ctl_argv(node, *arguments), capture_output=True, text=True, check=False)


def ask_json(mesh: Mesh, node: str, *arguments: str) -> Any:
    done = ask(mesh, node, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["version"] == 1
    return answer["result"]


@pytest.mark.parametrize("command", READING)
def test_reading_commands_answer_in_both_forms(mesh: Mesh, command: str) -> None:
    words = [*command.split(), *([mesh.lab.address(SHOP)] if command == "path" else [])]
    for node in (BUYER, RELAY):
        result = ask_json(mesh, node, *words)
        records = result if isinstance(result, list) else [result]
        assert records
        validate(result, closed(SCHEMAS[command]))
        table = ask(mesh, node, *words)
        assert (table.returncode, table.stderr) == (0, "")
        assert len(table.stdout.splitlines()) >= len(records)


def test_what_is_shown_is_what_happened(mesh: Mesh) -> None:
    status = ask_json(mesh, RELAY, "status")
    assert status["name"] == RELAY
    assert status["neighbours"] == 2
    assert status["totals"]["carried_bytes"] > 4 * MB
    assert status["totals"]["earned_msat"] >= 4 * FEE // 1000
    assert status["wallet"]["balance_sat"] <= mesh.lab.funds_sat
    assert status["chain"]["connected"]
    assert {row["session"] for row in ask_json(mesh, RELAY, "neighbours")} == {"up"}
    directions = sorted(channel["direction"] for channel in ask_json(mesh, BUYER, "channels"))
    assert "out" in directions
    assert f"{mesh.lab.address(SHOP)}/32" in ask(mesh, BUYER, "routes").stdout
    assert "20 sat/MB" in ask(mesh, BUYER, "path", mesh.lab.address(SHOP)).stdout


def test_both_ends_of_a_link_count_the_same(mesh: Mesh) -> None:
    def counts() -> Any:
        return next(e["counts"] for e in ask_json(mesh, BUYER, "ledger") if e["counts"]["ours"]["sent"] > 4 * MB)

    def is_heard() -> bool:
        theirs = counts()["theirs"]
        return theirs is not None and theirs["carried"] > 4 * MB

    until("the relay's signed counts", is_heard)
    seen = counts()
    assert seen["standing"] == "trusted"
    assert seen["theirs"]["received"] <= seen["ours"]["sent"]
    assert seen["their_earned_msat"] > 0


def test_path_to_oneself_and_by_which_way_to_others(mesh: Mesh) -> None:
    own = ask_json(mesh, BUYER, "path", mesh.lab.address(BUYER))
    assert own["origin"]
    assert own["chosen"] is None
    far = ask_json(mesh, BUYER, "path", mesh.lab.address(SHOP))
    assert far["chosen"]["interface"] == f"to-{RELAY}"
    assert far["chosen"]["price_msat_per_gb"] == FEE
    assert [hop["node"] for hop in far["hops"]] == [
        ask_json(mesh, n, "status")["address"] for n in (BUYER, RELAY, SHOP)
    ]
    assert [hop["arrived"] for hop in far["hops"]] == [False, False, True]
    assert far["hops"][0]["price_msat_per_gb"] == far["hops"][1]["fee_msat_per_gb"] == FEE
    overlay = ask_json(mesh, SHOP, "status")["address"]
    assert ask_json(mesh, BUYER, "path", overlay)["prefix"] == f"{overlay}/128"


def test_price_set_is_announced(mesh: Mesh) -> None:
    assert ask_json(mesh, RELAY, "price", "set", str(2 * FEE))["fee_msat_per_gb"] == 2 * FEE
    assert ask_json(mesh, RELAY, "price", "show")["fee_msat_per_gb"] == 2 * FEE
    assert ask_json(mesh, RELAY, "status")["fee_msat_per_gb"] == 2 * FEE
    until("the new price at the buyer", lambda: mesh.price(BUYER, SHOP) == 2 * FEE)
    assert ask(mesh, RELAY, "price", "set", str(FEE)).returncode == 0


def test_pay_hold_and_resume(mesh: Mesh) -> None:
    assert ask_json(mesh, BUYER, "pay", "hold") == {"paying": False}
    assert "on hold" in ask(mesh, BUYER, "status").stdout
    assert ask_json(mesh, BUYER, "pay", "resume") == {"paying": True}
    assert ask_json(mesh, BUYER, "status")["paying"]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("path", "192.0.2.1"), 3, "not_found"),
        (("path", "fd00::1"), 3, "not_found"),
        (("path", "nonsense"), 2, "usage"),
        (("channel", "close", "--peer", "ffffffff", "--yes"), 3, "not_found"),
        (("price", "set", "much"), 2, "usage"),
        (("weather",), 2, "usage"),
    ],
)
def test_what_is_wrong_has_its_exit_code(mesh: Mesh, arguments: tuple[str, ...], code: int, word: str) -> None:
    done = ask(mesh, BUYER, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith("meshctl: ")
    assert done.stdout == ""
    as_json = ask(mesh, BUYER, *arguments, "--json")
    assert as_json.returncode == code
    assert json.loads(as_json.stdout)["error"]["code"] == word


def test_prometheus_reads_what_meshctl_says(mesh: Mesh) -> None:
    text = mesh.lab.exec(RELAY, ["curl", "--silent", "--fail", f"http://127.0.0.1:{METRICS_PORT}/metrics"]).stdout
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    received = {s.labels["peer"]: s.value for s in samples if s.name == "meshd_peer_received_msat_total"}
    assert received == {row["peer_address"]: row["received_msat"] for row in ask_json(mesh, RELAY, "ledger")}
    assert sum(received.values()) > 0
    carried = sum(s.value for s in samples if s.name == "meshd_carried_bytes_total")
    assert carried > 4 * MB
    channels = {s.labels["channel"] for s in samples if s.name == "meshd_channel_paid_msat"}
    assert channels == {row["channel_id"] for row in ask_json(mesh, RELAY, "channels")} != set()


def test_a_daemon_that_is_down_is_said_so(mesh: Mesh, tmp_path: Path) -> None:
    mesh.lab.kill_node(SHOP)
    for command in READING:
        words = [*command.split(), *(["10.0.0.1"] if command == "path" else [])]
        done = ask(mesh, SHOP, *words)
        assert done.returncode == 4
        assert "no daemon answers" in done.stderr
