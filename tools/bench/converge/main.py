"""The command line: which runs, in which order, and what is shown while and after they run."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tools.bench.converge.daemons import KINDS, Times
from tools.bench.converge.results import as_json, collect, table
from tools.bench.converge.run import DIAMOND, FAULTS, Run, Sample, Setting, price_samples
from tools.bench.converge.topology import parse
from tools.ns import exit_on_signals

_DESCRIPTION = """\
Convergence side by side: meshd, babeld and BIRD on the same links, one after the other, in network namespaces.

Cold: all daemons are running when every link is raised at once. The kernels' routing tables are followed from every
node to every other, as a packet would be, at every change that netlink tells of. "reachable": every ordered pair is
delivered, for good. "optimal": on a path no dearer than Dijkstra's. The ratio is ours to the better anchor, of medians.
A time with ">" before it is the limit: it took longer."""
_EPILOG = """\
cases: cold (always), steady (traffic, CPU, memory), cut (link goes silent, then healed), carrier, metric, stop
(SIGTERM), kill (SIGKILL and silence), loss (half of a wireless link's packets), price (a rise in the 4-node diamond).
Without --case: cold everywhere; steady, cut, carrier, metric, kill on grid:5x5; price.
hello: seconds, updates being sent every 4 of them; or "cheap": babeld with hello 0.5 s and update 16 s, and meshd so
that it sends no more bytes than that.

examples:
  sudo tools/bench/convergence --quick
  sudo tools/bench/convergence --topology grid:5x5 --hello 1 --case cut --case kill --seeds 5
  sudo tools/bench/convergence --daemon meshd --topology geometric:50/150 --hello 4 --seeds 1
  sudo tools/bench/convergence --json --report convergence.jsonl > convergence.json"""
_TOPOLOGIES = ("line:10", "grid:5x5", "grid:7x7", "geometric:50/150")
_HELLOS = ("1", "4")
_FAULTS_BY_DEFAULT = ("cut", "carrier", "metric", "kill")
_FAULTY = "grid:5x5"  # where the default plan has its faults
_NICE = -10
CHEAP = "cheap"
CHEAP_TIMES = {"babeld": Times(0.5, 16.0), "meshd": Times(0.55, 18.0)}  # fewer bytes than babeld's


@dataclass(frozen=True)
class Plan:
    """What is measured in one place: `cases` on the topology `spec` with this hello interval."""

    spec: str
    hello: str
    cases: frozenset[str]


def plans(topologies: Sequence[str] | None, hellos: Sequence[str] | None, cases: Sequence[str] | None) -> list[Plan]:
    """None: what is run when nothing is asked for. Faults where nothing is spare are left out by `main`."""
    made = []
    for hello in hellos or (*_HELLOS, CHEAP):
        for spec in topologies or ((_FAULTY,) if hello == CHEAP else _TOPOLOGIES):
            if cases is not None:
                wanted = set(cases) - {"price"}
            elif spec == _FAULTY:
                wanted = {"steady", *(_FAULTS_BY_DEFAULT if hello != CHEAP else ("cut", "kill"))}
            else:
                wanted = set()
            made.append(Plan(spec, hello, frozenset(wanted | {"cold"})))
    return made


def times(hello: str) -> dict[str, Times]:
    """By daemon. Raises ValueError."""
    if hello == CHEAP:
        return CHEAP_TIMES
    seconds = float(hello)
    if not 0.05 <= seconds <= 60:
        raise ValueError(f"hello {hello}: between 0.05 and 60 seconds")
    return dict.fromkeys(KINDS, Times(seconds, 4 * seconds))


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.topology, arguments.hello = arguments.topology or ["grid:3x3"], arguments.hello or ["1"]
        arguments.case = arguments.case or ["steady", "cut", "stop", "kill", "price"]
        arguments.seeds, arguments.limit = 1, min(arguments.limit, 20.0)
    try:
        for plan in plans(arguments.topology, arguments.hello, arguments.case):
            times(plan.hello)
            parse(plan.spec, 1)
    except ValueError as error:
        parser.error(str(error))
    if os.geteuid() != 0:
        parser.error("network namespaces need root")
    daemons = arguments.daemon or list(KINDS)
    missing = [name for name in (*daemons, "nft", "ip") if name != "meshd" and shutil.which(name) is None]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}")
    exit_on_signals()
    return _run(arguments, daemons)


def _run(arguments: argparse.Namespace, daemons: Sequence[str]) -> int:
    os.nice(_NICE)
    sys.setswitchinterval(0.0005)  # the monitor's thread is not to wait for the other
    began = time.monotonic()
    samples: list[Sample] = []
    stream = arguments.report.open("a") if arguments.report else None
    failed = 0
    try:
        for name, source in _all_runs(arguments, daemons):
            print(f"[{time.monotonic() - began:5.0f} s] {name}", file=sys.stderr, flush=True)
            try:
                for sample in source:
                    _note(sample, samples, stream)
            except Exception as error:  # whatever it is: the other runs are worth having
                failed += 1
                print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: what was measured until now", file=sys.stderr)
        failed += 1
    finally:
        if stream is not None:
            stream.close()
    results = collect(samples)
    print(as_json(results, limit=arguments.limit) if arguments.json else table(results))
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if failed else 0


def _all_runs(arguments: argparse.Namespace, daemons: Sequence[str]) -> Iterator[tuple[str, Iterator[Sample]]]:
    """Seed by seed, so that a run that is cut short has something of everything."""
    prefix = f"bench-cv{os.getpid()}-"
    limit = arguments.limit
    for seed in range(1, arguments.seeds + 1):
        for plan in plans(arguments.topology, arguments.hello, arguments.case):
            topology = parse(plan.spec, seed)
            setting = Setting(topology, plan.spec, plan.hello, times(plan.hello), seed)
            kinds = [kind for kind in daemons if kind in setting.times]
            random.Random(f"{plan.spec} {plan.hello} {seed}").shuffle(kinds)
            cases = plan.cases if topology.has_spare() else plan.cases - set(FAULTS)
            for kind in kinds:
                run = Run(setting, kind, cases=cases, limit=limit, prefix=prefix)
                yield f"{plan.spec} hello {plan.hello} seed {seed} {kind}", run.samples()
        if "meshd" in daemons and (arguments.case is None or "price" in arguments.case):
            for hello in [hello for hello in arguments.hello or _HELLOS if hello != CHEAP]:
                setting = Setting(DIAMOND, "diamond", hello, times(hello), seed)
                yield f"price hello {hello} seed {seed}", price_samples(setting, limit=limit, prefix=prefix)


def _note(sample: Sample, samples: list[Sample], stream: TextIO | None) -> None:
    samples.append(sample)
    over = ">" if sample.is_over else ""
    print(f"    {sample.case}: {over}{sample.value:g} {sample.unit}", file=sys.stderr, flush=True)
    if stream is not None:
        stream.write(json.dumps(sample.as_dict()) + "\n")
        stream.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench/convergence",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    several = "; may be given more than once"
    parser.add_argument("--topology", action="append", help=f"default {', '.join(_TOPOLOGIES)}; also ring:N{several}")
    parser.add_argument("--hello", action="append", help=f"default {', '.join((*_HELLOS, CHEAP))}{several}")
    parser.add_argument("--daemon", action="append", choices=list(KINDS), help=f"default all{several}")
    cases = ["cold", "steady", *FAULTS, "price"]
    parser.add_argument("--case", action="append", choices=cases, help=f"default: faults on {_FAULTY} only{several}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of everything (default 3)")
    parser.add_argument("--limit", type=float, default=15.0, help="seconds to wait for each state (default 15)")
    parser.add_argument("--quick", action="store_true", help="grid:3x3, hello 1, one seed: does it work here at all?")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--report", type=Path, help="append every sample to this file as it comes, one JSON line each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
