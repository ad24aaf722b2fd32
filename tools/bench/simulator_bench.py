"""CPU time and peak memory of meshsim, each case in a process of its own, beside targets and other programs.

A case comes from a module: `simulator_large` has batch, flow and networkx, `simulator_exact` exact and ns-3. Its `ours`
is the CPU time of all its processes, in seconds. Its `anchor` is another program's CPU time where one can do something
like it, and then `work` says what the two do not have in common; else the target of the project for two cores.

Kernels are compiled before (numba keeps them in ~/.cache/meshsim), and what that took is reported as `compilation`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.bench import simulator_exact, simulator_large
from tools.bench.common import machine
from tools.bench.simulator_cases import MEGA, Task

MODULES = (simulator_large, simulator_exact)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`document`: what the program printed, where that is a JSON object."""

    task: Task
    cpu_seconds: float
    real_seconds: float
    peak_mib: float
    status: int
    document: Mapping[str, Any]
    anchor_seconds: float | None = None  # of another case
    errors: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> float | None:
        return self.task.seconds if self.anchor_seconds is None else self.anchor_seconds

    @property
    def is_good(self) -> bool:
        """It ran, and kept its targets of time and memory."""
        is_quick = self.task.seconds is None or self.cpu_seconds <= self.task.seconds
        is_small = self.task.memory is None or self.peak_mib <= self.task.memory
        return self.status == 0 and not self.errors and is_quick and is_small

    def as_dict(self) -> dict[str, object]:
        anchor = self.anchor
        return {
            "name": self.task.name,
            "unit": "s CPU",
            "ours": round(self.cpu_seconds, 3),
            "anchor": anchor,
            "anchor_is": self.task.anchor or "target",
            "ratio": None if anchor is None else round(self.cpu_seconds / anchor, 4),
            "real_seconds": round(self.real_seconds, 3),
            "peak_mib": round(self.peak_mib, 1),
            "target_seconds": self.task.seconds,
            "target_mib": self.task.memory,
            "ok": self.is_good,
            "errors": self.errors,
            "work": self.task.work,
            "result": self.document,
        }


def measure(task: Task) -> Outcome:
    """Runs it to the end, and asks the kernel what it took."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
        started = os.times().elapsed
        pid = os.posix_spawn(task.command[0], task.command, os.environ | task.environment, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        real = os.times().elapsed - started
        output.seek(0)
        text = output.read().decode(errors="replace")
        errors.seek(0)
        told = errors.read().decode(errors="replace").strip().splitlines()
    code = os.waitstatus_to_exitcode(status)
    try:
        document = json.loads(text)
    except ValueError:
        document = {"printed": text.strip()[-1000:]}
    document = document if isinstance(document, dict) else {"printed": document}
    return Outcome(
        task,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        real_seconds=real,
        peak_mib=usage.ru_maxrss * 1024 / MEGA,
        status=code,
        document=document,
        errors=task.check(document) if code == 0 else [f"exit code {code}: {' '.join(told[-3:])}"],
    )


def run(tasks: Sequence[Task]) -> list[Outcome]:
    """One after the other; a line on stderr for each."""
    outcomes: list[Outcome] = []
    seconds: dict[str, float] = {}
    for task in tasks:
        outcome = measure(task)
        seconds[task.name] = outcome.cpu_seconds
        if task.anchor is not None:
            outcome = dataclasses.replace(outcome, anchor_seconds=seconds.get(task.anchor))
        outcomes.append(outcome)
        print(f"{task.name}: {outcome.cpu_seconds:.1f} s of CPU", file=sys.stderr, flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    width = max(len(outcome.task.name) for outcome in outcomes)
    lines = [f"{'case':<{width}} {'CPU s':>8} {'anchor':>8} {'ratio':>7} {'real s':>8} {'MiB':>7} {'of MiB':>7}"]
    for item in outcomes:
        found = item.as_dict()
        anchor = "-" if item.anchor is None else f"{item.anchor:.4g}"
        ratio = "-" if found["ratio"] is None else f"{found['ratio']:.3f}"
        memory = "-" if item.task.memory is None else f"{item.task.memory:.0f}"
        verdict = "" if item.is_good else f"  NOT MET {'; '.join(item.errors)}"
        figures = (
            f"{item.cpu_seconds:8.2f} {anchor:>8} {ratio:>7} {item.real_seconds:8.2f} {item.peak_mib:7.0f} {memory:>7}"
        )
        lines.append(f"{item.task.name:<{width}} {figures}{verdict}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out what takes over a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object of `cases` and `machine`")
    parser.add_argument("--only", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--list", action="store_true", help="the names of the cases")
    options = parser.parse_args(argv)
    os.chdir(Path(__file__).resolve().parents[2])
    tasks = [task for module in MODULES for task in module.tasks()]
    wanted = [task for task in tasks if not (options.quick and task.is_long)]
    wanted = [task for task in wanted if options.only is None or options.only in task.name]
    if options.list or not wanted:
        print("\n".join(task.name for task in tasks))
        return 0 if options.list else 2
    outcomes = run(wanted)
    if options.json:
        print(json.dumps({"cases": [outcome.as_dict() for outcome in outcomes], "machine": machine()}, indent=2))
    else:
        print(table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
