"""The routing daemons under test: how each is configured, started, asked whether it is ready, and told a new link cost.

All announce the same prefixes (one /128 for each node) over links of kind wired, cost 96, without authentication.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from meshd.ctl.client import call
from meshd.identity import load_or_create
from tools.bench.converge.network import Network
from tools.lab import toml_text

_ROOT = Path(__file__).resolve().parents[3]
_START_TIMEOUT = 120.0
_STARTING_TOGETHER = 6  # more only wait for each other
_STOP_TIMEOUT = 15.0
_COST = 96
_NICE = ("nice", "-n", "5")  # behind the monitor


@dataclass(frozen=True)
class Times:
    """Seconds."""

    hello: float
    update: float


@dataclass(frozen=True)
class Usage:
    cpu_seconds: float
    resident_mb: float
    proportional_mb: float  # resident, shared pages counted in parts


class Daemon(ABC):
    """One node's. `directory` is its own, and empty at first."""

    name: str

    def __init__(self, node: int, network: Network, directory: Path, times: Times, *, is_wireless: bool) -> None:
        self.node, self.network, self.directory, self.times = node, network, directory, times
        self.kind = "wireless" if is_wireless else "wired"
        self.process: subprocess.Popen[Any] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> IPv6Address:
        return self.network.addresses[self.node]

    @property
    def interfaces(self) -> list[str]:
        return self.network.interfaces(self.node)

    @abstractmethod
    def config(self) -> str:
        """The text of its configuration file."""

    @abstractmethod
    def command(self) -> list[str]:
        """What to run, with the configuration in `conf`."""

    @abstractmethod
    def is_ready(self) -> bool:
        """It has started, and would see a link come up."""

    @abstractmethod
    def set_cost(self, interface: str, cost: int) -> None:
        """Change the cost of a link at run time, by its own means."""

    def start(self) -> None:
        (self.directory / "conf").write_text(self.config())
        with (self.directory / "log").open("ab") as log:
            self.process = self.network.namespaces.popen(
                str(self.node),
                [*_NICE, *self.command()],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
            )

    def await_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not self.is_ready():
            if not self.is_alive() or time.monotonic() > deadline:
                text = (self.directory / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name} of node {self.node} did not start: {text}")
            time.sleep(0.02)

    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)

    def reap(self) -> None:
        if self.process is not None:
            self.process.wait(_STOP_TIMEOUT)
            self.process = None

    def usage(self) -> Usage:
        """Zeros once it has ended."""
        try:
            return self._usage()
        except OSError:
            return Usage(0.0, 0.0, 0.0)

    def _usage(self) -> Usage:
        if self.process is None:
            raise ProcessLookupError
        directory = Path(f"/proc/{self.process.pid}")
        nanoseconds = sum(int(task.joinpath("schedstat").read_text().split()[0]) for task in directory.glob("task/*"))
        sizes = {line.split(":")[0]: line.split() for line in (directory / "smaps_rollup").read_text().splitlines()}
        return Usage(nanoseconds / 1e9, int(sizes["Rss"][1]) / 1024, int(sizes["Pss"][1]) / 1024)


