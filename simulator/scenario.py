"""Scenarios: what is simulated, as a TOML file. docs/scenarios.md is the reference, made from the declarations here.

Units are in the descriptions: seconds, bit/s, bytes, msat per GB. `digest` names a scenario by its content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.schema import (
    ScenarioError,
    boolean,
    choice,
    integer,
    key,
    links,
    nearest,
    nodes,
    number,
    read_table,
    span,
    text,
)

__all__ = ["Scenario", "ScenarioError", "load", "parse", "select"]

INTERNET = -1  # as a destination: the default route, to whichever gateway is nearest
MAX_PRICE = 2**32 - 2
FOREVER = 1e9  # seconds
Selector = tuple[int | str, ...]  # spelt out in the tables below, where ruff would see a call
_SECONDS = number(0, FOREVER, "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The run as a whole."""

    name: str = key(text("a name of 1 to 100 characters", r"[^\0\n]{1,100}"), "What the results are called.", "unnamed")
    description: str = key(text("a text", r"[^\0]*"), "What it is for.", "")
    seed: int = key(integer(0, 2**63 - 1), "Of everything that is drawn at random; `--seed` replaces it.", 0)
    duration: float = key(number(0.001, FOREVER, "seconds"), "Virtual time at most.", 300.0)
    quiet: float = key(
        _SECONDS, "End this long after the last route change, once all routes are best ones; 0: go on to the end.", 0.0
    )
    sample_interval: float = key(number(0.01, 86400, "seconds"), "Between two rows of the time series.", 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyConfig:
    """The graph."""

    graph: str = key(
        text("a name such as grid:10x10 or map:freifunk-leipzig"), "Which; `meshsim run --help` lists them.", "grid:5x5"
    )
    file: str = key(text("a file name"), "Read the graph from this file instead, relative to the scenario.", "")
    cost: tuple[int, int] = key(span(integer(1, 65534)), "Cost of a perfect link, where the file says none.", (96, 96))
    component: str = key(
        choice("largest", "all"), "Of an unconnected file: the largest component only, or all of it.", "largest"
    )
    medium: str = key(
        choice("links", "shared"),
        "A node has an interface for each link; or one, such as a radio, on which all its neighbours are.",
        "links",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """Properties of links. One table for each set; later ones replace what they name, and leave the rest."""

    between: tuple[tuple[int, int], ...] = key(links(), "Which links.", ())
    kind: str | None = key(choice("wired", "wireless"), "How loss is judged: up or down, or ETX.", None)
    cost: tuple[int, int] | None = key(span(integer(1, 65534)), "Cost of the link when it is perfect.", None)
    latency: tuple[float, float] | None = key(
        span(number(0, 60, "seconds")), "One way, besides queue and transmission.", None
    )
    loss: tuple[float, float] | None = key(span(number(0, 1, "a share")), "Of packets that get lost, each way.", None)
    bandwidth: tuple[float, float] | None = key(
        span(number(1, 1e15, "bit/s")), "Each way; traffic beyond it is dropped.", None
    )
    queue: tuple[int, int] | None = key(
        span(integer(0, 2**31)), "Bytes of control traffic that wait for the link, each way.", None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """The protocol's timers and weights, as in meshd."""

    hello_interval: float = key(number(0.05, 600, "seconds"), "Between Hellos.", 4.0)
    update_interval: float = key(number(0.2, 600, "seconds"), "Between full announcements.", 16.0)
    price_weight: float = key(number(0, 65535), "Metric of 1 sat/MB.", 256.0)
    sticky_fraction: float = key(number(0, 1), "Part of the price that a switch must gain at least; 0: none.", 0.1)
    sticky_timeout: float = key(_SECONDS, "How long a smaller gain must last.", 16.0)
    eager: bool = key(boolean(), "Meet neighbours at once; if not, by the Hello interval alone, as babeld does.", True)
    urgent_timeout: float = key(_SECONDS, "News waits so long at most, to be sent together.", 0.02)
    split_horizon: bool = key(boolean(), "On wired links, news of a route is not sent back where it came from.", True)
    start_spread: float = key(_SECONDS, "Nodes are switched on at random within this time.", 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleConfig:
    """What nodes are for. Without one, a node is a relay."""

    nodes: tuple[int | str, ...] = key(nodes(), "Which nodes.")
    role: str = key(
        choice("relay", "gateway", "access_point", "buyer", "leaf"),
        "A gateway announces the Internet; buyers and leaves carry for nobody; relays and access points do.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandConfig:
    """Traffic. Each source sends to each destination, or to the Internet, along the routes of that moment."""

    source: tuple[int | str, ...] = key(nodes(), "Who sends.")
    destination: tuple[int | str, ...] | None = key(
        nodes(), "To whom; left out: to the Internet (the nearest gateway).", None
    )
    rate: float = key(number(0, 1e15, "bit/s"), "Of each pair, when it is on.")
    pattern: str = key(
        choice("constant", "on_off", "diurnal", "flash_crowd"),
        "constant; on_off: on for `duty` of each `period`; diurnal: a sine between a tenth and all of the rate; "
        "flash_crowd: `peak` times the rate for `duty` of the period, once.",
        "constant",
    )
    period: float = key(number(0.001, FOREVER, "seconds"), "Of the pattern.", 86400.0)
    duty: float = key(number(0, 1, "a share"), "Of the period.", 0.5)
    peak: float = key(number(1, 1e6, "a factor"), "Of a flash crowd.", 8.0)
    start: float = key(_SECONDS, "From when.", 0.0)
    stop: float = key(_SECONDS, "Until when.", FOREVER)
    noise: float = key(number(0, 1, "a share"), "The rate varies at random by up to this, each second.", 0.0)
    elasticity: float = key(
        number(0, 64), "The rate falls as the price to this power, from its full size at `reference_price`.", 0.0
    )
    reference_price: int = key(integer(1, MAX_PRICE), "msat per GB.", 1_000_000)
    max_price: int = key(integer(0, MAX_PRICE), "msat per GB; nothing is sent at a higher price.", MAX_PRICE)
    budget_per_hour: int = key(integer(0, 10**15), "msat of each source; 0: no limit.", 0)
    budget_per_day: int = key(integer(0, 10**15), "msat of each source; 0: no limit.", 0)
    budget_per_month: int = key(integer(0, 10**15), "msat of each source in 30 days; 0: no limit.", 0)

    def budget_limits(self) -> dict[str, int]:
        """By period, as in `payments.budget`."""
        return {"hour": self.budget_per_hour, "day": self.budget_per_day, "month": self.budget_per_month}


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """What nodes ask. One table for each set; later ones replace earlier ones."""

    nodes: tuple[int | str, ...] = key(nodes(), "Which nodes.", ("all",))
    policy: str = key(choice("fixed", "auto"), "A fixed fee, or one that follows the load (docs/pricing.md).", "fixed")
    fee: tuple[int, int] = key(span(integer(0, 2**32 - 1)), "msat per GB; the first one where it follows.", (0, 0))
    floor: int = key(integer(0, MAX_PRICE), "auto: the least fee, msat per GB.", 1_000)
    ceiling: int = key(integer(1, MAX_PRICE), "auto: the highest fee, msat per GB.", 100_000_000)
    capacity: float = key(
        number(0, 1e15, "bit/s"), "auto: what the node can carry; 0: the least bandwidth of its links.", 0.0
    )
    interval: float = key(number(0.1, 3600, "seconds"), "auto: between two steps.", 10.0)
    notice: float = key(number(0, 3600, "seconds"), "How long the old price is honoured after a rise.", 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentsConfig:
    """Money between neighbours."""

    enabled: bool = key(boolean(), "Bill and pay.", False)
    tick: float = key(number(0.1, 60, "seconds"), "Longest time between settlements.", 5.0)
    window: int = key(integer(1, 10**12), "msat that a new neighbour may owe.", 10_000)
    max_window: int = key(integer(1, 10**12), "msat that a neighbour which always paid may owe.", 1_000_000)
    block_interval: float = key(number(0.1, 86400, "seconds"), "Between two blocks of the chain.", 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnConfig:
    """Nodes that come and go: exponentially distributed times, or a trace."""

    nodes: tuple[int | str, ...] = key(nodes(), "Which nodes.", ("all",))
    mean_up: float = key(number(0.1, FOREVER, "seconds"), "Mean time until a node fails.", 3600.0)
    mean_down: float = key(number(0.1, FOREVER, "seconds"), "Mean time until it is back.", 60.0)
    start: float = key(_SECONDS, "From when.", 0.0)
    stop: float = key(_SECONDS, "Until when.", FOREVER)
    trace: str = key(
        text("a file name"), "Read rows `seconds,node_down|node_up|link_down|link_up,NODE[,NODE]` instead.", ""
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MobilityConfig:
    """Nodes that walk through the unit square (random waypoint) and link to whoever is within reach."""

    nodes: tuple[int | str, ...] = key(nodes(), "Which nodes.", ("all",))
    radius: float = key(number(1e-6, 2, "a length"), "Reach, as a part of the square's side.", 0.2)
    speed: tuple[float, float] = key(span(number(0, 1)), "Sides of the square per second.", (0.001, 0.005))
    pause: float = key(_SECONDS, "Rest at each waypoint.", 10.0)
    interval: float = key(number(0.1, 3600, "seconds"), "Between two looks at who is within reach.", 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig:
    """Something that breaks, or is mended, at a given time."""

    at: float = key(_SECONDS, "When.")
    kind: str = key(
        choice("link_down", "link_up", "node_down", "node_up", "cost", "loss"),
        "What. A link that is down swallows packets; with carrier_lost both ends notice at once.",
    )
    nodes: tuple[int | str, ...] = key(nodes(), "Which nodes.", ())
    links: tuple[tuple[int, int], ...] = key(links(), "Which links.", ())
    value: float = key(number(0, 65535), "The new cost or loss.", 0.0)
    carrier_lost: bool = key(
        boolean(), "The ends of a link, or the neighbours of a node, see it by the carrier.", False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversaryConfig:
    """Nodes that cheat. The run is done a second time without any, and both are compared."""

    kind: str = key(
        choice(
            "bait_and_switch",
            "metric_liar",
            "black_hole",
            "free_rider",
            "under_reporter",
            "false_retraction",
            "flooder",
            "sybil_chain",
            "colluders",
        ),
        "How; see docs/scenarios.md.",
    )
    nodes: tuple[int | str, ...] = key(nodes(), "Who.")
    start: float = key(_SECONDS, "From when.", 0.0)
    stop: float = key(_SECONDS, "Until when.", FOREVER)
    factor: float = key(
        number(0, 1e6),
        "bait_and_switch, colluders: by how much the fee rises; under_reporter: it admits one part in so many; "
        "flooder: messages a second to each neighbour; sybil_chain: false identities.",
        4.0,
    )
    period: float = key(number(0.1, FOREVER, "seconds"), "bait_and_switch, false_retraction: of one round.", 60.0)


TABLES: dict[str, type[Any]] = {
    "scenario": RunConfig,
    "topology": TopologyConfig,
    "link": LinkConfig,
    "routing": RoutingConfig,
    "role": RoleConfig,
    "demand": DemandConfig,
    "price": PriceConfig,
    "payments": PaymentsConfig,
    "churn": ChurnConfig,
    "mobility": MobilityConfig,
    "fault": FaultConfig,
    "adversary": AdversaryConfig,
}
# Those that may be there more than once, and the field of Scenario that holds them.
ARRAYS = {
    "link": "links",
    "role": "roles",
    "demand": "demands",
    "price": "prices",
    "churn": "churns",
    "mobility": "mobilities",
    "fault": "faults",
    "adversary": "adversaries",
}
_FIELDS = {"scenario": "run"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`base`: the folder that file names in it are relative to; no part of its content."""

    run: RunConfig = RunConfig()
    topology: TopologyConfig = TopologyConfig()
    links: tuple[LinkConfig, ...] = ()
    routing: RoutingConfig = RoutingConfig()
    roles: tuple[RoleConfig, ...] = ()
    demands: tuple[DemandConfig, ...] = ()
    prices: tuple[PriceConfig, ...] = ()
    payments: PaymentsConfig = PaymentsConfig()
    churns: tuple[ChurnConfig, ...] = ()
    mobilities: tuple[MobilityConfig, ...] = ()
    faults: tuple[FaultConfig, ...] = ()
    adversaries: tuple[AdversaryConfig, ...] = ()
    base: Path = dataclasses.field(default=Path(), compare=False)

    def files(self) -> list[Path]:
        """What it reads besides itself."""
        names = [self.topology.file, *(churn.trace for churn in self.churns)]
        return [self.base / name for name in names if name]

    def digest(self) -> str:
        """16 hexadecimal digits over all that it says, defaults included, and the content of its files.

        Raises ScenarioError if one cannot be read."""
        content = dataclasses.asdict(self)
        del content["base"]
        state = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8)
        for path in self.files():
            state.update(read_file(path))
        return state.hexdigest()


def read_file(path: Path) -> bytes:
    """Raises ScenarioError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from error


def load(path: Path) -> Scenario:
    """Raises ScenarioError, whose message begins with the file's name."""
    try:
        return parse(read_file(path).decode(), base=path.parent)
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 text") from error
    except ScenarioError as error:
        raise ScenarioError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def parse(text: str, *, base: Path = Path()) -> Scenario:
    """The scenario in a TOML text. Raises ScenarioError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(str(error)) from error
    return build(document, base=base)


def build(document: Mapping[str, Any], *, base: Path = Path()) -> Scenario:
    """The scenario in the tables that a TOML text has been read into. Raises ScenarioError."""
    for name in document:
        if name not in TABLES:
            raise ScenarioError(f"unknown table [{name}]{nearest(name, TABLES)}")
    tables = {ARRAYS.get(name, _FIELDS.get(name, name)): _table(name, raw) for name, raw in document.items()}
    scenario = Scenario(**tables, base=base)
    _check_together(scenario)
    return scenario


def _table(name: str, raw: Any) -> Any:
    kind = TABLES[name]
    if name not in ARRAYS:
        return read_table(f"[{name}]", kind, raw)
    if not isinstance(raw, list):
        raise ScenarioError(f"{ARRAYS[name]} are written as [[{name}]], with two brackets, one for each")
    return tuple(read_table(f"[[{name}]] number {number}", kind, item) for number, item in enumerate(raw, start=1))


def _check_together(scenario: Scenario) -> None:
    """Rules that bear on more than one key."""
    for number_, price in enumerate(scenario.prices, start=1):
        if price.floor > price.ceiling:
            where = f"[[price]] number {number_}"
            raise ScenarioError(f"{where}: floor = {price.floor}: expected at most ceiling ({price.ceiling})")
    for number_, fault in enumerate(scenario.faults, start=1):
        is_of_nodes = fault.kind.startswith("node")
        if is_of_nodes and not fault.nodes:
            raise ScenarioError(f"[[fault]] number {number_}: nodes is missing (for {fault.kind})")
        if fault.kind == "loss" and fault.value > 1:
            raise ScenarioError(f"[[fault]] number {number_}: value = {fault.value:g}: expected a share from 0 to 1")
    if scenario.payments.window > scenario.payments.max_window:
        raise ScenarioError(
            f"[payments]: window = {scenario.payments.window}: expected at most max_window "
            f"({scenario.payments.max_window})"
        )
    has_gateway = any(role.role == "gateway" for role in scenario.roles)
    if not has_gateway and any(demand.destination is None for demand in scenario.demands):
        raise ScenarioError('[[demand]] without destination needs a [[role]] with role = "gateway"')


def select(
    selector: Selector,
    *,
    count: int,
    roles: Mapping[int, str],
    names: Sequence[str] = (),
    rng: random.Random,
) -> list[int]:
    """The nodes that it means, in ascending order. `count`: of all nodes. Raises ScenarioError."""
    chosen: set[int] = set()
    for item in selector:
        if isinstance(item, int):
            if item >= count:
                raise ScenarioError(f"there is no node {item}; they are 0 to {count - 1}")
            chosen.add(item)
        elif item == "all":
            chosen.update(range(count))
        elif item.startswith("random:"):
            wanted = int(item.partition(":")[2])
            if wanted > count:
                raise ScenarioError(f'"{item}": there are only {count} nodes')
            chosen.update(rng.sample(range(count), wanted))
        elif item.startswith("name:"):
            name = item.partition(":")[2]
            if name not in names:
                raise ScenarioError(f'"{item}": no node is called so{nearest(name, names[:1000])}')
            chosen.add(list(names).index(name))
        else:
            chosen.update(node for node in range(count) if roles.get(node, "relay") == item)
    return sorted(chosen)


def roles_of(
    configs: Iterable[RoleConfig], *, count: int, names: Sequence[str] = (), rng: random.Random
) -> dict[int, str]:
    """By node; the later table decides. Raises ScenarioError."""
    roles = dict.fromkeys(range(count), "relay")
    for config in configs:
        for node in select(config.nodes, count=count, roles=roles, names=names, rng=rng):
            roles[node] = config.role
    return roles


def reference() -> Iterator[str]:
    """docs/scenarios.md's part for each table, as Markdown lines."""
    for name, kind in TABLES.items():
        yield from ("", f"### {f'[[{name}]]' if name in ARRAYS else f'[{name}]'}", "")
        yield " ".join((kind.__doc__ or "").split())
        yield from ("", "| key | takes | default | meaning |", "|---|---|---|---|")
        for item in dataclasses.fields(kind):
            default = "required" if item.default is dataclasses.MISSING else _toml(item.default)
            expected, doc = item.metadata["kind"].expected, item.metadata["doc"]
            yield f"| `{item.name}` | {expected} | {default} | {doc} |".replace("node_down|", "node_down\\|")


def _toml(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        if not value:
            return ""
        return _toml(value[0]) if len(set(value)) == 1 else f"`{json.dumps(list(value))}`"
    if value == FOREVER:
        return "the end"
    return f"`{json.dumps(value)}`"
