"""Which routing table holds which route, and which rules lead there, so that source-specific routes work (RFC 9079).

Of the routes that match a packet, that with the most specific destination wins, then that with the most specific source
(RFC 9079 section 4). Policy rules look at the source first. So each source prefix in use has a table of its own, with
the *winner* for every destination among the routes whose source prefix contains it, plain ones included; and the rules
try the most specific source prefix first. Whatever table a packet is sent to, it finds the same route as if all routes
were compared. The price is a copy of the routes for each source prefix; it works for both families and all kernels.

Order of look-up. The table `local` comes before all of it, so no neighbour can take over the operator's own addresses.

0. what tunnels to peers across the Internet send, known by a mark: the table main, and never ours, or a neighbour could
   draw a tunnel into itself. Only there where there are such tunnels, for each rule costs every packet a little.
1. IPv6 to fd00::/8: our tables. Overlay addresses always win.
2. the table main, default routes left out: networks that the operator configured.
3. our tables, default routes left out; by source prefix, then the plain one.
4. the table main: the operator's own default route.
5. our tables: a default route out of the mesh.

A node that announces a default route for a source prefix says that its own serves that source only. There, a default
route for another source comes before the operator's own, and the operator's comes before it for that source.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from meshd.kernel.netlink import NetlinkError

Prefix = IPv4Network | IPv6Network
OVERLAY = IPv6Network("fd00::/8")
TABLE_MAIN = 254
UNREACHABLE = 0  # in place of a table
SOURCE_TABLES = 64  # of each family; the speaker takes fewer source prefixes from its neighbours
_TAKEN_TABLES = (253, 254, 255)
# Offsets of our rules from the first. Where there is one for each length of a source prefix, the longest comes first.
_MARKED, _MARKED_END, _OVERLAY_FROM, _OVERLAY_PLAIN, _MAIN, _FROM = 0, 1, 2, 130, 131, 132
_PLAIN = _FROM + 3 * 128
RULE_PRIORITIES = _PLAIN + 1
_AFTER_MAIN = 32768  # main is at 32766, default at 32767


@dataclass(frozen=True, slots=True)
class Route:
    """For packets from `source_prefix`; None: from anywhere. `next_hop` is on the link. Where `prefix` is IPv4 it
    may be of either family.
    """

    prefix: Prefix
    interface: str
    next_hop: IPv4Address | IPv6Address
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """What is for `prefix` is refused."""

    prefix: Prefix
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """What a table has to have for a prefix; None: nothing."""

    table: int
    prefix: Prefix
    entry: Route | Blocked | None


@dataclass(frozen=True, slots=True)
class Rule:
    """Look into `table` for what comes from and goes to there. `mark`: for packets that carry it only; 0: for all."""

    version: int
    priority: int
    table: int
    source_prefix: Prefix | None = None
    destination: Prefix | None = None
    suppress_default: bool = False
    mark: int = 0


class Layout:
    """What is wanted, and where it goes. Knows nothing of the kernel but its numbers."""

    def __init__(self, table: int, rule_priority: int) -> None:
        self.table = table
        self._rule_priority = rule_priority
        numbers = range(table + 1, table + 1 + SOURCE_TABLES + len(_TAKEN_TABLES))
        self.source_tables = [number for number in numbers if number not in _TAKEN_TABLES][:SOURCE_TABLES]
        self._wanted: dict[Prefix, dict[Prefix | None, Route | Blocked]] = {}
        self._uses: Counter[Prefix] = Counter()  # of each source prefix
        self._own_defaults: set[Prefix] = set()  # source prefixes that the operator's default route serves
        self._table_by_source: dict[Prefix, int] = {}
        self.outside_mark = 0  # of packets that never take our routes; 0: there are none

    def put(self, entry: Route | Blocked) -> list[Cell]:
        """In place of what there was for this pair. Raises NetlinkError: ENOSPC, too many source prefixes."""
        prefix, source_prefix = entry.prefix, entry.source_prefix
        cells = []
        if source_prefix is not None:
            cells = self._open(source_prefix)
            if source_prefix not in self._wanted.get(prefix, ()):
                self._uses[source_prefix] += 1
        self._wanted.setdefault(prefix, {})[source_prefix] = entry
        return cells + self._cells(prefix, source_prefix)

    def drop(self, prefix: Prefix, source_prefix: Prefix | None) -> list[Cell]:
        by_source = self._wanted.get(prefix, {})
        if by_source.pop(source_prefix, None) is None:
            return [] if source_prefix is not None else [Cell(self.table, prefix, None)]
        if not by_source:
            del self._wanted[prefix]
        cells = self._cells(prefix, source_prefix)
        if source_prefix is None:
            return cells
        self._uses[source_prefix] -= 1
        return cells + self._close(source_prefix)

    def keep_default(self, source_prefix: Prefix, *, is_ours: bool) -> list[Cell]:
        """The operator's own default route serves this source prefix, or does not any more."""
        default = type(source_prefix)((0, 0))
        if is_ours:
            opened = self._open(source_prefix)
            self._own_defaults.add(source_prefix)
            return opened + self._cells(default, source_prefix)
        if source_prefix not in self._own_defaults:
            return []
        self._own_defaults.remove(source_prefix)
        return self._cells(default, source_prefix) + self._close(source_prefix)

    def clear(self) -> None:
        self._wanted.clear()
        self._uses.clear()
        self._own_defaults.clear()
        self._table_by_source.clear()

    def rules(self) -> frozenset[Rule]:
        return frozenset(self._rules())

    def _rules(self) -> Iterator[Rule]:
        first = self._rule_priority
        if self.outside_mark:
            for version in (4, 6):
                yield Rule(version, first + _MARKED, TABLE_MAIN, mark=self.outside_mark)
                yield Rule(version, first + _MARKED_END, UNREACHABLE, mark=self.outside_mark)
        yield Rule(6, first + _OVERLAY_PLAIN, self.table, destination=OVERLAY)
        for version in (4, 6):
            yield Rule(version, first + _MAIN, TABLE_MAIN, suppress_default=True)
            yield Rule(version, first + _PLAIN, self.table, suppress_default=True)
            yield Rule(version, _AFTER_MAIN + 128, self.table)
        for source, table in self._table_by_source.items():
            version, rank = source.version, source.max_prefixlen - source.prefixlen
            at = first + _FROM + 3 * rank
            if version == OVERLAY.version:
                yield Rule(version, first + _OVERLAY_FROM + rank, table, source, OVERLAY, suppress_default=True)
            yield Rule(version, at, table, source, suppress_default=True)
            if any(own.version == version for own in self._own_defaults):
                yield Rule(version, at + 1, table, source)
            if source in self._own_defaults:
                yield Rule(version, at + 2, TABLE_MAIN, source)
            yield Rule(version, _AFTER_MAIN + rank, table, source)

    def _open(self, source_prefix: Prefix) -> list[Cell]:
        """A table for this source prefix, filled with what holds already."""
        if source_prefix in self._table_by_source:
            return []
        taken = {number for known, number in self._table_by_source.items() if known.version == source_prefix.version}
        number = next((number for number in self.source_tables if number not in taken), None)
        if number is None:
            raise NetlinkError(errno.ENOSPC, f"a table for {source_prefix}")
        self._table_by_source[source_prefix] = number
        prefixes = [prefix for prefix in self._wanted if prefix.version == source_prefix.version]
        filled = [Cell(number, prefix, self._winner(prefix, source_prefix)) for prefix in prefixes]
        return [cell for cell in filled if cell.entry is not None]

    def _close(self, source_prefix: Prefix) -> list[Cell]:
        """Empty its table when nothing needs it. Rules that still lead there meanwhile find the same further on."""
        if self._uses[source_prefix] or source_prefix in self._own_defaults:
            return []
        del self._uses[source_prefix]
        number = self._table_by_source.pop(source_prefix)
        return [Cell(number, prefix, None) for prefix in self._wanted if prefix.version == source_prefix.version]

    def _cells(self, prefix: Prefix, source_prefix: Prefix | None) -> list[Cell]:
        """All that depend on this pair."""
        cells = []
        if source_prefix is None:
            cells.append(Cell(self.table, prefix, self._wanted.get(prefix, {}).get(None)))
        for source, table in self._table_by_source.items():
            if source.version == prefix.version and (source_prefix is None or _contains(source_prefix, source)):
                cells.append(Cell(table, prefix, self._winner(prefix, source)))
        return cells

    def _winner(self, prefix: Prefix, source: Prefix) -> Route | Blocked | None:
        """A plain default route is left to the plain table: the operator's own comes before it."""
        is_default = prefix.prefixlen == 0
        by_source = self._wanted.get(prefix, {})
        fitting = [known for known in by_source if known is not None and _contains(known, source)]
        best = max(fitting, key=lambda known: known.prefixlen, default=None)
        if is_default:
            own = (known.prefixlen for known in self._own_defaults if _contains(known, source))
            if best is None or best.prefixlen <= max(own, default=-1):
                return None
        return by_source.get(best)


def _contains(outer: Prefix, inner: Prefix) -> bool:
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    host_bits = outer.max_prefixlen - outer.prefixlen
    return int(outer.network_address) >> host_bits == int(inner.network_address) >> host_bits
