"""Filters (RFC 8966 appendix C): ordered rules on what is taken from neighbours and what they are told.

The first rule that matches decides; a route that none matches is accepted as it is. A rule can make a route longer,
never shorter, so that link costs stay positive: on import the link becomes dearer for that route, on export the metric
that is announced is larger, and the feasibility distance follows what was announced (section 3.7.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from routing import rules
from routing.rules import METRIC_INFINITY, PRICE_NOT_FOR_SALE
from routing.tlv import Prefix, Update

REFUSED = METRIC_INFINITY  # what a refusal adds


@dataclass(frozen=True, slots=True)
class Rule:
    """All that is given must match. `add_metric` of REFUSED or more refuses.

    A prefix matches if it lies in `prefix` and its length is within the limits, which are both inclusive. A route for
    packets from everywhere matches no `source_prefix` (RFC 9079). `neighbour` makes sense on import only: what we say
    goes to all of an interface.
    """

    add_metric: int = 0
    prefix: Prefix | None = None
    length_min: int = 0
    length_max: int = 128
    interface: str | None = None
    neighbour: IPv6Address | None = None
    router_id: bytes | None = None
    price_above_msat_per_gb: int | None = None
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator may change while the speaker runs.

    `unpriced_msat_per_gb`: what the routes of a neighbour that knows no prices are taken to cost; None: they are
    refused. `price_max_msat_per_gb`: dearer routes are never selected, as if `SpeakerConfig` said so.
    """

    imports: tuple[Rule, ...] = ()
    exports: tuple[Rule, ...] = ()
    unpriced_msat_per_gb: int | None = 0
    price_max_msat_per_gb: int = PRICE_NOT_FOR_SALE - 1

    @property
    def is_import_open(self) -> bool:
        """Every route counts as it was announced."""
        return not self.imports and self.unpriced_msat_per_gb == 0


def appraise(
    policy: Policy, update: Update, interface: str, neighbour: IPv6Address, *, is_priced: bool, price_weight: float
) -> tuple[int, int]:
    """(what to add to the metric, the price that counts) for a route that was announced to us.

    `is_priced`: the neighbour knows prices, so that none means 0. Who does not know them has not put the price into its
    metric either.
    """
    price = update.price_msat_per_gb or 0
    added = 0
    if not is_priced:
        if policy.unpriced_msat_per_gb is None:
            return REFUSED, price
        price = policy.unpriced_msat_per_gb
        added = rules.price_metric(price, price_weight)
    return rules.metric_add(added, added_metric(policy.imports, update, price, interface, neighbour)), price


def added_metric(
    filters: tuple[Rule, ...], update: Update, price: int, interface: str, neighbour: IPv6Address | None = None
) -> int:
    """What the first rule that matches adds; REFUSED if it refuses. `price` is that which counts, msat per GB."""
    for rule in filters:
        if (
            (rule.prefix is None or _is_within(update.prefix, rule.prefix))
            and rule.length_min <= update.prefix.prefixlen <= rule.length_max
            and (rule.source_prefix is None or _is_within(update.source_prefix, rule.source_prefix))
            and rule.interface in (None, interface)
            and rule.neighbour in (None, neighbour)
            and rule.router_id in (None, update.router_id)
            and (rule.price_above_msat_per_gb is None or price > rule.price_above_msat_per_gb)
        ):
            return min(max(0, rule.add_metric), REFUSED)
    return 0


def _is_within(prefix: Prefix | None, network: Prefix) -> bool:
    if prefix is None or prefix.version != network.version or prefix.prefixlen < network.prefixlen:
        return False
    host_bits = network.max_prefixlen - network.prefixlen
    return int(prefix.network_address) >> host_bits == int(network.network_address) >> host_bits
