"""Who is held to the free tier: the lines that make nftables police what such a neighbour wants carried on.

A table of its own, family inet, so that one bucket serves a neighbour's IPv4 and IPv6. Its chain runs right before the
one that counts (`nft`), and is only there while somebody is held: nobody else's packets pay for it. What it lets
through is then counted as free in place of billed, by the same neighbour's entry in the sets `suspended`.

What is for ourselves (routing, payment sessions, neighbour discovery) never comes here: the chain hooks forward alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

FAMILY = "inet"
REFUSE = "refuse"  # the chain that counts and drops
_SIZE = 4096
_PRIORITY = "filter + 9"
_LINK = "iif . @ll,48,48"  # the neighbour on a link; in a tunnel, the interface alone tells it
_TUNNEL = "iif"
_DNS = "meta l4proto { tcp, udp } th dport 53"
# The kernel's bucket holds this and one second of the rate. Two full packets: one that holds less than one lets none
# through. With less than a second, TCP loses what it does not use while it waits for a retransmission timeout.
BURST = 3_028
_DNS_SHARE = 16
_MIN_DNS_RATE = 512  # bytes per second: some six questions
_LIGHT_SHARE = 16  # of the tier, on top of it, for flows that take little of it
LIGHT_FLOWS = 4  # that share can serve so many at once
_LIGHT_TIMEOUT = "1m"  # a flow that was silent for so long is a new one
_FLOW = {"ip": ("ipv4", "@nh,96,32 . @nh,128,32"), "ip6": ("ipv6", "@nh,64,256")}  # source and destination

Port = tuple[str, bytes]  # (interface, MAC address; empty in a tunnel)


@dataclass(frozen=True, slots=True)
class Tier:
    """`rate`: bytes per second, at layer 3, of each that is held; 0: none but DNS is carried."""

    rate: int

    @property
    def light_rate(self) -> int:
        """On top, for the first bytes of each flow and for flows that need no more than a `LIGHT_FLOWS`th of this: one
        that takes all that it can get leaves the others so much."""
        return self.rate // _LIGHT_SHARE

    @property
    def dns_rate(self) -> int:
        """On top, so that names are found though the rest is used up. Little: DNS can carry anything."""
        return max(self.rate // _DNS_SHARE, _MIN_DNS_RATE)


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """A neighbour's entry. `is_shared`: it shares one bucket with all that are so held: identities cost nothing, and a
    bucket for each would be as much as whoever makes them likes."""

    index: int  # of the interface
    mac: bytes
    is_shared: bool = False

    @property
    def key(self) -> str:
        return f"{self.index} . 0x{self.mac.hex()}" if self.mac else str(self.index)

    @property
    def kind(self) -> str:
        return "" if self.mac else "_tunnels"


def definitions(tier: Tier) -> list[str]:
    """The table, which is not there yet, and all that is in it for good."""
    lines = [f"add table {FAMILY} meshd", f"add chain {FAMILY} meshd {REFUSE}"]
    for kind, key in (("", _LINK), ("_tunnels", _TUNNEL)):
        lines += _set_lines(tier, kind, key)
        lines.append(f"add chain {FAMILY} meshd tier{kind}")
        lines += [f"add rule {FAMILY} meshd tier{kind} {rule}" for rule in _rules(tier, kind, key)]
    return lines


def _set_lines(tier: Tier, kind: str, key: str) -> list[str]:
    """Where a set has a limit, each of its elements has one, and matches by it: a bucket for each neighbour."""
    limits = {
        "who": "",
        "held": _limit(tier.rate, over=True) if tier.rate else "",
        "held_light": _limit(tier.light_rate, burst=LIGHT_FLOWS * BURST) if tier.light_rate else "",
        "held_dns": _limit(tier.dns_rate),
        "shared": "",
    }
    lines = [
        f"add set {FAMILY} meshd {name}{kind} {{ typeof {key}; size {_SIZE}; {f'{limit}; ' if limit else ''}}}"
        for name, limit in limits.items()
    ]
    for family, (_, flow) in _FLOW.items():
        options = f"typeof {key} . {flow}; flags dynamic,timeout; timeout {_LIGHT_TIMEOUT}; size {_SIZE};"
        lines.append(f"add set {FAMILY} meshd light_{family}{kind} {{ {options} }}")
    return lines


def _rules(tier: Tier, kind: str, key: str) -> Iterator[str]:
    """What they accept goes on to the chain that counts it."""
    dns = _limit(tier.dns_rate)
    yield f"{_DNS} {key} @held_dns{kind} accept"
    yield f"{_DNS} {key} @shared{kind} {dns} accept"
    over = f"{_limit(tier.rate, over=True)} " if tier.rate else ""
    yield f"{key} @shared{kind} {over}goto {REFUSE}"
    yield f"{key} @shared{kind} accept"
    if tier.light_rate >= LIGHT_FLOWS:
        own = _limit(tier.light_rate // LIGHT_FLOWS)
        for family, (protocol, flow) in _FLOW.items():
            is_light = f"update @light_{family}{kind} {{ {key} . {flow} {own} }}"
            yield f"meta nfproto {protocol} {is_light} {key} @held_light{kind} accept"
    yield f"{key} @held{kind} goto {REFUSE}"


def changes(before: Iterable[Held], after: Iterable[Held]) -> list[str]:
    """From what is in the sets to what is to be: the buckets of those who stay are left as they are."""
    old, new = set(before), set(after)
    lines = [line for held in sorted(old - new) for line in _element_lines("delete", held)]
    lines += [line for held in sorted(new - old) for line in _element_lines("add", held)]
    return lines + _hook(new)


def refusing(counting: Sequence[str]) -> list[str]:
    """What becomes of a packet beyond the tier. `counting`: statements of rules; the first that can, counts."""
    rules = [*(f"{rule} drop" for rule in counting), "drop"]
    return [
        f"flush chain {FAMILY} meshd {REFUSE}",
        *(f"add rule {FAMILY} meshd {REFUSE} {rule}" for rule in rules),
    ]


def _hook(held: Iterable[Held]) -> list[str]:
    """The base chain: there, with a look-up for each kind of neighbour that is held, or not there at all."""
    kinds = sorted({entry.kind for entry in held})
    base = f"{{ type filter hook forward priority {_PRIORITY}; policy accept; }}"
    lines = [f"add chain {FAMILY} meshd forward {base}", f"flush chain {FAMILY} meshd forward"]
    if not kinds:
        return [*lines, f"delete chain {FAMILY} meshd forward"]
    key = {"": _LINK, "_tunnels": _TUNNEL}
    return lines + [f"add rule {FAMILY} meshd forward {key[kind]} @who{kind} goto tier{kind}" for kind in kinds]


def _element_lines(verb: str, held: Held) -> list[str]:
    names = ["who", "shared"] if held.is_shared else ["who", "held", "held_light", "held_dns"]
    return [f"{verb} element {FAMILY} meshd {name}{held.kind} {{ {held.key} }}" for name in names]


def _limit(rate: int, *, burst: int = BURST, over: bool = False) -> str:
    return f"limit rate {'over ' if over else ''}{rate} bytes/second burst {burst} bytes"
