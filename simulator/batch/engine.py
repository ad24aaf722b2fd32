"""Runs the kernel for every destination, in shards, and puts the results together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from routing import rules
from simulator import jit
from simulator.batch import kernel as k
from simulator.trace import RouteTrace

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
_RECORD = np.dtype([("at", "<f8"), ("node", "<i8"), ("hop", "<i8"), ("metric", "<u4"), ("price", "<u4")])
TICK = 0.001  # seconds
KINDS = {
    "originate": k.ORIGINATE,
    "fee": k.SET_FEE,
    "link_down": k.LINK_DOWN,
    "link_up": k.LINK_UP,
    "cost": k.SET_COST,
    "refresh": k.REFRESH,
}
OF_LINKS = ("link_down", "link_up", "cost")
MAX_NODES = 20_000
FOREVER = 1 << 62
_FULL, _ENDLESS = 1, 2


class BatchError(Exception):
    """The network cannot be run; the message says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens when all is settled: `originate` (all nodes, the usual first one), `fee` of `node` becomes `value`,
    `link_down` and `link_up` between `node` and `value`, the `cost` of that link, `refresh`: everybody repeats its
    updates."""

    kind: str
    node: int = 0
    value: int = 0
    cost: int = 0


COLD_START = (Step("originate"),)


@dataclass(frozen=True, slots=True)
class Columns:
    """A graph in arrays; rows as in simulator.batch.kernel."""

    nodes: Int32
    slots: Int32
    slot_by_ends: Mapping[tuple[int, int], int]


@dataclass(slots=True)
class BatchResult:
    """`metric[i, n]` and `next_hop[i, n]` are of node n towards the i-th destination; no route is 65535 and -1. No
    rows if they were not wanted."""

    destinations: list[int]
    metric: NDArray[np.uint16]
    next_hop: NDArray[np.int32]
    routes: int = 0
    updates: int = 0
    requests: int = 0
    changes: int = 0
    loops: int = 0
    step_ticks: list[int] = field(default_factory=list)  # until the last change of a route
    trace: RouteTrace = field(default_factory=RouteTrace)


def columns(graph: nx.Graph, fee_by_node: Mapping[int, int]) -> Columns:
    """Raises BatchError unless the nodes are 0 to n-1."""
    count = graph.number_of_nodes()
    if sorted(graph) != list(range(count)) or not 1 <= count <= MAX_NODES:
        raise BatchError(f"{count} nodes; 1 to {MAX_NODES} are possible, numbered from 0")
    ends = sorted((a, b) for edge in graph.edges for a, b in (edge, edge[::-1]))
    slot_by_ends = {pair: slot for slot, pair in enumerate(ends)}
    slots = np.zeros((len(ends), k.SLOT_COLUMNS), np.int32)
    for slot, (a, b) in enumerate(ends):
        slots[slot, k.OWNER], slots[slot, k.NEIGHBOUR] = a, b
        slots[slot, k.REVERSE] = slot_by_ends[b, a]
        slots[slot, k.COST] = graph.edges[a, b]["cost"]
    slots[:, k.IS_UP] = 1
    slots[:, k.FIRST : k.SLOT_COLUMNS] = -1
    slots[:, k.ROUTE_PRICE] = k.stored(0)
    nodes = np.zeros((count, k.NODE_COLUMNS), np.int32)
    nodes[:, k.END_SLOT] = np.cumsum(np.bincount(slots[:, k.OWNER], minlength=count))
    nodes[1:, k.FIRST_SLOT] = nodes[:-1, k.END_SLOT]
    nodes[:, k.FEE] = [k.stored(fee_by_node[node]) for node in range(count)]
    nodes[:, k.PRICE] = k.stored(0)
    nodes[:, k.SELECTED] = -1
    nodes[:, k.RAISED_AT] = -k.SEQNO_TICKS
    return Columns(nodes, slots, slot_by_ends)


@dataclass(frozen=True, slots=True)
class Job:
    """A shard: some destinations of one network. It can be sent to another process, or to another machine."""

    nodes: Int32
    slots: Int32
    steps: Int64
    destinations: list[int]
    weight: float = 256.0
    is_immediate: bool = False
    is_traced: bool = True
    is_compiled: bool = True
    keeps_routes: bool = True
    traced_ticks: int = FOREVER


def simulate(
    graph: nx.Graph,
    fee_by_node: Mapping[int, int],
    steps: Sequence[Step] = COLD_START,
    *,
    price_weight: float = 256.0,
    is_immediate: bool = False,
    shards: int = 1,
    workers: int = 1,
    destinations: Iterable[int] | None = None,
    is_traced: bool = True,
    is_compiled: bool = True,
    traced_ticks: int = FOREVER,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> BatchResult:
    """All pairs, or those with these `destinations`. The result is the same for any number of shards and workers
    (threads; `simulator.batch.shards` has processes). The trace has the changes before `traced_ticks`.

    `progress(done, all)` counts destinations; it may be called by any thread. Raises BatchError."""
    parts = jobs(
        graph,
        fee_by_node,
        steps,
        price_weight=price_weight,
        is_immediate=is_immediate,
        shards=shards,
        destinations=destinations,
        is_traced=is_traced,
        is_compiled=is_compiled,
        traced_ticks=traced_ticks,
    )
    done, whole = [0], sum(len(part.destinations) for part in parts)

    def tell() -> None:
        done[0] += 1
        progress(done[0], whole)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        return merge(list(pool.map(lambda job: run_job(job, tell), parts)))


def jobs(
    graph: nx.Graph,
    fee_by_node: Mapping[int, int],
    steps: Sequence[Step] = COLD_START,
    *,
    price_weight: float = 256.0,
    is_immediate: bool = False,
    shards: int = 1,
    destinations: Iterable[int] | None = None,
    is_traced: bool = True,
    is_compiled: bool = True,
    keeps_routes: bool = True,
    traced_ticks: int = FOREVER,
) -> list[Job]:
    """The shards of one run; see `simulate`. Raises BatchError."""
    made = columns(graph, fee_by_node)
    rows = _rows(made, steps)
    wanted = sorted(set(graph if destinations is None else destinations))
    return [
        Job(
            made.nodes,
            made.slots,
            rows,
            part,
            weight=price_weight,
            is_immediate=is_immediate,
            is_traced=is_traced,
            is_compiled=is_compiled,
            keeps_routes=keeps_routes,
            traced_ticks=traced_ticks,
        )
        for part in (wanted[number::shards] for number in range(max(1, min(shards, len(wanted)))))
    ]


def run_job(job: Job, tell: Callable[[], None] = lambda: None) -> BatchResult:
    """Calls `tell` after each destination. Raises BatchError."""
    return _Shard(job).run(tell)


def merge(results: Sequence[BatchResult]) -> BatchResult:
    """Of shards with different destinations."""
    order = sorted((d, part, row) for part, result in enumerate(results) for row, d in enumerate(result.destinations))
    first = results[0]
    rows = len(order) if len(first.metric) or not first.destinations else 0
    whole = BatchResult(
        [destination for destination, _, _ in order],
        np.empty((rows, first.metric.shape[1]), np.uint16),
        np.empty((rows, first.metric.shape[1]), np.int32),
        step_ticks=[max(ticks) for ticks in zip(*(result.step_ticks for result in results), strict=True)],
    )
    for index, (_, part, row) in enumerate(order[:rows]):
        whole.metric[index] = results[part].metric[row]
        whole.next_hop[index] = results[part].next_hop[row]
    for result in results:
        whole.routes += result.routes
        whole.updates += result.updates
        whole.requests += result.requests
        whole.changes += result.changes
        whole.loops += result.loops
        whole.trace.merge(result.trace)
    return whole


def _kernel(is_compiled: bool) -> Callable[..., None]:
    helpers = tuple(f for f in jit.functions(rules, k) if f is not k.run_destination)
    return jit.compiled(k.run_destination, helpers) if is_compiled else k.run_destination


def _rows(made: Columns, steps: Sequence[Step]) -> Int64:
    rows = np.zeros((len(steps), 3), np.int64)
    for index, step in enumerate(steps):
        subject, value = step.node, step.value
        if step.kind in OF_LINKS:
            found = made.slot_by_ends.get((step.node, step.value))
            if found is None:
                raise BatchError(f"there is no link from {step.node} to {step.value}")
            subject, value = found, step.cost
        elif step.kind not in KINDS or not 0 <= step.node < len(made.nodes):
            raise BatchError(f"there is no step {step}")
        rows[index] = KINDS[step.kind], subject, value
    return rows


def first_room(count: int) -> int:
    """Of tables that grow when it is not enough."""
    return count + 64


class _Shard:
    """Some destinations, one after the other, in the same tables."""

    def __init__(self, job: Job) -> None:
        count, slot_count = len(job.nodes), len(job.slots)
        self._job = job
        self._ends = np.zeros(len(job.steps), np.int64)
        self._tables = k.Tables(
            nodes=np.zeros_like(job.nodes),
            slots=np.zeros_like(job.slots),
            messages=np.zeros((first_room(slot_count), k.MESSAGE_COLUMNS), np.int32),
            changes=np.zeros((8 * first_room(count) if job.is_traced else 1, k.CHANGE_COLUMNS), np.int32),
            hops=np.zeros(count, np.int32),
            awake=np.zeros((2, count), np.int8),
            state=np.zeros(k.STATE_SIZE, np.int64),
            weight=job.weight,
            is_immediate=job.is_immediate,
        )

    def run(self, tell: Callable[[], None]) -> BatchResult:
        job, kernel = self._job, _kernel(self._job.is_compiled)
        count, rows = len(job.nodes), len(job.destinations) if job.keeps_routes else 0
        result = BatchResult(
            list(job.destinations),
            np.full((rows, count), rules.METRIC_INFINITY, np.uint16),
            np.full((rows, count), -1, np.int32),
            step_ticks=[0] * len(job.steps),
        )
        for row, destination in enumerate(job.destinations):
            self._run_destination(kernel, destination)
            while self._tables.state[k.IS_FULL] == _FULL:
                self._grow()
                self._run_destination(kernel, destination)
            if self._tables.state[k.IS_FULL] == _ENDLESS:
                raise BatchError(f"the routes to {destination} did not settle in {k.TICKS_MAX} ticks")
            self._collect(result, row)
            tell()
        return result

    def _run_destination(self, kernel: Callable[..., None], destination: int) -> None:
        """From a network that knows nothing."""
        tables = self._tables
        tables.nodes[:] = self._job.nodes
        tables.slots[:] = self._job.slots
        tables.hops[:] = -1
        tables.awake[:] = 0
        tables.state[:] = 0
        tables.messages[:, k.NEXT] = np.arange(1, len(tables.messages) + 1)
        tables.messages[-1, k.NEXT] = -1
        kernel(tables, self._job.steps, self._ends, destination)

    def _grow(self) -> None:
        """Begun anew with more room, the outcome is the same."""
        messages = np.zeros((2 * len(self._tables.messages), k.MESSAGE_COLUMNS), np.int32)
        changes = np.zeros((2 * len(self._tables.changes) if self._job.is_traced else 1, k.CHANGE_COLUMNS), np.int32)
        self._tables = self._tables._replace(messages=messages, changes=changes)

    def _collect(self, result: BatchResult, row: int) -> None:
        tables = self._tables
        selected = tables.nodes[:, k.SELECTED]
        routed = np.flatnonzero(selected >= 0)
        result.routes += len(routed)
        if self._job.keeps_routes:
            result.metric[row, routed] = tables.slots[selected[routed], k.ROUTE_METRIC]
            result.next_hop[row] = tables.hops
        result.updates += int(tables.state[k.UPDATES])
        result.requests += int(tables.state[k.REQUESTS])
        result.changes += int(tables.state[k.CHANGE_COUNT])
        result.loops += int(tables.state[k.LOOPS])
        result.step_ticks = [max(a, int(b)) for a, b in zip(result.step_ticks, self._ends, strict=True)]
        changes = tables.changes[: tables.state[k.CHANGES_KEPT]]
        changes = changes[changes[:, k.AT] < self._job.traced_ticks]
        if len(changes):
            records = np.empty(len(changes), _RECORD)
            records["at"] = changes[:, k.AT] * TICK
            for name, column in (("node", k.NODE), ("hop", k.VIA), ("metric", k.C_METRIC)):
                records[name] = changes[:, column]
            records["price"] = changes[:, k.C_PRICE] + np.int64(k.PRICE_OFFSET)
            result.trace.add_many(result.destinations[row], records.tobytes())
