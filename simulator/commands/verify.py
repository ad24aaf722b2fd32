"""meshsim verify: the fidelities against each other."""

from __future__ import annotations

import argparse
import json
import random
import sys
from typing import Any

from simulator import jit, lockstep, topology, verify
from simulator.batch.engine import BatchError
from simulator.run import random_fees

EXAMPLES = """
examples:
  meshsim verify --topology geometric:40 --seed 3
  meshsim verify --topology map:freifunk-leipzig --json

Up to 120 nodes, real speakers are driven step by step, and every change of a route has to be the batch engine's. Then
batch in shards against batch as a whole, and batch against flow. Exit codes: 0 all agree; 1 not so; 2 it cannot be run.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="whether exact, batch and flow agree on one scenario",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--topology", default="geometric:30", help="which graph (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of graph, fees, costs and steps (default: 0)")
    parser.add_argument("--steps", type=int, default=4, help="fees that change and links that are cut (default: 4)")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    rng = random.Random(f"{options.seed}/graph")

    def tell(what: str) -> None:
        print(f"{what} ...", file=sys.stderr, flush=True)

    try:
        graph = topology.build(options.topology, rng, (64, 256))
        fees = random_fees(graph, (0, 1_000_000), random.Random(f"{options.seed}/fees"))
        steps = verify.random_steps(graph, random.Random(f"{options.seed}/steps"), max(0, options.steps))
        checks = verify.run(graph, fees, steps, tell=(lambda _: None) if options.json else tell)
    except (topology.TopologyError, BatchError, lockstep.LockstepError) as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    is_good = all(check.is_good for check in checks)
    if options.json:
        document = {
            "topology": options.topology,
            "seed": options.seed,
            "nodes": len(graph),
            "numba": jit.version(),
            "ok": is_good,
            "checks": [{"name": c.name, "ok": c.is_good, "detail": c.detail} for c in checks],
        }
        print(json.dumps(document, indent=2))
    else:
        for check in checks:
            print(f"{'ok  ' if check.is_good else 'FAIL'} {check.name:<24} {check.detail}")
    return 0 if is_good else 1
