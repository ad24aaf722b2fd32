"""Runs the commands of docs/tutorial.md as they stand there, each on a fresh Debian system in a network namespace.

tutorial_tree.py TUTORIAL PACKAGE BASE DIRECTORY PREFIX, in a mount namespace of its own. BASE is a tree as debootstrap
makes it; copies go to DIRECTORY; the names of network namespaces begin with PREFIX. There is no systemd in a tree: a
`systemctl` in its place starts and stops the service with the user, the capabilities and the command of its unit.
Prints what the commands print. Exit code 1 when one does not do what the page says.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NODES = ("ada", "ben", "cay")
PATIENCE = 90.0  # for what the page says will be there within seconds, on a loaded machine
PAID_MSAT = 300_000_000 // 1000  # of 400 sat, at the least; the rest is within the window
DEVICES = {"null": "1 3", "zero": "1 5", "urandom": "1 9", "random": "1 8", "net/tun": "10 200"}
SYSTEMCTL = r"""#!/bin/sh
set -e
unit=/lib/systemd/system/meshd.service
[ -e $unit ] || unit=/usr$unit
value() { sed -n "s/^$1=//p" $unit | tail -n 1; }
case "$*" in
"enable --now meshd")
    user=$(value User)
    capabilities=$(value AmbientCapabilities | tr 'A-Z' 'a-z' | sed 's/cap_/+/g; s/ /,/g')
    install -d -o root -g $user -m 770 /run/wireguard
    install -d -o $user -g $user -m 700 /var/lib/meshd
    install -d -o $user -g $user /run/meshd
    setpriv --reuid $user --regid $user --clear-groups --inh-caps -all,$capabilities --ambient-caps -all,$capabilities \
        --bounding-set -all,$capabilities $(value ExecStart) > /tmp/meshd.log 2>&1 &
    echo $! > /tmp/meshd.pid ;;
"disable --now meshd")
    pid=$(cat /tmp/meshd.pid)
    kill $pid
    while [ -d /proc/$pid ] && ! grep -q '^State:.Z' /proc/$pid/status; do sleep 0.1; done ;;
