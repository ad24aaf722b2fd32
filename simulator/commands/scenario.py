"""meshsim run SCENARIO.toml, and meshsim report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulator import compiled, plots, preflight, results, webmap
from simulator.exact.world import World
from simulator.network import Network
from simulator.scenario import Scenario, ScenarioError, load


def add_arguments(run: argparse.ArgumentParser) -> None:
    """Those of `meshsim run` that are for scenarios alone."""
    run.add_argument("scenario", nargs="?", type=Path, help="a TOML file (docs/scenarios.md), in place of --topology")
    run.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write summary, manifest, CSV files and the map there"
    )
    run.add_argument("--verify", type=Path, metavar="MANIFEST", help="run, then compare with an earlier run's manifest")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="show a result folder of `meshsim run --output`",
        epilog="examples:\n  meshsim run city.toml --output results\n  meshsim report results --plots",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="what --output named")
    parser.add_argument("--json", action="store_true", help="as it was written")
    parser.add_argument("--plots", action="store_true", help="draw PNG files into the folder (needs matplotlib)")
    parser.set_defaults(handler=report)


def progress(duration: float) -> Callable[[Network], None]:
    """A line on stderr every two seconds, with the estimated end: a short run stays silent."""
    started = shown = time.monotonic()

    def show(network: Network) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < 2.0:
            return
        shown = now
        ratio = network.now / (now - started)
        rest = (duration - network.now) / ratio if ratio > 0 else 0.0
        end = time.strftime("%H:%M:%S", time.localtime(time.time() + min(rest, 1e7)))
        line = f"{network.now:.2f} of {duration:g} s simulated, {ratio:.3g} x real time"
        print(
            f"{line}, {network.event_count} events; {rest:.0f} s to go, ends about {end}", file=sys.stderr, flush=True
        )

    return show


def run(options: argparse.Namespace) -> int:
    """0: the routes are the oracle's, no loop of honest nodes, no money from nowhere, and the traces are the same."""
    try:
        scenario = load(options.scenario)
        seed = scenario.run.seed if options.seed is None else options.seed
        earlier = None if options.verify is None else _manifest(options.verify)
        if earlier is not None:
            seed = int(earlier["seed"])
        started = time.monotonic()
        world = _simulate(scenario, seed, wire=options.wire, max_memory=options.max_memory)
        real_seconds = time.monotonic() - started
        summary = results.document(world)
        if scenario.adversaries:
            fair = _simulate(dataclasses.replace(scenario, adversaries=()), seed, wire=options.wire)
            summary["against_fair"] = results.compare_with_fair(world, fair)
        if options.output is not None:
            results.write_folder(options.output, world, summary, real_seconds)
            (options.output / "map.html").write_text(webmap.render(world), "utf-8")
    except (ScenarioError, preflight.PreflightError) as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"meshsim: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(summary | {"real_seconds": round(real_seconds, 3)}, indent=2))
    else:
        show(summary, real_seconds)
    is_same = earlier is None or _is_same(earlier, results.manifest(world, real_seconds))
    return 0 if summary["ok"] and is_same else 1


def _simulate(scenario: Scenario, seed: int, *, wire: bool, max_memory: float | None = None) -> World:
    world = World(scenario, seed=seed, wire=wire)
    size = (world.graph.number_of_nodes(), world.graph.number_of_edges())
    preflight.exact(*size, seconds=scenario.run.duration, is_compiled=compiled.is_active()).check(max_memory)
    world.run(progress(scenario.run.duration))
    return world


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not {"seed", "trace", "scenario"} <= found.keys():
            raise ValueError
    except ValueError as error:
        raise ScenarioError(f"{path}: not a manifest of meshsim") from error
    return found


