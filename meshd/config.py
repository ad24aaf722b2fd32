"""The configuration file: TOML into frozen, typed objects.

Each key is declared once, with default, range and meaning, in the dataclasses below: the loader, its error messages,
`reference()` and `example_config()` are all made from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from routing.events import LinkKind

Prefix = IPv4Network | IPv6Network
NOT_FOR_SALE = 2**32 - 1  # msat per GB; the price that means: carried for nobody
_MAX_PRICE = NOT_FOR_SALE - 1
_MAX_SAT = 21_000_000 * 100_000_000


class ConfigError(Exception):
    """The configuration cannot be used. The message names the file, key, value and what was expected."""


class _InvalidError(Exception):
    """A value is not what its key takes; the message replaces the standard one when it is not empty."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key takes: `expected` says it to people, `parse` makes the value or raises _InvalidError."""

    expected: str
    parse: Callable[[Any], Any]


def _text(expected: str = "a string", pattern: str = r"[^\0\n]+") -> Kind:
    def parse(raw: Any) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw):
            raise _InvalidError
        return raw

    return Kind(expected, parse)


def _choice(*words: str, not_yet: dict[str, str] | None = None) -> Kind:
    def parse(raw: Any) -> str:
        if isinstance(raw, str) and not_yet and raw in not_yet:
            raise _InvalidError(not_yet[raw])
        if raw not in words:
            raise _InvalidError
        return str(raw)

    return Kind(" or ".join(f'"{word}"' for word in words), parse)


def _integer(low: int, high: int) -> Kind:
    def parse(raw: Any) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise _InvalidError
        return raw

    return Kind(f"an integer from {low} to {high}", parse)


def _seconds(low: float, high: float) -> Kind:
    def parse(raw: Any) -> float:
        if not isinstance(raw, int | float) or isinstance(raw, bool) or not low <= raw <= high:
            raise _InvalidError
        return float(raw)

    return Kind(f"seconds from {low:g} to {high:g}", parse)


def _boolean() -> Kind:
    def parse(raw: Any) -> bool:
        if not isinstance(raw, bool):
            raise _InvalidError
        return raw

    return Kind("true or false", parse)


def _absolute_path() -> Kind:
    def parse(raw: Any) -> Path:
        if not isinstance(raw, str) or "\0" in raw or not Path(raw).is_absolute():
            raise _InvalidError
        return Path(raw)

    return Kind("an absolute path", parse)


def _optional_path() -> Kind:
    path = _absolute_path()
    return Kind(f'{path.expected}, or "" for none', lambda raw: None if raw == "" else path.parse(raw))


def _fee() -> Kind:
    def parse(raw: Any) -> int:
        if raw == "not for sale":
            return NOT_FOR_SALE
        return int(_integer(0, _MAX_PRICE).parse(raw))

    return Kind(f'an integer from 0 to {_MAX_PRICE}, or "not for sale"', parse)


def _prefixes() -> Kind:
    def parse(raw: Any) -> tuple[Prefix, ...]:
        if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
            raise _InvalidError
        try:
            return tuple(ip_network(item) for item in raw)
        except ValueError as error:
            raise _InvalidError(f"a list of prefixes: {error}") from error

    return Kind('a list of prefixes, such as ["10.1.0.0/24", "fd00::/48"]', parse)


def _key(kind: Kind, doc: str, default: Any = dataclasses.MISSING, example: Any = None) -> Any:
    return field(default=default, metadata={"kind": kind, "doc": doc, "example": example})


def _interface_kind() -> Kind:
    words = _choice(*(kind.value for kind in LinkKind))
    return Kind(words.expected, lambda raw: LinkKind(words.parse(raw)))


