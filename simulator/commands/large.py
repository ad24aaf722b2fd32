"""meshsim batch and meshsim flow: what is too large for real speakers."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from routing import rules
from simulator import dask_cluster, jit, preflight, tables, topology
from simulator.batch import engine, shards
from simulator.batch.engine import Step
from simulator.batch.plan import plan
from simulator.draft import Draft
from simulator.flow import economy, market, mesh
from simulator.preflight import Estimate, PreflightError
from simulator.run import random_fees
from simulator.scenario import ScenarioError, load

EXAMPLES = """
examples:
  meshsim batch --topology map:freifunk-bremen
  meshsim batch --topology geometric:5000 --shards 8 --workers 2 --max-memory 4G
  meshsim batch --topology geometric:10000 --shards 64 --processes --folder shards
  meshsim batch --topology geometric:1000 --steady 3600
  meshsim batch city.toml --output routes.parquet
  meshsim flow --topology geometric:100000 --gateways 100
  meshsim flow city.toml --output nodes.csv
  meshsim flow --topology map:nycmesh --rule --rounds 200 --sticky 0

Exit codes: 0 no loop formed, or the gap is reached; 1 not so; 2 it cannot be run, or needs too much memory.
"""
MBIT = 1e6
UPDATE_INTERVAL = 16.0  # seconds (routing.config)
MAX_DRAWN = 200_000  # nodes of a scenario, which is drawn in Python


def add_parser(commands: Any) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    batch = commands.add_parser(
        "batch", help="a cold start of 1,000 to 10,000 nodes, all pairs", epilog=EXAMPLES, formatter_class=formatter
    )
    flow = commands.add_parser(
        "flow",
        help="routes, loads and prices at rest, up to a million nodes",
        epilog=EXAMPLES,
        formatter_class=formatter,
    )
    batch.add_argument("--topology", default="geometric:1000", help="(default: %(default)s)")
    batch.add_argument("--shards", type=int, default=8, help="the result does not depend on it (default: 8)")
    batch.add_argument("--workers", type=int, default=2, help="threads, or processes (default: 2)")
    batch.add_argument("--processes", action="store_true", help="run the shards in processes instead of threads")
    batch.add_argument("--dask", metavar="ADDRESS", help="run the shards on this cluster, such as tcp://10.0.0.1:8786")
    batch.add_argument("--folder", type=Path, help="keep each shard's result there, and go on with what is missing")
    batch.add_argument("--untraced", action="store_true", help="no digest of the history: a fifth less time")
    batch.add_argument(
        "--steady", type=float, default=0.0, metavar="SECONDS", help="then repeat all updates every 16 s for so long"
    )
    flow.add_argument("--topology", default="geometric:100000", help="(default: %(default)s)")
    flow.add_argument("--gateways", type=int, help="at random places (default: one for each thousand nodes)")
    flow.add_argument("--demand", type=float, default=0.1, metavar="MBIT/S", help="of each node (default: 0.1)")
    flow.add_argument("--capacity", type=float, default=100.0, metavar="MBIT/S", help="of each node (default: 100)")
    flow.add_argument("--gap", type=float, default=5e-3, help="relative, of the equilibrium (default: 0.005)")
    flow.add_argument("--rule", action="store_true", help="the daemons' price rule in place of an equilibrium")
    flow.add_argument("--sticky", type=float, default=0.1, help="with --rule: hysteresis; below 0: none (default: 0.1)")
    flow.add_argument("--rounds", type=int, default=200, help="at most; with --rule: intervals (default: 200)")
    for parser in (batch, flow):
        parser.add_argument(
            "scenario", nargs="?", type=Path, help="a TOML file (docs/scenarios.md), in place of --topology"
        )
        parser.add_argument("--seed", type=int, help="of graph, fees and places (default: the scenario's, or 0)")
        parser.add_argument(
            "--output", type=Path, metavar="FILE", help="with a scenario: a row for each node, .csv or .parquet"
        )
        parser.add_argument("--max-memory", type=memory_size, metavar="SIZE", help="refuse what needs more, such as 2G")
        parser.add_argument("--json", action="store_true", help="as one JSON object")
    batch.set_defaults(handler=lambda options: _guard(run_batch, options))
    flow.set_defaults(handler=lambda options: _guard(run_flow, options))


def memory_size(text: str) -> float:
    try:
        return preflight.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _guard(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        scenario = None if options.scenario is None else load(options.scenario)
        if options.seed is None:
            options.seed = 0 if scenario is None else scenario.run.seed
        options.draft = None if scenario is None else Draft(scenario, options.seed, max_nodes=MAX_DRAWN)
        return run(options)
    except (
        ScenarioError,
        tables.TableError,
        dask_cluster.ClusterError,
        topology.TopologyError,
        engine.BatchError,
        PreflightError,
        ValueError,
    ) as error:
        print(f"meshsim: {error}", file=sys.stderr)
    except OSError as error:
        print(f"meshsim: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


class Progress:
    """A bar on stderr every second, with the estimated end; a short run stays silent."""

    def __init__(self) -> None:
        self._started = self._shown = time.monotonic()
        self._lock = threading.Lock()

    def show(self, share: float, text: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._shown < 1.0:
                return
            self._shown = now
            rest = (now - self._started) * (1.0 - share) / share if share > 0 else 0.0
            bar = "#" * int(30 * share)
            print(f"[{bar:<30}] {share:4.0%} {text}, about {rest:.0f} s to go", file=sys.stderr, flush=True)


def _announce(estimate: Estimate, options: argparse.Namespace) -> None:
    estimate.check(options.max_memory)
    if estimate.seconds > 5 and not options.json:
        print(f"meshsim: needs {estimate}", file=sys.stderr)


def run_batch(options: argparse.Namespace) -> int:
    steps, weight, left_out = list(engine.COLD_START), market.PRICE_WEIGHT, []
    if options.draft is None:
        _announce(preflight.batch(_count(options.topology), 3 * _count(options.topology)), options)
        rng = random.Random(f"{options.seed}/graph")
        graph = topology.build(options.topology, rng, max_nodes=engine.MAX_NODES)
        fees = random_fees(graph, (0, 1_000_000), random.Random(f"{options.seed}/fees"))
    else:
        graph, fees = options.draft.graph, options.draft.asked_fees()
        planned = plan(options.draft)
        steps, left_out, weight = planned.steps, planned.left_out, options.draft.scenario.routing.price_weight
    rounds, workers = int(options.steady // UPDATE_INTERVAL), max(1, options.workers)
    _announce(preflight.batch(len(graph), graph.number_of_edges(), workers=workers, rounds=rounds), options)
    started, cpu = time.monotonic(), _cpu_seconds()
    jobs = engine.jobs(
        graph,
        fees,
        [*steps, *[Step("refresh")] * rounds],
        price_weight=weight,
        shards=max(1, options.shards),
        is_traced=not options.untraced,
        keeps_routes=options.output is not None,
    )
    progress = Progress()
    result = shards.run(
        jobs,
        _submit(options, workers),
        options.folder,
        lambda n, whole: progress.show(n / whole, f"{n} of {whole} shards"),
    )
    if options.output is not None:
        tables.write(options.output, _routes(result))
    _print(
        options,
        {
            **_name(options),
            "nodes": len(graph),
            "links": graph.number_of_edges(),
            "seed": options.seed,
            "steps": len(steps),
            "updates": result.updates,
            "requests": result.requests,
            "route_changes": result.changes,
            "ticks": max(result.step_ticks[: len(steps)]),
            "rounds": rounds,
            "loops": result.loops,
            "routes": result.routes,
            "trace": None if options.untraced else result.trace.digest(),
            "left_out": left_out,
            "numba": jit.version(),
            "cpu_seconds": round(_cpu_seconds() - cpu, 3),
            "real_seconds": round(time.monotonic() - started, 3),
        },
    )
    return 0 if result.loops == 0 else 1


def _submit(options: argparse.Namespace, workers: int) -> shards.Submit:
    if options.dask is not None:
        return dask_cluster.submit(options.dask)
    return shards.in_processes(workers) if options.processes else shards.in_threads(workers)


def _name(options: argparse.Namespace) -> dict[str, Any]:
    if options.draft is None:
        return {"topology": options.topology}
    scenario = options.draft.scenario
    return {"name": scenario.run.name, "scenario": scenario.digest()}


def _routes(result: engine.BatchResult) -> dict[str, list[Any]]:
    """A row for each pair with a route."""
    rows, nodes = np.nonzero(result.next_hop >= 0)
    return {
        "destination": np.array(result.destinations)[rows].tolist(),
        "node": nodes.tolist(),
        "next_hop": result.next_hop[rows, nodes].tolist(),
        "metric": result.metric[rows, nodes].tolist(),
    }


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _count(text: str) -> int:
    """Of nodes, as far as the name tells; before the graph is built."""
    numbers = [int(number) for number in re.findall(r"\d+", text.partition(":")[2].partition(":")[0])]
    if text.startswith(("file:", "map:")) or not numbers:
        return 1
    return int(np.prod(numbers, dtype=float))


def _mesh(options: argparse.Namespace) -> mesh.Mesh:
    if found := re.fullmatch(r"geometric:(\d{1,7})(?::(\d{1,2}))?", options.topology):
        _announce(preflight.flow(int(found[1]), 3 * int(found[1]), rounds=20), options)
        return mesh.geometric(int(found[1]), float(found[2] or 6), options.seed)
    return mesh.from_graph(topology.build(options.topology, random.Random(f"{options.seed}/graph"), max_nodes=200_000))


def run_flow(options: argparse.Namespace) -> int:
    if not (options.demand >= 0 and options.capacity > 0 and options.gap > 0 and options.rounds > 0):
        raise ValueError("--capacity, --gap and --rounds are positive, --demand is not negative")
    if options.draft is not None:
        return _run_economy(options)
    made = _mesh(options)
    count = made.node_count
    wanted = options.gateways if options.gateways is not None else max(1, count // 1000)
    if not 1 <= wanted <= count:
        raise ValueError(f"{wanted} gateways of {count} nodes")
    roots = [int(n) for n in np.random.default_rng(options.seed + 1).choice(count, wanted, replace=False)]
    capacity = np.full(count, options.capacity * MBIT)
    capacity[roots] *= 10
    started, cpu = time.monotonic(), time.process_time()
    economy = _rule if options.rule else _equilibrium
    is_good, found = economy(options, made, roots, capacity)
    document: dict[str, Any] = {
        "topology": options.topology,
        "nodes": count,
        "links": made.link_count,
        "gateways": len(roots),
        "seed": options.seed,
        **found,
        "numba": jit.version(),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "real_seconds": round(time.monotonic() - started, 3),
    }
    _print(options, document)
    return 0 if is_good else 1


def _run_economy(options: argparse.Namespace) -> int:
    """A scenario: its fees, or those that the price rule makes of them, its demand and gateways."""
    graph = options.draft.graph
    _announce(preflight.flow(len(graph), graph.number_of_edges(), rounds=options.rounds), options)
    progress = Progress()
    started, cpu = time.monotonic(), _cpu_seconds()
    found = economy.settle(
        options.draft,
        rounds=options.rounds,
        progress=lambda done, moved: progress.show(done / options.rounds, f"{moved:.1%} switch"),
    )
    best = np.argsort(-found.earned, kind="stable")[:10]
    if options.output is not None:
        columns = {"load": found.load, "fee": found.fee, "earned": found.earned, "demand": found.demand}
        rows = {name: column.tolist() for name, column in columns.items()}
        names = {
            "node": list(range(len(graph))),
            "name": options.draft.names,
            "role": list(options.draft.roles.values()),
        }
        tables.write(options.output, names | rows)
    _print(
        options,
        {
            **_name(options),
            "nodes": len(graph),
            "links": graph.number_of_edges(),
            "seed": options.seed,
            "reached": int(found.is_reached.sum()),
            "intervals": len(found.run.rounds),
            "flapping": found.run.flapping(),
            "carried_bit_per_s": float(found.load.sum()),
            "utilisation_max": found.run.rounds[-1].utilisation_max,
            "earned_msat_per_s": float(found.earned.sum()),
            "earners": [
                {
                    "node": int(node),
                    "name": options.draft.names[node],
                    "msat_per_s": round(float(found.earned[node]), 6),
                }
                for node in best
                if found.earned[node] > 0
            ],
            "left_out": found.left_out,
            "numba": jit.version(),
            "cpu_seconds": round(_cpu_seconds() - cpu, 3),
            "real_seconds": round(time.monotonic() - started, 3),
        },
    )
    return 0


def _rule(
    options: argparse.Namespace, made: mesh.Mesh, roots: list[int], capacity: mesh.Floats
) -> tuple[bool, dict[str, Any]]:
    progress = Progress()
    run = market.follow_rule(
        made,
        roots,
        np.full(made.node_count, options.demand * MBIT),
        capacity,
        rounds=options.rounds,
        sticky_fraction=options.sticky,
        progress=lambda done, switched: progress.show(done / options.rounds, f"{switched:.1%} switch"),
    )
    last = run.rounds[-1]
    return True, {
        "reached": run.reached,
        "flapping": run.flapping(),
        "utilisation_max": last.utilisation_max,
        "price_median_msat_per_gb": last.price_median,
        "price_max_msat_per_gb": last.price_max,
    }


def _equilibrium(
    options: argparse.Namespace, made: mesh.Mesh, roots: list[int], capacity: mesh.Floats
) -> tuple[bool, dict[str, Any]]:
    """A relay asks 0.1 sat/MB when idle, and twice that at 70 % of its capacity."""
    progress = Progress()
    base = np.full(made.node_count, float(rules.price_metric(100_000, market.PRICE_WEIGHT)))
    found = market.equilibrium(
        made,
        roots,
        np.full(made.node_count, options.demand * MBIT),
        market.Congestion(base, base / (0.7 * capacity) ** 4, 4.0),
        gap=options.gap,
        rounds=options.rounds,
        progress=lambda done, gap: progress.show(
            min(1.0, options.gap / max(gap, 1e-12)), f"gap {gap:.3g} after {done} rounds"
        ),
    )
    earned = np.sort(found.earnings_msat_per_s())[::-1]
    return found.gap <= options.gap, {
        "reached": found.reached,
        "gap": found.gap,
        "rounds": len(found.gaps),
        "earned_msat_per_s": float(earned.sum()),
        "share_of_top_percent": float(earned[: max(1, len(earned) // 100)].sum() / max(earned.sum(), 1e-300)),
        "relays_that_earn": int((earned > 0).sum()),
    }


def _print(options: argparse.Namespace, document: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(document, indent=2))
        return
    for name, value in document.items():
        print(f"{name.replace('_', ' '):<26}{value:.6g}" if isinstance(value, float) else f"{name:<26}{value}")
