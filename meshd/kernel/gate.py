"""Who is held to the free tier: the lines that make nftables police what such a neighbour wants carried on.

A table of its own, family inet, so that one bucket serves a neighbour's IPv4 and IPv6. Its chain runs right before the
one that counts (`nft`), and is only there while somebody is held: nobody else's packets pay for it. What it lets
through is then counted as free in place of billed, by the same neighbour's entry in the sets `suspended`.

What is for ourselves (routing, payment sessions, neighbour discovery) never comes here: the chain hooks forward alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
_BURST = 3_028
_DNS_SHARE = 16
_MIN_DNS_RATE = 512  # bytes per second: some six questions

Port = tuple[str, bytes]  # (interface, MAC address; empty in a tunnel)


@dataclass(frozen=True, slots=True)
class Tier:
    """`rate`: bytes per second, at layer 3, of each that is held; 0: none but DNS is carried."""

    rate: int

    @property
    def bucket(self) -> int:
        """Bytes that may come at once after silence."""
        return self.rate + _BURST

    @property
    def dns_rate(self) -> int:
        """On top, so that names are found though the rest is used up. Little: DNS can carry anything."""
        return max(self.rate // _DNS_SHARE, _MIN_DNS_RATE)

    @property
    def dns_bucket(self) -> int:
        return self.dns_rate + _BURST


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
    over = f"{_limit(tier.rate, over=True)} " if tier.rate else ""
    dns = _limit(tier.dns_rate)
    lines = [f"add table {FAMILY} meshd", f"add chain {FAMILY} meshd {REFUSE}"]
    for kind, key in (("", _LINK), ("_tunnels", _TUNNEL)):
        lines += [
            f"add set {FAMILY} meshd who{kind} {{ typeof {key}; size {_SIZE}; }}",
            f"add set {FAMILY} meshd held{kind} {{ typeof {key}; size {_SIZE}; {f'{over}; ' if over else ''}}}",
            f"add set {FAMILY} meshd held_dns{kind} {{ typeof {key}; size {_SIZE}; {dns}; }}",
            f"add set {FAMILY} meshd shared{kind} {{ typeof {key}; size {_SIZE}; }}",
            f"add chain {FAMILY} meshd tier{kind}",
            f"add rule {FAMILY} meshd tier{kind} {_DNS} {key} @held_dns{kind} accept",
            f"add rule {FAMILY} meshd tier{kind} {_DNS} {key} @shared{kind} {dns} accept",
            f"add rule {FAMILY} meshd tier{kind} {key} @held{kind} goto {REFUSE}",
            f"add rule {FAMILY} meshd tier{kind} {key} @shared{kind} {over}goto {REFUSE}",
        ]
    return lines


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
    names = ["who", "shared"] if held.is_shared else ["who", "held", "held_dns"]
    return [f"{verb} element {FAMILY} meshd {name}{held.kind} {{ {held.key} }}" for name in names]


def _limit(rate: int, *, over: bool = False) -> str:
    return f"limit rate {'over ' if over else ''}{rate} bytes/second burst {_BURST} bytes"
