"""Money and debt as exact integers. Division happens once, at settlement, in `units_to_msat`."""

from __future__ import annotations

from payments.channel_tx import MAX_MONEY_SAT

UNITS_PER_MSAT = 10**9  # 1 unit = 1 byte x 1 msat/GB, and a GB is 10^9 bytes
MSAT_PER_SAT = 1000
MAX_MSAT = MAX_MONEY_SAT * MSAT_PER_SAT
MAX_UNITS = 2**127 - 1  # cumulative, over the life of a neighbourhood: 10^29 msat, more than there is


def units_to_msat(units: int) -> int:
    """Rounded down, in the buyer's favour; the remainder stays in the ledger. Negative sums round towards zero."""
    return units // UNITS_PER_MSAT if units >= 0 else -(-units // UNITS_PER_MSAT)


def msat_to_units(msat: int) -> int:
    return msat * UNITS_PER_MSAT


def msat_to_sat(msat: int) -> int:
    """Rounded down: what a channel owes on chain for a cumulative sum, which is never negative."""
    return msat // MSAT_PER_SAT
