"""Cases of batch and flow, and of networkx alone."""

from __future__ import annotations

from tools.bench.simulator_cases import Document, Task, meshsim, script

MAPS = ("freifunk-leipzig", "freifunk-ulm", "freifunk-bremen", "freifunk-munich", "freifunk-aachen", "nycmesh")
GAP = 5e-3
NETWORKX = """
import json, random, networkx as nx
from routing.rules import price_metric
from simulator import topology
from simulator.run import random_fees
graph = topology.build("geometric:1000", random.Random("0/graph"))
fees = random_fees(graph, (0, 1_000_000), random.Random("0/fees"))
metric = {node: price_metric(fee, 256.0) for node, fee in fees.items()}
ways = nx.DiGraph()
for a, b, cost in graph.edges(data="cost"):
    ways.add_edge(a, b, cost=cost + metric[b])
    ways.add_edge(b, a, cost=cost + metric[a])
print(json.dumps({"routes": sum(len(d) - 1 for _, d in nx.all_pairs_dijkstra_path_length(ways, weight="cost"))}))
"""
NETWORKX_WORK = (
    "networkx: shortest distances of all pairs, same graph and fees; no messages, no tables, no history. "
    "batch: the protocol from a cold start, every update between neighbours, next hops, a digest of the history"
)
ALL_ENGINES = """
import sys
from simulator import main
sys.exit(max(main.main([verb, "--topology", "geometric:20"]) for verb in ("batch", "flow")))
"""
UNCOMPILED = f"""
import os, subprocess, sys, tempfile
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-c", {ALL_ENGINES!r}]
    sys.exit(subprocess.call(command, env=os.environ | {{"XDG_CACHE_HOME": folder}}))
"""


def no_loops(document: Document) -> list[str]:
    return [] if document.get("loops") == 0 else [f"{document.get('loops')} loops"]


def all_pairs(document: Document) -> list[str]:
    nodes = int(document["nodes"])
    missing = nodes * (nodes - 1) - int(document["routes"])
    return no_loops(document) + ([f"{missing} routes are missing"] if missing else [])


def small_gap(document: Document) -> list[str]:
    return [] if float(document["gap"]) <= GAP else [f"gap {document['gap']}"]


def batch(
    name: str, topology: str, *more: str, seconds: float, memory: float | None = None, is_long: bool = False
) -> Task:
    return Task(name, meshsim("batch", "--topology", topology, *more), seconds, memory, is_long, check=all_pairs)


def flow(count: int, seconds: float) -> Task:
    command = meshsim("flow", "--topology", f"geometric:{count}", "--gap", str(GAP))
    return Task(f"flow, equilibrium, {count:,}", command, seconds, 1024, check=small_gap)


def tasks() -> list[Task]:
    return [
        Task(
            "compilation, once for each version",
            script(UNCOMPILED),
            work="batch and flow of 20 nodes, nothing compiled yet",
        ),
        Task("start, all compiled", script(ALL_ENGINES), work="the same again"),
        Task("networkx, 1,000, distances alone", script(NETWORKX)),
        batch("batch, 1,000", "geometric:1000", seconds=5),
        Task(
            "batch, 1,000, beside networkx",
            meshsim("batch", "--topology", "geometric:1000"),
            anchor="networkx, 1,000, distances alone",
            work=NETWORKX_WORK,
            check=all_pairs,
        ),
        *(batch(f"batch, {name}", f"map:{name}", seconds=5) for name in MAPS),
        batch("batch, 1,000, a steady hour", "geometric:1000", "--steady", "3600", seconds=60),
        flow(100_000, 60),
        flow(1_000_000, 300),
        batch("batch, 5,000", "geometric:5000", seconds=180, memory=5120, is_long=True),
        batch(
            "batch, 10,000, sharded",
            "geometric:10000",
            *("--shards", "64"),
            seconds=1200,
            memory=5120,
            is_long=True,
        ),
    ]