_SECURITY = _choice("none", not_yet={"wireguard": '"none" for now: wireguard is not built yet (part 3)'})
_BACKEND = _choice(
    "kernel",
    not_yet={name: f'"kernel" for now: {name} is not built yet (part 4)' for name in ("bitcoind", "explorer")},
)
_LINUX_NAME = _text("an interface name of 1 to 15 characters", r"[^\s/:%]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """This node."""

    name: str = _key(
        _text("1 to 63 letters, digits, dots, hyphens or underscores", r"[A-Za-z0-9._-]{1,63}"),
        "What the node is called in logs and in meshctl; the network does not use it.",
        "meshd",
    )
    state_dir: Path = _key(  # noqa: RUF009
        _absolute_path(), "Where the identity key and the payments database live. Back it up.", Path("/var/lib/meshd")
    )
    control_socket: Path = _key(  # noqa: RUF009
        _absolute_path(), "The Unix socket that meshctl talks to.", Path("/run/meshd/meshd.sock")
    )
    log_level: str = _key(
        _choice("debug", "info", "warning", "error"), "The least severe messages that are shown.", "info"
    )
    log_format: str = _key(_choice("text", "json"), "Log lines for people, or one JSON object for each.", "text")
    record: Path | None = _key(  # noqa: RUF009
        _optional_path(),
        "Record all that goes into and out of the routing engine, for tools/replay (docs/replay.md).",
        None,
    )
    record_max_mb: int = _key(_integer(1, 1_000_000), "The recording ends at this size, in MB.", 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceConfig:
    """An interface that neighbours are reached over. One table for each."""

    name: str = _key(_LINUX_NAME, "The Linux interface.", example="wlan0")
    kind: LinkKind = _key(  # noqa: RUF009
        _interface_kind(),
        "How its quality is judged: wired is up or down, wireless follows the loss of Hellos, tunnel is as wired and "
        "follows the round-trip time (rtt).",
        LinkKind.WIRED,
    )
    cost: int = _key(_integer(1, 65534), "The cost of a perfect link over it; lower is preferred.", 96)
    rtt: str = _key(
        _choice("auto", "on", "off"),
        "Measure round-trip times over it (RFC 9616), and add to the cost what follows; auto: on tunnels.",
        "auto",
    )
    rtt_min: float = _key(_seconds(0, 10), "A round-trip time up to this costs nothing.", 0.01)
    rtt_max: float = _key(
        _seconds(0.001, 10), "A round-trip time from this on costs rtt_penalty; less in between.", 0.12
    )
    rtt_penalty: int = _key(_integer(0, 65534), "What the longest round-trip time adds to the cost.", 150)
    ipv4_next_hop: bool = _key(
        _boolean(),
        "Announce IPv4 prefixes through the interface's IPv4 address, where it has one; older Babel routers (BIRD 2) "
        "need that. Without, or with false, through its IPv6 address (RFC 9229).",
        True,
    )
    security: str = _key(_SECURITY, "How packets on the link are protected; none uses the interface as it is.", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """The routing protocol (Babel, RFC 8966)."""

    port: int = _key(_integer(1, 65535), "UDP port of Babel; 6696 unless all of the mesh agrees on another.", 6696)
    hello_interval: float = _key(
        _seconds(0.05, 600), "Time between Hellos: shorter finds faults sooner and costs more traffic.", 4.0
    )
    update_interval: float = _key(_seconds(0.2, 600), "Time between full announcements of all routes.", 16.0)
    announce: tuple[Prefix, ...] = _key(
        _prefixes(), "Prefixes reached through this node, besides its own overlay address.", ()
    )
    price_weight: int = _key(
        _integer(0, 65535),
        "What a price of 1 sat/MB adds to the metric; 256 equals a perfect wireless hop. All of the mesh must agree.",
        256,
    )
    table: int = _key(_integer(1, 2**32 - 1), "The kernel's routing table that is ours alone.", 6696)
    rule_priority: int = _key(_integer(1, 32765), "Priority of the rule that leads to that table.", 6696)
    max_price_msat_per_gb: int = _key(
        _integer(0, _MAX_PRICE), "Dearer routes are not taken (1 sat/MB is 1000000).", 100_000_000
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """What this node asks."""

    fee_msat_per_gb: int = _key(
        _fee(), "Asked for carrying one GB (10^9 bytes) to anybody else, on top of our own costs.", 100_000
    )
    price_notice: float = _key(_seconds(0, 3600), "How long the old price is still honoured after a rise.", 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentsConfig:
    """Money between neighbours."""

    enabled: bool = _key(_boolean(), "Meter, bill and pay. Without it the node routes and carries for nothing.", True)
    session_port: int = _key(_integer(1, 65535), "TCP port of the sessions with neighbours.", 6697)
    tick: float = _key(_seconds(0.1, 60), "The longest time between settlements of a debt.", 5.0)
    window_msat: int = _key(
        _integer(1, 10**12), "What a new neighbour may owe before we stop carrying its traffic.", 10_000
    )
    max_window_msat: int = _key(
        _integer(1, 10**12), "What a neighbour that always paid may owe: the most that can be lost to it.", 1_000_000
    )
    channel_capacity_sat: int = _key(
        _integer(1_000, _MAX_SAT), "What is locked in each payment channel that this node opens.", 100_000
    )
    channel_expiry_blocks: int = _key(
        _integer(10, 65535), "How long a channel lasts; its unspent rest comes back then at the latest.", 2016
    )
    expiry_margin_blocks: int = _key(
        _integer(2, 65535), "How long before its end a channel is no longer paid through, and claimed.", 144
    )
    min_confirmations: int = _key(
        _integer(1, 1000), "How deep a neighbour's channel must be in the chain before it counts as money.", 3
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainConfig:
    """The Bitcoin chain."""

    backend: str = _key(
        _BACKEND, "Where blocks come from; kernel is the embedded regtest chain of demo and tests.", "kernel"
    )
    socket: Path = _key(  # noqa: RUF009
        _absolute_path(), "The Unix socket of the chain service.", Path("/run/meshd/chain.sock")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    node: NodeConfig = NodeConfig()
    interfaces: tuple[InterfaceConfig, ...] = ()
    routing: RoutingConfig = RoutingConfig()
    price: PriceConfig = PriceConfig()
    payments: PaymentsConfig = PaymentsConfig()
    chain: ChainConfig = ChainConfig()


_TABLES: dict[str, type[Any]] = {
    "node": NodeConfig,
    "interface": InterfaceConfig,
    "routing": RoutingConfig,
    "price": PriceConfig,
    "payments": PaymentsConfig,
    "chain": ChainConfig,
}


def load(path: Path) -> Config:
    """Raises ConfigError, whose message begins with the file's name."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: str) -> Config:
    """The configuration in a TOML text. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(error)) from error
    for name in document:
        if name not in _TABLES:
            raise ConfigError(f"unknown table [{name}]{_nearest(name, _TABLES)}")
    tables = {name: _table(name, kind, document[name]) for name, kind in _TABLES.items() if name in document}
    interfaces = tables.pop("interface", ())
    config = Config(interfaces=interfaces, **tables)
    _check_together(config)
    return config


def _table(name: str, kind: type[Any], raw: Any) -> Any:
    if name != "interface":
        if not isinstance(raw, dict):
            raise ConfigError(f"[{name}] must be a table")
        return _read(f"[{name}]", kind, raw)
    if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
        raise ConfigError("interfaces are written as [[interface]], with two brackets, one for each")
    return tuple(_read(f"[[interface]] number {number}", kind, item) for number, item in enumerate(raw, start=1))


def _read(where: str, kind: type[Any], raw: dict[str, Any]) -> Any:
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for name in raw:
        if name not in fields:
            raise ConfigError(f"{where}: unknown key {name}{_nearest(name, fields)}")
    for name, item in fields.items():
        if item.default is dataclasses.MISSING and name not in raw:
            raise ConfigError(f"{where}: {name} is missing ({item.metadata['kind'].expected})")
    return kind(**{name: _value(where, fields[name], value) for name, value in raw.items()})


def _value(where: str, item: dataclasses.Field[Any], raw: Any) -> Any:
    kind: Kind = item.metadata["kind"]
    try:
        return kind.parse(raw)
    except _InvalidError as error:
        shown = raw if not isinstance(raw, str) else f'"{raw}"'
        raise ConfigError(f"{where}: {item.name} = {shown}: expected {str(error) or kind.expected}") from error


def _nearest(name: str, known: Any) -> str:
    """Names the nearest known word in the message; all of them when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(known)}"


