"""What comes out of a run: a summary, CSV files, and a manifest that says how to get the same again."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simulator.exact.traffic import Flow
from simulator.exact.world import LINKS, NODES, TOTALS, World

PACKAGES = ("meshd", "networkx", "embit", "coincurve")


def document(world: World) -> dict[str, Any]:
    """Times in virtual seconds, money in msat."""
    network, watch = world.network, world.watch
    differences = world.differences()
    found: dict[str, Any] = {
        "name": world.scenario.run.name,
        "scenario": world.scenario.digest(),
        "seed": world.seed,
        "trace": network.trace,
        "route_trace": network.routes.digest(),
        "nodes": len(world.graph),
        "links": world.graph.number_of_edges(),
        "virtual_seconds": round(network.now, 6),
        "events": network.event_count,
        "packets": network.traffic.packets,
        "messages": network.traffic.tlvs,
        "route_changes": network.routes.count,
        "loops": len(network.loops),
        "is_steady": world.is_steady,
        "routes_99_at": watch.routes_99.since if world.is_steady else None,
        "routes_all_at": watch.routes_all.since if world.is_steady else None,
        "all_best_at": watch.all_best.since if world.is_steady else None,
        "difference_count": len(differences),
        "differences": differences[:20],
        "happenings": [
            {"at": item.at, "what": item.text, "nodes": item.nodes, "links": item.links, "settled_at": settled}
            for item, settled in zip(world.happenings, world.settled, strict=True)
        ],
        "traffic": _traffic(world.traffic.flows),
        "earners": _earners(world),
    }
    if world.bank is not None:
        missing, surplus = world.bank.difference()
        balances = world.bank.balances().values()
        found["payments"] = {
            "count": world.bank.payments,
            "paid_msat": sum(balance.sent for balance in balances),
            "received_msat": sum(balance.received for balance in balances),
            "lost_under_way_msat": missing,
            "from_nowhere_msat": surplus,
            "violation": world.bank.violation,
            "unpaid_msat": sum(balance.unpaid for balance in balances),
            "defaults": world.bank.defaults,
            "suspended": len(world.bank.suspended),
        }
    # A cheat, or losses, may make what honest routing alone must not.
    is_conserved = world.bank is None or (world.bank.violation is None and found["payments"]["from_nowhere_msat"] == 0)
    has_liars = bool(world.scenario.adversaries)
    found["ok"] = is_conserved and not differences and (has_liars or not network.loops)
    return found


def _traffic(flows: Sequence[Flow]) -> dict[str, int]:
    return {name: sum(getattr(flow, name) for flow in flows) for name in ("wanted", "offered", "delivered")}


def balance_msat(world: World, node: int) -> int:
    """What a node has gained: paid to it less paid by it; without payments, what would have been."""
    if world.bank is None:
        count = world.traffic.nodes[node]
        return (count.earned - count.owed) // 10**9
    balance = world.bank.balances().get(node)
    return 0 if balance is None else balance.received - balance.sent


def _earners(world: World) -> list[dict[str, Any]]:
    nodes = [node for node, count in sorted(world.traffic.nodes.items()) if count.carried]
    balances = {node: balance_msat(world, node) for node in nodes}
    return [
        {
            "node": node,
            "name": world.names[node],
            "balance_msat": balances[node],
            "carried_bytes": world.traffic.nodes[node].carried,
        }
        for node in sorted(nodes, key=lambda node: (-balances[node], node))[:10]
    ]


def compare_with_fair(world: World, fair: World) -> dict[str, Any]:
    """What the cheats gained by cheating, and what the others lost by it; `fair` is the same run without cheats."""
    cheats = sorted(world.cheats)
    others = [node for node in sorted(world.graph) if node not in world.cheats]
    kinds = sorted(set(world.cheats.values()))

    def gain(nodes: Iterable[int]) -> dict[str, int]:
        numbers = list(nodes)
        return {
            "balance_msat": sum(balance_msat(world, n) - balance_msat(fair, n) for n in numbers),
            "delivered_bytes": sum(world.traffic.nodes[n].delivered - fair.traffic.nodes[n].delivered for n in numbers),
        }

    return {
        "kinds": kinds,
        "cheats": cheats,
        "gain_of_cheats": gain(cheats),
        "gain_of_others": gain(others),
        "gain_by_kind": {kind: gain(node for node in cheats if world.cheats[node] == kind) for kind in kinds},
        "unpaid_by_cheats_msat": None if world.bank is None else world.bank.unpaid_by(cheats),
        "loops": len(world.network.loops),
        "packets": world.network.traffic.packets - fair.network.traffic.packets,
        "route_changes": world.network.routes.count - fair.network.routes.count,
    }


def manifest(world: World, real_seconds: float) -> dict[str, Any]:
    """How to get the same again. Versions and the machine do not enter the trace; they are for whoever finds a
    difference."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return {
        "fidelity": "exact",
        "scenario": world.scenario.digest(),
        "seed": world.seed,
        "wire": world.network.options.wire,
        "trace": world.network.trace,
        "route_trace": world.network.routes.digest(),
        "versions": {"python": platform.python_version(), **versions},
        "machine": f"{platform.system()} {platform.machine()}",
        "real_seconds": round(real_seconds, 3),
    }


def write_folder(folder: Path, world: World, summary: dict[str, Any], real_seconds: float) -> list[Path]:
    """summary.json, manifest.json, time.csv, nodes.csv, links.csv. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = world.samples
    written = []
    for name, content in (("summary.json", summary), ("manifest.json", manifest(world, real_seconds))):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        written.append(folder / name)
    tables: list[tuple[str, Sequence[str], Iterable[Sequence[Any]]]] = [
        ("time.csv", ("time", *TOTALS), ((t, *row) for t, row in zip(samples.times, samples.totals, strict=True))),
        (
            "nodes.csv",
            ("time", "node", "name", "role", *NODES),
            (
                (t, node, world.names[node], world.roles[node], *row)
                for t, rows in zip(samples.times, samples.nodes, strict=True)
                for node, row in enumerate(rows)
            ),
        ),
        (
            "links.csv",
            ("time", "a", "b", *LINKS),
            (
                (t, *world.edges[number], *row)
                for t, rows in zip(samples.times, samples.links, strict=True)
                for number, row in enumerate(rows)
            ),
        ),
    ]
    for name, header, rows in tables:
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        written.append(folder / name)
    return written
