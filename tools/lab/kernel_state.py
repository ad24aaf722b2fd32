"""All that a daemon may change in its network namespace, as text, so that two moments can be compared."""

from __future__ import annotations

import sys

from tools.lab.lab import ROOT, Lab

# `-s -t`: rules and sets, not what they have counted. Neighbour tables and the like are nobody's to put back.
_QUESTIONS = {
    "rules": "ip -4 rule; ip -6 rule",
    "routes": "ip -4 route show table all; ip -6 route show table all | grep -v ' proto ra '",
    "nftables": "nft -s -t list ruleset | sed -E 's/_[0-9]+\\b//g'",
    "addresses": "ip -o address | grep -v 'scope link.*tentative'",
    "links": "ip -d -o link",
    "sysctls": "cd /proc/sys/net; grep -r . ipv4/conf ipv6/conf 2>/dev/null; cat ipv4/ip_forward",
}
_OFFLOADS = "import sys; from meshd.kernel.ethtool import read_offloads as r; print([(i, r(i)) for i in sys.argv[1:]])"


def snapshot(lab: Lab, node: str) -> dict[str, list[str]]:
    """Lines by subject, in an order of their own."""
    state = {
        subject: sorted(lab.exec(node, ["sh", "-c", question]).stdout.splitlines())
        for subject, question in _QUESTIONS.items()
    }
    interfaces = [f"to-{peer}" for peer in lab.topology.neighbours(node)]
    program = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c", _OFFLOADS, *interfaces]
    return state | {"offloads": lab.exec(node, program).stdout.splitlines()}


def routes_of_meshd(lab: Lab, node: str) -> int:
    """Of both families; not those that hold a lost prefix."""
    lines = lab.exec(node, ["sh", "-c", _QUESTIONS["routes"]]).stdout.splitlines()
    return sum(" proto 66" in line and not line.startswith("unreachable") for line in lines)


def difference(before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, list[str]]:
    """What is there more (+) and less (-), by subject; empty if nothing."""
    changed = {}
    for subject, lines in before.items():
        gone = [f"- {line}" for line in lines if lines.count(line) > after[subject].count(line)]
        more = [f"+ {line}" for line in after[subject] if after[subject].count(line) > lines.count(line)]
        if gone or more:
            changed[subject] = gone + more
    return changed