def _is_same(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    different = [
        name for name in ("scenario", "seed", "wire", "trace", "route_trace") if earlier.get(name) != now[name]
    ]
    for name in different:
        print(f"meshsim: {name} was {earlier.get(name)}, and is {now[name]}", file=sys.stderr)
    if different:
        print(f"meshsim: made with {earlier.get('versions')}, now {now['versions']}", file=sys.stderr)
    else:
        print("the same trace", file=sys.stderr)
    return not different


def show(summary: dict[str, Any], real_seconds: float | None = None) -> None:
    """For people."""
    traffic = summary["traffic"]
    real = "" if real_seconds is None else f" in {real_seconds:.1f} s of real time"
    rows = [
        ("scenario", f"{summary['name']} ({summary['scenario']}); seed {summary['seed']}"),
        ("graph", f"{summary['nodes']} nodes, {summary['links']} links"),
        ("simulated", f"{summary['virtual_seconds']:.1f} s{real}"),
        ("route changes", str(summary["route_changes"])),
        ("packets, messages", f"{summary['packets']}, {summary['messages']}"),
        ("forwarding loops", str(summary["loops"])),
    ]
    if summary["is_steady"]:
        rows.insert(3, ("all routes there, best", f"{_at(summary['routes_all_at'])}, {_at(summary['all_best_at'])}"))
        wrong = summary["difference_count"]
        rows.append(("shortest paths", "all the same" if not wrong else f"{wrong} DIFFER"))
    for item in summary["happenings"][:10]:
        ends = " ".join(str(end) for end in (*item["nodes"], *item["links"])[:5])
        rows.append(
            (f"at {item['at']:.1f} s", f"{item['what']} {ends}: settled after {item['settled_at'] - item['at']:.2f} s")
        )
    if traffic["wanted"]:
        share = traffic["delivered"] / traffic["wanted"]
        rows.append(
            ("traffic", f"{traffic['delivered'] / 1e6:.1f} MB delivered of {traffic['wanted'] / 1e6:.1f} ({share:.1%})")
        )
    if payments := summary.get("payments"):
        rows.append(("payments", f"{payments['count']} of {_sat(payments['received_msat'])} in all"))
        rows.append(("unpaid, defaults", f"{_sat(payments['unpaid_msat'])}, {payments['defaults']}"))
        rows.append(("money from nowhere", f"{payments['from_nowhere_msat']} msat"))
    for earner in summary["earners"][:3]:
        rows.append(
            (f"node {earner['name']}", f"{_sat(earner['balance_msat'])} for {earner['carried_bytes'] / 1e6:.1f} MB")
        )
    if cheat := summary.get("against_fair"):
        gains = {"cheats": cheat["gain_of_cheats"], "others": cheat["gain_of_others"]}
        if len(cheat["kinds"]) > 1:
            gains = {kind.replace("_", " "): gain for kind, gain in cheat["gain_by_kind"].items()} | gains
        for who, gain in gains.items():
            text = f"{_sat(gain['balance_msat'])}, {gain['delivered_bytes'] / 1e6:+.1f} MB delivered"
            rows.append((f"{who}, against fair", text))
        if cheat["unpaid_by_cheats_msat"] is not None:
            rows.append(("unpaid by the cheats", _sat(cheat["unpaid_by_cheats_msat"])))
    rows.append(("trace", summary["trace"]))
    for name, value in rows:
        print(f"{name:<23} {value}")
    for difference in summary["differences"]:
        print(f"  {difference}")


def _at(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.3f} s"


def _sat(msat: int) -> str:
    return f"{msat / 1000:.3f} sat"


def report(options: argparse.Namespace) -> int:
    try:
        text = (options.folder / "summary.json").read_text()
        summary = json.loads(text)
        if options.json:
            print(text, end="")
        else:
            show(summary)
        if options.plots:
            for path in plots.draw(options.folder):
                print(path, file=sys.stderr)
    except plots.PlotError as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"meshsim: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except (ValueError, KeyError, TypeError):
        print(f"meshsim: {options.folder / 'summary.json'}: not a summary of meshsim", file=sys.stderr)
        return 2
    return 0