class Meshd(Daemon):
    """Routing as it is in production; without payments, which the others have not either, unless `is_priced`."""

    name = "meshd"
    is_priced = False  # then it has a fee, and no chain: fine as long as nobody carries anything
    log_level = "warning"

    def config(self) -> str:
        document: dict[str, Any] = {
            "node": {
                "name": f"n{self.node}",
                "state_dir": str(self.directory / "state"),
                "control_socket": str(self.directory / "sock"),
                "log_level": self.log_level,
                "log_format": "json",
            },
            "routing": {"hello_interval": self.times.hello, "update_interval": self.times.update},
            "price": {"fee_msat_per_gb": 0},
            "payments": {"enabled": self.is_priced},
            "interface": [
                {"name": name, "security": "none", "kind": self.kind, "cost": _COST} for name in self.interfaces
            ],
        }
        return toml_text.dump(document)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "meshd.main", "run", "--config", str(self.directory / "conf")]

    def is_ready(self) -> bool:
        return _answers(self.directory / "sock")

    def set_cost(self, interface: str, cost: int) -> None:
        self.rpc("interface.cost", interface=interface, cost=cost)

    def set_fee(self, msat_per_gb: int) -> None:
        self.rpc("price.set", fee_msat_per_gb=msat_per_gb)

    def log(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        lines = (self.directory / "log").read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def rpc(self, method: str, **params: Any) -> Any:
        return call(str(self.directory / "sock"), method, params, timeout=10)


class Babeld(Daemon):
    name = "babeld"

    def config(self) -> str:
        lines = [
            "ipv6-subtrees true",
            "skip-kernel-setup true",
            "random-id false",
            f"router-id 02:72:00:00:{_hex_pair(self.node + 1)}",
            f"local-path-readwrite {self.directory}/sock",
            f"state-file {self.directory}/state",
            f"pid-file {self.directory}/pid",
            *(self._interface(name, "") for name in self.interfaces),
            "redistribute local if lo allow",
            "redistribute local deny",
            "redistribute deny",
        ]
        return "\n".join(lines) + "\n"

    def _interface(self, name: str, options: str) -> str:
        times = f"hello-interval {self.times.hello:g} update-interval {self.times.update:g}"
        return f"interface {name} type {self.kind} {times} {options}".rstrip()

    def command(self) -> list[str]:
        (self.directory / "pid").unlink(missing_ok=True)  # of one that was killed
        return ["babeld", "-c", str(self.directory / "conf")]

    def is_ready(self) -> bool:
        return _answers(self.directory / "sock")

    def set_cost(self, interface: str, cost: int) -> None:
        """It ignores the cost of an interface that it has already: the only way is to drop that and take it anew."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            control.connect(str(self.directory / "sock"))
            text = f"flush interface {interface}\n{self._interface(interface, f'rxcost {cost}')}\nquit\n"
            control.sendall(text.encode())
            while control.recv(4096):
                pass


class Bird(Daemon):
    name = "bird"

    def __init__(self, node: int, network: Network, directory: Path, times: Times, *, is_wireless: bool) -> None:
        super().__init__(node, network, directory, times, is_wireless=is_wireless)
        self._costs: dict[str, int] = {}

    def config(self) -> str:
        wanted = "export where source ~ [ RTS_DEVICE, RTS_BABEL ];"
        times = f"hello interval {self.times.hello * 1000:.0f} ms; update interval {self.times.update * 1000:.0f} ms;"
        lines = [
            f'log "{self.directory}/bird.log" {{ warning, error, fatal, bug }};',
            f"router id 10.72.{(self.node + 1) >> 8}.{(self.node + 1) & 255};",
            "protocol device { scan time 10; }",
            'protocol direct { ipv6; interface "lo"; }',
            "protocol kernel { scan time 60; ipv6 { import none; export where source = RTS_BABEL; }; }",
            f"protocol babel {{ ipv6 {{ import all; {wanted} }};",
        ]
        for name in self.interfaces:
            cost = f" rxcost {self._costs[name]};" if name in self._costs else ""
            lines.append(f'  interface "{name}" {{ type {self.kind}; {times}{cost} }};')
        return "\n".join([*lines, "}"]) + "\n"

    def command(self) -> list[str]:
        files = [str(self.directory / name) for name in ("conf", "sock", "pid")]
        return ["bird", "-f", "-c", files[0], "-s", files[1], "-P", files[2]]

    def is_ready(self) -> bool:
        return _answers(self.directory / "sock")

    def set_cost(self, interface: str, cost: int) -> None:
        self._costs[interface] = cost
        (self.directory / "conf").write_text(self.config())
        command = ["birdc", "-s", str(self.directory / "sock"), "configure"]
        subprocess.run(command, check=True, capture_output=True, timeout=10)


KINDS: dict[str, type[Daemon]] = {kind.name: kind for kind in (Meshd, Babeld, Bird)}


class Fleet:
    """One daemon for each node, all of one kind."""

    def __init__(self, kind: str, network: Network, directory: Path, times: Times, *, is_wireless: bool) -> None:
        self.kind = kind
        self.daemons = [
            KINDS[kind](node, network, directory / str(node), times, is_wireless=is_wireless)
            for node in range(network.topology.nodes)
        ]

    def start(self) -> float:
        """Until all are ready. Seconds that the first one took, which started alone."""
        began = time.monotonic()
        self.daemons[0].start()
        self.daemons[0].await_ready()
        alone = time.monotonic() - began
        for daemons in _portions(self.daemons[1:], _STARTING_TOGETHER):
            for daemon in daemons:
                daemon.start()
            for daemon in daemons:
                daemon.await_ready()
        return alone

    def set_cost(self, a: int, b: int, cost: int) -> None:
        """Of the link between these nodes, at both ends."""
        for node, other in ((a, b), (b, a)):
            self.daemons[node].set_cost(Network.interface(other), cost)

    def stop(self) -> None:
        for daemon in self.daemons:
            if daemon.is_alive():
                daemon.terminate()

    def require_alive(self, *, but: int | None = None) -> None:
        """Raises RuntimeError if one ended by itself."""
        dead = [daemon.node for daemon in self.daemons if daemon.node != but and not daemon.is_alive()]
        if dead:
            raise RuntimeError(
                f"{self.kind} ended by itself on the nodes {dead}: see {self.daemons[dead[0]].directory}"
            )


def _portions(daemons: list[Daemon], size: int) -> Iterator[list[Daemon]]:
    for start in range(0, len(daemons), size):
        yield daemons[start : start + size]


def make_addresses(directory: Path, nodes: int) -> list[IPv6Address]:
    """The overlay addresses of new identities, which are left where each `Meshd` will look for its own."""
    return [load_or_create(directory / str(node) / "state" / "identity").address for node in range(nodes)]


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except OSError:
        return False
    return True


def _hex_pair(number: int) -> str:
    return f"00:00:{number >> 8:02x}:{number & 255:02x}"
