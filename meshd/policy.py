"""From the operator's filter tables to the speaker's policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Address

from meshd.config import Config, FilterConfig
from routing.filters import REFUSED, Policy, Rule


def policy_of(
    config: Config,
    tunnels: Mapping[str, Sequence[str]] | None = None,
    distrusted: Iterable[tuple[str, IPv6Address]] = (),
    *,
    is_buying: bool = True,
) -> Policy:
    """`tunnels`: by name of the interface under them. What is said of that interface holds for each of them.

    `distrusted`: links (interface, neighbour) from which no routes are taken, whatever the filters say.
    `is_buying`: routes with a price may be used.
    """
    known = tunnels or {}
    return Policy(
        imports=(
            *(Rule(add_metric=REFUSED, interface=interface, neighbour=address) for interface, address in distrusted),
            *(rule for item in config.filters if item.direction == "import" for rule in _rules(item, known)),
        ),
        exports=tuple(rule for item in config.filters if item.direction == "export" for rule in _rules(item, known)),
        unpriced_msat_per_gb=config.routing.unpriced,
        price_max_msat_per_gb=config.routing.max_price_msat_per_gb if is_buying else 0,
    )


def _rules(item: FilterConfig, tunnels: Mapping[str, Sequence[str]]) -> Iterator[Rule]:
    rule = _rule(item)
    if item.interface is None or item.interface not in tunnels:
        yield rule
    else:
        yield from (replace(rule, interface=name) for name in tunnels[item.interface])


def _rule(item: FilterConfig) -> Rule:
    low, high = item.lengths
    return Rule(
        add_metric=REFUSED if item.action == "refuse" else item.add_metric,
        prefix=item.prefix,
        length_min=low,
        length_max=high,
        interface=item.interface,
        neighbour=item.neighbour,
        router_id=item.router_id,
        price_above_msat_per_gb=item.price_above_msat_per_gb,
        source_prefix=item.source_prefix,
    )
