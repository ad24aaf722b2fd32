"""What fees may be: when a channel is not worth its claim, and how dear a transaction gets that does not confirm."""

from __future__ import annotations

import math
from collections.abc import Iterable

from payments.channel_tx import MAX_FEE_RATE, claim_fee, parse_transaction

STEP = 1.25  # a replacement pays at least so much more per byte: steps are large, so that there are few
MIN_RELAY_FEE_RATE = 1.0  # sat/vB: below it no node is sure to take a transaction
INCREMENTAL_FEE_RATE = 1.0  # sat/vB that it pays more in all: Bitcoin Core's -incrementalrelayfee, doubled


def is_too_dear(capacity_sat: int, fee_rate: float, *, max_share: float) -> bool:
    """Whether a claim of that channel alone would cost more than the share of its capacity."""
    return claim_fee(fee_rate) > max_share * capacity_sat


def ladder_rate(estimate: float, *, blocks_left: int, margin: int) -> float:
    """sat/vB for what has to confirm within `blocks_left`: the estimate, twice that from half of the margin on, four
    times from a quarter on, and so forth."""
    halvings = math.floor(math.log2(max(margin / max(blocks_left, 1), 1.0)))
    return min(estimate * 2.0**halvings, MAX_FEE_RATE)


def is_step_due(old_rate: float, wanted_rate: float) -> bool:
    return wanted_rate >= STEP * old_rate


def replaces(old_raw: bytes, old_fee_sat: int, new_fee_sat: int) -> bool:
    """BIP125 rules 3 and 4; both transactions are of the same size, but for their signatures."""
    return new_fee_sat >= old_fee_sat + math.ceil(INCREMENTAL_FEE_RATE * (virtual_bytes(old_raw) + 1))


def virtual_bytes(raw: bytes) -> int:
    """BIP141. Raises ValueError."""
    transaction = parse_transaction(raw)
    witness = sum(len(item.witness.serialize()) for item in transaction.vin) + 2 if transaction.is_segwit else 0
    return math.ceil((4 * (len(raw) - witness) + witness) / 4)


def fee_of(raw: bytes, input_values_sat: Iterable[int]) -> int:
    """Sat. Raises ValueError."""
    return sum(input_values_sat) - sum(int(o.value) for o in parse_transaction(raw).vout)


def fee_rate_of(raw: bytes, input_values_sat: Iterable[int]) -> float:
    """sat/vB. Raises ValueError."""
    return fee_of(raw, input_values_sat) / virtual_bytes(raw)
