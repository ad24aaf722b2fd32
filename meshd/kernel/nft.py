"""The nftables rules that count and police mesh traffic, loaded by `nft` (rare; the counters are read by `meter`).

Three tables, all named meshd. `ip` and `ip6`: what neighbours send us, apart for ourselves (hook input) and to be
carried on (hook forward, after the operator's own filters, so that only what is carried is billed). `netdev`: what we
send to neighbours, seen at egress, where the neighbour's MAC address is known whatever family its next hop was.

Each dynamic set exists in two generations, 0 and 1: packets are counted in one while the other is read for the last
time and emptied. That is how elements are got rid of without losing the bytes that arrive meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from subprocess import CompletedProcess

import trio

TABLE = "meshd"
_SET_SIZE = 16384  # also its number of hash buckets, which each reading walks through
_REST_SIZE = 1024
_NFT_TIMEOUT = 5.0
_FEW = 4  # comparisons that are faster than one look-up in a set

_Neighbours = frozenset[tuple[str, bytes]]


class NftError(Exception):
    """`nft` refused the rules, or is not there."""


class Direction(Enum):
    IN = "in"  # from that neighbour, for ourselves
    FORWARD_IN = "forward_in"  # from that neighbour, to be carried on
    REFUSED = "refused"  # from that neighbour, to be carried on, but it is suspended: dropped
    OUT = "out"  # to that neighbour, our own or carried


@dataclass(frozen=True, slots=True)
class CounterSet:
    """A dynamic set of counters. `address_size`: 4, 16, or 0: not by flow, for what found the others full."""

    family: str  # of the table
    name: str
    direction: Direction
    address_size: int
    guard: str = ""  # which packets are counted there, where the table does not say it


# Routing, neighbour discovery and payment sessions have a link-local source. The meter leaves them out by their
# addresses; only where those are not known the rule must.
_NOT_LINK_LOCAL = "@nh,64,8 != 0xfe "


def _ingress_sets(direction: Direction, rest_guard: str) -> tuple[CounterSet, ...]:
    return (
        CounterSet("ip6", f"{direction.value}_ip6", direction, 16),
        CounterSet("ip6", f"{direction.value}_ip6_rest", direction, 0, rest_guard),
        CounterSet("ip", f"{direction.value}_ip4", direction, 4),
        CounterSet("ip", f"{direction.value}_ip4_rest", direction, 0),
    )


# In the order in which a packet tries them.
COUNTER_SETS = (
    *_ingress_sets(Direction.IN, _NOT_LINK_LOCAL),
    *_ingress_sets(Direction.FORWARD_IN, ""),  # what is link-local is never forwarded
    CounterSet("ip6", "refused_ip6", Direction.REFUSED, 0),
    CounterSet("ip", "refused_ip4", Direction.REFUSED, 0),
    CounterSet("netdev", "out_ip6", Direction.OUT, 16, "meta protocol ip6 "),
    CounterSet("netdev", "out_ip4", Direction.OUT, 4, "meta protocol ip "),
    CounterSet("netdev", "out_ip6_rest", Direction.OUT, 0, f"meta protocol ip6 {_NOT_LINK_LOCAL}"),
    CounterSet("netdev", "out_ip4_rest", Direction.OUT, 0, "meta protocol ip "),
)
_FAMILIES = ("ip", "ip6", "netdev")

# The rules are as short as they can be, for they cost throughput (tools/bench/forwarding): a table per family, and keys
# in raw payload expressions. To `ether saddr . ip6 saddr . ip6 daddr`, nft adds three checks of what is known here, and
# loads the addresses one by one.
_LINK_SOURCE = "@ll,48,48"
_LINK_DESTINATION = "@ll,0,48"
# Source and destination of the IP header. The kernel loads four bytes quickly, and more at the same price as 32.
_FLOW = {4: " . @nh,96,32 . @nh,128,32", 16: " . @nh,64,256", 0: ""}


class Nft:
    """What the rules are for: it can always be loaded from scratch."""

    def __init__(self) -> None:
        self.generation = 0
        self._index_by_interface: dict[str, int] = {}
        self._suspended: _Neighbours = frozenset()
        self._lock = trio.Lock()

    async def load(self) -> None:
        """All of it, anew, in one transaction; counters start at zero. Raises NftError."""
        async with self._lock:
            lines = [*_delete_tables(), *_definitions(), *self._ingress_lines(), *self._suspension_lines()]
            for interface, index in self._index_by_interface.items():
                lines += _interface_lines(interface, index, self.generation)
            await _run(lines)

    async def unload(self) -> None:
        """Delete our tables, also those of a daemon that was killed."""
        async with self._lock:
            await _run(_delete_tables())
            self._index_by_interface = {}
            self._suspended = frozenset()

    async def add_interface(self, interface: str, index: int) -> None:
        """Or, if it was made anew, the one that it is now."""
        async with self._lock, self._rollback():
            old = self._index_by_interface.get(interface)
            self._index_by_interface = self._index_by_interface | {interface: index}
            lines = _remove_interface_lines(old) if old is not None else []
            lines += _interface_lines(interface, index, self.generation)
            await _run([*lines, *self._ingress_lines(), *self._suspension_lines()])

    async def remove_interface(self, interface: str) -> None:
        async with self._lock, self._rollback():
            index = self._index_by_interface.get(interface)
            if index is not None:
                self._index_by_interface = {n: i for n, i in self._index_by_interface.items() if n != interface}
                await _run([*_remove_interface_lines(index), *self._ingress_lines(), *self._suspension_lines()])

    async def switch_generation(self) -> None:
        """From now on count in the sets of the other generation."""
        async with self._lock, self._rollback():
            self.generation = 1 - self.generation
            lines = self._ingress_lines()
            for index in self._index_by_interface.values():
                lines += [f"flush chain netdev {TABLE} out_{index}", *_egress_rules(index, self.generation)]
            await _run(lines)

    async def empty(self, generation: int) -> None:
        async with self._lock:
            await _run([f"flush set {s.family} {TABLE} {s.name}_{generation}" for s in COUNTER_SETS])

    async def suspend(self, interface: str, mac: bytes) -> None:
        await self._set_suspended(add=frozenset({(interface, mac)}))

    async def resume(self, interface: str, mac: bytes) -> None:
        await self._set_suspended(remove=frozenset({(interface, mac)}))

    async def _set_suspended(self, add: _Neighbours = frozenset(), remove: _Neighbours = frozenset()) -> None:
        async with self._lock, self._rollback():
            before = self._suspended
            self._suspended = (before | add) - remove
            # The rule that looks them up is only there when there is somebody to look up.
            rules = self._ingress_lines() if bool(before) != bool(self._suspended) else []
            if before != self._suspended:
                await _run([*rules, *self._suspension_lines()])

    @asynccontextmanager
    async def _rollback(self) -> AsyncIterator[None]:
        """What is known here must be what the kernel does: if the transaction fails, nothing has changed."""
        before = self.generation, self._index_by_interface, self._suspended
        try:
            yield
        except BaseException:
            self.generation, self._index_by_interface, self._suspended = before
            raise

    def _ingress_lines(self) -> list[str]:
        indices = list(self._index_by_interface.values())
        return _ingress_rules(indices, self.generation, with_gate=bool(self._suspended))

    def _suspension_lines(self) -> list[str]:
        index_by_interface = self._index_by_interface
        known = [(index_by_interface[i], mac) for i, mac in self._suspended if i in index_by_interface]
        elements = ", ".join(f"{index} . 0x{mac.hex()}" for index, mac in known)
        lines: list[str] = []
        for family in ("ip", "ip6"):
            lines.append(f"flush set {family} {TABLE} suspended")
            lines += [f"add element {family} {TABLE} suspended {{ {elements} }}"] if elements else []
        return lines

    @property
    def suspended(self) -> frozenset[tuple[str, bytes]]:
        return self._suspended


class Gate:
    """Who may have traffic carried by us. Packets to ourselves (routing, payments) always pass."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft

    async def suspend(self, interface: str, mac: bytes) -> None:
        """Carry nothing more for that neighbour; what is dropped is counted apart. Idempotent. Raises NftError."""
        await self._nft.suspend(interface, mac)

    async def resume(self, interface: str, mac: bytes) -> None:
        """Carry again. Idempotent. Raises NftError."""
        await self._nft.resume(interface, mac)

    @property
    def suspended(self) -> frozenset[tuple[str, bytes]]:
        """(interface, MAC address) of all that are suspended."""
        return self._nft.suspended


