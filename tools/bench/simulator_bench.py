"""CPU time and peak memory of meshsim, each case in a process of its own, against the targets for two cores.

networkx's all-pairs shortest paths on the same kind of graph are timed in the same run. It is less work by far: no
messages, no tables, no history, only the distances in the end. ns-3 is not run: its DSDV (3.37) was once measured with
3.8 s of CPU time for 100 nodes and 64 s for 300, in 60 s of virtual time.

The kernels are compiled before (numba keeps them in ~/.cache/meshsim); compiling takes some 10 s, once per version.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.bench.common import machine

MAPS = ("freifunk-bremen", "freifunk-leipzig", "freifunk-ulm", "nycmesh")
MEGA = 2**20
NETWORKX = """
import random, networkx as nx
from simulator import topology
graph = topology.build("geometric:1000", random.Random("0/graph"))
print(sum(len(found) for _, found in nx.all_pairs_dijkstra_path_length(graph, weight="cost")))
"""


@dataclass(frozen=True, slots=True)
class Task:
    """A command, and what it may take: CPU seconds and MiB of memory. `is_long`: left out by --quick."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    memory: float | None = None
    is_long: bool = False
    script: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    task: Task
    cpu_seconds: float
    real_seconds: float
    peak_mib: float
    status: int
    document: dict[str, object]

    @property
    def ratio(self) -> float:
        """To the target; less than 1 is better. Of time or memory, whichever is worse."""
        memory = self.peak_mib / self.task.memory if self.task.memory else 0.0
        return max(self.cpu_seconds / self.task.seconds, memory)

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.task.name,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "real_seconds": round(self.real_seconds, 3),
            "peak_mib": round(self.peak_mib, 1),
            "target_cpu_seconds": self.task.seconds,
            "target_mib": self.task.memory,
            "ratio": round(self.ratio, 4),
            "ok": self.status == 0,
            "result": self.document,
        }


def tasks() -> list[Task]:
    return [
        Task("batch 1,000", ("batch", "--topology", "geometric:1000"), 5),
        *(Task(f"batch {name}", ("batch", "--topology", f"map:{name}"), 5) for name in MAPS),
        Task("flow 100,000", ("flow", "--topology", "geometric:100000"), 60, 1024),
        Task("flow 1,000,000", ("flow", "--topology", "geometric:1000000"), 300, 1024),
        Task("networkx 1,000, distances", (), 60, script=NETWORKX),
        Task("exact 1,000", ("run", "--topology", "geometric:1000", "--quiet", "1"), 60, 2048, is_long=True),
        Task("batch 5,000", ("batch", "--topology", "geometric:5000"), 180, 5120, is_long=True),
        Task("batch 10,000, sharded", ("batch", "--topology", "geometric:10000", "--shards", "64"), 1200, is_long=True),
    ]


def measure(task: Task) -> Outcome:
    """Runs it to the end, and asks the kernel what it took."""
    command = (
        [sys.executable, "-c", task.script]
        if task.script
        else [
            sys.executable,
            "-m",
            "simulator.main",
            *task.arguments,
            "--json",
        ]
    )
    with tempfile.TemporaryFile() as output:
        quiet = os.open(os.devnull, os.O_WRONLY)
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, quiet, 2)]
        started = os.times().elapsed
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        real = os.times().elapsed - started
        os.close(quiet)
        output.seek(0)
        text = output.read().decode()
    return Outcome(
        task,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        real_seconds=real,
        peak_mib=usage.ru_maxrss * 1024 / MEGA,
        status=os.waitstatus_to_exitcode(status),
        document=json.loads(text) if text.startswith("{") else {},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out what takes over a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object of `cases` and `machine`")
    parser.add_argument("--only", metavar="TEXT", help="cases with this in their name")
    options = parser.parse_args(argv)
    os.chdir(Path(__file__).resolve().parents[2])
    wanted = [task for task in tasks() if not (options.quick and task.is_long)]
    wanted = [task for task in wanted if options.only is None or options.only in task.name]
    for warm_up in (("batch", "--topology", "grid:3x3"), ("flow", "--topology", "grid:3x3")):
        measure(Task("warm-up", warm_up, 60))
    outcomes = []
    if not options.json:
        print(f"{'case':<28}{'CPU s':>9}{'target':>9}{'MiB':>8}{'target':>8}{'ratio':>8}")
    for task in wanted:
        outcome = measure(task)
        outcomes.append(outcome)
        if not options.json:
            memory = "" if task.memory is None else f"{task.memory:.0f}"
            verdict = "" if outcome.status == 0 else f"  exit code {outcome.status}"
            figures = f"{outcome.cpu_seconds:9.2f}{task.seconds:9.0f}{outcome.peak_mib:8.0f}{memory:>8}"
            print(f"{task.name:<28}{figures}{outcome.ratio:8.3f}{verdict}", flush=True)
    if options.json:
        print(json.dumps({"cases": [outcome.as_dict() for outcome in outcomes], "machine": machine()}, indent=2))
    return 0 if all(outcome.status == 0 and outcome.ratio <= 1 for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
