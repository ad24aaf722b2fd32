"""Cases of the exact fidelity, and of ns-3's DSDV where Debian's libns3-dev is installed."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from tools.bench.simulator_cases import Document, Task, script

DSDV = Path(__file__).with_name("dsdv.cc")
NS3_HEADER = Path("/usr/include/ns3/dsdv-module.h")
NS3_LIBRARIES = ("core", "network", "internet", "point-to-point", "dsdv", "bridge", "traffic-control", "stats")
NS3_SECONDS = 60
NS3_WORK = (
    "ns-3: DSDV by hop count, 60 s of virtual time, updates every 15 s, packets through ns-3's IP stack, in C++. "
    "exact: Babel with prices from a cold start until all routes are proved best, every packet of the protocol"
)
COMPARE_TRACES = """
import json, os, subprocess, sys
command = [sys.executable, "-m", "simulator.entry", "run", "--topology", "geometric:100", "--quiet", "1", "--json"]
runs = [json.loads(subprocess.run(command, env=os.environ | {"MESHSIM_JIT": jit}, capture_output=True).stdout)
        for jit in ("1", "0")]
print(json.dumps({"traces": [run["trace"] for run in runs], "compiled": [run["compiled"] for run in runs]}))
"""
RUN_DSDV = """
import os, random, subprocess, sys
from simulator import topology
graph = topology.build(f"geometric:{sys.argv[1]}", random.Random("0/graph"))
edges = "".join(f"{a} {b}\\n" for a, b in graph.edges)
sys.exit(subprocess.run([sys.argv[2], sys.argv[3], sys.argv[1]], input=edges, text=True).returncode)
"""


def all_best(document: Document) -> list[str]:
    errors = [] if document.get("loops") == 0 else [f"{document.get('loops')} loops"]
    if document.get("difference_count") != 0:
        errors.append(f"{document.get('difference_count')} routes are not the best")
    return errors


def same_trace(document: Document) -> list[str]:
    first, second = document["traces"]
    errors = [] if first == second else [f"traces {first} and {second}"]
    return errors if document["compiled"] == [True, False] else [*errors, "nothing was compiled"]


def exact(count: int, *more: str) -> tuple[str, ...]:
    run = ("run", "--topology", f"geometric:{count}", "--quiet", "1", *more, "--json")
    return (sys.executable, "-m", "simulator.entry", *run)


def tasks() -> list[Task]:
    found = [
        Task("exact, compilation, once for each version", (sys.executable, "-m", "simulator.entry", "compile")),
        Task("exact, one trace compiled and not, 100", script(COMPARE_TRACES), check=same_trace),
        Task("exact, 1,000", exact(1000), 60, 2048, is_long=True, check=all_best),
        Task(
            "exact, 1,000, no fees",
            exact(1000, "--fee-range", "0:0"),
            is_long=True,
            check=all_best,
            work="links of cost 96 and no fees: fewer ways are tried",
        ),
    ]
    return found + (ns3_tasks() if NS3_HEADER.exists() else [])


def ns3_tasks() -> list[Task]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshsim"
    binary = home / f"dsdv-{hashlib.blake2b(DSDV.read_bytes(), digest_size=8).hexdigest()}"
    libraries = " ".join(f"-l:libns3-{name}.so" for name in NS3_LIBRARIES)
    build = f"mkdir -p {home} && test -x {binary} || g++ -std=c++17 -O2 -o {binary} {DSDV} {libraries}"
    found = [Task("ns-3, compilation of DSDV", ("/bin/sh", "-c", build))]
    for count, is_long in ((100, False), (300, True)):
        name = f"ns-3, DSDV, {count}"
        command = (*script(RUN_DSDV), str(count), str(binary), str(NS3_SECONDS))
        found.append(Task(name, command, is_long=is_long, work=NS3_WORK))
        found.append(
            Task(
                f"exact, {count}, beside ns-3",
                exact(count),
                anchor=name,
                work=NS3_WORK,
                is_long=is_long,
                check=all_best,
            )
        )
    return found
