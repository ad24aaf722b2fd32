"""The configuration file: TOML into frozen, typed objects.

Each key is declared once, with default, range and meaning, in the dataclasses below: the loader, its error messages,
and the reference (`meshd.config_reference`) are all made from them.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Any

from meshd.config_chain import BackendConfig, ChainConfig
from meshd.config_checks import check
from meshd.config_kinds import (
    NOT_FOR_SALE,
    ConfigError,
    InvalidError,
    Kind,
    Prefix,
    absolute_path,
    boolean,
    choice,
    endpoint,
    identity,
    integer,
    key,
    link_local,
    mac_keys,
    megabits,
    nearest,
    one_of,
    optional_path,
    pairs,
    prefix,
    prefixes,
    protocol,
    router_id,
    seconds,
    share,
    text,
    unpriced,
)
from meshd.config_payments import NeighbourConfig, PaymentsConfig
from meshd.config_price import BudgetConfig, PriceConfig
from routing.authentication import MacKey
from routing.config import Mode
from routing.events import LinkKind

__all__ = [
    "ARRAYS",
    "TABLES",
    "BackendConfig",
    "BudgetConfig",
    "ChainConfig",
    "Config",
    "ConfigError",
    "DiscoveryConfig",
    "FilterConfig",
    "InterfaceConfig",
    "NeighbourConfig",
    "NodeConfig",
    "PaymentsConfig",
    "PeerConfig",
    "PrefixMatch",
    "PriceConfig",
    "RedistributeConfig",
    "RoutingConfig",
    "load",
    "parse",
]

_MAX_PRICE = NOT_FOR_SALE - 1


_SECURITY = choice("wireguard", "none")
_LINUX_NAME = text("an interface name of 1 to 15 characters", r"[^\s/:%]{1,15}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """This node."""

    name: str = key(
        text("1 to 63 letters, digits, dots, hyphens or underscores", r"[A-Za-z0-9._-]{1,63}"),
        "What the node is called in logs and in meshctl; the network does not use it.",
        "meshd",
    )
    state_dir: Path = key(  # noqa: RUF009
        absolute_path(), "Where the identity key and the payments database live. Back it up.", Path("/var/lib/meshd")
    )
    control_socket: Path = key(  # noqa: RUF009
        absolute_path(), "The Unix socket that meshctl talks to.", Path("/run/meshd/meshd.sock")
    )
    control_group: str = key(
        text("the name of a group, or empty for none", r"[a-z_][a-z0-9_-]{0,31}|"),
        "Its members may do through the control socket what root may: look, steer, and move money.",
        "meshd",
    )
    control_others: str = key(
        choice("read", "nothing"), "What all other users of this machine may do through the control socket.", "nothing"
    )
    tell_paths: bool = key(
        boolean(), "Tell whoever asks by `meshctl path` which way packets go from here (UDP port 6699, overlay).", True
    )
    log_level: str = key(
        choice("debug", "info", "warning", "error"), "The least severe messages that are shown.", "info"
    )
    log_format: str = key(choice("text", "json"), "Log lines for people, or one JSON object for each.", "text")
    record: Path | None = key(  # noqa: RUF009
        optional_path(),
        "Record all that goes into and out of the routing engine, for tools/replay (docs/replay.md).",
        None,
    )
    record_max_mb: int = key(integer(1, 1_000_000), "The recording ends at this size, in MB.", 256)
    fast_lane: str = key(
        choice("auto", "off"),
        "Carry established flows that are paid for by BPF, before nftables. auto: where the kernel can, and nobody "
        "else has rules for what is carried (docs/adr/0016-a-fast-lane.md). Read at the start.",
        "auto",
    )
    metrics_port: int = key(
        integer(0, 65535), "TCP port on 127.0.0.1 at which Prometheus finds /metrics; 0: there is none.", 0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceConfig:
    """An interface that neighbours are reached over. One table for each."""

    name: str = key(_LINUX_NAME, "The Linux interface.", example="wlan0")
    kind: LinkKind = key(  # noqa: RUF009
        one_of(LinkKind),
        "How its quality is judged: wired is up or down, wireless follows the loss of Hellos, tunnel is as wired and "
        "follows the round-trip time (rtt).",
        LinkKind.WIRED,
    )
    cost: int = key(integer(1, 65534), "The cost of a perfect link over it; lower is preferred.", 96)
    rtt: str = key(
        choice("auto", "on", "off"),
        "Measure round-trip times over it (RFC 9616), and add to the cost what follows; auto: on tunnels.",
        "auto",
    )
    rtt_min: float = key(seconds(0, 10), "A round-trip time up to this costs nothing.", 0.01)
    rtt_max: float = key(seconds(0.001, 10), "A round-trip time from this on costs rtt_penalty; less in between.", 0.12)
    rtt_penalty: int = key(integer(0, 65534), "What the longest round-trip time adds to the cost.", 150)
    quality: str = key(
        choice("auto", "hello"),
        "Who tells how good a link over it is: auto, where it is a radio its driver, and where it is batman-adv's "
        "(bat0) that, too, and the worse counts; hello: nobody but the loss of Hellos (docs/radio.md).",
        "auto",
    )
    full_throughput: float = key(
        megabits(0.001, 1_000_000),
        "The throughput from which a radio link is as good as its cost says; half of it costs twice that.",
        40.0,
    )
    ipv4_next_hop: bool = key(
        boolean(),
        "Announce IPv4 prefixes through the interface's IPv4 address, where it has one; older Babel routers (BIRD 2) "
        "need that. Without, or with false, through its IPv6 address (RFC 9229).",
        True,
    )
    mac_keys: tuple[MacKey, ...] = key(
        mac_keys(),
        "Babel packets on it are authenticated with these keys (RFC 8967): ours carry a MAC of each, others' must "
        "carry one of any. To change keys, give all nodes the new one beside the old, then take the old one away; "
        "`meshctl reload` reads them anew. With file instead of key, the digits are in a file of their own.",
        (),
    )
    mac_verify: bool = key(
        boolean(),
        "With mac_keys: drop packets that are not authenticated. false, while not all neighbours have the keys yet: "
        "take and count them.",
        True,
    )
    security: str = key(
        _SECURITY,
        "How packets on the link are protected; wireguard has an authenticated tunnel with each neighbour that beacons "
        "find there, none uses the interface as it is: for trusted wires, and for neighbours that run plain Babel.",
        "wireguard",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """How neighbours are found on interfaces with security = "wireguard"."""

    port: int = key(integer(1, 65535), "UDP port of the beacons; all of the mesh must agree.", 6698)
    beacon_interval: float = key(
        seconds(0.5, 60),
        "Between beacons, less where there is nobody. Who is not heard of for 3.5 of them is gone.",
        5.0,
    )
    max_neighbours: int = key(integer(1, 64), "Tunnels on one interface at most; working ones keep their place.", 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """A neighbour across the Internet, where no beacon goes: a tunnel with it by address. One table for each."""

    name: str = key(
        _LINUX_NAME,
        "What it is called here; filters and costs ask for it as for an interface.",
        example="gateway",
    )
    identity: bytes = key(
        identity(),
        "Its public key: `meshctl status` shows it there.",
        example="d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    )
    endpoint: tuple[str, int] | None = key(
        endpoint(),
        "Where it waits for us. Its name is looked up again when nothing comes from it. Left out: it looks for us.",
        None,
        "gateway.example.org:51820",
    )
    listen_port: int = key(
        integer(0, 65535),
        "UDP port on which we wait for it; each peer has one of its own. 0, any: where we look for it.",
        0,
    )
    keepalive: int = key(
        integer(0, 3600),
        "Seconds between packets that keep a NAT between us open for the peer's; 0: none are sent.",
        25,
    )
    cost: int = key(
        integer(1, 65534), "The cost of the tunnel, to which the round-trip time is added; lower is preferred.", 96
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingConfig:
    """The routing protocol (Babel, RFC 8966)."""

    port: int = key(integer(1, 65535), "UDP port of Babel; 6696 unless all of the mesh agrees on another.", 6696)
    hello_interval: float = key(
        seconds(0.05, 600), "Time between Hellos: shorter finds faults sooner and costs more traffic.", 4.0
    )
    update_interval: float = key(seconds(0.2, 600), "Time between full announcements of all routes.", 16.0)
    announce: tuple[Prefix, ...] = key(
        prefixes(), "Prefixes reached through this node, besides its own overlay address.", ()
    )
    announce_from: tuple[tuple[Prefix, Prefix], ...] = key(
        pairs(),
        "Prefixes reached through this node by packets from a source prefix only (RFC 9079), as for an uplink that "
        "takes no others. With a default route, this node sends what comes from other sources to whoever announces one "
        "for them, in spite of its own default route.",
        (),
    )
    price_weight: int = key(
        integer(0, 65535),
        "What a price of 1 sat/MB adds to the metric; 256 equals a perfect wireless hop. All of the mesh must agree.",
        256,
    )
    table: int = key(
        integer(1, 2**32 - 128),
        "The kernel's routing table that is ours alone. The 64 after it serve source prefixes, where there are any.",
        6696,
    )
    rule_priority: int = key(
        integer(1, 32000), "Priority of the first of our rules; they take 517 from there, and 129 from 32768.", 6696
    )
    max_price_msat_per_gb: int = key(
        integer(0, _MAX_PRICE), "Dearer routes are not taken (1 sat/MB is 1000000).", 100_000_000
    )
    sticky_fraction: float = key(
        share(),
        "By which part of its price another route must be cheaper to be taken, at the least (docs/pricing.md).",
        0.1,
    )
    sticky_timeout: float = key(
        seconds(0, 3600),
        "How long a smaller gain must last, on average, before it is taken; one by price alone ten times as long.",
        16.0,
    )
    unpriced: int | None = key(
        unpriced(), "What routes of plain Babel routers, which know no prices, are taken to cost in msat per GB.", 0
    )
    mode: Mode = key(  # noqa: RUF009
        one_of(Mode),
        "A router carries for others. A leaf announces its own prefixes only; a stub also forgets all routes but those "
        "to stub_prefixes.",
        Mode.ROUTER,
    )
    stub_prefixes: tuple[Prefix, ...] = key(
        prefixes(), "What a stub holds routes to.", (ip_network("::/0"), ip_network("0.0.0.0/0"))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixMatch:
    prefix: Prefix | None = key(  # noqa: RUF009
        prefix(), "Matches this prefix; any, if left out.", None, "10.0.0.0/8"
    )
    or_longer: bool = key(boolean(), "Matches all that lies in the prefix, too.", False)
    min_length: int | None = key(integer(0, 128), "Matches what lies in the prefix from this length.", None, 16)
    max_length: int | None = key(integer(0, 128), "Matches what lies in the prefix up to this length.", None, 24)

    @property
    def lengths(self) -> tuple[int, int]:
        """The least and the greatest length that match."""
        low = 0 if self.prefix is None else self.prefix.prefixlen
        is_exact = self.prefix is not None and not self.or_longer and self.min_length is None
        high = low if is_exact else 128
        return max(low, self.min_length or 0), high if self.max_length is None else self.max_length


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterConfig(PrefixMatch):
    """A rule on routes of neighbours (import) or on what we announce (export). One table for each; the first that
    matches decides, and what none matches is accepted. All keys that are given must match."""

    direction: str = key(choice("import", "export"), "Which way it looks.", example="import")
    action: str = key(choice("accept", "refuse"), "What becomes of a route that matches.", "accept")
    add_metric: int = key(integer(0, 65534), "Added to the metric of a route that is accepted.", 0)
    source_prefix: Prefix | None = key(  # noqa: RUF009
        prefix(), "Matches routes for packets from there only (RFC 9079).", None, "fd00:1::/48"
    )
    interface: str | None = key(_LINUX_NAME, "Matches routes of this interface.", None, "wlan0")
    neighbour: IPv6Address | None = key(  # noqa: RUF009
        link_local(), "Matches routes of it (import only).", None, "fe80::1"
    )
    router_id: bytes | None = key(router_id(), "Matches routes from that router.", None, "02:00:5e:00:53:00:00:01")
    price_above_msat_per_gb: int | None = key(
        integer(0, _MAX_PRICE), "Matches what is dearer than that.", None, 1_000_000
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RedistributeConfig(PrefixMatch):
    """Routes of the kernel that this node announces while they are there, such as a default route. One table for each;
    the first that matches decides, and what none matches is not announced."""

    action: str = key(choice("accept", "refuse"), "Announce what matches, or not.", "accept")
    protocol: int | None = key(protocol(), "Matches routes that it has put there.", None, "dhcp")
    table: int = key(integer(1, 2**32 - 1), "Matches routes in this table; 254 is main.", 254)
    interface: str | None = key(_LINUX_NAME, "Matches routes over this interface.", None, "eth0")
    metric: int = key(integer(0, 65534), "Announced with this metric.", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    node: NodeConfig = NodeConfig()
    interfaces: tuple[InterfaceConfig, ...] = ()
    discovery: DiscoveryConfig = DiscoveryConfig()
    peers: tuple[PeerConfig, ...] = ()
    routing: RoutingConfig = RoutingConfig()
    filters: tuple[FilterConfig, ...] = ()
    redistributions: tuple[RedistributeConfig, ...] = ()
    price: PriceConfig = PriceConfig()  # noqa: RUF009  frozen, like the others
    budget: BudgetConfig = BudgetConfig()  # noqa: RUF009
    payments: PaymentsConfig = PaymentsConfig()  # noqa: RUF009  frozen, like the others
    neighbours: tuple[NeighbourConfig, ...] = ()
    chain: ChainConfig = ChainConfig()  # noqa: RUF009
    backends: tuple[BackendConfig, ...] = ()

    @property
    def needs_chain(self) -> bool:
        """Some debts are settled on it; channels of before need it all the same."""
        words = {self.payments.settlement, *(neighbour.settlement for neighbour in self.neighbours)}
        return self.payments.enabled and "cltv" in words


TABLES: dict[str, type[Any]] = {
    "node": NodeConfig,
    "interface": InterfaceConfig,
    "discovery": DiscoveryConfig,
    "peer": PeerConfig,
    "routing": RoutingConfig,
    "filter": FilterConfig,
    "redistribute": RedistributeConfig,
    "price": PriceConfig,
    "budget": BudgetConfig,
    "payments": PaymentsConfig,
    "neighbour": NeighbourConfig,
    "chain": ChainConfig,
    "backend": BackendConfig,
}
# Those that may be there more than once, and what they are called together.
ARRAYS = {
    "interface": "interfaces",
    "peer": "peers",
    "filter": "filters",
    "redistribute": "redistributions",
    "neighbour": "neighbours",
    "backend": "backends",
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
        if name not in TABLES:
            raise ConfigError(f"unknown table [{name}]{nearest(name, TABLES)}")
    tables = {
        ARRAYS.get(name, name): _table(name, kind, document[name]) for name, kind in TABLES.items() if name in document
    }
    config = Config(**tables)
    check(config)
    return config


def _table(name: str, kind: type[Any], raw: Any) -> Any:
    if name not in ARRAYS:
        if not isinstance(raw, dict):
            raise ConfigError(f"[{name}] must be a table")
        return _read(f"[{name}]", kind, raw)
    if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
        raise ConfigError(f"{ARRAYS[name]} are written as [[{name}]], with two brackets, one for each")
    return tuple(_read(f"[[{name}]] number {number}", kind, item) for number, item in enumerate(raw, start=1))


def _read(where: str, kind: type[Any], raw: dict[str, Any]) -> Any:
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for name in raw:
        if name not in fields:
            raise ConfigError(f"{where}: unknown key {name}{nearest(name, fields)}")
    for name, item in fields.items():
        if item.default is dataclasses.MISSING and name not in raw:
            raise ConfigError(f"{where}: {name} is missing ({item.metadata['kind'].expected})")
    return kind(**{name: _value(where, fields[name], value) for name, value in raw.items()})


def _value(where: str, item: dataclasses.Field[Any], raw: Any) -> Any:
    kind: Kind = item.metadata["kind"]
    try:
        return kind.parse(raw)
    except InvalidError as error:
        shown = "(not shown)" if kind.is_secret else raw if not isinstance(raw, str) else f'"{raw}"'
        raise ConfigError(f"{where}: {item.name} = {shown}: expected {str(error) or kind.expected}") from error
