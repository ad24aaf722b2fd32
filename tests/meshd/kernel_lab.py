"""Namespaces with an agent in each, for the tests of `meshd.kernel`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tools.ns import Namespaces

_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = os.environ | {"PYTHONPATH": str(_ROOT)}
_AGENT = str(Path(__file__).with_name("kernel_agent.py"))

needs_namespaces = [
    pytest.mark.namespaces,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(not (shutil.which("nft") and shutil.which("ip")), reason="needs nft and ip"),
]

Flow = dict[str, Any]


class Node:
    """One namespace and the agent in it. Its addresses follow from its letter: a is fd00::a and 10.9.0.1."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.record = lab.directory / f"{name}.json"
        self.ip6 = f"fd00::{name}"
        self.ip4 = f"10.9.0.{ord(name) - ord('a') + 1}"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *, path: str | None = None, is_slow: bool = False) -> None:
        """`path`: where the agent looks for programs, if not where everybody does. `is_slow`: it gets no further than
        to what a dead one has counted (`await_leftover`)."""
        environment = ["env", f"PATH={path}"] if path else []
        argv = [*environment, sys.executable, _AGENT, str(self.record), *(["slow"] if is_slow else [])]
        self.process = self.lab.namespaces.popen(self.name, argv, stdin=subprocess.PIPE, env=_ENVIRONMENT)

    def await_leftover(self) -> None:
        assert self._answer() == "keeping"

    def call(self, *request: Any) -> Any:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the agent in {self.name} is gone"
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def stop(self) -> int:
        """As an operator does, and wait for its end."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(15)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def clean(self) -> None:
        command = ["env", f"PYTHONPATH={_ROOT}", sys.executable, _AGENT, str(self.record), "clean"]
        self.lab.namespaces.run(self.name, command)

    def run(self, command: str) -> str:
        return self.lab.namespaces.run(self.name, ["sh", "-c", command])

    def address(self, family: int) -> str:
        return self.ip6 if family == 6 else self.ip4

    def route(self, to: Node, interface: str, mac: str) -> None:
        for prefix in (f"{to.ip6}/128", f"{to.ip4}/32"):
            self.call("route", prefix, interface, link_local(mac))


class Lab:
    def __init__(self, namespaces: Namespaces, directory: Path) -> None:
        self.namespaces = namespaces
        self.directory = directory

    def node(self, name: str) -> Node:
        self.namespaces.add(name)
        # Duplicate address detection would take each test a second or two; `test_kernel_links` waits for it.
        self.namespaces.run(name, ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        return Node(self, name)

    def wire(self, a: Node, interface_a: str, b: Node, interface_b: str) -> None:
        macs = mac(a.name, interface_a), mac(b.name, interface_b)
        self.namespaces.veth((a.name, interface_a), (b.name, interface_b), macs=macs)


@contextmanager
def lab(directory: Path, prefix: str) -> Iterator[Lab]:
    with Namespaces(prefix) as namespaces:
        yield Lab(namespaces, directory)


@contextmanager
def line(directory: Path, prefix: str) -> Iterator[tuple[Node, Node, Node]]:
    """a - b - c, with agents, addresses and routes, everybody listening."""
    with lab(directory, prefix) as made:
        a, b, c = (made.node(name) for name in "abc")
        made.wire(a, "ab", b, "ba")
        made.wire(b, "bc", c, "cb")
        for node, interfaces in ((a, ["ab"]), (b, ["ba", "bc"]), (c, ["cb"])):
            node.start()
            prepare(node, interfaces)
        for to in (b, c):
            a.route(to, "ab", mac("b", "ba"))
        for to in (a, b):
            c.route(to, "cb", mac("b", "bc"))
        b.route(a, "ba", mac("a", "ab"))
        b.route(c, "bc", mac("c", "cb"))
        yield a, b, c


def prepare(node: Node, interfaces: list[str]) -> None:
    for interface in interfaces:
        node.call("manage", interface)
    for address in (node.ip6, node.ip4):
        node.call("address", "lo", address)
        node.call("listen", address)


def mac(node: str, interface: str) -> str:
    return f"02:00:00:00:{ord(node):02x}:{ord(interface[-1]):02x}"


def plain(address: str) -> str:
    return address.replace(":", "")


def link_local(address: str) -> str:
    """The EUI-64 address (RFC 4291 appendix A) of a MAC address that begins with 02."""
    b = address.split(":")
    return f"fe80::{b[1]}{b[2]}:".replace("fe80::0000:", "fe80::") + f"ff:fe{b[3]}:{b[4]}{b[5]}"


def total(flows: list[Flow], direction: str, **wanted: str) -> int:
    """Bytes of the flows that are like that."""
    return sum(flow["bytes"] for flow in flows if flow["direction"] == direction and wanted.items() <= flow.items())


def eventually(condition: Callable[[], bool], timeout: float = 60.0) -> bool:
    """The last packets of a connection may still be under way when its sender is done."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