def _check_together(config: Config) -> None:
    """Rules that bear on more than one key."""
    names = [interface.name for interface in config.interfaces]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'[[interface]]: name = "{name}" is there {names.count(name)} times')
    for interface in config.interfaces:
        if interface.rtt_min >= interface.rtt_max:
            raise ConfigError(
                f'[[interface]] "{interface.name}": rtt_min = {interface.rtt_min:g}: '
                f"expected less than rtt_max ({interface.rtt_max:g})"
            )
    payments = config.payments
    if payments.window_msat > payments.max_window_msat:
        raise ConfigError(
            f"[payments]: window_msat = {payments.window_msat}: "
            f"expected at most max_window_msat ({payments.max_window_msat})"
        )
    if payments.max_window_msat > payments.channel_capacity_sat * 1000:
        raise ConfigError(
            f"[payments]: max_window_msat = {payments.max_window_msat}: expected at most what a channel holds "
            f"(channel_capacity_sat = {payments.channel_capacity_sat})"
        )
    if 3 * payments.expiry_margin_blocks >= payments.channel_expiry_blocks:
        raise ConfigError(
            f"[payments]: expiry_margin_blocks = {payments.expiry_margin_blocks}: expected less than a third of "
            f"channel_expiry_blocks ({payments.channel_expiry_blocks})"
        )
    if config.routing.update_interval < config.routing.hello_interval:
        raise ConfigError(
            f"[routing]: update_interval = {config.routing.update_interval:g}: expected at least hello_interval "
            f"({config.routing.hello_interval:g})"
        )


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key, for the documentation. `default` is TOML; None: the key must be given."""

    table: str
    name: str
    expected: str
    default: str | None
    doc: str


def reference() -> Iterator[KeyReference]:
    """Every key that the file may hold, in the order of the example."""
    for table, kind in _TABLES.items():
        for item in dataclasses.fields(kind):
            default = None if item.default is dataclasses.MISSING else _toml(item.default)
            yield KeyReference(table, item.name, item.metadata["kind"].expected, default, item.metadata["doc"])


def example_config() -> str:
    """A configuration file with every key at its default, commented, and one interface."""
    lines = ["# meshd configuration. Keys that are commented out have the value shown."]
    for table, kind in _TABLES.items():
        header = f"[[{table}]]" if table == "interface" else f"[{table}]"
        lines += ["", f"# {kind.__doc__}", header]
        for item in dataclasses.fields(kind):
            lines.append(f"# {item.metadata['doc']} Takes {item.metadata['kind'].expected}.")
            required = item.default is dataclasses.MISSING
            value = item.metadata["example"] if required else item.default
            lines.append(f"{'' if required else '#'}{item.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '""'
    if isinstance(value, Enum):
        return json.dumps(value.value)
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    return repr(value)