def _delete_tables() -> list[str]:
    # To delete a table that is not there is an error: make sure that it is.
    return [f"{verb} table {family} {TABLE}" for family in _FAMILIES for verb in ("add", "delete")]


def _definitions() -> list[str]:
    lines = [f"add table {family} {TABLE}" for family in _FAMILIES]
    for family in ("ip", "ip6"):
        # With a size the kernel takes the faster kind of hash table.
        lines.append(f"add set {family} {TABLE} suspended {{ typeof iif . {_LINK_SOURCE}; size 4096; }}")
        for hook in ("input", "forward"):
            base = f"{{ type filter hook {hook} priority filter + 10; policy accept; }}"
            lines.append(f"add chain {family} {TABLE} {hook} {base}")
    for counters in COUNTER_SETS:
        size = _SET_SIZE if counters.address_size else _REST_SIZE
        options = f"{{ typeof {_key(counters)}; flags dynamic; size {size}; counter; }}"
        lines += [f"add set {counters.family} {TABLE} {counters.name}_{generation} {options}" for generation in (0, 1)]
    return lines


def _ingress_rules(indices: Sequence[int], generation: int, *, with_gate: bool) -> list[str]:
    suspended = f"iif . {_LINK_SOURCE} @suspended"
    # In place of the kernel's own check, see accept_local in `changes`. IPv6 has none, and needs none of ours.
    no_spoofing = ["fib saddr type local drop"]
    first = {("ip", "input"): no_spoofing, ("ip", "forward"): [], ("ip6", "input"): [], ("ip6", "forward"): []}
    lines: list[str] = []
    for family in ("ip", "ip6"):
        if with_gate:
            # Two rules: where the set is full, the first fails, and the packet must be dropped all the same.
            counting = _counting(family, Direction.REFUSED, generation, verdict="")
            first[family, "forward"] = [*(f"{suspended} {rule}" for rule in counting), f"{suspended} drop"]
        for hook, direction in (("input", Direction.IN), ("forward", Direction.FORWARD_IN)):
            lines.append(f"flush chain {family} {TABLE} {hook}")
            counting = _counting(family, direction, generation)
            rules = [_not_ours(indices), *first[family, hook], *counting] if indices else []
            lines += [f"add rule {family} {TABLE} {hook} {rule}" for rule in rules]
    return lines


