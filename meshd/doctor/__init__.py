"""`meshctl doctor`: what is wrong with a node, and how to mend it; with the daemon running, and without.

Each check looks at one thing and says what it found, as a `Finding`. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from meshd.doctor import host, links, node, settings
from meshd.doctor.finding import Finding, Level, World

# In the order in which a newcomer should mend things: what follows may be due to what stands before.
CHECKS: dict[str, Callable[[World], Iterator[Finding]]] = {
    "configuration": settings.configuration,
    "state": settings.state,
    "clock": host.clock,
    "permissions": host.permissions,
    "nftables": host.nftables,
    "wireguard": host.wireguard,
    "interfaces": links.interfaces,
    "radios": links.radios,
    "sysctls": links.sysctls,
    "firewall": host.firewall,
    "ports": host.ports,
    "daemon": node.daemon,
    "neighbours": node.neighbours,
    "chain": node.chain,
    "wallet": node.wallet,
}


def examine(world: World) -> list[Finding]:
    """Everything that is worth a line; at least one for each check."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        found = list(check(world)) or [Finding(name, Level.OK, "nothing wrong")]
        findings += found
    return findings


__all__ = ["CHECKS", "Finding", "Level", "World", "examine"]