*) exit 0 ;;
esac
"""


class WrongError(Exception):
    """The page promises what does not happen."""


def steps(page: str) -> Iterator[tuple[list[str], str]]:
    """(nodes, command) of each line of each block that says where it is to be run."""
    for where, block in re.findall(r'^```sh title="On ([^"]*)"\n(.*?)^```$', page, re.M | re.S):
        for line in block.splitlines():
            yield list(NODES) if where == "every Pi" else [where], line


class Pi:
    def __init__(self, name: str, base: Path, tree: Path, namespace: str) -> None:
        self.name, self.tree, self.namespace = name, tree, namespace
        self.environment = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
        subprocess.run(["cp", "-a", str(base), str(tree)], check=True)
        for kind, target in (("proc", "proc"), ("tmpfs", "run"), ("tmpfs", "dev")):
            subprocess.run(["mount", "-t", kind, kind, str(tree / target)], check=True)
        (tree / "dev/net").mkdir()
        for device, numbers in DEVICES.items():
            subprocess.run(["mknod", "-m", "666", str(tree / "dev" / device), "c", *numbers.split()], check=True)
        systemctl = tree / "usr/bin/systemctl"
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)
        with (tree / "etc/hosts").open("a") as hosts:
            hosts.write(f"127.0.0.1 {Path('/etc/hostname').read_text().strip()}\n")  # else sudo complains

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        inside = [
            "ip",
            "netns",
            "exec",
            self.namespace,
            "chroot",
            str(self.tree),
            "/usr/bin/env",
            "-i",
            *self.environment,
        ]
        return subprocess.run(
            [*inside, "sh", "-c", f"cd /root; {command}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def until_it_works(self, command: str) -> str:
        """Questions are asked again, for a while; what changes anything is done once."""
        asks = re.search(r"meshctl (?!config|price set)|curl", command)
        deadline = time.monotonic() + (PATIENCE if asks else 0)
        while (done := self.run(command)).returncode and time.monotonic() < deadline:
            time.sleep(1)
        print(f"{self.name}$ {command}\n{done.stdout}", flush=True)
        if done.returncode:
            log = self.run("cat /tmp/meshd.log").stdout
            raise WrongError(f"{self.name}: {command}: exit code {done.returncode}\n{log}")
        return done.stdout

    def ask(self, command: str) -> object:
        answer: object = json.loads(self.until_it_works(f"sudo meshctl {command} --json"))["result"]
        return answer

    def files(self) -> set[str]:
        skipped = re.compile(
            r"^(proc|run|dev|tmp|root|var/lib/(dpkg|apt|meshd)|var/cache|var/log|etc/(passwd|group|g?shadow|sub.id)-)"
        )
        found = subprocess.run(
            ["find", ".", "-xdev", "-printf", "%P\\n"], cwd=self.tree, stdout=subprocess.PIPE, text=True, check=True
        )
        names = found.stdout.splitlines()
        return {name for name in names if not skipped.match(name)}


def wire(namespaces: dict[str, str]) -> None:
    ada, ben, cay = (namespaces[name] for name in NODES)
    for first, second in ((f"eth0 netns {ada}", f"eth0 netns {ben}"), (f"eth1 netns {ben}", f"eth0 netns {cay}")):
        subprocess.run(
            ["ip", "link", "add", *first.split(), "type", "veth", "peer", "name", *second.split()], check=True
        )
    for namespace, interfaces in ((ada, ("lo", "eth0")), (ben, ("lo", "eth0", "eth1")), (cay, ("lo", "eth0"))):
        for interface in interfaces:
            subprocess.run(["ip", "-n", namespace, "link", "set", interface, "up"], check=True)


def left_behind(pi: Pi) -> str:
    """In the kernel, after the service has stopped."""
    found = pi.run(
        "ip -o link | grep -v -e ' lo:' -e ' eth[01]@'; ip rule; nft list ruleset; ip route show table all proto 66"
    ).stdout
    usual = {"0:\tfrom all lookup local", "32766:\tfrom all lookup main", "32767:\tfrom all lookup default"}
    return "\n".join(line for line in found.splitlines() if line.rstrip() not in usual)


def check(pis: dict[str, Pi], command: str) -> None:
    """What the page says in words, after a command of it."""
    if command.startswith("sudo meshctl routes"):
        for pi in pis.values():
            deadline = time.monotonic() + PATIENCE
            while len({route["prefix"] for route in pi.ask("routes")}) < 3:  # type: ignore[attr-defined]
                if time.monotonic() > deadline:
                    raise WrongError(f"{pi.name} does not learn of the two others")
                time.sleep(1)
        status = pis["cay"].ask("status")
        pis["ada"].environment.append(f"CAY={status['address']}")  # type: ignore[index]
    elif command.startswith("curl"):
        deadline = time.monotonic() + PATIENCE
        while sum(entry["received_msat"] for entry in pis["ben"].ask("ledger")) < PAID_MSAT:  # type: ignore[attr-defined]
            if time.monotonic() > deadline:
                raise WrongError("ben is not paid")
            time.sleep(1)
    elif command.startswith("sudo systemctl disable"):
        for pi in pis.values():
            if left := left_behind(pi):
                raise WrongError(f"{pi.name}: in the kernel: {left}")


def main(tutorial: str, package: str, base: str, directory: str, prefix: str) -> int:
    namespaces = {name: f"{prefix}-{name}" for name in NODES}
    try:
        for namespace in namespaces.values():
            subprocess.run(["ip", "netns", "add", namespace], check=True)
        wire(namespaces)
        pis = {name: Pi(name, Path(base), Path(directory) / name, namespaces[name]) for name in NODES}
        before = {name: pi.files() for name, pi in pis.items()}
        for pi in pis.values():
            shutil.copy(package, pi.tree / "root")
        for nodes, command in steps(Path(tutorial).read_text()):
            for name in nodes:
                pis[name].until_it_works(command)
            check(pis, command)
        for name, pi in pis.items():
            if changed := before[name] ^ pi.files():
                raise WrongError(f"{name}: files: {sorted(changed)[:20]}")
    except WrongError as error:
        print(error)
        return 1
    finally:
        for namespace in namespaces.values():
            pids = subprocess.run(
                ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
            ).stdout.split()
            subprocess.run(["kill", "-9", *pids], check=False) if pids else None
            subprocess.run(["ip", "netns", "delete", namespace], check=False)
    print("the page is true")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
