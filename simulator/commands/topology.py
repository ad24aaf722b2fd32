"""meshsim topology import|export|generate|list."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import networkx as nx

from simulator import topology, topology_files
from simulator.raw_graph import TopologyError

EXAMPLES = """
examples:
  meshsim topology list
  meshsim topology import meshviewer.json --output mesh.netjson --to netjson
  meshsim topology export map:freifunk-leipzig --to graphml --output leipzig.graphml
  meshsim topology generate geometric:200:6 --seed 3 --to csv
"""
MAX_GENERATED = 100_000


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "topology",
        help="graphs from files, to files, or made",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="topology_verb", metavar="VERB", required=True)

    def add_verb(name: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_examples_of(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return made

    import_ = add_verb("import", "read a file, say what is in it, and write it in another format")
    import_.add_argument("file", type=Path, help="GraphML, NetJSON NetworkGraph, meshviewer's JSON, or a list of edges")
    import_.add_argument("--from", dest="kind", choices=sorted(topology_files.READERS), help="default: by the content")
    import_.add_argument(
        "--component", choices=("largest", "all"), default="largest", help="of an unconnected graph (default: largest)"
    )
    export = add_verb("export", "write a topology that `run --topology` knows")
    export.add_argument("name", help=f"known: {topology.NAMES}")
    generate = add_verb("generate", "make a graph and write it")
    generate.add_argument("name", help="such as grid:10x10 or geometric:200:6")
    for verb in (export, generate):
        verb.add_argument("--seed", type=int, default=0, help="of random graphs and costs (default: 0)")
        verb.add_argument("--cost-range", default="96:96", metavar="LOW:HIGH", help="of links (default: 96:96)")
    for verb in (import_, export, generate):
        verb.add_argument("--to", choices=sorted(topology_files.WRITERS), default="netjson", help="(default: netjson)")
        verb.add_argument("--output", type=Path, metavar="FILE", help="default: the screen; import: nothing is written")
    add_verb("list", "the maps that come with meshsim")
    parser.set_defaults(handler=run)


def _examples_of(verb: str) -> str:
    lines = [line for line in EXAMPLES.splitlines() if f"topology {verb}" in line]
    return "\n".join(["examples:", *lines])


def run(options: argparse.Namespace) -> int:
    try:
        return _run(options)
    except TopologyError as error:
        print(f"meshsim: {error}", file=sys.stderr)
    except OSError as error:
        print(f"meshsim: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


def _run(options: argparse.Namespace) -> int:
    if options.topology_verb == "list":
        for name in topology_files.shipped():
            print(f"map:{name:<20} {describe(topology_files.read(topology_files.shipped_path(name)))}")
        return 0
    if options.topology_verb == "import":
        graph = topology_files.read(options.file, options.kind, component=options.component)
        print(describe(graph), file=sys.stderr)
        if options.output is None:
            return 0
    else:
        costs = _costs(options.cost_range)
        rng = random.Random(f"{options.seed}/graph")
        graph = topology.build(options.name, rng, costs, max_nodes=MAX_GENERATED)
    text = topology_files.render(graph, options.to)
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, "utf-8")
    return 0


def _costs(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if not (low.isdigit() and (high or low).isdigit()) or not 1 <= int(low) <= int(high or low) <= 65534:
        raise TopologyError(f"'{text}' is not a range of costs; write 96 or 64:256")
    return int(low), int(high or low)


def describe(graph: nx.Graph) -> str:
    """In one line."""
    nodes, links = graph.number_of_nodes(), graph.number_of_edges()
    placed = sum("x" in data for _, data in graph.nodes(data=True))
    parts = nx.number_connected_components(graph)
    costs = sorted(data["cost"] for _, _, data in graph.edges(data=True)) or [0]
    middle = costs[len(costs) // 2]
    return (
        f"{nodes} nodes ({placed} with a place), {links} links, {parts} part{'s' * (parts != 1)}, "
        f"mean degree {2 * links / nodes:.1f}, cost {costs[0]} to {costs[-1]}, median {middle}"
    )
