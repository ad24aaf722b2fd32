"""The meshsim command."""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from routing.recording import Write
from routing.rules import PRICE_NOT_FOR_SALE
from simulator import compiled, preflight, topology
from simulator.commands import compile as compile_command
from simulator.commands import large as large_command
from simulator.commands import scenario as scenario_command
from simulator.commands import sweep as sweep_command
from simulator.commands import topology as topology_command
from simulator.commands import verify as verify_command
from simulator.network import Network, Options
from simulator.run import Report, random_fees, simulate

EXAMPLES = f"""
topologies: {topology.NAMES}

examples:
  meshsim run --topology grid:10x10 --seed 1
  meshsim run --topology geometric:300 --fee-range 0:500000 --json
  meshsim run --topology line:20 --latency 0.02 --wire
  meshsim run city.toml --output results
  meshsim run city.toml --verify results/manifest.json

Exit codes: 0 every route is a cheapest one and no loop ever formed; 1 not so; 2 the command line is wrong.
The same arguments and seed give the same trace, on any machine.
"""

ANNOUNCED_SECONDS = 5.0  # what takes longer is told before
COMMANDS = (scenario_command, sweep_command, large_command, verify_command, topology_command, compile_command)


def _range(text: str) -> tuple[int, int]:
    """`5` or `0:1000`."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a range; write 1000 or 0:1000")
    return int(found[1]), int(found[2] or found[1])


def _fees(text: str) -> tuple[int, int]:
    low, high = _range(text)
    if high >= PRICE_NOT_FOR_SALE:
        raise argparse.ArgumentTypeError(f"a fee is below {PRICE_NOT_FOR_SALE} msat per GB")
    return low, high


def _costs(text: str) -> tuple[int, int]:
    low, high = _range(text)
    if not 1 <= low <= high < 65535:
        raise argparse.ArgumentTypeError("a cost is from 1 to 65534")
    return low, high


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def _size(text: str) -> float:
    try:
        return preflight.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _recording(text: str) -> tuple[int, Path]:
    found = re.fullmatch(r"(\d+):(.+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a node and a file; write 0:node.recording")
    return int(found[1]), Path(found[2])


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="meshsim",
        description="Simulates meshes with meshd's own routing code.",
        epilog=EXAMPLES,
        formatter_class=formatter,
    )
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="a scenario, or a cold start until the routes are the best ones",
        epilog=EXAMPLES,
        formatter_class=formatter,
    )
    run.add_argument("--topology", default="grid:10x10", help="which graph (default: %(default)s)")
    scenario_command.add_arguments(run)
    run.add_argument("--seed", type=int, help="of graph, fees, costs and timing (default: the scenario's, or 0)")
    run.add_argument(
        "--fee-range", type=_fees, default=(0, 1_000_000), metavar="LOW:HIGH", help="msat per GB (default: 0:1000000)"
    )
    run.add_argument(
        "--cost-range",
        type=_costs,
        default=(96, 96),
        metavar="LOW:HIGH",
        help="of a link, one for both ways (default: 96)",
    )
    run.add_argument(
        "--latency", type=_seconds, default=0.001, metavar="SECONDS", help="one way (default: %(default)s)"
    )
    run.add_argument(
        "--start-spread", type=_seconds, default=0.1, metavar="SECONDS", help="nodes start within this time"
    )
    run.add_argument("--wire", action="store_true", help="encode and decode every packet; counts bytes")
    run.add_argument(
        "--until", type=_seconds, default=300.0, metavar="SECONDS", help="virtual time at most (default: 300)"
    )
    run.add_argument(
        "--quiet",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="stop this long after the last change (default: 20)",
    )
    run.add_argument(
        "--record", type=_recording, metavar="NODE:FILE", help="all that goes into and out of a node, for tools/replay"
    )
    run.add_argument("--max-memory", type=_size, metavar="SIZE", help="refuse what needs more, such as 2G")
    run.add_argument("--json", action="store_true", help="the report as one JSON object")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _progress(messages: float) -> Callable[[Network], None]:
    """A line on stderr every two seconds: a short run stays silent. The end is estimated by the messages to be sent."""
    started = shown = time.monotonic()

    def show(network: Network) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 2.0:
            shown = now
            ratio = network.now / (now - started)
            line = f"{now - started:6.0f} s: {network.now:8.2f} s simulated ({ratio:.2f} x real time)"
            done = min(0.99, network.traffic.tlvs / messages)
            rest = (now - started) * (1.0 - done) / done if done > 0 else 0.0
            print(f"{line}, {done:.0%}, about {rest:.0f} s to go", file=sys.stderr, flush=True)

    return show


def _at(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.3f} s"


def _print_report(report: Report, topology_name: str, real_seconds: float) -> None:
    agreement = "all the same" if not report.difference_count else f"{report.difference_count} DIFFER"
    size = "not counted (--wire)" if report.bytes is None else str(report.bytes)
    rows = [
        ("topology", f"{topology_name}: {report.nodes} nodes, {report.links} links; seed {report.seed}"),
        ("simulated", f"{report.virtual_seconds:.1f} s in {real_seconds:.1f} s of real time"),
        ("99 % of routes there", _at(report.routes_99_at)),
        ("all routes there", _at(report.routes_all_at)),
        ("all routes best", _at(report.all_best_at)),
        ("last route change", _at(report.last_change_at)),
        ("route changes", str(report.route_changes)),
        ("packets, messages", f"{report.packets}, {report.tlvs}"),
        ("bytes", size),
        ("forwarding loops", str(report.loops)),
        ("shortest paths", agreement),
        ("trace", report.trace),
    ]
    for name, value in rows:
        print(f"{name:<22}{value}")
    for difference in report.differences:
        print(f"  {difference}")


def _writer(file: IO[str]) -> Write:
    def write(line: str) -> bool:
        file.write(line)
        return True

    return write


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.verb != "run":
        status: int = options.handler(options)
        return status
    if options.scenario is not None:
        return scenario_command.run(options)
    options.seed = options.seed or 0
    try:
        graph = topology.build(options.topology, random.Random(f"{options.seed}/graph"), options.cost_range)
    except topology.TopologyError as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    fees = random_fees(graph, options.fee_range, random.Random(f"{options.seed}/fees"))
    settings = Options(seed=options.seed, latency=options.latency, start_spread=options.start_spread, wire=options.wire)
    size = (graph.number_of_nodes(), graph.number_of_edges())
    estimate = preflight.exact(*size, seconds=0.0, is_compiled=compiled.is_active())
    started = time.monotonic()
    try:
        if estimate.seconds > ANNOUNCED_SECONDS:
            print(f"meshsim: {estimate}", file=sys.stderr, flush=True)
        estimate.check(options.max_memory)
        with ExitStack() as files:
            write_by_node = {}
            if options.record is not None:
                node, path = options.record
                if node not in graph:
                    raise topology.TopologyError(f"no node {node} to record")
                write_by_node[node] = _writer(files.enter_context(path.open("w")))
            report = simulate(
                graph,
                fees,
                settings,
                until=options.until,
                quiet=options.quiet,
                progress=_progress(preflight.exact_messages(*size, seconds=0.0)),
                write_by_node=write_by_node,
            )
    except (OSError, topology.TopologyError, preflight.PreflightError) as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    real_seconds = time.monotonic() - started
    if options.json:
        document = report.to_document() | {"topology": options.topology, "real_seconds": round(real_seconds, 3)}
        document["compiled"] = compiled.is_active()
        print(json.dumps(document, indent=2))
    else:
        _print_report(report, options.topology, real_seconds)
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
