"""What Prometheus reads, judged by Prometheus's own parser."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from meshd import metrics
from meshd.metrics import MetricsServer, Snapshot, exposition

DOCS = Path(__file__).parents[2] / "docs" / "monitoring"
STATUS: dict[str, Any] = {
    "name": 'ro"of',
    "version": "0.1.0",
    "identity": "ab" * 32,
    "address": "fd00::1",
    "uptime_seconds": 12.5,
    "interfaces": [{"name": "wlan0", "kind": "wireless", "security": "wireguard", "up": True, "address": "fe80::1"}],
    "neighbours": 1,
    "routes": 3,
    "fee_msat_per_gb": 100,
    "paying": True,
    "chain": {"backend": "kernel", "height": 1000, "connected": True},
    "wallet": {"balance_sat": 77},
    "totals": {"carried_bytes": 2**60, "earned_msat": 5, "spent_msat": 6},
    "fast_lane": {"problem": None, "outside": {}, "flows": 3, "bytes": 2**59},
    "counters": {"packet_malformed": 4},
}
NEIGHBOUR: dict[str, Any] = {
    "interface": "mw1",
    "under": "wlan0",
    "link_local": "fe80::2",
    "address": "fd00::2",
    "cost": 96,
    "rtt_ms": 2.5,
    "quality": {"share": 0.5},
    "session": "up",
    "state": "suspended",
    "bytes_in": 10,
    "bytes_out": 20,
    "bytes_free": 3,
    "bytes_refused": 4,
}
COUNTS = {"standing": "warned", "finding": "overstated", "lost_to_them": 0.25, "lost_from_them": 0.0}
LEDGER: dict[str, Any] = {
    "peer_address": "fd00::2",
    "window_msat": 400,
    "billed_msat": 900,
    "their_billed_msat": 1,
    "sent_msat": 2,
    "received_msat": 800,
    "balance_msat": 100,
    "counts": COUNTS,
}
CHANNEL: dict[str, Any] = {
    "channel_id": "cd" * 16,
    "peer_address": "fd00::2",
    "direction": "in",
    "state": "open",
    "capacity_sat": 50,
    "cumulative_msat": 800,
    "expiry_height": 1144,
}
SNAPSHOT = Snapshot(STATUS, [NEIGHBOUR], [LEDGER], [CHANNEL])


def read(snapshot: Snapshot = SNAPSHOT) -> dict[str, dict[tuple[str, ...], float]]:
    """By sample's name: label values in the order of their names -> value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposition(snapshot).decode()):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_the_figures_are_those_of_the_node() -> None:
    found = read()
    assert found["meshd_info"] == {("fd00::1", "ab" * 32, 'ro"of', "0.1.0"): 1}
    assert found["meshd_carried_bytes_total"] == {(): 2**60}
    assert found["meshd_fast_lane_bytes_total"] == {(): 2**59}
    assert found["meshd_fast_lane_flows"] == {(): 3}
    assert found["meshd_neighbour_bytes_total"]["fd00::2", "free", "wlan0", "fe80::2"] == 3
    assert found["meshd_neighbour_rtt_seconds"] == {("fd00::2", "wlan0", "fe80::2"): 0.0025}
    assert found["meshd_neighbour_held"] == {("fd00::2", "wlan0", "fe80::2"): 1}
    assert found["meshd_peer_exposure_ratio"] == {("fd00::2",): 0.25}
    assert found["meshd_peer_owed_to_them_msat"] == {("fd00::2",): 0}
    assert found["meshd_peer_distrusted"] == {("fd00::2", "warned"): 1}
    assert found["meshd_peer_lost_ratio"] == {("out", "fd00::2"): 0.25, ("in", "fd00::2"): 0.0}
    assert found["meshd_channel_blocks_to_expiry"] == {("cd" * 16, "in", "fd00::2", "open"): 144}
    healthy = LEDGER | {"counts": COUNTS | {"standing": "trusted", "finding": "loss"}}
    assert set(read(replace(SNAPSHOT, ledger=[healthy]))["meshd_peer_distrusted"].values()) == {0}
    assert found["meshd_events_total"] == {("packet_malformed",): 4}


def test_what_is_not_known_is_left_out() -> None:
    status = STATUS | {"chain": STATUS["chain"] | {"height": None}, "wallet": {"balance_sat": None}}
    neighbour = NEIGHBOUR | {"rtt_ms": None, "quality": None, "address": None}
    found = read(Snapshot(status, [neighbour], [LEDGER | {"counts": None, "window_msat": 0}], [CHANNEL]))
    missing = {
        "chain_height",
        "wallet_balance_sat",
        "neighbour_rtt_seconds",
        "neighbour_quality_ratio",
        "peer_lost_ratio",
    }
    assert not {f"meshd_{name}" for name in missing | {"channel_blocks_to_expiry"}} & found.keys()
    assert found["meshd_peer_exposure_ratio"]["fd00::2",] == float("inf")
    assert ("", "wlan0", "fe80::2") in found["meshd_neighbour_cost"]


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_alerts_and_dashboard_name_metrics_that_there_are(name: str) -> None:
    text = (DOCS / name).read_text()
    named = set(re.findall(r"\bmeshd_[a-z_]+", text))
    assert len(named) >= 8
    assert named <= read().keys()
    if name.endswith("json"):
        assert json.loads(text)["panels"]


async def _get(request: bytes, scenario: Callable[[int], Awaitable[None]] | None = None) -> bytes:
    async def shown() -> bytes:
        await trio.lowlevel.checkpoint()
        return exposition(SNAPSHOT)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=metrics.HOST)
        server = MetricsServer(0, shown)
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server._serve, listeners)
        if scenario is not None:
            await scenario(port)
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(metrics.HOST, port) as stream:
                await stream.send_all(request)
                answer = b"".join([part async for part in stream])
        nursery.cancel_scope.cancel()
    return answer


def test_prometheus_is_answered() -> None:
    answer = trio.run(_get, b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert body == exposition(SNAPSHOT)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"\xff\0", b"405"),
        (b"HEAD /metrics HTTP/1.1", b"200"),
    ],
)
def test_other_requests_get_a_clear_answer(request_line: bytes, status: bytes) -> None:
    answer = trio.run(_get, request_line + b"\r\n\r\n")
    assert answer.split(b" ")[1] == status


def test_more_clients_than_there_should_be_are_turned_away_and_hold_nothing_up() -> None:
    async def crowd(port: int) -> None:
        idle = [await trio.open_tcp_stream(metrics.HOST, port) for _ in range(metrics.MAX_CLIENTS)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(metrics.HOST, port) as one_more:
                assert await one_more.receive_some() == b""  # closed at once
        for stream in idle:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)

    answer = trio.run(_get, b"GET /metrics HTTP/1.1\r\n\r\n", crowd)
    assert b" 200 OK" in answer