def _not_ours(indices: Sequence[int]) -> str:
    if len(indices) <= _FEW:
        return " ".join(f"iif != {index}" for index in indices) + " accept"
    return f"iif != {{ {', '.join(map(str, indices))} }} accept"


def _egress_rules(index: int, generation: int) -> list[str]:
    rules = _counting("netdev", Direction.OUT, generation)
    return [f"add rule netdev {TABLE} out_{index} {rule}" for rule in rules]


def _counting(family: str, direction: Direction, generation: int, *, verdict: str = "accept") -> list[str]:
    """`update` fails, and the rule with it, where the set is full: then a later one counts, by neighbour alone."""
    return [
        f"{counters.guard}update @{counters.name}_{generation} {{ {_key(counters)} }} {verdict}"
        for counters in COUNTER_SETS
        if (counters.family, counters.direction) == (family, direction)
    ]


def _key(counters: CounterSet) -> str:
    is_out = counters.direction is Direction.OUT
    neighbour = f"oif . {_LINK_DESTINATION}" if is_out else f"iif . {_LINK_SOURCE}"
    return neighbour + _FLOW[counters.address_size]


def _interface_lines(interface: str, index: int, generation: int) -> list[str]:
    return [
        f'add chain netdev {TABLE} out_{index} {{ type filter hook egress device "{interface}" priority 0; '
        "policy accept; }",
        f"flush chain netdev {TABLE} out_{index}",
        *_egress_rules(index, generation),
    ]


def _remove_interface_lines(index: int) -> list[str]:
    # The kernel may have deleted the chain together with its interface.
    return [
        f"add chain netdev {TABLE} out_{index}",
        f"flush chain netdev {TABLE} out_{index}",
        f"delete chain netdev {TABLE} out_{index}",
    ]


async def _run(lines: list[str]) -> None:
    """One transaction. Shielded, so that nobody is left wondering whether it was done."""
    with trio.CancelScope(deadline=trio.current_time() + _NFT_TIMEOUT, shield=True) as scope:
        try:
            done: CompletedProcess[bytes] = await trio.run_process(
                ["nft", "-f", "-"],
                stdin="\n".join([*lines, ""]).encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        except OSError as error:
            raise NftError(f"cannot start nft: {error}") from error
    if scope.cancelled_caught:
        raise NftError(f"nft took more than {_NFT_TIMEOUT} s")
    if done.returncode:
        raise NftError(done.stderr.decode(errors="replace").strip())
