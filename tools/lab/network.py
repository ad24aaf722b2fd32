"""Namespaces, links and rates, through ip and tc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.lab.topology import Link, rate_bits

NETNS_DIR = Path("/run/netns")
PREFIX = "ml-"

# No duplicate address detection: veth pairs have no duplicates, and it costs a second. ECN, so that where there is
# fq_codel the queue at a rate limit marks packets and does not drop them: both ends then meter the same bytes.
SYSCTLS = {
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv4/tcp_ecn": "1",
}


class NetworkError(Exception):
    """A command of ip or tc failed; the message has its words."""


def run(argv: Sequence[str], *, stdin: str | None = None) -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _batch(argv: Sequence[str], commands: Iterable[str]) -> None:
    """One process for many commands; they stop at the first that fails."""
    text = "\n".join(commands)
    if text:
        run([*argv, "-batch", "-"], stdin=text + "\n")


def interface_to(peer: str) -> str:
    return f"to-{peer}"


def inside(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in the namespace; ip executes it in its own place, so the pid stays."""
    return ["ip", "netns", "exec", namespace, *argv]


def existing(names: Iterable[str]) -> list[str]:
    return [name for name in names if (NETNS_DIR / name).exists()]


def create_namespaces(names: Sequence[str]) -> None:
    _batch(["ip"], (f"netns add {name}" for name in names))
    settings = "; ".join(f"echo {value} > /proc/sys/{key}" for key, value in SYSCTLS.items())
    for name in names:
        run(inside(name, ["sh", "-ec", settings]))
        _batch(["ip", "-n", name], ["link set lo up"])


def _bucket(interface: str, rate: str) -> str:
    """Half a second of queue and 10 ms of burst: TCP fills it and backs off by delay or window, seldom by loss."""
    bits = rate_bits(rate)
    burst = max(16_000, int(bits / 8 * 0.010))
    limit = burst + max(256_000, int(bits / 8 * 0.5))
    return f"qdisc replace dev {interface} root handle 1: tbf rate {bits:.0f}bit burst {burst} limit {limit}"


def _fair_queue(interface: str, rate: str) -> str:
    """Marks (ECN) at 5 ms of delay, or at that of two packets where that is longer; control packets overtake."""
    target_us = max(5_000, int(2 * 1514 * 8 / rate_bits(rate) * 1e6))
    options = f"target {target_us}us interval {20 * target_us}us limit 10240 memory_limit 32Mb ecn"
    return f"qdisc replace dev {interface} parent 1: handle 10: fq_codel {options}"


def _shape(namespace: str, rate_by_interface: dict[str, str]) -> None:
    if not rate_by_interface:
        return
    _batch(["tc", "-n", namespace], (_bucket(*item) for item in rate_by_interface.items()))
    # Kernels without fq_codel keep the bucket's own queue: more delay under load, and still few drops.
    fair = "\n".join(_fair_queue(*item) for item in rate_by_interface.items()) + "\n"
    subprocess.run(["tc", "-n", namespace, "-batch", "-"], input=fair, text=True, capture_output=True, check=False)


def set_rate(namespace: str, interface: str, rate: str | None) -> None:
    """Limits what leaves by the interface; None: no limit."""
    if rate is not None:
        _shape(namespace, {interface: rate})
        return
    # Fails where there is no limit to delete.
    subprocess.run(["tc", "-n", namespace, "qdisc", "del", "dev", interface, "root"], capture_output=True, check=False)


def create_links(namespace_of: dict[str, str], links: Iterable[Link]) -> None:
    links = list(links)
    _batch(
        ["ip"],
        (
            f"link add {interface_to(link.b)} netns {namespace_of[link.a]} type veth"
            f" peer name {interface_to(link.a)} netns {namespace_of[link.b]}"
            for link in links
        ),
    )
    for name, namespace in namespace_of.items():
        peers = [(link.b if link.a == name else link.a, link.rate) for link in links if name in (link.a, link.b)]
        _batch(["ip", "-n", namespace], (f"link set {interface_to(peer)} up" for peer, _ in peers))
        _shape(namespace, {interface_to(peer): rate for peer, rate in peers if rate is not None})


def pids_in(namespace: str) -> list[int]:
    if not (NETNS_DIR / namespace).exists():
        return []
    return [int(word) for word in run(["ip", "netns", "pids", namespace]).split()]


def is_inside(pid: int, namespace: str) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == (NETNS_DIR / namespace).stat().st_ino
    except FileNotFoundError:
        return False


def delete_namespace(name: str) -> None:
    """Its veth ends go with it, and so do their peers."""
    if not name.startswith(PREFIX):
        raise NetworkError(f"'{name}' is no namespace of the lab")
    if (NETNS_DIR / name).exists():
        run(["ip", "netns", "delete", name])
