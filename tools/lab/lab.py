"""`Lab`: builds the namespaces, starts the daemons, runs commands inside, and removes everything again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import trio

from payments.adapters.chain_client import KernelChainClient
from payments.ports import ChainError
from tools.lab import network, processes, rpc, state, toml_text
from tools.lab.processes import Process
from tools.lab.rpc import RpcFailedError
from tools.lab.state import CHAIN, LabError, State
from tools.lab.topology import Node, Topology

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT = 60.0  # a hundred daemons at once on a small machine
STOP_TIMEOUT = 15.0
DEFAULT_FUNDS_SAT = 1_000_000

Progress = Callable[[str], None]


def _quiet(_: str) -> None:
    pass


def require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("network namespaces need root: sudo tools/meshlab ...")
    missing = [tool for tool in ("ip", "tc", "nft") if shutil.which(tool) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; run tools/setup")


def _program(name: str) -> str:
    """An entry point of the environment that we run in."""
    return str(Path(sys.executable).parent / name)


def _tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


class Lab:
    """One mesh. As a context manager it goes up and, whatever happens inside, down; after an error its logs stay.

    `Lab(topology)` makes a new one; `Lab.find(name)` finds one that an earlier process left up. With `record` the
    daemons record their routing engines. Without `has_chain` there is none, for daemons that settle without one.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        name: str = "lab",
        funds_sat: int = DEFAULT_FUNDS_SAT,
        block_interval: float = 1.0,
        has_chain: bool = True,
        record: bool = False,
        progress: Progress = _quiet,
    ) -> None:
        self.topology = topology
        self.funds_sat = funds_sat if has_chain else 0
        self.has_chain = has_chain
        self.block_interval = block_interval
        self.record = record
        self.keeps_logs = False  # also without an error
        self._progress = progress
        self._children: list[subprocess.Popen[Any]] = []
        self.state = State(
            name=name,
            created_at=time.time(),
            address_by_node={node.name: str(topology.address(node.name)) for node in topology.nodes},
            fee_by_node={node.name: node.fee_msat_per_gb for node in topology.nodes},
            links=list(topology.links),
        )
        self.directory = state.directory(name)

    @classmethod
    def find(cls, name: str = "lab", *, progress: Progress = _quiet) -> Self:
        """A lab that is up. Raises LabError when there is none."""
        found = state.read(name)
        nodes = tuple(Node(node, fee) for node, fee in found.fee_by_node.items())
        lab = cls(Topology(nodes, tuple(found.links)), name=name, progress=progress)
        lab.state = found
        return lab

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keep = error is not None or self.keeps_logs
        self.down(keep_files=keep)
        if keep:
            self._progress(f"logs are kept in {self.directory}")

    @property
    def nodes(self) -> list[str]:
        return list(self.state.address_by_node)

    def namespace(self, node: str) -> str:
        if node not in self.state.address_by_node and node != CHAIN:
            raise LabError(f"no node '{node}'; there are: {', '.join(self.nodes)}")
        return self.state.namespace(node)

    def address(self, node: str) -> str:
        """The node's IPv4 address."""
        self.namespace(node)
        return self.state.address_by_node[node]

    def path(self, node: str) -> Path:
        """The node's own directory: config.toml, control.sock, state/, log."""
        self.namespace(node)
        return self.directory / node.lstrip("-")

    @property
    def chain_socket(self) -> Path:
        return self.path(CHAIN) / "chain.sock"

    # -- up and down

    def up(self) -> None:
        """Builds and starts everything; when that fails or is interrupted, removes what was made and raises."""
        require_root()
        self._refuse_foreign_namespaces()
        state.create(self.state)
        try:
            self._build()
        except BaseException:
            self._progress("taking down what was made")
            self.down(keep_files=True)
            raise

    def _refuse_foreign_namespaces(self) -> None:
        there = network.existing(self.state.namespaces)
        if there and self.state.name not in state.names():
            raise LabError(f"namespaces of that name, but no record of a lab: ip netns delete {there[0]} ...")

    def _build(self) -> None:
        self._progress(f"making {len(self.nodes)} namespaces and {len(self.state.links)} links")
        network.create_namespaces(self.state.namespaces)
        self.make_links()
        if self.has_chain:
            self._progress("starting the chain")
            self._start_chain()
        self._progress(f"starting {len(self.nodes)} daemons")
        for node in self.topology.nodes:
            self._write_config(node)
            self._launch(node.name)
        for name in self.nodes:
            self._await_socket(name, self.control_socket(name))
        if self.funds_sat:
            self._progress(f"funding each wallet with {self.funds_sat} sat")
            self.fund(self.nodes, self.funds_sat)
        self.state.is_complete = True
        state.save(self.state)

    def make_links(self) -> None:
        """What the nodes reach each other by; a lab of other links has another one, and other `interfaces`."""
        network.create_links({node: self.namespace(node) for node in self.nodes}, self.state.links)

    def interfaces(self, node: str) -> list[dict[str, Any]]:
        """The tables [[interface]] of the node's configuration."""
        peers = self.topology.neighbours(node)
        return [{"name": network.interface_to(peer), "security": self.topology.security} for peer in peers]

    def down(self, *, keep_files: bool = False) -> None:
        """Stops every process of the lab, deletes its namespaces and, unless told to keep them, its files.

        May be called again, by another process too, after any failure.
        """
        daemons = [process for node, process in self.state.process_by_node.items() if node != CHAIN]
        processes.stop([*daemons, *self._strangers()], STOP_TIMEOUT)
        if CHAIN in self.state.process_by_node:
            processes.stop([self.state.process_by_node[CHAIN]], STOP_TIMEOUT)
        # What was started between the look and now, or before its record was written.
        processes.stop(self._strangers(), 1.0)
        for child in self._children:
            child.wait()
        self._children.clear()
        for namespace in self.state.namespaces:
            network.delete_namespace(namespace)
        (self.directory / "state.json").unlink(missing_ok=True)
        if not keep_files:
            shutil.rmtree(self.directory, ignore_errors=True)

    def detach(self) -> None:
        """The lab outlives this process: its children are init's to reap."""
        for child in self._children:
            child.returncode = child.poll() or 0  # else Popen warns that its process is still running
        self._children.clear()

    def _strangers(self) -> list[Process]:
        """Processes in the lab's namespaces that are not recorded: what a user started with exec."""
        recorded = {process.pid for process in self.state.process_by_node.values()}
        found = []
        for namespace in self.state.namespaces:
            for pid in network.pids_in(namespace):
                process = processes.identify(pid)
                if pid not in recorded and process is not None and network.is_inside(pid, namespace):
                    found.append(process)
        return found

    # -- the chain

    def _start_chain(self) -> None:
        files = self.path(CHAIN)
        files.mkdir()
        interval = str(self.block_interval)
        arguments = ["--socket", str(self.chain_socket), "--datadir", str(files / "data"), "--block-interval", interval]
        self._spawn(CHAIN, [sys.executable, "-m", "payments.adapters.chaind", *arguments])
        self._await_socket(CHAIN, self.chain_socket)

    def fund(self, nodes: Sequence[str], amount_sat: int) -> None:
        """Pays each node's wallet from the chain's faucet, and waits until a block has it: it can be spent then."""
        scripts = [bytes.fromhex(self.rpc(node, "wallet.script")["script_pubkey"]) for node in nodes]

        async def pay() -> None:
            client = KernelChainClient(self.chain_socket)
            try:
                with trio.fail_after(START_TIMEOUT + self.block_interval):
                    for txid in [await client.faucet(script, amount_sat) for script in scripts]:
                        while (status := await client.transaction(txid)) is None or status.height is None:
                            await trio.sleep(0.05)
            finally:
                client.close()

        try:
            trio.run(pay)
        except ChainError as error:
            raise LabError(f"the faucet: {error}") from error
        except trio.TooSlowError as error:
            raise LabError(f"the faucet's payments are in no block after {START_TIMEOUT:.0f} s") from error

    # -- nodes

    def control_socket(self, node: str) -> Path:
        return self.path(node) / "control.sock"

    def _write_config(self, node: Node) -> None:
        files = self.path(node.name)
        files.mkdir()
        document: dict[str, Any] = {
            "node": {
                "name": node.name,
                "state_dir": str(files / "state"),
                "control_socket": str(self.control_socket(node.name)),
            },
            "routing": {"announce": [f"{self.address(node.name)}/32"]},
            "price": {"fee_msat_per_gb": node.fee_msat_per_gb},
            "chain": {"backend": "kernel", "socket": str(self.chain_socket)},
        }
        if self.record:
            document["node"]["record"] = str(self.recording(node.name))
        for table, values in node.config.items():
            document[table] = document.get(table, {}) | dict(values)
        document["interface"] = self.interfaces(node.name)
        (files / "config.toml").write_text(toml_text.dump(document))

    def start_node(self, node: str) -> None:
        """Starts the node's daemon, with its state of last time, and waits until it answers."""
        if self.is_running(node):
            raise LabError(f"{node} is running")
        self._launch(node)
        self._await_socket(node, self.control_socket(node))

    def _launch(self, node: str) -> None:
        self._spawn(node, [_program("meshd"), "run", "--config", str(self.path(node) / "config.toml")])

    def kill_node(self, node: str, number: signal.Signals = signal.SIGKILL, *, timeout: float = STOP_TIMEOUT) -> None:
        """Signals the daemon and waits for its end."""
        process = self.state.process_by_node.get(node)
        if process is None or not processes.send_signal(process, number):
            raise LabError(f"{node} is not running")
        if not processes.wait_gone(process, timeout):
            raise LabError(f"{node} did not end within {timeout:.0f} s of {number.name}")

    def is_running(self, node: str) -> bool:
        self.namespace(node)
        process = self.state.process_by_node.get(node)
        return process is not None and processes.is_alive(process)

    def set_rate(self, a: str, b: str, rate: str | None) -> None:
        """The rate of a link, both ways, from now on."""
        network.set_rate(self.namespace(a), network.interface_to(b), rate)
        network.set_rate(self.namespace(b), network.interface_to(a), rate)

    def _spawn(self, node: str, argv: Sequence[str]) -> None:
        with self.log(node).open("ab") as log:
            child = self.popen(node, argv, stdout=log, stderr=log)
        found = processes.identify(child.pid)
        if found is None:
            raise LabError(f"{node} ended at once: {_tail(self.log(node))}")
        self.state.process_by_node[node] = Process(found.pid, found.started_ticks, " ".join(argv))
        state.save(self.state)

    def _await_socket(self, node: str, path: Path) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if not self.is_running(node):
                raise LabError(f"{node.lstrip('-')} ended while starting:\n{_tail(self.log(node))}")
            with socket.socket(socket.AF_UNIX) as attempt:
                if attempt.connect_ex(str(path)) == 0:
                    return
            time.sleep(0.05)
        raise LabError(f"{node.lstrip('-')} does not answer after {START_TIMEOUT:.0f} s:\n{_tail(self.log(node))}")

    def log(self, node: str) -> Path:
        return self.path(node) / "log"

    def recording(self, node: str) -> Path:
        """For tools/replay, where the lab was told to record."""
        return self.path(node) / "recording"

    # -- commands

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = 60,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the node to its end. Raises LabError with its words when it fails and `check` is set."""
        command = network.inside(self.namespace(node), argv)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=timeout)
        if check and done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip()
            raise LabError(f"{node}: {' '.join(argv)}: exit code {done.returncode}: {words}")
        return done

    def popen(
        self,
        node: str,
        argv: Sequence[str],
        *,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.DEVNULL,
    ) -> subprocess.Popen[Any]:
        """Starts a command in the node, in a session of its own: Ctrl-C ends the lab in its order, not all at once.
        `down` ends it."""
        child = subprocess.Popen(
            network.inside(self.namespace(node), argv),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            cwd=ROOT if node == CHAIN else self.path(node),
        )
        self._children.append(child)
        return child

    def ctl_argv(self, node: str, *arguments: str) -> list[str]:
        return [_program("meshctl"), "--socket", str(self.control_socket(node)), *arguments]

    def ctl(self, node: str, *arguments: str) -> Any:
        """The result of `meshctl ARGUMENTS --json` at the node, decoded. Raises LabError with its words."""
        done = subprocess.run([*self.ctl_argv(node, *arguments), "--json"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LabError(f"{node}: meshctl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return json.loads(done.stdout)["result"]

    def rpc(self, node: str, method: str, **params: Any) -> Any:
        """The result of a method of the daemon's control socket. Raises LabError."""
        try:
            return rpc.call(self.control_socket(node), method, params)
        except RpcFailedError as error:
            raise LabError(f"{node}: {error}") from error

    def unreachable(self, node: str) -> list[str]:
        """The nodes that this one's kernel has no route to. Asks the kernel, not the daemon."""
        others = {self.address(other): other for other in self.nodes if other != node}
        questions = "".join(f"route get {address}\n" for address in others)
        command = ["ip", "-n", self.namespace(node), "-force", "-batch", "-"]
        done = subprocess.run(command, input=questions, capture_output=True, text=True, check=False)
        for answer in done.stdout.splitlines():
            others.pop(answer.partition(" ")[0], None)
        return list(others.values())

    def wait_routes(self, timeout: float = 60.0) -> float:
        """Seconds until every running node has a route to every other. Raises LabError when the time is up."""
        started = time.monotonic()
        waiting = [node for node in self.nodes if self.is_running(node)]
        while waiting:
            waiting = [node for node in waiting if set(self.unreachable(node)) & set(self.nodes)]
            if waiting and time.monotonic() > started + timeout:
                raise LabError(f"after {timeout:.0f} s {waiting[0]} has no route to {self.unreachable(waiting[0])[0]}")
            if waiting:
                time.sleep(0.05)
        return time.monotonic() - started
