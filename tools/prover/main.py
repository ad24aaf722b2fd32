"""The command: draws scenarios until so many changes of next hops have been checked, and says what was found."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.prover.scenario import Scenario, draw
from tools.prover.trial import BEST_TIMEOUT, STARVATION_MAX, Verdict, run, shrink

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60
PROGRESS_INTERVAL = 10.0
CPU_LIMIT = 200.0  # seconds for one scenario; they take one or two
EPILOG = """\
At every change of a next hop, of any node, the forwarding graph of that prefix is searched for a loop. After its last
step a scenario is left alone: every pair of nodes that has a path must get a working route, and then a shortest one by
networkx's Dijkstra. docs/proof.md says what is allowed and why.

examples:
  tools/prove --changes 1000000 --jobs 2
  tools/prove --seed 7 --changes 50000 --json
  tools/prove --scenario 7/123 --shrink      the scenario that failed, with steps left out that do not matter"""


@dataclass
class Summary:
    seed: str
    commit: str
    steps: int
    scenarios: int = 0
    changes: int = 0
    removals: int = 0
    packets: int = 0
    virtual_seconds: float = 0.0
    reached_within: float = 0.0
    best_within: float = 0.0
    shared_loops: int = 0
    restart_loops: int = 0
    longest_allowed_loop: float = 0.0
    by_topology: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    failure_count: int = 0
    seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        self.scenarios += 1
        self.changes += verdict.changes
        self.removals += verdict.removals
        self.packets += verdict.packets
        self.virtual_seconds += verdict.virtual_seconds
        self.reached_within = max(self.reached_within, verdict.reached_after or 0.0)
        self.best_within = max(self.best_within, verdict.best_after or 0.0)
        self.shared_loops += verdict.shared_loops
        self.restart_loops += verdict.restart_loops
        self.longest_allowed_loop = max(self.longest_allowed_loop, verdict.longest_loop)
        self.by_topology[verdict.topology] = self.by_topology.get(verdict.topology, 0) + verdict.changes
        if verdict.failure is not None:
            self.failure_count += 1
            if len(self.failures) < 20:
                command = f"tools/prove --scenario {verdict.seed} --steps {self.steps}"
                self.failures.append(asdict(verdict) | {"command": command, "commit": self.commit})

    def in_words(self) -> str:
        lines = [
            f"seed {self.seed}, commit {self.commit}: {self.scenarios} scenarios in {self.seconds:.0f} s, "
            f"{self.virtual_seconds / 3600:.1f} h of virtual time",
            f"{self.changes} changes of next hops checked, {self.removals} removals, {self.packets} packets",
            f"working routes for all within {self.reached_within:.0f} s of the last event, "
            f"shortest ones within {self.best_within:.0f} s of {BEST_TIMEOUT:.0f}; "
            f"nobody with a path was without a route for {STARVATION_MAX:.0f} s, but for the violations",
            f"allowed loops: {self.shared_loops} of prefixes with several origins, {self.restart_loops} through nodes "
            f"that had lost their state; the longest stood {self.longest_allowed_loop:.1f} s",
            f"violations: {self.failure_count}",
        ]
        for failure in self.failures:
            lines.append(
                f"  {failure['failure']} ({failure['topology']}, {failure['nodes']} nodes): {failure['command']}"
            )
            lines += [f"    {detail}" for detail in failure["details"]]
        return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    if arguments.scenario is not None:
        return _one(draw(arguments.scenario, steps=arguments.steps), is_shrunk=arguments.shrink)
    summary = Summary(arguments.seed, _commit(), arguments.steps)
    started = reported = time.monotonic()
    for verdict in _verdicts(arguments.seed, arguments.steps, arguments.jobs):
        summary.add(verdict)
        now = time.monotonic()
        if now - reported > PROGRESS_INTERVAL:
            reported = now
            print(_progress(summary, now - started), file=sys.stderr, flush=True)
        if summary.changes >= arguments.changes:
            break
    summary.seconds = time.monotonic() - started
    print(json.dumps(asdict(summary), indent=2) if arguments.json else summary.in_words())
    return 1 if summary.failure_count else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/prove",
        description="Random disasters on the real routing engine in virtual time, and whether its promises hold.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--changes", type=int, default=100_000, metavar="N", help="stop after so many (%(default)s)")
    parser.add_argument("--seed", default="1", help="of the whole run (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="disturbances a scenario (%(default)s)")
    parser.add_argument("--json", action="store_true", help="the summary as JSON")
    parser.add_argument("--scenario", metavar="SEED/NUMBER", help="only this one")
    parser.add_argument("--shrink", action="store_true", help="with --scenario: leave out steps while it fails alike")
    return parser.parse_args(argv)


def _verdicts(seed: str, steps: int, jobs: int) -> Iterator[Verdict]:
    """In the order of their numbers, so that the seed alone decides what is in a run. Without end."""
    tasks = ((f"{seed}/{number}", steps) for number in itertools.count())
    if jobs <= 1:
        yield from map(_judge, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        while True:
            yield from pool.imap(_judge, itertools.islice(tasks, 16 * jobs))


def _judge(task: tuple[str, int]) -> Verdict:
    """A speaker that never returns becomes an exception of it, and so a failure with a seed."""
    seed, steps = task
    signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_LIMIT)
    try:
        return run(draw(seed, steps=steps))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)


def _give_up(*_: object) -> None:
    raise TimeoutError(f"no end after {CPU_LIMIT:.0f} s of CPU time")


def _one(scenario: Scenario, *, is_shrunk: bool) -> int:
    if is_shrunk:
        scenario = shrink(scenario)
    verdict = run(scenario)
    for step in scenario.steps:
        print(step)
    print(json.dumps(asdict(verdict), indent=2))
    return 1 if verdict.failure else 0


def _progress(summary: Summary, seconds: float) -> str:
    return (
        f"[{seconds:5.0f} s] {summary.changes} changes, {summary.scenarios} scenarios, "
        f"{summary.changes / seconds:.0f} changes/s, {summary.failure_count} violations"
    )


def _commit() -> str:
    """Of the working tree, with a plus if it has changes."""
    git = ["git", "-C", str(ROOT), "-c", f"safe.directory={ROOT}"]
    try:
        done = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip() + ("+" if dirty else "")


if __name__ == "__main__":
    sys.exit(main())
