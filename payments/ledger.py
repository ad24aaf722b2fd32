"""Who owes whom: one ledger per peer, both directions, exact integers, netted at every settlement.

Two meters never agree to the byte, so each debt has two ends. The seller *bills* what its ingress meter counted at the
price that it announced. The buyer *accepts* the bill up to what its own egress meter allows at the prices that it
heard, plus a tolerance of one window for the time between the two readings. Everything is cumulative since the first
meeting, so that lag evens out, nothing can be counted twice, and a cheat gains the tolerance once.

A crash loses what was metered and not yet written. `MAX_UNWRITTEN` of a window at the most is left unwritten, and twice
that is allowed for at each restart: else a neighbourhood that lives through many crashes would end in a dispute.
"""

from __future__ import annotations

from dataclasses import dataclass

from payments.life import InvariantError, check_ledger_step
from payments.messages import Accounts
from payments.records import LedgerRecord
from payments.units import MAX_UNITS, UNITS_PER_MSAT, msat_to_units, units_to_msat
from payments.window import Window

MAX_UNWRITTEN = 4  # the divisor: a quarter of the window
LOST_PER_RESTART = 2  # half of the window: the quarter, and what the last reading of the meter brought on top


Balance = tuple[int, int, int, int, int]  # what we told and heard, sent, received: what one settlement follows from


@dataclass(slots=True)
class Ledger:
    """`sent_msat` and `received_msat` are the sums over all channels; the engine sets them."""

    peer: bytes
    window: Window
    billed_units: int = 0
    acknowledged_units: int = 0
    their_billed_units: int = 0
    accepted_units: int = 0
    owed_limit_units: int = 0
    lost_meter_units: int = 0
    unwritten_units: int = 0  # metered since the record was last written
    is_suspended: bool = False  # as we last told the kernel
    their_seen_units: int = 0  # which of our bills their `acknowledged` answers; told anew in each session
    sent_msat: int = 0
    received_msat: int = 0
    written: LedgerRecord | None = None  # as it is on the disk, or will be before anything leaves
    is_tolerant: bool = True  # no longer, once the peer's counts disagree with ours

    @classmethod
    def from_record(cls, record: LedgerRecord) -> Ledger:
        return cls(
            peer=record.peer,
            window=Window(record.window_msat, record.window_progress_msat),
            billed_units=record.billed_units,
            acknowledged_units=record.acknowledged_units,
            their_billed_units=record.their_billed_units,
            accepted_units=record.accepted_units,
            owed_limit_units=record.owed_limit_units,
            lost_meter_units=record.lost_meter_units,
            is_suspended=record.is_suspended,
            written=record,
        )

    def record(self) -> LedgerRecord:
        return LedgerRecord(
            peer=self.peer,
            billed_units=self.billed_units,
            acknowledged_units=self.acknowledged_units,
            their_billed_units=self.their_billed_units,
            accepted_units=self.accepted_units,
            owed_limit_units=self.owed_limit_units,
            lost_meter_units=self.lost_meter_units,
            window_msat=self.window.size_msat,
            window_progress_msat=self.window.progress_msat,
            is_suspended=self.is_suspended,
        )

    def write(self) -> LedgerRecord:
        """The row to be written. Raises InvariantError unless it may follow the one before."""
        self.check()
        record = self.record()
        if self.written is not None:
            check_ledger_step(self.written, record)
        self.written = record
        return record

    def accounts(self) -> Accounts:
        """What we tell the peer. It must be on disk before it leaves, so that no bill of ours ever goes back."""
        return Accounts.of(
            billed_units=self.billed_units, accepted_units=self.accepted_units, seen_units=self.their_billed_units
        )

    def balance(self) -> Balance:
        told = self.billed_units, self.accepted_units, self.their_billed_units
        return *told, self.sent_msat, self.received_msat

    def add_metered(self, *, earned_units: int, owed_limit_units: int) -> None:
        self.billed_units = min(self.billed_units + earned_units, MAX_UNITS)
        self.owed_limit_units = min(self.owed_limit_units + owed_limit_units, MAX_UNITS)
        self.unwritten_units += earned_units + owed_limit_units

    @property
    def must_be_written(self) -> bool:
        return self.unwritten_units * MAX_UNWRITTEN >= msat_to_units(self.window.size_msat)

    def allow_for_restart(self) -> None:
        """Only where we buy; who sells alone has lost nothing that the peer could claim."""
        if self.owed_limit_units:
            lost_units = msat_to_units(self.window.size_msat) // LOST_PER_RESTART
            self.lost_meter_units = min(self.lost_meter_units + lost_units, MAX_UNITS)

    def hear(self, accounts: Accounts) -> None:
        """Take in what the peer says. Nothing that it says makes us owe more than our own meter allows."""
        # If they admit to a bill that we do not remember, our books are an old backup, and it is ours to claim.
        accepted_units = accounts.accepted_units
        self.billed_units = max(self.billed_units, accepted_units)
        self.their_billed_units = max(self.their_billed_units, accounts.billed_units)
        self.acknowledged_units = max(self.acknowledged_units, accepted_units)
        self.their_seen_units = min(accounts.seen_units, self.billed_units)
        self.accept()

    def accept(self) -> None:
        """Accept as much of their bill as our meter allows by now."""
        if self.accepted_units == self.their_billed_units:
            return  # all of it already
        tolerance_units = self.lost_meter_units + msat_to_units(self.window.size_msat) if self.is_tolerant else 0
        limit = min(self.owed_limit_units + tolerance_units, MAX_UNITS)
        self.accepted_units = max(self.accepted_units, min(self.their_billed_units, limit))

    @property
    def is_disputed(self) -> bool:
        return self.their_billed_units > self.accepted_units

    @property
    def unanswered_units(self) -> int:
        """What we billed and they have not seen yet, as far as we know."""
        return max(0, self.billed_units - max(self.their_seen_units, self.acknowledged_units))

    @property
    def unpaid_msat(self) -> int:
        """What the peer owes us, net, by our bill: our exposure. Negative: we owe."""
        units = self.billed_units - self.accepted_units - (self.received_msat - self.sent_msat) * UNITS_PER_MSAT
        return units_to_msat(units)

    @property
    def payable_msat(self) -> int:
        """What we should pay now: what we accept, less what they accept, less what they could not answer yet.

        Without the last part two peers that sell to each other would pay each other in full, crosswise.
        """
        net_units = self.accepted_units - self.acknowledged_units - self.unanswered_units
        return units_to_msat(net_units - (self.sent_msat - self.received_msat) * UNITS_PER_MSAT)

    @property
    def expected_debt_msat(self) -> int:
        """What we owe, net, by our own meter, before any bill comes."""
        net_units = self.owed_limit_units - self.billed_units - (self.sent_msat - self.received_msat) * UNITS_PER_MSAT
        return units_to_msat(net_units)

    @property
    def is_empty(self) -> bool:
        """Never metered, billed or paid: no row is needed."""
        return not (self.billed_units or self.their_billed_units or self.owed_limit_units)

    def check(self) -> None:
        """Raises InvariantError."""
        if not 0 <= self.acknowledged_units <= self.billed_units <= MAX_UNITS:
            raise InvariantError("acknowledged more than billed")
        if not 0 <= self.accepted_units <= self.their_billed_units <= MAX_UNITS:
            raise InvariantError("accepted more than was billed to us")
        if self.sent_msat < 0 or self.received_msat < 0:
            raise InvariantError("negative payments")
