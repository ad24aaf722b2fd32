"""What tables and rules make of source-specific routes, against a comparison of all routes (RFC 9079 section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.kernel.layout import (
    OVERLAY,
    SOURCE_TABLES,
    TABLE_MAIN,
    UNREACHABLE,
    Blocked,
    Cell,
    Layout,
    Prefix,
    Route,
    Rule,
)
from meshd.kernel.netlink import NetlinkError

Address = IPv4Address | IPv6Address
Pair = tuple[Prefix, Prefix | None]
OURS = 1000
DEFAULT = ip_network("::/0")
A, A_SUB, B = (ip_network(text) for text in ("2001:db8:a::/48", "2001:db8:a:1::/64", "2001:db8:b::/48"))
PREFIXES = [DEFAULT, *(ip_network(text) for text in ("2001:db8:c::/48", "2001:db8:c:1::/64", "fd00:c::/32"))]
SOURCES = [None, A, A_SUB, B]
ADDRESSES = [ip_address(text) for text in ("2001:db8:c::1", "2001:db8:c:1::1", "fd00:c::1", "2001:db8:d::1")]
SENDERS = [ip_address(text) for text in ("2001:db8:a:2::1", "2001:db8:a:1::1", "2001:db8:b::1", "2001:db8:e::1")]
OPERATORS = ip_network("2001:db8:c::/56")  # in the table main, and a default route


def route(prefix: Prefix, source_prefix: Prefix | None = None) -> Route:
    return Route(prefix, "eth0", IPv6Address("fe80::1"), source_prefix)


@dataclass
class Kernel:
    """Tables as a layout filled them, looked up by its rules."""

    layout: Layout = field(default_factory=lambda: Layout(OURS, 1))
    tables: dict[int, dict[Prefix, Route | Blocked | str]] = field(
        default_factory=lambda: {TABLE_MAIN: {DEFAULT: "main", OPERATORS: "main"}}
    )

    def obey(self, cells: list[Cell]) -> None:
        for cell in cells:
            table = self.tables.setdefault(cell.table, {})
            if cell.entry is None:
                table.pop(cell.prefix, None)
            else:
                table[cell.prefix] = cell.entry

    def look_up(self, source: Address, destination: Address) -> Pair | str | None:
        rules = {*self.layout.rules(), Rule(6, 32766, TABLE_MAIN)}  # the latter is always there
        for rule in sorted(rules, key=lambda rule: rule.priority):
            if rule.version != 6 or (rule.source_prefix is not None and source not in rule.source_prefix):
                continue
            if rule.destination is not None and destination not in rule.destination:
                continue
            fitting = [prefix for prefix in self.tables.get(rule.table, {}) if destination in prefix]
            best = max(fitting, key=lambda prefix: prefix.prefixlen, default=None)
            if best is not None and not (rule.suppress_default and best.prefixlen == 0):
                found = self.tables[rule.table][best]
                return found if isinstance(found, str) else (found.prefix, found.source_prefix)
        return None


def chosen(pairs: set[Pair], source: Address, destination: Address) -> Pair | None:
    """The destination first."""
    fitting = [p for p in pairs if destination in p[0] and (p[1] is None or source in p[1])]
    return max(fitting, key=lambda p: (p[0].prefixlen, -1 if p[1] is None else p[1].prefixlen), default=None)


def expected(pairs: set[Pair], own: set[Prefix], source: Address, destination: Address) -> Pair | str | None:
    if destination in OVERLAY:
        inner = {pair for pair in pairs if pair[0] != DEFAULT or pair[1] is None}  # uplinks do not lead to the overlay
        found = chosen(inner, source, destination)
        if found is not None:
            return found
    if destination in OPERATORS:
        return "main"
    found = chosen({pair for pair in pairs if pair[0] != DEFAULT}, source, destination)
    if found is not None:
        return found
    if own:  # the operator's default route is for these sources, and for those that nobody else serves
        ours: set[Pair] = {(DEFAULT, prefix) for prefix in own}
        theirs: set[Pair] = {pair for pair in pairs if pair[0] == DEFAULT and pair[1] is not None} - ours
        best = chosen(ours | theirs, source, destination)
        if best in theirs:
            return best
    return "main"


pairs = st.tuples(st.sampled_from(PREFIXES), st.sampled_from(SOURCES))
operations = st.lists(st.tuples(st.sampled_from(["put", "block", "drop", "own", "disown"]), pairs), max_size=25)


@given(operations)
def test_every_packet_finds_the_route_that_a_comparison_of_all_finds(steps: list[tuple[str, Pair]]) -> None:
    kernel = Kernel()
    wanted: set[Pair] = set()
    own: set[Prefix] = set()
    for what, (prefix, source) in steps:
        match what:
            case "put" | "block":
                if prefix == DEFAULT and source in own:
                    continue  # the speaker selects no route for what is its own
                entry = route(prefix, source) if what == "put" else Blocked(prefix, source)
                kernel.obey(kernel.layout.put(entry))
                wanted.add((prefix, source))
            case "drop":
                kernel.obey(kernel.layout.drop(prefix, source))
                wanted.discard((prefix, source))
            case "own" | "disown" if source is not None and (DEFAULT, source) not in wanted:
                kernel.obey(kernel.layout.keep_default(source, is_ours=what == "own"))
                (own.add if what == "own" else own.discard)(source)
        for sender in SENDERS:
            for address in ADDRESSES:
                assert kernel.look_up(sender, address) == expected(wanted, own, sender, address)
    for prefix, source in wanted:
        kernel.obey(kernel.layout.drop(prefix, source))
    for source in own:
        kernel.obey(kernel.layout.keep_default(source, is_ours=False))
    assert not any(table for number, table in kernel.tables.items() if number != TABLE_MAIN), "all is cleaned up"
    assert kernel.layout.rules() == Layout(OURS, 1).rules()


def test_a_plain_mesh_needs_one_table_and_no_copies() -> None:
    layout = Layout(OURS, 1)
    assert layout.put(route(A)) == [Cell(OURS, A, route(A))]
    assert {rule.table for rule in layout.rules()} == {OURS, TABLE_MAIN}


def test_source_tables_are_bounded_used_again_and_none_of_the_kernels_own() -> None:
    layout = Layout(200, 1)
    sources = [IPv6Network((0x2001 << 112 | n << 64, 64)) for n in range(SOURCE_TABLES + 1)]
    tables = {cell.table for source in sources[:-1] for cell in layout.put(route(DEFAULT, source))}
    assert len(tables) == SOURCE_TABLES
    assert not tables & {200, 253, 254, 255}
    with pytest.raises(NetlinkError, match="ENOSPC"):
        layout.put(route(DEFAULT, sources[-1]))
    (freed,) = {cell.table for cell in layout.drop(DEFAULT, sources[0])}
    assert {cell.table for cell in layout.put(route(DEFAULT, sources[-1]))} == {freed}
    # The other family has its own.
    assert layout.put(route(ip_network("0.0.0.0/0"), IPv4Network("10.0.0.0/8")))


def test_what_is_marked_takes_the_operators_routes_before_any_of_ours_and_ends_there() -> None:
    """Only where there is a mark: each rule costs every packet a little."""
    kernel = Kernel()
    kernel.obey(kernel.layout.put(route(PREFIXES[1], A)))
    before = kernel.layout.rules()
    assert not any(rule.mark for rule in before)
    kernel.layout.outside_mark = 7
    marked = sorted(kernel.layout.rules() - before, key=lambda rule: (rule.version, rule.priority))
    assert [(rule.version, rule.table, rule.mark) for rule in marked] == [
        (version, table, 7) for version in (4, 6) for table in (TABLE_MAIN, UNREACHABLE)
    ]
    assert not any(rule.suppress_default or rule.source_prefix or rule.destination for rule in marked)
    assert max(rule.priority for rule in marked) < min(rule.priority for rule in before)
    assert kernel.layout.rules() >= before
