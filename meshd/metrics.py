"""What Prometheus may read of a node, by HTTP on this machine alone: `GET /metrics`.

The figures are those of the control socket's methods. Names end in their unit; money is msat, as everywhere.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HOST = "127.0.0.1"
MAX_REQUEST = 8192
MAX_CLIENTS = 8
CLIENT_TIMEOUT = 10.0
BACKLOG = 16

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Results of the methods of the same names (docs/spec, `rpc.discover`)."""

    status: Row
    neighbours: list[Row]
    ledger: list[Row]
    channels: list[Row]


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


def exposition(snapshot: Snapshot) -> bytes:
    """In the text format 0.0.4 of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    families = (_node, _chain, _neighbours, _peers, _counts, _channels)
    registry.register(_Families(metric for family in families for metric in family(snapshot)))
    return generate_latest(registry)


def _gauge(name: str, doc: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(f"meshd_{name}", doc, value=value)


def _table(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    doc: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float | None]],
) -> Metric:
    family = kind(f"meshd_{name}", doc, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _node(snapshot: Snapshot) -> Iterator[Metric]:
    status = snapshot.status
    yield _table(
        GaugeMetricFamily,
        "info",
        "Always 1; the labels say which node this is.",
        ("name", "version", "address", "identity"),
        [((status["name"], status["version"], status["address"], status["identity"]), 1)],
    )
    yield from _gauge("uptime_seconds", "Since the daemon's start.", status["uptime_seconds"])
    yield from _gauge("neighbours", "Routing neighbours.", status["neighbours"])
    yield from _gauge("routes_selected", "Routes in use.", status["routes"])
    yield from _gauge("fee_msat_per_gb", "Asked for carrying a GB, on top of our own costs.", status["fee_msat_per_gb"])
    yield from _gauge("paying", "1 unless payments are off or held by the operator.", float(status["paying"]))
    yield _table(
        GaugeMetricFamily,
        "interface_up",
        "1 where the interface takes part in the mesh.",
        ("interface", "security"),
        (((row["name"], row["security"]), float(row["up"])) for row in status["interfaces"]),
    )
    yield CounterMetricFamily("meshd_carried_bytes", "Carried for neighbours.", value=status["totals"]["carried_bytes"])
    lane = status["fast_lane"]
    yield from _gauge("fast_lane_flows", "Established flows that are carried before nftables.", lane["flows"])
    yield CounterMetricFamily("meshd_fast_lane_bytes", "Carried there, part of carried.", value=lane["bytes"])
    yield _table(
        CounterMetricFamily,
        "events",
        "Things that were counted, most of them dropped or refused input; docs/limits.md.",
        ("event",),
        (((name,), value) for name, value in sorted(status["counters"].items())),
    )


def _chain(snapshot: Snapshot) -> Iterator[Metric]:
    chain = snapshot.status["chain"]
    yield from _gauge("chain_connected", "1 while the chain's backend answers.", float(chain["connected"]))
    yield from _gauge("chain_height", "The highest block height that was seen.", chain["height"])
    yield from _gauge("wallet_balance_sat", "On chain, outside of channels.", snapshot.status["wallet"]["balance_sat"])


def _neighbours(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ("interface", "link_local", "address")

    def rows(read: Callable[[Row], float | None]) -> Iterator[tuple[tuple[str, ...], float | None]]:
        for row in snapshot.neighbours:
            yield (row["under"], row["link_local"], row["address"] or ""), read(row)

    for name, doc, read in (
        ("neighbour_cost", "Of the link, as routing takes it; 65535: not to be used.", lambda row: row["cost"]),
        ("neighbour_session_up", "1 while there is a payment session.", lambda row: float(row["session"] == "up")),
        ("neighbour_held", "1 while it is held to the free tier.", lambda row: float(row["state"] != "open")),
        ("neighbour_rtt_seconds", "Round trip time.", lambda row: _over(row["rtt_ms"], 1000)),
        (
            "neighbour_quality_ratio",
            "Of the best that the link can be.",
            lambda row: (row["quality"] or {}).get("share"),
        ),
    ):
        yield _table(GaugeMetricFamily, name, doc, labels, rows(read))
    directions = (("in", "bytes_in"), ("out", "bytes_out"), ("free", "bytes_free"), ("refused", "bytes_refused"))
    yield _table(
        CounterMetricFamily,
        "neighbour_bytes",
        "Layer-3 bytes; free and refused are parts of in.",
        (*labels, "direction"),
        (
            ((*values, direction), size)
            for direction, key in directions
            for values, size in rows(operator.itemgetter(key))
        ),
    )


def _peers(snapshot: Snapshot) -> Iterator[Metric]:
    rows = [((row["peer_address"],), row) for row in snapshot.ledger]
    for name, doc, read in (
        ("peer_owed_to_us_msat", "Unpaid: our exposure.", lambda row: max(row["balance_msat"], 0)),
        ("peer_owed_to_them_msat", "What we owe.", lambda row: max(-row["balance_msat"], 0)),
        ("peer_window_msat", "How much it may owe.", lambda row: row["window_msat"]),
        ("peer_exposure_ratio", "Owed to us over the window; above 1 it is held to the free tier.", _exposure),
    ):
        yield _table(GaugeMetricFamily, name, doc, ("peer",), ((labels, read(row)) for labels, row in rows))
    for name, doc, key in (
        ("peer_received_msat", "Paid to us.", "received_msat"),
        ("peer_sent_msat", "Paid by us.", "sent_msat"),
        ("peer_billed_msat", "What we billed.", "billed_msat"),
        ("peer_their_billed_msat", "What it billed us.", "their_billed_msat"),
    ):
        yield _table(CounterMetricFamily, name, doc, ("peer",), ((labels, row[key]) for labels, row in rows))


def _counts(snapshot: Snapshot) -> Iterator[Metric]:
    known = [(row["peer_address"], row["counts"]) for row in snapshot.ledger if row["counts"] is not None]
    yield _table(
        GaugeMetricFamily,
        "peer_distrusted",
        "1 while its counts of traffic contradict ours.",
        ("peer", "standing"),
        (((peer, counts["standing"]), float(counts["standing"] != "trusted")) for peer, counts in known),
    )
    yield _table(
        GaugeMetricFamily,
        "peer_lost_ratio",
        "Share of the bytes on the link that did not arrive.",
        ("peer", "direction"),
        (
            ((peer, direction), counts[key])
            for peer, counts in known
            for direction, key in (("out", "lost_to_them"), ("in", "lost_from_them"))
        ),
    )


def _channels(snapshot: Snapshot) -> Iterator[Metric]:
    height = snapshot.status["chain"]["height"]
    labels = ("channel", "peer", "direction", "state")

    def rows(read: Callable[[Row], float | None]) -> Iterator[tuple[tuple[str, ...], float | None]]:
        for row in snapshot.channels:
            yield (row["channel_id"], row["peer_address"], row["direction"], row["state"]), read(row)

    for name, doc, read in (
        ("channel_capacity_sat", "Locked in it.", lambda row: row["capacity_sat"]),
        ("channel_paid_msat", "Paid through it.", lambda row: row["cumulative_msat"]),
        (
            "channel_blocks_to_expiry",
            "Until the payer may take back what was not claimed.",
            lambda row: None if height is None else row["expiry_height"] - height,
        ),
    ):
        yield _table(GaugeMetricFamily, name, doc, labels, rows(read))


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _exposure(row: Row) -> float:
    return max(row["balance_msat"], 0) / row["window_msat"] if row["window_msat"] else math.inf


class MetricsServer:
    """Answers GET /metrics, one request a connection. Clients are few, and have little time."""

    def __init__(self, port: int, read: Callable[[], Awaitable[bytes]]) -> None:
        self._port = port
        self._read = read
        self._limit = trio.Semaphore(MAX_CLIENTS)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Raises OSError if the port cannot be had."""
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=HOST, backlog=BACKLOG)
        except OSError as error:
            raise OSError(error.errno, f"metrics_port {self._port} on {HOST}: {error.strerror}") from error
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            self._limit.acquire_nowait()
        except trio.WouldBlock:
            await stream.aclose()
            return
        try:
            with trio.move_on_after(CLIENT_TIMEOUT):
                await stream.send_all(await self._answer(await _request_line(stream)))
                await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._limit.release()
            await trio.aclose_forcefully(stream)

    async def _answer(self, request_line: bytes) -> bytes:
        method, _, rest = request_line.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"GET only\n", extra="Allow: GET, HEAD\r\n")
        if path != b"/metrics":
            return _response("404 Not Found", b"there is /metrics\n")
        body = await self._read()
        return _response("200 OK", body, content_type=CONTENT_TYPE, with_body=method == b"GET")


async def _request_line(stream: trio.SocketStream) -> bytes:
    """Read to the end of the headers, which nothing is taken from."""
    request = b""
    while b"\r\n\r\n" not in request and len(request) < MAX_REQUEST:
        part = await stream.receive_some(MAX_REQUEST)
        if not part:
            break
        request += part
    return request.partition(b"\r\n")[0]


def _response(
    status: str, body: bytes, *, content_type: str = "text/plain", extra: str = "", with_body: bool = True
) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}"
    return f"{head}Connection: close\r\n\r\n".encode() + (body if with_body else b"")
