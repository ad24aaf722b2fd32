"""meshsim verify: the fidelities against each other."""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from simulator import jit, lockstep, topology, verify
from simulator.batch.engine import BatchError, Step
from simulator.batch.plan import plan
from simulator.draft import Draft
from simulator.flow.market import PRICE_WEIGHT
from simulator.run import random_fees
from simulator.scenario import ScenarioError, load

EXAMPLES = """
examples:
  meshsim verify --topology geometric:40 --seed 3
  meshsim verify --topology map:freifunk-leipzig --json
  meshsim verify city.toml

Up to 120 nodes, real speakers are driven step by step, and every change of a route has to be the batch engine's. Then
batch in shards against batch as a whole, and batch against flow. Exit codes: 0 all agree; 1 not so; 2 it cannot be run.
"""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    seed: int
    graph: nx.Graph
    fees: dict[int, int]
    steps: list[Step]
    price_weight: float
    left_out: list[str]


def _random_case(options: argparse.Namespace) -> Case:
    seed = options.seed or 0
    graph = topology.build(options.topology, random.Random(f"{seed}/graph"), (64, 256))
    fees = random_fees(graph, (0, 1_000_000), random.Random(f"{seed}/fees"))
    steps = verify.random_steps(graph, random.Random(f"{seed}/steps"), max(0, options.steps))
    return Case(options.topology, seed, graph, fees, steps, PRICE_WEIGHT, [])


def _scenario_case(options: argparse.Namespace) -> Case:
    """Real speakers take the first steps only, and none from the first link on that returns."""
    scenario = load(options.scenario)
    seed = scenario.run.seed if options.seed is None else options.seed
    draft = Draft(scenario, seed)
    planned = plan(draft)
    is_late = [step.kind not in lockstep.KINDS for step in planned.steps]
    first = min(is_late.index(True) if True in is_late else len(is_late), lockstep.STEPS_MAX)
    left_out = planned.left_out + ([f"{len(planned.steps) - first} later steps"] if first < len(planned.steps) else [])
    weight = scenario.routing.price_weight
    return Case(scenario.run.name, seed, draft.graph, draft.asked_fees(), planned.steps[:first], weight, left_out)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="whether exact, batch and flow agree on one scenario",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "scenario", nargs="?", type=Path, help="a TOML file (docs/scenarios.md), in place of --topology"
    )
    parser.add_argument("--topology", default="geometric:30", help="which graph (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of graph, fees, costs and steps (default: the scenario's, or 0)")
    parser.add_argument(
        "--steps", type=int, default=4, help="fees that change and links that are cut, without a scenario (default: 4)"
    )
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    def tell(what: str) -> None:
        print(f"{what} ...", file=sys.stderr, flush=True)

    try:
        case = _random_case(options) if options.scenario is None else _scenario_case(options)
        checks = verify.run(
            case.graph,
            case.fees,
            case.steps,
            price_weight=case.price_weight,
            tell=(lambda _: None) if options.json else tell,
        )
    except (ScenarioError, topology.TopologyError, BatchError, lockstep.LockstepError) as error:
        print(f"meshsim: {error}", file=sys.stderr)
        return 2
    graph = case.graph
    is_good = all(check.is_good for check in checks)
    if options.json:
        document = {
            "name": case.name,
            "seed": case.seed,
            "steps": len(case.steps),
            "left_out": case.left_out,
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
