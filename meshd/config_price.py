"""The tables [price] and [budget] of the configuration: what this node asks, and what it spends."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.config_kinds import NOT_FOR_SALE, choice, fee, integer, key, seconds
from payments.pricing import PRICE_INTERVAL

_MAX_PRICE = NOT_FOR_SALE - 1
_MAX_BUDGET = integer(0, 10**15)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """What this node asks."""

    price: str = key(
        choice("fixed", "auto"), "auto: the fee rises and falls with the load, from fee_msat_per_gb on.", "fixed"
    )
    fee_msat_per_gb: int = key(
        fee(), "Asked for carrying one GB (10^9 bytes) to anybody else, on top of our own costs.", 100_000
    )
    floor_msat_per_gb: int = key(integer(0, _MAX_PRICE), "auto: the fee is never below it.", 1_000)
    ceiling_msat_per_gb: int = key(integer(1, _MAX_PRICE), "auto: the fee is never above it.", 100_000_000)
    capacity_mbit: int = key(
        integer(0, 1_000_000),
        "auto: the Mbit/s that this node can carry. Above 70 % of it the fee rises, below it falls.",
        0,
    )
    interval: float = key(
        seconds(0.5, 3600), "auto: between two looks at the load. Each moves the fee by 6.4 % at most.", PRICE_INTERVAL
    )
    price_notice: float = key(seconds(0, 3600), "How long the old price is still honoured after a rise.", 10.0)

    def problem(self) -> str | None:
        """What does not go together."""
        if self.price != "auto":
            return None
        low, high, first = self.floor_msat_per_gb, self.ceiling_msat_per_gb, self.fee_msat_per_gb
        if not self.capacity_mbit:
            return 'capacity_mbit = 0: expected what the node can carry, for price = "auto"'
        if low > high:
            return f"floor_msat_per_gb = {low}: expected at most ceiling_msat_per_gb ({high})"
        if not low <= first <= high:
            return (
                f"fee_msat_per_gb = {first}: expected from floor_msat_per_gb ({low}) to ceiling_msat_per_gb ({high}), "
                'for price = "auto"'
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """What this node spends at most: paid and owed to neighbours, less what they pay. Then it buys nothing more until
    the window ends (docs/pricing.md)."""

    per_hour_msat: int = key(_MAX_BUDGET, "In an hour (UTC); 0: no limit. 1000 msat are 1 sat.", 0)
    per_day_msat: int = key(_MAX_BUDGET, "In a day (UTC); 0: no limit.", 0)
    per_month_msat: int = key(_MAX_BUDGET, "In 30 days; 0: no limit.", 0)

    def limits(self) -> dict[str, int]:
        """By period."""
        return {"hour": self.per_hour_msat, "day": self.per_day_msat, "month": self.per_month_msat}
