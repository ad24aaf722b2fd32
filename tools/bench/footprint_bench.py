"""`tools/bench/footprint`: an idle node with ten neighbours, meshd as it is in production, and babeld beside it.

meshd has a WireGuard tunnel and a payment session with each neighbour, a wallet, and the embedded chain; babeld routes.
Measured of the node in the middle:

- start to first route: from exec until its kernel has the first route, its interfaces being up;
- interface up to first route: one of its links was down and comes up, the daemon runs;
- resident memory, and CPU, after it has settled, while nothing happens. Of the daemon's own process: with wireguard-go
  each tunnel is a process more, which a kernel with WireGuard has not; they are in the notes.
"""

from __future__ import annotations

import argparse
import compileall
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from tools.bench.common import Case, report
from tools.lab import network
from tools.lab.lab import ROOT, Lab, require_root
from tools.lab.topology import Link, Node, Topology
from tools.ns import Namespaces, exit_on_signals

NEIGHBOURS = 10
CENTRE = "n0"
LEAVES = tuple(f"n{number}" for number in range(1, NEIGHBOURS + 1))
TARGET_START = 1.0  # seconds
TARGET_MEMORY = 60.0  # MB
TARGET_CPU = 1.0  # per cent of one core
_ROUTE_TIMEOUT = 60.0
_PACKAGES = ("meshd", "payments", "routing")
_BABELD_INTERFACE = "type wired hello-interval 4 update-interval 16"


@dataclass(frozen=True)
class Measured:
    """Seconds, megabytes, per cent of one core."""

    starts: list[float]
    ups: list[float]
    resident: float
    proportional: float
    cpu: float
    helpers: float = 0.0  # resident, of wireguard-go


class Star(Protocol):
    """A node with its neighbours, all running."""

    namespace: str

    def restart(self) -> float:
        """Ends the daemon in the middle, and starts it; when it did (monotonic)."""

    def set_link(self, leaf: str, state: str) -> None: ...

    def pid(self) -> int: ...


class MeshdStar:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.namespace = lab.namespace(CENTRE)

    def restart(self) -> float:
        self.lab.kill_node(CENTRE, signal.SIGTERM)
        started = time.monotonic()
        self.lab._launch(CENTRE)
        return started

    def set_link(self, leaf: str, state: str) -> None:
        _ip("-n", self.namespace, "link", "set", network.interface_to(leaf), state)

    def pid(self) -> int:
        return self.lab.state.process_by_node[CENTRE].pid


