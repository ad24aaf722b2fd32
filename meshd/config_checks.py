"""Rules of the configuration that bear on more than one key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.config_kinds import ConfigError, nearest

if TYPE_CHECKING:
    from meshd.config import Config, FilterConfig, PrefixMatch, PriceConfig

MIN_EXPLORERS = 2


def check(config: Config) -> None:
    """Raises ConfigError."""
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
        if interface.mac_keys and interface.security != "none":
            raise ConfigError(
                f'[[interface]] "{interface.name}": mac_keys: expected security = "none"; '
                "WireGuard authenticates by itself"
            )
    _check_peers(config, names)
    names += [peer.name for peer in config.peers]
    for name, matches in (("filter", config.filters), ("redistribute", config.redistributions)):
        for number, match in enumerate(matches, start=1):
            _check_lengths(f"[[{name}]] number {number}", match)
    for number, rule in enumerate(config.filters, start=1):
        _check_filter(f"[[filter]] number {number}", rule, names)
    _check_price(config.price)
    _check_payments(config)
    if config.routing.update_interval < config.routing.hello_interval:
        raise ConfigError(
            f"[routing]: update_interval = {config.routing.update_interval:g}: expected at least hello_interval "
            f"({config.routing.hello_interval:g})"
        )


def _check_payments(config: Config) -> None:
    payments = config.payments
    if payments.window_msat > payments.max_window_msat:
        raise ConfigError(
            f"[payments]: window_msat = {payments.window_msat}: "
            f"expected at most max_window_msat ({payments.max_window_msat})"
        )
    _check_chain(config)
    known = [neighbour.identity for neighbour in config.neighbours]
    for number, identity_ in enumerate(known, start=1):
        if known.index(identity_) < number - 1:
            raise ConfigError(f"[[neighbour]] number {number}: identity = {identity_.hex()}: taken by an earlier one")
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


def _check_chain(config: Config) -> None:
    chain = config.chain
    if chain.network == "main" and not chain.real_money:
        raise ConfigError(
            '[chain]: network = "main": expected real_money = true with it, from who has read docs/threat-model.md'
        )
    if chain.wallet == "bitcoind" and chain.backend != "bitcoind":
        raise ConfigError('[chain]: wallet = "bitcoind": expected backend = "bitcoind", whose wallet it is')
    for number, backend in enumerate((chain, *config.backends)):
        where = f"[[backend]] number {number}" if number else "[chain]"
        if backend.backend == "kernel" and chain.network != "regtest":
            raise ConfigError(f'{where}: backend = "kernel": expected network = "regtest", which is all that it has')
        if backend.backend == "explorer" and len(set(backend.explorers)) < MIN_EXPLORERS:
            raise ConfigError(f'{where}: backend = "explorer": expected two or more explorers: one alone may lie')


def _check_peers(config: Config, interfaces: list[str]) -> None:
    seen: dict[tuple[str, object], str] = {("name", name): f'[[interface]] "{name}"' for name in interfaces}
    seen |= {
        ("listen_port", port): f"port = {port} in [{table}]"
        for table, port in (("discovery", config.discovery.port), ("routing", config.routing.port))
    }
    for number, peer in enumerate(config.peers, start=1):
        where = f'[[peer]] "{peer.name}"'
        for name in ("name", "identity", "listen_port"):
            value = getattr(peer, name)
            if value and seen.setdefault((name, value), f"[[peer]] number {number}") != f"[[peer]] number {number}":
                shown = value.hex() if isinstance(value, bytes) else value
                raise ConfigError(f"{where}: {name} = {shown}: taken by {seen[name, value]}")
        if peer.endpoint is None and not peer.listen_port:
            raise ConfigError(f"{where}: expected an endpoint, where it waits, or a listen_port, where we wait for it")


def _check_price(price: PriceConfig) -> None:
    if problem := price.problem():
        raise ConfigError(f"[price]: {problem}")


def _check_lengths(where: str, match: PrefixMatch) -> None:
    low, high = match.lengths
    longest = 128 if match.prefix is None else match.prefix.max_prefixlen
    if low > longest or (match.max_length or 0) > longest:
        raise ConfigError(f'{where}: expected lengths up to {longest} for prefix = "{match.prefix}"')
    if low > high:
        raise ConfigError(f"{where}: max_length = {high}: expected at least {low}")


def _check_filter(where: str, rule: FilterConfig, interfaces: list[str]) -> None:
    if rule.interface is not None and rule.interface not in interfaces:
        near = nearest(rule.interface, interfaces) if interfaces else ""
        raise ConfigError(f'{where}: interface = "{rule.interface}": there is no such [[interface]]{near}')
    if rule.direction == "export" and rule.neighbour is not None:
        raise ConfigError(f"{where}: neighbour is for import only: all of an interface hear the same; use interface")
    if rule.action == "refuse" and rule.add_metric:
        raise ConfigError(f"{where}: add_metric = {rule.add_metric}: a route that is refused has no metric")
