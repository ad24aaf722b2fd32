"""The settings of the payment engine, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

SETTLEMENTS = ("cltv", "credit", "null")
MAX_CREDIT_MSAT = 10**15  # 10,000 bitcoins: more is a mistake, not a friendship


@dataclass(frozen=True, slots=True)
class SettlementTerms:
    """How debts with a neighbour are settled, as we would have it. `credit_limit_msat`: what either end may promise
    the other; the lower one of both ends holds."""

    settlement: str = "cltv"
    credit_limit_msat: int = 1_000_000

    def __post_init__(self) -> None:
        if self.settlement not in SETTLEMENTS:
            raise ValueError(f"settlement: one of {', '.join(SETTLEMENTS)}")
        if not 0 <= self.credit_limit_msat <= MAX_CREDIT_MSAT:
            raise ValueError(f"credit_limit_msat must be between 0 and {MAX_CREDIT_MSAT}")


@dataclass(frozen=True, slots=True)
class PaymentConfig:
    """Times in seconds, heights in blocks. Raises ValueError if the settings contradict each other."""

    chain: str = "regtest"  # both ends must name the same one
    tick_interval: float = 5.0
    min_interval: float = 0.1  # between two statements to, or two payments to, the same peer
    opening_timeout: float = 30.0
    closing_timeout: float = 5.0  # how long a claim waits for the payers' last payments
    open_retry_interval: float = 10.0
    # How long a reading of the meter, or a report of counts, may wait for others; `PaymentEngine` says which may not.
    metered_delay: float = 0.0
    start_window_msat: int = 10_000
    max_window_msat: int = 1_000_000
    capacity_sat: int = 100_000  # of the channels that we fund
    min_capacity_sat: int = 5_000  # of those that we accept
    max_capacity_sat: int = 10_000_000
    expiry_blocks: int = 2016  # the payer stops two margins before the expiry, the payee claims one before
    max_expiry_blocks: int = 20_160
    expiry_margin: int = 144
    min_confirmations: int = 1
    open_debt_msat: int = 1_000  # a channel costs its fees: none is opened for less
    max_claim_fee_share: float = 0.02  # of the capacity: no channel is opened or accepted whose claim would cost more
    close_patience_blocks: int = 6  # how long a payer waits for an announced claim before it offers to close together
    max_channels_per_peer: int = 8  # incoming, not closed
    counts_interval: float = 5.0  # between two signed counts to the same peer, where there is anything new
    keep_for_neighbours: bool = True  # what they have been paid, sealed: 8 KiB each
    keep_interval: float = 60.0  # between two such of one neighbour
    max_faults: int = 16  # per session, then the connection is dropped
    settlement: SettlementTerms = SettlementTerms()
    settlement_by_peer: Mapping[bytes, SettlementTerms] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not 1 <= len(self.chain) <= 64:
            raise ValueError("chain: a name of 1 to 64 characters")
        intervals = (self.tick_interval, self.min_interval, self.opening_timeout, self.open_retry_interval)
        if min(*intervals, self.counts_interval, self.keep_interval) <= 0 or self.metered_delay < 0:
            raise ValueError("intervals must be above 0, metered_delay at least 0")
        if not 1 <= self.start_window_msat <= self.max_window_msat:
            raise ValueError("start_window_msat must be between 1 and max_window_msat")
        if self.open_debt_msat < 1:
            raise ValueError("open_debt_msat must be at least 1")
        if not 1 <= self.min_capacity_sat <= self.max_capacity_sat:
            raise ValueError("min_capacity_sat must be between 1 and max_capacity_sat")
        if self.expiry_margin < 1 or self.min_confirmations < 1:
            raise ValueError("expiry_margin and min_confirmations must be at least 1")
        if not 0 < self.max_claim_fee_share <= 1 or self.close_patience_blocks < 1:
            raise ValueError("max_claim_fee_share must be above 0 and at most 1, close_patience_blocks at least 1")
        if not self.min_expiry_blocks < self.expiry_blocks <= self.max_expiry_blocks:
            raise ValueError("expiry_blocks must be above three margins and at most max_expiry_blocks")

    def terms_with(self, peer: bytes) -> SettlementTerms:
        return self.settlement_by_peer.get(peer, self.settlement)

    @property
    def needs_chain(self) -> bool:
        return "cltv" in {terms.settlement for terms in (self.settlement, *self.settlement_by_peer.values())}

    @property
    def min_expiry_blocks(self) -> int:
        """Of a channel that we accept: below it, it would close before it could be used."""
        return 3 * self.expiry_margin