class BabeldStar:
    def __init__(self, namespaces: Namespaces, directory: Path) -> None:
        self._namespaces, self._directory = namespaces, directory
        self.namespace = namespaces.add(CENTRE)
        self._address = {leaf: f"10.77.0.{number}" for number, leaf in enumerate(LEAVES, start=1)}
        for leaf in LEAVES:
            namespaces.add(leaf)
            namespaces.veth((CENTRE, f"to-{leaf}"), (leaf, f"to-{CENTRE}"))
            namespaces.run(leaf, ["ip", "addr", "add", f"{self._address[leaf]}/32", "dev", "lo"])
            self._start(leaf, [f"to-{CENTRE}"])
        self._centre = self._start(CENTRE, [f"to-{leaf}" for leaf in LEAVES])

    def _start(self, node: str, interfaces: Sequence[str]) -> subprocess.Popen[Any]:
        files = self._directory / node
        files.mkdir(exist_ok=True)
        (files / "pid").unlink(missing_ok=True)
        lines = ["skip-kernel-setup true", f"state-file {files}/state", f"pid-file {files}/pid"]
        lines += [f"interface {name} {_BABELD_INTERFACE}" for name in interfaces]
        lines += ["redistribute local if lo allow", "redistribute local deny", "redistribute deny"]
        (files / "conf").write_text("\n".join(lines) + "\n")
        command = ["babeld", "-c", str(files / "conf")]
        return self._namespaces.popen(node, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def restart(self) -> float:
        self._namespaces.end(self._centre)
        started = time.monotonic()
        self._centre = self._start(CENTRE, [f"to-{leaf}" for leaf in LEAVES])
        return started

    def set_link(self, leaf: str, state: str) -> None:
        _ip("-n", self.namespace, "link", "set", f"to-{leaf}", state)

    def pid(self) -> int:
        return self._centre.pid


def _compile() -> None:
    """As after an installation: a daemon does not compile its modules when it starts, not even where
    PYTHONDONTWRITEBYTECODE is set."""
    for package in _PACKAGES:
        compileall.compile_dir(ROOT / package, quiet=2)


@contextmanager
def meshd_star() -> Iterator[Star]:
    _compile()
    links = tuple(Link(CENTRE, leaf) for leaf in LEAVES)
    topology = Topology((*(Node(leaf) for leaf in LEAVES), Node(CENTRE)), links, security="wireguard")
    with Lab(topology, name="footp", block_interval=30.0, progress=_say) as lab:
        yield MeshdStar(lab)


@contextmanager
def babeld_star() -> Iterator[Star]:
    with tempfile.TemporaryDirectory(prefix="footp") as directory, Namespaces("footp") as namespaces:
        yield BabeldStar(namespaces, Path(directory))


def measure(star: Star, *, rounds: int, settle: float, idle: float) -> Measured:
    _wait_routes(star, NEIGHBOURS)
    starts, ups = [], []
    for number in range(rounds):
        with _routes_added(star.namespace) as wait:
            began = star.restart()
            starts.append(wait() - began)
        _wait_routes(star, NEIGHBOURS)
        leaf = LEAVES[number % NEIGHBOURS]
        star.set_link(leaf, "down")
        _wait_routes(star, NEIGHBOURS - 1, exact=True)
        with _routes_added(star.namespace) as wait:
            began = time.monotonic()
            star.set_link(leaf, "up")
            ups.append(wait() - began)
        _wait_routes(star, NEIGHBOURS)
    time.sleep(settle)
    pid = star.pid()
    began, before = time.monotonic(), _cpu_seconds(pid)
    time.sleep(idle)
    cpu = 100 * (_cpu_seconds(pid) - before) / (time.monotonic() - began)
    resident, proportional = _memory(pid)
    return Measured(starts, ups, resident, proportional, cpu, _helpers(star.namespace))


@contextmanager
def _routes_added(namespace: str) -> Iterator[Callable[[], float]]:
    """Gives a function that waits for the next route to a neighbour, and tells when it was there (monotonic)."""
    command = ["ip", "-n", namespace, "monitor", "route"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as monitor:
        output = monitor.stdout
        assert output is not None  # noqa: S101
        os.set_blocking(output.fileno(), False)
        time.sleep(0.2)  # until it listens

        def wait() -> float:
            deadline, buffer = time.monotonic() + _ROUTE_TIMEOUT, b""
            with selectors.DefaultSelector() as selector:
                selector.register(output, selectors.EVENT_READ)
                while time.monotonic() < deadline:
                    selector.select(1.0)
                    buffer += output.read() or b""
                    if any(_is_neighbour(line) for line in buffer.split(b"\n")[:-1]):
                        return time.monotonic()
            raise RuntimeError(f"{namespace}: no route after {_ROUTE_TIMEOUT:.0f} s")

        try:
            yield wait
        finally:
            monitor.terminate()


def _is_neighbour(line: bytes) -> bool:
    """A route over a link to one of the leaves, which all have addresses in 10.77.0.0/24."""
    return line.startswith(b"10.77.0.") and b" dev lo" not in line


def _wait_routes(star: Star, count: int, *, exact: bool = False) -> None:
    deadline = time.monotonic() + _ROUTE_TIMEOUT
    while time.monotonic() < deadline:
        shown = _ip("-n", star.namespace, "route", "show", "table", "all")
        found = sum(_is_neighbour(line) for line in shown.encode().splitlines())
        if found == count or (found > count and not exact):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{star.namespace}: not {count} routes after {_ROUTE_TIMEOUT:.0f} s")


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _cpu_seconds(pid: int) -> float:
    tasks = Path(f"/proc/{pid}").glob("task/*")
    return sum(int(task.joinpath("schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _memory(pid: int) -> tuple[float, float]:
    """Resident and proportional, in MB (10^6 bytes)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split() for line in lines}
    return int(sizes["Rss"][1]) * 1024 / 1e6, int(sizes["Pss"][1]) * 1024 / 1e6


def _helpers(namespace: str) -> float:
    """Resident MB of the wireguard-go processes of the namespace."""
    total = 0.0
    for pid in _ip("netns", "pids", namespace).split():
        if Path(f"/proc/{pid}/comm").read_text().startswith("wireguard"):
            total += _memory(int(pid))[0]
    return total


def cases(ours: Measured, babeld: Measured) -> list[Case]:
    """Ours against the target, with babeld's figure beside it."""

    def case(name: str, unit: str, samples: Sequence[float], target: float, other: float, **notes: object) -> Case:
        return Case(f"target: {name}", unit, samples, [target], False, {"babeld": round(other, 4), **notes})

    return [
        case("start to first route", "s", ours.starts, TARGET_START, median(babeld.starts)),
        case("interface up to first route", "s", ours.ups, TARGET_START, median(babeld.ups)),
        case(
            "resident memory",
            "MB",
            [ours.resident],
            TARGET_MEMORY,
            babeld.resident,
            proportional=round(ours.proportional, 1),
            wireguard_go_resident=round(ours.helpers, 1),
        ),
        case("CPU while idle", "% of a core", [ours.cpu], TARGET_CPU, babeld.cpu),
    ]


def _say(text: str) -> None:
    print(f"footprint: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/footprint", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one object of `cases` and `machine`")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="starts and links (default 5)")
    parser.add_argument("--settle", type=float, default=30.0, metavar="S", help="before the idle time (default 30)")
    parser.add_argument("--idle", type=float, default=60.0, metavar="S", help="measured for (default 60)")
    options = parser.parse_args(argv)
    require_root()
    exit_on_signals()
    times = {"rounds": options.rounds, "settle": options.settle, "idle": options.idle}
    _say("babeld")
    with babeld_star() as star:
        babeld = measure(star, **times)
    _say("meshd")
    with meshd_star() as star:
        ours = measure(star, **times)
    print(report(cases(ours, babeld), as_json=options.json))
    return 0


if __name__ == "__main__":
    sys.exit(main())
