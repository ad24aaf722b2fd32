"""The nftables rules that count and police mesh traffic, loaded by `nft` (rare; the counters are read by `meter`).

Four tables, all named meshd. `ip` and `ip6`: what neighbours send us, apart for ourselves (hook input) and to be
carried on (hook forward, after the operator's own filters, so that only what is carried is billed). `netdev`: what we
send to neighbours, seen at egress, where the neighbour's MAC address is known whatever family its next hop was.
`inet`: what holds those who have not paid to the free tier (`gate`).

The dynamic sets have a generation, a number that is used once: packets are counted in those of the next while the old
ones are read for the last time, and deleted when all that they counted is in the books. That is how elements are got
rid of without losing the bytes that arrive meanwhile, and how a counter is known again after a crash.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from subprocess import CompletedProcess
from typing import Protocol

import trio

from meshd.kernel import gate
from meshd.kernel.gate import Held, Port, Tier

TABLE = "meshd"
SET_SIZE = 16384  # also its number of hash buckets, which each reading walks through
_REST_SIZE = 1024
_NFT_TIMEOUT = 20.0  # it takes 10 ms; on a small machine that is busy, seconds
_GENERATION_BITS = 48
_FEW = 4  # comparisons that are faster than one look-up in a set

# Of `Nft`: values that are replaced as a whole, never changed.
_STATE = (
    "generation",
    "counter_sets",
    "_index_by_interface",
    "_shared_by_port",
    "_held",
    "_tunnels",
    "_guarded",
    "_expected",
)


class NftError(Exception):
    """`nft` refused the rules, or is not there."""


class Direction(Enum):
    IN = "in"  # from that neighbour, for ourselves
    FORWARD_IN = "forward_in"  # from that neighbour, to be carried on
    FREE = "free"  # from that neighbour, to be carried on within the free tier: it has not paid
    REFUSED = "refused"  # from that neighbour, to be carried on, but beyond the free tier: dropped
    OUT = "out"  # to that neighbour, our own or carried


@dataclass(frozen=True, slots=True)
class CounterSet:
    """A dynamic set of counters. `address_size`: 4, 16, or 0: not by flow, for what found the others full."""

    family: str  # of the table
    name: str
    direction: Direction
    address_size: int
    guard: str = ""  # which packets are counted there, where the table does not say it
    has_mac: bool = True  # False: of tunnels, where the interface alone tells the neighbour


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


def _for_tunnels(counters: CounterSet) -> CounterSet:
    # A rule that reads a MAC address fails on a packet that has none, and the next one is tried.
    is_ingress = counters.direction is not Direction.OUT
    guard = (f"meta iiftype {_ARPHRD_NONE} " if is_ingress else "") + counters.guard
    return replace(counters, name=f"tunnel_{counters.name}", guard=guard, has_mac=False)


_ARPHRD_NONE = 65534
# In the order in which a packet tries them.
LINK_SETS = (
    *_ingress_sets(Direction.IN, _NOT_LINK_LOCAL),
    *_ingress_sets(Direction.FORWARD_IN, ""),  # what is link-local is never forwarded
    CounterSet("ip6", "free_ip6", Direction.FREE, 0),
    CounterSet("ip", "free_ip4", Direction.FREE, 0),
    CounterSet(gate.FAMILY, "refused", Direction.REFUSED, 0),
    CounterSet("netdev", "out_ip6", Direction.OUT, 16, "meta protocol ip6 "),
    CounterSet("netdev", "out_ip4", Direction.OUT, 4, "meta protocol ip "),
    CounterSet("netdev", "out_ip6_rest", Direction.OUT, 0, f"meta protocol ip6 {_NOT_LINK_LOCAL}"),
    CounterSet("netdev", "out_ip4_rest", Direction.OUT, 0, "meta protocol ip "),
)
# Only there once there is a tunnel: each reading walks through all sets, empty ones too.
TUNNEL_SETS = tuple(_for_tunnels(counters) for counters in LINK_SETS)
COUNTER_SETS = LINK_SETS + TUNNEL_SETS
_FAMILIES = ("ip", "ip6", "netdev", gate.FAMILY)
_COUNTING_FAMILIES = ("ip", "ip6", "netdev")

# The rules are as short as they can be, for they cost throughput (tools/bench/forwarding): a table per family, and keys
# in raw payload expressions. To `ether saddr . ip6 saddr . ip6 daddr`, nft adds three checks of what is known here, and
# loads the addresses one by one.
_LINK_SOURCE = "@ll,48,48"
_LINK_DESTINATION = "@ll,0,48"
# Source and destination of the IP header. The kernel loads four bytes quickly, and more at the same price as 32.
_FLOW = {4: " . @nh,96,32 . @nh,128,32", 16: " . @nh,64,256", 0: ""}
# Who is held to the free tier, by what tells the neighbour on a link and in a tunnel.
_GATES = {"suspended": f"iif . {_LINK_SOURCE}", "suspended_tunnels": "iif"}
_GATE_KINDS = {"suspended": "", "suspended_tunnels": "_tunnels"}


class Nft:
    """What the rules are for: it can always be loaded from scratch."""

    def __init__(self, tier: Tier = Tier(0)) -> None:  # noqa: B008  immutable
        self._tier = tier
        self.generation = secrets.randbits(_GENERATION_BITS)
        self.counter_sets: tuple[CounterSet, ...] = LINK_SETS
        self._index_by_interface: dict[str, int] = {}
        self._tunnels: frozenset[str] = frozenset()
        self._guarded: dict[str, int] = {}
        self._shared_by_port: dict[Port, bool] = {}  # those that are held
        self._held: frozenset[Held] = frozenset()  # what the kernel knows of them
        self._expected: frozenset[Port] = frozenset()  # neighbours on links
        # Whether anything can ever have been counted of links, and of those who are held.
        self._had_links = self._had_held = False
        self._lock = trio.Lock()

    @property
    def sets_in_use(self) -> list[CounterSet]:
        """Those that can have elements; one at least, for who reads none does not notice that somebody deleted them."""
        in_use = [
            counters
            for counters in self.counter_sets
            if (self._had_links or not counters.has_mac)
            and (self._had_held or counters.direction not in (Direction.FREE, Direction.REFUSED))
        ]
        return in_use or [self.counter_sets[0]]

    async def load(self) -> None:
        """All of it, anew, in one transaction; counters start at zero. Raises NftError."""
        async with self._lock, self._rollback():
            lines = [*_delete_tables(), *_definitions(), *gate.definitions(self._tier)]
            self.generation += 1
            lines += _set_definitions(self.counter_sets, self.generation)
            self._held = frozenset()
            lines += [*self._ingress_lines(), *self._gate_lines()]
            for interface in self._present():
                lines += self._interface_lines(interface)
            await _run(lines + self._places())

    async def unload(self) -> None:
        """Delete our tables, also those of a daemon that was killed."""
        async with self._lock:
            await _run(_delete_tables())
            self._index_by_interface = {}
            self._shared_by_port = {}
            self._held = frozenset()
            self._tunnels = frozenset()
            self._guarded = {}
            self._expected = frozenset()

    async def add_interface(self, interface: str, index: int, *, is_tunnel: bool = False) -> None:
        """Or, if it was made anew, the one that it is now. `is_tunnel`: its packets have no MAC addresses."""
        async with self._lock, self._rollback():
            old = self._index_by_interface.get(interface)
            self._index_by_interface = self._index_by_interface | {interface: index}
            lines = _remove_interface_lines(old) if old is not None else []
            self._had_links |= not is_tunnel
            if is_tunnel:
                self._tunnels |= {interface}
                if self.counter_sets is LINK_SETS:
                    self.counter_sets = COUNTER_SETS
                    lines += _set_definitions(TUNNEL_SETS, self.generation)
            lines += self._interface_lines(interface)
            await _run([*lines, *self._ingress_lines(), *self._gate_lines(), *self._places(interface)])

    async def expect(self, interface: str, mac: bytes) -> None:
        """Keep a place for this neighbour where is counted what does not find one by flow.

        The kernel cannot always make an element while it handles a packet: a hundred new flows at once, and memory for
        their counters has yet to be found. Raises NftError, also when there is no place left.
        """
        async with self._lock, self._rollback():
            if mac and (interface, mac) not in self._expected and interface in self._index_by_interface:
                self._expected |= {(interface, mac)}
                await _run(self._places(interface))

    def unexpect(self, interface: str, mac: bytes) -> None:
        """Its place goes when counting goes over to new sets the next time."""
        self._expected -= {(interface, mac)}

    async def guard_interface(self, interface: str, index: int) -> None:
        """Carry nothing that comes in there: it is under tunnels, and what is outside of them is nobody's to bill.

        With another index than before, it was made anew.
        """
        async with self._lock, self._rollback():
            if self._guarded.get(interface) != index:
                self._guarded = self._guarded | {interface: index}
                await _run(self._ingress_lines())

    async def remove_interface(self, interface: str) -> int | None:
        """The index that it had; None if it was not there."""
        async with self._lock, self._rollback():
            index = self._index_by_interface.get(interface)
            if index is not None:
                self._index_by_interface = {n: i for n, i in self._index_by_interface.items() if n != interface}
                self._tunnels -= {interface}
                self._expected = frozenset(port for port in self._expected if port[0] != interface)
                await _run([*_remove_interface_lines(index), *self._ingress_lines(), *self._gate_lines()])
            return index

    async def switch_generation(self) -> None:
        """From now on count in the sets of a new generation."""
        async with self._lock, self._rollback():
            self.generation += 1
            lines = _set_definitions(self.counter_sets, self.generation)
            lines += [*self._places(), *self._ingress_lines(), *self._gate_lines()]
            for interface, index in self._present().items():
                lines += [f"flush chain netdev {TABLE} out_{index}", *self._egress_rules(interface)]
            await _run(lines)

    async def delete(self, generation: int) -> None:
        """The sets of one in which nothing is counted any more."""
        async with self._lock:
            names = [f"{s.family} {TABLE} {s.name}_{generation}" for s in self.counter_sets]
            definitions = _set_definitions(self.counter_sets, generation)  # those of tunnels may have come later
            await _run([*definitions, *(f"delete set {name}" for name in names)])

    async def hold(self, interface: str, mac: bytes, *, is_shared: bool) -> None:
        async with self._lock, self._rollback():
            await self._set_held(self._shared_by_port | {(interface, mac): is_shared})

    async def release(self, interface: str, mac: bytes) -> None:
        async with self._lock, self._rollback():
            kept = {port: shared for port, shared in self._shared_by_port.items() if port != (interface, mac)}
            await self._set_held(kept)

    async def _set_held(self, shared_by_port: dict[Port, bool]) -> None:
        before, self._shared_by_port = self._shared_by_port, shared_by_port
        self._had_held |= bool(shared_by_port)
        # The rules that look them up are only there when there is somebody to look up.
        if before != shared_by_port:
            await _run([*self._ingress_lines(), *self._gate_lines()])

    @asynccontextmanager
    async def _rollback(self) -> AsyncIterator[None]:
        """What is known here must be what the kernel does: if the transaction fails, nothing has changed."""
        before = {name: getattr(self, name) for name in _STATE}
        try:
            yield
        except BaseException:
            for name, value in before.items():
                setattr(self, name, value)
            raise

    def _present(self) -> dict[str, int]:
        """One that was unplugged took its chain along, and a line about that would fail all of the transaction."""
        return {name: index for name, index in self._index_by_interface.items() if _index_of(name) == index}

    def _places(self, interface: str | None = None) -> list[str]:
        """Elements for all neighbours that are known, or those on that interface, in the sets that are not by flow."""
        ports = [*self._expected, *((tunnel, b"") for tunnel in self._tunnels)]
        wanted = [Held(self._index_by_interface[name], mac) for name, mac in ports if interface in (None, name)]
        lines = []
        for counters in self.counter_sets:
            keys = [entry.key for entry in sorted(wanted) if bool(entry.mac) is counters.has_mac]
            if keys and not counters.address_size:
                name = f"{counters.name}_{self.generation}"
                lines.append(f"add element {counters.family} {TABLE} {name} {{ {', '.join(keys)} }}")
        return lines

    def _ingress_lines(self) -> list[str]:
        indices = list(self._index_by_interface.values())
        # As many sets as there are kinds of neighbours to be kept out.
        gates = tuple(name for name, elements in self._suspended().items() if elements)
        lines = _ingress_rules(indices, self.generation, self.counter_sets, gates)
        for family in ("ip", "ip6"):
            lines += [
                f"insert rule {family} {TABLE} forward iif {index} drop" for index in sorted(self._guarded.values())
            ]
        return lines

    def _wanted(self) -> frozenset[Held]:
        """An interface that is not managed yet carries as well."""
        held = set()
        for (name, mac), is_shared in self._shared_by_port.items():
            index = self._index_by_interface.get(name) or _index_of(name)
            if index is not None:
                held.add(Held(index, mac, is_shared))
        return frozenset(held)

    def _gate_lines(self) -> list[str]:
        """Brings those that are held in line; for what counts them, too."""
        before, self._held = self._held, self._wanted()
        refused = _counting(self.counter_sets, gate.FAMILY, Direction.REFUSED, self.generation, verdict="")
        lines = [*gate.refusing(refused), *gate.changes(before, self._held)]
        for family in ("ip", "ip6"):
            for name, elements in self._suspended().items():
                lines.append(f"flush set {family} {TABLE} {name}")
                lines += [f"add element {family} {TABLE} {name} {{ {', '.join(elements)} }}"] if elements else []
        return lines

    def _suspended(self) -> dict[str, list[str]]:
        held = sorted(self._wanted())
        return {name: [h.key for h in held if h.kind == kind] for name, kind in _GATE_KINDS.items()}

    def _interface_lines(self, interface: str) -> list[str]:
        index = self._index_by_interface[interface]
        return [
            f'add chain netdev {TABLE} out_{index} {{ type filter hook egress device "{interface}" priority 0; '
            "policy accept; }",
            f"flush chain netdev {TABLE} out_{index}",
            *self._egress_rules(interface),
        ]

    def _egress_rules(self, interface: str) -> list[str]:
        index = self._index_by_interface[interface]
        sets = TUNNEL_SETS if interface in self._tunnels else LINK_SETS
        rules = _counting(sets, "netdev", Direction.OUT, self.generation)
        return [f"add rule netdev {TABLE} out_{index} {rule}" for rule in rules]

    def hold_before_load(self, shared_by_port: Mapping[Port, bool]) -> None:
        """Whom the rules hold from the first moment that they are there."""
        self._shared_by_port = dict(shared_by_port)
        self._had_held = bool(shared_by_port)

    def guard_before_load(self, interfaces: Iterable[str]) -> None:
        """Those of them that are there, from the first moment on (`guard_interface`)."""
        indices = {interface: _index_of(interface) for interface in interfaces}
        self._guarded = {interface: index for interface, index in indices.items() if index is not None}

    @property
    def held(self) -> frozenset[Port]:
        return frozenset(self._shared_by_port)


class FastLane(Protocol):
    """`meshd.kernel.lane.Lane`, as far as a gate needs it."""

    def shut(self, port: Port) -> None: ...
    def allow(self, port: Port) -> None: ...


class Gate:
    """Who is held to the free tier in what it wants carried by us. What is for ourselves (routing, payments) passes."""

    def __init__(self, nft: Nft, lane: FastLane) -> None:
        self._nft = nft
        self._lane = lane

    async def suspend(self, interface: str, mac: bytes, *, is_shared: bool = False) -> None:
        """From now on carry no more for that neighbour than the free tier, and count what is carried (FREE) and what is
        dropped (REFUSED) apart. `is_shared`: of one tier for all who are so held. Idempotent. Raises NftError."""
        self._lane.shut((interface, mac))  # first: it goes by the rules
        await self._nft.hold(interface, mac, is_shared=is_shared)

    async def resume(self, interface: str, mac: bytes) -> None:
        """Carry everything again. Idempotent. Raises NftError."""
        await self._nft.release(interface, mac)
        self._lane.allow((interface, mac))

    @property
    def suspended(self) -> frozenset[Port]:
        """(interface, MAC address) of all that are held."""
        return self._nft.held


def _delete_tables() -> list[str]:
    # To delete a table that is not there is an error: make sure that it is.
    return [f"{verb} table {family} {TABLE}" for family in _FAMILIES for verb in ("add", "delete")]


def _definitions() -> list[str]:
    lines = [f"add table {family} {TABLE}" for family in _COUNTING_FAMILIES]
    for family in ("ip", "ip6"):
        # With a size the kernel takes the faster kind of hash table.
        for name, key in _GATES.items():
            lines.append(f"add set {family} {TABLE} {name} {{ typeof {key}; size 4096; }}")
        for hook in ("input", "forward"):
            base = f"{{ type filter hook {hook} priority filter + 10; policy accept; }}"
            lines.append(f"add chain {family} {TABLE} {hook} {base}")
    return lines


def _set_definitions(sets: Sequence[CounterSet], generation: int) -> list[str]:
    lines: list[str] = []
    for counters in sets:
        size = SET_SIZE if counters.address_size else _REST_SIZE
        options = f"{{ typeof {_key(counters)}; flags dynamic; size {size}; counter; }}"
        lines.append(f"add set {counters.family} {TABLE} {counters.name}_{generation} {options}")
    return lines


def _ingress_rules(
    indices: Sequence[int], generation: int, sets: Sequence[CounterSet], gates: Sequence[str]
) -> list[str]:
    """`gates`: the sets of neighbours that are held, those that are not empty. What comes by here of theirs is free."""
    # In place of the kernel's own check, see accept_local in `changes`. IPv6 has none, and needs none of ours.
    no_spoofing = ["fib saddr type local drop"]
    first = {("ip", "input"): no_spoofing, ("ip", "forward"): [], ("ip6", "input"): [], ("ip6", "forward"): []}
    lines: list[str] = []
    for family in ("ip", "ip6"):
        for name in gates:
            suspended = f"{_GATES[name]} @{name}"
            # Two rules: where the set is full, the first fails, and the packet must not be billed all the same.
            free = [s for s in sets if s.has_mac is (name == "suspended")]
            counting = _counting(free, family, Direction.FREE, generation, verdict="accept")
            first[family, "forward"] += [*(f"{suspended} {rule}" for rule in counting), f"{suspended} accept"]
        for hook, direction in (("input", Direction.IN), ("forward", Direction.FORWARD_IN)):
            lines.append(f"flush chain {family} {TABLE} {hook}")
            counting = _counting(sets, family, direction, generation)
            # Beyond the rest is nothing: what can be counted for nobody is not carried.
            last = ["drop"] if direction is Direction.FORWARD_IN else []
            rules = [_not_ours(indices), *first[family, hook], *counting, *last] if indices else []
            lines += [f"add rule {family} {TABLE} {hook} {rule}" for rule in rules]
    return lines


def _not_ours(indices: Sequence[int]) -> str:
    if len(indices) <= _FEW:
        return " ".join(f"iif != {index}" for index in indices) + " accept"
    return f"iif != {{ {', '.join(map(str, indices))} }} accept"


def _counting(
    sets: Sequence[CounterSet], family: str, direction: Direction, generation: int, *, verdict: str = "accept"
) -> list[str]:
    """`update` fails, and the rule with it, where the set is full: then a later one counts, by neighbour alone."""
    return [
        f"{counters.guard}update @{counters.name}_{generation} {{ {_key(counters)} }} {verdict}"
        for counters in sets
        if (counters.family, counters.direction) == (family, direction)
    ]


def _key(counters: CounterSet) -> str:
    is_out = counters.direction is Direction.OUT
    interface, address = ("oif", _LINK_DESTINATION) if is_out else ("iif", _LINK_SOURCE)
    return (f"{interface} . {address}" if counters.has_mac else interface) + _FLOW[counters.address_size]


def _index_of(interface: str) -> int | None:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None


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
