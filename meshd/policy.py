"""From the operator's filter tables to the speaker's policy."""

from __future__ import annotations

from meshd.config import Config, FilterConfig
from routing.filters import REFUSED, Policy, Rule


def policy_of(config: Config) -> Policy:
    return Policy(
        imports=tuple(_rule(item) for item in config.filters if item.direction == "import"),
        exports=tuple(_rule(item) for item in config.filters if item.direction == "export"),
        unpriced_msat_per_gb=config.routing.unpriced,
    )


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
